"""Data arrives whole and in order, whatever happens on the way."""

from __future__ import annotations

import hashlib
import itertools
import random

import pytest
from quic_pair import START, Datagram, Pair, Transfer, stream_frame, transfer

from dialkey import limits
from dialkey.quic import events
from dialkey.quic.packets.builder import Builder
from dialkey.quic.paths.congestion import Cubic
from dialkey.testing import Conditions

KIB = 1024
MIB = 1024 * KIB


def test_a_clean_link_both_ways() -> None:
    pair = Pair().connect()
    transfer((pair.client, 4 * MIB), (pair.server, 4 * MIB))
    assert pair.client.path.recovery.lost_packets == 0
    assert pair.server.path.recovery.lost_packets == 0


def test_no_byte_is_kept_when_all_is_acknowledged() -> None:
    pair = Pair().connect()
    transfer((pair.client, MIB))
    pair.settle()
    core = pair.client.c
    assert not core.streams.send_halves
    assert not core.streams.scheduler
    assert not pair.client.path.recovery.sent
    assert pair.client.path.recovery.cc.in_flight == 0
    assert pair.client.path.recovery.eliciting_in_flight == 0
    assert not pair.server.c.streams.recv_halves


@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(delay_s=0.02, loss=0.02),
        Conditions(delay_s=0.02, loss=0.1),
        Conditions(delay_s=0.02, reorder=0.2),
        Conditions(delay_s=0.02, jitter_s=0.04),
        Conditions(delay_s=0.02, duplicate=0.5),
        Conditions(delay_s=0.1, loss=0.01, duplicate=0.05, reorder=0.05, jitter_s=0.005),
        Conditions(delay_s=0.02, mtu_bytes=1200),
        Conditions(delay_s=0.02, mtu_bytes=1300, loss=0.03),
        Conditions(delay_s=0.0),
        Conditions(delay_s=0.0, loss=0.05),
        Conditions(delay_s=0.3, loss=0.01),
        Conditions(delay_s=0.02, rate_bytes_s=250_000, queue_bytes=20_000),
    ],
    ids=lambda c: f"{c.delay_s}-{c.loss}-{c.reorder}-{c.duplicate}-{c.jitter_s}-{c.mtu_bytes}",
)
@pytest.mark.parametrize("seed", range(2))
def test_a_bad_link_both_ways(conditions: Conditions, seed: int) -> None:
    pair = Pair(seed=seed, conditions=conditions).connect(seconds=60)
    transfer((pair.client, 400 * KIB), (pair.server, 400 * KIB))
    pair.settle(5)
    for side in pair.sides:
        assert side.path.recovery.cc.in_flight == sum(
            record.wire for record in side.path.recovery.sent if record.eliciting
        )
        assert side.close_reason is None


@pytest.mark.parametrize("seed", range(3))
def test_many_streams_at_once_over_a_bad_link(seed: int) -> None:
    pair = Pair(seed=seed, conditions=Conditions(loss=0.05, jitter_s=0.01, duplicate=0.05))
    pair.connect(seconds=60)
    sizes = [(side, 10_000 + 1000 * i) for i in range(20) for side in pair.sides]
    transfer(*sizes)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_in_any_order_within_one_batch(seed: int) -> None:
    """A batch holds late pieces, then the missing ones, then more in order, then all again."""
    pair = Pair().connect()
    stream = pair.client.must_open(uni=True)
    rng = random.Random(seed)
    data = rng.randbytes(60_000)
    cuts = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(60))})
    pieces = [(a, data[a:b], b == len(data)) for a, b in itertools.pairwise(cuts)]
    ordered = pieces[20:]
    shuffled = pieces[:20]
    rng.shuffle(shuffled)
    overlapping = [(a, data[a : a + 3000], a + 3000 >= len(data)) for a, _, _ in pieces[::7]]
    datagrams = []
    for group in (ordered[:5], shuffled, ordered[5:], overlapping):
        for offset, piece, finish in group:
            for at in range(0, len(piece), 1000):
                last = finish and at + 1000 >= len(piece)
                payload = stream_frame(stream, offset + at, piece[at : at + 1000], finish=last)
                datagrams.append(pair.client.craft(payload))
    pair.deliver(pair.server, pair.client.address, datagrams)
    assert pair.server.close_reason is None
    got = bytes(pair.server.data[stream])
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
    assert stream in pair.server.ended


def test_one_frame_of_each_length() -> None:
    pair = Pair().connect()
    for size in [*range(40), 63, 64, 65, 1100, 1150, 1160, 1170, 1172, 1180, 1200, 1452, 16383]:
        stream = pair.client.must_open(uni=True)
        pair.client.write(stream, bytes([size & 255]) * size, finish=True)
        pair.run(lambda s=stream: s in pair.server.ended)  # type: ignore[misc]
        assert pair.server.data[stream] == bytes([size & 255]) * size


