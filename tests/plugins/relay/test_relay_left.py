"""A connection that runs only over a relay which is gone: both sides find the next, no stream notices."""

from __future__ import annotations

import asyncio
import contextlib

import dialkey_relay.plugin as relay_plugin
from dialkey import Endpoint, MemoryDirectory
from dialkey.errors import DialkeyError
from dialkey.presets import Preset
from dialkey_relay import Everyone, RelayOptions, RelayServer

ALPN = "relay-left/1"
OPEN = RelayOptions(client_rate=None, accept_rate_per_address=None)


async def test_the_home_relay_is_killed_for_good_under_traffic() -> None:
    directory = MemoryDirectory()
    async with contextlib.AsyncExitStack() as stack:
        servers = {}
        for _ in range(2):
            server = await stack.enter_async_context(RelayServer([Everyone()], OPEN))
            servers[server.url] = server
        bob = await stack.enter_async_context(
            Endpoint.bind(
                preset=Preset("relayed", relays=tuple(servers), udp=False),
                plugins=[relay_plugin],
                entry_points=False,
                alpns=[ALPN],
                address_lookups=[directory.lookup()],
            )
        )
        await bob.online(20)
        async with asyncio.timeout(20):
            while directory.get(bob.id) is None:  # noqa: ASYNC110  (published by another task)
                await asyncio.sleep(0.01)
        (home,) = bob.addr().relay_urls
        alice = await stack.enter_async_context(
            Endpoint.bind(
                preset=Preset("relayed", relays=(), udp=False),
                plugins=[relay_plugin],
                entry_points=False,
                address_lookups=[directory.lookup()],
            )
        )
        here = await alice.connect(bob.id, ALPN)
        there = await bob.accept()
        assert there is not None

        async def echo() -> None:
            with contextlib.suppress(DialkeyError):
                send, recv = await there.accept_bi()
                while data := await recv.read(100):
                    await send.write(data)

        echoing = asyncio.create_task(echo())
        send, recv = await here.open_bi()
        killed = False
        async with asyncio.timeout(60):
            for number in range(200):
                await send.write(b"%4d" % number)
                if number == 50:
                    await servers[str(home)].close()
                    killed = True
                assert await recv.read_exactly(4) == b"%4d" % number
        assert killed
        (new_home,) = bob.addr().relay_urls
        assert new_home != home
        assert any(str(new_home) in str(each.remote) for each in here.paths())
        here.close()
        await echoing
