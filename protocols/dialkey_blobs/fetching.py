"""What ``dialkey receive`` does."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

import attrs

from dialkey import Endpoint
from dialkey.cli import Options, Output, Progress, format_bytes, format_rate
from dialkey.errors import DialkeyError, InvalidTicket, LocalError, RemoteError
from dialkey.limits import MAX_HASH_SEQ_BYTES
from dialkey_blobs.blobs import Blobs, Entry
from dialkey_blobs.download import Connected, Download, Downloaded, ProviderFailed
from dialkey_blobs.download import Progress as DownloadProgress
from dialkey_blobs.files import place_below
from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat
from dialkey_blobs.listing import (
    LISTED_NAMES,
    files_in_words,
    path_in_words,
    renamed_fields,
    show_entries,
    show_renamed,
)
from dialkey_blobs.names import show_name
from dialkey_blobs.printing import Printer
from dialkey_blobs.protocol import ALPN, COMPLETE_REASON, CloseCode, GetRequest
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.safe_paths import TargetExists
from dialkey_blobs.stdin import can_ask, confirm
from dialkey_blobs.store import ImportMode
from dialkey_blobs.store.errors import BlobIncomplete, BlobMissing
from dialkey_blobs.targets import Target
from dialkey_blobs.ticket import BlobTicket

__all__ = ["Declined", "Summary", "fetch", "receive"]

Ask = Callable[[str], Awaitable[bool]]

EXISTS_HINT: Final = "--overwrite replaces it, -o puts the new one elsewhere"
HASH_BYTES: Final = 32

TELL_TIMEOUT_S: Final = 3.0
"""For telling a sender that does not matter any more that it may end."""

logger = logging.getLogger("dialkey.blobs")

MISTYPED_HINT: Final = "a ticket does not check itself: copy it again from where it was printed"


class Declined(LocalError):
    """The user was asked whether to receive, and said no."""

    code = "local.declined"


@attrs.frozen
class Summary:
    """What a command received.

    Attributes:
        paths: the files, in the order of the collection; none for standard output.
        names: what the sender calls them.
        sizes: their bytes.
        total_bytes: all content.
        received_bytes: how much of it arrived in this run; if it was cut off, how much was written.
        elapsed_s: how long the download took.
        path: the path in use at the end, such as ``direct 192.0.2.1:4433``; None if nothing was fetched.
        was_cut_off: whether the reader of standard output left before the end, as ``head`` does.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    total_bytes: int
    received_bytes: int
    elapsed_s: float
    path: str | None
    was_cut_off: bool = False

    def __str__(self) -> str:
        if self.was_cut_off:
            return (
                f"{format_bytes(self.received_bytes)} of {format_bytes(self.total_bytes)};"
                " then the reader of standard output left"
            )
        if self.path is None or not self.received_bytes:
            return f"{format_bytes(self.total_bytes)}, all of it was there"
        rate = self.received_bytes / self.elapsed_s if self.elapsed_s > 0 else 0.0
        resumed = (
            f" (of {format_bytes(self.total_bytes)}; the rest was there)"
            if self.received_bytes < self.total_bytes
            else ""
        )
        return (
            f"{format_bytes(self.received_bytes)}{resumed} in {self.elapsed_s:.1f} s:"
            f" {format_rate(rate)}, {self.path}"
        )


async def receive(
    output: Output,
    options: Options,
    ticket: BlobTicket,
    target: Target,
    *,
    overwrite: bool,
    ask: bool,
) -> None:
    """Fetch what a ticket names, and report what has arrived.

    Args:
        output: where to report.
        options: the endpoint.
        ticket: what to fetch, and from whom.
        target: where to put it.
        overwrite: replace files that exist.
        ask: whether to ask the user at the terminal first.

    Raises:
        TargetExists: a file exists and may not be overwritten; noticed before content is fetched.
        UnsafeName: the sender named a file in a way that could do harm.
        Declined: the user was asked and said no.
        DialkeyError: everything else that can go wrong with peer, network and disk.
    """

    async def question(text: str) -> bool:
        return await confirm(output, text)

    summary = await fetch(
        output,
        options.open_endpoint,
        ticket,
        target,
        overwrite=overwrite,
        ask=question if ask and can_ask(output) else None,
    )
    files = zip(summary.names, summary.sizes, strict=True)
    paths = summary.paths or (None,) * len(summary.names)
    output.result(
        "received",
        "\n".join(map(str, summary.paths)) if summary.paths else None,
        paths=[str(path) for path in summary.paths],
        files=[
            {"name": name, "size": size, "path": str(path) if path is not None else None}
            for (name, size), path in zip(files, paths, strict=True)
        ],
        total_bytes=summary.total_bytes,
        received_bytes=summary.received_bytes,
        elapsed_s=round(summary.elapsed_s, 3),
        path=summary.path,
    )
    output.remark(f"Received {summary}")


