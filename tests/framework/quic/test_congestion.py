"""CUBIC, slow start and pacing."""

from __future__ import annotations

import pytest

from dialkey.quic.congestion import Cubic, Pacer

SIZE = 1200


def round_trip(cc: Cubic, now: float, rtt: float = 0.1) -> None:
    """Send a whole window and let all of it arrive."""
    count = cc.window // SIZE
    for _ in range(count):
        cc.on_sent(SIZE, now)
    for _ in range(count):
        cc.on_acked(SIZE, now, now + rtt, rtt)


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
    cc.on_lost(SIZE, 1.0, 1.1)
    assert cc.window == 70 * SIZE
    cc.on_lost(SIZE, 1.05, 1.15)
    assert cc.window == 70 * SIZE
    cc.on_lost(SIZE, 1.2, 1.3)
    assert cc.window == pytest.approx(49 * SIZE, abs=1)
    assert cc.in_flight == 47 * SIZE
    assert not cc.in_slow_start


def test_the_window_never_falls_below_two_datagrams() -> None:
    cc = Cubic(SIZE)
    for i in range(30):
        cc.on_sent(SIZE, 0.0)
        cc.on_lost(SIZE, float(i), i + 0.5)
    assert cc.window == 2 * SIZE
    cc.on_persistent_congestion()
    assert cc.window == 2 * SIZE


def test_cubic_comes_back_to_where_it_was_and_then_goes_beyond() -> None:
    cc = Cubic(SIZE)
    cc.window = 200 * SIZE
    for _ in range(200):
        cc.on_sent(SIZE, 0.0)
    cc.on_lost(SIZE, 0.0, 0.1)
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
        cc.on_rtt(rtt, i * 0.01, rtt)
    assert not cc.in_slow_start


def test_pacing_lets_a_burst_go_and_then_the_rate() -> None:
    pacer = Pacer()
    rate = Pacer.rate(100_000, 0.1, slow_start=False)
    assert rate == pytest.approx(1_250_000)
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
    pacer.allowance(0.0, 1e6)
    assert pacer.allowance(100.0, 1e6) == Pacer.MIN_BURST_BYTES
    assert pacer.allowance(200.0, 1e8) == 1e8 * Pacer.BURST_S


def test_a_round_trip_of_nothing_does_not_divide_by_zero() -> None:
    assert Pacer.rate(12_000, 0.0, slow_start=True) > 0
