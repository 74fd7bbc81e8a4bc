"""Congestion control of a path: the interface of a controller, CUBIC (RFC 9438), and pacing.

Everything is counted in bytes, and per acknowledgement: one acknowledgement covers a burst of many
packets. aioquic's controllers grow by one step for each packet that they are shown. BBR, the default, is
in `bbr`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from dialkey.quic.paths.delivery import RateSample

INITIAL_PACKETS: Final = 10
"""RFC 9002 section 7.2."""
_C = 0.4
_BETA = 0.7
_MINIMUM_PACKETS = 2
_HYSTART_MIN_SAMPLES = 8
_HYSTART_MIN_RTT_S = 0.002
"""Below this, scheduling noise of the hosts looks like a growing queue; slow start then ends by loss."""


class AckSummary(NamedTuple):
    """What one acknowledgement said.

    Attributes:
        acked_bytes: bytes that arrived.
        delivered: bytes delivered on the path so far, these included.
        rtt: the round trip of the newest packet, seconds; None if it is not newly acknowledged.
        srtt: the smoothed round trip, seconds.
        sample: how fast the path delivers, if the acknowledgement shows it.
    """

    acked_bytes: int
    delivered: int
    rtt: float | None
    srtt: float
    sample: RateSample | None


class LossSummary(NamedTuple):
    """Packets declared lost at one time.

    Attributes:
        lost_bytes: their bytes.
        events: how many gaps they form.
        newest_sent_at: when the newest of them was sent.
        lost_since_sent: bytes lost since that one was sent.
        tx_in_flight: bytes in flight when it was sent.
        app_limited: whether the application had too little to send then.
    """

    lost_bytes: int
    events: int
    newest_sent_at: float
    lost_since_sent: int
    tx_in_flight: int
    app_limited: bool


class Controller(Protocol):
    """Decides how much may be in flight on one path, and how fast it leaves.

    Sans-IO: told what was sent, what arrived and what was lost, with the time; asks for nothing. One
    belongs to one path and is discarded when the path moves to another network.

    Attributes:
        name: for logs.
        window: bytes that may be in flight.
        in_flight: bytes sent and neither acknowledged nor lost.
    """

    name: str
    window: int
    in_flight: int

    @property
    def available(self) -> int:
        """Bytes that may be sent now; negative when more is in flight than may be."""

    @property
    def in_slow_start(self) -> bool:
        """Whether it is still finding out what the path can carry."""

    def pacing_rate(self, srtt: float) -> float:
        """Return bytes per second at which to send."""

    def set_max_datagram(self, size: int) -> None:
        """Follow a change of the path's datagram size."""

    def on_sent(self, size: int, now: float, *, app_limited: bool = False) -> None:
        """Note that `size` bytes left."""

    def on_acked(self, size: int, sent_time: float, now: float, srtt: float) -> None:
        """Note one record, or a part of one, that arrived; `on_ack` follows."""

    def on_ack(self, ack: AckSummary, now: float) -> None:
        """Note the end of an acknowledgement."""

    def on_lost(self, loss: LossSummary, now: float) -> None:
        """Note packets that were lost."""

    def on_spurious_loss(self, size: int, sent_time: float) -> None:
        """Note that bytes declared lost arrived after all."""

    def on_expired(self, size: int) -> None:
        """Forget bytes that are neither acknowledged nor taken as a sign of congestion."""

    def on_persistent_congestion(self) -> None:
        """Note that everything sent over several probe timeouts was lost."""

    def trace(self) -> dict[str, object]:
        """Return what a trace should show besides the window and the bytes in flight."""


MakeController = Callable[[int], Controller]
"""Makes the controller of a new path, from the bytes of a full packet."""