def test_offsets_beyond_a_gibibyte_are_written_in_the_wide_form() -> None:
    """Bursts write offsets in 4 bytes below 2^30 and in 8 above; the change is in mid-stream."""
    pair = Pair().connect()
    stream = pair.client.must_open(uni=True)
    half = pair.client.send[stream]
    begin = (1 << 30) - 300_000
    half.offset = half._acked = begin
    half.limit = pair.client.c.streams.scheduler.limit = begin + 2_000_000
    recv = None
    pair.client.write(stream, b"x")
    # The receiver is told nothing of the first gibibyte: it has it already.
    pair.client.c.flush(pair.now, lambda *_: None)
    pair.client.path.recovery.discard()
    pair.server.auto_read = False
    pair.deliver(
        pair.server, pair.client.address, [pair.client.craft(stream_frame(stream, 0, b""))]
    )
    recv = pair.server.recv[stream]
    recv.next_offset = recv.received = recv.consumed = begin
    recv.limit = begin + 2_000_000
    data = random.Random(1).randbytes(900_000)
    pair.server.auto_read = True
    recv.watched = True
    pair.client.write(stream, data, finish=True)
    pair.run(lambda: stream in pair.server.ended)
    assert pair.server.data[stream] == b"x" + data


def test_a_reader_that_stalls_stops_the_sender() -> None:
    pair = Pair().connect()
    pair.server.auto_read = False
    stream = pair.client.must_open(uni=True)
    data = random.Random(0).randbytes(5 * MIB)
    pair.client.write(stream, data, finish=True)
    pair.settle(10)
    half = pair.client.send[stream]
    window = pair.server.config.stream_window
    assert half.offset == window
    assert pair.server.recv[stream].buffered == window
    # It goes on where it stopped, and no byte is missing.
    pair.server.auto_read = True
    pair.server._read_and_watch(pair.server.recv[stream])
    pair.wants_flush(pair.server)
    pair.run(lambda: stream in pair.server.ended)
    assert pair.server.data[stream] == data


def test_a_stall_survives_the_loss_of_the_limit_update() -> None:
    pair = Pair().connect()
    pair.server.auto_read = False
    stream = pair.client.must_open(uni=True)
    data = random.Random(0).randbytes(3 * MIB)
    pair.client.write(stream, data, finish=True)
    pair.settle(10)
    pair.server.auto_read = True
    lost_until = pair.now + 0.005
    pair.drop = lambda datagram: datagram.sender == "server" and datagram.time < lost_until
    pair.server._read_and_watch(pair.server.recv[stream])
    pair.wants_flush(pair.server)
    pair.run(lambda: stream in pair.server.ended)
    assert pair.server.data[stream] == data


def test_the_connection_limit_holds_for_all_streams_together() -> None:
    pair = Pair(server={"connection_window": 100_000, "stream_window": 60_000}).connect()
    pair.server.auto_read = False
    streams = [pair.client.must_open(uni=True) for _ in range(4)]
    for stream in streams:
        pair.client.write(stream, bytes([stream]) * 200_000, finish=True)
    pair.settle(10)
    assert pair.server.c.streams.intake.received == 100_000
    assert pair.client.c.streams.scheduler.sent == 100_000
    assert sum(half.buffered for half in pair.server.recv.values()) == 100_000
    pair.server.auto_read = True
    for half in list(pair.server.recv.values()):
        pair.server._read_and_watch(half)
    pair.wants_flush(pair.server)
    pair.run(lambda: set(streams) <= pair.server.ended)
    for stream in streams:
        assert pair.server.data[stream] == bytes([stream]) * 200_000


def test_what_is_stopped_or_reset_gives_its_window_back() -> None:
    pair = Pair(server={"connection_window": 50_000, "stream_window": 40_000}).connect()
    pair.server.auto_read = False
    for round_number in range(10):
        stream = pair.client.must_open(uni=True)
        pair.client.write(stream, bytes(100_000))
        pair.settle(0.2)
        assert pair.server.recv[stream].buffered == 40_000, round_number
        if round_number % 2:
            pair.client.reset(stream, 1)
        else:
            pair.server.stop(stream, 2)
        pair.settle(0.5)
    assert pair.server.c.streams.intake.consumed == pair.server.c.streams.intake.received
    assert not pair.server.c.streams.recv_halves


