"""A cable carries real UDP until it is cut."""

from __future__ import annotations

import asyncio

import pytest

from dialkey import Connection, Endpoint, Router
from dialkey.errors import BindError, DialError
from dialkey.testing import Cable

ALPN = "dialkey-test/echo"


class Echo:
    async def accept(self, connection: Connection) -> None:
        while True:
            send, recv = await connection.accept_bi()
            await send.write(await recv.read_to_end(limit=1000), finish=True)


async def test_cut_and_restored_under_a_connection() -> None:
    cable = Cable("127.0.0.1:0")
    async with (
        Endpoint.bind(transports=[cable]) as client,
        Endpoint.bind(bind="127.0.0.1:0") as server,
        Router(server) as router,
    ):
        router.accept(ALPN, Echo())
        async with await client.connect(server.addr(), ALPN) as connection:
            send, recv = await connection.open_bi()
            await send.write(b"hel")
            cable.cut()
            await send.write(b"lo", finish=True)
            answer = asyncio.create_task(recv.read_to_end(limit=1000))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(answer), 0.2)
            cable.restore()
            client.network_changed()
            assert await asyncio.wait_for(answer, 10) == b"hello"


async def test_it_can_begin_cut() -> None:
    cable = Cable("127.0.0.1:0", is_cut=True)
    async with (
        Endpoint.bind(transports=[cable]) as client,
        Endpoint.bind(bind="127.0.0.1:0", alpns=[ALPN]) as server,
    ):
        assert cable.is_cut
        with pytest.raises(DialError):
            await client.connect(server.addr(), ALPN, timeout=0.3)
        dial = asyncio.create_task(client.connect(server.addr(), ALPN, timeout=20))
        await asyncio.sleep(0)
        cable.restore()
        (await dial).close()


async def test_a_taken_port_is_told() -> None:
    async with Endpoint.bind(bind="127.0.0.1:0") as other:
        taken = str(other.addr().ip_addrs[0])
        with pytest.raises(BindError):
            await Endpoint.bind(transports=[Cable(taken)])
