"""From a stream into a store: read, verify, write, each beside the others.

While one batch is verified in a thread, the one before it is written to the store and the next is read
from the network. What was verified is written before it is counted. Memory: three batches and the
stream's window.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from dialkey import RecvStream
from dialkey.errors import ConnectionLost, DialkeyError, RemoteError
from dialkey_blobs.events import (
    BlobEvent,
    BlobFinished,
    BlobStarted,
    VerifiedContent,
    VerifiedParent,
)
from dialkey_blobs.hash import Hash
from dialkey_blobs.hashing import BATCH_BYTES
from dialkey_blobs.protocol import GetManyRequest, GetRequest, PushRequest
from dialkey_blobs.responder import load_hash_seq
from dialkey_blobs.response import ResponseDecoder
from dialkey_blobs.store.core import StoreCore

if TYPE_CHECKING:
    from dialkey_blobs.store import Store

__all__ = ["STALL_TIMEOUT_S", "Received", "receive"]

logger = logging.getLogger("dialkey.blobs.receiving")

READ_BYTES: Final = 1 << 20
READ_AHEAD_BYTES: Final = BATCH_BYTES
"""How much is read while a batch is verified and stored."""
PIECE_BYTES: Final = 1 << 20
PIECE_WAIT_S: Final = 0.03
"""Switching to a thread and back for each packet would cost more than the work there. So a piece waits
until it has this many bytes or is this old, unless the stream has ended."""
FLUSH_AFTER_S: Final = 0.5
"""On a slow link a batch takes long to fill. What has arrived is verified and stored after this long, so
that little is lost if this process dies."""
STALL_TIMEOUT_S: Final = 30.0
"""A sender that sends nothing for this long is given up, even if the connection itself is alive."""
TRICKLE_BYTES: Final = 1024
"""A sender that sends less than this in twice `STALL_TIMEOUT_S` is given up as well: a byte now and then
would otherwise hold the getter for ever. 17 bytes a second is slower than any network in use."""
END_TIMEOUT_S: Final = 1.0
"""How long to wait for the end of a stream that has nothing more to bring."""


@attrs.frozen
class Received:
    """Progress of a response.

    Attributes:
        payload_bytes: content received, verified and stored so far.
        overhead_bytes: headers and pairs received so far.
        claimed_size: what the sender claims to be the size of the blob that began last, in bytes.
        finished: blobs of which all that was asked for is stored since the last progress.
    """

    payload_bytes: int
    overhead_bytes: int
    claimed_size: int | None
    finished: tuple[BlobFinished, ...] = ()


@attrs.define
class _Items:
    """Verified items of one blob, on their way to the store."""

    hash: Hash
    size: int
    parents: list[VerifiedParent] = attrs.field(factory=list)
    leaves: list[VerifiedContent] = attrs.field(factory=list)
    waiting: list[VerifiedParent] = attrs.field(factory=list)

    def add(self, event: VerifiedParent | VerifiedContent) -> None:
        """Add an item; a pair counts once content below it has arrived."""
        if isinstance(event, VerifiedParent):
            self.waiting.append(event)
        else:
            self.parents += self.waiting
            self.waiting.clear()
            self.leaves.append(event)

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
        self.claimed_size: int | None = None

    def sort(self, events: Iterable[BlobEvent]) -> tuple[list[_Items], list[BlobFinished]]:
        """Return what is to be stored, and the blobs that are finished with it."""
        ready: list[_Items] = []
        finished: list[BlobFinished] = []
        for event in events:
            if isinstance(event, BlobStarted):
                self._current = _Items(event.hash, event.size)
                self.claimed_size = event.size
            elif isinstance(event, BlobFinished):
                finished.append(event)
                assert self._current is not None
                ready.append(self._current.take())
                self._current = None
            else:
                assert self._current is not None
                self._current.add(event)
                if not isinstance(event, VerifiedParent):
                    self.payload_bytes += len(event.data)
        if self._current is not None and self._current.leaves:
            ready.append(self._current.take())
        return [items for items in ready if items.leaves], finished


class _Inbox:
    """Reads a stream ahead of its consumer."""

    def __init__(self, recv: RecvStream, first: bytes, stall_timeout_s: float) -> None:
        self._recv = recv
        self._stall_timeout_s = stall_timeout_s
        self._parts = [first] if first else []
        self._size = len(first)
        self._error: DialkeyError | None = None
        self._has_ended = False
        self._some = asyncio.Event()
        self._enough = asyncio.Event()
        self._room = asyncio.Event()
        if first:
            self._some.set()
        self._task = asyncio.create_task(self._read(), name="dialkey-blobs-inbox")

    async def _read(self) -> None:
        try:
            now = asyncio.get_running_loop().time
            trickled, until = 0, now() + 2 * self._stall_timeout_s
            while True:
                async with asyncio.timeout(min(self._stall_timeout_s, until - now())):
                    data = await self._recv.read(READ_BYTES)
                if not data:
                    break
                trickled += len(data)
                if trickled >= TRICKLE_BYTES:
                    trickled, until = 0, now() + 2 * self._stall_timeout_s
                self._parts.append(data)
                self._size += len(data)
                self._some.set()
                if self._size >= PIECE_BYTES:
                    self._enough.set()
                while self._size >= READ_AHEAD_BYTES:
                    self._room.clear()
                    await self._room.wait()
                    until = now() + 2 * self._stall_timeout_s
        except TimeoutError:
            sent = f"only {trickled} bytes" if now() >= until and trickled else "nothing"
            waited_s = self._stall_timeout_s * (2 if trickled and now() >= until else 1)
            self._error = ConnectionLost(
                f"the sender sent {sent} for {waited_s:g} s",
                hint="what arrived is stored; try again to continue",
            )
        except DialkeyError as error:
            self._error = error
        finally:
            self._has_ended = True
            self._some.set()
            self._enough.set()

    async def take(self) -> list[bytes] | None:
        """Return what arrived; None at the end of the stream, empty if nothing arrived for a while.

        Raises:
            DialkeyError: what ended the stream abruptly, after everything before it was returned.
        """
        await _wait_at_most(self._some, FLUSH_AFTER_S)
        if self._parts:
            await _wait_at_most(self._enough, PIECE_WAIT_S)
            parts, self._parts = self._parts, []
            self._size = 0
            if not self._has_ended:
                self._some.clear()
                self._enough.clear()
            self._room.set()
            return parts
        if not self._has_ended:
            return []
        if self._error is not None:
            raise self._error
        return None

    async def close(self) -> None:
        """Stop reading."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def drain(self) -> None:
        """Wait a moment for the end of the stream, so that the sender learns that we have everything."""
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                while (data := await self.take()) is not None:
                    if data:
                        size = sum(len(part) for part in data)
                        logger.info("%d bytes follow the end of a response", size)
        except (TimeoutError, DialkeyError):
            pass  # everything is here in any case


