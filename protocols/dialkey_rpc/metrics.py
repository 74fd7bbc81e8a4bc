"""Counters for each method: what was called, how it ended, how long it took. Sans-IO."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import attrs

__all__ = ["BUCKETS_S", "MethodCounters", "MethodStats", "prometheus_text"]

BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends, seconds: from a call on one machine to one that somebody waits for."""


@attrs.frozen
class MethodStats:
    """What happened to one method so far.

    Attributes:
        active: calls in progress.
        ended: how many calls ended in which way: ``ok``, ``cancelled``, or the code of an error;
            ``local`` for those that the caller's own code raised.
        items_up: items that streamed up.
        items_down: items that streamed down.
        seconds: the sum of the times that calls took.
        buckets: calls that took at most the time in `BUCKETS_S`, each counted once; the last entry
            is for longer ones.
    """

    active: int
    ended: Mapping[str, int]
    items_up: int
    items_down: int
    seconds: float
    buckets: tuple[int, ...]


class MethodCounters:
    """The counters behind `MethodStats`."""

    __slots__ = ("active", "buckets", "ended", "items_down", "items_up", "seconds")

    def __init__(self) -> None:
        self.active = 0
        self.ended: Counter[str] = Counter()
        self.items_up = 0
        self.items_down = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(BUCKETS_S) + 1)

    def end(self, outcome: str, seconds: float) -> None:
        """Note the end of a call."""
        self.active -= 1
        self.ended[outcome] += 1
        self.seconds += seconds
        self.buckets[bisect_left(BUCKETS_S, seconds)] += 1

    def stats(self) -> MethodStats:
        """Return the counters as they stand."""
        return MethodStats(
            self.active,
            dict(self.ended),
            self.items_up,
            self.items_down,
            self.seconds,
            tuple(self.buckets),
        )


def prometheus_text(service: str, side: str, stats: Mapping[str, MethodStats]) -> str:
    """Write counters down in the Prometheus text format.

    Args:
        service: its name, for the label.
        side: ``server`` or ``client``.
        stats: by method.
    """
    lines: list[str] = []
    for name, kind, text, samples in (
        ("calls_total", "counter", "Calls that ended, by outcome.", _calls),
        ("calls_active", "gauge", "Calls in progress.", _active),
        ("items_total", "counter", "Items that streamed up or down.", _items),
        ("call_seconds", "histogram", "How long calls took.", _seconds),
    ):
        full = f"dialkey_rpc_{name}"
        lines += (f"# HELP {full} {text}", f"# TYPE {full} {kind}")
        for method in sorted(stats):
            labels = f'service="{service}",side="{side}",method="{method}"'
            for suffix, more, value in samples(stats[method]):
                lines.append(f"{full}{suffix}{{{labels}{more}}} {value}")
    return "\n".join(lines) + "\n"


Sample = tuple[str, str, object]


def _calls(stats: MethodStats) -> Iterator[Sample]:
    for outcome in sorted(stats.ended):
        yield "", f',outcome="{outcome}"', stats.ended[outcome]


def _active(stats: MethodStats) -> Iterable[Sample]:
    return [("", "", stats.active)]


def _items(stats: MethodStats) -> Iterable[Sample]:
    return [("", ',direction="up"', stats.items_up), ("", ',direction="down"', stats.items_down)]


def _seconds(stats: MethodStats) -> Iterator[Sample]:
    total = 0
    for end, count in zip((*BUCKETS_S, "+Inf"), stats.buckets, strict=True):
        total += count
        yield "_bucket", f',le="{end}"', total
    yield "_sum", "", round(stats.seconds, 6)
    yield "_count", "", total
