"""What ``dialkey send`` does; ``dialkey receive`` is in `dialkey_blobs.fetching`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import attrs

from dialkey import Router
from dialkey.cli import Options, Output, scratch_folder
from dialkey.errors import InvalidInput
from dialkey.identity import EndpointAddr, SecretKey
from dialkey_blobs.blobs import Blobs, Entry
from dialkey_blobs.collecting import Collected, LeftOut, collect
from dialkey_blobs.listing import renamed_fields, show_entries, show_renamed, show_some
from dialkey_blobs.names import ANYWHERE, Renamed, check_own_names, place, show_name
from dialkey_blobs.stdin import read_stdin
from dialkey_blobs.store import ImportMode, TempTag
from dialkey_blobs.taken import Taken
from dialkey_blobs.telling import Telling

__all__ = ["send"]

STDIN_NAME: Final = "stdin"
TEXT_NAME: Final = "text.txt"
READ_BYTES: Final = 1 << 20


@attrs.frozen
class _Offer:
    """What is offered: a collection, its files, and remarks about them."""

    tag: TempTag
    entries: list[Entry]
    left_out: tuple[LeftOut, ...]
    renamed: tuple[Renamed, ...]


async def send(
    output: Output,
    options: Options,
    paths: Sequence[str],
    *,
    once: bool,
    text: str | None = None,
    name: str | None = None,
    telling: Telling | None = None,
) -> None:
    """Offer files until cancelled, or with `once` until somebody has fetched them.

    Args:
        output: where to report.
        options: the endpoint.
        paths: files and folders; "-" is what comes on standard input.
        once: end after the first complete transfer.
        text: offer this text instead of files.
        name: what standard input or the text is called.
        telling: how the ticket is told, beside printing it.

    Raises:
        FileNotFoundError: a path does not exist.
        DialkeyError: the endpoint cannot be opened, or a file cannot be read.
    """
    _check(paths, text, name)
    telling = telling or Telling(None)
    telling.check(output)
    if options.secret_key is not None:
        # Reading may take long; report a key that cannot be used before that.
        SecretKey.load(options.secret_key)
    with scratch_folder("send") as scratch:
        async with Blobs.persistent(scratch) as blobs:
            # A request that arrives before everything is read would be told "not found".
            offer = await _read(output, blobs, paths, text, name)
            async with (
                options.open_endpoint() as endpoint,
                Router(endpoint) as router,
            ):
                with offer.tag:
                    router.add(blobs)
                    router.add_installed("ping")
                    await options.until_online(endpoint, output)
                    ticket = _announce(output, blobs, offer, await options.own_addr(endpoint))
                    telling.show(output, options, ticket)
                    taken = Taken(output, endpoint, [entry.size for entry in offer.entries])
                    async with asyncio.TaskGroup() as tasks:
                        following = tasks.create_task(taken.follow(blobs.provider_events()))
                        serving = tasks.create_task(router.serve())
                        preparing = tasks.create_task(blobs.store.make_outboards())
                        showing = tasks.create_task(taken.show())
                        offering = tasks.create_task(
                            telling.offer_code(output, options, endpoint, ticket)
                        )
                        if once:
                            await taken.once()
                            for task in (serving, following, preparing, showing, offering):
                                task.cancel()


def _check(paths: Sequence[str], text: str | None, name: str | None) -> None:
    if text is not None and paths:
        raise InvalidInput("give either files or --text")
    if text is None and not paths:
        raise InvalidInput("nothing to send", hint="name files or folders, or - for standard input")
    if paths.count("-") > 1:
        raise InvalidInput("standard input can be sent only once")
    if name is not None:
        if text is None and "-" not in paths:
            raise InvalidInput(
                "--name is for what has no name: standard input and --text",
                hint="files are sent under the names they have",
            )
        check_own_names([name])
    for path in paths:
        if path != "-" and not Path(path).exists():
            raise FileNotFoundError(2, "no such file", path)


async def _read(
    output: Output, blobs: Blobs, paths: Sequence[str], text: str | None, name: str | None
) -> _Offer:
    files = [path for path in paths if path != "-"]
    collected = await asyncio.to_thread(collect, files) if files else Collected((), ())
    entries: list[Entry] = []
    with ExitStack() as stack:
        if text is not None:
            data = text.encode("utf-8", "surrogateescape")
            tag = stack.enter_context(await blobs.add_bytes(data))
            entries.append(Entry(name or TEXT_NAME, tag.hash, len(data)))
        elif "-" in paths:
            tag = stack.enter_context(await _add_stdin(output, blobs))
            status = await blobs.store.status(tag.hash)
            entries.append(Entry(name or STDIN_NAME, tag.hash, status.size or 0))
        sizes = [path.stat().st_size for _, path in collected.files]
        batch = stack.enter_context(blobs.store.batch())
        with output.progress("reading", sum(sizes)) as progress:
            # Their hashes are all that the ticket takes; see `ImportMode.DEFERRED`.
            tags = await blobs.store.add_paths(
                [path for _, path in collected.files],
                ImportMode.DEFERRED,
                progress=progress.update,
            )
        entries += [
            Entry(file, batch.add(tag).hash, size)
            for (file, _), tag, size in zip(collected.files, tags, sizes, strict=True)
        ]
        entries.sort(key=lambda entry: entry.name.encode())
        collection = await blobs.add_collection([(entry.name, entry.hash) for entry in entries])
    renamed = place([entry.name for entry in entries], ANYWHERE).renamed
    return _Offer(collection, entries, collected.left_out, renamed)


async def _add_stdin(output: Output, blobs: Blobs) -> TempTag:
    async def pieces() -> AsyncIterator[bytes]:
        done_bytes = 0
        while piece := await read_stdin(READ_BYTES):
            yield piece
            done_bytes += len(piece)
            progress.update(done_bytes)

    with output.progress("reading standard input") as progress:
        return await blobs.store.add_stream(pieces())


def _announce(output: Output, blobs: Blobs, offer: _Offer, addr: EndpointAddr) -> str:
    ticket = str(blobs.ticket(offer.tag, addr))
    show_entries(output, "Offering", offer.entries)
    show_some(
        output,
        [f"left out ({each.kind}): {show_name(str(each.path))}" for each in offer.left_out],
    )
    show_renamed(output, "may be received as", offer.renamed)
    output.remark("Ctrl-C ends it. This is the ticket:")
    output.result(
        "ready",
        ticket,
        ticket=ticket,
        endpoint_id=str(blobs.endpoint.id),
        hash=str(offer.tag.hash),
        files=[{"name": entry.name, "size": entry.size} for entry in offer.entries],
        total_bytes=sum(entry.size for entry in offer.entries),
        left_out=[{"path": str(each.path), "kind": each.kind} for each in offer.left_out],
        not_portable=renamed_fields(offer.renamed),
    )
    return ticket