class Cubic:
    """The congestion window of one path.

    Attributes:
        window: bytes that may be in flight.
        in_flight: bytes sent and neither acknowledged nor lost.
    """

    name = "cubic"

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
        "_undo",
        "_undo_bytes",
        "_w_max",
        "in_flight",
        "recovery_start",
        "ssthresh",
        "window",
    )

    def __init__(self, max_datagram: int) -> None:
        self._max_datagram = max_datagram
        self.window = INITIAL_PACKETS * max_datagram
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
        # The window, threshold and peak before the newest reduction, and the lost bytes behind it that
        # have not turned out to be late: when they all have, the reduction is undone.
        self._undo: tuple[int, float, float] | None = None
        self._undo_bytes = 0

    def pacing_rate(self, srtt: float) -> float:
        """Return bytes per second: a little more than the window needs."""
        return (2.0 if self.in_slow_start else 1.25) * self.window / max(srtt, 1e-6)

    def set_max_datagram(self, size: int) -> None:
        """Follow a change of the path's datagram size."""
        self._max_datagram = size

    @property
    def available(self) -> int:
        return self.window - self.in_flight

    @property
    def in_slow_start(self) -> bool:
        return self.window < self.ssthresh

    def on_sent(self, size: int, now: float, *, app_limited: bool = False) -> None:
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

    def on_ack(self, ack: AckSummary, now: float) -> None:
        """Note the end of an acknowledgement."""
        if ack.rtt is not None:
            self._on_rtt(ack.rtt, now, ack.srtt)

    def on_lost(self, loss: LossSummary, now: float) -> None:
        """Note packets that were lost."""
        self.in_flight -= loss.lost_bytes
        if not loss.lost_bytes:
            return
        if loss.newest_sent_at <= self.recovery_start:
            self._undo_bytes += loss.lost_bytes
            return
        self._undo = (self.window, self.ssthresh, self._w_max)
        self._undo_bytes = loss.lost_bytes
        self.recovery_start = now
        self._w_max = self.window * ((1 + _BETA) / 2 if self.window < self._w_max else 1.0)
        self.window = max(int(self.window * _BETA), _MINIMUM_PACKETS * self._max_datagram)
        self.ssthresh = self.window
        self._epoch = None

    def on_spurious_loss(self, size: int, sent_time: float) -> None:
        """Undo a reduction when all packets that caused it arrived after all."""
        if self._undo is None or sent_time > self.recovery_start:
            return
        self._undo_bytes -= size
        if self._undo_bytes <= 0:
            window, self.ssthresh, self._w_max = self._undo
            self.window = max(self.window, window)
            self._undo = None
            self.recovery_start = -1.0
            self._epoch = None

    def on_persistent_congestion(self) -> None:
        self.window = _MINIMUM_PACKETS * self._max_datagram
        self.recovery_start = -1.0
        self._epoch = None
        self._undo = None

    def trace(self) -> dict[str, object]:
        """Return its state, for a trace."""
        return {"ssthresh": int(self.ssthresh)} if self.ssthresh < float("inf") else {}

    def _on_rtt(self, rtt: float, now: float, srtt: float) -> None:
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
    MIN_BURST_BYTES = 2 * 1200
    """On a slow link, a longer burst would be a queue for everybody else on it."""
    FIRST_BURST_BYTES = 16 * 1200
    """The first flight leaves at once, as RFC 9002 section 7.7 allows."""

    def __init__(self) -> None:
        self._credit = float(self.FIRST_BURST_BYTES)
        self._last = 0.0

    def allowance(self, now: float, rate: float) -> float:
        """Return the bytes that may leave now, at `rate` bytes per second."""
        burst = max(self.MIN_BURST_BYTES, rate * self.BURST_S)
        earned = (now - self._last) * rate
        self._credit = max(self._credit, min(burst, self._credit + earned))
        self._last = now
        return self._credit

    def spend(self, size: int) -> None:
        self._credit -= size

    def next_time(self, now: float, rate: float) -> float:
        """Return when half a burst may leave again."""
        burst = max(self.MIN_BURST_BYTES, rate * self.BURST_S)
        return now + max(0.001, (burst / 2 - self._credit) / rate)
