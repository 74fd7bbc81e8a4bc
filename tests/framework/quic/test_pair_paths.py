"""Addresses, connection ids, datagram sizes and congestion: what happens below the streams."""

from __future__ import annotations

import itertools
import os

import pytest
from quic_pair import HostPort, Pair, Side, Transfer, are_over, frame, transfer

from dialkey.quic import codes, events, stateless
from dialkey.quic.connection import State
from dialkey.quic.paths.bbr import bbr
from dialkey.quic.paths.congestion import Cubic, MakeController
from dialkey.testing import Conditions

KIB = 1024

EITHER = pytest.mark.parametrize("with_multipath", [False, True], ids=["single", "multipath"])


def connected(
    with_multipath: bool = True, *, make_controller: MakeController = bbr, **kwargs: object
) -> Pair:
    options = {"multipath": with_multipath, "make_controller": make_controller}
    pair = Pair(client=dict(options), server=dict(options), **kwargs)  # type: ignore[arg-type]
    return pair.connect(seconds=60)


def move(side: Side, address: object) -> None:
    """Send from another address from now on, as behind a NAT that forgot us."""
    side.address = address  # type: ignore[assignment]


# --- the client's address changes -------------------------------------------------------------------


@EITHER
def test_the_server_follows_a_client_whose_address_changes(with_multipath: bool) -> None:
    pair = connected(with_multipath)
    running = [Transfer(side, 1024 * KIB) for side in pair.sides]
    pair.run(lambda: len(pair.server.data.get(running[0].stream, b"")) > 300 * KIB)
    move(pair.client, "another port")
    pair.run(lambda: are_over(running))
    for each in running:
        each.check()
    assert pair.server.path.remote == "another port"
    assert pair.server.path.validated
    assert pair.server.seen(events.PathValidated)
    (moved,) = pair.server.seen(events.PathMigrated)
    assert (moved.previous, moved.remote) == ("client", "another port")


@EITHER
def test_a_new_connection_id_hides_that_both_addresses_are_one_client(with_multipath: bool) -> None:
    pair = connected(with_multipath)
    pair.settle()
    before = pair.sent[-1].data[1:9] if pair.sent[-1].sender == "server" else b""
    used = {each.data[1:9] for each in pair.sent if each.sender == "server" and not each.is_long}
    move(pair.client, "another port")
    at = len(pair.sent)
    transfer((pair.client, 10 * KIB), (pair.server, 10 * KIB))
    pair.settle()
    there = {
        each.data[1:9]
        for each in pair.sent[at:]
        if each.sender == "server" and each.destination == "another port"
    }
    assert not there & used, before
    # What was given up was told, and replaced.
    assert pair.client.seen(events.CidRetired)
    assert len(pair.client.c.paths.ids.sets[0].local) == 5


@EITHER
def test_a_client_that_changes_networks_uses_another_connection_id(with_multipath: bool) -> None:
    pair = connected(with_multipath)
    pair.settle()
    at = len(pair.sent)
    used = {each.data[1:9] for each in pair.sent if each.sender == "client" and not each.is_long}
    move(pair.client, "another network")
    pair.client.c.network_changed(pair.now)
    pair.wants_flush(pair.client)
    pair.settle()
    after = {each.data[1:9] for each in pair.sent[at:] if each.sender == "client"}
    assert len(after) == 1
    assert not after & used
    assert pair.server.path.remote == "another network"


def test_an_unproven_address_gets_at_most_three_times_what_came_from_it() -> None:
    pair = connected(False)
    transfer((pair.client, 100 * KIB), (pair.server, 100 * KIB))
    stream = pair.server.must_open(uni=True)
    pair.server.write(stream, bytes(500 * KIB))
    # One packet comes from somewhere, perhaps forged by somebody on the way; no more follow.
    spoofed = pair.client.craft(bytes((codes.PING,)) + bytes(100))
    pair.deliver(pair.server, "a victim", [spoofed])
    pair.to_server.is_up = False
    at = len(pair.sent)
    pair.run(seconds=0.5)
    there = sum(each.size for each in pair.sent[at:] if each.destination == "a victim")
    assert there <= 3 * len(spoofed)
    pair.run(seconds=10)
    there = sum(each.size for each in pair.sent[at:] if each.destination == "a victim")
    assert there <= 3 * len(spoofed)


