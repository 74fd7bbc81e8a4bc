"""Dialling: it connects, or says in plain words why not, for each address."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator

import pytest
from endpoints import (
    ALPN,
    connect,
    in_memory,
    network,
    no_leftovers,
    on_loopback,
    seconds,
    two,
    virtual,
)

from dialkey import (
    Endpoint,
    EndpointAddr,
    EndpointId,
    EndpointInfo,
    LookupAnswer,
    Refusal,
    SecretKey,
    hookimpl,
)
from dialkey.errors import (
    AlpnMismatch,
    DialError,
    DialTimeout,
    EndpointClosed,
    InvalidInput,
    InvalidTicket,
    Refused,
    ResolveError,
    WrongKey,
)
from dialkey.identity import CustomAddr, IpAddr, RelayAddr, RelayUrl, TransportAddr
from dialkey.testing import Conditions
from dialkey.testing.network import address_of

STRANGER = SecretKey(bytes(range(32))).id


def also(endpoint: Endpoint, *names: str) -> EndpointAddr:
    """Return an endpoint's address with further ones that lead elsewhere."""
    addr = endpoint.addr()
    return EndpointAddr(addr.id, [*addr.addrs, *map(address_of, names)])


@virtual
async def test_one_good_address_among_dead_ones_is_enough() -> None:
    net = network(delay_s=0.02)
    net.refuse("refused")
    async with two(net) as (alice, bob):
        addr = also(bob, *(f"nobody {i}" for i in range(20)), "refused")
        connection = await alice.connect(addr, ALPN)
        assert seconds() < 0.2
        assert connection.remote_id == bob.id
        assert connection.paths()[0].remote == address_of("bob")


@virtual
async def test_the_fastest_of_several_addresses_of_one_peer_wins() -> None:
    net = network()
    here, there = IpAddr.parse("10.0.0.1:1"), IpAddr.parse("10.0.0.2:1")
    net.link("alice", "bob").set(Conditions(delay_s=0.2))
    net.link(here, there).set(Conditions(delay_s=0.01))
    async with (
        in_memory(net, "alice", here) as alice,
        in_memory(net, "bob", there, alpns=[ALPN]) as bob,
    ):
        connection = await alice.connect(bob.addr(), ALPN)
        assert connection.paths()[0].remote == there
        assert len(bob.connections) == 1


@virtual
async def test_every_way_to_say_a_ticket() -> None:
    async with two(network()) as (alice, bob):
        for remote in (bob.ticket(), str(bob.ticket()), bob.addr()):
            connection = await alice.connect(remote, ALPN.encode())
            assert connection.alpn == ALPN.encode()
        alice.add_addr(bob.addr())
        for remote in (bob.id, str(bob.id)):
            assert (await alice.connect(remote, ALPN)).remote_id == bob.id


@virtual
async def test_nobody_answers() -> None:
    net = network()
    async with two(net) as (alice, _):
        addr = EndpointAddr(STRANGER, [address_of("nobody"), address_of("no one")])
        with pytest.raises(DialTimeout) as caught:
            await alice.connect(addr, ALPN, timeout=20)
        assert seconds() == pytest.approx(20)
        error = caught.value
        assert len(error.attempts) == 2
        for attempt in error.attempts:
            assert "no answer to" in attempt
        assert "nobody answered within 20 s" in str(error)
        assert STRANGER.short() in str(error)
        await asyncio.sleep(5)
        assert not alice.connections, "a dial that is over leaves nothing behind"


@virtual
async def test_a_dial_that_timed_out_does_not_come_to_life() -> None:
    net = network(delay_s=3.0)
    async with two(net) as (alice, bob):
        with pytest.raises(DialTimeout):
            await alice.connect(bob.addr(), ALPN, timeout=4)
        await asyncio.sleep(30)
        assert not alice.connections
        assert not bob.connections


@virtual
async def test_all_addresses_refuse() -> None:
    net = network()
    net.refuse("a")
    net.refuse("b", "network is unreachable")
    async with two(net) as (alice, _):
        with pytest.raises(DialError) as caught:
            await alice.connect(EndpointAddr(STRANGER, [*map(address_of, "ab")]), ALPN)
        assert seconds() < 5, "there is nothing to wait for"
        text = str(caught.value)
        assert "connection refused" in text
        assert "network is unreachable" in text
        assert not isinstance(caught.value, DialTimeout)


