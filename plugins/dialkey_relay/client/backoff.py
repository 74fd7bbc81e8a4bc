"""How long to wait before the next attempt. No I/O.

Source: docs/wire/relay.md 5.4, with two changes. A connection counts as good only when it has lasted,
so that a relay that accepts and drops us is not dialled in a tight loop. And after the loss of a good
one the first attempt is spread a little, because a relay that restarts loses all its clients in the
same instant.
"""

from __future__ import annotations

import random
from typing import Final

__all__ = ["Backoff"]

FIRST_S: Final = 0.01
LAST_S: Final = 16.0
GOOD_AFTER_S: Final = 5.0
SPREAD_S: Final = 0.1


class Backoff:
    """Exponential delays with full jitter on top.

    Args:
        random: for the jitter.
    """

    def __init__(self, random: random.Random) -> None:
        self._random = random
        self._next = FIRST_S

    def failed(self) -> float:
        """Note a failed attempt; return how many seconds to wait."""
        delay = self._next
        self._next = min(LAST_S, delay * 2)
        return delay + self._random.uniform(0, delay)

    def lost(self, lasted_s: float) -> float:
        """Note the loss of an established connection; return how many seconds to wait."""
        if lasted_s < GOOD_AFTER_S:
            return self.failed()
        self._next = FIRST_S
        return self._random.uniform(0, SPREAD_S)

    def reset(self) -> None:
        """Start over: the cause of the failures may be gone."""
        self._next = FIRST_S
