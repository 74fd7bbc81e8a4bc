"""The caller's side of a connection: dials when needed, and makes calls one attempt at a time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

from dialkey.errors import (
    ConnectionClosed,
    ConnectionClosedByPeer,
    ConnectionLost,
    DialkeyError,
    EndpointClosed,
    LocalError,
    StreamClosed,
    StreamReset,
    StreamStopped,
)
from dialkey.shares import FairShares
from dialkey_rpc.budget import Account
from dialkey_rpc.codec import SCHEMA, MethodCodec, ServiceCodec
from dialkey_rpc.context import NO_METADATA, deadline_var
from dialkey_rpc.errors import (
    ApplicationError,
    CallCancelled,
    DeadlineExceeded,
    InvalidArgument,
    MalformedMessage,
    MessageTooLarge,
    ResourceExhausted,
    RpcError,
    Unavailable,
)
from dialkey_rpc.frames import ERROR, RpcLimits, StopCode
from dialkey_rpc.metrics import MethodCounters
from dialkey_rpc.order import RESPONSE, RESPONSE_STREAM, Order
from dialkey_rpc.retry import Reconnect
from dialkey_rpc.shell import ITEMS_BETWEEN_TURNS, FrameSource, write_frame

if TYPE_CHECKING:
    from dialkey import Connection, Endpoint, RecvStream, SendStream
    from dialkey.identity import Remote

__all__ = ["END", "Attempts", "CallOptions", "Channel", "Exchange", "outcome_of", "within"]

T = TypeVar("T")

_RESETS: Final[Mapping[int, type[RpcError]]] = {
    StopCode.DONE: CallCancelled,
    StopCode.CANCELLED: CallCancelled,
    StopCode.DEADLINE: DeadlineExceeded,
    StopCode.MALFORMED: InvalidArgument,
    StopCode.LIMIT: ResourceExhausted,
    StopCode.UNAVAILABLE: Unavailable,
}

_GONE: Final = (
    ConnectionClosed,
    ConnectionClosedByPeer,
    ConnectionLost,
    EndpointClosed,
    StreamClosed,
    StreamStopped,
)

logger = logging.getLogger("dialkey.rpc")

END: Final = object()
"""What `Exchange.next` returns at the end of a stream."""


@attrs.frozen
class CallOptions:
    """What holds for the calls of a client.

    Attributes:
        timeout_s: how long each call may take, seconds; None for ever.
        metadata: text by text, sent with the arguments of each call.
    """

    timeout_s: float | None = None
    metadata: Mapping[str, str] = NO_METADATA


class Channel:
    """A connection to a service that is dialled again when it is gone."""

    def __init__(
        self,
        endpoint: Endpoint,
        remote: Remote,
        codec: ServiceCodec,
        *,
        reconnect: Reconnect,
        limits: RpcLimits,
        chance: random.Random,
    ) -> None:
        self.codec = codec
        self.limits = limits
        self.reconnect = reconnect
        self.counters = {name: MethodCounters() for name in (*codec.methods, SCHEMA.spec.name)}
        self.budget = FairShares[str](limits.buffered_bytes)
        self._endpoint = endpoint
        self._remote = remote
        self._chance = chance
        self._connection: Connection | None = None
        self._dialling: asyncio.Task[Connection] | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self._is_closed = False

    # --- the connection -------------------------------------------------------------------------

    async def connection(self) -> Connection:
        """Return the open connection; dial if there is none. Concurrent callers share one dial.

        Raises:
            DialkeyError: as `Endpoint.connect`.
        """
        connection = self._connection
        if connection is not None and not connection.is_closed:
            return connection
        if self._is_closed:
            raise ConnectionClosed("this client was closed here")
        # With an eager task factory a dial that fails at once has ended before it stands here.
        if self._dialling is None or self._dialling.done():
            self._dialling = asyncio.create_task(self._dial(), name="dialkey-rpc-dial")
        dialling = self._dialling
        try:
            return await asyncio.shield(dialling)
        except asyncio.CancelledError:
            # `close` cancelled the dial; that is not the cancellation of the caller.
            task = asyncio.current_task()
            if self._is_closed and dialling.cancelled() and task and not task.cancelling():
                raise ConnectionClosed("this client was closed here") from None
            raise

    async def _dial(self) -> Connection:
        try:
            connection = await self._endpoint.connect(self._remote, self.codec.spec.alpn)
            if self._is_closed:
                connection.close()
                raise ConnectionClosed("this client was closed here")
            # What was in flight on the old connection is never given back to its budget.
            self.budget = FairShares[str](self.limits.buffered_bytes)
            self._connection = connection
            return connection
        finally:
            self._dialling = None

    async def close(self) -> None:
        """Close the connection, and with it the calls under way. Idempotent."""
        self._is_closed = True
        if self._dialling is not None:
            self._dialling.cancel()
            await asyncio.wait({self._dialling})
        if self._connection is not None:
            self._connection.close(0)
        pumps = list(self._pumps)
        for pump in pumps:
            pump.cancel()
        if pumps:
            await asyncio.wait(pumps)

    def account(self) -> Account:
        """Return the account for a new stream. All are the service's, so none gives way to another."""
        return Account(self.budget, "", lambda: None)

    def own(self, pump: asyncio.Task[None]) -> None:
        """Keep a task until its end."""
        self._pumps.add(pump)
        pump.add_done_callback(self._pumps.discard)

    # --- calls ----------------------------------------------------------------------------------

    def deadline(self, options: CallOptions) -> float | None:
        """Return when a call that starts now must be over, in event loop time."""
        at = deadline_var.get()
        if options.timeout_s is None:
            return at
        own = asyncio.get_running_loop().time() + options.timeout_s
        return own if at is None else min(own, at)

    async def unary(
        self,
        codec: MethodCodec,
        values: dict[str, object],
        upload: AsyncIterable[object] | None,
        options: CallOptions,
    ) -> object:
        """Make a call that has one result. Cancelling it cancels it at the service.

        Raises:
            CannotSend: an argument has no form on the wire.
            RpcError, or an error that the method declares: the service said so.
            DialkeyError: the service cannot be reached, or the connection broke.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        counters = self.counters[codec.spec.name]
        counters.active += 1
        outcome = "cancelled"
        try:
            arguments = codec.plain_arguments(values)
            call = Attempts(self, codec, arguments, upload, self.deadline(options), options)
            exchange, result = await call.first()
            exchange.close(StopCode.DONE)
            outcome = "ok"
            return result
        except Exception as error:
            outcome = outcome_of(error, codec)
            raise
        finally:
            counters.end(outcome, loop.time() - started)

    async def pause(self, attempt: int) -> None:
        """Wait before the next attempt."""
        await asyncio.sleep(self.reconnect.pause_s(attempt, self._chance))


def outcome_of(error: BaseException, codec: MethodCodec) -> str:
    """Return the name under which the counters record how a call ended."""
    if isinstance(error, DialkeyError):
        return error.code
    if codec.declares(error):
        return ApplicationError.code
    return LocalError.code if isinstance(error, Exception) else "cancelled"


class Attempts:
    """A call, tried until it is answered or retrying makes no sense."""

    def __init__(
        self,
        channel: Channel,
        codec: MethodCodec,
        arguments: dict[str, object],
        upload: AsyncIterable[object] | None,
        at: float | None,
        options: CallOptions,
    ) -> None:
        self._channel = channel
        self._codec = codec
        self._arguments = arguments
        self._upload = upload
        self._at = at
        self._options = options

    async def first(self) -> tuple[Exchange, object]:
        """Return the exchange that succeeded, and the first thing that it brought.

        Raises:
            DeadlineExceeded: it took too long, all attempts together.
        """
        if self._at is None:
            return await self._try_all()
        return await within(self._at, self._try_all())

    async def _try_all(self) -> tuple[Exchange, object]:
        channel, codec = self._channel, self._codec
        attempt = 1
        while True:
            exchange = Exchange(channel, codec)
            try:
                await exchange.open(self._arguments, self._upload, self._at, self._options)
                return exchange, await exchange.next()
            except DialkeyError as error:
                exchange.close(StopCode.CANCELLED)
                is_spent = exchange.sent and self._upload is not None
                if is_spent or not channel.reconnect.may_repeat(
                    error, attempt, sent=exchange.sent, idempotent=codec.spec.idempotent
                ):
                    _explain(error, exchange)
                    raise
            except BaseException:
                exchange.close(StopCode.CANCELLED)
                raise
            await channel.pause(attempt)
            attempt += 1


def _explain(error: DialkeyError, exchange: Exchange) -> None:
    if (
        exchange.sent
        and isinstance(error, (ConnectionLost, ConnectionClosedByPeer))
        and error.hint is None
    ):
        error.hint = "nobody knows whether the call ran; mark methods idempotent to repeat them"


async def within(at: float, waiting: Coroutine[Any, Any, T]) -> T:
    """Await until a moment in event loop time.

    Raises:
        DeadlineExceeded: it has come.
    """
    if at <= asyncio.get_running_loop().time():
        waiting.close()
        raise DeadlineExceeded("there was no time left for this call")
    try:
        async with asyncio.timeout_at(at) as timeout:
            return await waiting
    except TimeoutError as error:
        if not timeout.expired():
            raise
        raise DeadlineExceeded("the service did not answer in time") from error


class Exchange:
    """One attempt at a call, on a stream of its own.

    Attributes:
        sent: whether anything of it may have reached the service.
    """

    __slots__ = (
        "_channel",
        "_codec",
        "_pump",
        "_remote_id",
        "_send",
        "_source",
        "_upload_error",
        "sent",
    )

    def __init__(self, channel: Channel, codec: MethodCodec) -> None:
        self._channel = channel
        self._codec = codec
        self._send: SendStream | None = None
        self._source: FrameSource | None = None
        self._pump: asyncio.Task[None] | None = None
        self._upload_error: Exception | None = None
        self.sent = False

    async def open(
        self,
        arguments: Mapping[str, object],
        upload: AsyncIterable[object] | None,
        at: float | None,
        options: CallOptions,
    ) -> None:
        """Open a stream and send the call."""
        channel = self._channel
        connection = await channel.connection()
        send, recv = await connection.open_bi()
        self._remote_id = connection.remote_id
        self._send = send
        table = RESPONSE_STREAM if self._codec.spec.streams_down else RESPONSE
        self._source = FrameSource(recv, channel.limits, channel.account(), Order(table))
        timeout_s = None if at is None else at - asyncio.get_running_loop().time()
        head, parts = self._codec.call_frame(arguments, timeout_s, options.metadata)
        self.sent = True
        try:
            await write_frame(send, head, parts, finish=upload is None)
        except StreamStopped:
            return  # the service has answered already; its answer says why
        if upload is not None:
            self._pump = asyncio.create_task(self._upload(upload, recv), name="dialkey-rpc-upload")
            channel.own(self._pump)

    async def next(self) -> object:
        """Return the result or the next item; `END` behind the last one.

        Raises:
            DialkeyError, or an error that the method declares.
        """
        assert self._source is not None
        try:
            frame = await self._source.next()
            if frame is None:
                return END
            plain = self._source.unpack(frame)
            if frame.kind != ERROR:
                return self._codec.read_result(plain)
            error = self._codec.read_error(plain, self._remote_id)
        except (MalformedMessage, MessageTooLarge) as wrong:
            wrong.endpoint_id = self._remote_id
            raise
        except StreamReset as reset:
            kind = _RESETS.get(reset.error_code, CallCancelled)
            raise kind(
                f"the service ended the call (code {reset.error_code})",
                endpoint_id=self._remote_id,
            ) from reset
        except StreamClosed:
            if self._upload_error is not None:
                raise self._upload_error from None
            raise
        raise error

    def close(self, code: int) -> None:
        """Let go of the stream, and tell the service unless the call is complete. Idempotent."""
        if self._source is None or self._send is None:
            return
        self._source.close(code)
        if code != StopCode.DONE:
            self._send.reset(code)
        if self._pump is not None and not self._pump.done():
            self._pump.cancel()
            self._send.reset(code)

    async def _upload(self, upload: AsyncIterable[object], recv: RecvStream) -> None:
        send = self._send
        assert send is not None
        iterator = aiter(upload)
        counters = self._channel.counters[self._codec.spec.name]
        sent = 0
        try:
            while True:
                try:
                    item = await anext(iterator)
                    head, parts = self._codec.upload_frame(item)
                except StopAsyncIteration:
                    break
                except Exception as error:
                    # The caller's own failure; `next`, which this wakes, raises it to the caller.
                    self._upload_error = error
                    send.reset(StopCode.CANCELLED)
                    recv.stop(StopCode.CANCELLED)
                    return
                await write_frame(send, head, parts)
                counters.items_up += 1
                sent += 1
                if not sent % ITEMS_BETWEEN_TURNS:
                    await asyncio.sleep(0)
            await send.finish()
        except _GONE as error:
            logger.debug("an upload ended early; the answer will say why: %s", error)
        finally:
            aclose = getattr(iterator, "aclose", None)
            if aclose is not None:
                await aclose()
