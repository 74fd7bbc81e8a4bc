"""Serving: the plugin that offers a service on an endpoint."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from dialkey import hookimpl
from dialkey.errors import (
    ConnectionClosed,
    ConnectionClosedByPeer,
    ConnectionLost,
    DialkeyError,
    EndpointClosed,
    StreamClosed,
    StreamReset,
    StreamStopped,
)
from dialkey.printable import printable_traceback
from dialkey.shares import Claim, FairShares
from dialkey_rpc.budget import Account
from dialkey_rpc.codec import (
    SCHEMA,
    CallRequest,
    MethodCodec,
    compile_service,
    error_frame,
    read_call,
)
from dialkey_rpc.context import Call, call_var, deadline_var
from dialkey_rpc.errors import (
    ApplicationError,
    CallCancelled,
    CannotSend,
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    MalformedMessage,
    MessageTooLarge,
    MethodNotFound,
    PermissionDenied,
    ResourceExhausted,
    RpcError,
    ServiceDefinitionError,
)
from dialkey_rpc.frames import CALL, RpcLimits, StopCode
from dialkey_rpc.limits import MAX_RPC_CALLS, RPC_CALL_ARRIVAL_TIMEOUT_S
from dialkey_rpc.metrics import MethodCounters, MethodStats
from dialkey_rpc.order import REQUEST, REQUEST_STREAM, Order
from dialkey_rpc.schema import Schema, schema_of
from dialkey_rpc.shell import ITEMS_BETWEEN_TURNS, FrameSource, StopWatch, write_frame

if TYPE_CHECKING:
    from dialkey import Connection, Endpoint, RecvStream, SendStream
    from dialkey.identity import EndpointId

__all__ = ["Allowed", "Middleware", "Proceed", "Rpc"]

Allowed = Container["EndpointId"] | Callable[["EndpointId"], bool]
"""Who may call: a collection of endpoint ids tested with ``in``, or a function."""

Proceed = Callable[[], Awaitable[object]]
Middleware = Callable[[Call, Proceed], Awaitable[object]]
"""What runs around each call: ``async def middleware(call, proceed): return await proceed()``.

It may raise an `RpcError` to refuse, and change the result. For a method that streams down, `proceed`
returns the asynchronous iterator, none of whose items have been asked for yet.
"""

_GONE: Final = (
    ConnectionClosed,
    ConnectionClosedByPeer,
    ConnectionLost,
    EndpointClosed,
    StreamClosed,
    StreamReset,
    StreamStopped,
)

RECENT_ANSWERS: Final = 128
"""Answers whose arrival is awaited at shutdown; a peer has at most 100 calls open."""

CALLERS_AT_LEAST: Final = 4
"""So many callers can be busy at once before one has to give way to another."""

CALLS_FOR_EACH: Final = 16
"""A caller's share even of a small number of calls: as long as nobody else wants them."""

UNKNOWN_METHOD: Final = "?"
"""Where calls of methods that do not exist are counted: strangers must not invent labels."""

logger = logging.getLogger("dialkey.rpc")

_Method = Callable[..., Any]


