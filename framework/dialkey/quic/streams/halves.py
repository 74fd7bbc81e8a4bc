"""The two halves of a stream: what waits to be sent, and what was received and not yet read.

Sans-IO. Data to send is kept by reference until the peer has acknowledged it; received data is kept as
the pieces in which it came. Limits follow what the application *consumed*, never what arrived, so a
reader that stalls stops the sender (RFC 9000 section 4.1).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

from dialkey.quic import codes
from dialkey.quic.codes import TransportError
from dialkey.quic.streams.windows import ReceiveWindow

Bytes = bytes | memoryview

MAX_GAPS = 1024
"""Separate runs of pieces held for one stream. A full window of small packets, every second one lost,
needs about 500; a peer that makes more is after our memory: 150 bytes for each, on 200 streams."""

SMALL_PIECE_BYTES = 128
"""Pieces shorter than this are joined while they wait, so that objects do not outweigh their payload."""

LOW_WATER_BYTES = 256 * 1024
"""A waiting writer is woken when this much is still queued, so that the path never runs dry."""


def is_client_initiated(stream_id: int) -> bool:
    return not stream_id & 1


def is_unidirectional(stream_id: int) -> bool:
    return bool(stream_id & 2)


class SendHalf:
    """The sending part of a stream.

    States: open → (finished | reset) → closed, where closed means that the peer has acknowledged
    everything, or our reset.

    Attributes:
        offset: of the first byte that was never sent.
        queued: bytes written and never sent.
        limit: highest offset that the peer allows.
        stopped_code: the code of a STOP_SENDING, or None.
        watched: whether a Writable event is wanted when `queued` falls to `low_water`, the peer stops
            the stream, or has everything.
    """

    __slots__ = (
        "_acked",
        "_asked_at",
        "_head",
        "_queue",
        "_stopped_at_end",
        "closed",
        "fin",
        "fin_acked",
        "fin_sent",
        "id",
        "in_queue",
        "limit",
        "low_water",
        "offset",
        "priority",
        "queued",
        "reset_code",
        "reset_pending",
        "retransmit",
        "stopped_code",
        "watched",
    )

    def __init__(self, stream_id: int, limit: int) -> None:
        self.id = stream_id
        self.limit = limit
        self.offset = 0
        self.queued = 0
        self.priority = 0
        self.fin = False
        self.fin_sent = False
        self.fin_acked = False
        self.reset_code: int | None = None
        self.reset_pending = False
        self.stopped_code: int | None = None
        self.closed = False
        self._asked_at = -1
        self.in_queue = False
        self.watched = False
        self.low_water = LOW_WATER_BYTES
        self.retransmit: deque[tuple[int, Bytes, bool]] = deque()
        self._queue: deque[Bytes] = deque()
        self._head = 0
        self._acked = 0
        self._stopped_at_end = False

    # --- the application's side -----------------------------------------------------------------

    def write(self, data: Bytes) -> None:
        """Queue `data` (kept by reference; it must not change)."""
        if data:
            self._queue.append(data)
            self.queued += len(data)

    def finish(self) -> None:
        self.fin = True

    def reset(self, code: int) -> None:
        """Drop what is queued and abandon the stream with `code`; no effect when it is over."""
        if self.closed or self.reset_code is not None:
            return
        self.reset_code = code
        self.reset_pending = True
        self._queue.clear()
        self._head = 0
        self.queued = 0
        self.retransmit.clear()

    def watch(self) -> None:
        """Ask for a Writable event when whoever waits should look again."""
        self.watched = True

    def unwatch(self) -> None:
        """Ask for no event: nobody waits."""
        self.watched = False

    def set_priority(self, priority: int) -> None:
        """Send it before streams of a lower priority, from the next time it is queued."""
        self.priority = priority

    # --- the connection's side ------------------------------------------------------------------

    @property
    def wants_to_send(self) -> bool:
        """Whether something could be sent now, given the stream's flow control."""
        if self.reset_code is not None:
            return self.reset_pending
        if self.retransmit:
            return True
        if self.queued:
            return self.offset < self.limit
        return self.fin and not self.fin_sent

    def take(self, want: int) -> Bytes:
        """Remove up to `want` queued bytes, contiguous; the caller advances `offset`."""
        queue = self._queue
        head = self._head
        first = queue[0]
        available = len(first) - head
        if available > want:
            self._head = head + want
            self.queued -= want
            return memoryview(first)[head : head + want]
        queue.popleft()
        self._head = 0
        piece: Bytes = memoryview(first)[head:] if head else first
        if available == want or not queue:
            self.queued -= available
            return piece
        pieces = [piece]
        got = available
        while got < want and queue:
            first = queue[0]
            if len(first) > want - got:
                self._head = want - got
                pieces.append(memoryview(first)[: want - got])
                got = want
            else:
                pieces.append(first)
                got += len(first)
                queue.popleft()
        self.queued -= got
        return b"".join(pieces)

    def take_again(self, want: int) -> tuple[int, Bytes, bool]:
        """Take the next piece that was lost: (offset, data, whether it is the last)."""
        offset, data, fin = self.retransmit.popleft()
        if len(data) > want:
            rest = memoryview(data)[want:]
            self.retransmit.appendleft((offset + want, rest, fin))
            data, fin = memoryview(data)[:want], False
        return offset, data, fin

    def take_next(self, want: int) -> tuple[int, Bytes, bool]:
        """Take the next new piece: (offset, data, whether it is the last)."""
        offset = self.offset
        data: Bytes = b""
        if self.queued:
            data = self.take(min(want, self.limit - offset))
            self.offset = offset + len(data)
        fin = self.fin and not self.queued
        if fin:
            self.fin_sent = True
        return offset, data, fin

    def end_separately(self) -> None:
        """Send the end of the stream on its own: the packets of a run carry none."""
        self.fin_sent = False

    @property
    def all_delivered(self) -> bool:
        """Whether the peer has acknowledged every byte that was written."""
        if self.reset_code is not None and not self._stopped_at_end:
            return False
        return not self.queued and self._acked == self.offset

    @property
    def may_be_delivered(self) -> bool:
        """Whether acknowledgements may still come that make `all_delivered` true."""
        return not self.closed and (self.reset_code is None or self._stopped_at_end)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is in flight: everything is acknowledged, the end included, or given up."""
        if self.closed or self.reset_code is not None:
            return True
        return self.all_delivered and not self.fin

    def must_ask(self) -> bool:
        """Whether to tell the peer that its limit blocks us: once for each limit."""
        told, self._asked_at = self._asked_at == self.limit, self.limit
        return not told

    def allow(self, limit: int) -> None:
        """Note the peer's limit on the stream."""
        self.limit = max(self.limit, limit)

    def take_watch(self) -> bool:
        """Whether a Writable event is wanted; it comes once."""
        watched, self.watched = self.watched, False
        return watched

    def on_reset_sent(self) -> None:
        self.reset_pending = False

    def on_reset_lost(self) -> None:
        self.reset_pending = True

    def on_stopped(self, code: int) -> None:
        """Note that the peer wants no more, and reset the stream.

        If everything was sent, the peer may have it already, its acknowledgements still in flight.
        """
        self._stopped_at_end = self.reset_code is None and not self.queued
        self.stopped_code = code
        self.reset(code)

    def on_acked(self, length: int, fin: bool) -> None:
        """Note that the peer has `length` more bytes; each byte is reported once."""
        self._acked += length
        if fin:
            self.fin_acked = True
        if self.fin_acked and self._acked == self.offset and self.reset_code is None:
            self.closed = True

    def on_lost(self, offset: int, data: Bytes, fin: bool) -> None:
        """Queue a piece for sending again."""
        if self.reset_code is None:
            self.retransmit.append((offset, data, fin))

    def on_reset_acked(self) -> None:
        self.closed = True


