"""What strangers without a key do to an endpoint, and what honest clients notice of it."""

from __future__ import annotations

import asyncio
import os

import attrs
import pytest
from endpoints import ALPN, connect, in_memory, network, seconds, two, virtual
from quic_pair import Pair

from dialkey import Endpoint, SecretKey, hookimpl, limits
from dialkey.errors import AlpnMismatch, DialTimeout, Refused
from dialkey.hooks import Refusal
from dialkey.identity import IpAddr
from dialkey.testing import Conditions, MemoryNetwork

KEY = SecretKey(bytes(range(32)))
SERVER = IpAddr.parse("198.51.100.1:4433")


def first_flight() -> bytes:
    pair = Pair(server={"secret_key": KEY}, alpns=[ALPN])
    pair.flush()
    return pair.sent[0].data


def knock(bob: Endpoint, *names: str | IpAddr) -> None:
    """Let a first flight arrive from each of these, and nothing after it."""
    (transport,) = bob.transports
    for name in names:
        transport.inject(name, first_flight())  # type: ignore[attr-defined]


def accept_all(endpoint: Endpoint) -> asyncio.Task[None]:
    async def accept() -> None:
        async for _ in endpoint:
            """Only let them in."""

    return asyncio.create_task(accept())


async def dials_from(
    net: MemoryNetwork, bob: Endpoint, addresses: list[IpAddr], alpn: str = ALPN
) -> list[object]:
    """Dial from so many endpoints at once; return connections and errors."""
    endpoints = [await in_memory(net, each) for each in addresses]
    try:
        return await asyncio.gather(
            *(each.connect(bob.addr(), alpn) for each in endpoints), return_exceptions=True
        )
    finally:
        await asyncio.gather(*(each.close() for each in endpoints))


# --- many at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["192.0.2.7:{}", "[2001:db8:1:2::{:x}]:5000"])
def test_two_hundred_endpoints_of_one_address_dial_at_once(pattern: str) -> None:
    @virtual
    async def scenario() -> None:
        net = network(delay_s=0.02)
        async with in_memory(net, SERVER, alpns=[ALPN]) as bob:
            accepting = accept_all(bob)
            addresses = [IpAddr.parse(pattern.format(n)) for n in range(1000, 1200)]
            results = await dials_from(net, bob, addresses)
            assert not [each for each in results if isinstance(each, BaseException)]
            assert bob._driver.demux.counts["evicted"] == 0
            accepting.cancel()
            await asyncio.wait([accepting])

    scenario()


@virtual
async def test_more_than_the_allowance_get_in_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_BURST_PER_ADDRESS", 10)
    monkeypatch.setattr(limits, "HANDSHAKES_PER_ADDRESS_PER_S", 5.0)
    net = network(delay_s=0.02)
    async with two(net) as (alice, bob):
        accepting = accept_all(bob)
        results = await asyncio.gather(*(alice.connect(bob.addr(), ALPN) for _ in range(40)))
        assert len(set(results)) == 40
        assert bob._driver.demux.counts["dropped_too_many"] > 0
        accepting.cancel()
        await asyncio.wait([accepting])


@virtual
async def test_who_made_room_for_others_tries_again_within_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_HALF_OPEN_HANDSHAKES", 2)
    async with two(network(delay_s=0.02)) as (alice, bob):
        accepting = accept_all(bob)
        results = await asyncio.gather(*(alice.connect(bob.addr(), ALPN) for _ in range(10)))
        assert len(set(results)) == 10
        assert bob._driver.demux.counts["evicted"] > 0
        accepting.cancel()
        await asyncio.wait([accepting])


class Says:
    """A filter that refuses with given words, some times or always."""

    def __init__(self, reason: bytes, times: int = 1000) -> None:
        self.reason = reason
        self.times = times
        self.asked = 0

    @hookimpl
    def dialkey_before_accept(self, incoming: object) -> Refusal | None:
        self.asked += 1
        return Refusal(reason=self.reason) if self.asked <= self.times else None


@virtual
async def test_a_peer_that_is_busy_to_the_end() -> None:
    async with two(network(), bob={"plugins": [Says(b"busy")]}) as (alice, bob):
        with pytest.raises(DialTimeout, match="had no room for us within 10 s") as caught:
            await alice.connect(bob.addr(), ALPN, timeout=10)
        assert seconds() == pytest.approx(10)
        assert any("refused the connection: busy" in each for each in caught.value.attempts)


@pytest.mark.parametrize(("reason", "tries"), [(b"busy", 6), (b"too many handshakes", 6), (b"", 3)])
def test_a_refusal_for_the_moment_is_not_final(reason: bytes, tries: int) -> None:
    @virtual
    async def scenario() -> None:
        filter = Says(reason, tries)
        async with two(network(), bob={"plugins": [filter]}) as (alice, bob):
            await connect(alice, bob)
            assert filter.asked == tries + 1

    scenario()


