"""Room in a memory that must not forget: for whoever fills it, it is full; for others it is not.

What is remembered against replays cannot be evicted by later entries: otherwise anybody could push enough
to make us forget, and then replay. So new entries are refused instead, and those who brought most are
refused first: a holder may have up to four times the room that is left. Alone it gets four fifths of the
capacity; if five push as hard as they can, each has 19 %, and the last 5 % remain for those who bring
little.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from dialkey_gossip.ids import PeerId

__all__ = ["Quota"]

_SHARE: Final = 4
"""How many times the remaining room one holder may have."""


class Quota:
    """Counts what each peer has brought.

    Args:
        capacity: entries of all peers.
    """

    __slots__ = ("_capacity", "_held", "_used")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held: Counter[PeerId | None] = Counter()
        self._used = 0

    def has_room(self, holder: PeerId | None) -> bool:
        """Return whether a peer may bring another entry. Takes constant time."""
        return self._held[holder] < _SHARE * (self._capacity - self._used)

    def take(self, holder: PeerId | None) -> None:
        """Count an entry; what we bring ourselves (None) does not have to ask for room."""
        self._held[holder] += 1
        self._used += 1

    def give(self, holder: PeerId | None) -> None:
        """Stop counting an entry."""
        self._held[holder] -= 1
        if not self._held[holder]:
            del self._held[holder]
        self._used -= 1