class RecvHalf(ReceiveWindow):
    """The receiving part of a stream.

    Attributes:
        received: highest offset that has arrived (counts against the connection's limit).
        held: bytes that are kept, whether in order or not.
        final_size: the length of the stream, once the peer has told it.
        reset_code: the code of a RESET_STREAM, or None.
    """

    __slots__ = (
        "_pieces",
        "_runs",
        "_segments",
        "buffered",
        "final_size",
        "held",
        "id",
        "next_offset",
        "received",
        "reset_code",
        "stop_code",
        "stop_pending",
        "update_pending",
        "watched",
    )

    def __init__(self, stream_id: int, window: int, most_window: int = 0) -> None:
        super().__init__(window, most_window)
        self.id = stream_id
        self.received = 0
        self.held = 0
        self.next_offset = 0
        self.buffered = 0
        self.final_size: int | None = None
        self.reset_code: int | None = None
        self.stop_code: int | None = None
        self.stop_pending = False
        self.update_pending = False
        self.watched = False
        # In order, ready to be read.
        self._pieces: deque[Bytes] = deque()
        # Out of order: (offset, data), sorted, not overlapping, all beyond next_offset.
        self._segments: list[tuple[int, Bytes]] = []
        # How many of them do not continue the one before.
        self._runs = 0

    # --- the connection's side ------------------------------------------------------------------

    def takes(self, offset: int, length: int) -> bool:
        """Whether `on_data` is certain to accept a piece that is not the last."""
        end = offset + length
        return (
            end <= self.limit
            and (self.final_size is None or end <= self.final_size)
            and self._runs < MAX_GAPS
        )

    def on_data(self, offset: int, data: Bytes, fin: bool) -> int:
        """Add a piece; return by how much it raised the highest offset.

        Raises:
            TransportError: it breaks flow control or contradicts the final size.
        """
        end = offset + len(data)
        if self.final_size is not None:
            if end > self.final_size or (fin and end != self.final_size):
                raise TransportError(codes.FINAL_SIZE_ERROR, "data beyond the end", codes.STREAM)
        elif fin:
            if end < self.received:
                raise TransportError(codes.FINAL_SIZE_ERROR, "an end before data", codes.STREAM)
            self.final_size = end
        if end > self.limit:
            raise TransportError(codes.FLOW_CONTROL_ERROR, "over the stream's limit", codes.STREAM)
        gained = end - self.received
        if gained > 0:
            self.received = end
        else:
            gained = 0
        if self.discarding:
            # Nobody will read it. It counts as consumed, so that the connection's window moves on.
            self.consumed += gained
            return gained
        if offset == self.next_offset and not self._segments:
            if data:
                self.held += len(data)
                self._append(data)
        elif end > self.next_offset:
            self._insert(offset, data)
        return gained

    def _append(self, data: Bytes) -> None:
        pieces = self._pieces
        self.buffered += len(data)
        self.next_offset += len(data)
        if len(data) < SMALL_PIECE_BYTES and pieces and len(pieces[-1]) < 8 * SMALL_PIECE_BYTES:
            pieces[-1] = bytes(pieces[-1]) + data
        else:
            pieces.append(data)

    @property
    def discarding(self) -> bool:
        """Whether nobody will read what arrives."""
        return self.stop_code is not None or self.reset_code is not None

    def _insert(self, offset: int, data: Bytes) -> None:
        if offset < self.next_offset:
            data = data[self.next_offset - offset :]
            offset = self.next_offset
        segments = self._segments
        end = offset + len(data)
        index = bisect_left(segments, offset, key=_segment_offset)
        if index > 0:
            before_offset, before = segments[index - 1]
            before_end = before_offset + len(before)
            if before_end > offset:
                data = data[before_end - offset :]
                offset = before_end
        while data and index < len(segments):
            after_offset, after = segments[index]
            if after_offset >= end:
                break
            # Keep what is already held: the part before it is added now, the rest comes next.
            if after_offset > offset:
                index = self._hold(index, offset, data[: after_offset - offset])
            after_end = after_offset + len(after)
            data = data[max(0, after_end - offset) :]
            offset = after_end
            index += 1
        if data:
            self._hold(index, offset, data)
        if self._runs > MAX_GAPS:
            raise TransportError(codes.INTERNAL_ERROR, "a stream in too many pieces", codes.STREAM)
        self._join()

    def _hold(self, index: int, offset: int, data: Bytes) -> int:
        """Insert a piece before the one at `index`, without overlap; return that one's new index."""
        segments = self._segments
        self.held += len(data)
        end = offset + len(data)
        if index < len(segments) and segments[index][0] == end:
            self._runs -= 1
        self._runs += 1
        if index > 0:
            before_offset, before = segments[index - 1]
            if before_offset + len(before) == offset:
                self._runs -= 1
                if len(data) < SMALL_PIECE_BYTES and len(before) < 8 * SMALL_PIECE_BYTES:
                    # A stream that arrives byte by byte must not cost a hundred times its size.
                    segments[index - 1] = (before_offset, bytes(before) + data)
                    return index
        segments.insert(index, (offset, data))
        return index + 1

    def _join(self) -> None:
        segments = self._segments
        count = 0
        for offset, data in segments:
            if offset != self.next_offset:
                break
            self._append(data)
            count += 1
        if count:
            del segments[:count]
            # They were one run; two runs never touch.
            self._runs -= 1

    def on_reset(self, code: int, final_size: int) -> int:
        """Process a RESET_STREAM; return by how much it raised the highest offset."""
        if self.final_size is not None and final_size != self.final_size:
            raise TransportError(codes.FINAL_SIZE_ERROR, "two final sizes", codes.RESET_STREAM)
        if final_size < self.received:
            raise TransportError(codes.FINAL_SIZE_ERROR, "an end before data", codes.RESET_STREAM)
        if final_size > self.limit:
            raise TransportError(codes.FLOW_CONTROL_ERROR, "over the limit", codes.RESET_STREAM)
        gained = final_size - self.received
        # A reset after the whole stream has arrived changes nothing (RFC 9000 section 3.2).
        had_all = self._all_arrived
        self.received = final_size
        self.final_size = final_size
        if self.reset_code is None and not had_all:
            self.reset_code = code
            self._drop()
        return gained

    @property
    def _all_arrived(self) -> bool:
        return self.final_size is not None and self.next_offset == self.final_size

    def drop_unread(self) -> None:
        """Drop what was received and not read: nobody will read it."""
        self._drop()

    def _drop(self) -> None:
        self._pieces.clear()
        self._segments.clear()
        self._runs = 0
        self.buffered = 0
        self.held = 0

    @property
    def readable(self) -> bool:
        """Whether a reader would not have to wait."""
        return bool(self._pieces) or self.reset_code is not None or self.at_end

    @property
    def at_end(self) -> bool:
        """Whether everything was read, or nothing more will be."""
        return self.final_size is not None and self.consumed >= self.final_size

    @property
    def finished(self) -> bool:
        """Whether the connection may forget this half: nothing more can arrive or be read."""
        if self.discarding:
            return self.final_size is not None and self.received == self.final_size
        return self.at_end

    @property
    def may_allow_more(self) -> bool:
        """Whether the application has consumed bytes for which the peer is owed credit."""
        unknown = self.final_size is None and not self.discarding
        return unknown and self.owed > 0

    # --- the application's side -----------------------------------------------------------------

    def take_watch(self) -> bool:
        """Whether a Readable event is wanted; it comes once."""
        watched, self.watched = self.watched, False
        return watched

    def take_stop(self) -> bool:
        """Whether a STOP_SENDING is to be sent; it is asked for once."""
        pending, self.stop_pending = self.stop_pending, False
        return pending

    def queue_update(self) -> bool:
        """Note that the peer will be told its limit; False if that was already queued."""
        queued, self.update_pending = self.update_pending, True
        return not queued

    def on_update_queued(self) -> None:
        """Note that the frame about the limit is on its way."""
        self.update_pending = False

    def drop_rest(self) -> None:
        """Count as consumed what arrived and will not be read."""
        self.consumed = self.received

    def watch(self) -> None:
        """Ask for a Readable event when whoever waits should look again."""
        self.watched = True

    def unwatch(self) -> None:
        """Ask for no event: nobody waits."""
        self.watched = False

    def read(self, maximum: int) -> bytes:
        """Take up to `maximum` bytes that arrived in order; empty when there are none."""
        pieces = self._pieces
        if not pieces:
            return b""
        first = pieces[0]
        if len(first) > maximum:
            pieces[0] = memoryview(first)[maximum:]
            taken = bytes(memoryview(first)[:maximum])
        elif len(pieces) == 1 or len(first) == maximum:
            pieces.popleft()
            taken = bytes(first)
        else:
            parts: list[Bytes] = []
            left = maximum
            while pieces and left:
                piece = pieces[0]
                if len(piece) > left:
                    parts.append(memoryview(piece)[:left])
                    pieces[0] = memoryview(piece)[left:]
                    left = 0
                else:
                    parts.append(pieces.popleft())
                    left -= len(piece)
            taken = b"".join(parts)
        self.buffered -= len(taken)
        self.held -= len(taken)
        self.consumed += len(taken)
        return taken

    def stop(self, code: int) -> int:
        """Ask the peer to stop; return how many bytes that frees from the connection's window."""
        if self.stop_code is not None or self.reset_code is not None or self.at_end:
            return 0
        self.stop_code = code
        self.stop_pending = not self._all_arrived
        freed = self.received - self.consumed
        self.consumed = self.received
        self._drop()
        return freed


def _segment_offset(segment: tuple[int, Bytes]) -> int:
    return segment[0]
