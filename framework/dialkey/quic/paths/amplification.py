"""How much may be sent to an address that has not proved that it receives (RFC 9000 sections 8.1, 9.3).

The address in a packet may be forged, and then what we send goes to somebody who never asked. So each
such address has a room of its own. Only what came from that very address makes it larger, and all that
is sent there counts: answers, probes, repetitions, and the word that all is over.
"""

from __future__ import annotations

from typing import Final

AMPLIFICATION: Final = 3
"""Bytes that may be sent for each one that came; the RFC's own number."""


class Room:
    """Bytes that may still be sent to one address."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = 0

    @property
    def left(self) -> int:
        return self._left

    def heard(self, size: int) -> None:
        """Note that a datagram, or a packet, came from there."""
        self._left += AMPLIFICATION * size

    def spend(self, size: int) -> None:
        """Note that something was sent there."""
        self._left -= size

    def take(self, size: int) -> bool:
        """Let a datagram go there, if it fits."""
        if size > self._left:
            return False
        self._left -= size
        return True
