"""Several paths in one connection: data, acknowledgements, loss, ends and limits of each of them."""

from __future__ import annotations

import pytest
from quic_pair import Side, Transfer, are_over, builder_of, frame, transfer
from quic_paths import PathPair, Way, footprint

from dialkey.quic import codes, events
from dialkey.quic.connection import State
from dialkey.quic.paths import multipath
from dialkey.quic.paths.path import MAX_PENDING_RESPONSES
from dialkey.quic.paths.received import ReceivedPackets
from dialkey.testing import Conditions

KIB = 1024
FAST = Conditions(delay_s=0.01)
WILD = [
    (Conditions(delay_s=0.01, loss=0.05), Conditions(delay_s=0.08, jitter_s=0.04)),
    (Conditions(delay_s=0.15, duplicate=0.2), Conditions(delay_s=0.02, loss=0.1)),
    (Conditions(delay_s=0.03, reorder=0.3), Conditions(delay_s=0.03, reorder=0.3, duplicate=0.1)),
]


def ways(pair: PathPair, side: Side) -> dict[int, Way | None]:
    return {path.id: pair.way_of(path) for path in side.c.paths.values() if not path.abandoned}


# --- carrying data -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_bytes_arrive_whole_while_both_sides_keep_changing_paths(seed: int) -> None:
    """Asymmetric delay, loss, reordering and duplication on three ways at once."""
    pair = PathPair(*WILD, seed=seed).with_paths()
    running = [Transfer(side, 1500 * KIB, seed=seed) for side in pair.sides]
    changed_at = pair.now

    def change() -> bool:
        nonlocal changed_at
        if pair.now - changed_at > 0.3:
            changed_at = pair.now
            for side in pair.sides:
                current = side.c.paths.selected
                assert current is not None
                pair.select((current.id + pair.rng.choice([1, 2])) % 3, side)
        return are_over(running)

    pair.run(change, seconds=300)
    for each in running:
        each.check()
    for side in pair.sides:
        assert all(path.recovery.sent_packets > 10 for path in side.c.paths.values())


def test_the_same_seed_gives_the_same_faults() -> None:
    def trace(seed: int) -> list[tuple[str, object]]:
        pair = PathPair(*WILD, seed=seed).with_paths()
        transfer((pair.client, 100 * KIB), (pair.server, 100 * KIB))
        return [(each.sender, each.destination) for each in pair.sent]

    first, second, other = trace(7), trace(7), trace(8)
    assert first == second
    assert first != other


def test_each_path_measures_its_own_round_trip() -> None:
    pair = PathPair(FAST, (Conditions(delay_s=0.02), Conditions(delay_s=0.1))).with_paths()
    for path_id, expected in ((0, 0.02), (1, 0.12)):
        pair.select(path_id)
        transfer((pair.client, 200 * KIB), (pair.server, 200 * KIB))
        for side in pair.sides:
            path = side.c.paths[path_id]
            assert path.recovery.srtt == pytest.approx(expected, rel=0.15)
            assert path.mtu.current == 1452
    windows = {path.recovery.cc.window for path in pair.client.c.paths.values()}
    assert len(windows) == 2, "each path has a window of its own"


def test_an_attempt_that_nobody_answers_does_not_prolong_the_end() -> None:
    pair = PathPair(FAST, FAST)
    pair.connect()
    pair.settle(1)
    pair.ways[1].cut()
    assert pair.open_path(pair.ways[1]) is not None
    pair.settle(0.1)
    assert len(pair.client.c.paths) == 2
    pair.client.c.close(0, b"", pair.now)
    assert pair.client.c.closing.gone_at is not None
    assert pair.client.c.closing.gone_at - pair.now < 1.0


