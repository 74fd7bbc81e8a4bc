"""The real wheel and we meet at a relay, and go over to a direct path by hole punching, in both roles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import iroh
import pytest
from wheel_peer import accept, id_of

from dialkey import Connection, Endpoint
from dialkey.endpoint.paths import PathOpened, PathSelected
from dialkey.identity import EndpointAddr, RelayAddr, RelayUrl
from dialkey_relay.access import Everyone
from dialkey_relay.server.server import RelayOptions, RelayServer

pytestmark = pytest.mark.interop

ALPN = "punch/1"
LIMIT_S = 20.0


@asynccontextmanager
async def met(*, we_dial: bool) -> AsyncIterator[tuple[Connection, iroh.Connection]]:
    """A connection that began over the relay: neither side was told an address of the other."""
    iroh.iroh_ffi.uniffi_set_event_loop(asyncio.get_running_loop())
    options = RelayOptions(client_rate=None, accept_rate_per_address=None)
    async with RelayServer([Everyone()], options) as relay:
        url = str(relay.url)
        rust = await iroh.Endpoint.bind(
            iroh.EndpointOptions(
                preset=iroh.preset_minimal(),
                bind_addr="127.0.0.1:0",
                alpns=[ALPN.encode()],
                relay_mode=iroh.RelayMode.custom_from_urls([url]),
            )
        )
        async with Endpoint.bind(bind="127.0.0.1:0", relays=[url], alpns=[ALPN]) as endpoint:
            await asyncio.gather(rust.online(), endpoint.online())
            if we_dial:
                accepting = asyncio.ensure_future(accept(rust))
                addr = EndpointAddr(id_of(rust), [RelayAddr(RelayUrl(url))])
                ours = await endpoint.connect(addr, ALPN)
                theirs = await accepting
            else:
                target = iroh.EndpointAddr(iroh.EndpointId.from_bytes(bytes(endpoint.id)), url, [])
                connecting = asyncio.ensure_future(rust.connect(target, ALPN.encode()))
                incoming = await endpoint.accept()
                assert incoming is not None
                ours, theirs = incoming, await connecting
            yield ours, theirs
        await rust.close()


async def direct(connection: Connection) -> None:
    async for event in connection.path_events():
        if (
            isinstance(event, PathOpened | PathSelected)
            and event.path.kind == "direct"
            and event.path.is_selected
        ):
            return


@pytest.mark.parametrize("we_dial", [True, False], ids=["we dial", "the wheel dials"])
async def test_a_connection_over_the_relay_becomes_direct(we_dial: bool) -> None:
    async with met(we_dial=we_dial) as (ours, theirs):
        async with asyncio.timeout(LIMIT_S):
            await direct(ours)
        assert ours._driver.core.paths.traversal.round >= 1
        # Both directions, and whoever opens the stream.
        send, recv = await ours.open_bi()
        await send.write(bytes(100_000))
        await send.finish()
        stream = await theirs.accept_bi()
        data = await stream.recv().read_to_end(200_000)
        assert len(data) == 100_000
        await stream.send().write_all(data)
        await stream.send().finish()
        assert len(await recv.read_to_end(limit=200_000)) == 100_000
        relayed = {path.kind: path.received_bytes for path in ours.paths()}
        assert relayed["direct"] > 100_000, relayed