@pytest.mark.parametrize(("reason", "tries"), [(b"not you", 1), (b"", 4)])
def test_a_refusal_for_good_is_told_soon(reason: bytes, tries: int) -> None:
    @virtual
    async def scenario() -> None:
        filter = Says(reason)
        async with two(network(), bob={"plugins": [filter]}) as (alice, bob):
            with pytest.raises(Refused):
                await alice.connect(bob.addr(), ALPN)
            assert filter.asked == tries
            assert seconds() < 4

    scenario()


@virtual
async def test_closing_the_endpoint_ends_the_pause_before_another_try() -> None:
    async with two(network(), bob={"plugins": [Says(b"busy")]}) as (alice, bob):
        dialling = asyncio.create_task(alice.connect(bob.addr(), ALPN))
        await asyncio.sleep(5.1)
        await alice.close()
        begin = seconds()
        await asyncio.wait([dialling])
        assert seconds() - begin < 0.1
        assert dialling.exception() is not None


# --- places ---------------------------------------------------------------------------------------


@virtual
async def test_when_all_places_are_taken_a_newcomer_gets_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_HALF_OPEN_HANDSHAKES", 10)
    net = network()
    async with two(net, bob={"secret_key": KEY}) as (alice, bob):
        knock(bob, *(f"stranger {n}" for n in range(12)))
        assert bob._driver.demux.half_open == 10
        assert bob._driver.demux.counts["evicted"] == 2
        await connect(alice, bob)
        assert bob._driver.demux.counts["evicted"] == 3
        await asyncio.sleep(20)
        assert bob._driver.demux.half_open == 0
        assert len(bob.connections) == 1


@virtual
async def test_one_network_of_ipv6_counts_as_one_address() -> None:
    async with two(network(), bob={"secret_key": KEY}) as (_, bob):
        knock(bob, *(IpAddr.parse(f"[2001:db8:0:1:{n:x}::1]:{n}") for n in range(1, 31)))
        assert bob._driver.demux.half_open == limits.MAX_HALF_OPEN_PER_ADDRESS
        knock(bob, IpAddr.parse("[2001:db8:0:2::1]:1"))
        assert bob._driver.demux.half_open == limits.MAX_HALF_OPEN_PER_ADDRESS + 1


@attrs.frozen
class Relayed:
    """A path address that says what it counts as."""

    id: str
    carrier: str

    @property
    def counts_as(self) -> tuple[str, ...]:
        return self.id, self.carrier


@virtual
async def test_what_comes_through_a_relay_is_counted_by_id_and_by_relay() -> None:
    async with two(network(), bob={"secret_key": KEY}) as (_, bob):
        (transport,) = bob.transports

        def arrive(id: str, carrier: str) -> None:
            data = first_flight()
            bob._driver.demux.receive(transport, memoryview(data), len(data), Relayed(id, carrier))

        for n in range(40):
            arrive("one id", f"relay {n % 2}")
        assert bob._driver.demux.half_open == limits.MAX_HALF_OPEN_PER_ADDRESS
        for n in range(20):
            arrive(f"id {n}", "relay 0")
        assert bob._driver.demux.half_open == limits.MAX_HALF_OPEN_PER_ADDRESS + 20


