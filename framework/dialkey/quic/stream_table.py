"""The streams of a connection: opening, limits, turns, the end; and its application datagrams.

What a connection is beside its paths. The halves themselves are in `streams`.

Sources: RFC 9000 sections 2 to 4, RFC 9221.
"""

from __future__ import annotations

from collections import deque

from dialkey import limits
from dialkey.quic import codes
from dialkey.quic.config import Config
from dialkey.quic.parameters import TransportParameters
from dialkey.quic.recovery import Frame
from dialkey.quic.streams import RecvHalf, SendHalf, is_client_initiated, is_unidirectional


class StreamLimits:
    """How many streams of one direction each side may open, and has opened."""

    __slots__ = ("accepted", "allowed", "finished", "next_local", "peer_allows", "update_pending")

    def __init__(self, next_local: int, allowed: int) -> None:
        self.next_local = next_local
        self.peer_allows = 0
        self.accepted = 0
        self.finished = 0
        self.allowed = allowed
        self.update_pending = False


class StreamTable:
    """See the module. `Connection` is one.

    Attributes:
        control: frames that wait to be sent, whatever they are about.
        ready: halves that may have something to send, by priority.
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
        self.max_data = config.connection_window
        self.data_received = 0
        self.data_consumed = 0
        self.max_data_pending = False
        self.limit_updates: list[RecvHalf] = []

        # datagrams of the application
        self.datagrams: deque[bytes] = deque()
        self.datagram_bytes = 0
        self.datagrams_dropped = 0

    # --- streams --------------------------------------------------------------------------------

    def open_stream(self, *, unidirectional: bool) -> tuple[SendHalf, RecvHalf | None] | None:
        """Open a stream; None while the peer allows no more (StreamsAvailable follows)."""
        kind = self.uni if unidirectional else self.bidi
        if kind.next_local >> 2 >= kind.peer_allows:
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
            recv = self.recv_halves[stream_id] = RecvHalf(stream_id, self.config.stream_window)
        return send, recv

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
        if half.final_size is None and 2 * (half.limit - half.consumed) < half.window:
            self.queue_limit_update(half)
        if half.finished:
            self.forget_recv(half)

    def credit(self, length: int) -> None:
        """Give `length` bytes back to the connection's window."""
        self.data_consumed += length
        if 2 * (self.max_data - self.data_consumed) < self.config.connection_window:
            self.max_data_pending = True

    def queue_limit_update(self, half: RecvHalf) -> None:
        if not half.update_pending:
            half.update_pending = True
            self.limit_updates.append(half)

    def stop(self, half: RecvHalf, code: int) -> None:
        """Ask the peer to stop sending on a stream; what has arrived unread is dropped."""
        self.credit(half.stop(code))
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

    def _stream_over(self, stream_id: int) -> None:
        if is_client_initiated(stream_id) == self.is_client:
            return
        kind = self.uni if is_unidirectional(stream_id) else self.bidi
        kind.finished += 1
        room = kind.allowed - kind.accepted
        if 2 * room <= self.config.max_streams and not kind.update_pending:
            kind.update_pending = True
            frame = codes.MAX_STREAMS_UNI if kind is self.uni else codes.MAX_STREAMS_BIDI
            self.control.append((frame,))

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
