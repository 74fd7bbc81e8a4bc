"""The streams of a connection: opening, limits, turns, the end; and its application datagrams.

What a connection is beside its paths. The halves themselves are in `streams.halves`.

Sources: RFC 9000 sections 2 to 4, RFC 9221.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from dialkey import limits
from dialkey.quic import codes
from dialkey.quic.config import Config
from dialkey.quic.handshake.parameters import TransportParameters
from dialkey.quic.paths.recovery import Frame
from dialkey.quic.streams.halves import RecvHalf, SendHalf, is_client_initiated, is_unidirectional
from dialkey.quic.streams.memory import MemoryClaim
from dialkey.quic.streams.windows import ReceiveWindow

CREDIT_DELAY_S: Final = 0.025
"""How long credit for streams waits for a packet to travel with: one of its own costs more."""


class StreamLimits:
    """How many streams of one direction each side may open, and has opened.

    A stream of the peer's takes a place when the peer opens it, and gives the place back when it is
    over *and* the application has taken it: what waits to be accepted never exceeds the limit, however
    fast the peer resets it.

    Attributes:
        next_local: the id of the next stream that we open.
        peer_allows: how many the peer lets us open, since the beginning.
        accepted: how many the peer has opened.
        allowed: how many the peer may open, as it was told.
        update_pending: whether a MAX_STREAMS frame is queued.
    """

    __slots__ = (
        "_blocked_at",
        "_most",
        "_over_untaken",
        "_peer_is_blocked",
        "_returned",
        "_untaken",
        "accepted",
        "allowed",
        "next_local",
        "peer_allows",
        "update_pending",
    )

    def __init__(self, next_local: int, most: int) -> None:
        self.next_local = next_local
        self.peer_allows = 0
        self.accepted = 0
        self.allowed = most
        self.update_pending = False
        self._most = most
        self._returned = 0
        self._untaken: set[int] = set()
        self._over_untaken: set[int] = set()
        self._peer_is_blocked = False
        self._blocked_at = -1

    # --- streams of the peer's ------------------------------------------------------------------

    def opened(self, stream_id: int) -> None:
        """Note a stream that the peer opened."""
        self._untaken.add(stream_id)

    def taken(self, stream_id: int) -> None:
        """Note that the application has accepted a stream."""
        self._untaken.discard(stream_id)
        if stream_id in self._over_untaken:
            self._over_untaken.remove(stream_id)
            self._returned += 1

    def over(self, stream_id: int) -> None:
        """Note that nothing more can happen on a stream."""
        if stream_id in self._untaken:
            self._over_untaken.add(stream_id)
        else:
            self._returned += 1

    @property
    def waiting(self) -> int:
        """Streams that the application has not accepted."""
        return len(self._untaken)

    @property
    def owed(self) -> int:
        """How many more streams the peer may open than it was told."""
        return self._returned + self._most - self.allowed

    @property
    def is_urgent(self) -> bool:
        """Whether the peer waits for what it is owed, or may soon."""
        room = self.allowed - self.accepted
        return self.owed > 0 and (self._peer_is_blocked or 2 * room <= self._most)

    @property
    def is_worth_a_packet(self) -> bool:
        """Whether what is owed is more than a trifle, or urgent.

        A trifle waits for the next packet: a peer that misses it asks (STREAMS_BLOCKED).
        """
        return 8 * self.owed >= self._most or self.is_urgent

    def peer_is_blocked(self, limit: int) -> None:
        """Note a STREAMS_BLOCKED frame; one about an earlier limit was answered already."""
        self._peer_is_blocked = limit >= self.allowed

    def grant(self) -> int:
        """Allow all that is owed; return the new limit."""
        self.update_pending = False
        if self.owed > 0:
            self._peer_is_blocked = False
            self.allowed += self.owed
        return self.allowed

    # --- streams of ours ------------------------------------------------------------------------

    @property
    def is_blocked(self) -> bool:
        """Whether the peer lets us open no more for now."""
        return self.next_local >> 2 >= self.peer_allows

    def must_ask(self) -> bool:
        """Whether the peer is to be told that we are blocked: once for each limit."""
        told, self._blocked_at = self._blocked_at == self.peer_allows, self.peer_allows
        return not told


class StreamTable:
    """See the module. `Connection` is one.

    Attributes:
        control: frames that wait to be sent, whatever they are about.
        ready: halves that may have something to send, by priority.
        intake: the limit on the data of all streams together.
        held: bytes that were received and that nobody has read.
    """

    def __init__(self, config: Config, *, is_client: bool) -> None:
        self.config = config
        self.is_client = is_client
        self.peer_parameters = TransportParameters()
        self.control: deque[Frame] = deque()

        self.send_halves: dict[int, SendHalf] = {}
        self.recv_halves: dict[int, RecvHalf] = {}
        self.bidi = StreamLimits(0 if is_client else 1, config.max_streams)
        self.uni = StreamLimits(2 if is_client else 3, config.max_streams)
        self.ready: dict[int, deque[SendHalf]] = {}
        self.waiting_for_data_limit: list[SendHalf] = []

        # flow control of the connection
        self.peer_max_data = 0
        self.data_sent = 0
        self.intake = ReceiveWindow(config.first_window, config.most_connection_window)
        self.data_received = 0
        self.held = 0
        self._memory: MemoryClaim | None = None
        self._is_over = False
        self.max_data_pending = False
        self.limit_updates: list[RecvHalf] = []
        self._data_blocked_at = -1
        # Whether a Delivered event is wanted.
        self._delivery_watched = False
        # When credit for streams goes in a packet of its own.
        self.credit_at: float | None = None

        # datagrams of the application
        self.datagrams: deque[bytes] = deque()
        self.datagram_bytes = 0
        self.datagrams_dropped = 0

    @property
    def max_data(self) -> int:
        """What the peer may send on all streams together, since the beginning."""
        return self.intake.limit

    @property
    def data_consumed(self) -> int:
        """What was read or dropped on all streams together, since the beginning."""
        return self.intake.consumed

    # --- streams --------------------------------------------------------------------------------

    def open_stream(self, *, unidirectional: bool) -> tuple[SendHalf, RecvHalf | None] | None:
        """Open a stream; None while the peer allows no more (StreamsAvailable follows)."""
        kind = self.uni if unidirectional else self.bidi
        if kind.is_blocked:
            if kind.must_ask():
                asks = codes.STREAMS_BLOCKED_UNI if unidirectional else codes.STREAMS_BLOCKED_BIDI
                self.control.append((asks,))
            return None
        stream_id = kind.next_local
        kind.next_local += 4
        peer = self.peer_parameters
        limit = (
            peer.initial_max_stream_data_uni
            if unidirectional
            else peer.initial_max_stream_data_bidi_remote
        )
        send = self.send_halves[stream_id] = SendHalf(stream_id, limit)
        recv = None
        if not unidirectional:
            recv = self.new_recv_half(stream_id)
        return send, recv

    def new_recv_half(self, stream_id: int) -> RecvHalf:
        """Make the receiving half of a stream."""
        config = self.config
        half = RecvHalf(stream_id, config.stream_window, config.most_stream_window)
        self.recv_halves[stream_id] = half
        return half

    def wake(self, half: SendHalf) -> None:
        """Put a half that may have something to send into the send queue."""
        if not half.in_queue and half.wants_to_send:
            half.in_queue = True
            queue = self.ready.get(half.priority)
            if queue is None:
                queue = deque()
                # A new mapping: somebody may be iterating over this one.
                ready = {**self.ready, half.priority: queue}
                self.ready = dict(sorted(ready.items(), reverse=True))
            queue.append(half)

    def consumed(self, half: RecvHalf, length: int) -> None:
        """Note that the application took `length` bytes: limits may rise, the half may be over."""
        self.credit(length)
        self.let_go(length)
        if half.final_size is None and half.is_low:
            self.queue_limit_update(half)
        if half.finished:
            self.forget_recv(half)

    def renew_data(self) -> None:
        """Queue what may be allowed for all streams together, however little."""
        if self.intake.owed > 0:
            self.max_data_pending = True

    def credit(self, length: int) -> None:
        """Give `length` bytes back to the connection's window."""
        intake = self.intake
        intake.consumed += length
        if intake.is_low:
            self.max_data_pending = True

    # --- memory ---------------------------------------------------------------------------------

    def share_memory(self, claim: MemoryClaim) -> None:
        """Count what is held against budgets that the connection shares with others."""
        self._memory = claim

    @property
    def memory_suffices(self) -> bool:
        """Report what is held to the shared budgets; whether there is room for it."""
        return self._memory is None or self._memory.holds(self.held)

    def let_go(self, length: int) -> None:
        """Note that this many bytes are no longer held."""
        self.held -= length
        if self._memory is not None:
            self._memory.holds(self.held)
            if self._is_over and not self.held:
                self.release_memory()

    def end_of_data(self) -> None:
        """Note that nothing more will arrive; what is held counts until it is read or dropped."""
        self._is_over = True
        self.let_go(0)

    def drop_unread(self) -> None:
        """Let go of what was received and not read, of all streams."""
        for half in self.recv_halves.values():
            half.drop_unread()
        self.let_go(self.held)

    def release_memory(self) -> None:
        """Count what is held no longer. Idempotent."""
        if self._memory is not None:
            self._memory.release()
            self._memory = None

    def size_windows(self, now: float, rtt_s: float) -> None:
        """Let windows grow that are about to be renewed, or are half full and yet small."""
        intake = self.intake
        wanted = intake.window
        if self.max_data_pending:
            wanted = intake.wanted(now, rtt_s)
        if 2 * self.held > intake.window:
            # Streams that wait must not hold up the others.
            wanted = max(wanted, min(2 * intake.window, self.config.connection_window))
        if wanted > intake.window and (self._memory is None or self._memory.grow(wanted)):
            intake.widen(wanted)
            self.max_data_pending = True
        for half in self.limit_updates:
            # What the connection may have is what counts; this only shares it out.
            half.widen(min(half.wanted(now, rtt_s), max(half.window, intake.window)))

    def queue_limit_update(self, half: RecvHalf) -> None:
        if not half.update_pending:
            half.update_pending = True
            self.limit_updates.append(half)

    def stop(self, half: RecvHalf, code: int) -> None:
        """Ask the peer to stop sending on a stream; what has arrived unread is dropped."""
        held = half.held
        self.credit(half.stop(code))
        self.let_go(held - half.held)
        if half.stop_pending:
            half.stop_pending = False
            self.control.append((codes.STOP_SENDING, half))
        if half.finished:
            self.forget_recv(half)

    def reset(self, half: SendHalf, code: int) -> None:
        """Abandon what we send on a stream."""
        half.reset(code)
        self.wake(half)

    def forget_recv(self, half: RecvHalf) -> None:
        if self.recv_halves.pop(half.id, None) is not None and half.id not in self.send_halves:
            self._stream_over(half.id)

    def forget_send(self, half: SendHalf) -> None:
        if self.send_halves.pop(half.id, None) is not None and half.id not in self.recv_halves:
            self._stream_over(half.id)

    @property
    def is_delivered(self) -> bool:
        """Whether the peer has all that was written, and no message waits to be sent."""
        return not self.datagrams and all(half.is_settled for half in self.send_halves.values())

    def watch_delivery(self) -> None:
        """Ask for one Delivered event: at the next flush after which `is_delivered` holds."""
        self._delivery_watched = True

    def delivery_event_due(self) -> bool:
        """Whether a Delivered event is due; each call of `watch_delivery` brings one."""
        if not self._delivery_watched or not self.is_delivered:
            return False
        self._delivery_watched = False
        return True

    def _stream_over(self, stream_id: int) -> None:
        if is_client_initiated(stream_id) != self.is_client:
            self._kind(stream_id).over(stream_id)

    def _kind(self, stream_id: int) -> StreamLimits:
        return self.uni if is_unidirectional(stream_id) else self.bidi

    def taken(self, stream_id: int) -> None:
        """Note that the application has accepted a stream of the peer's."""
        self._kind(stream_id).taken(stream_id)

    def grant_streams(self, now: float) -> None:
        """Queue the credit for streams that is due; what is not waits a moment for company."""
        if not self.bidi.is_worth_a_packet and not self.uni.is_worth_a_packet:
            self.credit_at = None
            return
        is_due = self.credit_at is not None and now >= self.credit_at
        if is_due or self.bidi.is_urgent or self.uni.is_urgent:
            self.add_stream_credit()
        elif self.credit_at is None:
            self.credit_at = now + CREDIT_DELAY_S

    def add_stream_credit(self) -> None:
        """Queue all credit for streams that is owed: a packet leaves in any case."""
        self.credit_at = None
        for kind, frame in ((self.bidi, codes.MAX_STREAMS_BIDI), (self.uni, codes.MAX_STREAMS_UNI)):
            if kind.owed > 0 and not kind.update_pending:
                kind.update_pending = True
                self.control.append((frame,))

    # --- what we ask for ------------------------------------------------------------------------

    def ask_for_data(self) -> None:
        """Tell the peer that its limit on all data holds us up: once for each limit."""
        if self._data_blocked_at != self.peer_max_data:
            self._data_blocked_at = self.peer_max_data
            self.control.append((codes.DATA_BLOCKED,))

    def ask_for_stream_data(self, half: SendHalf) -> None:
        """Tell the peer that the limit of a stream holds us up: once for each limit."""
        if half.blocked_at != half.limit:
            half.blocked_at = half.limit
            self.control.append((codes.STREAM_DATA_BLOCKED, half))

    # --- datagrams of the application -----------------------------------------------------------

    def send_datagram(self, data: bytes) -> None:
        """Queue an application datagram; the oldest is dropped when too many wait."""
        self.datagrams.append(data)
        self.datagram_bytes += len(data)
        while self.datagram_bytes > limits.MAX_DATAGRAM_QUEUE_BYTES:
            self.next_datagram()
            self.datagrams_dropped += 1

    def next_datagram(self) -> bytes:
        """Take the oldest datagram out of the queue."""
        data = self.datagrams.popleft()
        self.datagram_bytes -= len(data)
        return data
