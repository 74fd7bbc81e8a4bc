"""A memory of the peers to which something happened recently."""

from __future__ import annotations

from typing import Final

from dialkey_gossip.ids import PeerId

__all__ = ["Recent"]

_MAX_PEERS: Final = 1024
"""Far more than turn up in one topic within seconds; the oldest goes first."""


class Recent:
    """Peers, each remembered for a fixed time.

    Args:
        lifetime_s: how long.
    """

    __slots__ = ("_lifetime_s", "_since")

    def __init__(self, lifetime_s: float) -> None:
        self._lifetime_s = lifetime_s
        self._since: dict[PeerId, float] = {}

    def add(self, peer: PeerId, now: float) -> None:
        """Remember a peer from now on; those remembered long enough are forgotten."""
        self._since.pop(peer, None)
        self._since[peer] = now
        while True:
            oldest = next(iter(self._since))
            if len(self._since) <= _MAX_PEERS and now - self._since[oldest] <= self._lifetime_s:
                return
            del self._since[oldest]

    def has(self, peer: PeerId, now: float) -> bool:
        """Return whether a peer is remembered."""
        since = self._since.get(peer)
        return since is not None and now - since <= self._lifetime_s

    def take(self, peer: PeerId, now: float) -> bool:
        """Return whether a peer was remembered, and forget it."""
        since = self._since.pop(peer, None)
        return since is not None and now - since <= self._lifetime_s