def test_what_arrived_on_a_path_that_is_over_is_acknowledged_on_another() -> None:
    pair = PathPair(FAST, FAST).with_paths()
    late = pair.client.c.paths[1]
    pair.select(0)
    stream = pair.client.must_open(uni=True)
    pair.select(1, pair.client)
    pair.client.write(stream, b"on path 1", finish=True)
    pair.flush()
    assert pair.abandon(pair.server, 1, codes.PATH_UNSTABLE_OR_POOR)
    pair.run(lambda: stream in pair.server.ended, seconds=5)
    pair.settle(3)
    assert not pair.client.c.streams.send_halves
    assert late.id not in pair.client.c.paths


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("sender", ["client", "server"])
def test_one_direction_of_the_path_in_use_goes_dark(direction: str, sender: str) -> None:
    pair = PathPair(FAST, Conditions(delay_s=0.05)).with_paths()
    moving = Transfer(getattr(pair, sender), 3000 * KIB)
    receiver = pair.other(moving.sender)
    pair.run(lambda: len(receiver.data.get(moving.stream, b"")) > 500 * KIB)
    pair.ways[0].cut(up=direction == "up", down=direction == "down")
    begin = pair.now
    got = len(receiver.data[moving.stream])
    pair.run(lambda: len(receiver.data[moving.stream]) > got + 200 * KIB, seconds=4)
    assert pair.now - begin < 2
    pair.run(lambda: moving.is_over)
    moving.check()


def test_one_lost_packet_makes_no_path_suspect() -> None:
    """A new path whose timeout is still long: it is asked once more before it is left."""
    pair = PathPair(FAST, Conditions(delay_s=0.15)).with_paths()
    pair.select(1)
    pair.settle(10)
    second = pair.client.c.paths[1]
    second.recovery.variance = second.recovery.srtt
    begin = pair.now
    pair.drop = lambda datagram: datagram.sender == "client" and datagram.time == begin
    pair.client.send_datagram(b"lost")
    pair.settle(3)
    assert not pair.client.seen(events.PathSuspected)


def test_what_was_sent_on_a_suspect_path_for_want_of_another_is_sent_again() -> None:
    pair = PathPair(FAST, FAST).with_paths()
    pair.chooses = False
    pair.select(0)
    pair.ways[0].cut()
    pair.ways[1].cut()
    pair.client.send_datagram(b"?")
    pair.settle(2)
    core = pair.client.c
    core.paths[1].ping_pending = True
    pair.wants_flush(pair.client)
    pair.settle(2)
    assert all(path.suspect for path in core.paths.values())
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, bytes(20 * KIB), finish=True)
    pair.flush()
    assert core.paths[0].recovery.cc.in_flight > 10 * KIB
    # No choice is made: the path that answers again is used by itself.
    multipath_state = core.paths.multipath
    assert multipath_state is not None
    multipath_state.selected_id = None
    pair.ways[1].mend()
    pair.run(lambda: stream in pair.server.ended, seconds=3)


def test_while_a_rebound_path_is_proved_again_another_carries_the_data() -> None:
    pair = PathPair(Conditions(delay_s=0.1), FAST).with_paths()
    pair.select(0)
    moving = Transfer(pair.server, 2000 * KIB)
    pair.run(lambda: len(pair.client.data.get(moving.stream, b"")) > 500 * KIB)
    pair.ways[0].rebind()
    server = pair.server.c
    pair.run(lambda: not server.paths[0].validated, seconds=1)
    assert server.paths.selected is server.paths[1]
    pair.run(lambda: moving.is_over)
    moving.check()
    assert server.paths[0].validated
    assert server.paths.selected is server.paths[0]


def test_an_acknowledgement_that_may_not_be_sent_yet_does_not_spin() -> None:
    """All that is left is an address that proved nothing, and it has used up what it may get."""
    pair = PathPair(FAST, FAST).with_paths()
    pair.chooses = False
    pair.select(0)
    pair.settle()
    pair.ways[0].rebind()
    pair.client.send_datagram(b"from another port")
    pair.run(lambda: not pair.server.c.paths[0].validated, seconds=1)
    # From now on the server hears the second path only; and the client has given that one up.
    pair.ways[0].cut()
    moved = pair.server.c.paths[0]
    moved.count_sent(max(0, moved.amplification_room() - 20))
    second = pair.client.c.paths[1]
    cid = second.cid
    assert cid is not None
    for payload in (frame(codes.PATH_ABANDON, 1, 0), bytes((codes.PING,))):
        packet = builder_of(pair.client.c).seal(second, payload, cid)
        pair.deliver(pair.server, pair.ways[1].client, [packet])
    assert pair.server.c.paths.selected is moved
    pair.settle(2)


# --- opening and giving up ---------------------------------------------------------------------------


