"""What ``dialkey send`` and ``dialkey receive`` do."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import attrs

from dialkey import Connection, Endpoint, PathInfo, Router
from dialkey.cli import Options, Output, Progress, format_bytes, format_rate, scratch_folder
from dialkey.identity import EndpointId
from dialkey.printable import printable
from dialkey_blobs.blobs import Blobs, Entry
from dialkey_blobs.collecting import collect_files
from dialkey_blobs.download import Connected, Downloaded, ProviderFailed
from dialkey_blobs.download import Progress as DownloadProgress
from dialkey_blobs.files import place_below
from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat
from dialkey_blobs.protocol import GetManyRequest, GetRequest, Request
from dialkey_blobs.provider import ProviderEvents, RequestEnded, RequestStarted
from dialkey_blobs.safe_paths import TargetExists, safe_join
from dialkey_blobs.store import ImportMode, TempTag
from dialkey_blobs.store.errors import BlobIncomplete, BlobMissing
from dialkey_blobs.ticket import BlobTicket

__all__ = ["Summary", "fetch", "receive", "send"]

LISTED_NAMES: Final = 20
"""Names shown of a collection; a screen has some more lines than that."""

MAX_CANDIDATES: Final = 64
"""Getters that may be leaving with everything at one time; one is enough to end by."""

SHOW_INTERVAL_S: Final = 0.25
"""As often as a program is told; a person sees no more."""

CLOSING_GRACE_S: Final = 5.0
"""A getter that has everything leaves at once; one that stays longer keeps its connection open."""


# --- send -----------------------------------------------------------------------------------------


async def send(output: Output, options: Options, paths: Sequence[Path], *, once: bool) -> None:
    """Offer files until cancelled, or with `once` until they were taken one time.

    Raises:
        FileNotFoundError: a path does not exist.
        DialkeyError: the endpoint cannot be opened, or a file cannot be read.
    """
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(2, "no such file", str(path))
    with scratch_folder("send") as scratch:
        async with (
            Blobs.persistent(scratch) as blobs,
            await options.open_endpoint() as endpoint,
            Router(endpoint) as router,
        ):
            router.add(blobs)
            router.add_installed("ping")
            collection, entries = await _add(output, blobs, paths)
            with collection:
                await options.until_online(endpoint, output)
                _announce(output, blobs, collection, entries)
                taken = _Taken(output, endpoint)
                async with asyncio.TaskGroup() as tasks:
                    following = tasks.create_task(taken.follow(blobs.provider_events()))
                    serving = tasks.create_task(router.serve())
                    preparing = tasks.create_task(blobs.store.make_outboards())
                    showing = tasks.create_task(taken.show())
                    if once:
                        await taken.once()
                        for task in (serving, following, preparing, showing):
                            task.cancel()


async def _add(output: Output, blobs: Blobs, paths: Sequence[Path]) -> tuple[TempTag, list[Entry]]:
    found = await asyncio.to_thread(collect_files, paths)
    sizes = [path.stat().st_size for _, path in found]
    with blobs.store.batch() as batch:
        with output.progress("reading", sum(sizes)) as progress:
            # Their hashes are all that the ticket takes; see `ImportMode.DEFERRED`.
            tags = await blobs.store.add_paths(
                [path for _, path in found], ImportMode.DEFERRED, progress=progress.update
            )
        entries = [
            Entry(name, batch.add(tag).hash, size)
            for (name, _), tag, size in zip(found, tags, sizes, strict=True)
        ]
        return await blobs.add_collection([(e.name, e.hash) for e in entries]), entries


def _announce(output: Output, blobs: Blobs, tag: TempTag, entries: list[Entry]) -> None:
    ticket = str(blobs.ticket(tag))
    _list(output, "Offering", entries)
    output.remark("Ctrl-C ends it. On the other machine: dialkey receive with this ticket:")
    output.result(
        "ready",
        ticket,
        ticket=ticket,
        endpoint_id=str(blobs.endpoint.id),
        hash=str(tag.hash),
        files=[{"name": entry.name, "size": entry.size} for entry in entries],
        total_bytes=sum(entry.size for entry in entries),
    )


class _Taken:
    """Follows what getters ask for, and notices when one has taken everything.

    A getter asks in several requests, of which the first ones are for names and sizes. One that was
    interrupted comes back, perhaps with another key, for the rest only; so bytes say nothing. What
    does: its last request reached the files, it has acknowledged the answer, and it has left.
    """

    def __init__(self, output: Output, endpoint: Endpoint) -> None:
        self._output = output
        self._endpoint = endpoint
        self._running: set[int] = set()
        self._is_busy = asyncio.Event()
        self._latest: dict[EndpointId, int] = {}
        self._acknowledged: asyncio.Queue[tuple[EndpointId, int]] = asyncio.Queue(MAX_CANDIDATES)

    async def follow(self, events: ProviderEvents) -> None:
        """Report the requests that reach files; runs until cancelled."""
        async for event in events:
            if isinstance(event, RequestStarted) and _reaches_files(event.request):
                # The next request often begins before the end of the last one is acknowledged.
                self._running.add(event.request_id)
                self._is_busy.set()
                self._latest[event.remote_id] = event.request_id
            elif isinstance(event, RequestEnded) and event.request_id in self._running:
                self._running.discard(event.request_id)
                if not self._running:
                    self._is_busy.clear()
                self._report(event)
                if self._latest.get(event.remote_id) != event.request_id:
                    continue
                if event.error is not None or self._acknowledged.full():
                    del self._latest[event.remote_id]
                else:
                    self._acknowledged.put_nowait((event.remote_id, event.request_id))

    async def show(self) -> None:
        """Show how much is going out, and by which way, while anything is; runs until cancelled."""
        while True:
            await self._is_busy.wait()
            sent: dict[Connection, int] = {}
            before = {each: each.stats().sent_bytes for each in self._endpoint.connections}
            with self._output.progress("sending") as progress:
                progress.update(0)
                while self._is_busy.is_set():
                    note = None
                    for each in self._endpoint.connections:
                        sent[each] = each.stats().sent_bytes - before.get(each, 0)
                        ways = [path for path in each.paths() if path.is_selected]
                        note = _path_text(ways[0]) if ways else note
                    progress.update(sum(sent.values()), note=note)
                    await asyncio.sleep(SHOW_INTERVAL_S)

    def _report(self, event: RequestEnded) -> None:
        outcome = "" if event.error is None else f"; it ended early: {event.error}"
        self._output.result(
            "sent",
            None,
            endpoint_id=str(event.remote_id),
            payload_bytes=event.payload_bytes,
            error=event.error,
        )
        self._output.remark(
            f"sent {format_bytes(event.payload_bytes)} to {event.remote_id.short()}{outcome}"
        )

    async def once(self) -> None:
        """Wait for the end of the first complete transfer."""
        while True:
            getter, request_id = await self._acknowledged.get()
            await self._leave(getter)
            if self._latest.get(getter) == request_id:
                return

    async def _leave(self, getter: EndpointId) -> None:
        leaving = [
            asyncio.ensure_future(connection.closed())
            for connection in self._endpoint.connections
            if connection.remote_id == getter
        ]
        if leaving:
            _, staying = await asyncio.wait(leaving, timeout=CLOSING_GRACE_S)
            for waiting in staying:
                waiting.cancel()


def _reaches_files(request: Request) -> bool:
    """Say whether a request goes beyond a collection's list (index 0) and its names (index 1)."""
    if not isinstance(request, GetRequest | GetManyRequest):
        return False
    return any(end is None or end > 2 for _, end, _ in request.ranges.runs())


