"""Packet numbers that are left out, and receivers that acknowledge what never arrived."""

from __future__ import annotations

import itertools
import random

import pytest
from quic_pair import Pair, frame, transfer

from dialkey.quic import codes
from dialkey.quic.paths import skipped_numbers
from dialkey.quic.paths.path import Path
from dialkey.quic.paths.skipped_numbers import Skips
from dialkey.testing import Conditions


def used_by(numbers: Skips, count: int) -> list[int]:
    """Return the numbers of so many lone packets."""
    used: list[int] = []
    number = 0
    for _ in range(count):
        number = numbers.first_free(number)
        used.append(number)
        number += 1
    return used


@pytest.mark.parametrize("seed", range(20))
def test_now_and_then_a_number_is_left_out(seed: int) -> None:
    numbers = Skips(random.Random(seed).randrange)
    used = used_by(numbers, 5000)
    left_out = sorted(set(range(used[-1])) - set(used))
    assert len(set(used)) == 5000, "none is used twice: it is part of the nonce"
    assert left_out[0] <= skipped_numbers.FIRST_WITHIN
    apart = [b - a for a, b in itertools.pairwise(left_out)]
    assert min(apart) >= skipped_numbers.LEAST_APART
    assert max(apart) < skipped_numbers.MOST_APART
    assert len(set(apart)) > 3, "nobody can foresee them"
    for number in left_out[-skipped_numbers.REMEMBERED :]:
        assert numbers.claimed([(number, number + 1)])
        assert numbers.claimed([(number + 10, number + 20), (number - 5, number + 3)])
        assert not numbers.claimed([(number + 1, number + 20), (number - 5, number)])


def test_a_run_goes_over_a_number_that_was_to_be_left_out() -> None:
    numbers = Skips(lambda below: below // 2)
    at = 1 + skipped_numbers.FIRST_WITHIN // 2
    assert numbers.first_free(at - 1) == at - 1
    assert numbers.first_free(at + 43) == at + 44, "at the beginning of the next run"
    assert numbers.claimed([(0, at + 45)])
    assert not numbers.claimed([(0, at + 43)])


def left_out(path: Path) -> list[int]:
    return list(path.skips._numbers)


@pytest.mark.parametrize("with_multipath", [False, True])
def test_who_acknowledges_everything_is_found_out(with_multipath: bool) -> None:
    pair = Pair(client={"multipath": with_multipath}).connect()
    transfer((pair.server, 300_000))
    pair.settle()
    path = pair.server.path
    assert left_out(path)
    assert pair.server.close_reason is None, "an honest client acknowledges what came"
    largest = path.next_number - 1
    head = (codes.PATH_ACK, 0) if with_multipath else (codes.ACK,)
    pair.client.inject(frame(*head, largest, 0, 0, largest))
    reason = pair.server.close_reason
    assert reason is not None
    assert (reason.cause, reason.error_code) == ("protocol", codes.PROTOCOL_VIOLATION)
    assert b"left out" in reason.reason


def test_who_acknowledges_before_it_received_is_found_out_soon() -> None:
    """It never sees a packet, says that all came, and the server sends ever faster until it knows."""
    pair = Pair(client={"stream_window": 1 << 26, "connection_window": 1 << 26}).connect()
    pair.settle()
    stream = pair.client.must_open()
    pair.client.write(stream, b"get", finish=True)
    pair.settle(0.2)
    pair.to_client.is_up = False
    path = pair.server.path
    known = path.next_number
    pair.server.write(stream, bytes(32 << 20))
    pair.flush()
    while pair.server.close_reason is None:
        largest = path.next_number - 1
        pair.client.inject(frame(codes.PATH_ACK, 0, largest, 0, 0, largest - known))
        pair.run(seconds=0.01)
        assert path.next_number < known + 2 * skipped_numbers.MOST_APART
    assert pair.server.close_reason.error_code == codes.PROTOCOL_VIOLATION


@pytest.mark.parametrize("seed", range(4))
def test_honest_receivers_are_never_blamed(seed: int) -> None:
    bad = Conditions(delay_s=0.01, jitter_s=0.01, loss=0.05, duplicate=0.05)
    pair = Pair(seed=seed, conditions=bad).connect()
    transfer((pair.client, 2_000_000), (pair.server, 2_000_000))
    assert left_out(pair.client.path)
    assert left_out(pair.server.path)
    assert pair.client.close_reason is None
    assert pair.server.close_reason is None


def test_a_gap_costs_little() -> None:
    """Acknowledgements that were themselves acknowledged no longer list what came before a gap."""
    # At this rate some 300 packets are on their way, so that a gap is news for a moment only.
    pair = Pair(conditions=Conditions(delay_s=0.01, rate_bytes_s=20_000_000)).connect()
    transfer((pair.client, 8_000_000))
    path = pair.server.path
    assert path.received.largest > 5000
    assert len(path.received.ranges()) < 6