@virtual
async def test_an_address_for_which_there_is_no_transport() -> None:
    async with two(network()) as (alice, bob):
        url = RelayUrl("https://relay.example")
        unusable: list[TransportAddr] = [RelayAddr(url), CustomAddr(9, b"x")]
        with pytest.raises(ResolveError, match="no transport") as caught:
            await alice.connect(EndpointAddr(bob.id, unusable), ALPN)
        assert "relay.example" in str(caught.value)
        with pytest.raises(DialTimeout) as timeout:
            await alice.connect(
                EndpointAddr(STRANGER, [*unusable, address_of("nobody")]), ALPN, timeout=3
            )
        attempts = "\n".join(timeout.value.attempts)
        assert attempts.count("no transport") == attempts.count("bind with relays=()") == 1
        # It does not stand in the way of those that work.
        await alice.connect(EndpointAddr(bob.id, [*unusable, *bob.addr().addrs]), ALPN)


@virtual
async def test_an_endpoint_of_which_nothing_is_known() -> None:
    async with two(network()) as (alice, _):
        with pytest.raises(ResolveError, match="no address is known"):
            await alice.connect(STRANGER, ALPN)


@virtual
async def test_what_cannot_be_dialled() -> None:
    async with two(network()) as (alice, bob):
        with pytest.raises(InvalidInput, match="our own key"):
            await alice.connect(alice.addr(), ALPN)
        with pytest.raises(InvalidTicket):
            await alice.connect("endpointnonsense", ALPN)
        for alpn in ("", b"", "ä", b"\xff", "x" * 256):
            with pytest.raises(InvalidInput):
                await alice.connect(bob.addr(), alpn)
        assert not bob.connections


# --- somebody answers, but not as needed -----------------------------------------------------------


@virtual
async def test_another_endpoint_answers() -> None:
    async with two(network()) as (alice, bob):
        with pytest.raises(WrongKey) as caught:
            await alice.connect(EndpointAddr(STRANGER, bob.addr().addrs), ALPN)
        assert caught.value.close_code == 0x130
        assert bob.id.short() in str(caught.value)
        assert seconds() < 1


@virtual
async def test_a_stranger_at_a_stale_address_does_not_abort_the_dial() -> None:
    """A device got our peer's old address, and it is nearer than the peer."""
    net = network()
    net.link("alice", "bob").set(Conditions(delay_s=0.1))
    net.link("alice", "carol").set(Conditions(delay_s=0.001))
    async with two(net) as (alice, bob), in_memory(net, "carol", alpns=[ALPN]) as carol:
        addr = EndpointAddr(bob.id, [*carol.addr().addrs, *bob.addr().addrs])
        connection = await alice.connect(addr, ALPN)
        assert connection.remote_id == bob.id
        assert connection.paths()[0].remote == address_of("bob")
        await asyncio.sleep(5)
        assert not carol.connections


@virtual
async def test_several_strangers_and_nobody_else() -> None:
    net = network()
    async with (
        two(net) as (alice, bob),
        in_memory(net, "carol", alpns=[ALPN]) as carol,
    ):
        addrs = [*bob.addr().addrs, *carol.addr().addrs, address_of("nobody")]
        with pytest.raises(WrongKey):
            await alice.connect(EndpointAddr(STRANGER, addrs), ALPN)
        # The third had some seconds for itself, not the whole deadline.
        assert 4 < seconds() < 7


@virtual
async def test_no_protocol_in_common() -> None:
    async with two(network()) as (alice, bob):
        with pytest.raises(AlpnMismatch) as caught:
            await alice.connect(bob.addr(), "other/1")
        assert caught.value.close_code == 0x178
        assert caught.value.endpoint_id == bob.id


@virtual
async def test_an_endpoint_that_accepts_nothing_refuses() -> None:
    async with two(network()) as (alice, bob):
        bob.set_alpns([])
        with pytest.raises(Refused, match="accepts no connections"):
            await alice.connect(bob.addr(), ALPN)
        with pytest.raises(Refused):
            await bob.connect(alice.addr(), ALPN)
        bob.set_alpns([ALPN])
        await alice.connect(bob.addr(), ALPN)


# --- plugins -----------------------------------------------------------------------------------------


class Filter:
    """Refuses at one of three points, and remembers what it was asked."""

    def __init__(self, where: str, *, wait_s: float = 0.0) -> None:
        self.where = where
        self.wait_s = wait_s
        self.asked: list[object] = []

    async def _answer(self, where: str, what: object) -> Refusal | None:
        self.asked.append(what)
        await asyncio.sleep(self.wait_s)
        return Refusal(42, f"not {where}") if self.where == where else None

    @hookimpl
    async def dialkey_before_connect(self, remote: EndpointAddr, alpn: bytes) -> Refusal | None:
        return await self._answer("before_connect", (remote.id, alpn))

    @hookimpl
    async def dialkey_before_accept(self, incoming: object) -> Refusal | None:
        return await self._answer("before_accept", incoming)

    @hookimpl
    async def dialkey_after_handshake(self, connection: object) -> Refusal | None:
        return await self._answer("after_handshake", connection)


