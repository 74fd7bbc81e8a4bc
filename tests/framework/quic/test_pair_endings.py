"""How streams and connections end: reset, stop, close, silence."""

from __future__ import annotations

import itertools

import pytest
from quic_pair import START, Pair, Side, transfer

from dialkey.quic import codes, events
from dialkey.quic.connection import State
from dialkey.testing import Conditions

LOSSY = Conditions(delay_s=0.01, loss=0.2, duplicate=0.2, jitter_s=0.01)


def both_forgot(pair: Pair) -> bool:
    return not any(side.c.streams.send_halves or side.c.streams.recv_halves for side in pair.sides)


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditions", [Conditions(), LOSSY], ids=["clean", "lossy"])
@pytest.mark.parametrize("size", [0, 10, 50_000])
@pytest.mark.parametrize("wait", [0.0, 0.005, 0.05])
def test_reset(conditions: Conditions, size: int, wait: float) -> None:
    pair = Pair(seed=size, conditions=conditions).connect(seconds=60)
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, bytes(size))
    pair.run(seconds=wait)
    pair.client.reset(stream, 77)
    pair.run(lambda: pair.server.reset_codes == {stream: 77}, seconds=20)
    pair.run(lambda: both_forgot(pair), seconds=20)


def test_reset_of_a_stream_that_was_never_used_tells_the_peer_of_it() -> None:
    pair = Pair().connect()
    stream = pair.client.must_open()
    pair.client.reset(stream, 3)
    pair.settle()
    assert pair.server.accepted == [stream]
    assert pair.server.reset_codes == {stream: 3}


def test_reset_after_finish_and_before_delivery() -> None:
    pair = Pair().connect()
    pair.to_server.is_up = False
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, b"almost", finish=True)
    pair.run(seconds=0.1)
    pair.client.reset(stream, 5)
    pair.to_server.is_up = True
    pair.run(lambda: bool(pair.server.reset_codes), seconds=5)
    assert pair.server.reset_codes == {stream: 5}
    pair.run(lambda: both_forgot(pair), seconds=5)


def test_reset_after_everything_was_acknowledged_changes_nothing() -> None:
    pair = Pair().connect()
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, b"done", finish=True)
    pair.settle()
    pair.client.reset(stream, 5)
    pair.settle()
    assert stream in pair.server.ended
    assert not pair.server.reset_codes


def test_reset_while_the_reader_has_unread_data_drops_it() -> None:
    pair = Pair().connect()
    pair.server.auto_read = False
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, bytes(30_000))
    pair.settle()
    pair.client.reset(stream, 9)
    pair.settle()
    assert pair.server.read(stream) == b""
    assert pair.server.reset_codes == {stream: 9}
    assert both_forgot(pair)


@pytest.mark.parametrize("conditions", [Conditions(), LOSSY], ids=["clean", "lossy"])
@pytest.mark.parametrize("size", [10, 100_000])
def test_stop(conditions: Conditions, size: int) -> None:
    pair = Pair(seed=size, conditions=conditions).connect(seconds=60)
    pair.server.auto_read = False
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, bytes(size))
    pair.run(lambda: stream in pair.server.recv, seconds=20)
    pair.server.stop(stream, 33)
    half = pair.client.send[stream]
    pair.run(lambda: half.stopped_code == 33, seconds=20)
    pair.run(lambda: both_forgot(pair), seconds=20)


def test_stop_of_a_finished_stream_needs_no_answer() -> None:
    pair = Pair().connect()
    pair.server.auto_read = False
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, b"all of it", finish=True)
    pair.settle()
    pair.server.stop(stream, 33)
    pair.settle()
    assert pair.client.send[stream].stopped_code is None
    assert both_forgot(pair)


def test_stop_and_reset_cross_each_other() -> None:
    pair = Pair().connect()
    pair.server.auto_read = False
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, bytes(5000))
    pair.settle()
    pair.server.stop(stream, 1)
    pair.client.reset(stream, 2)
    pair.settle()
    assert both_forgot(pair)
    assert pair.client.close_reason is None
    assert pair.server.close_reason is None


def test_each_direction_of_a_stream_ends_by_itself() -> None:
    pair = Pair().connect()
    stream = pair.client.must_open()
    pair.client.write(stream, b"question", finish=True)
    pair.settle()
    assert stream in pair.server.ended
    assert stream in pair.server.c.streams.send_halves
    pair.server.write(stream, b"answer")
    pair.server.reset(stream, 4)
    pair.settle()
    assert pair.client.reset_codes == {stream: 4}
    assert both_forgot(pair)


