"""Calling: a typed stand-in for a service that runs elsewhere."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterable, Callable, Coroutine, Generator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

import attrs

from dialkey.errors import InvalidInput
from dialkey_rpc.channel import END, Attempts, CallOptions, Channel, Exchange, outcome_of, within
from dialkey_rpc.checking import an
from dialkey_rpc.codec import SCHEMA, MethodCodec, ServiceCodec, compile_service
from dialkey_rpc.context import checked_timeout
from dialkey_rpc.errors import ServiceDefinitionError
from dialkey_rpc.frames import RpcLimits, StopCode
from dialkey_rpc.limits import MAX_RPC_METADATA_ENTRIES
from dialkey_rpc.metrics import MethodStats
from dialkey_rpc.retry import Reconnect
from dialkey_rpc.schema import Schema

if TYPE_CHECKING:
    from dialkey import Endpoint
    from dialkey.identity import Remote

__all__ = [
    "Connecting",
    "StreamCall",
    "close",
    "connect",
    "schema",
    "service_of",
    "stats",
    "with_options",
]

S = TypeVar("S")


def connect(
    service: Callable[..., S],
    endpoint: Endpoint,
    remote: Remote,
    *,
    name: str | None = None,
    timeout: float | None = None,
    metadata: Mapping[str, str] | None = None,
    reconnect: Reconnect | None = None,
    limits: RpcLimits | None = None,
) -> Connecting[S]:
    """Dial a service; return a stand-in on which its methods can be called.

    ``client = await connect(Calculator, endpoint, ticket)``, or ``async with connect(…) as client``,
    which closes it at the end. To type checkers the client is a `Calculator`; what it really has are
    the methods that can be called from afar. When the connection is lost, the next call dials again.

    Args:
        service: its class, an abstract class, or a `typing.Protocol`.
        endpoint: ours.
        remote: who serves it: a ticket, an address, an endpoint id, or one of them as text.
        name: overrides the name of the service.
        timeout: how long each call may take, seconds; None, infinity and more than thirty years mean
            no limit. See also `deadline`.
        metadata: text by text, sent with each call.
        reconnect: when to repeat calls.
        limits: what the service may send.

    Raises:
        ServiceDefinitionError: the class cannot be a service.
        DialkeyError: when it is awaited, as `Endpoint.connect`.
    """
    if not isinstance(service, type):
        raise ServiceDefinitionError(
            f"a service is a class, not {service!r}", hint="pass the class, not an instance"
        )
    codec = compile_service(service, name)
    channel = Channel(
        endpoint,
        remote,
        codec,
        reconnect=reconnect or Reconnect(),
        limits=limits or RpcLimits(),
        chance=random.Random(),
    )
    options = CallOptions(checked_timeout(timeout), _checked_metadata(metadata or {}))
    return Connecting(channel, cast("S", client_class(codec)(channel, options)))


class Connecting(Generic[S]):
    """A client about to be connected: await it, or enter it."""

    def __init__(self, channel: Channel, client: S) -> None:
        self._channel = channel
        self._client = client

    def __await__(self) -> Generator[Any, None, S]:
        return self._dial().__await__()

    async def __aenter__(self) -> S:
        return await self._dial()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._channel.close()

    async def _dial(self) -> S:
        await self._channel.connection()
        return self._client


# --- about clients ------------------------------------------------------------------------------


async def close(client: object) -> None:
    """Close a client's connection, also for those made of it by `with_options`. Idempotent."""
    await _channel_of(client)[0].close()


def with_options(
    client: S, *, timeout: float | None = None, metadata: Mapping[str, str] | None = None
) -> S:
    """Return a client on the same connection with other options; those not given stay.

    Args:
        client: what `connect` returned.
        timeout: how long each call may take, seconds; ``math.inf`` takes a limit away.
        metadata: added to what the client has.
    """
    channel, options = _channel_of(client)
    if timeout is not None:
        options = attrs.evolve(options, timeout_s=checked_timeout(timeout))
    if metadata:
        merged = _checked_metadata({**options.metadata, **metadata})
        options = attrs.evolve(options, metadata=merged)
    make = cast("Callable[[Channel, CallOptions], S]", type(client))
    return make(channel, options)


async def schema(client: object) -> Schema:
    """Ask what the service offers. Raises as every call."""
    channel, options = _channel_of(client)
    plain = await channel.unary(SCHEMA, {}, None, options)
    return Schema.from_wire(plain)


def stats(client: object) -> Mapping[str, MethodStats]:
    """Return what a client's calls did so far, by method."""
    channel, _ = _channel_of(client)
    return {name: counters.stats() for name, counters in channel.counters.items()}


def service_of(client: object) -> str:
    """Return the name of the service that a client calls."""
    return _channel_of(client)[0].codec.spec.name


