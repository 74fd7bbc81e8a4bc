"""Our records and those of a real iroh endpoint, by real lookups, in a network of its own.

Runs where there is nothing but loopback, whose resolver is 127.0.0.1. ``dns``: iroh resolves over DNS
what we publish. ``http``: with a copy of iroh whose discovery URL is ours, it resolves over HTTP what
we publish, and we resolve what it publishes. ``server``: the same, and what both ask and publish to is
the discovery server of ``dialkey dns``. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence

import iroh
from discovery import DnsServer, PacketServer

import dialkey_pkarr.plugin as pkarr_plugin
import dialkey_relay.plugin as relay_plugin
from dialkey import Endpoint
from dialkey.identity import EndpointId
from dialkey.presets import DiscoveryServer as DiscoveryServerChoice
from dialkey.presets import Preset
from dialkey_pkarr import SignedPacket
from dialkey_pkarr.server.server import DiscoveryServer
from dialkey_pkarr.server.store import MemoryStore
from dialkey_pkarr.server.zone import Zone
from dialkey_relay import Everyone, RelayOptions, RelayServer

ALPN = "discovery-wheel/1"


async def by_iroh(bob: Endpoint, theirs: iroh.Endpoint) -> float:
    """Let iroh dial us by our id alone; return how long it took."""
    began = time.perf_counter()
    target = iroh.EndpointAddr(iroh.EndpointId.from_bytes(bytes(bob.id)), None, [])
    connection = await theirs.connect(target, ALPN.encode())
    assert str(connection.remote_id()) == str(bob.id)
    took_s = time.perf_counter() - began
    connection.close(0, b"")
    return took_s


async def wheel(relay: str | None) -> iroh.Endpoint:
    iroh.iroh_ffi.uniffi_set_event_loop(asyncio.get_running_loop())  # type: ignore[arg-type]
    mode = iroh.RelayMode.disabled()
    if relay is not None:
        relays = iroh.RelayMap.empty()
        relays.insert(iroh.RelayConfig(url=relay, quic_port=None, auth_token=None))
        mode = iroh.RelayMode.custom(relays)
    return await iroh.Endpoint.bind(
        iroh.EndpointOptions(preset=iroh.preset_n0(), relay_mode=mode, alpns=[ALPN.encode()])
    )


class Told(MemoryStore):
    """A store that says when it was written to."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    def put(self, packets: Sequence[SignedPacket]) -> list[bool]:
        kept = super().put(packets)
        self._loop.call_soon_threadsafe(self._changed.set)
        return kept

    async def relays_of(self, id: EndpointId) -> list[str]:
        """Wait until an endpoint has published a relay."""
        async with asyncio.timeout(30):
            while True:
                self._changed.clear()
                packet = self.get(id)
                if packet is not None and packet.info().addr.relay_urls:
                    return [str(each) for each in packet.info().addr.relay_urls]
                await self._changed.wait()


async def with_our_server() -> None:
    options = RelayOptions(client_rate=None, accept_rate_per_address=None)
    store = Told()
    server = DiscoveryServer(
        store, Zone(["dns.iroh.link"]), dns=("127.0.0.1", 53), http=("127.0.0.1", 8080)
    )
    services = DiscoveryServerChoice(
        "http://127.0.0.1:8080/pkarr", "dns.iroh.link.", publishes="all"
    )
    async with (
        server,
        RelayServer([Everyone()], options) as relay,
        Endpoint.bind(
            preset=Preset("ours", relays=(), discovery=(services,)),
            plugins=[pkarr_plugin, relay_plugin],
            entry_points=False,
            bind="127.0.0.1:0",
            alpns=[ALPN],
        ) as ours,
    ):
        assert await ours.published(20)
        theirs = await wheel(relay.url)
        counters = server.records.counters
        found: dict[str, object] = {"iroh_found_us_s": await by_iroh(ours, theirs)}
        found["gets"], found["dns_found"] = counters.gets, counters.dns_found
        id = EndpointId.parse(str(theirs.id()))
        found["published"] = await store.relays_of(id)
        found["relay"] = relay.url
        reports = {each.lookup: each for each in await ours.look_up(id)}
        found["by_http"] = len(reports["pkarr"].answers)
        found["by_dns"] = len(reports["dns"].answers)
        await theirs.close()
        print(json.dumps(found), flush=True)


async def main(how: str) -> None:
    if how == "server":
        await with_our_server()
        return
    options = RelayOptions(client_rate=None, accept_rate_per_address=None)
    async with (
        PacketServer().serving(8080) as server,
        DnsServer(server.packets, "dns.iroh.link.").serving(53) as names,
        RelayServer([Everyone()], options) as relay,
        Endpoint.bind(
            preset=Preset(
                "ours",
                relays=(),
                discovery=(DiscoveryServerChoice(server.url, "dns.iroh.link.", publishes="all"),),
            ),
            plugins=[pkarr_plugin, relay_plugin],
            entry_points=False,
            bind="127.0.0.1:0",
            alpns=[ALPN],
        ) as ours,
    ):
        assert await ours.published(20)
        theirs = await wheel(relay.url if how == "http" else None)
        found: dict[str, object] = {"iroh_found_us_s": await by_iroh(ours, theirs)}
        found["dns_queries"], found["gets"] = names.by_udp + names.by_tcp, server.gets
        if how == "http":
            id = EndpointId.parse(str(theirs.id()))
            await server.changed(
                lambda: id in server.packets and bool(server.packets[id].info().addr.addrs)
            )
            found["published"] = [str(each) for each in server.packets[id].info().addr.addrs]
            found["relay"] = relay.url
            reports = {each.lookup: each for each in await ours.look_up(id)}
            found["by_http"] = len(reports["pkarr"].answers)
            found["by_dns"] = len(reports["dns"].answers)
            connecting = asyncio.create_task(theirs.accept_next())
            dialling = asyncio.ensure_future(ours.connect(id, ALPN))
            incoming = await connecting
            await (await incoming.accept()).connect()
            found["we_found_iroh"] = str((await dialling).remote_id) == str(id)
        await theirs.close()
        print(json.dumps(found), flush=True)


asyncio.run(main(sys.argv[1]))