@virtual
async def test_a_plugin_forbids_a_dial_before_a_packet_is_sent() -> None:
    net = network()
    plugin = Filter("before_connect")
    async with two(net, alice={"plugins": [plugin]}) as (alice, bob):
        with pytest.raises(Refused, match="not before_connect"):
            await alice.connect(bob.addr(), ALPN)
        assert plugin.asked == [(bob.id, ALPN.encode())]
        assert net.link("alice", "bob").sent == 0


@pytest.mark.parametrize("wait_s", [0.0, 0.5, 2.5])
def test_a_plugin_turns_a_client_away_before_the_handshake(wait_s: float) -> None:
    @virtual
    async def scenario() -> None:
        plugin = Filter("before_accept", wait_s=wait_s)
        async with two(network(), bob={"plugins": [plugin]}) as (alice, bob):
            with pytest.raises(Refused, match="not before_accept"):
                await alice.connect(bob.addr(), ALPN)
            assert not bob.connections
            assert bob._driver.demux.counts["refused_by_plugin"] >= 1
            (incoming,) = plugin.asked[:1]
            assert incoming.remote == address_of("alice")  # type: ignore[attr-defined]
            assert not incoming.validated  # type: ignore[attr-defined]

    scenario()


@virtual
async def test_a_plugin_that_takes_its_time_lets_a_client_in() -> None:
    plugin = Filter("nowhere", wait_s=1.5)
    async with two(network(), bob={"plugins": [plugin]}) as (alice, bob):
        here, there = await connect(alice, bob)
        assert here.remote_id == bob.id
        assert there.remote_id == alice.id
        assert bob._driver.demux.counts["incoming"] == 1
        # Repeated Initials wait with the first; the plugin was asked once, then after the handshake.
        assert len(plugin.asked) == 2


@virtual
async def test_a_plugin_closes_after_the_handshake_with_its_code() -> None:
    plugin = Filter("after_handshake")
    async with two(network(), bob={"plugins": [plugin]}) as (alice, bob):
        connection = await alice.connect(bob.addr(), ALPN)
        error = await connection.closed()
        assert getattr(error, "error_code", None) == 42
        assert getattr(error, "reason", None) == b"not after_handshake"
        accepting = asyncio.ensure_future(bob.accept())
        await asyncio.sleep(1)
        assert not accepting.done(), "nobody gets to see it"
        accepting.cancel()


@virtual
async def test_a_plugin_of_the_dialler_refuses_after_the_handshake() -> None:
    plugin = Filter("after_handshake")
    async with two(network(), alice={"plugins": [plugin]}) as (alice, bob):
        with pytest.raises(Refused, match="not after_handshake"):
            await alice.connect(bob.addr(), ALPN)
        there = await bob.accept()
        assert there is not None
        assert getattr(await there.closed(), "error_code", None) == 42


# --- lookups -----------------------------------------------------------------------------------------


class Lookup:
    """Yields addresses after delays; or fails."""

    def __init__(self, name: str, *steps: tuple[float, list[TransportAddr]], fails: bool = False):
        self.name = name
        self.steps = steps
        self.fails = fails
        self.ended = False

    async def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        try:
            for delay_s, addrs in self.steps:
                await asyncio.sleep(delay_s)
                yield LookupAnswer(EndpointInfo(EndpointAddr(id, addrs)))
            if self.fails:
                raise OSError("the lookup is broken")
        finally:
            self.ended = True

    async def publish(self, info: EndpointInfo) -> None:
        """Nobody to tell."""

    async def close(self) -> None:
        if self.fails:
            raise OSError("not even that")


@virtual
async def test_a_lookup_finds_the_address_and_is_ended_when_the_dial_is_over() -> None:
    slow = Lookup("slow", (0.5, [address_of("bob")]), (1000.0, []))
    broken = Lookup("broken", fails=True)
    async with two(network(), alice={"address_lookups": [slow, broken]}) as (alice, bob):
        connection = await alice.connect(bob.id, ALPN)
        assert connection.remote_id == bob.id
        assert seconds() == pytest.approx(0.54, abs=0.1)
        await asyncio.sleep(0)
        assert slow.ended


