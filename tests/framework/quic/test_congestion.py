"""CUBIC, slow start and pacing."""

from __future__ import annotations

import pytest

from dialkey.quic.paths.congestion import AckSummary, Cubic, LossSummary, Pacer

SIZE = 1200


def round_trip(cc: Cubic, now: float, rtt: float = 0.1) -> None:
    """Send a whole window and let all of it arrive."""
    count = cc.window // SIZE
    for _ in range(count):
        cc.on_sent(SIZE, now)
    for _ in range(count):
        cc.on_acked(SIZE, now, now + rtt, rtt)


def lost(cc: Cubic, size: int, sent_time: float, now: float) -> None:
    cc.on_lost(LossSummary(size, 1, sent_time, size, cc.in_flight, False), now)


def test_the_initial_window() -> None:
    assert Cubic(SIZE).window == 10 * SIZE


def test_slow_start_doubles() -> None:
    cc = Cubic(SIZE)
    for i in range(4):
        before = cc.window
        round_trip(cc, i * 0.1)
        assert cc.window == 2 * before


def test_a_window_that_is_not_used_does_not_grow() -> None:
    cc = Cubic(SIZE)
    for i in range(100):
        cc.on_sent(SIZE, i * 0.1)
        cc.on_acked(SIZE, i * 0.1, i * 0.1 + 0.1, 0.1)
    assert cc.window == 10 * SIZE


def test_one_loss_in_a_round_trip_counts_once() -> None:
    cc = Cubic(SIZE)
    cc.window = 100 * SIZE
    for _ in range(50):
        cc.on_sent(SIZE, 0.0)
    lost(cc, SIZE, 1.0, 1.1)
    assert cc.window == 70 * SIZE
    lost(cc, SIZE, 1.05, 1.15)
    assert cc.window == 70 * SIZE
    lost(cc, SIZE, 1.2, 1.3)
    assert cc.window == pytest.approx(49 * SIZE, abs=1)
    assert cc.in_flight == 47 * SIZE
    assert not cc.in_slow_start


def test_the_window_never_falls_below_two_datagrams() -> None:
    cc = Cubic(SIZE)
    for i in range(30):
        cc.on_sent(SIZE, 0.0)
        lost(cc, SIZE, float(i), i + 0.5)
    assert cc.window == 2 * SIZE
    cc.on_persistent_congestion()
    assert cc.window == 2 * SIZE


def test_cubic_comes_back_to_where_it_was_and_then_goes_beyond() -> None:
    cc = Cubic(SIZE)
    cc.window = 200 * SIZE
    for _ in range(200):
        cc.on_sent(SIZE, 0.0)
    lost(cc, SIZE, 0.0, 0.1)
    cc.on_expired(199 * SIZE)
    assert cc.window == 140 * SIZE
    sizes = []
    for i in range(80):
        round_trip(cc, 1 + i * 0.1)
        sizes.append(cc.window / SIZE)
    # K = cbrt(200 * 0.3 / 0.4) = 5.3 s.
    at_k = sizes[53]
    assert at_k == pytest.approx(200, rel=0.06)
    assert sizes == sorted(sizes)
    assert sizes[30] - sizes[25] < sizes[5] - sizes[0]
    assert sizes[-1] > 205


def test_growing_round_trips_end_slow_start_before_loss_does() -> None:
    cc = Cubic(SIZE)
    rtt = 0.05
    for i in range(200):
        if not cc.in_slow_start:
            break
        rtt += 0.001
        cc.on_ack(AckSummary(0, 0, rtt, rtt, None), i * 0.01)
    assert not cc.in_slow_start


def test_pacing_lets_a_burst_go_and_then_the_rate() -> None:
    pacer = Pacer()
    rate = 1_250_000
    sent, now = 0, 0.0
    while now < 1.0:
        while pacer.allowance(now, rate) > 0:
            pacer.spend(SIZE)
            sent += SIZE
        then = pacer.next_time(now, rate)
        assert then > now
        now = then
    assert sent == pytest.approx(rate, rel=0.1)


def test_an_idle_pacer_saves_up_no_more_than_a_burst() -> None:
    pacer = Pacer()
    assert pacer.allowance(0.0, 1e5) == Pacer.FIRST_BURST_BYTES
    pacer.spend(Pacer.FIRST_BURST_BYTES)
    assert pacer.allowance(100.0, 1e5) == Pacer.MIN_BURST_BYTES
    assert pacer.allowance(200.0, 1e8) == 1e8 * Pacer.BURST_S


def test_a_round_trip_of_nothing_does_not_divide_by_zero() -> None:
    assert Cubic(SIZE).pacing_rate(0.0) > 0


def test_cubic_paces_a_little_faster_than_its_window() -> None:
    cc = Cubic(SIZE)
    cc.window, cc.ssthresh = 100_000, 100_000
    assert cc.pacing_rate(0.1) == pytest.approx(1_250_000)
    cc.ssthresh = 200_000
    assert cc.pacing_rate(0.1) == pytest.approx(2_000_000)


def test_a_reduction_is_taken_back_when_all_its_losses_arrive() -> None:
    cc = Cubic(SIZE)
    cc.window = 100 * SIZE
    for _ in range(50):
        cc.on_sent(SIZE, 0.0)
    lost(cc, 2 * SIZE, 0.5, 1.0)
    lost(cc, SIZE, 0.6, 1.1)
    assert cc.window == 70 * SIZE
    cc.on_spurious_loss(2 * SIZE, 0.5)
    assert cc.window == 70 * SIZE
    cc.on_spurious_loss(SIZE, 0.6)
    assert cc.window == 100 * SIZE
    assert cc.in_slow_start


def test_a_real_loss_among_late_packets_keeps_the_reduction() -> None:
    cc = Cubic(SIZE)
    cc.window = 100 * SIZE
    for _ in range(50):
        cc.on_sent(SIZE, 0.0)
    lost(cc, 3 * SIZE, 0.5, 1.0)
    cc.on_spurious_loss(2 * SIZE, 0.5)
    assert cc.window == 70 * SIZE
    # Losses from after the reduction are another matter.
    cc.on_spurious_loss(SIZE, 1.5)
    assert cc.window == 70 * SIZE
