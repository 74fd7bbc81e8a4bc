"""The router on a fake endpoint: dispatch, failing handlers, shutdown, plugins."""

from __future__ import annotations

import asyncio
import functools
import logging
import types
from collections.abc import Iterable
from typing import Any, cast

import attrs
import pytest

from dialkey.errors import (
    Busy,
    ConnectionClosedByPeer,
    ConnectionLost,
    InvalidInput,
    LocalError,
    PluginError,
    WireError,
)
from dialkey.hooks import Plugins, hookimpl
from dialkey.router import Router


@attrs.define(eq=False)
class FakeConnection:
    alpn: bytes
    closed_with: list[tuple[int, bytes]] = attrs.field(factory=list)

    @property
    def remote_id(self) -> Any:
        return types.SimpleNamespace(short=lambda: "abcdef0123")

    async def delivered(self, timeout: float = 0.0) -> bool:
        return True

    def close(self, code: int = 0, reason: bytes = b"") -> None:
        self.closed_with.append((code, reason))


class FakeEndpoint:
    def __init__(self, *plugins: object) -> None:
        self.plugins = Plugins(start_timeout_s=5.0, call_timeout_s=5.0)
        for plugin in plugins:
            self.plugins.register(plugin)
        self.offered: tuple[bytes, ...] = ()
        self.queue: asyncio.Queue[FakeConnection | None] = asyncio.Queue()

    def set_alpns(self, alpns: Iterable[bytes]) -> None:
        self.offered = tuple(alpns)

    async def accept(self) -> FakeConnection | None:
        return await self.queue.get()

    def arrive(self, alpn: bytes) -> FakeConnection:
        connection = FakeConnection(alpn)
        self.queue.put_nowait(connection)
        return connection


def router_of(endpoint: FakeEndpoint, **options: float) -> Router:
    return Router(cast(Any, endpoint), **options)