def cycle(pair: PathPair, turn: int, path_id: int, by: Side) -> int:
    """Open a path over a way, move there, give up the one before; return the new path's id."""
    way = pair.ways[turn % len(pair.ways)]
    opened = pair.open_path(way)
    if opened is None:
        pair.run(lambda: bool(pair.open_path(way)), seconds=5)
        opened = max(pair.client.c.paths.values(), key=lambda path: path.id)
    server = pair.server.c
    pair.run(
        lambda: opened.validated and opened.id in server.paths and server.paths[opened.id].validated
    )
    pair.select(opened.id)
    assert pair.abandon(by, path_id, codes.APPLICATION_ABANDON_PATH)
    return opened.id


@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_two_hundred_paths_one_after_the_other_leave_nothing_behind(loss: float) -> None:
    conditions = Conditions(delay_s=0.01, loss=loss)
    pair = PathPair(conditions, conditions, seed=3).with_paths()
    pair.abandon(pair.client, 0, codes.APPLICATION_ABANDON_PATH)
    path_id, sizes = 1, {}
    for turn in range(200):
        path_id = cycle(pair, turn, path_id, pair.sides[turn % 2])
        if turn % 10 == 0:
            transfer((pair.client, 5 * KIB), (pair.server, 5 * KIB))
        if turn == 20:
            pair.settle(10)
            sizes = {side.name: footprint(side) for side in pair.sides}
    pair.settle(10)
    assert path_id >= 200
    for side in pair.sides:
        state = side.c.paths.multipath
        assert state is not None
        assert len(side.c.paths) == 1
        assert len(state.abandoned) <= 2
        # Each id that is over was replaced by exactly one.
        assert state.local_max == 7 + path_id
        assert state.peer_max == state.local_max
        now, before = footprint(side), sizes[side.name]
        assert all(now[what] <= before[what] + 2 for what in now), (before, now)
        assert side.close_reason is None


def test_paths_that_never_worked_use_up_no_allowance_for_good() -> None:
    """More attempts over a dead way than there are ids: there is always another (duty of both)."""
    pair = PathPair(FAST, FAST)
    pair.connect()
    pair.settle()
    pair.ways[1].cut()
    for _ in range(30):
        path = pair.open_path(pair.ways[1])
        assert path is not None
        pair.settle(0.5)
        assert pair.abandon(pair.client, path.id, codes.PATH_UNSTABLE_OR_POOR)
        pair.settle(0.5)
    pair.settle(5)
    pair.ways[1].mend()
    path = pair.open_path(pair.ways[1])
    assert path is not None
    pair.run(lambda: path.validated, seconds=2)
    assert path.id == 31
    for side in pair.sides:
        state = side.c.paths.multipath
        assert state is not None
        assert state.local_max == 7 + 30


def test_an_attempt_that_was_given_up_is_answered_late() -> None:
    pair = PathPair(FAST, Conditions(delay_s=1.0))
    pair.connect()
    pair.settle()
    path = pair.open_path(pair.ways[1])
    assert path is not None
    pair.settle(1.5)
    pair.client.c.paths.give_up(path, pair.now)
    assert path.parked
    pair.settle(1)
    assert not path.parked, "the answer shows that the way works"
    pair.run(lambda: path.validated and pair.server.c.paths[1].validated, seconds=10)


def test_a_parked_attempt_that_the_peer_abandons_is_over() -> None:
    """Its late packets change nothing any more, and wake nobody up."""
    pair = PathPair(FAST, FAST)
    pair.connect()
    pair.settle()
    pair.ways[1].cut(up=False)
    path = pair.open_path(pair.ways[1])
    assert path is not None
    pair.settle(1)
    pair.client.c.paths.give_up(path, pair.now)
    late = builder_of(pair.server.c).seal(
        pair.server.c.paths[1],
        bytes((codes.PING,)),
        pair.server.c.paths[1].cid or b"",
    )
    assert pair.abandon(pair.server, 1, codes.PATH_UNSTABLE_OR_POOR)
    pair.settle(0.1)
    assert path.abandoned
    pair.deliver(pair.client, pair.ways[1].server, [late])
    pair.settle(10)
    assert 1 not in pair.client.c.paths
    assert pair.open_path(pair.ways[1]) is not None


