"""How often something may happen: a burst at once, then at a steady rate. Sans-IO."""

from __future__ import annotations

__all__ = ["Allowance"]


class Allowance:
    """A bucket that refills steadily. It is full at first.

    Args:
        burst: how often something may happen at once.
        per_s: how often it may happen in the long run.
        now: the time, in seconds of any clock; that of all later calls.
    """

    __slots__ = ("_at", "_burst", "_left", "_per_s")

    def __init__(self, burst: float, per_s: float, now: float = 0.0) -> None:
        self._burst = burst
        self._per_s = per_s
        self._left = burst
        self._at = now

    def left(self, now: float) -> float:
        """Return how often it may happen now."""
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        return self._left

    def take(self, now: float) -> bool:
        """Return whether it may happen now, and count it if so."""
        if self.left(now) < 1:
            return False
        self._left -= 1
        return True

    def give_back(self) -> None:
        """Take it for not having happened."""
        self._left = min(self._burst, self._left + 1)
