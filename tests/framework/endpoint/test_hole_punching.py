"""Endpoints behind NATs: first data over the relay at once, then directly wherever that can be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from two_ways import RelayLike, ViaRelay

from dialkey import Connection, Endpoint
from dialkey.endpoint.paths import PathOpened, PathSelected
from dialkey.identity import EndpointAddr, IpAddr, RelayAddr, RelayUrl
from dialkey.testing import (
    NAT_KINDS,
    Conditions,
    MemoryNetwork,
    MemoryTransport,
    Nat,
    NatKind,
    are_punchable,
    in_virtual_time,
)

ALPN = "nats/1"
OBSERVER = IpAddr.parse("192.0.2.53:7842")
INNER = IpAddr.parse("192.168.1.10:4433")
"""Both have it: every home network looks alike."""

DIRECT_S = 0.015
RELAYED_S = 0.04


class Nats:
    """Two endpoints behind a NAT each, and a relay."""

    def __init__(
        self, dialler: NatKind, listener: NatKind, *, observer: IpAddr | None = OBSERVER
    ) -> None:
        self.net = MemoryNetwork(seed=1, conditions=Conditions(delay_s=DIRECT_S))
        self.nats = {
            "alice": Nat("203.0.113.1", dialler),
            "bob": Nat("203.0.113.2", listener),
        }
        self.observer = observer
        self.ends: dict[str, MemoryTransport] = {}
        self.relay = self.net.link(ViaRelay("alice"), ViaRelay("bob"))  # type: ignore[arg-type]
        self.relay.set(Conditions(delay_s=RELAYED_S))

    def bind(self, name: str, **options: Any) -> Any:
        nat = self.nats[name]
        public = IpAddr(nat.ip, 4433)
        address = public if nat.kind == "none" else INNER
        udp = self.ends[name] = self.net.transport(address, nat=nat, observer=self.observer)
        transports = [udp, RelayLike(self.net, name)]
        return Endpoint.bind(transports=transports, entry_points=False, **options)

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[tuple[Connection, Connection]]:
        """Dial by relay alone, as with a ticket of somebody whose addresses are of no use."""
        async with self.bind("alice") as alice, self.bind("bob", alpns=[ALPN]) as bob:
            at_relay = RelayAddr(RelayUrl("https://relay.example/bob"))
            here = await alice.connect(EndpointAddr(bob.id, [at_relay]), ALPN)
            there = await bob.accept()
            assert there is not None
            yield here, there


async def direct(connection: Connection) -> float:
    """Wait until data goes directly; return since when."""
    loop = asyncio.get_running_loop()
    async for event in connection.path_events():
        if (
            isinstance(event, PathOpened | PathSelected)
            and event.path.kind == "direct"
            and event.path.is_selected
        ):
            break
    return loop.time()


def is_direct(connection: Connection) -> bool:
    return any(path.is_selected and path.kind == "direct" for path in connection.paths())


async def echo(here: Connection, there: Connection) -> None:
    send, recv = await here.open_bi()
    await send.write(b"first data")
    await send.finish()
    theirs, ours = await there.accept_bi()
    assert await ours.read_to_end(limit=100) == b"first data"
    await theirs.write(b"and back")
    await theirs.finish()
    assert await recv.read_to_end(limit=100) == b"and back"


@pytest.mark.parametrize("listener", NAT_KINDS)
@pytest.mark.parametrize("dialler", NAT_KINDS)
@in_virtual_time
async def test_all_pairs(dialler: NatKind, listener: NatKind) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with Nats(dialler, listener).joined() as (here, there):
        assert here.paths()[0].kind == "relay"
        waits = [asyncio.ensure_future(direct(each)) for each in (here, there)]
        await echo(here, there)
        assert loop.time() - began < 1.0, "first data over the relay"
        if are_punchable(dialler, listener):
            async with asyncio.timeout(2.0):
                for at in await asyncio.gather(*waits):
                    assert at - began < 1.0
            await echo(here, there)
        else:
            await asyncio.sleep(30)
            assert not is_direct(here)
            assert not is_direct(there)
            await echo(here, there)
            for each in waits:
                each.cancel()


@in_virtual_time
async def test_the_relay_carries_nothing_once_it_is_direct() -> None:
    nats = Nats("moderate", "moderate")
    async with nats.joined() as (here, there):
        await direct(here)
        await asyncio.sleep(1)
        before = nats.relay.sent_bytes
        send = await here.open_uni()
        await send.write(bytes(1 << 20))
        await send.finish()
        recv = await there.accept_uni()
        assert len(await recv.read_to_end(limit=1 << 20)) == 1 << 20
        assert nats.relay.sent_bytes - before < 5_000


@in_virtual_time
async def test_the_relay_takes_over_when_the_nat_forgets() -> None:
    """A router starts anew: what is under way goes on over the relay, and then directly again."""
    nats = Nats("moderate", "moderate")
    async with nats.joined() as (here, there):
        await direct(here)
        await asyncio.sleep(10)
        for nat in nats.nats.values():
            nat.forget()
        async with asyncio.timeout(3.0):
            await echo(here, there)
        waits = [asyncio.ensure_future(direct(each)) for each in (here, there)]
        await asyncio.sleep(10)
        for end in nats.ends.values():
            end.learn_from(OBSERVER)
        async with asyncio.timeout(2.0):
            await asyncio.gather(*waits)
        await echo(here, there)


@in_virtual_time
async def test_two_in_one_network_whose_router_has_no_hairpin() -> None:
    net = MemoryNetwork(seed=1, conditions=Conditions(delay_s=0.001))
    nat = Nat("203.0.113.1", "moderate")
    ends = {
        name: net.transport(IpAddr.parse(f"192.168.1.{number}:4433"), nat=nat, observer=OBSERVER)
        for number, name in ((10, "alice"), (11, "bob"))
    }
    net.link(ViaRelay("alice"), ViaRelay("bob")).set(Conditions(delay_s=0.04))  # type: ignore[arg-type]

    def bind(name: str, **options: Any) -> Any:
        transports = [ends[name], RelayLike(net, name)]
        return Endpoint.bind(transports=transports, entry_points=False, **options)

    async with bind("alice") as alice, bind("bob", alpns=[ALPN]) as bob:
        at_relay = RelayAddr(RelayUrl("https://relay.example/bob"))
        here = await alice.connect(EndpointAddr(bob.id, [at_relay]), ALPN)
        async with asyncio.timeout(2.0):
            await direct(here)
        [path] = [path for path in here.paths() if path.is_selected]
        assert path.remote == IpAddr.parse("192.168.1.11:4433")


@in_virtual_time
async def test_addresses_that_are_learnt_later_are_told() -> None:
    """A listener learns its public address only after somebody has connected to it."""
    nats = Nats("strict", "open", observer=None)
    async with nats.bind("alice") as alice, nats.bind("bob", alpns=[ALPN]) as bob:
        at_relay = RelayAddr(RelayUrl("https://relay.example/bob"))
        here = await alice.connect(EndpointAddr(bob.id, [at_relay]), ALPN)
        await asyncio.sleep(10)
        assert not is_direct(here)
        nats.ends["bob"].learn_from(OBSERVER)
        async with asyncio.timeout(2.0):
            await direct(here)


@in_virtual_time
async def test_what_a_lively_pair_costs_when_it_is_not_direct() -> None:
    """Without a direct way probes are sent again each minute, not more."""
    nats = Nats("strict", "strict")
    async with nats.joined() as (here, there):
        await asyncio.sleep(20)
        before = sum(channel.sent for channel in nats.net._channels.values())
        relayed = nats.relay.sent
        await asyncio.sleep(300)
        probes = sum(channel.sent for channel in nats.net._channels.values()) - before
        probes -= nats.relay.sent - relayed
        assert 0 < probes <= 300 / 60 * 2 * 9 * 3
        assert not is_direct(here)
        assert not is_direct(there)


@in_virtual_time
async def test_what_a_public_peer_sees_helps_with_the_next() -> None:
    """Without address discovery at a relay: a peer that we dialled tells, and it is not published."""
    nats = Nats("open", "strict", observer=None)
    public = nats.net.transport(IpAddr.parse("198.51.100.9:1"))
    async with (
        Endpoint.bind(transports=[public], entry_points=False, alpns=[ALPN]) as carol,
        nats.bind("alice") as alice,
        nats.bind("bob", alpns=[ALPN]) as bob,
    ):
        at_relay = RelayAddr(RelayUrl("https://relay.example/bob"))
        here = await alice.connect(EndpointAddr(bob.id, [at_relay]), ALPN)
        await asyncio.sleep(10)
        assert not is_direct(here)
        before = alice.addr()
        await alice.connect(carol.addr(), ALPN)
        async with asyncio.timeout(2.0):
            await direct(here)
        assert alice.addr() == before


@in_virtual_time
async def test_what_somebody_says_who_dialled_us_is_not_repeated() -> None:
    nats = Nats("none", "open", observer=None)
    async with nats.bind("alice") as alice, nats.bind("bob", alpns=[ALPN]) as bob:
        at_relay = RelayAddr(RelayUrl("https://relay.example/bob"))
        here = await alice.connect(EndpointAddr(bob.id, [at_relay]), ALPN)
        await direct(here)
        await asyncio.sleep(1)
        assert bob._driver.candidates() == [INNER]