def test_equal_streams_share_and_higher_priorities_go_first() -> None:
    slow = Conditions(delay_s=0.02, rate_bytes_s=500_000, queue_bytes=50_000)
    pair = Pair(conditions=slow).connect()
    low, high, same = (pair.client.must_open(uni=True) for _ in range(3))
    pair.client.send[high].priority = 5
    for stream in (low, same, high):
        pair.client.write(stream, bytes(200_000), finish=True)
    pair.run(lambda: high in pair.server.ended)
    # What was in flight before the first round trip counts for little.
    assert len(pair.server.data.get(low, b"")) < 40_000
    pair.run(lambda: low in pair.server.ended or same in pair.server.ended)
    both = [len(pair.server.data[stream]) for stream in (low, same)]
    assert min(both) > 0.6 * max(both), both
    pair.run(lambda: {low, same} <= pair.server.ended)


def test_a_priority_may_change_while_data_waits() -> None:
    slow = Conditions(delay_s=0.02, rate_bytes_s=200_000, queue_bytes=20_000)
    pair = Pair(conditions=slow).connect()
    streams = [pair.client.must_open(uni=True) for _ in range(5)]
    rng = random.Random(3)
    for stream in streams:
        pair.client.write(stream, bytes(100_000), finish=True)
    for _ in range(200):
        half = pair.client.send[rng.choice(streams)]
        half.priority = rng.randrange(-3, 4)
        pair.client.c.streams.wake(half)
        pair.wants_flush(pair.client)
        pair.run(seconds=0.01)
    pair.run(lambda: set(streams) <= pair.server.ended)


def test_a_late_urgent_stream_overtakes() -> None:
    slow = Conditions(delay_s=0.01, rate_bytes_s=300_000, queue_bytes=30_000)
    pair = Pair(conditions=slow).connect()
    bulk = pair.client.must_open(uni=True)
    pair.client.write(bulk, bytes(900_000), finish=True)
    pair.run(seconds=1)
    urgent = pair.client.must_open(uni=True)
    pair.client.send[urgent].priority = 1
    pair.client.write(urgent, b"now", finish=True)
    before = pair.now
    pair.run(lambda: urgent in pair.server.ended)
    assert pair.now - before < 0.5
    assert bulk not in pair.server.ended


def test_the_peers_limit_of_streams_holds_and_rises() -> None:
    pair = Pair(server={"max_streams": 10}).connect()
    opened = []
    while (stream := pair.client.open(uni=True)) is not None:
        opened.append(stream)
    assert len(opened) == 10
    for stream in opened:
        pair.client.write(stream, b"x", finish=True)
    pair.run(lambda: bool(pair.client.seen(events.StreamsAvailable)))
    assert pair.client.open(uni=True) is not None
    # The other kind has a limit of its own.
    assert pair.client.open() is not None


@pytest.mark.parametrize("loss", [0.0, 0.05])
@pytest.mark.parametrize("uni", [True, False])
def test_thousands_of_streams_one_after_the_other(loss: float, uni: bool) -> None:
    conditions = Conditions(delay_s=0.005, loss=loss, jitter_s=0.002)
    pair = Pair(seed=1, conditions=conditions, server={"max_streams": 50}).connect(seconds=60)
    count = 0

    def next_streams() -> bool:
        nonlocal count
        while count < 1500 and (stream := pair.client.open(uni=uni)) is not None:
            pair.client.write(stream, b"%d" % count, finish=True)
            count += 1
        if not uni:
            for each in pair.server.accepted:
                half = pair.server.send[each]
                if each in pair.server.ended and not half.fin:
                    pair.server.write(each, pair.server.data[each], finish=True)
            return len(pair.client.ended) == 1500
        return len(pair.server.ended) == 1500

    pair.run(next_streams, seconds=300)
    pair.settle(3)
    got = sorted(int(bytes(data)) for data in pair.server.data.values())
    assert got == list(range(1500))
    for side in pair.sides:
        # What is over is forgotten, on both sides.
        assert not side.c.streams.send_halves
        assert not side.c.streams.recv_halves
        assert not side.c.control


def test_both_open_streams_at_the_same_time() -> None:
    pair = Pair().connect()
    mine = [pair.client.must_open() for _ in range(10)]
    theirs = [pair.server.must_open() for _ in range(10)]
    assert not set(mine) & set(theirs)
    for stream in mine:
        pair.client.write(stream, b"from the client", finish=True)
    for stream in theirs:
        pair.server.write(stream, b"from the server", finish=True)
    pair.run(lambda: set(mine) <= pair.server.ended and set(theirs) <= pair.client.ended)


def test_datagrams_arrive_or_not_but_whole() -> None:
    pair = Pair(seed=5, conditions=Conditions(loss=0.1, duplicate=0.1, jitter_s=0.01)).connect()
    sent = []
    for i in range(300):
        data = b"%d:" % i + bytes([i & 255]) * (i * 3)
        sent.append(data)
        pair.client.send_datagram(data)
        pair.run(seconds=0.01)
    pair.settle()
    got = pair.server.datagrams
    assert len(got) == len(set(got)), "a repeated packet must not repeat its datagram"
    assert set(got) <= set(sent)
    assert 240 <= len(got) <= 295


