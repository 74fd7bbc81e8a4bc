"""A connection over nothing but a relay that is gone, or was left, finds the next; no stream notices."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

import dialkey_relay.plugin as relay_plugin
from dialkey import Endpoint, MemoryDirectory, SecretKey
from dialkey.errors import DialkeyError
from dialkey.presets import Preset
from dialkey_relay import AllowList, RelayConfig, RelayOptions, RelayServer
from dialkey_relay.client.plugin import relay_of

ALPN = "relay-left/1"
OPEN = RelayOptions(client_rate=None, accept_rate_per_address=None)


async def _bind(
    stack: contextlib.AsyncExitStack,
    directory: MemoryDirectory,
    key: SecretKey,
    relays: tuple[str, ...],
) -> Endpoint:
    endpoint = await stack.enter_async_context(
        Endpoint.bind(
            secret_key=key,
            preset=Preset("relayed", relays=relays, udp=False),
            plugins=[relay_plugin],
            entry_points=False,
            alpns=[ALPN],
            address_lookups=[directory.lookup()],
        )
    )
    if relays:
        await endpoint.online(20)
        async with asyncio.timeout(20):
            while directory.get(endpoint.id) is None:  # noqa: ASYNC110  (published by another task)
                await asyncio.sleep(0.01)
    return endpoint


@pytest.mark.parametrize(
    "leaving", ["relay killed", "relay killed, both at home there", "peer left"]
)
async def test_the_peer_is_found_at_its_next_home_under_traffic(leaving: str) -> None:
    """The relay is gone for good; or it is well, and the peer is at another one now."""
    directory = MemoryDirectory()
    async with contextlib.AsyncExitStack() as stack:
        servers = {}
        rules = {}
        keys = SecretKey.generate(), SecretKey.generate()
        for _ in range(2):
            rule = AllowList([key.id for key in keys])
            server = await stack.enter_async_context(RelayServer([rule], OPEN))
            servers[server.url], rules[server.url] = server, rule
        bob = await _bind(stack, directory, keys[1], tuple(servers))
        (home,) = bob.addr().relay_urls
        both = leaving.endswith("both at home there")
        # Alice's own home is Bob's where she has one: the nearest is a matter of chance here.
        alice = await _bind(stack, directory, keys[0], (str(home),) if both else ())
        here = await alice.connect(bob.id, ALPN)
        there = await bob.accept()
        assert there is not None
        if both:
            relay_of(alice).insert(RelayConfig(next(url for url in servers if url != str(home))))

        async def echo() -> None:
            with contextlib.suppress(DialkeyError):
                send, recv = await there.accept_bi()
                while data := await recv.read(100):
                    await send.write(data)

        echoing = asyncio.create_task(echo())
        send, recv = await here.open_bi()
        async with asyncio.timeout(60):
            for number in range(200):
                await send.write(b"%4d" % number)
                if number == 50:
                    if leaving == "peer left":
                        # As a relay that a provider has closed to him; alice stays connected.
                        rules[str(home)].endpoint_ids = frozenset([alice.id])
                        assert servers[str(home)].recheck() == 1
                    else:
                        await servers[str(home)].close()
                assert await recv.read_exactly(4) == b"%4d" % number
        (new_home,) = bob.addr().relay_urls
        assert new_home != home
        if both:
            await alice.online(20)
            assert alice.addr().relay_urls == (new_home,)
        assert any(str(new_home) in str(each.remote) for each in here.paths())
        here.close()
        await echoing
