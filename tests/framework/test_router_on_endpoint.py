"""The router on real endpoints: what the peer sees."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from dialkey import Connection, Endpoint, Refusal, Router, hookimpl
from dialkey.errors import (
    AlpnMismatch,
    Busy,
    ConnectionClosedByPeer,
    DialkeyError,
    PluginError,
    WireError,
)


class Echo:
    def __init__(self) -> None:
        self.connections: list[Connection] = []

    async def accept(self, connection: Connection) -> None:
        self.connections.append(connection)
        while True:
            send, recv = await connection.accept_bi()
            await send.write(await recv.read_to_end(limit=1000), finish=True)


class Raising:
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def accept(self, connection: Connection) -> None:
        await connection.accept_bi()
        raise self.error


async def echo(connection: Connection, text: bytes) -> bytes:
    send, recv = await connection.open_bi()
    await send.write(text, finish=True)
    return await recv.read_to_end(limit=1000)


@contextlib.asynccontextmanager
async def endpoint(*plugins: object) -> AsyncIterator[Endpoint]:
    async with Endpoint.bind(bind="127.0.0.1:0", entry_points=False, plugins=plugins) as bound:
        yield bound


@contextlib.asynccontextmanager
async def serving(router: Router) -> AsyncIterator[None]:
    task = asyncio.create_task(router.serve())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_two_protocols_and_an_unknown_one() -> None:
    async with endpoint() as here, endpoint() as there, Router(here) as router, serving(router):
        router.accept("one/1", Echo())
        router.accept("two/1", Echo())
        for alpn in ("one/1", "two/1"):
            async with await there.connect(here.addr(), alpn) as connection:
                assert await echo(connection, alpn.encode()) == alpn.encode()
        with pytest.raises(AlpnMismatch):
            await there.connect(here.addr(), "three/1")
        assert router.stats().accepted == 2


async def test_connections_that_came_before_serve_wait_for_it() -> None:
    async with endpoint() as here, endpoint() as there, Router(here) as router:
        router.accept("echo/1", Echo())
        async with await there.connect(here.addr(), "echo/1") as connection:
            asking = asyncio.create_task(echo(connection, b"early"))
            async with serving(router):
                assert await asking == b"early"


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (KeyError("secret"), 1, b"internal error"),
        (WireError("nonsense"), 2, b"protocol violation"),
    ],
)
async def test_peer_sees_code_and_fixed_reason_and_the_router_goes_on(
    error: Exception, code: int, reason: bytes
) -> None:
    async with endpoint() as here, endpoint() as there, Router(here) as router, serving(router):
        router.accept("broken/1", Raising(error))
        router.accept("echo/1", Echo())
        connection = await there.connect(here.addr(), "broken/1")
        send, _ = await connection.open_bi()
        await send.write(b"x")
        closed = await connection.closed()
        assert isinstance(closed, ConnectionClosedByPeer)
        assert (closed.error_code, closed.reason) == (code, reason)
        async with await there.connect(here.addr(), "echo/1") as healthy:
            assert await echo(healthy, b"still here") == b"still here"
        assert router.stats().failed == 1


async def test_handlers_end_quietly_when_peers_leave() -> None:
    handler = Echo()
    async with endpoint() as here, endpoint() as there, Router(here) as router, serving(router):
        router.accept("echo/1", handler)
        async with await there.connect(here.addr(), "echo/1") as connection:
            await echo(connection, b"x")
        await handler.connections[0].closed()
    assert router.stats().active == 0
    assert router.stats().failed == 0


async def test_shutdown_closes_what_still_runs_and_refuses_what_comes() -> None:
    async with endpoint() as here, endpoint() as there:
        async with Router(here, grace_s=0.0) as router, serving(router):
            router.accept("echo/1", Echo())
            connection = await there.connect(here.addr(), "echo/1")
            await echo(connection, b"x")
        closed = await connection.closed()
        assert isinstance(closed, ConnectionClosedByPeer)
        assert (closed.error_code, closed.reason) == (0, b"shutting down")
        with pytest.raises(DialkeyError):
            await there.connect(here.addr(), "echo/1")


class Door:
    """Lets nobody in, one way or another."""

    @hookimpl
    async def dialkey_after_handshake(self, connection: Connection) -> Refusal:
        return Refusal(403, "not on the list")


class Hole:
    @hookimpl
    def dialkey_after_handshake(self, connection: Connection) -> Refusal | None:
        raise OSError("the list is gone")


@pytest.mark.parametrize(
    ("plugin", "code", "reason"),
    [(Door(), 403, b"not on the list"), (Hole(), 1, b"internal error")],
)
async def test_filters_refuse_before_a_handler_sees_the_connection(
    plugin: object, code: int, reason: bytes
) -> None:
    handler = Echo()
    async with (
        endpoint(plugin) as here,
        endpoint() as there,
        Router(here) as router,
        serving(router),
    ):
        router.accept("echo/1", handler)
        # The refusal comes after the handshake, which for the dialler may be over by then.
        connection = await there.connect(here.addr(), "echo/1")
        closed = await connection.closed()
        assert isinstance(closed, ConnectionClosedByPeer)
        assert (closed.error_code, closed.reason) == (code, reason)
        assert handler.connections == []


async def test_plugin_that_fails_at_start_is_named_and_closed() -> None:
    ran: list[str] = []

    class Store:
        @hookimpl
        def dialkey_endpoint_started(self) -> None:
            raise OSError("no disk")

        @hookimpl
        async def dialkey_endpoint_closing(self) -> None:
            ran.append("closing")

    with pytest.raises(PluginError, match="'Store' failed in hook dialkey_endpoint_started"):
        await Endpoint.bind(bind="127.0.0.1:0", entry_points=False, plugins=[Store()])
    assert ran == ["closing"]


async def test_it_serves_from_the_moment_it_is_entered() -> None:
    async with endpoint() as served, endpoint() as client, Router(served) as router:
        router.accept("echo", Echo())
        async with await client.connect(served.addr(), "echo") as connection:
            assert await echo(connection, b"hello") == b"hello"
            # `serve` is but where one waits, and can be called late.
            serving = asyncio.create_task(router.serve())
            assert await echo(connection, b"again") == b"again"
            await asyncio.sleep(0)
            with pytest.raises(Busy, match="serves already"):
                await router.serve()
        await router.shutdown()
        await serving


class Installed:
    """What an entry point of a distribution gives."""

    def __init__(self, *alpns: str) -> None:
        self.alpns = alpns

    @hookimpl
    async def dialkey_protocols(self, endpoint: Endpoint) -> dict[str, Echo]:
        return {alpn: Echo() for alpn in self.alpns}


@contextlib.asynccontextmanager
async def with_installed(
    monkeypatch: pytest.MonkeyPatch, **plugins: Installed
) -> AsyncIterator[Endpoint]:
    found = [
        SimpleNamespace(name=name, value=f"{name}_module", load=lambda plugin=plugin: plugin)
        for name, plugin in plugins.items()
    ]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: found)
    async with Endpoint.bind(bind="127.0.0.1:0") as bound:
        yield bound


async def test_installed_protocols_are_served_only_where_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugins = {"one": Installed("one/1"), "two": Installed("two/1", "two/2")}
    async with with_installed(monkeypatch, **plugins) as here, Router(here) as router:
        assert router.alpns() == ()
        assert router.add_installed("two", "absent") == ("two",)
        async with serving(router), endpoint() as there:
            async with await there.connect(here.addr(), "two/2") as connection:
                assert await echo(connection, b"hello") == b"hello"
            with pytest.raises(AlpnMismatch):
                await there.connect(here.addr(), "one/1")
            assert router.alpns() == (b"two/1", b"two/2")
            assert router.add_installed("two") == ("two",), "twice is once"
        assert router.add_installed() == ("one", "two")


async def test_a_protocol_of_ones_own_may_have_the_name_of_an_installed_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with with_installed(monkeypatch, one=Installed("one/1")) as here, Router(here) as router:
        router.accept("one/1", Echo())
        assert router.alpns() == (b"one/1",)


async def test_an_installed_plugin_that_is_passed_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin = Installed("one/1")
    found = [SimpleNamespace(name="one", value="one_module", load=lambda: plugin)]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: found)
    async with (
        Endpoint.bind(bind="127.0.0.1:0", plugins=[plugin]) as here,
        Router(here) as router,
    ):
        assert router.alpns() == (b"one/1",)
