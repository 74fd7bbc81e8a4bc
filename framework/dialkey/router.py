"""The router: gives each incoming connection to the handler of its protocol.

A handler is any object with ``async def accept(self, connection)``; the router runs one task of it
for each connection. How that task ends decides what becomes of the connection:

- it returns: the connection stays as it is, because the handler may have handed it on. It ends when
  either side closes it, or with the endpoint.
- it raises because the peer went away: nothing is left to do; logged at debug level.
- it raises because the peer broke the rules (`WireError`, `ProtocolViolation`, `LimitExceeded`):
  closed with `CLOSE_VIOLATION`, counted, logged as a warning.
- it raises anything else: closed with `CLOSE_INTERNAL_ERROR`, counted, logged with its traceback.

The peer learns the code and a fixed reason, never the text of the exception. The router goes on in
every case.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from signal import Signals
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeVar

import attrs

from dialkey.errors import (
    Busy,
    ConnectionClosed,
    ConnectionClosedByPeer,
    ConnectionLost,
    EndpointClosed,
    InvalidInput,
    LimitExceeded,
    LocalError,
    PluginError,
    ProtocolViolation,
    StreamReset,
    StreamStopped,
    WireError,
)
from dialkey.hooks import Answer, discard
from dialkey.opening import AsyncOnly
from dialkey.printable import printable, printable_traceback
from dialkey.signals import on_ending_signal

if TYPE_CHECKING:
    from dialkey.endpoint import Connection, Endpoint

__all__ = ["ProtocolHandler", "Router", "RouterStats"]

CLOSE_SHUTDOWN: Final = 0
"""The router shut down before the handler was done; iroh's router closes with it, too."""

CLOSE_INTERNAL_ERROR: Final = 1
CLOSE_VIOLATION: Final = 2

SHUTDOWN_GRACE_S: Final = 5.0
"""Enough to finish a request; somebody who pressed Ctrl-C does not wait much longer."""

CANCEL_GRACE_S: Final = 1.0
"""A cancelled handler only has to clean up; one that ignores the cancellation is left behind."""

_GONE: Final = (
    ConnectionClosed,
    ConnectionClosedByPeer,
    ConnectionLost,
    EndpointClosed,
    StreamReset,
    StreamStopped,
)
_VIOLATIONS: Final = (LimitExceeded, ProtocolViolation, WireError)

CANCEL_DELIVERY_S: Final = 0.5
"""Of that, for what the handler wrote to reach the peer, when a shutdown is in a hurry because it was
cancelled: a round trip and a repetition."""

logger = logging.getLogger("dialkey.router")

P = TypeVar("P")


class ProtocolHandler(Protocol):
    """What speaks one protocol. It may also have ``async def shutdown(self) -> None``.

    `shutdown` is called once when the router shuts down, before tasks are cancelled: tell peers,
    end loops, close connections that `accept` handed on.
    """

    async def accept(self, connection: Connection, /) -> None:
        """Serve one connection that has completed its handshake."""


@attrs.frozen
class RouterStats:
    """What a router has done since it started.

    Attributes:
        active: handler tasks running now.
        accepted: connections given to a handler.
        failed: handler tasks that raised for any reason except that the peer went away.
        violations: of those, the ones in which the peer broke the rules.
    """

    active: int
    accepted: int
    failed: int
    violations: int


@attrs.frozen
class _Served:
    handler: ProtocolHandler
    owner: str


