"""Loss detection of one path: round-trip time, what is in flight, what was lost (RFC 9002).

What was sent is kept as *records*. A record covers one packet with any frames, or a burst: a run of
equally large packets that carry consecutive pieces of one stream. A burst is split only when part of
it is lost, so a batch of forty packets costs one record.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from dialkey.quic.paths.congestion import AckSummary, LossSummary, MakeController, Pacer
from dialkey.quic.paths.delivery import DeliveryRate, Snapshot
from dialkey.quic.streams.halves import Bytes, SendHalf

PACKET_THRESHOLD: Final = 3
TIME_THRESHOLD: Final = 9 / 8
MAX_PACKET_THRESHOLD: Final = 1 << 14
MAX_TIME_THRESHOLD: Final = 2.0
TIME_THRESHOLD_STEP: Final = 1 / 4
"""What proof of reordering adds to the time threshold: a quarter each, up to a whole round trip, as in
RFC 8985 section 6.2."""
EPISODES_TO_FORGET: Final = 16
"""Real losses in a row after which the thresholds shrink again (RFC 8985: sixteen recoveries)."""
GRANULARITY_S: Final = 0.001
MAX_PTO_STEP_S: Final = 2.0
"""Longest wait between two probes, as in iroh: a phone that regains its network is heard soon."""
PERSISTENT_CONGESTION_PTOS: Final = 3
MAX_GIVEN_UP: Final = 256
"""How many packets that were given up are remembered, as they may still arrive; the oldest go first."""
GIVEN_UP_S: Final = 60.0
"""How long they are remembered: the round trips of a phone that comes back take up to that long."""

Frame = tuple[Any, ...]
"""(the component that it belongs to, frame type, what is needed to write it again if it is lost); see
`packets.control.FrameOwner`."""


class RunOwner(Protocol):
    """The component that the runs belong to."""

    def on_run_acked(self, record: Sent) -> None:
        """Note that packets of a run arrived."""

    def on_run_lost(self, record: Sent) -> None:
        """Note that packets of a run were lost."""


class Sent:
    """A record of what was sent.

    For a burst `owner` and `stream` are set: packet i of it carries `data[i*room : (i+1)*room]` from
    `offset` on.
    Otherwise `frames` lists what a lone packet carried, for the owners that must learn its outcome.
    """

    __slots__ = (
        "data",
        "eliciting",
        "fin",
        "frames",
        "number",
        "offset",
        "owner",
        "probe_size",
        "room",
        "size",
        "snapshot",
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
        self.snapshot: Snapshot | None = None
        self.frames: list[Frame] | None = None
        self.probe_size = 0
        self.owner: RunOwner | None = None
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
        part.snapshot = self.snapshot
        part.owner = self.owner
        part.stream = self.stream
        part.offset = self.offset + start
        part.room = self.room
        part.data = memoryview(self.data)[start:end]
        part.fin = self.fin and high == self.stop
        return part


class _GivenUp(NamedTuple):
    """Packets `number` .. `stop` that were given up: declared lost, or sent again by a timeout."""

    number: int
    stop: int
    time: float
    size: int
    is_lost: bool


class Reordering:
    """How late a packet may be before it counts as lost: adapts to what the path shows.

    RFC 9002 section 6.1 allows thresholds that grow when losses prove spurious; the model is RACK,
    RFC 8985. It starts with the fixed thresholds.

    Attributes:
        packets: a packet is lost when one sent this many packets later is acknowledged.
        time: or when a later one is acknowledged and this many round trips have passed.
    """

    __slots__ = ("_episodes", "packets", "time")

    def __init__(self) -> None:
        self.packets = PACKET_THRESHOLD
        self.time = TIME_THRESHOLD
        self._episodes = 0

    def seen(self, distance: int) -> None:
        """Note that a packet declared lost has arrived, after one sent `distance` packets later."""
        self._episodes = 0
        self.packets = min(max(self.packets, distance + 1), MAX_PACKET_THRESHOLD)
        self.time = min(self.time + TIME_THRESHOLD_STEP, MAX_TIME_THRESHOLD)

    def lost(self) -> None:
        """Note a loss; after many without reordering the thresholds shrink."""
        self._episodes += 1
        if self._episodes >= EPISODES_TO_FORGET:
            self._episodes = 0
            self.packets = max(PACKET_THRESHOLD, self.packets // 2)
            self.time = max(TIME_THRESHOLD, self.time - TIME_THRESHOLD_STEP)


class Recovery:
    """What is in flight on one path, and what its acknowledgements say.

    Args:
        make_controller: makes the congestion controller.
        on_acked: called with each record, or part of one, that has arrived.
        on_lost: called with each one that is declared lost.
    """

    __slots__ = (
        "_acked",
        "_acked_bytes",
        "_given_up",
        "_lost",
        "_make_controller",
        "_newest_acked_at",
        "cc",
        "delivery",
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
        "reordering",
        "sent",
        "sent_packets",
        "spurious_packets",
        "srtt",
        "variance",
    )

    def __init__(
        self,
        *,
        max_datagram: int,
        initial_rtt: float,
        make_controller: MakeController,
        on_acked: Callable[[Sent], None],
        on_lost: Callable[[Sent], None],
    ) -> None:
        self._acked = on_acked
        self._lost = on_lost
        self._make_controller = make_controller
        self.cc = make_controller(max_datagram)
        self.delivery = DeliveryRate()
        self.reordering = Reordering()
        self.pacer = Pacer()
        self.sent: deque[Sent] = deque()
        # By number. They may arrive yet: then those that a timeout sent again are all that tells of a
        # round trip longer than the timeout, and those taken for lost prove that packets overtake
        # each other here.
        self._given_up: list[_GivenUp] = []
        self._acked_bytes = 0
        # When the newest packet was sent that had been acknowledged before the current ACK frame.
        self._newest_acked_at = -1.0
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
        self.spurious_packets = 0

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
        """Count a record as in flight."""
        count = record.stop - record.number
        self.sent_packets += count
        self.sent.append(record)
        if record.eliciting:
            self.eliciting_in_flight += count
            self.last_eliciting_time = now
            delivery = self.delivery
            record.snapshot = delivery.sent(record.wire, self.cc.in_flight, now)
            self.cc.on_sent(record.wire, now, app_limited=delivery.is_app_limited)

    def limited_by_app(self) -> None:
        """Note that there was nothing more to send although the path would have taken it."""
        self.delivery.limited_by_app(self.cc.in_flight)

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
        self._acked_bytes = 0
        newest_acked_at = self._newest_acked_at
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
                    if record.time > newest_acked_at:
                        newest_acked_at = record.time
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
        if self._given_up:
            for each in reversed(self._take_given_up(ranges, now)):
                newly = True
                if rtt_time is None and not each.is_lost and each.number > largest_before:
                    rtt_time = each.time
        if not newly:
            return False
        if rtt_time is not None:
            self._update_rtt(now - rtt_time, delay_s, now)
        self.pto_count = 0
        self._detect_loss(now)
        self._newest_acked_at = newest_acked_at
        sample = self.delivery.sample(self.min_rtt, now)
        rtt = None if rtt_time is None else self.latest_rtt
        self.cc.on_ack(
            AckSummary(self._acked_bytes, self.delivery.delivered, rtt, self.srtt, sample), now
        )
        return True

    def _take_given_up(self, ranges: list[tuple[int, int]], now: float) -> list[_GivenUp]:
        """Remove and return, by number, the packets that arrived after they had been given up."""
        found: list[_GivenUp] = []
        kept: list[_GivenUp] = []
        oldest = now - GIVEN_UP_S
        index = len(ranges) - 1
        for each in self._given_up:
            while index >= 0 and ranges[index][1] <= each.number:
                index -= 1
            if index < 0 or ranges[index][0] >= each.stop:
                if each.time > oldest:
                    kept.append(each)
                continue
            # If part of a burst that was given up arrives, that is proof enough for all of it.
            found.append(each)
            if each.is_lost:
                count = each.stop - each.number
                self.spurious_packets += count
                self.reordering.seen(self.largest_acked - each.number)
                self.cc.on_spurious_loss(count * each.size, each.time)
        self._given_up = kept
        return found

    def _give_up(self, part: Sent, *, is_lost: bool) -> None:
        given_up = self._given_up
        insort(given_up, _GivenUp(part.number, part.stop, part.time, part.size, is_lost))
        if len(given_up) > MAX_GIVEN_UP:
            del given_up[0]

    def _on_part_acked(self, part: Sent, now: float) -> None:
        if part.eliciting:
            self.eliciting_in_flight -= part.stop - part.number
            self._acked_bytes += part.wire
            assert part.snapshot is not None
            self.delivery.acked(part.snapshot, part.wire, part.time, now)
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

    def _detect_loss(self, now: float) -> None:
        self.loss_time = None
        reordering = self.reordering
        delay = max(reordering.time * max(self.latest_rtt, self.srtt), GRANULARITY_S)
        sent = self.sent
        keep: list[Sent] = []
        lost_bytes = 0
        lost_first = lost_last = -1.0
        lost_expired = 0
        events = 0
        next_number = -1
        newest: Sent | None = None
        while sent and sent[0].number < self.largest_acked:
            record = sent.popleft()
            stop = min(record.stop, self.largest_acked)
            # The same sum decides here and sets the timer, so that a timer that fires finds it due.
            at = record.time + delay
            if at > now:
                stop = min(stop, self.largest_acked - reordering.packets + 1)
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
                    # A lost MTU probe says something about the size, not about congestion.
                    lost_expired += part.wire
                else:
                    lost_bytes += part.wire
                    newest = part
                    events += part.number != next_number
                    next_number = part.stop
                    self._give_up(part, is_lost=True)
                    lost_first = part.time if lost_first < 0 else lost_first
                    lost_last = part.time
            self._lost(part)
        sent.extendleft(reversed(keep))
        self.cc.on_expired(lost_expired)
        if newest is None:
            return
        reordering.lost()
        self.delivery.lost += lost_bytes
        snapshot = newest.snapshot
        assert snapshot is not None
        self.cc.on_lost(
            LossSummary(
                lost_bytes,
                events,
                lost_last,
                self.delivery.lost - snapshot.lost,
                snapshot.tx_in_flight,
                snapshot.app_limited,
            ),
            now,
        )
        first = self.first_rtt_time
        if (
            first is not None
            and lost_first > first
            and lost_first >= self._newest_acked_at
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
        """Hand the oldest packet in flight to `on_lost`, without counting it as congestion.

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
            self._give_up(part, is_lost=False)
            self.eliciting_in_flight -= 1
            self.cc.on_expired(part.wire)
            self._lost(part)
            if part.stream is not None or part.frames:
                return

    def reset_pto(self) -> None:
        """Reset the back-off: wait for an answer as long as the first time."""
        self.pto_count = 0

    def start_over(self, max_datagram: int, initial_rtt: float) -> None:
        """Forget what was learnt about the path, which leads elsewhere now; keep what is in flight."""
        self.initial_rtt = self.srtt = initial_rtt
        self.variance = initial_rtt / 2
        self.first_rtt_time = None
        self.min_rtt = float("inf")
        in_flight = self.cc.in_flight
        self.cc = self._make_controller(max_datagram)
        self.cc.in_flight = in_flight
        self.pacer = Pacer()
        self.reordering = Reordering()

    def forget(self) -> None:
        """Drop everything in flight and its data: the connection is over."""
        self.sent.clear()
        self._given_up.clear()
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
        self._given_up.clear()
        self.loss_time = None
