"""Serving blobs: the handler of the protocol.

Source: docs/wire/blobs.md 1.1 to 1.6, 8.1, 10. Stricter than the original: requests have a deadline,
are counted per endpoint and in total, and pushes are refused unless allowed.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import attrs

from dialkey import Connection, RecvStream, Refusal, SendStream
from dialkey.errors import (
    ConnectionClosed,
    ConnectionClosedByPeer,
    ConnectionLost,
    DialkeyError,
    LimitExceeded,
    LocalError,
    RemoteError,
    StorageError,
    StreamClosed,
    StreamReset,
    StreamStopped,
    WireError,
)
from dialkey.identity import EndpointId
from dialkey.limits import (
    MAX_BLOB_OBSERVERS,
    MAX_BLOB_OBSERVERS_SHARE,
    MAX_BLOB_REQUESTS,
    MAX_BLOB_REQUESTS_PER_PEER,
    MAX_LARGE_BLOB_REQUESTS,
    MAX_LARGE_BLOB_REQUESTS_PER_PEER,
    MIN_BLOB_OBSERVERS_PER_PEER,
)
from dialkey.places import PARTING_S, Place, Places
from dialkey.printable import printable_bytes, printable_traceback
from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.hash import BlobFormat, HashAndFormat
from dialkey_blobs.protocol import (
    GetManyRequest,
    GetRequest,
    ObserveRequest,
    PushRequest,
    Request,
    RequestReader,
    StreamCode,
)
from dialkey_blobs.provider_events import (
    BlobServed,
    ProviderEvent,
    ProviderEvents,
    RequestEnded,
    RequestStarted,
)
from dialkey_blobs.receiving import receive
from dialkey_blobs.responder import CannotServe, Responder, ResponderCaches, release
from dialkey_blobs.store.errors import StoreClosed

if TYPE_CHECKING:
    from dialkey_blobs.store import Store

__all__ = [
    "Authorize",
    "BlobServed",
    "Provider",
    "ProviderEvent",
    "ProviderEvents",
    "ProviderLimits",
    "RequestEnded",
    "RequestStarted",
]

logger = logging.getLogger("dialkey.blobs.provider")

LARGE_REQUEST_BYTES: Final = 1 << 16
"""Larger requests are charged more: decoding takes up to ten times their size."""

T = TypeVar("T")

_GONE: Final = (
    ConnectionClosed,
    ConnectionClosedByPeer,
    ConnectionLost,
    StreamClosed,
    StreamReset,
    StreamStopped,
)

Authorize = Callable[[EndpointId, Request], Refusal | Awaitable[Refusal | None] | None]
"""Asked for each request, with the endpoint that makes it; a `Refusal` turns it away."""


@attrs.frozen(kw_only=True)
class ProviderLimits:
    """What a provider grants to others.

    Attributes:
        requests: how many are answered at a time; further ones wait, and those of endpoints with
            fewer come first. While somebody waits, a getter that takes less than 16 KiB/s loses its
            place.
        requests_per_peer: how many of those may come from one endpoint, over all its connections.
        observers: how many answers to Observe may be open, which do not count as requests; one
            endpoint may have a quarter of them.
        request_timeout_s: from the opening of a stream to the end of its request.
        queue_timeout_s: how long a request may wait for its turn before it is turned away.
        stall_timeout_s: a getter that takes nothing for this long is dropped; it can resume.
    """

    requests: int = MAX_BLOB_REQUESTS
    requests_per_peer: int = MAX_BLOB_REQUESTS_PER_PEER
    observers: int = MAX_BLOB_OBSERVERS
    request_timeout_s: float = 30.0
    queue_timeout_s: float = 60.0
    stall_timeout_s: float = 120.0


class Provider:
    """Answers requests of other endpoints from a store.

    Args:
        store: what is offered: everything in it, to anyone who knows a hash, unless `authorize` refuses.
        authorize: asked for each request.
        allow_push: let others add blobs to the store.
        limits: how much is answered at a time.
    """

    def __init__(
        self,
        store: Store,
        *,
        authorize: Authorize | None = None,
        allow_push: bool = False,
        limits: ProviderLimits | None = None,
    ) -> None:
        self._store = store
        self._authorize = authorize
        self._allow_push = allow_push
        self.limits = limits or ProviderLimits()
        self.caches = ResponderCaches()
        wait_s = self.limits.queue_timeout_s
        self.places = Places(
            self.limits.requests,
            self.limits.requests_per_peer,
            wait_s=wait_s,
            parting_s=PARTING_S,
        )
        # These take memory, which pausing does not free.
        self.large_places = Places(
            MAX_LARGE_BLOB_REQUESTS, MAX_LARGE_BLOB_REQUESTS_PER_PEER, wait_s=wait_s, parting_s=0
        )
        # Nobody waits for a place to observe: it may be taken for days.
        self.observer_places = Places(
            self.limits.observers,
            max(self.limits.observers // MAX_BLOB_OBSERVERS_SHARE, MIN_BLOB_OBSERVERS_PER_PEER),
            wait_s=0,
            parting_s=0,
            least_rate=0,
        )
        self._peers: weakref.WeakValueDictionary[EndpointId, _Peer] = weakref.WeakValueDictionary()
        self._accepting: set[asyncio.Task[None]] = set()
        self._readers: list[ProviderEvents] = []
        self._next_id = 0

    def events(self) -> ProviderEvents:
        """Start listening to what others request."""
        reader = ProviderEvents(self._detach)
        self._readers.append(reader)
        return reader

    def _detach(self, reader: ProviderEvents) -> None:
        if reader in self._readers:
            self._readers.remove(reader)

    def _tell(self, event: ProviderEvent) -> None:
        for reader in self._readers:
            reader.put(event)

    # --- connections ----------------------------------------------------------------------------

    async def accept(self, connection: Connection) -> None:
        """Serve one connection until it ends, or until `shutdown`."""
        peer = self._peers.setdefault(connection.remote_id, _Peer(self.limits.requests_per_peer))
        async with _Exchanges(self, connection, peer) as exchanges:
            accepting = asyncio.create_task(exchanges.accept_all(), name="dialkey-blobs-accept")
            self._accepting.add(accepting)
            try:
                await asyncio.wait([accepting])
            finally:
                accepting.cancel()
                self._accepting.discard(accepting)
        if accepting.cancelled():
            connection.close()

    async def shutdown(self) -> None:
        """Accept no more requests; responses in progress are completed."""
        for task in self._accepting:
            task.cancel()

    @asynccontextmanager
    async def place(self, places: asyncio.Semaphore) -> AsyncIterator[None]:
        """Hold one of the places of an endpoint.

        Raises:
            LimitExceeded: none became free in time.
        """
        try:
            async with asyncio.timeout(self.limits.queue_timeout_s):
                await places.acquire()
        except TimeoutError:
            raise LimitExceeded("too many requests at a time") from None
        try:
            yield
        finally:
            places.release()

    # --- requests -------------------------------------------------------------------------------

    async def answer(self, remote_id: EndpointId, exchange: Exchange) -> None:
        """Answer one request.

        Raises:
            DialkeyError, CannotServe: what ended the response early.
        """
        self._next_id += 1
        request_id = self._next_id
        self._tell(RequestStarted(request_id, remote_id, exchange.request))
        error: str | None = "cancelled"
        try:
            request = exchange.request
            if isinstance(request, PushRequest):
                await self._take_push(request, exchange)
            elif isinstance(request, ObserveRequest):
                await self._observe(request, exchange.send)
            else:
                await self._send(request_id, request, exchange)
            error = None
        except (DialkeyError, CannotServe) as exc:
            error = str(exc)
            raise
        finally:
            self._tell(
                RequestEnded(request_id, remote_id, exchange.payload, exchange.overhead, error)
            )

    async def refusal(self, remote_id: EndpointId, request: Request) -> Refusal | None:
        """Ask whether to turn a request away."""
        if isinstance(request, PushRequest) and not self._allow_push:
            return Refusal(StreamCode.PERMISSION, "pushes are not allowed")
        if self._authorize is None:
            return None
        answer = self._authorize(remote_id, request)
        if inspect.isawaitable(answer):
            answer = await answer
        if answer is not None and not isinstance(answer, Refusal):
            raise LocalError(f"authorize returned {type(answer).__name__}, not a Refusal or None")
        return answer

    async def _send(
        self, request_id: int, request: GetRequest | GetManyRequest, exchange: Exchange
    ) -> None:
        send = exchange.send
        responder = Responder(request, self.caches)
        try:
            over = False
            while not over:
                pieces, begun, error, over = await self._store.run(responder.step)
                for blob in begun:
                    self._tell(BlobServed(request_id, blob.index, blob.hash, blob.size))
                exchange.payload = responder.payload_bytes
                exchange.overhead = responder.overhead_bytes
                for piece in pieces:
                    await self._within(send.write(piece))
                    exchange.progress(len(piece))
                if error is not None:
                    # What was written before the gap still counts for the getter: let it arrive.
                    await self._within(send.delivered())
                    raise error
                await exchange.pause()
            await self._end_response(send)
        finally:
            await release(self._store, responder)

    async def _end_response(self, send: SendStream) -> None:
        """Wait until the getter has everything. Rust getters stop a stream instead of reading its end."""
        try:
            await send.finish()
            stopped = await self._within(send.stopped())
        except StreamStopped as error:
            stopped = error.error_code
        if stopped is not None:
            try:
                await send.delivered()
            except StreamStopped:
                raise StreamStopped("the getter stopped early", error_code=stopped) from None

    async def _observe(self, request: ObserveRequest, send: SendStream) -> None:
        async def report() -> None:
            held: Bitfield | None = None
            async with self._store.observe(request.hash) as states:
                async for state in states:
                    item = state if held is None else held.diff(state)
                    if held is None or item.ranges:
                        await send.write(item.to_frame())
                    held = state

        reporting = asyncio.create_task(report(), name="dialkey-blobs-observe")
        stopping = asyncio.create_task(send.stopped(), name="dialkey-blobs-observe-stopped")
        try:
            await asyncio.wait([reporting, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reporting, stopping):
                task.cancel()
            await asyncio.wait([reporting, stopping])
        if not stopping.cancelled():
            stopping.result()
            return
        if not reporting.cancelled():
            reporting.result()
        raise StoreClosed

    async def _take_push(self, request: PushRequest, exchange: Exchange) -> None:
        try:
            await exchange.send.finish()
        except StreamStopped:
            exchange.send.reset(StreamCode.NONE)
        is_single = request.ranges.is_single_blob
        format = BlobFormat.RAW if is_single else BlobFormat.HASH_SEQ
        responses = receive(self._store, request, exchange.recv, exchange.rest)
        with self._store.pin(HashAndFormat(request.hash, format)):
            async with aclosing(responses):
                async for progress in responses:
                    before = exchange.payload + exchange.overhead
                    exchange.payload = progress.payload_bytes
                    exchange.overhead = progress.overhead_bytes
                    exchange.progress(exchange.payload + exchange.overhead - before)
                    await exchange.pause()

    async def _within(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self.limits.stall_timeout_s):
                return await work
        except TimeoutError:
            raise StreamStopped("the getter has stopped reading", error_code=0) from None


@attrs.define
class Exchange:
    """A request and the stream on which it is answered.

    Attributes:
        request: what is asked for.
        rest: for a push, what was read beyond its header.
        send, recv: the stream.
        places: what it holds meanwhile.
        payload, overhead: bytes sent, or received, so far.
    """

    request: Request
    rest: bytes
    send: SendStream
    recv: RecvStream
    places: Sequence[Place] = ()
    payload: int = 0
    overhead: int = 0

    def progress(self, done_bytes: int) -> None:
        """Note that bytes were sent or received."""
        for place in self.places:
            place.progress(done_bytes)

    async def pause(self) -> None:
        """Let others have a turn."""
        for place in self.places:
            await place.pause()


class _Peer:
    """What one endpoint may have at a time, over all its connections.

    Attributes:
        waiting: places for requests that are read or wait for their turn, in our memory.
    """

    def __init__(self, requests: int) -> None:
        self.waiting = asyncio.Semaphore(max(requests, MAX_BLOB_REQUESTS_PER_PEER))


class _Exchanges:
    """The streams of one connection; as a context manager it waits for those that are answered."""

    def __init__(self, provider: Provider, connection: Connection, peer: _Peer) -> None:
        self._provider = provider
        self._connection = connection
        self._peer = peer
        self._name = connection.remote_id.short()
        self._tasks: set[asyncio.Task[None]] = set()
        # Those that neither send nor receive content: ending them loses nothing.
        self._busy: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> _Exchanges:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            for task in self._tasks - self._busy:
                task.cancel()
            while self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def accept_all(self) -> None:
        """Start an exchange for each stream that the peer opens, until the connection ends."""
        while True:
            try:
                send, recv = await self._connection.accept_bi()
            except _GONE:
                return
            task = asyncio.create_task(self._serve(send, recv), name="dialkey-blobs-request")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(self._busy.discard)

    async def _serve(self, send: SendStream, recv: RecvStream) -> None:
        try:
            await self._exchange(send, recv)
        except LimitExceeded as error:
            self._end(send, recv, StreamCode.LIMIT, error)
        except _GONE as error:
            logger.debug("request of %s ended: %s", self._name, error)
            # Towards a getter that stalls but is alive this still has to be said.
            _reset(send, recv, StreamCode.INTERNAL)
        except (RemoteError, StorageError, CannotServe) as error:
            self._end(send, recv, StreamCode.INTERNAL, error)
        except StoreClosed:
            # A reset would say that we do not have the content. Closing says that we are going away,
            # so the getter may come back.
            self._connection.close()
        except Exception as error:
            # One request that fails must not end the others of its connection.
            logger.error("a request of %s failed\n%s", self._name, printable_traceback(error))
            _reset(send, recv, StreamCode.INTERNAL)

    async def _exchange(self, send: SendStream, recv: RecvStream) -> None:
        provider = self._provider
        remote = self._connection.remote_id
        places: list[Place] = []
        async with AsyncExitStack() as held:
            async with provider.place(self._peer.waiting):
                reader, push = await self._read(recv)
                if reader.buffered_bytes > LARGE_REQUEST_BYTES:
                    places.append(
                        await held.enter_async_context(provider.large_places.hold(remote))
                    )
                request = reader.finish() if push is None else push
                refusal = await provider.refusal(remote, request)
                if refusal is not None:
                    reason = printable_bytes(refusal.reason)
                    logger.info("request of %s refused: %s", self._name, reason)
                    _reset(send, recv, refusal.code)
                    return
                if isinstance(request, ObserveRequest):
                    # It may stay for days and costs next to nothing: it takes no ordinary place.
                    await held.enter_async_context(provider.observer_places.hold(remote))
                else:
                    places.append(await held.enter_async_context(provider.places.hold(remote)))
                    task = asyncio.current_task()
                    assert task is not None
                    self._busy.add(task)
            rest = reader.remainder if push is not None else b""
            await provider.answer(remote, Exchange(request, rest, send, recv, places))

    async def _read(self, recv: RecvStream) -> tuple[RequestReader, PushRequest | None]:
        """Read a request: to its end, which is not decoded yet, or the header of a push."""
        reader = RequestReader()
        try:
            async with asyncio.timeout(self._provider.limits.request_timeout_s):
                while chunk := await recv.read():
                    push = reader.feed(chunk)
                    if push is not None:
                        return reader, push
        except TimeoutError:
            raise WireError("no request arrived in time") from None
        return reader, None

    def _end(self, send: SendStream, recv: RecvStream, code: StreamCode, error: object) -> None:
        logger.info("request of %s: %s", self._name, error)
        _reset(send, recv, code)


def _reset(send: SendStream, recv: RecvStream, code: int) -> None:
    send.reset(code)
    recv.stop(code)