class Router(AsyncOnly):
    """Dispatch the incoming connections of an endpoint by ALPN.

    Use it as an async context manager: it serves from the moment it is entered, and leaving it
    shuts down gracefully. A program that does nothing else waits in `serve`. An endpoint has
    one router at a time. An ALPN is offered to peers from the moment it is added.

    Args:
        endpoint: the bound endpoint; the router does not close it.
        grace_s: how long handlers may continue at shutdown before they are cancelled.
    """

    def __init__(self, endpoint: Endpoint, *, grace_s: float = SHUTDOWN_GRACE_S) -> None:
        self._endpoint = endpoint
        self._grace_s = grace_s
        self._served: dict[bytes, _Served] = {}
        self._collected: set[str] = set()
        self._arrivals: dict[asyncio.Task[None], tuple[str, list[Answer]]] = {}
        self._handling: dict[asyncio.Task[None], Connection] = {}
        self._accepting: asyncio.Task[None] | None = None
        self._serving = False
        self._shutting_down: asyncio.Task[None] | None = None
        self._counts: Counter[str] = Counter()
        # Whether handlers that are cancelled at the end leave time for what they wrote.
        self._delivers = True
        self._is_in_a_hurry = False
        # Handlers that were cancelled, and whose peers are still taking what they wrote.
        self._delivering: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        plugins = self._endpoint.plugins
        for name in plugins.names():
            if name in self._collected or plugins.is_installed(name):
                continue
            self._collected.add(name)
            for answer in await plugins.call(
                "dialkey_protocols",
                must_succeed=True,
                only=plugins.get(name),
                endpoint=self._endpoint,
            ):
                self._adopt(name, answer.value)
        self._offer()
        self._accept_connections()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._delivers = kind is None
        await self.shutdown()

    # --- what is served -------------------------------------------------------------------------

    def accept(self, alpn: str | bytes, handler: ProtocolHandler) -> None:
        """Serve a protocol: offer its ALPN to peers and give its connections to the handler.

        Args:
            alpn: 1 to 255 bytes of ASCII.
            handler: an object with ``async def accept(self, connection)``.

        Raises:
            InvalidInput: the ALPN is malformed or taken, or the handler is not a handler.
            LocalError: the router has shut down.
        """
        self._check_open()
        self._add(alpn, handler, f"handler {_describe(handler)}")
        self._offer()

    def add(self, plugin: P) -> P:
        """Add a plugin to the running endpoint, serve its protocols, and return it.

        Its `dialkey_endpoint_started`, and a `dialkey_protocols` that is a coroutine, start to run
        beside the caller; `serve` waits for them, and raises what they raise. A plugin that was
        passed to `Endpoint.bind` already is only returned.

        Raises:
            PluginError: it breaks a hook's contract, its ALPN is malformed or taken, or it
                implements a hook that is asked only while an endpoint binds.
            LocalError: the router has shut down.
        """
        self._check_open()
        plugins = self._endpoint.plugins
        is_new = plugins.name_of(plugin) is None
        name = plugins.register(plugin, late=is_new)
        if name in self._collected:
            return plugin
        self._collected.add(name)
        later: list[Answer] = []
        for answer in plugins.call_now(
            "dialkey_protocols", only=plugin, may_await=True, endpoint=self._endpoint
        ):
            if inspect.isawaitable(answer.value):
                later.append(answer)
            else:
                self._adopt(name, answer.value)
        if later or is_new:
            task = asyncio.create_task(
                self._arrive(plugin if is_new else None, later), name=f"dialkey-router-add-{name}"
            )
            self._arrivals[task] = (name, later)
            task.add_done_callback(self._arrived)
        self._offer()
        return plugin

    def add_installed(self, *names: str) -> tuple[str, ...]:
        """Serve the protocols of installed plugins, which are not served unasked.

        A plugin is installed when its distribution has an entry point in group ``dialkey``, and the
        endpoint was bound with ``entry_points=True``. Otherwise as `add`.

        Args:
            names: of their entry points, such as ``"ping"``; those of all that are installed if none is
                given. One that is not installed is passed over.

        Returns:
            The names of those that are there.

        Raises:
            PluginError: an ALPN is malformed or taken.
            LocalError: the router has shut down.
        """
        plugins = self._endpoint.plugins
        found = [
            name
            for name in plugins.names()
            if plugins.is_installed(name) and (not names or name in names)
        ]
        for name in found:
            self.add(plugins.get(name))
        return tuple(found)

    def alpns(self) -> tuple[bytes, ...]:
        """Return the ALPNs that are served, in the order in which they were added."""
        return tuple(self._served)

    def stats(self) -> RouterStats:
        """Return what happened so far."""
        return RouterStats(
            active=len(self._handling),
            accepted=self._counts["accepted"],
            failed=self._counts["failed"],
            violations=self._counts["violations"],
        )

    def _check_open(self) -> None:
        if self._shutting_down is not None:
            raise LocalError("this router has shut down", hint="make a new Router(endpoint)")

    def _add(self, alpn: str | bytes, handler: object, owner: str) -> None:
        key = _alpn_bytes(alpn)
        _check_handler(key, handler)
        other = self._served.get(key)
        if other is not None:
            raise InvalidInput(
                f"ALPN {key!r} is served by {other.owner} already; {owner} cannot serve it too"
            )
        self._served[key] = _Served(handler, owner)  # type: ignore[arg-type]  # checked above

    def _adopt(self, plugin: str, protocols: object) -> None:
        try:
            if not isinstance(protocols, Mapping):
                raise InvalidInput(
                    f"dialkey_protocols returned {type(protocols).__name__}",
                    hint="return a mapping from ALPN to handler",
                )
            for alpn, handler in protocols.items():
                self._add(alpn, handler, f"handler {_describe(handler)} of plugin {plugin!r}")
        except InvalidInput as error:
            raise PluginError(f"plugin {plugin!r}: {error.message}", hint=error.hint) from error

    def _offer(self) -> None:
        self._endpoint.set_alpns(self._served)

    async def _arrive(self, started: object | None, later: Iterable[Answer]) -> None:
        plugins = self._endpoint.plugins
        if started is not None:
            await plugins.call(
                "dialkey_endpoint_started",
                must_succeed=True,
                only=started,
                endpoint=self._endpoint,
            )
        for answer in later:
            self._adopt(answer.plugin, await plugins.settle("dialkey_protocols", answer))
            self._offer()

    def _arrived(self, task: asyncio.Task[None]) -> None:
        """Let go of what an arrival left; report its failure if nobody waits for it."""
        arrival = self._arrivals.get(task)
        if arrival is None or not task.done():
            return
        name, later = arrival
        for answer in later:
            discard(answer.value)
        if not self._serving and self._shutting_down is None:
            return  # `serve` will raise its failure
        del self._arrivals[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._endpoint.plugins.count_failure(
                name, "dialkey_endpoint_started", error.__cause__ or error
            )

    # --- serving --------------------------------------------------------------------------------

    async def serve(self, *, signals: bool = True) -> None:
        """Wait until the router shuts down, the endpoint closes, or the process is asked to end.

        Cancelling it stops accepting; handlers go on until the router shuts down.

        SIGTERM, and SIGHUP unless it was ignored when the process started, make it return, so that the
        ``async with`` blocks around it end in order. A signal for which the application has a
        handler of its own is left to that, and so are all of them outside the main thread.

        Args:
            signals: False to leave all signals alone.

        Raises:
            PluginError: a plugin that was added failed to start.
            Busy: `serve` runs already.
        """
        if self._serving:
            raise Busy("this router serves already")
        asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def ask(number: Signals) -> None:
            logger.info("%s: serving ends", number.name)
            if not asked.done():
                asked.set_result(None)

        with on_ending_signal(ask, only_default=True) if signals else nullcontext():
            await self._serve_until(asked)

    async def _serve_until(self, asked: asyncio.Future[None]) -> None:
        while self._arrivals and not asked.done():
            task = next(iter(self._arrivals))
            await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                del self._arrivals[task]
                task.result()
        if self._shutting_down is not None or asked.done():
            return
        accepting = self._accept_connections()
        self._serving = True
        try:
            await asyncio.wait({accepting, asked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._serving = False
            accepting.cancel()
            await asyncio.wait({accepting})
            self._accepting = None
        if not accepting.cancelled():
            accepting.result()

    def _accept_connections(self) -> asyncio.Task[None]:
        if self._accepting is None:
            self._accepting = asyncio.create_task(self._accept_all(), name="dialkey-router-accept")
        return self._accepting

    async def _accept_all(self) -> None:
        while True:
            try:
                connection = await self._endpoint.accept()
            except EndpointClosed:
                return
            if connection is None:
                return
            served = self._served.get(connection.alpn)
            if served is None:
                # An ALPN that is no longer offered, or that something else than this router set.
                logger.warning("no handler for ALPN %r", connection.alpn)
                connection.close(CLOSE_INTERNAL_ERROR, b"no handler")
                continue
            self._counts["accepted"] += 1
            task = asyncio.create_task(
                self._handle(served, connection),
                name=f"dialkey-handler-{connection.alpn!r}-{connection.remote_id.short()}",
            )
            self._handling[task] = connection
            task.add_done_callback(self._handling.pop)

    async def _handle(self, served: _Served, connection: Connection) -> None:
        try:
            await served.handler.accept(connection)
        except asyncio.CancelledError:
            try:
                if self._delivers:
                    await self._deliver(connection)
            finally:
                connection.close(CLOSE_SHUTDOWN, b"shutting down")
            raise
        except Exception as error:
            peer = connection.remote_id.short()
            causes = _leaves(error)
            if all(isinstance(cause, _GONE) for cause in causes):
                logger.debug("%s: %s: %s", served.owner, peer, causes[0])
                connection.close(CLOSE_SHUTDOWN)
            elif all(isinstance(cause, _GONE + _VIOLATIONS) for cause in causes):
                self._counts["failed"] += 1
                self._counts["violations"] += 1
                blame = next(cause for cause in causes if isinstance(cause, _VIOLATIONS))
                logger.warning("%s closes a connection from %s: %s", served.owner, peer, blame)
                connection.close(CLOSE_VIOLATION, b"protocol violation")
            else:
                self._counts["failed"] += 1
                logger.error(
                    "%s failed on a connection from %s\n%s",
                    served.owner,
                    peer,
                    printable_traceback(error),
                )
                connection.close(CLOSE_INTERNAL_ERROR, b"internal error")

    async def _deliver(self, connection: Connection) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._delivering.add(task)
        try:
            if self._is_in_a_hurry:
                await connection.delivered(CANCEL_DELIVERY_S)
            else:
                await connection.delivered()
        finally:
            self._delivering.discard(task)

    # --- shutting down --------------------------------------------------------------------------

    async def shutdown(self) -> None:
        """Stop accepting, let handlers finish within the grace period, cancel the rest.

        What cancelled handlers have written is delivered, as `Connection.delivered` does it.
        Idempotent; several callers wait for the same shutdown. Cancelling it skips what is left of
        the grace period: every handler is cancelled at once. Never raises what a handler raised.
        """
        if self._shutting_down is None:
            self._shutting_down = asyncio.create_task(self._shut_down(), name="dialkey-router-stop")
        shutting_down = self._shutting_down
        try:
            await asyncio.wait({shutting_down})
        except asyncio.CancelledError:
            self._is_in_a_hurry = True
            shutting_down.cancel()
            await asyncio.wait({shutting_down})
            raise
        if not shutting_down.cancelled():
            shutting_down.result()

    async def close(self) -> None:
        """Shut down; what `close` is for everything else."""
        await self.shutdown()

    async def _shut_down(self) -> None:
        try:
            if self._accepting is not None:
                await _end([self._accepting])
            try:
                self._endpoint.set_alpns(())
            except EndpointClosed:
                pass  # it offers nothing any more, which is what was wanted
            await self._end_arrivals()
            async with asyncio.timeout(self._grace_s):
                await self._shutdown_handlers()
                while self._handling:
                    await asyncio.wait(self._handling)
        except TimeoutError:
            logger.info("%d handlers did not finish in time", len(self._handling))
        finally:
            for task in await self._end_handlers():
                logger.warning("%s ignores its cancellation", task.get_name())
                self._handling[task].close(CLOSE_SHUTDOWN, b"shutting down")

    async def _end_handlers(self) -> set[asyncio.Task[None]]:
        """Cancel all handlers; return those that ignore it."""
        left = await _end(self._handling)
        delivering = left & self._delivering
        if delivering:
            try:
                await asyncio.wait(delivering)
            except asyncio.CancelledError:
                await _end(delivering)
                raise
        return {task for task in left - delivering if not task.done()}

    async def _end_arrivals(self) -> None:
        arrivals = dict(self._arrivals)
        await _end(arrivals)
        for task in arrivals:
            self._arrived(task)

    async def _shutdown_handlers(self) -> None:
        unique = {id(served.handler): served for served in self._served.values()}
        async with asyncio.TaskGroup() as group:
            for served in unique.values():
                shutdown: Callable[[], object] | None = getattr(served.handler, "shutdown", None)
                if shutdown is not None:
                    group.create_task(self._shutdown_handler(served.owner, shutdown))

    async def _shutdown_handler(self, owner: str, shutdown: Callable[[], object]) -> None:
        try:
            result = shutdown()
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            self._counts["failed"] += 1
            logger.error(
                "%s failed to shut down: %s: %s\n%s",
                owner,
                type(error).__name__,
                printable(str(error)),
                printable_traceback(error),
            )


def _leaves(error: BaseException) -> list[BaseException]:
    """Flatten an exception group; handlers that use `asyncio.TaskGroup` raise those."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


async def _end(tasks: Iterable[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Cancel tasks; return those that still run a moment later."""
    ending = set(tasks)
    for task in ending:
        task.cancel()
    if not ending:
        return ending
    _, left = await asyncio.wait(ending, timeout=CANCEL_GRACE_S)
    return left


def _describe(handler: object) -> str:
    return type(handler).__name__


def _alpn_bytes(alpn: object) -> bytes:
    if isinstance(alpn, str):
        key = alpn.encode("utf-8")
    elif isinstance(alpn, bytes | bytearray | memoryview):
        key = bytes(alpn)
    else:
        raise InvalidInput(f"an ALPN is text or bytes, not {type(alpn).__name__}")
    if not key.isascii():
        raise InvalidInput(f"ALPN {alpn!r} is not ASCII")
    if not 1 <= len(key) <= 255:
        raise InvalidInput(f"an ALPN has 1 to 255 bytes, not {len(key)}")
    return key


def _check_handler(alpn: bytes, handler: object) -> None:
    where = f"handler {_describe(handler)} for ALPN {alpn!r}"
    if inspect.isclass(handler):
        raise InvalidInput(
            f"the handler for ALPN {alpn!r} is a class",
            hint=f"pass an instance: {handler.__name__}()",
        )
    shape = "async def accept(self, connection): ..."
    accept = getattr(handler, "accept", None)
    if accept is None:
        raise InvalidInput(f"{where} has no method accept", hint=f"give it one: {shape}")
    _check_async(f"accept of {where}", accept, shape)
    try:
        inspect.signature(accept).bind(None)
    except TypeError as error:
        raise InvalidInput(
            f"accept of {where} does not take one connection: {error}",
            hint=f"declare it as {shape}",
        ) from error
    shutdown = getattr(handler, "shutdown", None)
    if shutdown is not None:
        _check_async(f"shutdown of {where}", shutdown, "async def shutdown(self): ...")


def _check_async(what: str, method: object, shape: str) -> None:
    if inspect.isasyncgenfunction(method):
        raise InvalidInput(f"{what} contains yield", hint=f"declare it as {shape}")
    if not inspect.iscoroutinefunction(method):
        raise InvalidInput(f"{what} is not a coroutine function", hint=f"declare it as {shape}")