class Thinks:
    """A filter that takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.thinking = 0

    @hookimpl
    async def dialkey_before_accept(self, incoming: object) -> None:
        self.thinking += 1
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.thinking -= 1


@virtual
async def test_filters_that_think_hold_places_like_handshakes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_HALF_OPEN_HANDSHAKES", 30)
    plugin = Thinks(4.0)
    async with two(network(), bob={"secret_key": KEY, "plugins": [plugin]}) as (alice, bob):
        knock(bob, *["one stranger"] * 20)
        assert bob._driver.demux.half_open == limits.MAX_HALF_OPEN_PER_ADDRESS
        await asyncio.sleep(0)
        assert plugin.thinking == limits.MAX_HALF_OPEN_PER_ADDRESS
        knock(bob, *(f"stranger {n}" for n in range(20)))
        assert bob._driver.demux.half_open == 30
        for _ in range(3):
            await asyncio.sleep(0)
        assert plugin.thinking == 30, "whoever made room is not thought about any more"
        assert bob._driver.demux.counts["evicted"] == 6
        await connect(alice, bob)


@virtual
async def test_the_time_a_filter_takes_counts() -> None:
    plugin = Thinks(4.0)
    async with two(network(), bob={"secret_key": KEY, "plugins": [plugin]}) as (_, bob):
        begin = seconds()
        knock(bob, "stranger")
        await asyncio.sleep(4.5)
        (connection,) = bob.connections
        assert connection._driver.core.idle.deadline == begin + limits.HANDSHAKE_TIMEOUT_S
        await asyncio.sleep(begin + limits.HANDSHAKE_TIMEOUT_S + 0.1 - seconds())
        assert bob._driver.demux.half_open == 0


@virtual
async def test_what_is_held_for_a_filter_is_bounded() -> None:
    plugin = Thinks(4.0)
    async with two(network(), bob={"secret_key": KEY, "plugins": [plugin]}) as (_, bob):
        data = first_flight()
        (transport,) = bob.transports
        for size in (1200, 4096, 60_000):
            for _ in range(20):
                transport.inject("stranger", data.ljust(size, b"\0"))  # type: ignore[attr-defined]
        (held,) = bob._driver.demux._held.values()
        assert sum(len(each) for each, _ in held.datagrams) <= limits.MAX_HELD_INITIAL_BYTES
        transport.inject("other", first_flight().ljust(60_000, b"\0"))  # type: ignore[attr-defined]
        assert len(bob._driver.demux._held) == 1, "no first flight is that large"


# --- cost -----------------------------------------------------------------------------------------


def without_crypto() -> bytes:
    """Return an authentic Initial packet that has nothing to do with a handshake."""
    from aioquic.quic.crypto import CryptoPair
    from aioquic.quic.packet import QuicPacketType
    from aioquic.quic.packet_builder import QuicPacketBuilder

    dcid, scid = os.urandom(8), os.urandom(8)
    pair = CryptoPair()
    pair.setup_initial(cid=dcid, is_client=True, version=1)
    builder = QuicPacketBuilder(
        host_cid=scid, peer_cid=dcid, version=1, is_client=True, max_datagram_size=1200
    )
    builder.start_packet(QuicPacketType.INITIAL, pair)
    builder.start_frame(1, capacity=1)
    datagrams, _ = builder.flush()
    return b"".join(datagrams).ljust(1200, b"\0")


@virtual
async def test_initials_without_a_hello_bring_on_retry() -> None:
    async with two(network(), bob={"secret_key": KEY}) as (alice, bob):
        (transport,) = bob.transports
        for n in range(200):
            transport.inject(f"stranger {n}", without_crypto())  # type: ignore[attr-defined]
        assert bob._driver.demux.counts["incoming"] == limits.RETRY_ABOVE_HALF_OPEN
        assert bob._driver.demux.counts["retries"] == 200 - limits.RETRY_ABOVE_HALF_OPEN
        await connect(alice, bob)
        # Some seconds later nobody has to prove anything any more.
        await asyncio.sleep(limits.FAILED_HANDSHAKE_COUNTS_S)
        retries = bob._driver.demux.counts["retries"]
        await connect(alice, bob)
        assert bob._driver.demux.counts["retries"] == retries


@virtual
async def test_protocols_that_nobody_serves_bring_on_retry() -> None:
    net = network(delay_s=0.01)
    async with two(net, bob={"secret_key": KEY}) as (alice, bob):
        for _ in range(limits.MAX_HALF_OPEN_PER_ADDRESS):
            with pytest.raises(AlpnMismatch):
                await alice.connect(bob.addr(), "foreign/1")
        assert bob._driver.demux.counts["retries"] == 0
        with pytest.raises(AlpnMismatch):
            await alice.connect(bob.addr(), "foreign/1")
        assert bob._driver.demux.counts["retries"] == 1
        async with in_memory(net, "carol") as carol:
            await connect(carol, bob)
            assert bob._driver.demux.counts["retries"] == 1, "it has another address"


@virtual
async def test_refusals_and_other_versions_are_answered_only_so_often() -> None:
    net = network()
    async with two(net) as (_, bob):
        bob.set_alpns([])
        (transport,) = bob.transports
        other = bytes.fromhex("c0 1a2a3a4a 08 0102030405060708 04 0a0b0c0d") + bytes(1200)
        for _ in range(400):
            transport.inject("stranger", other)  # type: ignore[attr-defined]
            transport.inject("stranger", first_flight())  # type: ignore[attr-defined]
        assert net.one_way("bob", "stranger").sent == limits.STATELESS_ANSWERS_PER_S


@pytest.mark.parametrize("still_busy", [True, False])
def test_one_token_comes_back_by_another_way_first(
    still_busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dial goes to all addresses, and its token was given to one."""

    @virtual
    async def scenario() -> None:
        net = network(delay_s=0.02)
        here, there = IpAddr.parse("192.0.2.1:1"), IpAddr.parse("198.51.100.1:1")
        monkeypatch.setattr(limits, "RETRY_ABOVE_HALF_OPEN", 0)
        async with (
            in_memory(net, there, "bob by name", alpns=[ALPN]) as bob,
            in_memory(net, here, "alice by name") as alice,
        ):
            by_name = net.link("alice by name", "bob by name")
            by_name.down()
            dialling = asyncio.create_task(alice.connect(bob.addr(), ALPN))
            await asyncio.sleep(0.03)
            assert bob._driver.demux.counts["retries"] == 1
            if not still_busy:
                monkeypatch.setattr(limits, "RETRY_ABOVE_HALF_OPEN", 64)
            by_name.set(Conditions(delay_s=0.001))
            by_name.up()
            await dialling
            assert bob._driver.demux.counts["retries"] == 1
            assert seconds() < 0.2

    scenario()