# --- receive --------------------------------------------------------------------------------------


@attrs.frozen
class Summary:
    """What a command received.

    Attributes:
        paths: the files that were written.
        total_bytes: all content.
        received_bytes: what of it came in this run.
        elapsed_s: how long the download took.
        path: the path in use at the end, such as ``direct 192.0.2.1:4433``; None if all was there.
    """

    paths: tuple[Path, ...]
    total_bytes: int
    received_bytes: int
    elapsed_s: float
    path: str | None

    def __str__(self) -> str:
        if self.path is None:
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
    output: Output, options: Options, ticket: BlobTicket, target: Path, *, overwrite: bool
) -> None:
    """Fetch what a ticket names into a folder, and say what has come.

    Raises:
        TargetExists: a file exists and may not be overwritten; noticed before content is fetched.
        UnsafeName: the sender named a file in a way that could do harm.
        DialkeyError: everything else that can go wrong with peer, network and disk.
    """
    summary = await fetch(output, options.open_endpoint, ticket, target, overwrite=overwrite)
    output.result(
        "received",
        "\n".join(map(str, summary.paths)),
        paths=[str(path) for path in summary.paths],
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
    target: Path,
    *,
    overwrite: bool,
    on_progress: Callable[[Endpoint, int], None] | None = None,
) -> Summary:
    """Fetch what a ticket names into a folder, showing names and progress.

    `on_progress` is told the endpoint and the bytes that are there so far.

    What has come so far is kept in a hidden folder below `target` until everything was exported, so
    that another call goes on from there. Raises what `receive` does.
    """
    async with _keeping(target, ticket) as kept:
        async with (
            Blobs.persistent(kept.folder) as blobs,
            await open_endpoint() as endpoint,
        ):
            blobs.attach(endpoint)
            receiving = _Receiving(output, blobs, ticket.content, target, overwrite=overwrite)
            try:
                with output.progress("receiving") as progress:
                    async for held_bytes in receiving.download(ticket, progress):
                        if on_progress is not None:
                            on_progress(endpoint, held_bytes)
            except asyncio.CancelledError:
                output.remark("Interrupted. Run the same command again to go on from here.")
                raise
            finally:
                kept.is_worth_keeping |= receiving.has_received
            summary = await receiving.export()
        kept.is_done = True
    return summary


