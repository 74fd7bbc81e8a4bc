"""From a stream into a store: read, verify, write, each beside the others.

While one batch is verified in a thread, the next is read from the network; what was verified is
written to the store before it is counted. Memory: two batches and the stream's window.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Final

import attrs

from dialkey import RecvStream
from dialkey.errors import DialkeyError, RemoteError
from dialkey_blobs.events import BlobEvent, BlobFinished, BlobStarted, VerifiedLeaf, VerifiedParent
from dialkey_blobs.hash import EMPTY_HASH, Hash
from dialkey_blobs.hashing import BATCH_BYTES
from dialkey_blobs.protocol import GetManyRequest, GetRequest, PushRequest
from dialkey_blobs.responder import load_hash_seq
from dialkey_blobs.response import ResponseDecoder
from dialkey_blobs.store.core import StoreCore

if TYPE_CHECKING:
    from dialkey_blobs.store import Store

__all__ = ["Received", "receive"]

READ_BYTES: Final = 1 << 20
FLUSH_AFTER_S: Final = 0.5
"""On a slow link a batch takes long to fill: what came is verified and stored after so long, so that
little is lost with this process."""


@attrs.frozen
class Received:
    """Progress of a response.

    Attributes:
        payload_bytes: content received, verified and stored so far.
        overhead_bytes: headers and pairs received so far.
        finished: blobs of which all that was asked for is stored since the last progress.
    """

    payload_bytes: int
    overhead_bytes: int
    finished: tuple[BlobFinished, ...] = ()


@attrs.define
class _Items:
    """Verified items of one blob, on their way to the store."""

    hash: Hash
    size: int
    parents: list[VerifiedParent] = attrs.field(factory=list)
    leaves: list[VerifiedLeaf] = attrs.field(factory=list)
    waiting: list[VerifiedParent] = attrs.field(factory=list)

    def add(self, event: VerifiedParent | VerifiedLeaf) -> None:
        """Take an item in; a pair counts once a leaf below it has come."""
        if isinstance(event, VerifiedLeaf):
            self.parents += self.waiting
            self.waiting.clear()
            self.leaves.append(event)
        else:
            self.waiting.append(event)

    def take(self) -> _Items:
        """Return what can be stored, and keep the pairs that still wait."""
        taken = _Items(self.hash, self.size, self.parents, self.leaves)
        self.parents, self.leaves = [], []
        return taken


class _Sorter:
    """Sorts verified events by blob."""

    def __init__(self) -> None:
        self._current: _Items | None = None
        self.payload_bytes = 0

    def sort(self, events: Iterable[BlobEvent]) -> tuple[list[_Items], list[BlobFinished]]:
        """Return what is to be stored, and the blobs that are finished with it."""
        ready: list[_Items] = []
        finished: list[BlobFinished] = []
        for event in events:
            if isinstance(event, BlobStarted):
                self._current = _Items(event.hash, event.size)
            elif isinstance(event, BlobFinished):
                finished.append(event)
                assert self._current is not None
                ready.append(self._current.take())
                self._current = None
            else:
                assert self._current is not None
                self._current.add(event)
                if isinstance(event, VerifiedLeaf):
                    self.payload_bytes += len(event.data)
        if self._current is not None and self._current.leaves:
            ready.append(self._current.take())
        return [items for items in ready if items.leaves and items.hash != EMPTY_HASH], finished


async def receive(
    store: Store,
    request: GetRequest | GetManyRequest | PushRequest,
    recv: RecvStream,
    first: bytes = b"",
    *,
    max_size: int | None = None,
    max_root_size: int | None = None,
) -> AsyncIterator[Received]:
    """Receive a response into a store; yield progress.

    Ends when everything that was asked for is stored. What was verified before an error is stored
    too, before the error is raised.

    Args:
        store: where to.
        request: what was asked for.
        recv: the stream.
        first: bytes of the response that were read already.
        max_size, max_root_size: as in `ResponseDecoder`.

    Raises:
        VerificationError: the provider lied; the error names what does not match.
        BlobNotFound, ItemNotFound, BlobTruncated: the response ended early.
        StreamReset, ConnectionClosedByPeer, ConnectionLost: it was ended by force.
        StorageError: the store failed.
    """
    loop = asyncio.get_running_loop()
    decoder = ResponseDecoder(request, max_size=max_size, max_root_size=max_root_size)
    sorter = _Sorter()
    flushed_at = loop.time()

    async def store_events(events: Iterable[BlobEvent]) -> tuple[BlobFinished, ...]:
        ready, finished = sorter.sort(events)
        if ready:
            await store.run(_writing(ready))
        return tuple(finished)

    async def verify(work: Callable[[], list[BlobEvent]]) -> tuple[BlobFinished, ...]:
        try:
            events = await asyncio.to_thread(work)
        except RemoteError as error:
            await store_events(getattr(error, "verified", ()))
            raise
        return await store_events(events)

    def progress(finished: tuple[BlobFinished, ...]) -> Received:
        return Received(sorter.payload_bytes, decoder.overhead_bytes, finished)

    upcoming = asyncio.ensure_future(_gather(recv, first))
    try:
        while not decoder.done:
            if decoder.children_needed is not None:
                # The sequence may still wait for verification.
                await verify(decoder.flush)
                root = decoder.children_needed
                children = await store.run(lambda core, root=root: load_hash_seq(core, root))
                yield progress(await verify(lambda c=children: decoder.provide(c)))
                continue
            try:
                data = await upcoming
            except DialkeyError:
                await verify(decoder.flush)
                raise
            if not data:
                await verify(lambda: decoder.finish() or [])
                break
            upcoming = asyncio.ensure_future(_gather(recv))
            finished = await verify(lambda d=data: decoder.feed(d))
            if loop.time() - flushed_at > FLUSH_AFTER_S and not decoder.done:
                finished += await verify(decoder.flush)
                flushed_at = loop.time()
            yield progress(finished)
    finally:
        if not upcoming.done():
            upcoming.cancel()
            await asyncio.wait([upcoming])
        elif not upcoming.cancelled():
            upcoming.exception()


async def _gather(recv: RecvStream, first: bytes = b"") -> bytes:
    """Read what is there, at least something and at most a batch; empty at the end."""
    if first:
        return first
    parts = [await recv.read(READ_BYTES)]
    size = len(parts[0])
    while size < BATCH_BYTES and recv.buffered_bytes:
        parts.append(await recv.read(READ_BYTES))
        size += len(parts[-1])
    return b"".join(parts) if len(parts) > 1 else parts[0]


def _writing(ready: list[_Items]) -> Callable[[StoreCore], None]:
    def write(core: StoreCore) -> None:
        for items in ready:
            core.write_items(items.hash, items.size, items.parents, items.leaves)

    return write
