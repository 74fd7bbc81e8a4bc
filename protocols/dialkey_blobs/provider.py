"""Serving blobs: the handler of the protocol.

Source: blobs wire reference 1.1 to 1.6, 8.1, 11. Where the original is lax we are not: requests have a
deadline, streams per connection are counted, and pushes are refused unless they are allowed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

import attrs

from dialkey import Connection, RecvStream, Refusal, SendStream
from dialkey.errors import (
    ConnectionClosed,
    ConnectionClosedByPeer,
    ConnectionLost,
    DialkeyError,
    RemoteError,
    StreamReset,
    StreamStopped,
    WireError,
)
from dialkey.identity import EndpointId
from dialkey.limits import (
    MAX_BLOB_REQUESTS,
    MAX_BLOB_REQUESTS_PER_CONNECTION,
)
from dialkey_blobs.encoder import SubgroupCache
from dialkey_blobs.hash import Hash
from dialkey_blobs.protocol import (
    GetManyRequest,
    GetRequest,
    ObserveRequest,
    PushRequest,
    Request,
    RequestReader,
    StreamCode,
)
from dialkey_blobs.receiving import receive
from dialkey_blobs.responder import CannotServe, Responder

if TYPE_CHECKING:
    from dialkey_blobs.store import Store

__all__ = [
    "Authorize",
    "BlobServed",
    "ProviderEvent",
    "ProviderEvents",
    "ProviderEventsLagged",
    "RequestEnded",
    "RequestStarted",
]

logger = logging.getLogger("dialkey.blobs.provider")

REQUEST_TIMEOUT_S: Final = 30.0
"""From the opening of a stream to the end of its request; requests are small."""
STALL_TIMEOUT_S: Final = 120.0
"""A getter that takes nothing for so long is let go; it can resume."""
MAX_PENDING_EVENTS: Final = 1024

T = TypeVar("T")

_GONE: Final = (ConnectionClosed, ConnectionClosedByPeer, ConnectionLost)

Authorize = Callable[[EndpointId, Request], Refusal | None | Awaitable[Refusal | None]]
"""Asked for each request, with the endpoint that makes it; a `Refusal` turns it away."""


# --- what is told --------------------------------------------------------------------------------


@attrs.frozen
class RequestStarted:
    """An endpoint asks for something.

    Attributes:
        request_id: counts up over the life of the provider.
        remote_id: who asks.
        request: for what.
    """

    request_id: int
    remote_id: EndpointId
    request: Request


@attrs.frozen
class BlobServed:
    """A blob of a response is being sent.

    Attributes:
        request_id: as in `RequestStarted`.
        index: the blob's place in the request.
        hash: which blob.
        size: its bytes, of which perhaps only a part was asked for.
    """

    request_id: int
    index: int
    hash: Hash
    size: int


@attrs.frozen
class RequestEnded:
    """A request is over.

    Attributes:
        request_id: as in `RequestStarted`.
        remote_id: who asked.
        payload_bytes: content sent (for a push: received).
        overhead_bytes: headers and pairs.
        error: None when the getter has acknowledged everything, else what ended it.
    """

    request_id: int
    remote_id: EndpointId
    payload_bytes: int
    overhead_bytes: int
    error: str | None


@attrs.frozen
class ProviderEventsLagged:
    """The reader was too slow; so many events were dropped before the next one."""

    count: int


ProviderEvent = RequestStarted | BlobServed | RequestEnded | ProviderEventsLagged


class ProviderEvents:
    """One reader of what a provider does: ``async for event in events``."""

    def __init__(self, detach: Callable[[ProviderEvents], None]) -> None:
        self._detach = detach
        self._queue: deque[ProviderEvent] = deque()
        self._dropped = 0
        self._news = asyncio.Event()
        self._closed = False

    def put(self, event: ProviderEvent) -> None:
        """Queue an event; drop the oldest if the reader is too far behind."""
        if len(self._queue) >= MAX_PENDING_EVENTS:
            self._queue.popleft()
            self._dropped += 1
        self._queue.append(event)
        self._news.set()

    def close(self) -> None:
        """Stop listening; the iteration ends. Idempotent."""
        self._closed = True
        self._detach(self)
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[ProviderEvent]:
        while not self._closed:
            if self._dropped:
                count, self._dropped = self._dropped, 0
                yield ProviderEventsLagged(count)
            elif self._queue:
                yield self._queue.popleft()
            else:
                self._news.clear()
                await self._news.wait()


# --- the handler --------------------------------------------------------------------------------


class Provider:
    """Answers requests of other endpoints from a store.

    Args:
        store: what is offered: everything in it, to whoever knows a hash, unless `authorize` says no.
        authorize: asked for each request.
        allow_push: let others add blobs to the store.
    """

    def __init__(
        self, store: Store, *, authorize: Authorize | None = None, allow_push: bool = False
    ) -> None:
        self._store = store
        self._authorize = authorize
        self._allow_push = allow_push
        self.cache = SubgroupCache()
        self._total = asyncio.Semaphore(MAX_BLOB_REQUESTS)
        self._readers: list[ProviderEvents] = []
        self._next_id = 0

    def events(self) -> ProviderEvents:
        """Begin to listen to what others ask for."""
        reader = ProviderEvents(self._detach)
        self._readers.append(reader)
        return reader

    def _detach(self, reader: ProviderEvents) -> None:
        if reader in self._readers:
            self._readers.remove(reader)

    def _tell(self, event: ProviderEvent) -> None:
        for reader in self._readers:
            reader.put(event)

    async def accept(self, connection: Connection) -> None:
        """Serve one connection until it ends."""
        slots = asyncio.Semaphore(MAX_BLOB_REQUESTS_PER_CONNECTION)
        async with asyncio.TaskGroup() as tasks:
            while True:
                await slots.acquire()
                try:
                    send, recv = await connection.accept_bi()
                except _GONE:
                    return
                task = tasks.create_task(self._serve(connection, send, recv))
                task.add_done_callback(lambda _: slots.release())

    async def _serve(self, connection: Connection, send: SendStream, recv: RecvStream) -> None:
        try:
            async with self._total:
                try:
                    async with asyncio.timeout(REQUEST_TIMEOUT_S):
                        request, rest = await _read_request(recv)
                except TimeoutError:
                    raise WireError("no request came in time") from None
                await self._answer(connection, request, rest, send, recv)
        except WireError as error:
            logger.info("bad request of %s: %s", connection.remote_id.short(), error)
            _end(send, recv, StreamCode.INTERNAL)
        except (*_GONE, StreamReset, StreamStopped) as error:
            logger.debug("request of %s ended: %s", connection.remote_id.short(), error)
        except asyncio.CancelledError:
            _end(send, recv, StreamCode.INTERNAL)
            raise
        except Exception:
            # One request that fails must not end the others of its connection.
            logger.exception("a request of %s failed", connection.remote_id.short())
            _end(send, recv, StreamCode.INTERNAL)

    async def _answer(
        self,
        connection: Connection,
        request: Request,
        rest: bytes,
        send: SendStream,
        recv: RecvStream,
    ) -> None:
        if await self._refuses(connection.remote_id, request):
            logger.info("request of %s refused", connection.remote_id.short())
            _end(send, recv, StreamCode.PERMISSION)
            return
        self._next_id += 1
        request_id = self._next_id
        self._tell(RequestStarted(request_id, connection.remote_id, request))
        counted = _Counted()
        error: str | None = "cancelled"
        try:
            if isinstance(request, PushRequest):
                await self._take_push(request, rest, send, recv, counted)
            elif isinstance(request, ObserveRequest):
                await self._observe(request, send)
            else:
                await self._send(request_id, request, send, counted)
            error = None
        except (DialkeyError, CannotServe) as exc:
            error = str(exc)
            if isinstance(exc, CannotServe):
                logger.info("request of %s: %s", connection.remote_id.short(), exc)
            else:
                raise
        finally:
            self._tell(
                RequestEnded(
                    request_id, connection.remote_id, counted.payload, counted.overhead, error
                )
            )

    async def _refuses(self, remote_id: EndpointId, request: Request) -> bool:
        if isinstance(request, PushRequest) and not self._allow_push:
            return True
        if self._authorize is None:
            return False
        answer = self._authorize(remote_id, request)
        if isinstance(answer, Awaitable):
            answer = await answer
        return answer is not None

    async def _send(
        self,
        request_id: int,
        request: GetRequest | GetManyRequest,
        send: SendStream,
        counted: _Counted,
    ) -> None:
        responder = Responder(request, self.cache)
        try:
            over = False
            while not over:
                pieces, begun, error, over = await self._store.run(responder.step)
                for blob in begun:
                    self._tell(BlobServed(request_id, blob.index, blob.hash, blob.size))
                counted.payload = responder.payload_bytes
                counted.overhead = responder.overhead_bytes
                for piece in pieces:
                    await _within(send.write(piece))
                if error is not None:
                    # What was written before the gap still counts for the getter: let it arrive.
                    await _within(send.delivered())
                    send.reset(StreamCode.INTERNAL)
                    raise error
            await send.finish()
            stopped = await _within(send.stopped())
            if stopped is not None:
                raise StreamStopped("the getter stopped early", error_code=stopped)
        finally:
            await self._store.run(lambda _: responder.close())

    async def _observe(self, request: ObserveRequest, send: SendStream) -> None:
        previous = None
        async with self._store.observe(request.hash) as changes:
            stopped = asyncio.ensure_future(send.stopped())
            try:
                while True:
                    upcoming = asyncio.ensure_future(anext(changes))
                    await asyncio.wait([upcoming, stopped], return_when=asyncio.FIRST_COMPLETED)
                    if stopped.done():
                        upcoming.cancel()
                        await asyncio.wait([upcoming])
                        return
                    bitfield = upcoming.result()
                    item = bitfield if previous is None else previous.diff(bitfield)
                    if previous is None or item.ranges:
                        await send.write(item.to_frame())
                    previous = bitfield
            finally:
                stopped.cancel()
                await asyncio.wait([stopped])

    async def _take_push(
        self,
        request: PushRequest,
        rest: bytes,
        send: SendStream,
        recv: RecvStream,
        counted: _Counted,
    ) -> None:
        await send.finish()
        try:
            async for progress in receive(self._store, request, recv, rest):
                counted.payload = progress.payload_bytes
                counted.overhead = progress.overhead_bytes
        except RemoteError:
            recv.stop(StreamCode.INTERNAL)
            raise


class _Counted:
    payload = 0
    overhead = 0


async def _within(work: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(STALL_TIMEOUT_S):
            return await work
    except TimeoutError:
        raise StreamStopped("the getter takes nothing any more", error_code=0) from None


def _end(send: SendStream, recv: RecvStream, code: StreamCode) -> None:
    send.reset(code)
    recv.stop(code)


async def _read_request(recv: RecvStream) -> tuple[Request, bytes]:
    """Read a request; for a push also the first of the data that follows it."""
    reader = RequestReader()
    while chunk := await recv.read():
        push = reader.feed(chunk)
        if push is not None:
            return push, reader.remainder
    return reader.finish(), b""
