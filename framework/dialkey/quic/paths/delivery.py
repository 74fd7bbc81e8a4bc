"""Delivery-rate samples (draft-ietf-ccwg-bbr, section 4.1): how fast a path delivers what is sent.

Each record that leaves carries a snapshot of what had been delivered by then; when it is acknowledged,
the difference, over the longer of the times it took to send and to acknowledge, is one sample. A burst is
one record, and so one sample.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_ROUNDING: Final = 0.001
"""On a path without any jitter, intervals equal the round trip, apart from rounding."""


class Snapshot(NamedTuple):
    """What was known when a record left.

    Attributes:
        delivered: bytes delivered on the path by then.
        delivered_at: when the last of them was acknowledged.
        first_sent_at: when the flight started whose delivery is being timed.
        app_limited: whether the application had too little to send.
        tx_in_flight: bytes in flight, this record included.
        lost: bytes lost on the path by then.
    """

    delivered: int
    delivered_at: float
    first_sent_at: float
    app_limited: bool
    tx_in_flight: int
    lost: int


class RateSample(NamedTuple):
    """What one acknowledgement says about the path.

    Attributes:
        rate: bytes per second; 0 if the interval was too short to tell.
        delivered: bytes delivered since the newest packet in it was sent.
        prior_delivered: bytes that had been delivered when that packet was sent.
        app_limited: whether the rate is the application's, not the path's.
        tx_in_flight, lost: bytes in flight when it was sent, and lost since then.
    """

    rate: float
    delivered: int
    prior_delivered: int
    app_limited: bool
    tx_in_flight: int
    lost: int


class DeliveryRate:
    """The sampler of one path.

    Attributes:
        delivered, lost: bytes so far.
    """

    __slots__ = (
        "_app_limited_until",
        "_delivered_at",
        "_first_sent_at",
        "_newest",
        "_newest_sent_at",
        "delivered",
        "lost",
    )

    def __init__(self) -> None:
        self.delivered = 0
        self.lost = 0
        self._delivered_at = 0.0
        self._first_sent_at = 0.0
        self._app_limited_until = 0
        self._newest: Snapshot | None = None
        self._newest_sent_at = 0.0

    @property
    def is_app_limited(self) -> bool:
        """Whether what is in flight is less than the path would take."""
        return self._app_limited_until > 0

    def limited_by_app(self, in_flight: int) -> None:
        """Note that there is nothing more to send, although the path would take more."""
        self._app_limited_until = max(1, self.delivered + in_flight)

    def sent(self, size: int, in_flight: int, now: float) -> Snapshot:
        """Return the snapshot of a record of `size` bytes that leaves; `in_flight` is without it."""
        if not in_flight:
            self._first_sent_at = self._delivered_at = now
        return Snapshot(
            self.delivered,
            self._delivered_at,
            self._first_sent_at,
            self._app_limited_until > 0,
            in_flight + size,
            self.lost,
        )

    def acked(self, snapshot: Snapshot, size: int, sent_at: float, now: float) -> None:
        """Note one record, or a part of one, of the acknowledgement that is being read."""
        self.delivered += size
        self._delivered_at = now
        newest = self._newest
        if newest is None or (sent_at, snapshot.delivered) >= (
            self._newest_sent_at,
            newest.delivered,
        ):
            self._newest = snapshot
            self._newest_sent_at = sent_at

    def sample(self, min_rtt: float, now: float) -> RateSample | None:
        """Return the sample of the acknowledgement that was read; None if it said nothing new."""
        newest, self._newest = self._newest, None
        if newest is None:
            return None
        if self.delivered > self._app_limited_until:
            self._app_limited_until = 0
        send_s = self._newest_sent_at - newest.first_sent_at
        self._first_sent_at = self._newest_sent_at
        interval = max(send_s, now - newest.delivered_at)
        delivered = self.delivered - newest.delivered
        # An interval below the shortest round trip is not real: acknowledgements were delayed together.
        known = interval > 0 and interval >= (1 - _ROUNDING) * min_rtt
        return RateSample(
            delivered / interval if known else 0.0,
            delivered,
            newest.delivered,
            newest.app_limited,
            newest.tx_in_flight,
            self.lost - newest.lost,
        )