class _Kept:
    """The hidden folder of a download, kept while there is something in it to go on from."""

    def __init__(self, target: Path, ticket: BlobTicket) -> None:
        self._target = target
        self.folder = target / f".dialkey-{ticket.hash.hex()[:16]}"
        self._had_target = target.exists()
        self._is_new = not self.folder.exists()
        self.is_worth_keeping = not self._is_new
        self.is_done = False
        self.folder.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        if self.is_done or not self.is_worth_keeping:
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self._had_target and not any(self._target.iterdir()):
                self._target.rmdir()


@asynccontextmanager
async def _keeping(target: Path, ticket: BlobTicket) -> AsyncIterator[_Kept]:
    kept = await asyncio.to_thread(_Kept, target, ticket)
    try:
        yield kept
    finally:
        await asyncio.to_thread(kept.close)


class _Receiving:
    """One run of ``dialkey receive``."""

    def __init__(
        self,
        output: Output,
        blobs: Blobs,
        content: HashAndFormat,
        target: Path,
        *,
        overwrite: bool,
    ) -> None:
        self._output = output
        self._blobs = blobs
        self._content = content
        self._target = target
        self._overwrite = overwrite
        self._is_listed = False
        self._path: str | None = None
        self._downloaded: Downloaded | None = None
        self.has_received = False

    async def download(self, ticket: BlobTicket, progress: Progress) -> AsyncIterator[int]:
        """Fetch the content into the store; show names and sizes as soon as they are known.

        Yields how many bytes are there so far.
        """
        if self._content.format is BlobFormat.RAW:
            await self._look_at([Entry(str(self._content.hash), self._content.hash, 0)])
        dialling = f"connecting to {ticket.addr.id.short()} …"
        progress.waiting(dialling)
        async for event in self._blobs.download(ticket):
            if isinstance(event, Connected):
                self._path = _path_text(event.path)
            elif isinstance(event, DownloadProgress):
                self.has_received |= self._is_listed and event.held_bytes > 0
                if event.path is not None:
                    self._path = _path_text(event.path)
                if not self._is_listed:
                    await self._list_if_known(event.total_bytes)
                progress.update(event.held_bytes, total_bytes=event.total_bytes, note=self._path)
                yield event.held_bytes
            elif isinstance(event, ProviderFailed) and event.retry_in_s is not None:
                self._output.remark(
                    f"{event.error}; going on in {event.retry_in_s:.1f} s where it stopped"
                )
                progress.waiting(dialling)
            elif isinstance(event, Downloaded):
                self._downloaded = event
                if not self._is_listed:
                    await self._look_at(await self._blobs.entries(self._content))

    async def _list_if_known(self, total_bytes: int | None) -> None:
        try:
            entries = await self._blobs.entries(self._content)
        except (BlobMissing, BlobIncomplete):
            return
        if total_bytes is not None or not entries or len(entries) > LISTED_NAMES:
            await self._look_at(entries)

    async def _look_at(self, entries: list[Entry]) -> None:
        """Show the names, and refuse what may not be written, before the content is fetched."""
        names = place_below(self._target, [entry.name for entry in entries]).names
        self._is_listed = True
        if self._content.format is BlobFormat.HASH_SEQ:
            _list(self._output, "Receiving", entries)
        self._output.result(
            "files", None, files=[{"name": entry.name, "size": entry.size} for entry in entries]
        )
        if self._overwrite:
            return
        existing = self._existing(entries, names)
        # What an export that was cut off has left is as good as new.
        there = await self._blobs.store.already_there(existing)
        for _, _, path in existing:
            if path not in there:
                raise TargetExists(path)

    def _existing(
        self, entries: Sequence[Entry], names: Sequence[str]
    ) -> list[tuple[Hash, int | None, Path]]:
        paths = [safe_join(self._target, name) for name in names]
        return [
            # Sizes that are not proven yet are given as zero.
            (entry.hash, entry.size or None, path)
            for entry, path in zip(entries, paths, strict=True)
            if os.path.lexists(path)
        ]

    async def export(self) -> Summary:
        """Write the files under their names."""
        assert self._downloaded is not None
        target = self._target
        if self._content.format is BlobFormat.RAW:
            target /= str(self._content.hash)
        paths = [
            exported.path
            async for exported in self._blobs.export(
                self._content, target, overwrite=self._overwrite, move=True
            )
        ]
        downloaded = self._downloaded
        return Summary(
            tuple(paths),
            downloaded.total_bytes,
            downloaded.payload_bytes,
            downloaded.elapsed_s,
            self._path if downloaded.remote_id is not None else None,
        )


def _path_text(path: PathInfo) -> str:
    return f"{path.kind} {path.remote}"


def _list(output: Output, verb: str, entries: Sequence[Entry]) -> None:
    total = format_bytes(sum(entry.size for entry in entries))
    files = "1 file" if len(entries) == 1 else f"{len(entries)} files"
    output.remark(f"{verb} {files}, {total}:")
    for entry in entries[:LISTED_NAMES]:
        # Names are strangers' text; what could move the cursor or turn the line is escaped.
        output.remark(f"  {format_bytes(entry.size):>9}  {printable(entry.name)}")
    if len(entries) > LISTED_NAMES:
        output.remark(f"  … and {len(entries) - LISTED_NAMES} more")