def test_an_attempt_that_was_given_up_leaves_its_id_and_its_packet_numbers() -> None:
    """Another way, the same path id: under the same keys no packet number may come again."""
    pair = PathPair(FAST, FAST, FAST)
    pair.connect()
    pair.settle()
    pair.ways[1].cut()
    path = pair.open_path(pair.ways[1])
    assert path is not None
    pair.settle(3)
    used = path.next_number
    assert used > 1
    pair.client.c.paths.give_up(path, pair.now)
    at = len(pair.sent)
    pair.settle(60)
    assert not [e for e in pair.sent[at:] if e.destination == pair.ways[1].server], (
        "nothing is sent"
    )
    again = pair.open_path(pair.ways[2])
    assert again is path
    assert (again.id, again.next_number) == (1, used)
    pair.run(lambda: path.validated and pair.server.c.paths[1].validated, seconds=2)
    state = pair.client.c.paths.multipath
    assert state is not None
    assert state.next_id == 2


def test_an_answer_that_never_comes_is_not_waited_for() -> None:
    """The peer's own PATH_ABANDON is lost for good: the path is forgotten, and replaced, all the same."""
    pair = PathPair(FAST, FAST).with_paths()
    pair.select(0)
    pair.settle()
    pair.drop = lambda datagram: datagram.sender == "server"
    assert pair.abandon(pair.client, 1, codes.PATH_UNSTABLE_OR_POOR)
    state = pair.client.c.paths.multipath
    assert state is not None
    pair.run(lambda: state.local_max == 8, seconds=5)
    # Late packets are read for much longer: a peer that does not know must not be told of an end.
    assert any(place == 1 for place, _ in pair.client.c.paths.ids.by_cid.values())
    pair.drop = None
    pair.settle(5)
    assert 1 not in pair.client.c.paths
    assert state.local_max == 8, "a late answer raises nothing again"
    assert pair.client.close_reason is None


def test_the_last_path_that_works_is_not_given_up() -> None:
    pair = PathPair(FAST, FAST)
    pair.connect()
    pair.settle()
    pair.ways[1].cut()
    assert not pair.abandon(pair.client, 0, codes.APPLICATION_ABANDON_PATH)
    unproven = pair.open_path(pair.ways[1])
    assert unproven is not None
    assert not pair.abandon(pair.client, 0, codes.APPLICATION_ABANDON_PATH)
    assert pair.abandon(pair.client, unproven.id, codes.APPLICATION_ABANDON_PATH)


def test_both_give_up_what_the_other_keeps_and_the_client_opens_another() -> None:
    """Each abandons one of two paths at the same moment: none is left, for a moment."""
    pair = PathPair(FAST, FAST).with_paths()
    pair.select(0, pair.client)
    pair.select(1, pair.server)
    stream = pair.client.must_open(uni=True)
    assert pair.abandon(pair.client, 1, codes.APPLICATION_ABANDON_PATH)
    assert pair.abandon(pair.server, 0, codes.APPLICATION_ABANDON_PATH)
    pair.settle(0.1)
    assert all(path.abandoned for path in pair.client.c.paths.values())
    pair.client.write(stream, b"still here", finish=True)
    assert pair.open_path(pair.ways[0]) is not None
    pair.run(lambda: stream in pair.server.ended, seconds=2)
    pair.settle(10)
    assert all(side.close_reason is None for side in pair.sides)
    transfer((pair.client, 100 * KIB), (pair.server, 100 * KIB))


def test_no_path_is_left_and_none_is_opened() -> None:
    pair = PathPair(FAST, FAST).with_paths()
    pair.select(0, pair.client)
    pair.select(1, pair.server)
    assert pair.abandon(pair.client, 1, codes.APPLICATION_ABANDON_PATH)
    assert pair.abandon(pair.server, 0, codes.APPLICATION_ABANDON_PATH)
    begin = pair.now
    pair.run(lambda: all(side.c.state is State.GONE for side in pair.sides), seconds=10)
    assert 2 < pair.now - begin < 5
    for side in pair.sides:
        reason = side.close_reason
        assert reason is not None
        assert (reason.cause, reason.error_code) == ("no path", codes.NO_VIABLE_PATH)


