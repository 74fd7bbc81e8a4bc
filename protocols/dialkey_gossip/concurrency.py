"""Which messages travel at the same time, and which of those decides.

Messages that arrive within a window of each other are concurrent. Time is cut into slices of a third
of the window, and each slice keeps only the number of its messages and their lowest id, so that a
question costs seven look-ups however busy the topic is.
"""

from __future__ import annotations

from typing import Final

from dialkey_gossip.ids import MessageId

__all__ = ["Concurrency"]

_SLICES: Final = 3
"""Slices to either side that belong to the window; the window is exact to one slice."""

_KEPT_SLICES: Final = 20
"""Duplicates come within a few windows; later ones meet no memory and decide for themselves."""


class Concurrency:
    """Remember which messages arrived when.

    Args:
        window_s: how close together concurrent messages arrive.
    """

    __slots__ = ("_slice_s", "_slices")

    def __init__(self, window_s: float) -> None:
        self._slice_s = window_s / _SLICES
        self._slices: dict[int, tuple[int, MessageId]] = {}

    def add(self, id: MessageId, at: float) -> None:
        """Take a message that arrived at a time, which never decreases."""
        index = int(at / self._slice_s)
        count, lowest = self._slices.get(index, (0, id))
        self._slices[index] = (count + 1, min(lowest, id))
        while len(self._slices) > 1 and next(iter(self._slices)) < index - _KEPT_SLICES:
            del self._slices[next(iter(self._slices))]

    def count(self, at: float) -> int:
        """Count the messages concurrent with one that arrived then, itself included."""
        return sum(self._slices[i][0] for i in self._window(at))

    def is_lowest(self, id: MessageId, at: float) -> bool:
        """Say whether a message that arrived then has the lowest id of all concurrent ones."""
        return all(id <= self._slices[i][1] for i in self._window(at))

    def _window(self, at: float) -> list[int]:
        index = int(at / self._slice_s)
        around = range(index - _SLICES, index + _SLICES + 1)
        return [i for i in around if i in self._slices]