class Recorder:
    """Notes its connections; `end` decides how `accept` ends."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.seen: asyncio.Queue[object] = asyncio.Queue()

    async def accept(self, connection: Any) -> None:
        self.seen.put_nowait(connection)
        if self.error is not None:
            raise self.error


class Stuck:
    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.may_end = asyncio.Event()
        self.was_cancelled = False

    async def accept(self, connection: Any) -> None:
        self.entered.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


async def until_closed(connection: FakeConnection) -> tuple[int, bytes]:
    for _ in range(100):
        if connection.closed_with:
            return connection.closed_with[0]
        await asyncio.sleep(0)
    raise AssertionError("the connection was not closed")


# --- registration ---------------------------------------------------------------------------------


async def test_alpns_are_offered_at_once_and_not_after_shutdown() -> None:
    endpoint = FakeEndpoint()
    async with router_of(endpoint) as router:
        router.accept("text/1", Recorder())
        router.accept(b"\x00bytes", Recorder())
        assert endpoint.offered == (b"text/1", b"\x00bytes") == router.alpns()
    assert endpoint.offered == ()
    with pytest.raises(LocalError, match="has shut down"):
        router.accept("late/1", Recorder())


def sync_accept(connection: object) -> None: ...


class WithAccept:
    def __init__(self, accept: object, **more: object) -> None:
        self.accept = accept
        self.__dict__.update(more)


class Generator:
    async def accept(self, connection: object) -> Any:
        yield


class NoArgument:
    async def accept(self) -> None: ...


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (WithAccept(sync_accept), r"accept of handler WithAccept.* is not a coroutine function"),
        (WithAccept(sync_accept), r"declare it as async def accept\(self, connection\)"),
        (Generator(), "contains yield"),
        (NoArgument(), "does not take one connection"),
        (object(), "has no method accept"),
        (Recorder, r"is a class \(pass an instance: Recorder\(\)\)"),
        (
            WithAccept(Recorder().accept, shutdown=lambda: None),
            "shutdown of handler WithAccept.* is not a coroutine function",
        ),
    ],
)
async def test_bad_handler_is_refused_at_registration(handler: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        router_of(FakeEndpoint()).accept("my-app/1", handler)


async def test_partial_of_a_coroutine_function_handles() -> None:
    router = router_of(FakeEndpoint())
    router.accept("my-app/1", cast(Any, WithAccept(functools.partial(Recorder().accept))))


@pytest.mark.parametrize("alpn", ["", b"", "x" * 256, "größe/1", b"\xff", 7, None])
async def test_malformed_alpn(alpn: Any) -> None:
    with pytest.raises(InvalidInput, match="ALPN"):
        router_of(FakeEndpoint()).accept(alpn, Recorder())


class Files:
    @hookimpl
    def dialkey_protocols(self, endpoint: object) -> dict[str, object]:
        return {"files/1": Recorder()}


class Shares:
    @hookimpl
    def dialkey_protocols(self, endpoint: object) -> dict[str, object]:
        return {"files/1": Recorder()}


async def test_duplicate_alpn_names_both() -> None:
    router = router_of(FakeEndpoint())
    router.accept("files/1", Stuck())
    with pytest.raises(
        InvalidInput, match="is served by handler Stuck already; handler Recorder cannot"
    ):
        router.accept(b"files/1", Recorder())
    with pytest.raises(PluginError, match=r"plugin 'Files': ALPN b'files/1' is served by handler"):
        router.add(Files())

    other = router_of(FakeEndpoint())
    other.add(Files())
    with pytest.raises(PluginError) as caught:
        other.add(Shares())
    assert "handler Recorder of plugin 'Files' already" in str(caught.value)
    assert "handler Recorder of plugin 'Shares' cannot" in str(caught.value)
    await router.shutdown()
    await other.shutdown()


# --- dispatch -------------------------------------------------------------------------------------


async def test_connections_go_to_their_handlers_and_stay_open() -> None:
    endpoint, one, two = FakeEndpoint(), Recorder(), Recorder()
    async with router_of(endpoint) as router, asyncio.TaskGroup() as group:
        router.accept("one/1", one)
        serving = group.create_task(router.serve())
        router.accept("two/1", two)
        for handler, alpn in [(one, b"one/1"), (two, b"two/1"), (one, b"one/1")]:
            connection = endpoint.arrive(alpn)
            assert await handler.seen.get() is connection
            assert connection.closed_with == []
        assert await until_closed(endpoint.arrive(b"three/1")) == (1, b"no handler")
        assert router.stats().accepted == 3
        serving.cancel()


async def test_serve_ends_with_the_endpoint() -> None:
    endpoint = FakeEndpoint()
    async with router_of(endpoint) as router:
        endpoint.queue.put_nowait(None)
        await router.serve()


async def test_serving_twice_at_once_is_an_error() -> None:
    endpoint = FakeEndpoint()
    async with router_of(endpoint) as router:
        serving = asyncio.create_task(router.serve())
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="serves already"):
            await router.serve()
        serving.cancel()
        await asyncio.wait({serving})
        endpoint.queue.put_nowait(None)
        await router.serve()
    await router.serve()


@pytest.mark.parametrize(
    ("error", "code", "failed", "violations", "level"),
    [
        (ZeroDivisionError("secret"), (1, b"internal error"), 1, 0, logging.ERROR),
        (WireError("bad varint"), (2, b"protocol violation"), 1, 1, logging.WARNING),
        (ConnectionLost("silent"), (0, b""), 0, 0, logging.DEBUG),
        (ConnectionClosedByPeer("bye", error_code=0), (0, b""), 0, 0, logging.DEBUG),
        (
            ExceptionGroup("g", [ConnectionLost("x"), ExceptionGroup("h", [WireError("y")])]),
            (2, b"protocol violation"),
            1,
            1,
            logging.WARNING,
        ),
        (
            ExceptionGroup("g", [ConnectionLost("x"), KeyError("y")]),
            (1, b"internal error"),
            1,
            0,
            logging.ERROR,
        ),
    ],
)
async def test_raising_handler_closes_its_connection_and_the_router_goes_on(
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    code: tuple[int, bytes],
    failed: int,
    violations: int,
    level: int,
) -> None:
    endpoint, healthy = FakeEndpoint(), Recorder()
    caplog.set_level(logging.DEBUG, "dialkey.router")
    async with router_of(endpoint) as router:
        router.accept("broken/1", Recorder(error))
        router.accept("healthy/1", healthy)
        serving = asyncio.create_task(router.serve())
        assert await until_closed(endpoint.arrive(b"broken/1")) == code
        connection = endpoint.arrive(b"healthy/1")
        assert await healthy.seen.get() is connection
        stats = router.stats()
        assert (stats.accepted, stats.failed, stats.violations) == (2, failed, violations)
        assert [record.levelno for record in caplog.records] == [level]
        assert "abcdef0123" in caplog.text
    await serving


# --- shutdown -------------------------------------------------------------------------------------


async def test_shutdown_lets_handlers_finish() -> None:
    class Polite(Stuck):
        async def shutdown(self) -> None:
            self.may_end.set()

    endpoint, handler = FakeEndpoint(), Polite()
    async with router_of(endpoint) as router:
        router.accept("a/1", handler)
        router.accept("b/1", handler)
        serving = asyncio.create_task(router.serve())
        connection = endpoint.arrive(b"a/1")
        await handler.entered.wait()
    await serving
    assert not handler.was_cancelled
    assert connection.closed_with == []
    assert router.stats().active == 0


async def test_after_the_grace_period_handlers_are_cancelled() -> None:
    endpoint, handler = FakeEndpoint(), Stuck()
    async with router_of(endpoint, grace_s=0.0) as router:
        router.accept("a/1", handler)
        serving = asyncio.create_task(router.serve())
        connection = endpoint.arrive(b"a/1")
        await handler.entered.wait()
    await serving
    assert handler.was_cancelled
    assert connection.closed_with == [(0, b"shutting down")]


async def test_a_handler_that_ignores_cancellation_does_not_stop_the_shutdown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dialkey.router.CANCEL_GRACE_S", 0.0)
    free = asyncio.Event()

    class Stubborn(Stuck):
        async def accept(self, connection: Any) -> None:
            self.entered.set()
            while not free.is_set():
                try:
                    await free.wait()
                except asyncio.CancelledError:
                    continue

    endpoint, handler = FakeEndpoint(), Stubborn()
    async with router_of(endpoint, grace_s=0.0) as router:
        router.accept("a/1", handler)
        serving = asyncio.create_task(router.serve())
        connection = endpoint.arrive(b"a/1")
        await handler.entered.wait()
    assert connection.closed_with == [(0, b"shutting down")]
    free.set()
    await serving


async def test_cancelling_the_shutdown_skips_the_grace_period() -> None:
    endpoint, handler = FakeEndpoint(), Stuck()
    router = router_of(endpoint, grace_s=3600.0)
    await router.__aenter__()
    router.accept("a/1", handler)
    serving = asyncio.create_task(router.serve())
    endpoint.arrive(b"a/1")
    await handler.entered.wait()
    stopping = asyncio.create_task(router.shutdown())
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait({stopping})
    assert handler.was_cancelled
    await serving
    await router.shutdown()


async def test_failing_shutdown_is_logged_and_the_others_still_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended: list[str] = []

    class Broken(Recorder):
        async def shutdown(self) -> None:
            raise OSError("disk")

    class Well(Recorder):
        async def shutdown(self) -> None:
            await asyncio.sleep(0)
            ended.append("well")

    async with router_of(FakeEndpoint()) as router:
        router.accept("broken/1", Broken())
        router.accept("well/1", Well())
    assert ended == ["well"]
    assert "handler Broken failed to shut down: OSError: disk" in caplog.text


async def test_shutdown_without_serve_and_twice() -> None:
    router = router_of(FakeEndpoint())
    await asyncio.gather(router.shutdown(), router.shutdown())
    await router.shutdown()


# --- plugins --------------------------------------------------------------------------------------


async def test_plugins_of_the_endpoint_are_collected_once() -> None:
    files = Files()
    endpoint = FakeEndpoint(files)
    async with router_of(endpoint) as router:
        assert endpoint.offered == (b"files/1",)
        assert router.add(files) is files


class Late:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.ran: list[str] = []
        self.started = asyncio.Event()

    @hookimpl
    async def dialkey_endpoint_started(self, endpoint: object) -> None:
        await asyncio.sleep(0)
        self.started.set()
        if self.error is not None:
            raise self.error
        self.ran.append("started")

    @hookimpl
    async def dialkey_protocols(self, endpoint: object) -> dict[str, object]:
        await asyncio.sleep(0)
        self.ran.append("protocols")
        return {"late/1": Recorder()}


@pytest.mark.parametrize("serving_before", [False, True])
async def test_added_plugin_is_started_and_its_awaitable_protocols_served(
    serving_before: bool,
) -> None:
    endpoint, late = FakeEndpoint(), Late()
    async with router_of(endpoint) as router:
        serving = asyncio.create_task(router.serve())
        if serving_before:
            await asyncio.sleep(0)
        assert router.add(late) is late
        assert router.add(late) is late
        await until_closed(endpoint.arrive(b"no/1"))
        await late.started.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        assert endpoint.offered == (b"late/1",)
        assert late.ran == ["started", "protocols"]
        assert endpoint.plugins.failures() == {}
    await serving


async def test_added_plugin_that_fails_to_start_fails_serve_by_name() -> None:
    async with router_of(FakeEndpoint()) as router:
        router.add(Late(OSError("no disk")))
        with pytest.raises(
            PluginError, match="'Late' failed in hook dialkey_endpoint_started: OSError: no disk"
        ):
            await router.serve()


@pytest.mark.parametrize("waits", [False, True])
async def test_plugin_that_fails_while_serving_or_unserved_is_counted(waits: bool) -> None:
    endpoint, late = FakeEndpoint(), Late(OSError("no disk"))
    async with router_of(endpoint) as router:
        serving = asyncio.create_task(router.serve()) if waits else None
        await asyncio.sleep(0)
        router.add(late)
        await late.started.wait()
    assert endpoint.plugins.failures() == {("Late", "dialkey_endpoint_started"): 1}
    if serving:
        await serving


@pytest.mark.parametrize("value", [["files/1"], {"files/1": object()}, {"": Recorder()}])
async def test_bad_protocols_name_the_plugin(value: object) -> None:
    bad = types.SimpleNamespace(dialkey_protocols=lambda endpoint: value)
    with pytest.raises(PluginError, match="plugin 'SimpleNamespace'"):
        await router_of(FakeEndpoint(bad)).__aenter__()


async def test_plugin_for_binding_only_comes_too_late() -> None:
    relay = types.SimpleNamespace(dialkey_transports=lambda endpoint: [])
    with pytest.raises(PluginError, match=r"Endpoint.bind\(plugins="):
        router_of(FakeEndpoint()).add(relay)