async def fetch(
    output: Output,
    open_endpoint: Callable[[], Awaitable[Endpoint]],
    ticket: BlobTicket,
    target: Target,
    *,
    overwrite: bool,
    ask: Ask | None = None,
    on_progress: Callable[[Endpoint, int], None] | None = None,
) -> Summary:
    """Fetch what a ticket names, showing names and progress.

    `ask` gets a question before content is fetched; `on_progress` is called with the endpoint and the
    bytes that are there so far.

    What has arrived is kept in a hidden folder beside the result until everything is in place, so that
    another call can continue from there. Raises what `receive` does.
    """
    async with _keeping(output, target, ticket) as kept:
        async with (
            Blobs.persistent(kept.folder) as blobs,
            await open_endpoint() as endpoint,
        ):
            blobs.attach(endpoint)
            is_again = kept.is_worth_keeping
            receiving = _Receiving(output, blobs, ticket, target, overwrite=overwrite, ask=ask)
            try:
                async with aclosing(receiving.run()) as held:
                    async for held_bytes in held:
                        kept.held_bytes = held_bytes
                        if on_progress is not None:
                            on_progress(endpoint, held_bytes)
            except TargetExists as error:
                raise TargetExists(error.path, hint=EXISTS_HINT) from None
            finally:
                kept.is_worth_keeping |= receiving.has_received
                kept.is_done |= receiving.is_junk
            summary = receiving.summary
            if is_again and summary.path is None:
                await receiving.tell_sender()
        kept.is_done = True
    return summary


class _Kept:
    """The hidden folder of a download, kept as long as it holds something to resume from."""

    def __init__(self, target: Target, ticket: BlobTicket) -> None:
        self._parent = target.state_folder
        self.folder = self._parent / f".dialkey-{ticket.hash.hex()[:16]}"
        self._had_parent = self._parent.exists()
        self.is_worth_keeping = self.folder.exists()
        self.held_bytes = 0
        self.is_done = False
        self.folder.mkdir(parents=True, exist_ok=True)

    def close(self) -> bool:
        """Remove it, unless something is kept; return whether it is."""
        if self.is_worth_keeping and not self.is_done:
            return True
        shutil.rmtree(self.folder, ignore_errors=True)
        if not self._had_parent and not any(self._parent.iterdir()):
            self._parent.rmdir()
        return False


@asynccontextmanager
async def _keeping(output: Output, target: Target, ticket: BlobTicket) -> AsyncIterator[_Kept]:
    kept = await asyncio.to_thread(_Kept, target, ticket)
    try:
        yield kept
    finally:
        if await asyncio.to_thread(kept.close):
            size = f"{format_bytes(kept.held_bytes)} of it" if kept.held_bytes else "what has come"
            output.result("kept", None, path=str(kept.folder), held_bytes=kept.held_bytes)
            output.remark(
                f"Kept {size} in {kept.folder}: run the same command again to continue from there."
            )