class Rpc:
    """Serve an object to everybody who dials the endpoint: ``router.add(Rpc(Calculator()))``.

    Args:
        service: the object; its class says what can be called.
        interface: the class that says so instead, where `service` has more methods or merely
            implements it.
        name: overrides the name of the service.
        allow: who may call which method, by the method's name; ``"*"`` is for all that are not
            named. Nothing is refused without it.
        middleware: runs around each call, the first one outermost.
        expose_errors: tell callers the class, text and traceback of unexpected errors. For
            development: it shows them your code.
        limits: what callers may send.
        max_calls: calls in progress, over all connections. When it is reached, the caller that has
            most of them gives way to one that has fewer: its youngest call ends with
            `ResourceExhausted`.
        max_calls_per_caller: of those, from one endpoint, over all its connections; a quarter of
            `max_calls`, and at least 16, if it is left out. Beyond it calls are refused.

    Raises:
        ServiceDefinitionError: the class cannot be a service, or `allow` names no method of it.
    """

    def __init__(
        self,
        service: object,
        interface: Callable[..., object] | None = None,
        *,
        name: str | None = None,
        allow: Mapping[str, Allowed] | None = None,
        middleware: Sequence[Middleware] = (),
        expose_errors: bool = False,
        limits: RpcLimits | None = None,
        max_calls: int = MAX_RPC_CALLS,
        max_calls_per_caller: int | None = None,
    ) -> None:
        if isinstance(service, type):
            raise ServiceDefinitionError(
                f"{service.__name__} is a class", hint=f"serve an object: Rpc({service.__name__}())"
            )
        kind: Callable[..., object] = type(service) if interface is None else interface
        codec = compile_service(kind, name)
        self.spec = codec.spec
        self.limits = limits or RpcLimits()
        self.middleware = tuple(middleware)
        self.expose_errors = expose_errors
        if max_calls_per_caller is None:
            max_calls_per_caller = max(max_calls // CALLERS_AT_LEAST, CALLS_FOR_EACH)
        self.calls = FairShares["EndpointId"](max_calls, max_calls_per_caller)
        self.active = 0
        self.draining = False
        self.budget = FairShares["EndpointId"](
            self.limits.total_buffered_bytes, self.limits.buffered_bytes
        )
        self.methods: dict[str, tuple[MethodCodec, _Method]] = {
            SCHEMA.spec.name: (SCHEMA, self._answer_schema)
        }
        for each in codec.methods.values():
            function = getattr(service, each.spec.attribute, None)
            if function is None:
                raise ServiceDefinitionError(
                    f"{type(service).__name__} does not implement {each.spec.attribute}"
                )
            self.methods[each.spec.name] = (each, function)
        self.counters = {each: MethodCounters() for each in (*self.methods, UNKNOWN_METHOD)}
        self._allow = _checked_policy(allow or {}, self.methods)
        self._schema: Schema | None = None
        self._peers: set[_Peer] = set()

    @property
    def schema(self) -> Schema:
        """What the service offers, with its hash."""
        if self._schema is None:
            self._schema = schema_of(self.spec)
        return self._schema

    def stats(self) -> Mapping[str, MethodStats]:
        """Return the counters by method; ``"?"`` collects calls of methods that do not exist."""
        return {name: counters.stats() for name, counters in self.counters.items()}

    # --- the plugin -----------------------------------------------------------------------------

    @hookimpl
    def dialkey_protocols(self, endpoint: Endpoint) -> Mapping[str | bytes, Rpc]:
        """Serve the service under its ALPN."""
        return {self.spec.alpn: self}

    async def accept(self, connection: Connection) -> None:
        """Serve the calls of one connection until it ends. Cancelling it cancels them."""
        peer = _Peer(self, connection)
        self._peers.add(peer)
        try:
            await peer.run()
        finally:
            self._peers.discard(peer)

    async def shutdown(self) -> None:
        """Refuse new calls, wait for those in progress and for their answers to arrive."""
        self.draining = True
        for peer in list(self._peers):
            await peer.drain()

    # --- for calls ------------------------------------------------------------------------------

    def check_allowed(self, method: str, remote_id: EndpointId) -> None:
        """Raise `PermissionDenied` unless the policy lets an endpoint call a method."""
        allowed = self._allow.get(method, self._allow.get("*"))
        if allowed is None:
            return
        if not (allowed(remote_id) if callable(allowed) else remote_id in allowed):
            raise PermissionDenied(f"{remote_id.short()} may not call {method}")

    async def _answer_schema(self) -> object:
        return self.schema.to_wire()


def _checked_policy(allow: Mapping[str, Allowed], methods: Container[str]) -> Mapping[str, Allowed]:
    for name in allow:
        if name != "*" and name not in methods:
            raise ServiceDefinitionError(f"allow names the method {name!r}, which does not exist")
    return dict(allow)


class _Peer:
    """One connection that is being served."""

    def __init__(self, rpc: Rpc, connection: Connection) -> None:
        self.rpc = rpc
        self.connection = connection
        self.answers: deque[SendStream] = deque(maxlen=RECENT_ANSWERS)
        self._tasks: set[asyncio.Task[None]] = set()
        # Calls whose arguments have not arrived, the oldest first, and since when.
        self._arriving: dict[asyncio.Task[Any], float] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    def arriving(self, task: asyncio.Task[Any], now: float) -> None:
        """Note that a call has started to arrive."""
        self._arriving[task] = now
        if self._sweeper is None:
            self._sweep_later()

    def arrived(self, task: asyncio.Task[Any]) -> None:
        """Note that it has arrived, or is no longer expected."""
        self._arriving.pop(task, None)

    def _sweep_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(RPC_CALL_ARRIVAL_TIMEOUT_S / 4, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeper = None
        oldest = loop.time() - RPC_CALL_ARRIVAL_TIMEOUT_S
        for task, since in list(self._arriving.items()):
            if since > oldest:
                break
            logger.debug("%s: a call did not arrive in time", self.connection.remote_id.short())
            task.cancel()
            del self._arriving[task]
        if self._arriving:
            self._sweep_later()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        accept_bi = self.connection.accept_bi
        tasks = self._tasks
        try:
            while True:
                send, recv = await accept_bi()
                if self.rpc.draining:
                    send.reset(StopCode.UNAVAILABLE)
                    recv.stop(StopCode.UNAVAILABLE)
                    continue
                task = loop.create_task(_ServerCall(self, send, recv).run())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        except (ConnectionClosed, ConnectionClosedByPeer, ConnectionLost, EndpointClosed) as error:
            logger.debug("%s: %s", self.connection.remote_id.short(), error)
        finally:
            if self._sweeper is not None:
                self._sweeper.cancel()
            ending = list(tasks)
            for task in ending:
                task.cancel()
            if ending:
                await asyncio.wait(ending)

    async def drain(self) -> None:
        while self._tasks:
            await asyncio.wait(list(self._tasks))
        try:
            while self.answers:
                await self.answers.popleft().stopped()
        except DialkeyError as error:
            logger.debug("%s: %s", self.connection.remote_id.short(), error)
        self.connection.close(0, b"shutting down")


class _ServerCall:
    """One call that is being served."""

    def __init__(self, peer: _Peer, send: SendStream, recv: RecvStream) -> None:
        self._peer = peer
        self._rpc = peer.rpc
        self._send = send
        self._remote_id = peer.connection.remote_id
        account = Account(peer.rpc.budget, self._remote_id, self._give_way)
        self._source = FrameSource(recv, peer.rpc.limits, account, Order(REQUEST))
        self._task: asyncio.Task[Any] | None = None
        self._claim: Claim | None = None
        self._gave_way = False
        self._codec: MethodCodec | None = None
        self._counters: MethodCounters | None = None
        self._stop_code = StopCode.DONE
        # While it is set, the stream may hold half a frame, and nothing can follow but a reset.
        self._is_writing = False

    async def run(self) -> None:
        """Serve it. Raises nothing; ends early when it is cancelled."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        outcome = "ok"
        self._task = task = asyncio.current_task()
        assert task is not None
        try:
            await self._serve(task, started)
        except asyncio.CancelledError:
            if self._gave_way and task.cancelling() == 1:
                task.uncancel()
                outcome = await self._fail(
                    ResourceExhausted("the call made room for a caller that has less in progress")
                )
            else:
                # The caller stopped it, the connection is over, or we shut down. This task is ours.
                outcome = "cancelled"
                self._send.reset(StopCode.CANCELLED)
        except _GONE as error:
            outcome = "cancelled"
            logger.debug("a caller went away: %s", error)
            self._send.reset(StopCode.CANCELLED)
        except Exception as error:
            outcome = await self._fail(error)
        finally:
            self._task = None
            self._source.close(self._stop_code)
            if self._claim is not None:
                self._claim.release()
                self._claim = None  # it leads back here; without the cycle a call is freed at once
            if self._counters is not None:
                self._rpc.active -= 1
                self._counters.end(outcome, loop.time() - started)

    def _give_way(self) -> None:
        """Make room for somebody else: end the call, and tell the caller why."""
        if self._task is not None and not self._gave_way:
            self._gave_way = True
            self._stop_code = StopCode.LIMIT
            self._task.cancel()

    async def _serve(self, task: asyncio.Task[Any], started: float) -> None:
        self._peer.arriving(task, started)
        try:
            request = await self._read_call()
        finally:
            self._peer.arrived(task)
        codec, function = self._admit(request)
        arguments = codec.read_arguments(request)
        if codec.spec.upload is not None:
            arguments[codec.spec.upload.name] = self._uploads(codec)
        at = None if request.timeout_s is None else started + request.timeout_s
        call = Call(codec.spec, self._peer.connection, request.metadata, at)
        if at is not None and at <= asyncio.get_running_loop().time():
            raise DeadlineExceeded("there was no time left for this call")
        # This task has a context of its own, so nothing needs to be put back.
        call_var.set(call)
        deadline_var.set(at)
        if at is None:
            await self._answer(task, call, codec, function, arguments)
            return
        try:
            async with asyncio.timeout_at(at) as timeout:
                await self._answer(task, call, codec, function, arguments)
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise DeadlineExceeded("the call took longer than its caller waits") from error

    async def _read_call(self) -> CallRequest:
        try:
            frame = await self._source.next()
            if frame is None:
                raise MalformedMessage("the stream ended without a call")
            return read_call(self._source.unpack(frame))
        except MalformedMessage as error:
            self._stop_code = StopCode.MALFORMED
            raise InvalidArgument(error.message, hint=error.hint) from error
        except MessageTooLarge as error:
            self._stop_code = StopCode.LIMIT
            raise ResourceExhausted(error.message, hint=error.hint) from error

    def _admit(self, request: CallRequest) -> tuple[MethodCodec, _Method]:
        rpc = self._rpc
        found = rpc.methods.get(request.method)
        self._counters = counters = rpc.counters[request.method if found else UNKNOWN_METHOD]
        counters.active += 1
        rpc.active += 1
        if found is None:
            raise MethodNotFound(f"{rpc.spec.name} has no method {request.method[:64]!r}")
        self._codec = found[0]
        rpc.check_allowed(request.method, self._remote_id)
        self._claim = rpc.calls.claim(self._remote_id, self._give_way)
        if not self._claim.take(1):
            raise ResourceExhausted(
                f"{rpc.calls.held_by(self._remote_id)} of your calls are in progress already",
                hint="wait for some of them to end",
            )
        return found

    # --- the answer -----------------------------------------------------------------------------

    async def _answer(
        self,
        task: asyncio.Task[Any],
        call: Call,
        codec: MethodCodec,
        function: _Method,
        arguments: dict[str, object],
    ) -> None:
        invoke = _with_middleware(self._rpc.middleware, call, function, arguments)
        watch = StopWatch(self._send, task)
        watch.start()
        try:
            result = invoke()
            if inspect.isawaitable(result):
                result = await result
            if codec.spec.streams_down:
                await self._stream(codec, result, watch)
                return
        finally:
            watch.pause()
        head, parts = codec.result_frame(result)
        self._is_writing = True
        await write_frame(self._send, head, parts, finish=True)
        self._is_writing = False
        self._peer.answers.append(self._send)

    async def _stream(self, codec: MethodCodec, result: object, watch: StopWatch) -> None:
        if not hasattr(result, "__aiter__"):
            raise TypeError(f"{codec.spec.attribute} did not return an asynchronous iterator")
        assert self._counters is not None
        send = self._send
        iterator: AsyncIterator[object] = aiter(result)
        sent = 0
        try:
            while True:
                try:
                    item = await anext(iterator)
                except StopAsyncIteration:
                    break
                watch.pause()
                head, parts = codec.item_frame(item)
                self._is_writing = True
                await write_frame(send, head, parts)
                self._is_writing = False
                sent += 1
                if not sent % ITEMS_BETWEEN_TURNS:
                    await asyncio.sleep(0)
                watch.start()
        finally:
            watch.pause()
            self._counters.items_down += sent
            aclose = getattr(iterator, "aclose", None)
            if aclose is not None:
                await aclose()
        await send.finish()
        self._peer.answers.append(send)

    def _uploads(self, codec: MethodCodec) -> _Uploads:
        assert self._counters is not None
        self._source.order = Order(REQUEST_STREAM)
        self._source.order.frame(CALL)
        return _Uploads(self._source, codec, self._counters)

    async def _fail(self, error: Exception) -> str:
        """Tell the caller; return the outcome for the counters."""
        expose = self._rpc.expose_errors
        codec = self._codec
        if codec is not None and codec.declares(error):
            outcome = ApplicationError.code
        elif isinstance(error, RpcError) and error.endpoint_id is None:
            outcome = error.code
        else:
            outcome = InternalError.code
            what = f"{self._rpc.spec.name}.{codec.spec.name if codec else '?'}"
            logger.error("%s failed\n%s", what, printable_traceback(error))
        if self._is_writing:
            if isinstance(error, DeadlineExceeded):
                code = StopCode.DEADLINE
            else:
                code = StopCode.LIMIT if self._gave_way else StopCode.CANCELLED
            self._send.reset(code)
            return outcome
        try:
            if codec is None:
                head, parts = error_frame(error, expose=expose)
            else:
                head, parts = codec.error_frame(error, expose=expose)
        except CannotSend as cannot:
            logger.error("an error of %s cannot be sent: %s", self._rpc.spec.name, cannot)
            head, parts = error_frame(InternalError("the service failed"))
        try:
            await write_frame(self._send, head, parts, finish=True)
            self._peer.answers.append(self._send)
        except _GONE as gone:
            logger.debug("nobody waits for an error: %s", gone)
        except asyncio.CancelledError:
            self._send.reset(StopCode.CANCELLED)
        return outcome


class _Uploads:
    """The items that stream up, as the method sees them."""

    def __init__(self, source: FrameSource, codec: MethodCodec, counters: MethodCounters) -> None:
        self._source = source
        self._codec = codec
        self._counters = counters

    def __aiter__(self) -> _Uploads:
        return self

    async def __anext__(self) -> object:
        try:
            frame = await self._source.next()
            if frame is None:
                raise StopAsyncIteration
            plain = self._source.unpack(frame)
        except MalformedMessage as error:
            raise InvalidArgument(error.message, hint=error.hint) from error
        except MessageTooLarge as error:
            raise ResourceExhausted(error.message, hint=error.hint) from error
        except StreamReset as error:
            raise CallCancelled("the caller gave up") from error
        self._counters.items_up += 1
        return self._codec.read_upload(plain)


def _with_middleware(
    middleware: Sequence[Middleware],
    call: Call,
    function: _Method,
    arguments: Mapping[str, object],
) -> Callable[[], Any]:
    if not middleware:
        return functools.partial(function, **arguments)

    async def innermost() -> object:
        result = function(**arguments)
        return await result if inspect.isawaitable(result) else result

    proceed: Proceed = innermost
    for layer in reversed(middleware):
        proceed = functools.partial(layer, call, proceed)
    return proceed