def _channel_of(client: object) -> tuple[Channel, CallOptions]:
    if not isinstance(client, _Client):
        raise InvalidInput(
            f"{an(type(client).__name__)} is not a client", hint="pass what connect() returned"
        )
    return client._channel, client._options


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidInput(f"metadata is text, not {key!r}: {value!r}")
    if len(metadata) > MAX_RPC_METADATA_ENTRIES:
        raise InvalidInput(f"{len(metadata)} entries of metadata; {MAX_RPC_METADATA_ENTRIES} fit")
    return dict(metadata)


# --- stand-ins ----------------------------------------------------------------------------------


class _Client:
    """What all stand-ins have in common."""

    __slots__ = ("_channel", "_options")

    def __init__(self, channel: Channel, options: CallOptions) -> None:
        self._channel = channel
        self._options = options

    def __repr__(self) -> str:
        return f"<client of {self._channel.codec.spec.name}>"

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"{name!r} cannot be reached from here: a client has only the methods that travel, "
            "public `async def` ones without @local"
        )


@functools.lru_cache(maxsize=256)
def client_class(codec: ServiceCodec) -> type[_Client]:
    """Return the class of stand-ins for a service."""
    body: dict[str, object] = {"__slots__": ()}
    for each in codec.methods.values():
        make = _stream_stub if each.spec.streams_down else _unary_stub
        stub = make(each)
        stub.__name__ = each.spec.attribute
        stub.__qualname__ = f"{codec.spec.name}.{each.spec.attribute}"
        stub.__doc__ = each.spec.doc
        body[each.spec.attribute] = stub
    return type(f"{codec.spec.name}Client", (_Client,), body)


_Stub = Callable[..., Any]


def _unary_stub(codec: MethodCodec) -> _Stub:
    def call(self: _Client, *args: object, **kwargs: object) -> Coroutine[Any, Any, object]:
        values, upload = codec.bind(args, kwargs)
        return self._channel.unary(codec, values, _checked_upload(upload), self._options)

    return call


def _stream_stub(codec: MethodCodec) -> _Stub:
    def call(self: _Client, *args: object, **kwargs: object) -> StreamCall:
        values, upload = codec.bind(args, kwargs)
        return StreamCall(self._channel, codec, values, _checked_upload(upload), self._options)

    return call


def _checked_upload(upload: object) -> AsyncIterable[object] | None:
    if upload is not None and not hasattr(upload, "__aiter__"):
        raise TypeError(f"{an(type(upload).__name__)} is not an asynchronous iterator")
    return cast("AsyncIterable[object] | None", upload)


# --- what streams down --------------------------------------------------------------------------


class StreamCall:
    """A call whose result streams down, as its caller sees it: an asynchronous iterator.

    Like a generator it starts when the first item is asked for. It ends with the last item, an
    error, `aclose`, or when nobody holds it any more; then the service is told to stop. Use it from
    one task at a time. Awaiting it returns it, for services that declare a coroutine which returns
    an iterator.
    """

    def __init__(
        self,
        channel: Channel,
        codec: MethodCodec,
        values: dict[str, object],
        upload: AsyncIterable[object] | None,
        options: CallOptions,
    ) -> None:
        self._channel = channel
        self._codec = codec
        self._values = values
        self._upload = upload
        self._options = options
        self._exchange: Exchange | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = 0.0
        self._at: float | None = None
        self._is_over = False
        self._is_busy = False

    def __await__(self) -> Generator[Any, None, StreamCall]:
        return self
        yield

    def __aiter__(self) -> StreamCall:
        return self

    async def __anext__(self) -> object:
        if self._is_over:
            raise StopAsyncIteration
        if self._is_busy:
            raise RuntimeError("another task is waiting for the next item of this stream")
        self._is_busy = True
        try:
            item = await self._next()
        except BaseException as error:
            self._end(outcome_of(error, self._codec), StopCode.CANCELLED)
            raise
        finally:
            self._is_busy = False
        if item is END:
            self._end("ok", StopCode.DONE)
            raise StopAsyncIteration
        self._channel.counters[self._codec.spec.name].items_down += 1
        return item

    async def _next(self) -> object:
        exchange = self._exchange
        if exchange is not None:
            if self._at is None:
                return await exchange.next()
            return await within(self._at, exchange.next())
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._channel.counters[self._codec.spec.name].active += 1
        self._at = self._channel.deadline(self._options)
        arguments = self._codec.plain_arguments(self._values)
        attempts = Attempts(
            self._channel, self._codec, arguments, self._upload, self._at, self._options
        )
        self._exchange, item = await attempts.first()
        return item

    async def aclose(self) -> None:
        """End the call; the service is told to stop. Idempotent."""
        self._end("cancelled", StopCode.CANCELLED)

    def _end(self, outcome: str, code: int) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._exchange is not None:
            self._exchange.close(code)
        if self._loop is not None:
            counters = self._channel.counters[self._codec.spec.name]
            counters.end(outcome, self._loop.time() - self._started)

    def __del__(self) -> None:
        if self._is_over or self._loop is None or self._loop.is_closed():
            return
        # A loop left by `break` gets here, perhaps in another thread, so not at once.
        self._loop.call_soon_threadsafe(self._end, "cancelled", StopCode.CANCELLED)
