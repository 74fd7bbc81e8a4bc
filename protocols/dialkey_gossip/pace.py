"""A limit on how often something may happen for each peer."""

from __future__ import annotations

from typing import Final

from dialkey.allowance import Allowance
from dialkey_gossip.ids import PeerId

__all__ = ["PeerPace"]

_MAX_PEERS: Final = 256
"""More peers than this within seconds are limited by other means; the oldest entry goes."""


class PeerPace:
    """A bucket for each peer.

    Args:
        burst: as for `Allowance`.
        per_s: as for `Allowance`.
    """

    __slots__ = ("_burst", "_paces", "_per_s")

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._paces: dict[PeerId, Allowance] = {}

    def __len__(self) -> int:
        return len(self._paces)

    def take(self, peer: PeerId, now: float) -> bool:
        """Return whether it may happen now for a peer, and count it if so."""
        pace = self._paces.pop(peer, None)
        if pace is None:
            pace = Allowance(self._burst, self._per_s)
            if len(self._paces) >= _MAX_PEERS:
                del self._paces[next(iter(self._paces))]
        self._paces[peer] = pace
        return pace.take(now)