def test_an_address_that_proves_nothing_is_given_up_for_the_one_before() -> None:
    pair = connected(False)
    transfer((pair.client, 100 * KIB), (pair.server, 100 * KIB))
    spoofed = pair.client.craft(bytes((codes.PING,)))
    pair.deliver(pair.server, "a victim", [spoofed])
    assert pair.server.path.remote == "a victim"
    # The client itself says nothing that would bring the server back.
    pair.to_server.is_up = False
    pair.run(lambda: pair.server.path.remote == "client", seconds=5)
    assert pair.server.path.validated
    pair.to_server.is_up = True
    transfer((pair.client, 100 * KIB), (pair.server, 100 * KIB))


def test_the_true_client_wins_its_path_back_at_once() -> None:
    """Somebody repeats a packet of the client from elsewhere, faster than the client itself."""
    pair = connected(False)
    pair.deliver(pair.server, "a thief", [pair.client.craft(bytes((codes.PING,)))])
    assert pair.server.path.remote == "a thief"
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, b"here I am", finish=True)
    pair.run(lambda: stream in pair.server.ended, seconds=1)
    assert pair.server.path.remote == "client"
    pair.run(lambda: pair.server.path.validated, seconds=2)
    transfer((pair.server, 100 * KIB))


def test_a_probe_from_another_address_gets_an_answer_and_moves_nothing() -> None:
    pair = connected(False)
    pair.settle()
    at = len(pair.sent)
    probe = frame(codes.PATH_CHALLENGE, b"12345678")
    pair.deliver(pair.server, "another way", [pair.client.craft(probe)])
    pair.flush()
    answers = [each for each in pair.sent[at:] if each.destination == "another way"]
    assert len(answers) == 1
    assert pair.server.path.remote == "client"
    pair.deliver(pair.client, "server", [answers[0].data])
    assert pair.client.close_reason is None


def test_an_old_packet_from_an_old_address_moves_nothing() -> None:
    pair = connected(False)
    pair.settle()
    late = pair.client.craft(bytes((codes.PING,)))
    transfer((pair.client, 10 * KIB))
    pair.deliver(pair.server, "an old address", [late])
    assert pair.server.path.remote == "client"


@EITHER
@pytest.mark.parametrize("seed", range(4))
def test_a_client_that_moves_again_and_again_over_a_bad_link(
    seed: int, with_multipath: bool
) -> None:
    conditions = Conditions(delay_s=0.02, loss=0.05, jitter_s=0.01)
    pair = connected(with_multipath, seed=seed, conditions=conditions)
    running = [Transfer(side, 400 * KIB) for side in pair.sides]
    for i in itertools.count():
        if are_over(running):
            break
        move(pair.client, f"port {i}")
        pair.run(seconds=0.3)
        assert i < 400, pair
    for each in running:
        each.check()
    pair.settle(5)
    assert pair.server.path.validated
    for side in pair.sides:
        # No id is lost on the way: both still hold as many as they may.
        assert len(side.c.paths.ids.sets[0].local) == 5
        assert len(side.c.paths.ids.sets[0].peer.spare) == 4


def test_another_network_starts_with_a_small_window_another_port_does_not() -> None:
    pair = connected(False)
    move(pair.client, HostPort("192.0.2.1", 1000))
    transfer((pair.client, 10 * KIB), (pair.server, 500 * KIB))
    before = pair.server.path.recovery.cc
    pair.server.path.recovery.cc.window = 300_000
    move(pair.client, HostPort("192.0.2.1", 2000))
    transfer((pair.client, 1 * KIB))
    assert pair.server.path.recovery.cc is before
    move(pair.client, HostPort("198.51.100.1", 2000))
    pair.client.send_datagram(b"from here")
    pair.run(lambda: bool(pair.server.datagrams))
    assert pair.server.path.recovery.cc is not before
    assert pair.server.path.recovery.cc.window < 30_000
    assert pair.server.path.mtu.current == 1200


