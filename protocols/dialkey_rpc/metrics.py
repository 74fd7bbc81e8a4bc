"""Counters for each method: what was called, how it ended, how long it took. Sans-IO."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from typing import Final

import attrs

__all__ = ["BUCKETS_S", "MethodCounters", "MethodStats"]

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

    def plus(self, other: MethodStats) -> MethodStats:
        """Return the sum of both."""
        return MethodStats(
            self.active + other.active,
            dict(Counter(self.ended) + Counter(other.ended)),
            self.items_up + other.items_up,
            self.items_down + other.items_down,
            self.seconds + other.seconds,
            tuple(map(sum, zip(self.buckets, other.buckets, strict=True))),
        )


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
