"""Room in a memory that must not forget: who fills it finds it full, and nobody else does.

What is remembered against replays cannot give way to what comes later, or whoever pushes enough makes
us forget, and can then repeat. So a newcomer is refused instead, and those who brought most are
refused first: a holder may have up to four times the room that is left. Alone it gets four fifths of
the capacity; with five that push as hard as they can, each has 19 % and the last 5 % are there for
those who bring little.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from dialkey_gossip.ids import PeerId

__all__ = ["Quota"]

_SHARE: Final = 4
"""How many times the room that is left a holder may have."""


class Quota:
    """Count what each peer has brought.

    Args:
        capacity: entries of all peers.
    """

    __slots__ = ("_capacity", "_held", "_used")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held: Counter[PeerId | None] = Counter()
        self._used = 0

    def has_room(self, holder: PeerId | None) -> bool:
        """Say whether a peer may bring another entry. Takes constant time."""
        return self._held[holder] < _SHARE * (self._capacity - self._used)

    def take(self, holder: PeerId | None) -> None:
        """Count an entry; what we bring ourselves (None) need not ask for room."""
        self._held[holder] += 1
        self._used += 1

    def give(self, holder: PeerId | None) -> None:
        """Count that an entry is gone."""
        self._held[holder] -= 1
        if not self._held[holder]:
            del self._held[holder]
        self._used -= 1
