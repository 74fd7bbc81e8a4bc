"""Packet numbers that are left out, to tell who acknowledges what never arrived (RFC 9000 section 21.4).

A receiver that acknowledges packets before they come drives a sender to any rate, through any
congestion. It cannot know which numbers were never used; acknowledging one of them gives it away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

FIRST_WITHIN: Final = 64
"""The first number is left out this early, for short connections."""
LEAST_APART: Final = 64
MOST_APART: Final = 512
"""Each gap makes acknowledgements two bytes longer for a while, so there is one in some 300 packets."""
REMEMBERED: Final = 8
"""About 2,400 packets: more than are on their way at a time."""

Draw = Callable[[int], int]
"""Returns a whole number from 0 up to its argument, without it, that nobody can foresee."""


class Skips:
    """Which packet numbers of one path were left out, and where the next one will be."""

    __slots__ = ("_at", "_draw", "_numbers")

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._at = 1 + draw(FIRST_WITHIN)
        self._numbers: deque[int] = deque(maxlen=REMEMBERED)

    def first_free(self, number: int) -> int:
        """Return `number`, or the one after it if it is to be left out."""
        if number < self._at:
            return number
        self._numbers.append(number)
        self._at = number + LEAST_APART + self._draw(MOST_APART - LEAST_APART)
        return number + 1

    def claimed(self, ranges: list[tuple[int, int]]) -> bool:
        """Whether an acknowledgement contains a number that was left out.

        Args:
            ranges: (first, one past the last), newest first.
        """
        oldest = ranges[-1][0]
        return any(
            number >= oldest and any(low <= number < high for low, high in ranges)
            for number in self._numbers
        )