@pytest.mark.parametrize("closing", ["client", "server"])
def test_the_close_arrives_though_the_path_in_use_has_just_died(closing: str) -> None:
    pair = PathPair(FAST, FAST).with_paths()
    transfer((pair.client, 10 * KIB), (pair.server, 10 * KIB))
    one, other = (pair.client, pair.server) if closing == "client" else (pair.server, pair.client)
    way = pair.way_of(one.c.paths.selected)
    assert way is not None
    way.cut()
    one.c.close(5, b"done", pair.now)
    pair.run(lambda: other.c.close_reason is not None, seconds=1)
    reason = other.c.close_reason
    assert reason is not None
    assert (reason.error_code, reason.reason, reason.cause) == (5, b"done", "peer")


def test_only_the_client_opens_paths_and_only_after_the_handshake() -> None:
    pair = PathPair(FAST, FAST)
    assert pair.open_path(pair.ways[1]) is None
    pair.connect()
    pair.settle()
    assert pair.server.c.open_path(pair.ways[1].client, pair.now) is None
    assert pair.open_path(pair.ways[1]) is not None


def test_frames_as_the_wire_reference_writes_them() -> None:
    """PATH_ACK of path 1 for packets 0 to 9, and two more (docs/wire/quic.md 3.2)."""
    pair = PathPair(FAST, FAST).with_paths()
    core = pair.client.c
    first = core.paths[0]
    frames = core.paths.frames
    assert frames.encode(
        (frames, codes.PATH_ABANDON, 0, codes.PATH_UNSTABLE_OR_POOR)
    ) == bytes.fromhex("7e75007e76")
    first.id, first.status_sequence = 3, 1
    status = (frames, codes.PATH_STATUS_AVAILABLE, first, 1)
    assert frames.encode(status) == bytes.fromhex("7e770301")
    second = core.paths[1]
    second.received = ReceivedPackets()
    for number in range(10):
        second.received.add(number)
    second.largest_received_time = pair.now
    assert frames.encode_ack(second, pair.now) == bytes.fromhex("3e0109000009")


def test_acknowledgements_of_one_path_may_come_on_another() -> None:
    pair = PathPair(FAST, FAST).with_paths()
    pair.select(1, pair.client)
    pair.ways[1].cut(up=False)
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, b"answered on path 0", finish=True)
    pair.run(lambda: stream in pair.server.ended, seconds=1)
    largest = pair.server.c.paths[1].received.largest
    pair.server.inject(frame(codes.PATH_ACK, 1, largest, 0, 0, 0))
    second = pair.client.c.paths[1]
    assert second.recovery.largest_acked == largest
    assert not second.suspect


def test_no_data_goes_where_nobody_has_answered() -> None:
    pair = PathPair(FAST, FAST)
    pair.connect()
    pair.settle()
    pair.ways[1].cut(down=True, up=False)
    path = pair.open_path(pair.ways[1])
    assert path is not None
    at = len(pair.sent)
    transfer((pair.client, 100 * KIB), (pair.server, 100 * KIB))
    there = [each for each in pair.sent[at:] if each.destination == pair.ways[1].server]
    assert not path.validated
    assert len(there) < 20
    assert there[0].size == 1200


def test_statuses_tell_the_peer_and_old_ones_change_nothing() -> None:
    pair = PathPair(FAST, FAST).with_paths()
    pair.select(1, pair.client)
    pair.settle()
    server = pair.server.c
    assert server.paths[1].cids.peer_available
    assert not server.paths[0].cids.peer_available
    assert server.paths.selected is server.paths[0], "a hint: each side decides alone"
    sequence = server.paths[0].cids.peer_status_sequence
    pair.client.inject(frame(codes.PATH_STATUS_AVAILABLE, 0, sequence))
    assert not server.paths[0].cids.peer_available
    pair.client.inject(frame(codes.PATH_STATUS_AVAILABLE, 0, sequence + 1))
    assert server.paths[0].cids.peer_available


def test_a_silent_path_is_abandoned_and_the_other_stays() -> None:
    pair = PathPair(FAST, FAST).with_paths()
    pair.select(0)
    pair.ways[1].cut()
    begin = pair.now
    pair.run(lambda: not any(1 in side.c.paths for side in pair.sides), seconds=40)
    assert 14 < pair.now - begin < 30
    for side in pair.sides:
        (gone,) = side.seen(events.PathAbandoned)
        assert gone.path_id == 1
    transfer((pair.client, 100 * KIB), (pair.server, 100 * KIB))


