"""Loss detection by itself: acknowledgements of any shape, timeouts, round-trip times."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey.quic import codes
from dialkey.quic.paths.congestion import Cubic
from dialkey.quic.paths.delivery import DeliveryRate, Snapshot
from dialkey.quic.paths.recovery import (
    MAX_GIVEN_UP,
    MAX_PTO_STEP_S,
    PACKET_THRESHOLD,
    TIME_THRESHOLD,
    Recovery,
    Sent,
)

SIZE = 1200


class Bench:
    """A recovery, and what became of each packet number."""

    def __init__(self, initial_rtt: float = 0.1) -> None:
        self.acked: list[int] = []
        self.lost: list[int] = []
        self.next = 0
        self.recovery = Recovery(
            max_datagram=SIZE,
            initial_rtt=initial_rtt,
            make_controller=Cubic,
            on_acked=lambda record: self.acked.extend(range(record.number, record.stop)),
            on_lost=lambda record: self.lost.extend(range(record.number, record.stop)),
        )

    def send(self, now: float, count: int = 1, *, eliciting: bool = True) -> Sent:
        record = Sent(self.next, self.next + count, now, SIZE, count * SIZE)
        record.eliciting = eliciting
        record.frames = [(codes.PING,)]
        record.room = 1000
        record.data = bytes(count * 1000)
        self.next += count
        self.recovery.on_sent(record, now)
        return record

    def ack(self, now: float, *ranges: tuple[int, int], delay_s: float = 0.0) -> bool:
        return self.recovery.on_ack(list(ranges), delay_s, now)

    @property
    def held(self) -> set[int]:
        return {n for record in self.recovery.sent for n in range(record.number, record.stop)}


def test_an_acknowledged_packet_gives_a_round_trip() -> None:
    bench = Bench()
    bench.send(0.0)
    assert bench.ack(0.08, (0, 1))
    assert bench.acked == [0]
    assert bench.recovery.srtt == pytest.approx(0.08)
    assert bench.recovery.variance == pytest.approx(0.04)
    assert bench.recovery.timer() is None


def test_the_delay_of_the_peer_is_left_out_up_to_what_it_announced() -> None:
    bench = Bench()
    for start, delay_s in [(0.0, 0.0), (1.0, 0.02), (2.0, 5.0)]:
        bench.send(start)
        bench.ack(start + 0.1 + min(delay_s, 0.025), (0, bench.next), delay_s=delay_s)
    assert bench.recovery.srtt == pytest.approx(0.1)


def test_an_acknowledgement_of_nothing_new_changes_nothing() -> None:
    bench = Bench()
    bench.send(0.0)
    assert bench.ack(0.1, (0, 1))
    assert not bench.ack(9.0, (0, 1))
    assert bench.recovery.srtt == pytest.approx(0.1)


def test_three_later_packets_mean_loss() -> None:
    bench = Bench()
    for _ in range(5):
        bench.send(0.0)
    bench.ack(0.1, (2, 3))
    assert bench.lost == []
    bench.ack(0.1, (2, 4))
    assert bench.lost == [0]
    bench.ack(0.1, (2, 5))
    assert bench.lost == [0, 1]


def test_a_gap_that_lasts_means_loss() -> None:
    bench = Bench()
    for _ in range(2):
        bench.send(0.0)
    bench.ack(0.1, (1, 2))
    at = bench.recovery.timer()
    assert at == pytest.approx(9 / 8 * 0.1)
    assert at is not None
    bench.recovery.on_timeout(at)
    assert bench.lost == [0]
    assert bench.recovery.timer() is None


@given(st.floats(0, 1e9), st.floats(1e-6, 10))
def test_a_timer_that_fires_finds_something_due(start: float, rtt: float) -> None:
    """The sum that sets the timer is the one that is compared, whatever the rounding."""
    bench = Bench()
    for _ in range(2):
        bench.send(start)
    bench.ack(start + rtt, (1, 2))
    at = bench.recovery.timer()
    if at is not None and bench.recovery.loss_time is not None:
        bench.recovery.on_timeout(at)
        assert bench.recovery.loss_time is None or bench.recovery.loss_time > at


def test_parts_of_a_burst() -> None:
    bench = Bench()
    record = bench.send(0.0, 10)
    record.stream = None
    bench.send(0.0, 5)
    bench.ack(0.1, (12, 15), (4, 6), (1, 2))
    assert sorted(bench.acked) == [1, 4, 5, 12, 13, 14]
    assert sorted(bench.lost) == [0, 2, 3, 6, 7, 8, 9, 10, 11]
    assert bench.recovery.cc.in_flight == 0


def test_part_of_a_burst_knows_its_data() -> None:
    record = Sent(10, 14, 0.0, 1200, 3 * 1200 + 700)
    record.offset, record.room = 5000, 1000
    record.data = bytes(range(250)) * 14
    record.data = record.data[:3500]
    record.fin = True
    first, last = record.part(10, 12), record.part(12, 14)
    assert (first.offset, bytes(first.data), first.fin) == (5000, record.data[:2000], False)
    assert (last.offset, bytes(last.data), last.fin) == (7000, record.data[2000:], True)
    assert first.wire + last.wire == record.wire


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32))
def test_every_packet_has_exactly_one_fate(seed: int) -> None:
    """Random sending, acknowledging and timing out: acked, lost or held, never two of them."""
    rng = random.Random(seed)
    bench = Bench()
    now = 0.0
    for _ in range(60):
        now += rng.random() * 0.1
        action = rng.random()
        if action < 0.5:
            bench.send(now, rng.choice([1, 1, 1, 3, 20]), eliciting=rng.random() < 0.9)
        elif action < 0.9 and bench.next:
            ranges = []
            high = rng.randint(1, bench.next)
            while high > 0 and len(ranges) < 5:
                low = rng.randint(max(0, high - 10), high - 1)
                ranges.append((low, high))
                high = low - rng.randint(1, 5)
            bench.ack(now, *ranges)
        else:
            at = bench.recovery.timer()
            if at is not None:
                now = max(now, at)
                bench.recovery.on_timeout(now)
        fates = [*bench.acked, *bench.lost, *bench.held]
        assert len(fates) == len(set(fates))
        recovery = bench.recovery
        in_flight = [record for record in recovery.sent if record.eliciting]
        assert recovery.cc.in_flight == sum(record.wire for record in in_flight)
        count = sum(record.stop - record.number for record in in_flight)
        assert recovery.eliciting_in_flight == count
        numbers = [record.number for record in recovery.sent]
        assert numbers == sorted(numbers)
    bench.recovery.discard()
    assert bench.recovery.cc.in_flight == 0
    assert bench.recovery.eliciting_in_flight == 0


def test_timeouts_double_and_stop_doubling() -> None:
    bench = Bench(initial_rtt=0.1)
    bench.send(0.0)
    now, gaps = 0.0, []
    for _ in range(12):
        at = bench.recovery.timer()
        assert at is not None
        assert at > now
        gaps.append(at - now)
        now = at
        assert bench.recovery.on_timeout(now) in (1, 2)
        bench.send(now)
    assert gaps[0] == pytest.approx(0.1 + 0.2 + 0.025)
    assert gaps[1] == pytest.approx(2 * gaps[0])
    assert gaps[-1] == MAX_PTO_STEP_S


def test_a_timeout_that_could_not_send_does_not_fire_again_at_once() -> None:
    bench = Bench()
    for _ in range(3):
        bench.send(0.0)
    now = 0.0
    for _ in range(20):
        at = bench.recovery.timer()
        if at is None:
            break
        assert at > now
        now = at
        bench.recovery.on_timeout(now)


def test_a_timeout_takes_the_oldest_packets_and_skips_what_carried_nothing() -> None:
    bench = Bench()
    probe = bench.send(0.0)
    probe.frames, probe.probe_size = [], 1452
    bench.send(0.0)
    bench.send(0.0)
    assert bench.recovery.on_timeout(1.0) == 1
    assert bench.lost == [0, 1]
    assert bench.recovery.on_timeout(3.0) == 2
    assert bench.lost == [0, 1, 2]


def test_a_packet_that_was_given_up_may_still_arrive() -> None:
    """Its round trip is all that tells that the path became slow."""
    bench = Bench()
    bench.send(0.0)
    bench.ack(0.05, (0, 1))
    bench.send(1.0)
    at = bench.recovery.timer()
    assert at is not None
    bench.recovery.on_timeout(at)
    assert bench.lost == [1]
    bench.send(at)
    assert bench.ack(4.0, (1, 2))
    assert bench.recovery.pto_count == 0
    assert bench.recovery.latest_rtt == pytest.approx(3.0)
    assert bench.acked == [0], "its data was queued again, and must not count twice"


def test_what_was_given_up_and_is_older_than_what_arrived_gives_no_sample() -> None:
    bench = Bench()
    bench.send(0.0)
    bench.send(0.0)
    bench.recovery.on_timeout(1.0)
    bench.send(1.0)
    bench.ack(1.05, (1, 3))
    before = bench.recovery.srtt
    assert bench.ack(9.0, (0, 3))
    assert bench.recovery.srtt == before


def test_a_long_outage_is_persistent_congestion() -> None:
    bench = Bench(initial_rtt=0.05)
    bench.send(0.0)
    bench.ack(0.05, (0, 1))
    bench.recovery.cc.window = 100 * SIZE
    for i in range(20):
        bench.send(1.0 + i * 0.1)
    bench.send(4.0)
    bench.ack(4.05, (21, 22))
    assert bench.lost == list(range(1, 21))
    assert bench.recovery.cc.window == 2 * SIZE


def test_a_short_outage_is_not() -> None:
    bench = Bench(initial_rtt=0.05)
    bench.send(0.0)
    bench.ack(0.05, (0, 1))
    bench.recovery.cc.window = 100 * SIZE
    for i in range(10):
        bench.send(1.0 + i * 0.001)
    bench.send(1.1)
    bench.ack(1.15, (11, 12))
    assert len(bench.lost) == 10
    assert bench.recovery.cc.window == 70 * SIZE


def test_lost_acknowledgements_do_not_count_as_congestion() -> None:
    bench = Bench()
    for _ in range(3):
        bench.send(0.0, eliciting=False)
    assert bench.recovery.timer() is None
    for _ in range(4):
        bench.send(0.0)
    window = bench.recovery.cc.window
    bench.ack(0.1, (3, 7))
    assert bench.recovery.cc.window >= window
    assert bench.recovery.lost_packets == 0


# --- reordering -------------------------------------------------------------------------------------


def overtaken(bench: Bench, distance: int, now: float) -> None:
    """Send packets of which the first is overtaken by `distance` others, and then arrives."""
    first = bench.next
    bench.send(now)
    for _ in range(distance):
        bench.send(now)
    bench.ack(now + 0.1, (first + 1, first + 1 + distance))
    bench.ack(now + 0.105, (first, first + 1 + distance))


def test_a_packet_that_was_only_late_widens_the_thresholds() -> None:
    bench = Bench()
    overtaken(bench, 10, 0.0)
    assert bench.lost == [0]
    assert bench.recovery.spurious_packets == 1
    assert bench.recovery.reordering.packets == 11
    assert bench.recovery.reordering.time > TIME_THRESHOLD
    bench.lost.clear()
    overtaken(bench, 10, 1.0)
    assert not bench.lost
    overtaken(bench, 12, 2.0)
    assert bench.lost == [22]


def test_the_window_comes_back_with_a_packet_that_was_only_late() -> None:
    bench = Bench()
    bench.recovery.cc.window = 100 * SIZE
    overtaken(bench, 10, 0.0)
    assert bench.recovery.cc.window >= 100 * SIZE


def test_thresholds_shrink_again_when_losses_are_real() -> None:
    bench = Bench()
    overtaken(bench, 40, 0.0)
    assert bench.recovery.reordering.packets == 41
    for i in range(200):
        now = 1 + 0.2 * i
        first = bench.next
        bench.send(now, 60)
        bench.ack(now + 0.1, (first + 1, first + 60))
    assert bench.recovery.reordering.packets == PACKET_THRESHOLD
    assert bench.recovery.reordering.time == TIME_THRESHOLD


def test_what_is_remembered_of_packets_given_up_is_bounded() -> None:
    bench = Bench()
    for i in range(2000):
        bench.send(0.001 * i)
    bench.ack(2.1, (1998, 2000))
    assert len(bench.lost) > 1000
    # The oldest of them is forgotten: its arrival proves nothing any more, and harms nobody.
    bench.ack(2.2, (0, 1), (1998, 2000))
    assert bench.recovery.spurious_packets == 0
    bench.ack(2.3, (0, 2000))
    assert 0 < bench.recovery.spurious_packets <= MAX_GIVEN_UP


# --- delivery rate ----------------------------------------------------------------------------------


def test_a_steady_flow_is_measured_at_its_rate() -> None:
    rate = DeliveryRate()
    sent: list[tuple[float, Snapshot]] = []
    sample = None
    for i in range(300):
        now = i * 0.001
        if i >= 50:
            sent_at, snapshot = sent[i - 50]
            rate.acked(snapshot, SIZE, sent_at, now)
            sample = rate.sample(0.05, now)
        sent.append((now, rate.sent(SIZE, SIZE * min(i, 49), now)))
    assert sample is not None
    assert sample.rate == pytest.approx(SIZE / 0.001, rel=0.05)
    assert rate.delivered == 250 * SIZE


def test_acknowledgements_that_come_together_do_not_look_like_speed() -> None:
    rate = DeliveryRate()
    sent = [rate.sent(SIZE, i * SIZE, i * 0.01) for i in range(10)]
    for i, snapshot in enumerate(sent):
        rate.acked(snapshot, SIZE, i * 0.01, 0.2)
    sample = rate.sample(0.1, 0.2)
    assert sample is not None
    assert sample.rate <= 10 * SIZE / 0.1


def test_a_sample_says_that_the_application_was_slow() -> None:
    rate = DeliveryRate()
    rate.limited_by_app(0)
    snapshot = rate.sent(SIZE, 0, 1.0)
    rate.acked(snapshot, SIZE, 1.0, 1.1)
    sample = rate.sample(0.05, 1.1)
    assert sample is not None
    assert sample.app_limited
    assert not rate.is_app_limited
    assert rate.sample(0.05, 1.1) is None
