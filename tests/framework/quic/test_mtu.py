"""The search for the largest datagram, with a path that carries so much and no more."""

from __future__ import annotations

import pytest

from dialkey.quic.paths.mtu import BASE_BYTES, MtuDiscovery


def search(mtu: MtuDiscovery, carries: int, now: float = 0.0) -> int:
    """Probe until the search is over; return the number of probes."""
    probes = 0
    while size := mtu.next_probe(now):
        assert BASE_BYTES < size <= mtu.maximum
        mtu.on_probe_sent(size)
        assert mtu.next_probe(now) == 0, "one at a time"
        if size <= carries:
            assert mtu.on_probe_acked(size)
        else:
            mtu.on_probe_lost(size)
        probes += 1
        assert probes < 60
    return probes


@pytest.mark.parametrize("carries", [1200, 1201, 1219, 1240, 1280, 1300, 1400, 1451, 1452, 9000])
def test_the_search_ends_close_below_what_the_path_carries(carries: int) -> None:
    mtu = MtuDiscovery(1452)
    probes = search(mtu, carries)
    best = min(carries, 1452)
    assert best - 20 <= mtu.current <= best
    assert probes <= (1 if carries >= 1452 else 20)


def test_it_searches_again_after_ten_minutes() -> None:
    mtu = MtuDiscovery(1452)
    search(mtu, 1300)
    assert mtu.next_probe(599.0) == 0
    search(mtu, 1452, 601.0)
    assert mtu.current == 1452


def test_a_maximum_below_the_base_is_the_base() -> None:
    mtu = MtuDiscovery(1000)
    assert mtu.maximum == BASE_BYTES
    assert mtu.next_probe(0.0) == 0


def test_a_probe_is_tried_three_times() -> None:
    mtu = MtuDiscovery(1452)
    for _ in range(2):
        assert mtu.next_probe(0.0) == 1452
        mtu.on_probe_sent(1452)
        mtu.on_probe_lost(1452)
    assert mtu.next_probe(0.0) == 1452
    mtu.on_probe_sent(1452)
    mtu.on_probe_lost(1452)
    assert mtu.next_probe(0.0) < 1452


def test_large_losses_with_nothing_large_arriving_are_a_black_hole() -> None:
    mtu = MtuDiscovery(1452)
    search(mtu, 1452)
    assert not mtu.on_large_lost(1.0)
    assert not mtu.on_large_lost(1.1)
    mtu.on_large_acked(1.05)
    assert not mtu.on_large_lost(1.2)
    assert not mtu.on_large_lost(1.0), "older than what arrived"
    assert not mtu.on_large_lost(1.3)
    assert mtu.on_large_lost(1.4)
    assert mtu.current == BASE_BYTES
    search(mtu, 1300, 2.0)
    assert 1280 <= mtu.current <= 1300


def test_this_machine_refuses_a_size() -> None:
    mtu = MtuDiscovery(1452)
    mtu.on_probe_sent(1452)
    assert not mtu.on_too_large(1401)
    assert mtu.in_flight == 0
    search(mtu, 1400)
    assert 1380 <= mtu.current <= 1400
    assert mtu.on_too_large(1300)
    assert mtu.current == BASE_BYTES
