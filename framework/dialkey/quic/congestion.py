"""CUBIC congestion control (RFC 9438), counted in bytes, for acknowledgements that come in batches.

aioquic's controllers grow by one step for each packet that they are shown; here one acknowledgement
covers a burst of many packets, so growth is computed from the bytes acknowledged.
"""

from __future__ import annotations

_C = 0.4
_BETA = 0.7
_INITIAL_PACKETS = 10
_MINIMUM_PACKETS = 2
_HYSTART_MIN_SAMPLES = 8
_HYSTART_MIN_RTT_S = 0.002
"""Below this, scheduling noise of the hosts looks like a growing queue; slow start then ends by loss."""


class Cubic:
    """The congestion window of one path.

    Attributes:
        window: bytes that may be in flight.
        in_flight: bytes sent and neither acknowledged nor lost.
    """

    __slots__ = (
        "_epoch",
        "_k",
        "_limited_at",
        "_max_datagram",
        "_reno",
        "_round_end",
        "_round_min",
        "_round_samples",
        "_round_start_min",
        "_w_max",
        "in_flight",
        "recovery_start",
        "ssthresh",
        "window",
    )

    def __init__(self, max_datagram: int) -> None:
        self._max_datagram = max_datagram
        self.window = _INITIAL_PACKETS * max_datagram
        self.in_flight = 0
        self.ssthresh: float = float("inf")
        self.recovery_start = -1.0
        self._epoch: float | None = None
        self._k = 0.0
        # When the window was last used by half or more.
        self._limited_at = -1.0
        self._w_max = 0.0
        self._reno = 0.0
        self._round_end = 0.0
        self._round_min = float("inf")
        self._round_start_min = float("inf")
        self._round_samples = 0

    def set_max_datagram(self, size: int) -> None:
        """Follow a change of the path's datagram size."""
        self._max_datagram = size

    @property
    def available(self) -> int:
        return self.window - self.in_flight

    @property
    def in_slow_start(self) -> bool:
        return self.window < self.ssthresh

    def on_sent(self, size: int, now: float) -> None:
        self.in_flight += size
        if 2 * self.in_flight >= self.window:
            self._limited_at = now

    def on_expired(self, size: int) -> None:
        """Forget bytes that are neither acknowledged nor taken as a sign of congestion."""
        self.in_flight -= size

    def on_acked(self, size: int, sent_time: float, now: float, srtt: float) -> None:
        """Note that `size` bytes sent at `sent_time` have arrived."""
        self.in_flight -= size
        # A window that was not used says nothing about the path (RFC 9002 section 7.8). What counts
        # is its use when the packet left, not what is left of it when a batch of them arrives.
        if sent_time > self._limited_at or sent_time <= self.recovery_start:
            return
        if self.in_slow_start:
            self.window += size
            return
        if self._epoch is None:
            self._epoch = now
            self._w_max = max(self._w_max, float(self.window))
            self._k = ((self._w_max - self.window) / (_C * self._max_datagram)) ** (1 / 3)
            self._reno = float(self.window)
        t = now - self._epoch + srtt - self._k
        target = self._w_max + _C * self._max_datagram * t * t * t
        target = min(max(target, self.window), 1.5 * self.window)
        self._reno += 3 * (1 - _BETA) / (1 + _BETA) * self._max_datagram * size / self.window
        step = (target - self.window) * size / self.window
        self.window = max(self.window + int(step), int(self._reno))

    def on_lost(self, size: int, sent_time: float, now: float) -> None:
        """Note that `size` bytes, the newest sent at `sent_time`, were lost."""
        self.in_flight -= size
        if sent_time <= self.recovery_start:
            return
        self.recovery_start = now
        self._w_max = self.window * ((1 + _BETA) / 2 if self.window < self._w_max else 1.0)
        self.window = max(int(self.window * _BETA), _MINIMUM_PACKETS * self._max_datagram)
        self.ssthresh = self.window
        self._epoch = None

    def on_persistent_congestion(self) -> None:
        self.window = _MINIMUM_PACKETS * self._max_datagram
        self.recovery_start = -1.0
        self._epoch = None

    def on_rtt(self, rtt: float, now: float, srtt: float) -> None:
        """Leave slow start when round trips grow (HyStart++, RFC 9406)."""
        if not self.in_slow_start:
            return
        if now >= self._round_end:
            self._round_start_min = self._round_min
            self._round_min = float("inf")
            self._round_samples = 0
            self._round_end = now + srtt
        self._round_min = min(self._round_min, rtt)
        self._round_samples += 1
        base = self._round_start_min
        if self._round_samples >= _HYSTART_MIN_SAMPLES and base != float("inf"):
            allowed = max(0.004, min(base / 8, 0.016))
            if base >= _HYSTART_MIN_RTT_S and self._round_min >= base + allowed:
                self.ssthresh = self.window


class Pacer:
    """Spread what the window allows over the round trip, in bursts that a timer can keep up with."""

    __slots__ = ("_credit", "_last")

    BURST_S = 0.004
    """Four times the granularity of an event loop's timer: late wake-ups do not cost throughput."""
    MIN_BURST_BYTES = 16 * 1200

    def __init__(self) -> None:
        self._credit = float(self.MIN_BURST_BYTES)
        self._last = 0.0

    @staticmethod
    def rate(window: int, srtt: float, slow_start: bool) -> float:
        """Return bytes per second: a little more than the window needs."""
        return (2.0 if slow_start else 1.25) * window / max(srtt, 1e-6)

    def allowance(self, now: float, rate: float) -> float:
        """Return the bytes that may leave now."""
        burst = max(self.MIN_BURST_BYTES, rate * self.BURST_S)
        self._credit = min(burst, self._credit + (now - self._last) * rate)
        self._last = now
        return self._credit

    def spend(self, size: int) -> None:
        self._credit -= size

    def next_time(self, now: float, rate: float) -> float:
        """Return when half a burst may leave again."""
        burst = max(self.MIN_BURST_BYTES, rate * self.BURST_S)
        return now + max(0.001, (burst / 2 - self._credit) / rate)
