"""Which messages are concurrent, and which of those decides.

Messages that arrive within a window of each other are concurrent. Time is divided into slices of a third
of the window, and each slice keeps only the number of its messages, their lowest id and who brought
them, so that a query costs seven look-ups however busy the topic is.
"""

from __future__ import annotations

from typing import Final

import attrs

from dialkey_gossip.ids import MessageId, PeerId

__all__ = ["Concurrency"]

_SLICES: Final = 3
"""Slices on either side that belong to the window, which is accurate to one slice."""

_KEPT_SLICES: Final = 20
"""Duplicates arrive within a few windows; later ones find nothing remembered and decide alone."""


@attrs.define
class _Slice:
    lowest: MessageId
    count: int = 0
    parents: set[PeerId | None] = attrs.field(factory=set)


class Concurrency:
    """Remember which messages arrived when.

    Args:
        window_s: how close together concurrent messages arrive.
    """

    __slots__ = ("_slice_s", "_slices")

    def __init__(self, window_s: float) -> None:
        self._slice_s = window_s / _SLICES
        self._slices: dict[int, _Slice] = {}

    def add(self, id: MessageId, at: float, parent: PeerId | None) -> None:
        """Record a message that arrived from a neighbour (None: our own); times never decrease.

        There are few neighbours, so a slice stays small.
        """
        index = int(at / self._slice_s)
        found = self._slices.get(index)
        if found is None:
            found = self._slices[index] = _Slice(id)
        found.count += 1
        found.lowest = min(found.lowest, id)
        found.parents.add(parent)
        while len(self._slices) > 1 and next(iter(self._slices)) < index - _KEPT_SLICES:
            del self._slices[next(iter(self._slices))]

    def count(self, at: float) -> int:
        """Count the messages concurrent with one that arrived at that time, itself included."""
        return sum(self._slices[i].count for i in self._window(at))

    def is_lowest(self, id: MessageId, at: float) -> bool:
        """Return whether a message that arrived then has the lowest id of all concurrent ones."""
        return all(id <= self._slices[i].lowest for i in self._window(at))

    def is_one_way(self, at: float) -> bool:
        """Return whether one neighbour brought all messages concurrent with one that arrived then."""
        parents = {parent for i in self._window(at) for parent in self._slices[i].parents}
        return len(parents) == 1 and None not in parents

    def _window(self, at: float) -> list[int]:
        index = int(at / self._slice_s)
        around = range(index - _SLICES, index + _SLICES + 1)
        return [i for i in around if i in self._slices]
