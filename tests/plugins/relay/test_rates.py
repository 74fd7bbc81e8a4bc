"""Token buckets: the numbers of docs/wire/relay.md 4.6, and limits per source address."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey.shares import network_of
from dialkey_relay.rates import AddressLimiter, Bucket, Rate


def test_a_full_bucket_lets_a_burst_pass_and_then_holds_the_rate() -> None:
    bucket = Bucket(Rate.of_bytes(100_000), 0.0)
    assert bucket.debit(9_999, 0.0) == 0
    # 1 - 20,001 = -20,000 below: two periods repay the debt, the third brings it above zero.
    assert bucket.debit(20_001, 0.0) == pytest.approx(0.3)
    assert bucket.debit(0, 0.25) == pytest.approx(0.05)
    assert bucket.debit(0, 0.301) == 0


def test_refills_come_in_steps_and_stop_at_the_capacity() -> None:
    bucket = Bucket(Rate(1000, 100), 0.0)
    bucket.debit(50, 0.0)
    assert bucket.debit(49, 0.09) == 0
    assert bucket.debit(1, 0.099) == pytest.approx(0.001)
    assert bucket.debit(99, 100.0) == 0
    assert bucket.debit(1, 100.0) > 0


@settings(deadline=None)
@given(st.lists(st.integers(1, 300_000), min_size=5, max_size=60), st.integers(10, 1_000_000))
def test_what_passes_in_the_long_run_is_the_rate(reads, rate) -> None:
    bucket = Bucket(Rate.of_bytes(rate), 0.0)
    now = 0.0
    for read in reads:
        now += bucket.debit(read, now)
    assert sum(reads[:-1]) <= rate * now + rate / 10 + rate / 10 + max(reads)


def test_rates_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="'burst' must be"):
        Rate.of_bytes(9)
    with pytest.raises(ValueError, match="'per_second' must be"):
        Rate(0, 1)


def test_refused_events_cost_nothing() -> None:
    allowance = Rate(1, 2).allowance(0.0)
    assert [allowance.take(0.0) for _ in range(50)].count(True) == 2
    assert allowance.take(1.0)
    assert not allowance.take(1.0)


def test_addresses_have_separate_limits() -> None:
    limiter = AddressLimiter(Rate(1, 2))
    assert [limiter.allow("192.0.2.1", 0.0) for _ in range(3)] == [True, True, False]
    assert limiter.allow("192.0.2.2", 0.0)
    assert limiter.allow("2001:db8::1", 0.0)
    assert limiter.allow("2001:db8::2", 0.0)
    assert not limiter.allow("2001:db8::3", 0.0)
    assert limiter.allow("2001:db8:0:1::3", 0.0)


def test_networks() -> None:
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1")
    assert network_of("fe80::1%eth0") == network_of("fe80::2")
    assert network_of("a unix socket") == "a unix socket"


def test_many_addresses_are_forgotten_in_order() -> None:
    limiter = AddressLimiter(Rate(1, 1))
    assert limiter.allow("192.0.2.1", 0.0)
    for n in range(65_536):
        limiter.allow(f"x{n}", 0.0)
    assert len(limiter._seen) == 65_536
    assert limiter.allow("192.0.2.1", 0.0)


def test_who_seldom_comes_is_known() -> None:
    limiter = AddressLimiter(Rate(1, 100))
    assert limiter.is_rare("192.0.2.1", 0)
    for n in range(6):
        assert limiter.is_rare("192.0.2.1", 0) is (n <= 4)
        assert limiter.allow("192.0.2.1", 0)
    assert limiter.is_rare("192.0.2.2", 0)
    assert limiter.is_rare("192.0.2.1", 2)
    # Where a network may do little at all, a part of that is much.
    small = AddressLimiter(Rate(1, 2))
    assert small.allow("192.0.2.1", 0)
    assert small.is_rare("192.0.2.1", 0)
    assert small.allow("192.0.2.1", 0)
    assert not small.is_rare("192.0.2.1", 0)