class _Receiving:
    """One run of ``dialkey receive``."""

    def __init__(
        self,
        output: Output,
        blobs: Blobs,
        ticket: BlobTicket,
        target: Target,
        *,
        overwrite: bool,
        ask: Ask | None,
    ) -> None:
        self._output = output
        self._blobs = blobs
        self._ticket = ticket
        self._content = ticket.content
        self._target = target
        self._overwrite = overwrite
        self._ask = ask
        self._entries: list[Entry] | None = None
        self._paths: list[Path] = []
        self._is_for_one = False
        self._present: set[int] = set()
        self._path: str | None = None
        self._shown = ExitStack()
        self._progress: Progress
        self._printer = Printer(output, blobs.store)
        self._summary: Summary | None = None
        self.has_received = False
        self.is_junk = False

    @property
    def summary(self) -> Summary:
        """What was received, when `run` has ended."""
        assert self._summary is not None
        return self._summary

    async def run(self) -> AsyncGenerator[int, None]:
        """Fetch and write everything; show names and sizes as soon as they are known.

        Yields how many bytes are there so far.
        """
        download = self._blobs.download(self._ticket)
        dialling = f"connecting to {self._ticket.addr.id.short()} …"
        with self._shown:
            self._show_progress().waiting(dialling)
            try:
                async with aclosing(aiter(download)) as events:
                    async for event in events:
                        if isinstance(event, Connected):
                            self._path = path_in_words(event.path)
                        elif isinstance(event, ProviderFailed) and event.retry_in_s is not None:
                            self._output.remark(
                                f"{event.error}; going on in {event.retry_in_s:.1f} s"
                                " where it stopped"
                            )
                            self._progress.waiting(dialling)
                        elif isinstance(event, DownloadProgress):
                            if event.path is not None:
                                self._path = path_in_words(event.path)
                            if self._entries is None:
                                await self._list_if_known(event.total_bytes)
                            if self._entries is None:
                                continue
                            self.has_received |= event.held_bytes > 0
                            if self._is_all_present:
                                download.settle()
                                break
                            self._progress.update(
                                event.held_bytes, total_bytes=event.total_bytes, note=self._path
                            )
                            if self._prints_early(event.total_bytes):
                                await self._printer.advance(self._entries[0].hash)
                                if self._output.has_lost_reader:
                                    break
                            yield event.held_bytes
                        elif isinstance(event, Downloaded):
                            self._shown.close()
                            await self._finish(download, event)
            except DialkeyError as error:
                if self._printer.written_bytes:
                    written = format_bytes(self._printer.written_bytes)
                    self._output.remark(f"Standard output has only the first {written} of it.")
                if not isinstance(error, RemoteError):
                    raise
                if self._entries is None and self._content.format is BlobFormat.HASH_SEQ:
                    self._output.remark(f"The ticket may be mistyped: {MISTYPED_HINT}.")
                raise
        if self._summary is None:
            self._summarize(None)

    @property
    def _is_all_present(self) -> bool:
        return self._entries is not None and len(self._present) == len(self._entries) > 0

    def _show_progress(self) -> Progress:
        self._progress = self._shown.enter_context(self._output.progress("receiving"))
        return self._progress

    def _prints_early(self, total_bytes: int | None) -> bool:
        """Say whether content may be written while the rest is still to come.

        Not to a terminal, where progress is shown; and not before `_check_format` has had its say.
        """
        return (
            self._target.kind == "stdout"
            and total_bytes is not None
            and not self._output.stdout.isatty()
            and not (self._content.format is BlobFormat.RAW and _may_be_list(total_bytes))
        )

    async def tell_sender(self) -> None:
        """Tell the sender that all is in place, after a run that did not need it.

        The run before was cut off after the last byte had come: ``send --once`` still waits to hear how
        it ended. Nothing depends on it here.
        """
        try:
            async with asyncio.timeout(TELL_TIMEOUT_S):
                async with self._blobs.endpoint.connect(self._ticket.addr, ALPN) as connection:
                    await self._blobs.get(
                        connection, GetRequest.blob(self._content.hash, ChunkRanges.last_chunk())
                    )
                    connection.close(CloseCode.COMPLETE, COMPLETE_REASON)
        except (TimeoutError, DialkeyError) as error:
            logger.info("the sender was not told that all is in place: %s", error)

    # --- before the content ---------------------------------------------------------------------

    async def _list_if_known(self, total_bytes: int | None) -> None:
        if self._content.format is BlobFormat.RAW:
            if total_bytes is not None:
                await self._look_at([self._raw_entry(total_bytes)])
            return
        try:
            entries = await self._blobs.entries(self._content)
        except (BlobMissing, BlobIncomplete):
            return
        if total_bytes is not None or not entries or len(entries) > LISTED_NAMES:
            await self._look_at(entries)

    def _raw_entry(self, size: int) -> Entry:
        return Entry(str(self._content.hash), self._content.hash, size)

    async def _look_at(self, entries: list[Entry]) -> None:
        """Show the names, and refuse what may not be written, before the content is fetched."""
        names = [entry.name for entry in entries]
        placed = await asyncio.to_thread(place_below, self._target.state_folder, names)
        paths = self._target.paths(placed.names)
        if self._content.format is BlobFormat.HASH_SEQ:
            show_entries(self._output, "Receiving", entries)
        is_for_one = self._target.is_for_one(placed.names)
        if not is_for_one:
            show_renamed(self._output, "becomes", placed.renamed)
        self._output.result(
            "files",
            None,
            files=[{"name": entry.name, "size": entry.size} for entry in entries],
            renamed=renamed_fields(placed.renamed),
        )
        if paths and not self._overwrite:
            self._present = await self._find_present(entries, paths)
        if len(self._present) < len(entries):
            await self._permit(entries)
            for number in self._present:
                # What is there need not be fetched again.
                (await self._blobs.add_path(paths[number], ImportMode.REFERENCE)).leak()
        for number in sorted(self._present)[:LISTED_NAMES]:
            self._output.remark(
                f"{show_name(str(paths[number]))} is there already, with this content"
            )
        # Asked once: writing the files changes what is there.
        self._paths, self._is_for_one = paths, is_for_one
        self._entries = entries

    async def _find_present(self, entries: Sequence[Entry], paths: Sequence[Path]) -> set[int]:
        """Return which files already have the right content, as after an interrupted export."""
        existing = await asyncio.to_thread(_existing, paths)
        there = await self._blobs.store.already_there(
            # Sizes that are not proven yet are given as zero.
            [
                (entries[number].hash, entries[number].size or None, paths[number])
                for number in sorted(existing)
            ]
        )
        for number in sorted(existing):
            if paths[number] not in there:
                raise TargetExists(paths[number])
        return existing

    async def _permit(self, entries: Sequence[Entry]) -> None:
        if self._ask is None:
            return
        where = {
            "folder": f"into {show_name(str(self._target.path))}",
            "name": f"as {show_name(str(self._target.path))}",
            "stdout": "to standard output",
        }[self._target.kind]
        self._shown.close()
        if not await self._ask(f"Receive {files_in_words(entries)}, {where}?"):
            raise Declined("nothing was received, as you said")
        self._show_progress()

    # --- after it -------------------------------------------------------------------------------

    async def _finish(self, download: Download, downloaded: Downloaded) -> None:
        """Write the files, while the sender waits for the outcome."""
        try:
            if self._content.format is BlobFormat.RAW:
                await self._check_format(downloaded)
            if self._entries is None:
                if self._content.format is BlobFormat.RAW:
                    await self._look_at([self._raw_entry(downloaded.total_bytes)])
                else:
                    await self._look_at(await self._blobs.entries(self._content))
            if not self._is_all_present:
                await self._export()
            self._summarize(downloaded)
        except BaseException:
            download.spoil()
            raise

    async def _export(self) -> None:
        """Write the files under their names."""
        assert self._entries is not None
        target = self._target
        if target.kind == "stdout":
            await self._printer.advance(self._entries[0].hash)
            return
        content, path = self._content, target.path
        if self._content.format is BlobFormat.RAW or self._is_for_one:
            content = HashAndFormat(self._entries[0].hash)
            [path] = self._paths
        await self._blobs.export(content, path, overwrite=self._overwrite, move=True)

    def _summarize(self, downloaded: Downloaded | None) -> None:
        assert self._entries is not None
        sizes = tuple(entry.size for entry in self._entries)
        was_cut_off = downloaded is None and not self._is_all_present
        if downloaded is not None and len(sizes) == 1:
            # Known for certain only now.
            sizes = (sizes[0] or downloaded.total_bytes,)
        self._summary = Summary(
            tuple(self._paths),
            tuple(entry.name for entry in self._entries),
            sizes,
            downloaded.total_bytes if downloaded is not None else sum(sizes),
            downloaded.payload_bytes
            if downloaded is not None
            else self._printer.written_bytes
            if was_cut_off
            else 0,
            downloaded.elapsed_s if downloaded is not None else 0.0,
            self._path if was_cut_off or (downloaded and downloaded.remote_id) else None,
            was_cut_off,
        )

    async def _check_format(self, downloaded: Downloaded) -> None:
        """Notice that a ticket calls a list of hashes a file: a single letter of it decides that.

        Such a list starts with the hash of another blob that the sender has. No file does.

        Raises:
            InvalidTicket: the content is a list.
        """
        size = downloaded.total_bytes
        if not _may_be_list(size):
            return
        first = Hash(await self._blobs.store.read(self._content.hash, 0, HASH_BYTES))
        request = GetRequest.blob(first, ChunkRanges.between(0, 1))
        try:
            await self._blobs.get(self._ticket.addr, request)
        except LocalError:
            raise
        except DialkeyError:
            return
        self.is_junk = True
        raise InvalidTicket(
            "this ticket names a list of files as if it were a single file: it was mistyped",
            hint=MISTYPED_HINT,
        )


def _may_be_list(size: int) -> bool:
    return size % HASH_BYTES == 0 and 0 < size <= MAX_HASH_SEQ_BYTES


def _existing(paths: Sequence[Path]) -> set[int]:
    return {number for number, path in enumerate(paths) if os.path.lexists(path)}