def test_stop_before_anything_was_sent() -> None:
    pair = Pair().connect()
    stream = pair.client.must_open()
    pair.client.stop(stream, 8)
    pair.settle()
    assert pair.server.accepted == [stream]
    assert pair.server.send[stream].stopped_code == 8
    pair.client.finish(stream)
    pair.run(lambda: both_forgot(pair), seconds=3)


@pytest.mark.parametrize("seed", range(4))
def test_every_order_of_the_six_actions(seed: int) -> None:
    """write, finish, reset and stop by either side, in all orders: nothing breaks, all is freed."""
    conditions = Conditions() if seed == 0 else LOSSY
    pair = Pair(seed=seed, conditions=conditions, server={"max_streams": 200}).connect(seconds=60)
    actions = [
        "c-write",
        "c-finish",
        "c-reset",
        "c-stop",
        "s-write",
        "s-finish",
        "s-reset",
        "s-stop",
    ]
    for order in itertools.islice(itertools.permutations(actions, 4), seed, None, 24):
        stream = pair.client.must_open()
        for action in order:
            who: Side = pair.client if action[0] == "c" else pair.server
            if stream in who.send:
                act(who, stream, action[2:])
            pair.run(seconds=0.004)
        act(pair.client, stream, "reset")
        act(pair.client, stream, "stop")
        pair.run(lambda s=stream: s in pair.server.recv)  # type: ignore[misc]
        act(pair.server, stream, "reset")
        act(pair.server, stream, "stop")
    pair.run(lambda: both_forgot(pair), seconds=60)
    assert pair.client.close_reason is None
    assert pair.server.close_reason is None


def act(side: Side, stream: int, action: str) -> None:
    half = side.send[stream]
    if action == "write" and not half.fin and half.reset_code is None:
        side.write(stream, b"data")
    elif action == "finish" and half.reset_code is None:
        side.finish(stream)
    elif action == "reset":
        side.reset(stream, 1)
    elif action == "stop":
        side.stop(stream, 2)


# --- the connection -------------------------------------------------------------------------------


@pytest.mark.parametrize("closer", ["client", "server"])
def test_close_tells_code_and_reason(closer: str) -> None:
    pair = Pair().connect()
    here: Side = getattr(pair, closer)
    there = pair.other(here)
    here.close(7, b"done")
    pair.run(lambda: there.close_reason is not None, seconds=1)
    assert here.close_reason is not None
    assert here.close_reason.cause == "local"
    reason = there.close_reason
    assert reason is not None
    assert (reason.cause, reason.error_code, reason.reason) == ("peer", 7, b"done")
    assert reason.is_application
    pair.run(lambda: all(side.c.state is State.GONE for side in pair.sides), seconds=5)
    for side in pair.sides:
        assert len(side.seen(events.Closed)) == 1
        assert len(side.seen(events.Drained)) == 1
        assert side.c.timer() is None


def test_close_is_idempotent_and_the_first_reason_stays() -> None:
    pair = Pair().connect()
    pair.client.close(1, b"first")
    pair.client.close(2, b"second")
    pair.settle()
    assert pair.server.close_reason is not None
    assert pair.server.close_reason.error_code == 1


def test_both_close_at_the_same_time() -> None:
    pair = Pair().connect()
    pair.client.close(1, b"from the client")
    pair.server.close(2, b"from the server")
    before = len(pair.sent)
    pair.run(seconds=20)
    assert all(side.c.state is State.GONE for side in pair.sides)
    assert pair.client.close_reason is not None
    assert pair.client.close_reason.cause == "local"
    # They do not go on answering each other.
    assert len(pair.sent) - before <= 8


def test_a_lost_close_is_repeated_when_the_peer_goes_on() -> None:
    pair = Pair().connect()
    stream = pair.server.must_open(uni=True)
    pair.server.write(stream, bytes(200_000))
    lost_until = pair.now + 0.001
    pair.drop = lambda datagram: datagram.sender == "client" and datagram.time <= lost_until
    pair.client.close(5)
    pair.run(lambda: pair.server.close_reason is not None, seconds=5)
    assert pair.server.close_reason is not None
    assert pair.server.close_reason.error_code == 5