def test_empty_datagrams_that_wait_are_counted() -> None:
    pair = Pair().connect()
    datagrams = pair.client.c.datagrams
    most = limits.MAX_DATAGRAM_QUEUE_BYTES // limits.DATAGRAM_OVERHEAD_BYTES
    for _ in range(most + 10):
        datagrams.send(b"")
    assert len(datagrams) == most
    assert datagrams.dropped == 10
    datagrams._pop()
    assert datagrams.waiting_bytes == (most - 1) * limits.DATAGRAM_OVERHEAD_BYTES


def test_the_largest_datagram_fits() -> None:
    pair = Pair().connect()
    pair.settle()
    largest = pair.client.c.max_datagram_payload
    assert largest is not None
    assert largest > 1300
    pair.client.send_datagram(bytes(largest))
    pair.settle()
    assert pair.server.datagrams == [bytes(largest)]


def test_too_many_datagrams_push_out_the_oldest() -> None:
    pair = Pair().connect()
    for i in range(3000):
        pair.client.c.datagrams.send(b"%04d" % i + bytes(996))
    core = pair.client.c
    overhead = len(core.datagrams) * limits.DATAGRAM_OVERHEAD_BYTES
    waiting = sum(map(len, core.datagrams._waiting))
    assert core.datagrams.waiting_bytes == waiting + overhead <= 1_250_000
    assert core.datagrams.dropped == 3000 - len(core.datagrams)
    assert core.datagrams._waiting[-1][:4] == b"2999"
    pair.wants_flush(pair.client)
    pair.settle(5)
    assert core.datagrams.waiting_bytes == 0
    assert pair.server.datagrams[-1][:4] == b"2999"


def test_a_path_slower_than_the_probe_timeout_is_waited_for() -> None:
    """A round trip of 20 ms becomes one of 3 s: nothing is answered before its timeout."""
    pair = Pair(conditions=Conditions(delay_s=0.01)).connect()
    transfer((pair.client, 100_000))
    for channel in (pair.to_client, pair.to_server):
        channel.conditions = Conditions(delay_s=1.5)
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, b"slowly", finish=True)
    pair.run(lambda: stream not in pair.client.c.streams.send_halves, seconds=30)
    transfer((pair.client, 20_000), seconds=120)
    assert pair.client.path.recovery.srtt > 1.0


def test_bulk_data_leaves_in_bursts_of_equal_packets() -> None:
    # So fast that the pacer lets a whole burst go at once.
    pair = Pair(client={"make_controller": Cubic}).connect()
    pair.settle()
    batches: list[tuple[int, int]] = []
    stream = pair.client.must_open(uni=True)
    half = pair.client.send[stream]
    half.write(bytes(60_000))
    pair.client.c.streams.wake(half)
    pair.client.path.recovery.cc.window = 1 << 20
    pair.client.c.flush(
        pair.now,
        lambda remote, data, segment: batches.append((len(data), segment)),
    )
    size = pair.client.path.mtu.current
    assert batches[0][1] == size
    assert batches[0][0] // size >= 35
    assert batches[0][0] % size == 0


def test_no_datagram_is_larger_than_the_path_carries() -> None:
    pair = Pair(conditions=Conditions(loss=0.02), seed=4).connect(seconds=20)
    transfer((pair.client, MIB), (pair.server, MIB))
    assert max(each.size for each in pair.sent) <= 1452


def test_pacing_spreads_a_window_over_the_round_trip() -> None:
    pair = Pair(conditions=Conditions(delay_s=0.1)).connect()
    sending = Transfer(pair.client, 3 * MIB)
    pair.run(lambda: sending.is_over, seconds=60)
    sending.check()
    # Once the window is large, no single moment sends more than a burst or two of it.
    by_time: dict[float, int] = {}
    for each in pair.sent:
        if each.sender == "client" and each.time > START + 1:
            by_time[each.time] = by_time.get(each.time, 0) + each.size
    assert max(by_time.values()) <= 3 * 64 * KIB
    assert len(by_time) > 20


def test_ack_only_packets_are_not_acknowledged() -> None:
    pair = Pair().connect()
    pair.settle()
    before = len(pair.sent)
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, b"x", finish=True)
    pair.settle(0.5)
    after: list[Datagram] = pair.sent[before:]
    assert [each.sender for each in after] == ["client", "server"]


def test_a_flush_with_nothing_to_send_does_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair().connect()
    pair.settle()
    built = []
    build = Builder._send_lone
    monkeypatch.setattr(Builder, "_send_lone", lambda *args: built.append(args[1]) or build(*args))
    for side in pair.sides:
        side.c.flush(pair.now, lambda *_: pytest.fail("nothing was due"))
    assert not built
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, b"x")
    pair.settle()
    assert built