def test_a_path_whose_acknowledgements_come_on_another_is_not_silent() -> None:
    """As iroh does: it answers on its best path, and sends nothing on this one."""
    pair = PathPair(FAST, FAST).with_paths()
    pair.select(0)
    pair.ways[1].cut(up=False)
    for _ in range(60):
        pair.settle(1)
        largest = pair.server.c.paths[1].received.largest
        pair.server.inject(frame(codes.PATH_ACK, 1, largest, 0, 0, 0))
    path = pair.client.c.paths[1]
    assert not path.abandoned
    assert not path.suspect


def test_every_path_is_kept_alive() -> None:
    pair = PathPair(FAST, FAST, FAST).with_paths()
    pair.settle(120)
    for side in pair.sides:
        assert len(side.c.paths) == 3
        assert all(not path.suspect for path in side.c.paths.values())
    pings = len([each for each in pair.sent if each.time > pair.now - 60])
    assert pings < 3 * 60 / 5 * 4 + 20


def test_a_peer_without_the_extension_is_served_on_one_path() -> None:
    for options in ({"client": {"multipath": False}}, {"server": {"multipath": False}}):
        pair = PathPair(FAST, FAST, **options)
        pair.connect()
        pair.settle()
        assert pair.open_path(pair.ways[1]) is None
        transfer((pair.client, 100 * KIB), (pair.server, 100 * KIB))
        pair.ways[0].rebind()
        transfer((pair.client, 100 * KIB), (pair.server, 100 * KIB))
        for side in pair.sides:
            assert list(side.c.paths) == [0]
            assert side.c.paths.multipath is None


@pytest.mark.parametrize("seed", range(3))
def test_paths_are_rebound_again_and_again(seed: int) -> None:
    conditions = Conditions(delay_s=0.02, loss=0.05, jitter_s=0.01)
    pair = PathPair(conditions, conditions, seed=seed).with_paths()
    running = [Transfer(side, 300 * KIB) for side in pair.sides]
    for turn in range(400):
        if are_over(running):
            break
        pair.ways[turn % 2].rebind()
        pair.select(pair.rng.choice([0, 1]), *pair.sides)
        pair.run(seconds=0.4)
    for each in running:
        each.check()
    pair.settle(10)
    for path in pair.server.c.paths.values():
        assert path.validated


def test_a_new_path_that_moves_before_it_is_proved() -> None:
    """The NAT gives the client another port between its first and its second packet."""
    pair = PathPair(FAST, FAST)
    pair.connect()
    pair.settle()
    path = pair.open_path(pair.ways[1])
    assert path is not None
    # What the server answers is lost for longer than any migration would be given.
    pair.ways[1].cut(up=False)
    pair.settle(0.1)
    pair.ways[1].rebind()
    pair.settle(8)
    pair.ways[1].mend()
    pair.run(lambda: path.validated and pair.server.c.paths[1].validated, seconds=5)


# --- limits ------------------------------------------------------------------------------------------


def test_a_stranger_gets_no_more_than_eight_paths() -> None:
    """A client that opens paths and never gives one up, and one that repeats its PATH_ABANDON."""
    pair = PathPair(*[FAST] * 8)
    pair.connect()
    pair.settle()
    for way in [*pair.ways[1:], *pair.ways[1:], *pair.ways[1:]]:
        pair.open_path(way)
        pair.settle(0.2)
    assert len(pair.server.c.paths) == 8
    assert pair.open_path(pair.ways[0]) is None
    # The end of one path, said a hundred times, makes room for one other.
    assert pair.abandon(pair.client, 3, codes.APPLICATION_ABANDON_PATH)
    for _ in range(100):
        pair.client.inject(frame(codes.PATH_ABANDON, 3, 0))
    pair.settle(5)
    state = pair.server.c.paths.multipath
    assert state is not None
    assert state.local_max == 8
    for _ in range(5):
        pair.open_path(pair.ways[3])
        pair.settle(0.2)
    assert len(pair.server.c.paths) == 8