def test_a_close_is_not_answered_once_for_each_packet() -> None:
    pair = Pair(conditions=Conditions(delay_s=0.05)).connect()
    transfer((pair.server, 2_000_000))
    stream = pair.server.must_open(uni=True)
    pair.server.write(stream, bytes(2_000_000))
    pair.run(seconds=0.06)
    pair.client.close(5)
    before = len(pair.sent)
    pair.run(lambda: pair.client.c.state is State.GONE, seconds=10)
    closes = [each for each in pair.sent[before:] if each.sender == "client"]
    assert 1 <= len(closes) <= 12


def test_closing_with_data_in_flight_frees_everything() -> None:
    pair = Pair().connect()
    for _ in range(10):
        stream = pair.client.must_open()
        pair.client.write(stream, bytes(100_000))
    pair.settle(0.02)
    pair.client.close()
    pair.run(lambda: all(side.c.state is State.GONE for side in pair.sides), seconds=10)
    core = pair.client.c
    assert not core.streams.send_halves
    assert not core.streams.recv_halves
    assert not core.streams.scheduler
    assert not pair.client.path.recovery.sent
    # What the path was like can still be told.
    assert pair.client.path.recovery.sent_packets > 10


def test_a_reason_that_is_too_long_is_cut() -> None:
    pair = Pair().connect()
    pair.client.close(1, b"x" * 5000)
    pair.settle()
    assert pair.server.close_reason is not None
    assert pair.server.close_reason.reason == b"x" * 1000
    assert max(each.size for each in pair.sent) <= 1452


def test_the_peer_vanishes() -> None:
    pair = Pair().connect()
    pair.to_server.is_up = pair.to_client.is_up = False
    begin = pair.now
    pair.run(lambda: pair.client.c.state is State.GONE, seconds=60)
    # The last packet came at the handshake; pings into the void do not prolong it.
    assert 29 < pair.now - begin < 36
    for side in pair.sides:
        pair.run(lambda s=side: s.c.state is State.GONE, seconds=60)  # type: ignore[misc]
        assert side.close_reason is not None
        assert side.close_reason.cause == "idle"
    # Nobody is there to be told.
    assert all(each.time < pair.now for each in pair.sent)


def test_the_smaller_idle_timeout_counts() -> None:
    pair = Pair(server={"idle_timeout_s": 8.0}).connect()
    pair.to_server.is_up = pair.to_client.is_up = False
    begin = pair.now
    pair.run(lambda: pair.client.c.state is State.GONE, seconds=60)
    assert 7.9 < pair.now - begin < 14


def test_keep_alive_keeps_a_silent_connection_and_its_nat() -> None:
    pair = Pair().connect()
    pair.settle(2)
    before = len(pair.sent)
    pair.run(seconds=600)
    assert pair.is_connected()
    quiet = pair.sent[before:]
    # One ping and its acknowledgement in five seconds; the MTU is probed again after ten minutes.
    assert 200 <= len(quiet) <= 300
    assert sum(each.size for each in quiet) < 20_000
    transfer((pair.client, 10_000), (pair.server, 10_000))


def test_without_keep_alive_silence_ends_it() -> None:
    pair = Pair(client={"keep_alive_s": 1e6}, server={"keep_alive_s": 1e6}).connect()
    pair.run(lambda: pair.client.c.state is State.GONE, seconds=60)
    assert pair.now - START == pytest.approx(30, abs=2)


def test_a_link_that_is_down_for_less_than_the_timeout() -> None:
    pair = Pair().connect()
    transfer((pair.client, 100_000))
    pair.to_server.is_up = pair.to_client.is_up = False
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, b"patience", finish=True)
    pair.run(seconds=20)
    before = len(pair.sent)
    # Probes come every two seconds at most, and at least.
    times = [each.time for each in pair.sent if each.time > pair.now - 10]
    assert 5 <= len(set(times)) <= 14
    pair.to_server.is_up = pair.to_client.is_up = True
    pair.run(lambda: stream in pair.server.ended, seconds=2.1)
    assert len(pair.sent) > before


def test_a_late_packet_for_a_closed_connection_changes_nothing() -> None:
    pair = Pair().connect()
    packet = pair.client.craft(bytes((codes.PING,)))
    pair.server.close()
    pair.run(lambda: pair.server.c.state is State.GONE, seconds=5)
    pair.server.c.receive(memoryview(packet), len(packet), pair.client.address, pair.now)
    assert pair.server.c.state is State.GONE
    assert pair.server.c.timer() is None