def test_a_client_does_not_follow_a_server() -> None:
    pair = connected(False)
    pair.settle()
    before = pair.client.c.packets_received
    pair.deliver(pair.client, "not the server", [pair.server.craft(bytes((codes.PING,)))])
    assert pair.client.c.packets_received == before
    assert pair.client.path.remote == "server"


def test_lost_challenges_are_repeated() -> None:
    pair = connected(False)
    pair.settle()
    move(pair.client, "another port")
    at = len(pair.sent)
    pair.drop = lambda datagram: (
        datagram.sender == "server" and datagram.size >= 90 and len(pair.sent) < at + 5
    )
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, bytes(5000), finish=True)
    pair.run(lambda: pair.server.path.remote == "another port", seconds=1)
    pair.run(lambda: pair.server.path.validated, seconds=5)


# --- connection ids and stateless resets -----------------------------------------------------------


@EITHER
def test_five_ids_are_issued_and_no_more(with_multipath: bool) -> None:
    pair = connected(with_multipath)
    pair.settle()
    for side in pair.sides:
        local = side.c.paths.ids.sets[0].local
        assert len(local) == 5
        assert len({each.cid for each in local}) == 5
        other = pair.other(side).c.paths.ids.sets[0].peer
        assert other.active is not None
        held = {other.active.cid, *(each.cid for each in other.spare)}
        assert held == {each.cid for each in local}


@EITHER
def test_each_id_can_be_used_up_and_is_replaced(with_multipath: bool) -> None:
    pair = connected(with_multipath)
    pair.settle()
    seen = set()
    for _ in range(25):
        pair.client.c.paths.ids.rotate(pair.client.path.cids)
        active = pair.client.c.paths.ids.sets[0].peer.active
        assert active is not None
        assert active.cid not in seen
        seen.add(active.cid)
        transfer((pair.client, 100))
        pair.settle(0.2)
    assert len(pair.server.c.paths.ids.by_cid) <= 5 + 7 * 5
    assert len(pair.server.seen(events.CidRetired)) == 25


def test_the_peer_may_ask_for_its_ids_to_be_given_back() -> None:
    """NEW_CONNECTION_ID with retire_prior_to: all older ones are retired, and the new one is used."""
    pair = connected(False)
    pair.settle()
    new = frame(codes.NEW_CONNECTION_ID, 100, 100, b"\x08" + b"new id 1", bytes(16))
    pair.server.c.paths.ids.by_cid[b"new id 1"] = (0, 100)
    pair.server.c.paths.ids.sets[0].next_sequence = 101
    pair.server.inject(new)
    active = pair.client.c.paths.ids.sets[0].peer.active
    assert active is not None
    assert active.cid == b"new id 1"
    pair.run(lambda: len(pair.server.seen(events.CidRetired)) == 5, seconds=1)
    transfer((pair.client, 1000))


def test_a_stateless_reset_ends_the_connection_at_once() -> None:
    pair = connected(False)
    pair.settle()
    active = pair.client.path.cids.peer.active
    assert active is not None
    assert active.reset_token is not None
    reset = stateless.stateless_reset(active.reset_token, 100, os.urandom)
    assert reset is not None
    pair.deliver(pair.client, "server", [reset])
    assert pair.client.c.state is State.GONE
    reason = pair.client.close_reason
    assert reason is not None
    assert reason.cause == "reset"
    assert len(pair.client.seen(events.Drained)) == 1


def test_every_token_in_force_is_made_known() -> None:
    pair = connected(False)
    pair.settle()
    for _ in range(8):
        pair.client.c.paths.ids.rotate(pair.client.path.cids)
        pair.wants_flush(pair.client)
        pair.settle(0.2)
        active = pair.client.path.cids.peer.active
        assert active is not None
        assert active.reset_token in pair.client.reset_tokens