def test_paths_opened_and_abandoned_in_a_moment_are_not_kept() -> None:
    """A hostile client with real packets: many paths, each given up at once."""
    pair = PathPair(FAST, FAST)
    pair.connect()
    pair.settle()
    most = 0
    for _ in range(300):
        path = pair.open_path(pair.ways[1])
        if path is not None:
            pair.flush()
            pair.abandon(pair.client, path.id, codes.APPLICATION_ABANDON_PATH)
        pair.run(seconds=0.005)
        most = max(most, len(pair.server.c.paths))
    state = pair.server.c.paths.multipath
    assert state is not None
    assert most <= 8 + multipath.MAX_DRAINING
    assert len(state.abandoned) <= 9
    assert pair.server.close_reason is None
    pair.settle(10)
    assert len(pair.server.c.paths) == 1


@pytest.mark.parametrize("size", [100, 300, 1200])
def test_an_address_that_proves_nothing_gets_three_times_what_it_sent(size: int) -> None:
    """A new path from a forged address, with a packet full of challenges, again and again."""
    pair = PathPair(FAST, FAST)
    pair.connect()
    pair.settle()
    pair.ways[1].cut(up=False)
    path = pair.open_path(pair.ways[1])
    assert path is not None
    at = len(pair.sent)
    challenge = frame(codes.PATH_CHALLENGE, b"12345678")
    came = 0
    for _ in range(20):
        payload = challenge * (size // len(challenge))
        cid = path.cid
        assert cid is not None
        packet = builder_of(pair.client.c).seal(path, payload[: size - 30], cid)
        came += len(packet)
        pair.deliver(pair.server, pair.ways[1].client, [packet])
        pair.flush()
        went = sum(e.size for e in pair.sent[at:] if e.destination == pair.ways[1].client)
        assert went <= 3 * came
        assert len(pair.server.c.paths[1].responses) <= MAX_PENDING_RESPONSES
    pair.run(seconds=20)
    own = sum(
        e.size
        for e in pair.sent[at:]
        if e.sender == "client" and e.destination == pair.ways[1].server
    )
    went = sum(e.size for e in pair.sent[at:] if e.destination == pair.ways[1].client)
    assert went <= 3 * (came + own)


def test_challenges_are_padded_answered_on_their_path_and_by_one_answer_each() -> None:
    pair = PathPair(FAST, Conditions(delay_s=0.03))
    pair.connect()
    pair.settle()
    at = len(pair.sent)
    path = pair.open_path(pair.ways[1])
    assert path is not None
    pair.run(lambda: path.validated and pair.server.c.paths[1].validated, seconds=2)
    way = pair.ways[1]
    first = next(e for e in pair.sent[at:] if e.destination == way.server)
    answer = next(e for e in pair.sent[at:] if e.destination == way.client)
    assert (first.size, answer.size) == (1200, 1200)
    other = [e for e in pair.sent[at:] if e.destination not in (way.server, way.client)]
    assert all(each.size < 300 for each in other), "nothing of it goes over the first way"


def test_reset_tokens_are_known_only_while_they_are_in_force() -> None:
    pair = PathPair(FAST, FAST).with_paths()
    for turn in range(30):
        pair.client.c.paths.ids.rotate(pair.client.c.paths[turn % 2].cids)
        pair.wants_flush(pair.client)
        pair.settle(0.2)
    active = {path.cids.peer.active for path in pair.client.c.paths.values()}
    assert pair.client.reset_tokens == {each.reset_token for each in active if each is not None}


def test_counters_outlive_their_paths() -> None:
    pair = PathPair(FAST, FAST).with_paths()
    pair.select(1)
    transfer((pair.client, 200 * KIB))
    core = pair.client.c
    before = sum(path.recovery.sent_packets for path in core.paths.values())
    carried = core.paths[1].bytes_sent
    assert carried > 200 * KIB
    assert pair.server.c.paths[1].bytes_received > 200 * KIB
    pair.select(0)
    assert pair.abandon(pair.client, 1, codes.APPLICATION_ABANDON_PATH)
    pair.settle(10)
    assert 1 not in core.paths
    after = sum(path.recovery.sent_packets for path in core.paths.values())
    assert core.paths.sent_packets_before + after >= before


def test_ids_that_are_over_are_kept_as_ranges() -> None:
    over = multipath.IdRanges()
    assert over.largest == -1
    for number in (5, 3, 4, 9, 1, 2, 3):
        over.add(number)
    assert len(over) == 2
    assert over.largest == 9
    assert [n for n in range(12) if n in over] == [1, 2, 3, 4, 5, 9]
