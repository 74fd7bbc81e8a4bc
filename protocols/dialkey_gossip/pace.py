"""Limits on how often something may happen: leaky buckets, one or one for each peer."""

from __future__ import annotations

from typing import Final

from dialkey_gossip.ids import PeerId

__all__ = ["Pace", "PeerPace"]

_MAX_PEERS: Final = 256
"""More than that many within seconds are limited by what each of them may cost; the oldest goes."""


class Pace:
    """A bucket that empties steadily.

    Args:
        burst: how often something may happen at once.
        per_s: how often it may happen in the long run.
    """

    __slots__ = ("_at", "_burst", "_level", "_per_s")

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._level = 0.0
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Say whether it may happen now, and count it if so."""
        self._level = max(0.0, self._level - (now - self._at) * self._per_s)
        self._at = now
        if self._level > self._burst - 1:
            return False
        self._level += 1
        return True


class PeerPace:
    """A bucket for each peer.

    Args:
        burst: as of `Pace`.
        per_s: as of `Pace`.
    """

    __slots__ = ("_burst", "_paces", "_per_s")

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._paces: dict[PeerId, Pace] = {}

    def __len__(self) -> int:
        return len(self._paces)

    def take(self, peer: PeerId, now: float) -> bool:
        """Say whether it may happen now for a peer, and count it if so."""
        pace = self._paces.pop(peer, None)
        if pace is None:
            pace = Pace(self._burst, self._per_s)
            if len(self._paces) >= _MAX_PEERS:
                del self._paces[next(iter(self._paces))]
        self._paces[peer] = pace
        return pace.take(now)