# --- datagram sizes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mtu", "least"), [(1200, 1200), (1240, 1200), (1300, 1270), (1400, 1370), (1452, 1452)]
)
def test_the_largest_datagram_is_found(mtu: int, least: int) -> None:
    pair = connected(False, conditions=Conditions(mtu_bytes=mtu))
    transfer((pair.client, 2000 * KIB), (pair.server, 500 * KIB))
    pair.settle(30)
    for side in pair.sides:
        assert least <= side.path.mtu.current <= mtu


def test_no_probe_is_larger_than_the_peer_takes() -> None:
    pair = connected(False, conditions=Conditions())
    limit = min(pair.client.config.max_datagram, pair.client.c.peer_parameters.max_udp_payload_size)
    pair.settle(30)
    assert pair.client.path.mtu.maximum == limit
    assert max(each.size for each in pair.sent) <= limit


def test_a_path_that_becomes_smaller_is_noticed() -> None:
    """A black hole: nobody says that large datagrams vanish."""
    pair = connected(False)
    transfer((pair.client, 1000 * KIB))
    assert pair.client.path.mtu.current == 1452
    for channel in (pair.to_client, pair.to_server):
        channel.conditions = Conditions(mtu_bytes=1300)
    begin = pair.now
    transfer((pair.client, 1000 * KIB), seconds=60)
    assert pair.client.path.mtu.current <= 1300
    assert pair.now - begin < 20


def test_a_single_message_gets_through_a_black_hole() -> None:
    pair = connected(False)
    transfer((pair.client, 1000 * KIB), (pair.server, 1000 * KIB))
    for channel in (pair.to_client, pair.to_server):
        channel.conditions = Conditions(mtu_bytes=1250)
    begin = pair.now
    transfer((pair.client, 5000), (pair.server, 5000), seconds=60)
    assert pair.now - begin < 10


def test_lost_probes_do_not_slow_the_sender_down() -> None:
    conditions = Conditions(mtu_bytes=1200, delay_s=0.02)
    pair = connected(False, make_controller=Cubic, conditions=conditions)
    transfer((pair.client, 300 * KIB))
    pair.settle(5)
    assert pair.client.path.recovery.lost_packets > 0
    cc = pair.client.path.recovery.cc
    assert isinstance(cc, Cubic)
    assert cc.ssthresh == float("inf")


# --- loss and congestion -----------------------------------------------------------------------------


def test_timeouts_double_up_to_a_limit() -> None:
    pair = connected(False)
    transfer((pair.client, 100 * KIB))
    pair.to_server.is_up = False
    at = len(pair.sent)
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, b"?")
    pair.run(seconds=20)
    times = sorted({each.time for each in pair.sent[at:] if each.sender == "client"})
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps[0] < 0.2
    for a, b in itertools.pairwise(gaps[:5]):
        assert b == pytest.approx(2 * a, rel=0.1)
    assert max(gaps) == pytest.approx(2.0, abs=0.05)


def test_a_probe_carries_the_data() -> None:
    """The first copy is lost; the timeout's own packet brings the data, not only a PING."""
    pair = connected(False)
    transfer((pair.client, 100 * KIB))
    pair.settle()
    begin = pair.now
    pair.drop = lambda datagram: datagram.sender == "client" and datagram.time == begin
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, b"important", finish=True)
    pair.run(lambda: stream in pair.server.ended, seconds=1)
    assert pair.now - begin < 0.15


def test_the_window_shrinks_to_its_minimum_after_a_long_outage() -> None:
    pair = connected(False, make_controller=Cubic, conditions=Conditions(delay_s=0.02))
    sending = Transfer(pair.client, 5000 * KIB)
    pair.run(lambda: len(pair.server.data.get(sending.stream, b"")) > 1000 * KIB)
    assert pair.client.path.recovery.cc.window > 50_000
    pair.to_server.is_up = pair.to_client.is_up = False
    pair.run(seconds=5)
    pair.to_server.is_up = pair.to_client.is_up = True
    smallest = 1 << 30

    def watch() -> bool:
        nonlocal smallest
        smallest = min(smallest, pair.client.path.recovery.cc.window)
        return sending.is_over

    pair.run(watch, seconds=60)
    sending.check()
    assert smallest <= 2 * 1452


