"""Loss detection of one path: round-trip time, what is in flight, what was lost (RFC 9002).

What was sent is kept as *records*. A record covers one packet with any frames, or a burst: a run of
equally large packets that carry consecutive pieces of one stream. A burst is split only when part of
it is lost, so a batch of forty packets costs one record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from dialkey.quic.congestion import Cubic, Pacer
from dialkey.quic.streams import Bytes, SendHalf

PACKET_THRESHOLD: Final = 3
TIME_THRESHOLD: Final = 9 / 8
GRANULARITY_S: Final = 0.001
MAX_PTO_STEP_S: Final = 2.0
"""Longest wait between two probes, as in iroh: a phone that gets its network back is heard soon."""
PERSISTENT_CONGESTION_PTOS: Final = 3
_MAX_EXPIRED: Final = 64

Frame = tuple[Any, ...]
"""(frame type, what is needed to write it again if it is lost)."""


class Sent:
    """A record of what was sent.

    For a burst `stream` is set: packet i of it carries `data[i*room : (i+1)*room]` from `offset` on.
    Otherwise `frames` lists what a lone packet carried, for whoever must know of its fate.
    """

    __slots__ = (
        "data",
        "eliciting",
        "fin",
        "frames",
        "number",
        "offset",
        "probe_size",
        "room",
        "size",
        "stop",
        "stream",
        "time",
        "wire",
    )

    def __init__(self, number: int, stop: int, time: float, size: int, wire: int) -> None:
        self.number = number
        self.stop = stop
        self.time = time
        self.size = size
        self.wire = wire
        self.eliciting = True
        self.frames: list[Frame] | None = None
        self.probe_size = 0
        self.stream: SendHalf | None = None
        self.offset = 0
        self.room = 0
        self.data: Bytes = b""
        self.fin = False

    def part(self, low: int, high: int) -> Sent:
        """Return the record of packets low .. high of a burst."""
        start = (low - self.number) * self.room
        end = len(self.data) if high == self.stop else (high - self.number) * self.room
        wire = (high - low) * self.size
        if high == self.stop:
            wire = self.wire - (low - self.number) * self.size
        part = Sent(low, high, self.time, self.size, wire)
        part.eliciting = self.eliciting
        part.stream = self.stream
        part.offset = self.offset + start
        part.room = self.room
        part.data = memoryview(self.data)[start:end]
        part.fin = self.fin and high == self.stop
        return part


class Recovery:
    """What is in flight on one path, and what its acknowledgements say.

    Args:
        on_acked: called with each record, or part of one, that has arrived.
        on_lost: called with each one that is taken for lost.
    """

    __slots__ = (
        "_acked",
        "_expired",
        "_lost",
        "cc",
        "eliciting_in_flight",
        "first_rtt_time",
        "initial_rtt",
        "largest_acked",
        "last_eliciting_time",
        "latest_rtt",
        "loss_time",
        "lost_packets",
        "max_ack_delay",
        "min_rtt",
        "pacer",
        "pto_count",
        "sent",
        "sent_packets",
        "srtt",
        "variance",
    )

    def __init__(
        self,
        *,
        max_datagram: int,
        initial_rtt: float,
        on_acked: Callable[[Sent], None],
        on_lost: Callable[[Sent], None],
    ) -> None:
        self._acked = on_acked
        self._lost = on_lost
        self.cc = Cubic(max_datagram)
        self.pacer = Pacer()
        self.sent: deque[Sent] = deque()
        # Numbers and times of packets whose data a probe timeout queued again. They may arrive yet,
        # and then they are all that tells of a round trip longer than the timeout.
        self._expired: deque[tuple[int, float]] = deque(maxlen=_MAX_EXPIRED)
        self.eliciting_in_flight = 0
        self.largest_acked = -1
        self.loss_time: float | None = None
        self.pto_count = 0
        self.last_eliciting_time = 0.0
        self.max_ack_delay = 0.025
        self.initial_rtt = initial_rtt
        self.first_rtt_time: float | None = None
        self.srtt = initial_rtt
        self.variance = initial_rtt / 2
        self.min_rtt = float("inf")
        self.latest_rtt = initial_rtt
        self.sent_packets = 0
        self.lost_packets = 0

    # --- timers ---------------------------------------------------------------------------------

    @property
    def pto(self) -> float:
        """Return the probe timeout, without back-off."""
        return self.srtt + max(4 * self.variance, GRANULARITY_S) + self.max_ack_delay

    def timer(self) -> float | None:
        """Return when `on_timeout` is due."""
        if self.loss_time is not None:
            return self.loss_time
        if not self.eliciting_in_flight:
            return None
        step = self.pto * (1 << min(self.pto_count, 16))
        if self.pto_count:
            step = min(step, max(MAX_PTO_STEP_S, 1.5 * self.srtt))
        return self.last_eliciting_time + step

    # --- events ---------------------------------------------------------------------------------

    def on_sent(self, record: Sent, now: float) -> None:
        """Take a record into flight."""
        count = record.stop - record.number
        self.sent_packets += count
        self.sent.append(record)
        if record.eliciting:
            self.eliciting_in_flight += count
            self.last_eliciting_time = now
            self.cc.on_sent(record.wire, now)

    def on_ack(self, ranges: list[tuple[int, int]], delay_s: float, now: float) -> bool:
        """Process an acknowledgement.

        Args:
            ranges: (first, one past the last), newest first; none beyond what was sent.
            delay_s: how long the peer held it back.

        Returns:
            Whether anything was newly acknowledged.
        """
        largest = ranges[0][1] - 1
        largest_before = self.largest_acked
        if largest > largest_before:
            self.largest_acked = largest
        sent = self.sent
        keep: list[Sent] = []
        rtt_time: float | None = None
        newly = False
        index = len(ranges) - 1
        while sent and sent[0].number <= largest:
            record = sent.popleft()
            while index > 0 and ranges[index][1] <= record.number:
                index -= 1
            at = index
            while True:
                low, high = ranges[at]
                low = max(low, record.number)
                high = min(high, record.stop)
                if low < high:
                    newly = True
                    if low <= largest < high and record.eliciting:
                        rtt_time = record.time
                    if low > record.number:
                        keep.append(record.part(record.number, low))
                    rest = record.part(high, record.stop) if high < record.stop else None
                    whole = low == record.number and rest is None
                    self._on_part_acked(record if whole else record.part(low, high), now)
                    if rest is None:
                        break
                    record = rest
                if at == 0 or ranges[at - 1][0] >= record.stop:
                    keep.append(record)
                    break
                at -= 1
        sent.extendleft(reversed(keep))
        if self._expired:
            for number, time in self._take_expired(ranges):
                newly = True
                if rtt_time is None and number > largest_before:
                    rtt_time = time
        if not newly:
            return False
        if rtt_time is not None:
            self._update_rtt(now - rtt_time, delay_s, now)
        self.pto_count = 0
        self._detect_loss(now)
        return True

    def _take_expired(self, ranges: list[tuple[int, int]]) -> list[tuple[int, float]]:
        """Remove and return the packets, newest first, that arrived after a timeout gave them up."""
        found = [
            each
            for each in reversed(self._expired)
            if any(low <= each[0] < high for low, high in ranges)
        ]
        for each in found:
            self._expired.remove(each)
        return found

    def _on_part_acked(self, part: Sent, now: float) -> None:
        if part.eliciting:
            self.eliciting_in_flight -= part.stop - part.number
            self.cc.on_acked(part.wire, part.time, now, self.srtt)
        self._acked(part)

    def _update_rtt(self, latest: float, delay_s: float, now: float) -> None:
        self.latest_rtt = latest
        self.min_rtt = min(self.min_rtt, latest)
        if self.first_rtt_time is None:
            self.first_rtt_time = now
            self.srtt = latest
            self.variance = latest / 2
        else:
            adjusted = latest
            delay = min(delay_s, self.max_ack_delay)
            if latest - delay >= self.min_rtt:
                adjusted = latest - delay
            self.variance = 0.75 * self.variance + 0.25 * abs(self.srtt - adjusted)
            self.srtt = 0.875 * self.srtt + 0.125 * adjusted
        self.cc.on_rtt(latest, now, self.srtt)

    def _detect_loss(self, now: float) -> None:
        self.loss_time = None
        delay = max(TIME_THRESHOLD * max(self.latest_rtt, self.srtt), GRANULARITY_S)
        sent = self.sent
        keep: list[Sent] = []
        lost_bytes = 0
        lost_first = lost_last = -1.0
        lost_expired = 0
        while sent and sent[0].number < self.largest_acked:
            record = sent.popleft()
            stop = min(record.stop, self.largest_acked)
            # The same sum decides here and sets the timer, so that a timer that fires finds it due.
            at = record.time + delay
            if at > now:
                stop = min(stop, self.largest_acked - PACKET_THRESHOLD + 1)
                if stop < record.stop and (self.loss_time is None or at < self.loss_time):
                    self.loss_time = at
            if stop <= record.number:
                keep.append(record)
                continue
            part = record if stop == record.stop else record.part(record.number, stop)
            if stop < record.stop:
                keep.append(record.part(stop, record.stop))
            count = part.stop - part.number
            if part.eliciting:
                self.lost_packets += count
                self.eliciting_in_flight -= count
                if part.probe_size:
                    # An MTU probe that is lost tells of the size, not of congestion.
                    lost_expired += part.wire
                else:
                    lost_bytes += part.wire
                    lost_first = part.time if lost_first < 0 else lost_first
                    lost_last = part.time
            self._lost(part)
        sent.extendleft(reversed(keep))
        self.cc.on_expired(lost_expired)
        if lost_bytes:
            self.cc.on_lost(lost_bytes, lost_last, now)
            first = self.first_rtt_time
            if (
                first is not None
                and lost_first > first
                and lost_last - lost_first > PERSISTENT_CONGESTION_PTOS * self.pto
            ):
                self.cc.on_persistent_congestion()

    def on_timeout(self, now: float) -> int:
        """Handle the timer; return how many probes must be sent.

        On a probe timeout the oldest data is queued again, so that the probes carry it.
        """
        if self.loss_time is not None:
            self._detect_loss(now)
            return 0
        self.pto_count += 1
        # Should nothing be sendable now, the next timeout still lies ahead.
        self.last_eliciting_time = now
        probes = 2 if self.pto_count > 1 else 1
        for _ in range(probes):
            self.requeue_oldest()
        return probes

    def requeue_oldest(self) -> None:
        """Hand the oldest packet in flight to `on_lost`, without taking it for congestion.

        Packets before it that carried nothing worth repeating go the same way.
        """
        sent = self.sent
        while sent:
            record = sent.popleft()
            part = record
            if record.stop > record.number + 1:
                part = record.part(record.number, record.number + 1)
                sent.appendleft(record.part(record.number + 1, record.stop))
            if not part.eliciting:
                continue
            self._expired.append((part.number, part.time))
            self.eliciting_in_flight -= 1
            self.cc.on_expired(part.wire)
            self._lost(part)
            if part.stream is not None or part.frames:
                return

    def forget(self) -> None:
        """Drop everything in flight and its data: the connection is over."""
        self.sent.clear()
        self._expired.clear()
        self.eliciting_in_flight = 0
        self.cc.in_flight = 0
        self.loss_time = None

    def discard(self) -> None:
        """Forget everything in flight (the path is gone); each record goes to `on_lost`."""
        while self.sent:
            record = self.sent.popleft()
            if record.eliciting:
                self.eliciting_in_flight -= record.stop - record.number
                self.cc.on_expired(record.wire)
            self._lost(record)
        self._expired.clear()
        self.loss_time = None