async def _wait_at_most(event: asyncio.Event, seconds: float) -> None:
    if not event.is_set():
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass


class _Receiver:
    """Passes one response through decoder and store."""

    def __init__(self, store: Store, decoder: ResponseDecoder) -> None:
        self._store = store
        self._sorter = _Sorter()
        self._failure: RemoteError | None = None
        self._writing: asyncio.Task[None] | None = None
        self._unstored: Received | None = None  # true when `_writing` is done
        self.decoder = decoder

    async def verify(self, work: Callable[[], list[BlobEvent] | None]) -> Received | None:
        """Let the decoder work in a thread, and begin to store what it has verified.

        What the decoder raises is raised by `check`, so that what came before it is reported first.

        Returns:
            How far the store is, if it is further than it was.

        Raises:
            StorageError: the store failed.
        """
        events: Iterable[BlobEvent] | None
        try:
            events = await asyncio.to_thread(work)
        except RemoteError as error:
            self._failure = error
            events = getattr(error, "verified", None)
        ready, finished = self._sorter.sort(events or ())
        stored = await self.settle()
        if ready:
            self._writing = asyncio.create_task(
                self._store.run(_writing(ready)), name="dialkey-blobs-writing"
            )
        self._unstored = Received(
            self._sorter.payload_bytes,
            self.decoder.overhead_bytes,
            self._sorter.claimed_size,
            tuple(finished),
        )
        if self._failure is None and not self.decoder.done:
            return stored
        return _joined(stored, await self.settle())

    async def store(self, work: Callable[[], list[BlobEvent] | None]) -> Received | None:
        """Do as `verify`, and wait until everything is stored.

        Raises:
            StorageError: the store failed.
        """
        return _joined(await self.verify(work), await self.settle())

    async def settle(self) -> Received | None:
        """Wait until everything that was verified is stored.

        Returns:
            How far the store is, if it is further than it was.

        Raises:
            StorageError: the store failed.
        """
        if self._writing is not None:
            await asyncio.wait([self._writing])
            writing, self._writing = self._writing, None
            writing.result()
        stored, self._unstored = self._unstored, None
        return stored

    def check(self) -> None:
        """Raise what the decoder raised, if it did."""
        if self._failure is not None:
            raise self._failure

    async def provide_children(self, root: Hash) -> Received | None:
        """Give the decoder the hash sequence that it needs."""
        children = await self._store.run(lambda core: load_hash_seq(core, root))
        return await self.store(lambda: self.decoder.provide(children))

    async def close(self) -> None:
        """Let what is being stored be stored."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
            if not self._writing.cancelled():
                self._writing.exception()  # whoever closes does not want to know any more


async def receive(
    store: Store,
    request: GetRequest | GetManyRequest | PushRequest,
    recv: RecvStream,
    first: bytes = b"",
    *,
    max_size: int | None = None,
    max_root_size: int | None = None,
    stall_timeout_s: float = STALL_TIMEOUT_S,
) -> AsyncGenerator[Received, None]:
    """Receive a response into a store; yield progress.

    Ends when everything that was asked for is stored. What was verified before an error is stored
    too, before the error is raised. Close the iterator (`contextlib.aclosing`) if you leave it early.

    Args:
        store: where to.
        request: what was asked for.
        recv: the stream.
        first: bytes of the response that were read already.
        max_size, max_root_size: as in `ResponseDecoder`.
        stall_timeout_s: how long the sender may be silent.

    Raises:
        VerificationError: the provider lied; the error names what does not match.
        BlobNotFound, ItemNotFound, BlobTruncated: the response ended early.
        StreamReset, ConnectionClosedByPeer, ConnectionLost: it was ended by force.
        StorageError: the store failed.
    """
    loop = asyncio.get_running_loop()
    decoder = ResponseDecoder(
        request, max_size=max_size, max_root_size=max_root_size, subtrees=True
    )
    receiver = _Receiver(store, decoder)
    inbox = _Inbox(recv, first, stall_timeout_s)
    flushed_at = loop.time()
    try:
        while not decoder.done:
            receiver.check()
            if decoder.children_needed is not None:
                # The sequence may still wait for verification.
                if (stored := await receiver.store(decoder.flush)) is not None:
                    yield stored
                receiver.check()
                stored = await receiver.provide_children(decoder.children_needed)
            else:
                try:
                    data = await inbox.take()
                except DialkeyError:
                    if (stored := await receiver.store(decoder.flush)) is not None:
                        yield stored
                    receiver.check()
                    raise
                if data is None:
                    stored = await receiver.store(decoder.finish)
                elif data:
                    stored = await receiver.verify(partial(decoder.feed_parts, data))
                else:
                    stored = await receiver.settle()
            if stored is not None:
                yield stored
            receiver.check()
            if loop.time() - flushed_at > FLUSH_AFTER_S and not decoder.done:
                if (stored := await receiver.store(decoder.flush)) is not None:
                    yield stored
                flushed_at = loop.time()
        await inbox.drain()
    finally:
        await inbox.close()
        await receiver.close()


def _joined(earlier: Received | None, later: Received | None) -> Received | None:
    if earlier is None or later is None:
        return later or earlier
    return attrs.evolve(later, finished=earlier.finished + later.finished)


def _writing(ready: list[_Items]) -> Callable[[StoreCore], None]:
    def write(core: StoreCore) -> None:
        for items in ready:
            core.write_items(items.hash, items.size, items.parents, items.leaves)

    return write
