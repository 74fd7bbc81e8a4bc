"""A bulk transfer over links of many kinds, in virtual time: how much of the link it uses, and what
queue it makes for others.

Each row has a floor of throughput, as a share of what the link carries, and a ceiling of the round trip,
as a multiple of the empty link's. Start-up is included: the transfers take a few seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quic_pair import Pair

from dialkey import limits
from dialkey.quic.paths.bbr import Bbr, bbr
from dialkey.quic.paths.congestion import Cubic, MakeController
from dialkey.testing import Conditions

MIB: Final = 1 << 20


@attrs.frozen
class Link:
    """One link, the same both ways; delay, jitter and queue in milliseconds, rate in Mbit/s."""

    delay: float
    rate: float
    queue: float
    jitter: float = 0.0
    loss: float = 0.0
    in_order: bool = True
    mib: float = 6.0
    floor: float = 0.8
    ceiling: float = 2.0

    @property
    def bytes_s(self) -> float:
        return self.rate * 1e6 / 8

    def conditions(self) -> Conditions:
        return Conditions(
            delay_s=self.delay / 1e3,
            jitter_s=self.jitter / 1e3,
            loss=self.loss,
            rate_bytes_s=self.bytes_s,
            # A queue holds a few packets, however slow the link.
            queue_bytes=max(6000, int(self.queue / 1e3 * self.bytes_s)),
            in_order=self.in_order,
        )


@attrs.frozen
class Outcome:
    """What a transfer did: Mbit/s, the median and the 95th percentile of round trips in seconds."""

    rate: float
    median_rtt: float
    high_rtt: float
    waited_for_credit: bool
    lost: int
    spurious: int
    most_in_flight: int


WIDE: Final = {"stream_window": 64 * MIB, "connection_window": 64 * MIB}
"""Windows in which nothing ever waits for credit."""

SCALED: Final = {
    "stream_window": 100_000,  # the first flight is not smaller than elsewhere
    "connection_window": 200_000,
    "most_stream_window": limits.MAX_STREAM_RECEIVE_WINDOW_BYTES // 50,
    "most_connection_window": limits.MAX_CONNECTION_RECEIVE_WINDOW_BYTES // 50,
}
"""The windows for a link that is fifty times slower: 1 Gbit/s would take the simulator minutes."""


def transfer(
    link: Link,
    make: MakeController = bbr,
    *,
    seed: int = 3,
    windows: Mapping[str, int] = WIDE,
    grows_at_s: float | None = None,
) -> Outcome:
    config = {**windows, "make_controller": make}
    pair = Pair(conditions=link.conditions(), client=config, server=config, seed=seed)
    pair.connect()
    started = pair.now
    stream = pair.client.must_open(uni=True)
    size = int(link.mib * MIB)
    pair.client.write(stream, bytes(size), finish=True)
    trips: list[float] = []
    most = 0

    def over() -> bool:
        nonlocal most
        if grows_at_s is not None and pair.now >= started + grows_at_s:
            pair.to_server.conditions = attrs.evolve(link, rate=10 * link.rate).conditions()
        recovery = pair.client.path.recovery
        trips.append(recovery.latest_rtt)
        most = max(most, recovery.cc.in_flight)
        return stream in pair.server.ended

    pair.run(over, seconds=300, steps=2_000_000)
    trips.sort()
    recovery = pair.client.path.recovery
    return Outcome(
        size * 8 / (pair.now - started) / 1e6,
        trips[len(trips) // 2],
        trips[len(trips) * 95 // 100],
        pair.client.send[stream]._asked_at >= 0 or pair.client.c.streams.scheduler._asked_at >= 0,
        recovery.lost_packets,
        recovery.spurious_packets,
        most,
    )


LINKS: Final = {
    "a wire in the house": Link(1, 200, 20, mib=10, ceiling=7),
    "a neighbour": Link(10, 100, 100, mib=10),
    "a country": Link(25, 50, 100, mib=10, ceiling=2.2),
    "a continent": Link(50, 100, 100, mib=16, floor=0.6, ceiling=2.2),
    "an ocean": Link(100, 50, 100, mib=16, floor=0.6, ceiling=1.6),
    "a satellite": Link(300, 20, 300, mib=16, floor=0.5, ceiling=1.6),
    "slow": Link(40, 1, 1000, mib=0.7, ceiling=4),
    "slower": Link(100, 0.25, 2000, mib=0.2, floor=0.7, ceiling=4),
    "a bloated queue": Link(30, 20, 500, ceiling=2),
    "a bloated queue far away": Link(100, 20, 1000, mib=10, floor=0.7, ceiling=2.2),
    "a shallow queue": Link(25, 50, 10, floor=0.75, ceiling=1.3),
    "a shallow queue nearby": Link(5, 20, 10, ceiling=2.2),
    "one in a thousand lost": Link(50, 100, 100, loss=0.001, mib=16, floor=0.6, ceiling=2.2),
    "one per cent lost": Link(25, 50, 100, loss=0.01, mib=10, floor=0.75),
    "three per cent lost": Link(25, 50, 100, loss=0.03, floor=0.6),
    "a satellite that loses": Link(300, 10, 300, loss=0.01, mib=8, floor=0.45, ceiling=1.6),
    "slow and lossy": Link(50, 2, 200, loss=0.02, mib=1, floor=0.7, ceiling=3.5),
    "jitter in order": Link(25, 50, 100, jitter=10, mib=10, ceiling=3.2),
    "jitter that reorders": Link(25, 50, 100, jitter=10, in_order=False, mib=10, ceiling=3.2),
    "much jitter that reorders": Link(25, 20, 100, jitter=40, in_order=False, ceiling=3.2),
    "jitter and loss": Link(
        25, 50, 100, jitter=10, loss=0.01, in_order=False, floor=0.65, ceiling=3.2
    ),
}


@pytest.mark.parametrize("name", LINKS)
def test_bbr_uses_the_link_and_keeps_its_queue_short(name: str) -> None:
    link = LINKS[name]
    outcome = transfer(link)
    assert outcome.rate >= link.floor * link.rate, outcome
    empty_s = (2 * link.delay + link.jitter) / 1e3
    assert outcome.median_rtt <= link.ceiling * empty_s, outcome


@pytest.mark.parametrize(
    "name",
    [
        "a wire in the house",
        "a continent",
        "an ocean",
        "a satellite",
        "one in a thousand lost",
        "a satellite that loses",
        "much jitter that reorders",
    ],
)
def test_the_windows_that_there_are_by_default_slow_nothing_down(name: str) -> None:
    link = LINKS[name]
    assert transfer(link, windows={}).rate >= 0.9 * transfer(link).rate


def test_a_gigabit_over_300_ms_never_waits_for_credit() -> None:
    link = Link(150, 1000 / 50, 900, mib=10)
    outcome = transfer(link, windows=SCALED)
    assert not outcome.waited_for_credit
    assert outcome.rate >= 0.9 * transfer(link).rate


def test_loss_on_a_gigabit_over_300_ms_costs_no_more_for_the_windows() -> None:
    link = Link(150, 1000 / 50, 150, loss=0.001, mib=10)
    assert transfer(link, windows=SCALED).rate >= 0.9 * transfer(link).rate


def test_nothing_waits_for_credit_while_a_gigabit_connection_starts() -> None:
    link = Link(150, 1000, 150, mib=8)
    assert not transfer(link, windows={}).waited_for_credit


def test_windows_grow_with_a_link_that_becomes_faster() -> None:
    link = Link(150, 2, 300, mib=10)
    outcome = transfer(link, windows=SCALED, grows_at_s=6)
    assert not outcome.waited_for_credit
    assert outcome.rate >= 0.9 * transfer(link, grows_at_s=6).rate


@pytest.mark.parametrize("name", ["a neighbour", "a country", "jitter in order", "a bloated queue"])
def test_cubic_uses_clean_links(name: str) -> None:
    link = LINKS[name]
    outcome = transfer(link, Cubic)
    assert outcome.rate >= link.floor * link.rate, outcome


def test_loss_that_is_not_congestion_costs_bbr_little_and_cubic_nearly_everything() -> None:
    link = LINKS["one per cent lost"]
    assert transfer(link).rate > 8 * transfer(link, Cubic).rate


def test_packets_that_overtake_each_other_are_soon_not_taken_for_lost() -> None:
    outcome = transfer(LINKS["jitter that reorders"])
    assert 0 < outcome.spurious < 100
    assert outcome.lost == outcome.spurious


@settings(max_examples=25, deadline=None)
@given(
    delay=st.floats(1, 400),
    rate=st.sampled_from([0.5, 3, 20, 80]),
    queue=st.floats(5, 500),
    jitter=st.floats(0, 60),
    loss=st.floats(0, 0.1),
    in_order=st.booleans(),
    seed=st.integers(0, 1000),
    make=st.sampled_from([bbr, Cubic]),
)
def test_no_link_stalls_a_transfer(
    delay: float,
    rate: float,
    queue: float,
    jitter: float,
    loss: float,
    in_order: bool,
    seed: int,
    make: MakeController,
) -> None:
    link = Link(delay, rate, queue, jitter, loss, in_order, mib=0.25)
    outcome = transfer(link, make, seed=seed)
    # A few round trips of growth, the bytes themselves, and probe timeouts for what is lost at the end.
    fair_s = 0.25 * MIB * 8 / (rate * 1e6) + 40 * (2 * delay + jitter + queue) / 1e3 + 10
    fair_s *= 1 + 60 * loss
    assert 0.25 * MIB * 8 / 1e6 / outcome.rate < fair_s
    if make is bbr:
        product = link.bytes_s * (2 * delay + jitter + queue + 30) / 1e3
        assert outcome.most_in_flight < 4 * product + 40_000


def test_a_controller_is_made_for_each_path_and_named() -> None:
    pair = Pair().connect()
    cc = pair.client.path.recovery.cc
    assert isinstance(cc, Bbr)
    assert cc.name == "bbr"
    assert pair.server.path.recovery.cc is not cc
