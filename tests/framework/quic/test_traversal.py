"""Hole punching between two cores: rounds, probes, answers, and what hostile peers can make of them."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quic_nats import NattedPair
from quic_pair import Datagram, Pair, frame

from dialkey import limits
from dialkey.identity import IpAddr
from dialkey.quic import codes, events, qlog
from dialkey.quic.codes import TransportError
from dialkey.quic.handshake import parameters
from dialkey.quic.handshake.parameters import TransportParameters
from dialkey.quic.paths import traversal
from dialkey.quic.paths.probing import ProbeAllowance, Worth, canonical, worth_of
from dialkey.testing import NAT_KINDS, NatKind, are_punchable


def at(text: str, port: int = 4433) -> IpAddr:
    return IpAddr(ip_address(text), port)


def address_bytes(address: IpAddr) -> bytes:
    return address.ip.packed + address.port.to_bytes(2, "big")


def reach_out(number: int, *addresses: IpAddr) -> bytes:
    return b"".join(
        frame(codes.REACH_OUT_V4 + (each.ip.version == 6), number, address_bytes(each))
        for each in addresses
    )


def add_address(number: int, address: IpAddr) -> bytes:
    return frame(codes.ADD_ADDRESS_V4 + (address.ip.version == 6), number, address_bytes(address))


def connected(client: NatKind = "none", server: NatKind = "none") -> NattedPair:
    pair = NattedPair(client, server)
    pair.connect()
    pair.settle(0.3)
    return pair


def probes(pair: NattedPair, sender: str) -> list[Datagram]:
    return [
        each for each in pair.direct if each.sender == sender and each.size == traversal.PROBE_BYTES
    ]


# --- the wire -----------------------------------------------------------------------------------


def test_the_frames_are_iroh_s() -> None:
    """The examples of docs/wire/quic.md 5.2, byte by byte."""
    pair = connected()
    server, client = pair.server.c.paths.traversal, pair.client.c.paths.traversal
    server.set_candidates([at("192.0.2.2")], pair.now)
    added = pair.server.c.control._frames[-1]
    assert server.encode(added) == bytes.fromhex("803d7f90 00 c0000202 1151")
    client.set_candidates([at("192.0.2.2")], pair.now)
    client.on_timer(pair.now)
    reached = pair.client.c.control._frames[-1]
    assert client.encode(reached) == bytes.fromhex("803d7f92 01 c0000202 1151")
    server.set_candidates([], pair.now)
    assert server.encode(added) is None, "it is not repeated once it is gone"
    assert server.encode(pair.server.c.control._frames[-1]) == bytes.fromhex("803d7f94 00")


def test_the_parameter_is_one_raw_byte() -> None:
    assert (
        bytes.fromhex("c0003d7f91120401 01 20")
        in TransportParameters(traversal_addresses=32).encode()
    )
    for body in (b"", b"\0", b"\x40\x20"):
        with pytest.raises(TransportError) as refusal:
            parameters.decode(bytes.fromhex("c0003d7f91120401") + bytes((len(body),)) + body)
        assert refusal.value.error_code == codes.TRANSPORT_PARAMETER_ERROR


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("without", ["traversal", "multipath"])
def test_both_sides_and_multipath_are_needed(side: str, without: str) -> None:
    options = {side: {without: False}}
    pair = Pair(**options).connect()  # type: ignore[arg-type]
    pair.settle(0.2)
    assert not pair.client.c.paths.traversal.is_on
    assert not pair.server.c.paths.traversal.is_on
    pair.client.c.paths.traversal.set_candidates([at("192.0.2.2")], pair.now)
    pair.client.inject(reach_out(1, at("192.0.2.2")))
    assert pair.server.close_reason is not None
    assert pair.server.close_reason.error_code == codes.PROTOCOL_VIOLATION


def test_a_frame_of_the_other_role_ends_the_connection() -> None:
    for side, payload in (
        ("client", add_address(0, at("192.0.2.2"))),
        ("client", frame(codes.REMOVE_ADDRESS, 0)),
        ("server", reach_out(1, at("192.0.2.2"))),
    ):
        pair = connected()
        sender = pair.client if side == "client" else pair.server
        sender.inject(payload)
        reason = pair.other(sender).close_reason
        assert reason is not None
        assert reason.error_code == codes.PROTOCOL_VIOLATION


# --- NATs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", NAT_KINDS)
@pytest.mark.parametrize("client", NAT_KINDS)
def test_thirteen_of_sixteen_pairs(client: NatKind, server: NatKind) -> None:
    pair = connected(client, server)
    began = pair.now
    pair.announce()
    if are_punchable(client, server):
        pair.run(lambda: bool(pair.punched()), seconds=2.0)
        assert pair.now - began < 1.0
    else:
        pair.run(seconds=10.0)
        assert probes(pair, "client")
        assert not pair.punched()
    # What was said over the relay arrived all the while.
    assert pair.client.close_reason is None
    assert pair.server.close_reason is None


def test_thirteen_it_is() -> None:
    assert sum(are_punchable(one, other) for one in NAT_KINDS for other in NAT_KINDS) == 13


@pytest.mark.parametrize("loss", [0.2, 0.4])
def test_lost_probes_are_repeated(loss: float) -> None:
    pair = connected("moderate", "moderate")
    for channel in (pair.to_client, pair.to_server):
        channel.conditions = channel.conditions.__class__(delay_s=0.02, loss=loss)
    pair.announce()
    pair.run(lambda: bool(pair.punched()), seconds=20.0)


# --- rounds -------------------------------------------------------------------------------------


def test_nine_probes_and_their_gaps() -> None:
    """docs/wire/quic.md 5.4: gaps of 33.3, 33.3, 66.6, 133 … ms and 2 s at most."""
    pair = connected("none", "moderate")
    target = at("198.51.100.77")
    pair.client.inject(reach_out(1, target))
    pair.run(seconds=30.0)
    times = [each.time for each in probes(pair, "server") if each.destination == target]
    assert len(times) == traversal.ATTEMPTS
    gaps = [later - earlier for earlier, later in pairwise(times)]
    expected = [0.0333, 0.0333, 0.0666, 0.1332, 0.2664, 0.5328, 1.0656, 2.0]
    assert gaps == pytest.approx(expected, abs=0.002)


def test_the_first_round_needs_no_candidate_of_the_server() -> None:
    pair = connected("moderate", "none")
    pair.announce(pair.client)
    pair.run(lambda: bool(probes(pair, "server")), seconds=1.0)
    assert pair.server.c.paths.traversal.round == 1


def test_candidates_told_one_by_one_do_not_end_each_round() -> None:
    pair = connected("moderate", "none")
    pair.announce(pair.client)
    for number in range(8):
        pair.server.inject(add_address(number, at("198.51.100.9", 5000 + number)))
        pair.settle(0.02)
    assert pair.client.c.paths.traversal.round <= 4
    pair.run(lambda: len({p.destination for p in probes(pair, "client")}) == 8, seconds=3.0)


def test_without_news_rounds_are_five_seconds_apart() -> None:
    pair = connected("moderate", "moderate")
    pair.announce()
    pair.settle(1.0)
    machine = pair.client.c.paths.traversal
    before = machine.round
    for _ in range(100):
        machine.punch(pair.now)
        pair.settle(0.01)
    assert machine.round == before
    pair.settle(5.0)
    assert machine.round == before + 1


def test_an_old_round_is_ignored_and_a_new_one_starts_afresh() -> None:
    pair = connected("none", "none")
    pair.client.inject(reach_out(3, at("198.51.100.7")))
    pair.client.inject(reach_out(2, at("198.51.100.8")))
    pair.settle(0.01)
    assert {each.destination for each in probes(pair, "server")} == {at("198.51.100.7")}
    pair.client.inject(reach_out(4, at("198.51.100.9")))
    before = len(probes(pair, "server"))
    pair.settle(5.0)
    later = Counter(each.destination for each in probes(pair, "server")[before:])
    assert later[at("198.51.100.7")] == 0


def test_an_answer_counts_only_from_where_it_was_asked() -> None:
    pair = connected("none", "none")
    machine = pair.client.c.paths.traversal
    pair.server.inject(add_address(0, at("198.51.100.2")))
    machine.set_candidates([at("198.51.100.1")], pair.now)
    machine.on_timer(pair.now)
    [(address, token)] = machine.take_probes(10_000, pair.now)
    assert not machine.on_response(token, at("198.51.100.2", 1))
    assert not machine.on_response(token, "relay")
    assert not machine.on_response(b"unknown!", address)
    assert machine.on_response(token, address)
    assert not machine.on_response(token, address), "once"


def test_a_removed_candidate_is_probed_no_more() -> None:
    pair = connected("none", "none")
    pair.announce(pair.client)
    pair.server.inject(add_address(0, at("198.51.100.77")))
    pair.settle(0.1)
    assert probes(pair, "client")
    pair.server.inject(frame(codes.REMOVE_ADDRESS, 0) + frame(codes.REMOVE_ADDRESS, 99))
    before = len(probes(pair, "client"))
    pair.settle(3.0)
    assert len(probes(pair, "client")) == before


def test_both_forms_of_an_ipv4_address_are_one() -> None:
    pair = connected("none", "none")
    mapped = IpAddr(IPv6Address("::ffff:198.51.100.77"), 4433)
    pair.client.inject(reach_out(1, mapped, at("198.51.100.77")))
    pair.settle(5.0)
    assert {each.destination for each in probes(pair, "server")} == {at("198.51.100.77")}
    assert len(probes(pair, "server")) == traversal.ATTEMPTS


def test_a_probe_moves_nothing() -> None:
    """A packet of probing frames only: neither side takes it for a migration."""
    pair = connected("open", "open")
    pair.announce()
    pair.settle(0.5)
    assert pair.server.c.paths[0].remote == pair.client.address
    assert not pair.server.seen(events.PathMigrated)
    assert pair.client.c.paths[0].remote == pair.server.address


# --- hostile peers ------------------------------------------------------------------------------


def test_a_third_party_gets_little_whoever_names_it() -> None:
    """A client begins rounds without end, all about one victim, on many ports."""
    pair = connected("none", "none")
    victims = [at("198.51.100.77", port) for port in range(1, 33)]
    pair.direct.clear()
    for number in range(1, 200):
        pair.client.inject(reach_out(number, *victims))
        pair.settle(0.05)
    seconds = 200 * 0.05
    to_victim = [each for each in pair.direct if each.destination in victims]
    most = limits.PROBES_PER_TARGET + limits.PROBES_PER_TARGET_PER_S * (seconds + 1)
    assert 0 < len(to_victim) <= most
    assert sum(each.size for each in to_victim) < 5_000


def test_what_one_connection_probes_is_paid_for_by_its_peer() -> None:
    """Victims by the hundred: each probe costs its peer a third of its bytes."""
    pair = connected("none", "none")
    pair.direct.clear()
    heard = pair.server.c.bytes_received
    for number in range(1, 100):
        victims = [at(f"198.51.{number}.{i}") for i in range(32)]
        pair.client.inject(reach_out(number, *victims))
        pair.settle(0.2)
    heard = pair.server.c.bytes_received
    sent = sum(each.size for each in pair.direct if each.sender == "server")
    assert 0 < sent <= limits.PROBE_ROOM_FACTOR * heard


def test_many_connections_share_what_a_victim_gets() -> None:
    allowance = ProbeAllowance()
    victim = at("198.51.100.77")
    now = 0.0
    assert sum(allowance.take(victim.ip, now) for _ in range(500)) == limits.PROBES_PER_TARGET
    assert allowance.take(at("198.51.100.78").ip, now), "another one has its own share"
    site = [IPv6Address(f"2001:db8:0:1::{i:x}") for i in range(500)]
    assert sum(allowance.take(ip, now) for ip in site) == limits.PROBES_PER_TARGET
    many = (IPv4Address(i << 8) for i in range(1 << 17, (1 << 17) + 2 * limits.PROBES_IN_ALL))
    sent = sum(allowance.take(ip, now) for ip in many)
    assert sent < limits.PROBES_IN_ALL
    assert allowance.refused


def test_too_many_candidates() -> None:
    many = [at("198.51.100.77", 1000 + i) for i in range(limits.MAX_TRAVERSAL_ADDRESSES + 1)]
    pair = connected("none", "none")
    pair.client.inject(reach_out(1, *many[:-1]) + reach_out(1, many[0]))
    assert pair.server.close_reason is None
    pair.client.inject(reach_out(1, many[-1]))
    assert pair.server.close_reason is not None
    assert pair.server.close_reason.error_code == codes.PROTOCOL_VIOLATION
    pair = connected("none", "none")
    for number, each in enumerate(many):
        pair.server.inject(add_address(number, each))
    assert pair.client.close_reason is None, "a client only leaves the surplus out"
    assert pair.client.c.paths.traversal.surplus == 1


def test_we_announce_no_more_than_the_peer_holds() -> None:
    many = [at("198.51.100.77", 1000 + i) for i in range(100)]
    pair = connected("none", "none")
    for side in pair.sides:
        side.c.paths.traversal.set_candidates(many, pair.now)
        pair.wants_flush(side)
    pair.settle(1.0)
    assert pair.server.close_reason is None
    assert pair.client.c.paths.traversal.surplus == 0


def test_a_flood_of_candidates_begins_few_rounds() -> None:
    pair = connected("none", "none")
    pair.announce(pair.client)
    pair.settle(0.1)
    before = pair.client.c.paths.traversal.round
    for number in range(500):
        pair.server.inject(add_address(number % 32, at("198.51.100.77", 1000 + number)))
        pair.settle(0.001)
    assert (
        pair.client.c.paths.traversal.round - before <= 500 * 0.001 / traversal.NEWS_INTERVAL_S + 2
    )


OWN = [at("192.168.1.10"), at("203.0.113.1")]


@pytest.mark.parametrize(
    ("text", "port", "worth"),
    [
        ("198.51.100.7", 4433, Worth.ALL),
        ("2001:db8::7", 4433, Worth.ALL),
        ("198.51.100.7", 0, Worth.NOTHING),
        ("0.0.0.0", 4433, Worth.NOTHING),
        ("0.1.2.3", 4433, Worth.NOTHING),
        ("::", 4433, Worth.NOTHING),
        ("224.0.0.251", 5353, Worth.NOTHING),
        ("ff02::fb", 5353, Worth.NOTHING),
        ("255.255.255.255", 4433, Worth.NOTHING),
        ("240.0.0.1", 4433, Worth.NOTHING),
        ("127.0.0.1", 4433, Worth.NOTHING),
        ("::1", 4433, Worth.NOTHING),
        ("169.254.1.1", 4433, Worth.NOTHING),
        ("fe80::1", 4433, Worth.NOTHING),
        ("192.168.1.10", 4433, Worth.NOTHING),
        ("192.168.1.11", 4433, Worth.ALL),
        ("203.0.113.1", 4434, Worth.ALL),
        ("10.1.2.3", 4433, Worth.LITTLE),
        ("172.16.0.1", 4433, Worth.LITTLE),
        ("100.64.0.1", 4433, Worth.LITTLE),
        ("fd00::1", 4433, Worth.LITTLE),
    ],
)
def test_what_a_candidate_is_worth(text: str, port: int, worth: Worth) -> None:
    assert worth_of(canonical(at(text, port)), OWN) is worth


def test_loopback_is_for_those_who_have_nothing_else() -> None:
    assert worth_of(at("127.0.0.1", 1), [at("127.0.0.1", 2)]) is Worth.ALL


def test_somebody_else_s_network_is_not_scanned() -> None:
    pair = connected("moderate", "none")  # the client is in 192.168/16
    pair.announce(pair.client)
    for number in range(30):
        pair.server.inject(add_address(number, at(f"10.0.0.{number}")))
    pair.settle(4.0)
    sent = Counter(each.destination for each in probes(pair, "client"))
    assert len(sent) <= limits.MAX_FOREIGN_PRIVATE_ADDRESSES * pair.client.c.paths.traversal.round
    assert sum(sent.values()) <= 30


numbers = st.sampled_from([0, 1, 2, 3, 31, 32, 33, 1 << 40, (1 << 62) - 1])
payloads = st.lists(
    st.one_of(
        st.builds(
            lambda kind, number, ip, port: frame(kind, number, ip + port.to_bytes(2, "big")),
            st.sampled_from([codes.ADD_ADDRESS_V4, codes.REACH_OUT_V4]),
            numbers,
            st.binary(min_size=4, max_size=4),
            st.integers(0, 65_535),
        ),
        st.builds(
            lambda kind, number, ip, port: frame(kind, number, ip + port.to_bytes(2, "big")),
            st.sampled_from([codes.ADD_ADDRESS_V6, codes.REACH_OUT_V6]),
            numbers,
            st.binary(min_size=16, max_size=16),
            st.integers(0, 65_535),
        ),
        st.builds(lambda number: frame(codes.REMOVE_ADDRESS, number), numbers),
        st.builds(frame, st.sampled_from([codes.ADD_ADDRESS_V6, codes.REACH_OUT_V4]), numbers),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=30, deadline=None)
@given(st.booleans(), payloads)
def test_whatever_a_peer_says_of_addresses(is_client: bool, said: list[bytes]) -> None:
    """It goes on, or it closes with a code; and what is kept of it is bounded."""
    pair = NattedPair("moderate", "none")
    pair.connect()
    pair.announce()
    hostile = pair.client if is_client else pair.server
    other = pair.other(hostile)
    for payload in said:
        hostile.inject(payload)
        pair.settle(0.02)
        machine = other.c.paths.traversal
        assert len(machine._remote) <= limits.MAX_TRAVERSAL_ADDRESSES
        assert len(machine._attempts) <= limits.MAX_TRAVERSAL_ADDRESSES + 1
        assert len(machine._tokens) <= traversal.MAX_TOKENS
    reason = other.close_reason
    assert reason is None or reason.error_code in (
        codes.PROTOCOL_VIOLATION,
        codes.FRAME_ENCODING_ERROR,
    )


def test_a_trace_names_the_frames() -> None:
    payload = add_address(3, at("192.0.2.2")) + reach_out(2, at("2001:db8::7"))
    payload += frame(codes.REMOVE_ADDRESS, 3) + frame(codes.PING)
    names = [each["frame_type"] for each in qlog.describe(payload)]
    assert names == ["add_address", "reach_out", "remove_address", "ping"]


# --- what each side sees of the other -----------------------------------------------------------


def test_each_side_learns_where_the_other_sees_it() -> None:
    pair = NattedPair("moderate", "moderate")
    pair.connect()
    pair.settle(0.3)
    assert not pair.client.seen(events.AddressObserved), "a relay sees no IP address"
    pair.announce()
    pair.run(lambda: bool(pair.punched()), seconds=2.0)
    pair.settle(1.0)
    for side in pair.sides:
        assert side.seen(events.AddressObserved)[-1].address == pair.outer(side)


def test_reports_are_iroh_s_frames_and_the_newest_counts() -> None:
    pair = connected()
    observed = pair.client.c.paths.observed
    for number, address in ((7, at("192.0.2.2")), (6, at("192.0.2.3")), (7, at("192.0.2.4"))):
        payload = frame(codes.OBSERVED_ADDRESS_V4, number, address_bytes(address))
        source = at("198.51.100.2")
        pair.deliver(pair.client, source, [pair.server.craft(payload)])  # type: ignore[arg-type]
    assert observed.address == at("192.0.2.2")
    server = pair.server.c.paths.observed
    assert server.report(at("192.0.2.2")).hex().startswith("809f81a6")
    assert server.report(at("192.0.2.2")).hex().endswith("c00002021151")


def test_a_report_that_nobody_asked_for_ends_the_connection() -> None:
    pair = Pair(server={"traversal": False}).connect()
    pair.settle(0.2)
    pair.client.inject(frame(codes.OBSERVED_ADDRESS_V4, 0, address_bytes(at("192.0.2.2"))))
    assert pair.server.close_reason is not None
    assert pair.server.close_reason.error_code == codes.PROTOCOL_VIOLATION
    with pytest.raises(TransportError):
        parameters.decode(bytes.fromhex("c00000009f81a176 01 03"))
    assert parameters.decode(bytes.fromhex("c00000009f81a176 01 02")).address_discovery == 2