@virtual
async def test_an_address_that_is_found_late_is_tried_at_once() -> None:
    """The first address is dead; the second is found between two repetitions of the first flight."""
    lookup = Lookup("late", (0.1, [address_of("bob")]))
    async with two(network(), alice={"address_lookups": [lookup]}) as (alice, bob):
        addr = EndpointAddr(bob.id, [address_of("nobody")])
        await alice.connect(addr, ALPN)
        assert seconds() == pytest.approx(0.14, abs=0.05)


@virtual
async def test_no_lookup_finds_anything() -> None:
    lookups = [Lookup("empty", (0.2, [])), Lookup("broken", fails=True)]
    async with two(network(), alice={"address_lookups": lookups}) as (alice, _):
        with pytest.raises(ResolveError, match="the lookup is broken"):
            await alice.connect(STRANGER, ALPN)
        assert seconds() == pytest.approx(0.2)


@virtual
async def test_a_lookup_that_hangs_is_left_at_the_deadline() -> None:
    lookup = Lookup("hanging", (10_000.0, []))
    async with two(network(), alice={"address_lookups": [lookup]}) as (alice, _):
        with pytest.raises(DialTimeout):
            await alice.connect(STRANGER, ALPN, timeout=5)
        await asyncio.sleep(0)
        assert lookup.ended


# --- cancellation and closing --------------------------------------------------------------------------


@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.015, 0.025, 0.035, 0.045])
def test_a_dial_may_be_cancelled_at_any_moment(after_s: float) -> None:
    @virtual
    async def scenario() -> None:
        async with two(network(delay_s=0.01)) as (alice, bob):
            dialling = asyncio.create_task(alice.connect(bob.addr(), ALPN))
            await asyncio.sleep(after_s)
            if not dialling.done():
                dialling.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await dialling
            else:
                dialling.result().close()
            await asyncio.sleep(20)
            assert not alice.connections
            assert not bob.connections
            # And it works again.
            await alice.connect(bob.addr(), ALPN)

    scenario()


@virtual
async def test_closing_the_endpoint_ends_its_dials() -> None:
    net = network()
    lookup = Lookup("hanging", (10_000.0, []))
    async with two(net, alice={"address_lookups": [lookup]}) as (alice, _):
        dials = [
            asyncio.create_task(
                alice.connect(EndpointAddr(STRANGER, [address_of("nobody")]), ALPN)
            ),
            asyncio.create_task(alice.connect(STRANGER, ALPN)),
        ]
        await asyncio.sleep(1)
        await alice.close()
        for dial in dials:
            with pytest.raises(EndpointClosed):
                await dial
        with pytest.raises(EndpointClosed):
            await alice.connect(STRANGER, ALPN)


@virtual
async def test_a_hundred_dials_at_once() -> None:
    async with two(network(delay_s=0.02, loss=0.05)) as (alice, bob):

        async def accept() -> None:
            async for _ in bob:
                pass

        accepting = asyncio.create_task(accept())
        tasks = [asyncio.create_task(alice.connect(bob.addr(), ALPN)) for _ in range(100)]
        # From one address few handshakes run before it is proved; all of them get in all the same.
        connections = await asyncio.gather(*tasks)
        assert len(set(connections)) == 100
        accepting.cancel()


# --- on a real network ---------------------------------------------------------------------------


async def test_a_closed_port_on_loopback_says_so() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    async with on_loopback() as alice:
        addr = EndpointAddr(STRANGER, [IpAddr.parse(f"127.0.0.1:{port}")])
        with pytest.raises(DialError) as caught:
            await alice.connect(addr, ALPN, timeout=10)
        assert not isinstance(caught.value, DialTimeout)
        assert "connection refused" in caught.value.attempts[0]
        assert str(port) in caught.value.attempts[0]
    await no_leftovers()


async def test_a_silent_port_on_loopback_times_out() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        async with on_loopback() as alice:
            addr = EndpointAddr(STRANGER, [IpAddr.parse(f"127.0.0.1:{port}")])
            with pytest.raises(DialTimeout, match="no answer"):
                await alice.connect(addr, ALPN, timeout=0.2)


async def test_dead_addresses_and_a_good_one_on_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        async with two() as (alice, bob):
            dead = [f"127.0.0.1:{silent.getsockname()[1]}", "127.0.0.1:1", "[::1]:1", "192.0.2.1:1"]
            addrs = [*map(IpAddr.parse, dead), *bob.addr().addrs]
            connection = await alice.connect(EndpointAddr(bob.id, addrs), ALPN, timeout=10)
            assert connection.remote_id == bob.id
