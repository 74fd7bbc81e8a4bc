"""Path MTU discovery by probes (RFC 8899), upwards from 1200 bytes, and back when the path shrinks."""

from __future__ import annotations

from typing import Final

BASE_BYTES: Final = 1200
"""What every QUIC path carries (RFC 9000 section 14)."""
DEFAULT_MAX_BYTES: Final = 1452
"""Ethernet's 1500 less IPv6 and UDP headers; also where iroh stops."""
_STEP_BYTES: Final = 20
_TRIES: Final = 3
_RAISE_AGAIN_S: Final = 600.0
_BLACK_HOLE_LOSSES: Final = 3


class MtuDiscovery:
    """The datagram size of one path.

    Attributes:
        current: datagram size known to work.
    """

    __slots__ = (
        "_failed",
        "_large_acked_time",
        "_large_losses",
        "_next_at",
        "_tries",
        "current",
        "in_flight",
        "maximum",
    )

    def __init__(self, maximum: int = DEFAULT_MAX_BYTES) -> None:
        self.maximum = max(BASE_BYTES, maximum)
        self.current = BASE_BYTES
        self.in_flight = 0
        # The smallest size known to fail.
        self._failed = self.maximum + 1
        self._tries = 0
        self._next_at = 0.0
        self._large_losses = 0
        self._large_acked_time = -1.0

    def next_probe(self, now: float) -> int:
        """Return the size to probe now, or 0."""
        if self.in_flight or self.current == self.maximum or now < self._next_at:
            return 0
        if self._failed > self.maximum:
            # The largest first: on most paths it fits, and the search is over in one round trip.
            return self.maximum
        if self._failed - self.current <= _STEP_BYTES:
            self._failed = self.maximum + 1
            self._next_at = now + _RAISE_AGAIN_S
            return 0
        return (self.current + self._failed) // 2

    def on_probe_sent(self, size: int) -> None:
        self.in_flight = size

    def on_probe_acked(self, size: int) -> bool:
        """Note that a probe arrived; return whether the size of datagrams changed."""
        self.in_flight = 0
        self._tries = 0
        if size <= self.current:
            return False
        self.current = size
        return True

    def on_probe_lost(self, size: int) -> None:
        self.in_flight = 0
        self._tries += 1
        if self._tries >= _TRIES:
            self._tries = 0
            self._failed = min(self._failed, size)

    def on_large_lost(self, sent_time: float) -> bool:
        """Note that a datagram above the base was lost; return whether the size fell back.

        A datagram lost before a later large one arrived tells of congestion. Several lost with none
        arriving after them tell of a path that no longer carries the size.
        """
        if sent_time <= self._large_acked_time:
            return False
        self._large_losses += 1
        if self._large_losses < _BLACK_HOLE_LOSSES or self.current == BASE_BYTES:
            return False
        self._reset_to_base()
        return True

    def on_large_acked(self, sent_time: float) -> None:
        self._large_acked_time = max(self._large_acked_time, sent_time)
        self._large_losses = 0

    def on_too_large(self, size: int) -> bool:
        """Note that this machine refuses to send `size`; return whether the size fell back."""
        self._failed = min(self._failed, max(size, BASE_BYTES + 1))
        if self.in_flight >= size:
            self.in_flight = 0
        if self.current < size:
            return False
        self._reset_to_base()
        return True

    def _reset_to_base(self) -> None:
        self._failed = min(self._failed, max(self.current, BASE_BYTES + 1))
        self.current = BASE_BYTES
        self._large_losses = 0