def test_a_bottleneck_is_shared_and_used() -> None:
    """1 MB/s: a transfer takes little longer than it must, and the queue does not overflow for ever."""
    bottleneck = Conditions(delay_s=0.02, rate_bytes_s=1_000_000, queue_bytes=60_000)
    pair = connected(False, conditions=bottleneck)
    begin = pair.now
    transfer((pair.client, 5000 * KIB))
    took = pair.now - begin
    assert took < 1.4 * 5000 * KIB / 1_000_000
    assert pair.to_server.lost < 0.05 * pair.to_server.sent


@pytest.mark.parametrize("make", [bbr, Cubic])
def test_in_flight_never_exceeds_the_window_by_more_than_probes(make: MakeController) -> None:
    conditions = Conditions(delay_s=0.05, loss=0.03)
    pair = connected(False, conditions=conditions, seed=2, make_controller=make)
    sending = Transfer(pair.client, 300 * KIB)

    def watch() -> bool:
        cc = pair.client.path.recovery.cc
        assert cc.in_flight >= 0
        assert cc.window >= 2 * 1200
        return sending.is_over

    pair.run(watch, seconds=120)
    sending.check()


def test_acknowledgements_are_frequent_and_not_for_each_packet() -> None:
    pair = connected(False)
    transfer((pair.client, 1000 * KIB))
    down = [each for each in pair.sent if each.sender == "server" and each.size < 100]
    up = [each for each in pair.sent if each.sender == "client"]
    assert len(down) < len(up) / 2
    at = len(pair.sent)
    pair.client.send_datagram(b"x")
    pair.run(lambda: len(pair.sent) > at + 1)
    assert pair.sent[at + 1].time - pair.sent[at].time <= 0.01 + 0.026


def test_the_round_trip_time_is_measured() -> None:
    pair = connected(False, conditions=Conditions(delay_s=0.075))
    transfer((pair.client, 100 * KIB), (pair.server, 100 * KIB))
    for side in pair.sides:
        assert side.path.recovery.srtt == pytest.approx(0.15, rel=0.1)


# --- more than one path ------------------------------------------------------------------------------


def test_a_second_path_whose_ids_are_late_does_not_spin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client opens a path before the server has an id of the client's for it."""
    pair = connected(True)
    client = pair.client.c
    # As if all frames with the client's ids for path 1 were lost: the server has none.
    pair.server.c.paths.ids.sets[1].peer.active = None
    pair.server.c.paths.ids.sets[1].peer.spare = []
    issue_cids = client.paths.ids.issue
    monkeypatch.setattr(client.paths.ids, "issue", lambda *_: None)
    path = client.open_path("server", pair.now)
    assert path is not None
    pair.wants_flush(pair.client)
    pair.settle(2)
    assert pair.server.c.paths[1].challenge is not None
    assert not path.validated
    monkeypatch.undo()
    issue_cids(path.cids)
    pair.wants_flush(pair.client)
    pair.run(lambda: path.validated and pair.server.c.paths[1].validated, seconds=5)


@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_a_second_path_to_the_same_place(loss: float) -> None:
    pair = connected(True, conditions=Conditions(loss=loss), seed=9)
    pair.settle()
    path = pair.client.c.open_path("server", pair.now)
    assert path is not None
    pair.wants_flush(pair.client)
    pair.run(lambda: path.validated and pair.server.c.paths[1].validated, seconds=5)
    for side in pair.sides:
        side.c.paths.select(1)
    transfer((pair.client, 300 * KIB), (pair.server, 300 * KIB))
    assert path.recovery.sent_packets > 100
