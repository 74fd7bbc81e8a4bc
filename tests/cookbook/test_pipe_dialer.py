"""The connecting side of the pipe: many at once, and far sides that go away or say nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from dialkey_pipe import ALPN, Dialer, Forwarder, forwarding
from dialkey_pipe.protocol import greet

from dialkey import Connection, Endpoint, Router
from dialkey.errors import ConnectionLost, LocalError
from dialkey.identity import SecretKey
from dialkey.testing import MemoryNetwork, in_virtual_time

KEY = SecretKey(bytes(range(32)))


class EchoNear:
    """A far program that says back what it hears."""

    def __init__(self) -> None:
        self._heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self, limit: int) -> bytes:
        return await self._heard.get()

    async def write(self, data: bytes) -> None:
        self._heard.put_nowait(data)

    async def write_end(self) -> None:
        self._heard.put_nowait(b"")

    async def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


class EchoTarget:
    async def open(self) -> EchoNear:
        return EchoNear()


class Counting(Forwarder):
    """A forwarder that counts connections."""

    def __init__(self) -> None:
        super().__init__(EchoTarget())  # type: ignore[arg-type]
        self.connections = 0

    async def accept(self, connection: Connection) -> None:
        self.connections += 1
        await super().accept(connection)


@contextlib.asynccontextmanager
async def far(network: MemoryNetwork, handler: object) -> AsyncIterator[Endpoint]:
    async with (
        Endpoint.bind(
            transports=[network.transport("far")], secret_key=KEY, entry_points=False
        ) as endpoint,
        Router(endpoint, grace_s=0.0) as router,
    ):
        router.accept(ALPN, handler)  # type: ignore[arg-type]
        yield endpoint


@contextlib.asynccontextmanager
async def near(network: MemoryNetwork, remote: Endpoint) -> AsyncIterator[Dialer]:
    async with Endpoint.bind(
        transports=[network.transport("near")], entry_points=False
    ) as endpoint:
        yield Dialer(endpoint, remote.addr())


async def ask(dialer: Dialer, holding: contextlib.AsyncExitStack) -> bytes:
    """Open a pipe that stays open, say something, and return what comes back."""
    send, recv = await holding.enter_async_context(dialer.pipe())
    await send.write(b"hello")
    return await recv.read_exactly(5)


@in_virtual_time
async def test_idle_pipes_keep_nobody_out() -> None:
    network, handler = MemoryNetwork(seed=1), Counting()
    async with (
        far(network, handler) as remote,
        near(network, remote) as dialer,
        contextlib.AsyncExitStack() as holding,
    ):
        for _ in range(30):  # ordinary short ones before
            async with contextlib.AsyncExitStack() as short:
                assert await ask(dialer, short) == b"hello"
        for _ in range(200):
            assert await ask(dialer, holding) == b"hello"
        assert 3 <= handler.connections <= 5
        answers = await asyncio.gather(*(ask(dialer, holding) for _ in range(100)))
        assert answers == [b"hello"] * 100


@in_virtual_time
async def test_who_comes_too_many_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "PIPES_PER_CONNECTION", 3)
    monkeypatch.setattr(forwarding, "MAX_CONNECTIONS", 2)
    network = MemoryNetwork(seed=1)
    async with far(network, Counting()) as remote, near(network, remote) as dialer:
        async with contextlib.AsyncExitStack() as holding:
            for _ in range(6):
                await ask(dialer, holding)
            with pytest.raises(LocalError, match="6 connections are forwarded already"):
                await ask(dialer, holding)
        async with contextlib.AsyncExitStack() as later:
            assert await ask(dialer, later) == b"hello"


@in_virtual_time
async def test_the_first_pipe_after_a_restart_loses_nothing() -> None:
    network = MemoryNetwork(seed=1)
    async with contextlib.AsyncExitStack() as first, contextlib.AsyncExitStack() as stack:
        old = await first.enter_async_context(far(network, Counting()))
        dialer = await stack.enter_async_context(near(network, old))
        async with contextlib.AsyncExitStack() as before:
            await ask(dialer, before)
        # As after kill -9: nothing that the old process says is heard any more.
        network.link("far", "near").down()
        await first.aclose()
        network.link("far", "near").up()
        async with far(network, Counting()), contextlib.AsyncExitStack() as after:
            assert await ask(dialer, after) == b"hello"


class Silent:
    """A far side that takes no pipe."""

    async def accept(self, connection: Connection) -> None:
        _, recv = await connection.accept_bi()
        await greet(recv)
        await connection.closed()


@in_virtual_time
async def test_a_far_side_that_takes_nothing_is_said_to() -> None:
    network = MemoryNetwork(seed=1)
    loop = asyncio.get_running_loop()
    async with far(network, Silent()) as remote, near(network, remote) as dialer:
        began = loop.time()
        with pytest.raises(ConnectionLost, match="does not accept the connection"):
            async with dialer.pipe():
                pass
        assert loop.time() - began < forwarding.FRESH_PATIENCE_S + 1
