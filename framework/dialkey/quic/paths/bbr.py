"""BBR congestion control (draft-ietf-ccwg-bbr): a model of the path in place of a reaction to loss.

The model is two numbers, each measured while the other does not disturb it: the most that the path
delivers in a second (`max_bw`) and the shortest round trip (`min_rtt`). Their product is what has to be
in flight; more would only wait in a queue. Every few seconds the cycle probes for more bandwidth; also
every few seconds, a short phase with little in flight looks for a shorter round trip::

    STARTUP ──no growth in three rounds, or much loss──► DRAIN ──queue empty──► DOWN
    DOWN ──queue empty──► CRUISE ──2 to 3 s──► REFILL ──one round──► UP ──no growth, or loss──► DOWN
    any ──no shorter round trip for 5 s──► PROBE_RTT ──200 ms──► DOWN, or STARTUP

Where this differs from the draft, and why:

- Loss is "too high" only when it exceeds the threshold by more than chance would explain. With the small
  flights of slow links two lost packets are already more than two per cent, and would end each probe.
- A round with less loss than the threshold does not lower the short-term bounds: on a radio link every
  round loses something, and the bounds would creep downwards for seconds.
- The bandwidth-delay product is computed with a few milliseconds added to the shortest round trip: event
  loops wake late, acknowledgements come in batches, and on a short path the product alone would leave the
  sender idle between two wake-ups.

Samples are taken per record, and a record is a whole burst: nothing here is paid for per packet.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from math import inf, sqrt
from typing import Final

from dialkey.quic.paths.congestion import INITIAL_PACKETS, AckSummary, LossSummary
from dialkey.quic.paths.delivery import RateSample

STARTUP_PACING_GAIN: Final = 2.77
DRAIN_PACING_GAIN: Final = 0.5
DOWN_PACING_GAIN: Final = 0.9
UP_PACING_GAIN: Final = 1.25
WINDOW_GAIN: Final = 2.0
UP_WINDOW_GAIN: Final = 2.25
PACING_MARGIN: Final = 0.99
"""One per cent below the measured bandwidth, so that a queue drains rather than grows."""
STARTUP_GROWTH: Final = 1.25
STARTUP_ROUNDS: Final = 3
STARTUP_LOSS_EVENTS: Final = 6
LOSS_THRESHOLD: Final = 0.02
LOSS_DEVIATIONS: Final = 2.5
BETA: Final = 0.7
HEADROOM: Final = 0.15
PROBE_WAIT_S: Final = 2.0
PROBE_WAIT_SPREAD_S: Final = 1.0
MAX_ROUNDS_BETWEEN_PROBES: Final = 63
PROBE_RTT_INTERVAL_S: Final = 5.0
PROBE_RTT_S: Final = 0.2
PROBE_RTT_GAIN: Final = 0.5
MIN_RTT_WINDOW_S: Final = 10.0
EXTRA_ACKED_ROUNDS: Final = 10
MIN_PACKETS: Final = 4
HOST_LATENCY_S: Final = 0.004
"""What event loops and batched acknowledgements add to a round trip at most, when all is well."""
_MAX_UP_ROUNDS: Final = 30


class Phase(Enum):
    """What BBR is doing."""

    STARTUP = "startup"
    DRAIN = "drain"
    DOWN = "probe_bw_down"
    CRUISE = "probe_bw_cruise"
    REFILL = "probe_bw_refill"
    UP = "probe_bw_up"
    PROBE_RTT = "probe_rtt"


class _Acks(Enum):
    """Which part of a bandwidth probe the acknowledgements that arrive now belong to."""

    NONE = 0
    REFILLING = 1
    STARTING = 2
    FEEDBACK = 3
    STOPPING = 4


_PROBE_BW: Final = frozenset({Phase.DOWN, Phase.CRUISE, Phase.REFILL, Phase.UP})
_PROBING: Final = frozenset({Phase.STARTUP, Phase.REFILL, Phase.UP})


class Bbr:
    """See the module. One for each path.

    Args:
        max_datagram: bytes of a full packet.
        chance: returns a number from 0 to 1; spreads the probes of flows that share a link.

    Attributes:
        window: bytes that may be in flight.
        in_flight: bytes sent and neither acknowledged nor lost.
        phase: see `Phase`.
    """

    name = "bbr"

    def __init__(self, max_datagram: int, chance: Callable[[], float]) -> None:
        self._mss = max_datagram
        self._chance = chance
        self.window = INITIAL_PACKETS * max_datagram
        self.in_flight = 0
        self.phase = Phase.STARTUP
        self._pacing_gain = STARTUP_PACING_GAIN
        self._window_gain = WINDOW_GAIN
        self._pacing_rate: float | None = None
        self._prior_window = 0
        # the model
        self.max_bw = 0.0
        self._bw_cycles = [0.0, 0.0]
        self.min_rtt = inf
        self._min_rtt_at = 0.0
        self._probe_min_rtt = inf
        self._probe_min_rtt_at = 0.0
        self._inflight_long = inf
        self._inflight_short = inf
        self._bw_short = inf
        self._bw_latest = 0.0
        self._inflight_latest = 0
        # rounds
        self._delivered = 0
        self._round_ends_at = 0
        self._round_start = False
        self._loss_round_ends_at = 0
        self._lost_in_round = 0
        self._delivered_in_round = 0
        self._loss_events_in_round = 0
        # startup
        self._is_full = False
        self._full_bw = 0.0
        self._full_count = 0
        self._full_now = False
        # probing for bandwidth
        self._acks = _Acks.NONE
        self._rounds_since_probe = 0
        self._probe_wait_s = PROBE_WAIT_S
        self._phase_since = 0.0
        self._probe_samples = False
        self._up_rounds = 0
        self._up_acked = 0.0
        self._up_step: float = inf
        self._window_was_full = False
        # probing for the round trip
        self._probe_rtt_done_at: float | None = None
        self._probe_rtt_round_done = False
        self._is_restarting = False
        self._probe_rtt_due = False
        # acknowledgements that arrive in batches
        self._extra_since: float | None = None
        self._extra_delivered = 0
        self._extra_acked: list[int] = [0] * EXTRA_ACKED_ROUNDS
        self._extra_index = 0
        # what was concluded from losses that may prove spurious
        self._before_loss: tuple[float, float, float] | None = None

    # --- what the path asks ---------------------------------------------------------------------

    @property
    def available(self) -> int:
        """Bytes that may be sent now."""
        return self.window - self.in_flight

    @property
    def in_slow_start(self) -> bool:
        """Whether the bandwidth is not known yet."""
        return self.phase is Phase.STARTUP

    @property
    def bandwidth(self) -> float:
        """The bandwidth to assume now, in bytes per second; 0 before the first sample."""
        return min(self.max_bw, self._bw_short)

    def pacing_rate(self, srtt: float) -> float:
        """Return bytes per second."""
        if self._pacing_rate is None:
            return STARTUP_PACING_GAIN * self.window / max(srtt, 0.001)
        return self._pacing_rate

    def set_max_datagram(self, size: int) -> None:
        """Follow a change of the path's datagram size."""
        self._mss = size
        self.window = max(self.window, self._least)

    # --- events ---------------------------------------------------------------------------------

    def on_sent(self, size: int, now: float, *, app_limited: bool = False) -> None:
        """Note that `size` bytes left."""
        if not self.in_flight and app_limited:
            self._is_restarting = True
            self._extra_since = None
            if self.phase in _PROBE_BW:
                self._set_pacing(1.0)
            elif self.phase is Phase.PROBE_RTT:
                self._check_probe_rtt_done(now)
        self.in_flight += size
        if self.in_flight + 2 * self._mss > self.window:
            self._window_was_full = True

    def on_expired(self, size: int) -> None:
        """Forget bytes that are neither acknowledged nor taken as a sign of congestion."""
        self.in_flight -= size

    def on_acked(self, size: int, sent_time: float, now: float, srtt: float) -> None:
        """Note one record, or a part of one, that arrived; `on_ack` follows."""
        self.in_flight -= size

    def on_ack(self, ack: AckSummary, now: float) -> None:
        """Update the model with what one acknowledgement tells."""
        self._delivered = ack.delivered
        sample = ack.sample
        self._round_start = False
        if sample is not None:
            self._note_delivery(ack.acked_bytes, sample)
            self._note_bandwidth(sample)
            self._note_congestion(sample)
            self._note_lumps(ack.acked_bytes, now)
            self._check_full(sample)
        if self.phase is Phase.STARTUP and self._is_full:
            self.phase = Phase.DRAIN
            self._pacing_gain, self._window_gain = DRAIN_PACING_GAIN, WINDOW_GAIN
        if self.phase is Phase.DRAIN and self.in_flight <= self._target(1.0):
            self._start_down(now)
        if sample is not None:
            self._move_on(sample, ack.acked_bytes, now)
        self._note_rtt(ack.rtt, now)
        self._check_probe_rtt(now)
        if sample is not None:
            self._is_restarting = False
        self._set_pacing(self._pacing_gain)
        self._set_window(ack.acked_bytes)

    def on_lost(self, loss: LossSummary, now: float) -> None:
        """Note packets that were lost."""
        self.in_flight -= loss.lost_bytes
        if not loss.lost_bytes:
            return
        if self._before_loss is None:
            self._before_loss = (self._inflight_long, self._inflight_short, self._bw_short)
        self._lost_in_round += loss.lost_bytes
        self._loss_events_in_round += loss.events
        if self._probe_samples and self._is_too_much(loss.lost_since_sent, loss.tx_in_flight):
            self._probe_samples = False
            if not loss.app_limited:
                at_loss = loss.tx_in_flight * (1 - LOSS_THRESHOLD)
                self._inflight_long = max(at_loss, self._target(1.0) * BETA, self._least)
            if self.phase is Phase.UP:
                self._start_down(now)

    def on_spurious_loss(self, size: int, sent_time: float) -> None:
        """Undo what was concluded from losses that proved spurious."""
        self._lost_in_round = max(0, self._lost_in_round - size)
        if self._before_loss is not None:
            long, short, bw = self._before_loss
            self._inflight_long = max(self._inflight_long, long)
            self._inflight_short = max(self._inflight_short, short)
            self._bw_short = max(self._bw_short, bw)

    def on_persistent_congestion(self) -> None:
        """Start again from the minimum: nothing got through for a long time."""
        self._prior_window = max(self._prior_window, self.window)
        self.window = self._least

    def trace(self) -> dict[str, object]:
        """Return its state, for a trace."""
        shown: dict[str, object] = {
            "phase": self.phase.value,
            "bandwidth": int(self.bandwidth),
            "pacing_rate": int(self._pacing_rate or 0) * 8,
        }
        if self._inflight_long < inf:
            shown["inflight_longterm"] = int(self._inflight_long)
        if self._inflight_short < inf:
            shown["inflight_shortterm"] = int(self._inflight_short)
        return shown

    # --- the model ------------------------------------------------------------------------------

    @property
    def _least(self) -> int:
        return MIN_PACKETS * self._mss

    def _note_delivery(self, acked: int, sample: RateSample) -> None:
        self._bw_latest = max(self._bw_latest, sample.rate)
        self._inflight_latest = max(self._inflight_latest, sample.delivered)
        self._delivered_in_round += acked
        if sample.prior_delivered >= self._round_ends_at:
            self._start_round()
            self._rounds_since_probe += 1
            self._round_start = True
            self._extra_index = (self._extra_index + 1) % EXTRA_ACKED_ROUNDS
            self._extra_acked[self._extra_index] = 0

    def _start_round(self) -> None:
        self._round_ends_at = self._delivered

    def _note_bandwidth(self, sample: RateSample) -> None:
        if sample.rate > 0 and (sample.rate >= self.max_bw or not sample.app_limited):
            self._bw_cycles[1] = max(self._bw_cycles[1], sample.rate)
            self.max_bw = max(self._bw_cycles)

    def _note_congestion(self, sample: RateSample) -> None:
        if sample.prior_delivered < self._loss_round_ends_at:
            return
        self._loss_round_ends_at = self._delivered
        lost, delivered = self._lost_in_round, self._delivered_in_round
        is_much = bool(lost) and self._is_too_much(lost, lost + delivered)
        if self.phase is Phase.STARTUP:
            if is_much and self._loss_events_in_round >= STARTUP_LOSS_EVENTS:
                self._is_full = True
                self._inflight_long = max(self._target(1.0), self._inflight_latest, self._least)
        elif is_much and self.phase not in _PROBING:
            if self._bw_short == inf:
                self._bw_short = self.max_bw
            if self._inflight_short == inf:
                self._inflight_short = self.window
            self._bw_short = max(self._bw_latest, BETA * self._bw_short)
            self._inflight_short = max(self._inflight_latest, BETA * self._inflight_short)
        if not lost:
            self._before_loss = None
        self._lost_in_round = self._loss_events_in_round = self._delivered_in_round = 0
        self._bw_latest = sample.rate
        self._inflight_latest = sample.delivered

    def _is_too_much(self, lost: float, sent: float) -> bool:
        expected = LOSS_THRESHOLD * sent / self._mss
        return lost / self._mss > expected + LOSS_DEVIATIONS * sqrt(expected)

    def _note_lumps(self, acked: int, now: float) -> None:
        if self._extra_since is None:
            self._extra_since = now
            self._extra_delivered = 0
            return
        expected = self.bandwidth * (now - self._extra_since)
        if self._extra_delivered <= expected:
            self._extra_since = now
            self._extra_delivered = 0
            expected = 0.0
        self._extra_delivered += acked
        extra = min(self._extra_delivered - expected, float(self.window))
        at = self._extra_index
        self._extra_acked[at] = max(self._extra_acked[at], int(extra))

    def _check_full(self, sample: RateSample) -> None:
        if self._full_now or not self._round_start or sample.app_limited:
            return
        if sample.rate >= self._full_bw * STARTUP_GROWTH:
            self._reset_full()
            self._full_bw = sample.rate
            return
        self._full_count += 1
        self._full_now = self._full_count >= STARTUP_ROUNDS
        if self._full_now:
            self._is_full = True

    def _reset_full(self) -> None:
        self._full_bw = 0.0
        self._full_count = 0
        self._full_now = False

    def _reset_short(self) -> None:
        self._bw_short = self._inflight_short = inf

    def _note_rtt(self, rtt: float | None, now: float) -> None:
        if self._probe_min_rtt == inf:
            self._probe_min_rtt_at = now
        expired = now > self._probe_min_rtt_at + PROBE_RTT_INTERVAL_S
        self._probe_rtt_due = expired
        if rtt is not None and (rtt < self._probe_min_rtt or expired):
            self._probe_min_rtt = rtt
            self._probe_min_rtt_at = now
        if self._probe_min_rtt < self.min_rtt or now > self._min_rtt_at + MIN_RTT_WINDOW_S:
            self.min_rtt = self._probe_min_rtt
            self._min_rtt_at = self._probe_min_rtt_at

    # --- the cycle ------------------------------------------------------------------------------

    def _move_on(self, sample: RateSample, acked: int, now: float) -> None:
        if not self._is_full:
            return
        self._adapt_long(sample, acked)
        if self.phase is Phase.DOWN:
            if not self._maybe_refill(now) and self._is_time_to_cruise():
                self.phase = Phase.CRUISE
                self._pacing_gain, self._window_gain = 1.0, WINDOW_GAIN
        elif self.phase is Phase.CRUISE:
            self._maybe_refill(now)
        elif self.phase is Phase.REFILL:
            if self._round_start:
                self._probe_samples = True
                self._start_up(sample, now)
        elif self.phase is Phase.UP and self._is_time_to_go_down(sample):
            self._start_down(now)

    def _adapt_long(self, sample: RateSample, acked: int) -> None:
        if self._acks is _Acks.STARTING and self._round_start:
            self._acks = _Acks.FEEDBACK
        elif self._acks is _Acks.STOPPING and self._round_start:
            self._acks = _Acks.NONE
            self._probe_samples = False
            if self.phase in _PROBE_BW and not sample.app_limited:
                self._bw_cycles = [self._bw_cycles[1], 0.0]
        if self._inflight_long == inf or self._is_too_much(sample.lost, sample.tx_in_flight):
            return
        self._inflight_long = max(self._inflight_long, sample.tx_in_flight)
        if self.phase is Phase.UP and self._window_was_full and self.window >= self._inflight_long:
            self._up_acked += acked
            if self._up_acked >= self._up_step:
                steps = self._up_acked // self._up_step
                self._up_acked -= steps * self._up_step
                self._inflight_long += steps * self._mss
            if self._round_start:
                self._raise_slope()

    def _raise_slope(self) -> None:
        growth = self._mss << self._up_rounds
        self._up_rounds = min(self._up_rounds + 1, _MAX_UP_ROUNDS)
        self._up_step = max(self.window * self._mss / growth, self._mss)

    def _is_time_to_cruise(self) -> bool:
        return self.in_flight <= min(self._with_headroom(), self._target(1.0))

    def _is_time_to_go_down(self, sample: RateSample) -> bool:
        if self._window_was_full and self.window >= self._inflight_long:
            self._reset_full()
            self._full_bw = sample.rate
            return False
        return self._full_now

    def _maybe_refill(self, now: float) -> bool:
        packets = self._target(1.0) / self._mss
        rounds = min(packets, MAX_ROUNDS_BETWEEN_PROBES)
        waited = now > self._phase_since + self._probe_wait_s
        if not waited and self._rounds_since_probe < rounds:
            return False
        self._reset_short()
        self._up_rounds = 0
        self._up_acked = 0.0
        self._acks = _Acks.REFILLING
        self._start_round()
        self.phase = Phase.REFILL
        self._pacing_gain, self._window_gain = 1.0, WINDOW_GAIN
        return True

    def _start_up(self, sample: RateSample, now: float) -> None:
        self._acks = _Acks.STARTING
        self._start_round()
        self._reset_full()
        self._full_bw = sample.rate
        self._phase_since = now
        self._window_was_full = False
        self.phase = Phase.UP
        self._pacing_gain, self._window_gain = UP_PACING_GAIN, UP_WINDOW_GAIN
        self._raise_slope()

    def _start_down(self, now: float) -> None:
        self._lost_in_round = self._loss_events_in_round = 0
        self._bw_latest = 0.0
        self._inflight_latest = 0
        self._up_step = inf
        self._rounds_since_probe = 1 if self._chance() < 0.5 else 0
        self._probe_wait_s = PROBE_WAIT_S + PROBE_WAIT_SPREAD_S * self._chance()
        self._phase_since = now
        self._acks = _Acks.STOPPING
        self._start_round()
        self.phase = Phase.DOWN
        self._pacing_gain, self._window_gain = DOWN_PACING_GAIN, WINDOW_GAIN

    # --- probing for the round trip -------------------------------------------------------------

    def _check_probe_rtt(self, now: float) -> None:
        if self.phase is not Phase.PROBE_RTT:
            if not self._probe_rtt_due or self._is_restarting:
                return
            self._prior_window = max(self.window, self._prior_window)
            self.phase = Phase.PROBE_RTT
            self._pacing_gain, self._window_gain = 1.0, PROBE_RTT_GAIN
            self._probe_rtt_done_at = None
            self._acks = _Acks.STOPPING
            self._start_round()
        if self._probe_rtt_done_at is None:
            if self.in_flight <= self._probe_rtt_window():
                self._probe_rtt_done_at = now + PROBE_RTT_S
                self._probe_rtt_round_done = False
                self._start_round()
        else:
            if self._round_start:
                self._probe_rtt_round_done = True
            if self._probe_rtt_round_done:
                self._check_probe_rtt_done(now)

    def _check_probe_rtt_done(self, now: float) -> None:
        if self._probe_rtt_done_at is None or now <= self._probe_rtt_done_at:
            return
        self._probe_min_rtt_at = now
        self.window = max(self.window, self._prior_window)
        self._prior_window = 0
        self._reset_short()
        if self._is_full:
            self._start_down(now)
            self.phase = Phase.CRUISE
            self._pacing_gain = 1.0
        else:
            self.phase = Phase.STARTUP
            self._pacing_gain, self._window_gain = STARTUP_PACING_GAIN, WINDOW_GAIN

    def _probe_rtt_window(self) -> int:
        return max(int(self._product(PROBE_RTT_GAIN)), self._least)

    # --- the controls ---------------------------------------------------------------------------

    def _product(self, gain: float) -> float:
        if self.min_rtt == inf or not self.max_bw:
            return float(INITIAL_PACKETS * self._mss)
        return gain * self.bandwidth * (self.min_rtt + HOST_LATENCY_S)

    def _target(self, gain: float) -> float:
        return max(self._product(gain), self._least)

    def _with_headroom(self) -> float:
        if self._inflight_long == inf:
            return inf
        headroom = max(self._mss, HEADROOM * self._inflight_long)
        return max(self._inflight_long - headroom, self._least)

    def _set_pacing(self, gain: float) -> None:
        if not self.max_bw:
            return
        rate = gain * self.bandwidth * PACING_MARGIN
        if self._is_full or self._pacing_rate is None or rate > self._pacing_rate:
            self._pacing_rate = max(rate, 1.0)

    def _set_window(self, acked: int) -> None:
        most = self._product(self._window_gain) + max(self._extra_acked)
        if self.phase is Phase.UP:
            most += 2 * self._mss
        window: float = self.window
        if self._is_full:
            window = min(window + acked, most)
        elif window < most or self._delivered < INITIAL_PACKETS * self._mss:
            window += acked
        window = max(window, self._least)
        if self.phase is Phase.PROBE_RTT:
            window = min(window, self._probe_rtt_window())
        cap = inf
        if self.phase in (Phase.CRUISE, Phase.PROBE_RTT):
            cap = self._with_headroom()
        elif self.phase in _PROBE_BW:
            cap = self._inflight_long
        cap = max(min(cap, self._inflight_short), self._least)
        self.window = int(min(window, cap))


def bbr(max_datagram: int) -> Bbr:
    """Make a controller whose probes are not spread by chance: for one flow alone, and for tests."""
    return Bbr(max_datagram, lambda: 0.5)
