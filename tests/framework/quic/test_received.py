"""Which packet numbers have arrived: beside a plain set as the model."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey.quic.packets.frames import MAX_ACK_RANGES
from dialkey.quic.paths.received import ReceivedPackets


def expand(received: ReceivedPackets) -> set[int]:
    return {n for low, high in received.ranges() for n in range(low, high)}


def check(received: ReceivedPackets) -> None:
    """Ranges are newest first, do not touch, and are not too many."""
    found = received.ranges()
    assert len(found) <= MAX_ACK_RANGES
    for (low, _), (_, below) in itertools.pairwise(found):
        assert low > below
    for low, high in found:
        assert low < high
    if found:
        assert found[0][1] - 1 == received.largest


@given(st.lists(st.integers(0, 100), max_size=150))
def test_all_numbers_within_the_window_are_known(numbers: list[int]) -> None:
    received, model = ReceivedPackets(), set()
    for number in numbers:
        assert (number in received) == (number in model)
        if number not in received:
            received.add(number)
            model.add(number)
        check(received)
    assert expand(received) == model


@given(st.lists(st.integers(0, 10_000), max_size=200))
def test_nothing_is_acknowledged_that_did_not_come(numbers: list[int]) -> None:
    received, model = ReceivedPackets(), set()
    for number in numbers:
        fresh = number not in received
        if number in model:
            assert not fresh, "a repetition must never be taken for new"
        if fresh:
            received.add(number)
            model.add(number)
        check(received)
    assert expand(received) <= model
    # All of the newest hundred that came are reported, unless there are too many gaps.
    if len(received.ranges()) < MAX_ACK_RANGES:
        assert {n for n in model if n > received.largest - 100} <= expand(received)


@given(st.lists(st.integers(1, 3), max_size=200), st.integers(0, 2**32))
def test_packets_in_nearly_the_right_order(steps: list[int], seed: int) -> None:
    numbers, at = [], 0
    for step in steps:
        at += step
        numbers.append(at)
    rng = random.Random(seed)
    numbers.sort(key=lambda n: n + rng.randrange(30))
    received = ReceivedPackets()
    for number in numbers:
        assert number not in received
        received.add(number)
    check(received)
    assert expand(received) <= set(numbers)


def test_numbers_far_back_count_as_known() -> None:
    received = ReceivedPackets()
    received.add(1000)
    assert 1000 - 128 in received
    assert 1000 - 127 not in received


def test_only_the_newest_ranges_are_kept() -> None:
    received = ReceivedPackets()
    for number in range(0, 1000, 2):
        received.add(number)
    assert len(received.ranges()) == MAX_ACK_RANGES
    assert received.ranges()[0] == (998, 999)
    assert received.ranges()[-1] == (998 - 2 * (MAX_ACK_RANGES - 1), 999 - 2 * (MAX_ACK_RANGES - 1))


@pytest.mark.parametrize(("below", "left"), [(0, 3), (1, 2), (3, 1), (100, 1)])
def test_ranges_that_the_peer_knows_of_are_forgotten(below: int, left: int) -> None:
    received = ReceivedPackets()
    for number in (0, 2, 4):
        received.add(number)
    received.forget_below(below)
    assert len(received.ranges()) == left
    # The newest stays, and numbers are still recognised.
    assert received.ranges()[0] == (4, 5)
    assert 0 in received
