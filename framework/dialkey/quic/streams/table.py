"""The streams of a connection: which there are, what they may send and receive, and their frames.

The halves themselves are in `halves`, whose turn it is in `scheduler`, what is received on all streams
together in `intake`. A frame about a stream is read, written, acknowledged and lost here.

Sources: RFC 9000 sections 2 to 4 and 19.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from dialkey.quic import codes, events
from dialkey.quic.codes import TransportError
from dialkey.quic.config import Config
from dialkey.quic.events import Event
from dialkey.quic.handshake.parameters import TransportParameters
from dialkey.quic.packets.control import ControlFrames, Payload
from dialkey.quic.packets.frames import VARINT_MAX, read_varint, varint
from dialkey.quic.paths.recovery import Frame, Sent
from dialkey.quic.streams.halves import (
    Bytes,
    RecvHalf,
    SendHalf,
    is_client_initiated,
    is_unidirectional,
)
from dialkey.quic.streams.intake import Intake
from dialkey.quic.streams.limits import StreamLimits
from dialkey.quic.streams.scheduler import Scheduler

if TYPE_CHECKING:
    from dialkey.quic.packets.reader import Handler

CREDIT_DELAY_S: Final = 0.025
"""How long credit for streams waits for a packet to travel in: a packet of its own costs more."""
_MAX_STREAM_HEAD: Final = 1 + 8 + 8 + 2


class Streams:
    """See the module.

    Attributes:
        send_halves, recv_halves: those that are not over, by stream id.
        bidi, uni: how many there may be.
        scheduler: those that may have something to send.
        intake: what is received on all of them together.
        credit_at: when credit for streams goes in a packet of its own.
    """

    def __init__(
        self,
        config: Config,
        *,
        is_client: bool,
        control: ControlFrames,
        emit: Callable[[Event], None],
    ) -> None:
        self._config = config
        self._is_client = is_client
        self._peer = TransportParameters()
        self._control = control
        self._emit = emit
        self.send_halves: dict[int, SendHalf] = {}
        self.recv_halves: dict[int, RecvHalf] = {}
        self.bidi = StreamLimits(0 if is_client else 1, config.max_streams)
        self.uni = StreamLimits(2 if is_client else 3, config.max_streams)
        self.scheduler = Scheduler()
        self.intake = Intake(config)
        self.credit_at: float | None = None
        self.acked_count = 0

    def start(self, peer: TransportParameters) -> None:
        """Begin with the limits that the peer announced in its handshake."""
        self._peer = peer
        self.scheduler.allow(peer.initial_max_data)
        self.bidi.peer_allows = peer.initial_max_streams_bidi
        self.uni.peer_allows = peer.initial_max_streams_uni

    def clear(self) -> None:
        """Free everything: the connection is over."""
        self.scheduler.clear()
        self.send_halves.clear()
        self.recv_halves.clear()

    @property
    def queued_bytes(self) -> int:
        """What was written and never sent, on all streams together."""
        return sum(half.queued for half in self.send_halves.values())

    def size_windows(self, now: float, rtt_s: float) -> None:
        """Let windows grow for streams that are read quickly, and for a reader that others hold up."""
        intake = self.intake
        window = intake.window
        intake.size_windows(now, rtt_s)
        if intake.window == window and any(map(intake.holds_up, self.recv_halves.values())):
            intake.make_way()

    def drop_unread(self) -> None:
        """Drop what was received and not read, on all streams."""
        for half in self.recv_halves.values():
            half.drop_unread()
        self.intake.let_go(self.intake.held)

    # --- the application's side -----------------------------------------------------------------

    def open(self, *, unidirectional: bool) -> tuple[SendHalf, RecvHalf | None] | None:
        """Open a stream; None while the peer allows no more (StreamsAvailable follows)."""
        kind = self.uni if unidirectional else self.bidi
        if kind.is_blocked:
            if kind.must_ask():
                asks = codes.STREAMS_BLOCKED_UNI if unidirectional else codes.STREAMS_BLOCKED_BIDI
                self._control.append((self, asks))
            return None
        stream_id = kind.next_local
        kind.next_local += 4
        if unidirectional:
            limit = self._peer.initial_max_stream_data_uni
        else:
            limit = self._peer.initial_max_stream_data_bidi_remote
        send = self.send_halves[stream_id] = SendHalf(stream_id, limit)
        return send, None if unidirectional else self._new_recv_half(stream_id)

    def _new_recv_half(self, stream_id: int) -> RecvHalf:
        config = self._config
        half = RecvHalf(stream_id, config.stream_window, config.most_stream_window)
        self.recv_halves[stream_id] = half
        return half

    def taken(self, stream_id: int) -> None:
        """Note that the application has accepted a stream of the peer's."""
        self._kind(stream_id).taken(stream_id)

    def wake(self, half: SendHalf) -> None:
        """Note that a half may have something to send."""
        self.scheduler.add(half)

    def consumed(self, half: RecvHalf, length: int) -> None:
        """Note that the application took `length` bytes: limits may rise, the half may be over."""
        self.intake.credit(length)
        self.intake.let_go(length)
        if half.final_size is None and half.is_low:
            self.intake.queue_update(half)
        if half.finished:
            self._forget_recv(half)

    def stop(self, half: RecvHalf, code: int) -> None:
        """Ask the peer to stop sending on a stream; what has arrived unread is dropped."""
        held = half.held
        self.intake.credit(half.stop(code))
        self.intake.let_go(held - half.held)
        if half.take_stop():
            self._control.append((self, codes.STOP_SENDING, half))
        if half.finished:
            self._forget_recv(half)

    def reset(self, half: SendHalf, code: int) -> None:
        """Reset the sending half of a stream."""
        half.reset(code)
        self.wake(half)

    @property
    def are_delivered(self) -> bool:
        """Whether the peer has all that was written."""
        return all(half.is_settled for half in self.send_halves.values())

    @property
    def expect_data(self) -> bool:
        """Whether any stream is open on which the peer may send."""
        return any(half.final_size is None for half in self.recv_halves.values())

    # --- the end of a stream --------------------------------------------------------------------

    def _forget_recv(self, half: RecvHalf) -> None:
        if self.recv_halves.pop(half.id, None) is not None and half.id not in self.send_halves:
            self._over(half.id)

    def _forget_send(self, half: SendHalf) -> None:
        if self.send_halves.pop(half.id, None) is not None and half.id not in self.recv_halves:
            self._over(half.id)

    def _over(self, stream_id: int) -> None:
        if is_client_initiated(stream_id) != self._is_client:
            self._kind(stream_id).over(stream_id)

    def _kind(self, stream_id: int) -> StreamLimits:
        return self.uni if is_unidirectional(stream_id) else self.bidi

    # --- credit for streams ---------------------------------------------------------------------

    def grant(self, now: float) -> None:
        """Queue the credit for streams that is due; the rest waits a little for a packet to travel in."""
        if not self.bidi.is_worth_a_packet and not self.uni.is_worth_a_packet:
            self.credit_at = None
            return
        is_due = self.credit_at is not None and now >= self.credit_at
        if is_due or self.bidi.is_urgent or self.uni.is_urgent:
            self._add_credit()
        elif self.credit_at is None:
            self.credit_at = now + CREDIT_DELAY_S

    def _add_credit(self) -> None:
        """Queue all credit for streams that is owed, because a packet is about to leave anyway."""
        self.credit_at = None
        for kind, frame in ((self.bidi, codes.MAX_STREAMS_BIDI), (self.uni, codes.MAX_STREAMS_UNI)):
            if kind.owed > 0 and not kind.update_pending:
                kind.update_pending = True
                self._control.append((self, frame))

    def queue_updates(self) -> None:
        """Queue the limits that the peer is to be told, for a packet that is being built."""
        self._add_credit()
        is_pending, halves = self.intake.take_updates()
        if is_pending:
            self._control.append((self, codes.MAX_DATA))
        for half in halves:
            self._control.append((self, codes.MAX_STREAM_DATA, half))

    # --- data out -------------------------------------------------------------------------------

    def next_half(self) -> SendHalf | None:
        """Return the half whose turn it is to send."""
        half = self.scheduler.next()
        if self.scheduler.must_ask():
            self._control.append((self, codes.DATA_BLOCKED))
        return half

    def take_run(self, half: SendHalf, want: int) -> tuple[int, Bytes]:
        """Take the bytes of a run; they are all there, see `Scheduler.waiting_bytes`."""
        offset, data, fin = self._take(half, want)
        if fin:
            # The last piece fills its packet exactly; the end of the stream follows on its own.
            half.end_separately()
        return offset, data

    def _take(self, half: SendHalf, want: int) -> tuple[int, Bytes, bool]:
        piece = self.scheduler.take(half, want)
        if half.watched and half.queued <= half.low_water:
            self._writable(half)
        return piece

    def had_turn(self, half: SendHalf) -> None:
        """Let the next stream have its turn."""
        is_held_up = self.scheduler.rotate(half) and half.queued and half.reset_code is None
        if is_held_up and half.must_ask():
            # By the peer's limit on the stream.
            self._control.append((self, codes.STREAM_DATA_BLOCKED, half))

    def write(self, payload: Payload) -> None:
        """Put as much stream data as fits into a packet."""
        while payload.room > _MAX_STREAM_HEAD:
            half = self.next_half()
            if half is None:
                break
            if half.reset_pending:
                frame = (self, codes.RESET_STREAM, half)
                if not payload.add(self._encode_reset(frame), frame):
                    break
                half.on_reset_sent()
            else:
                offset, piece, fin = self._take(half, payload.room - _MAX_STREAM_HEAD)
                kind = codes.STREAM | 0x02 | (0x04 if offset else 0) | (0x01 if fin else 0)
                head = bytes((kind,)) + varint(half.id)
                if offset:
                    head += varint(offset)
                head += varint(len(piece))
                payload.append(head)
                payload.add(bytes(piece), (self, codes.STREAM, half, offset, piece, fin))
            self.had_turn(half)

    # --- frames out: written, acknowledged, lost ------------------------------------------------

    def encode(self, frame: Frame) -> bytes | None:
        """Write a control frame with current values; None if it is no longer needed."""
        return self._ENCODERS[frame[1]](self, frame)

    def _encode_max_data(self, frame: Frame) -> bytes:
        return bytes((codes.MAX_DATA,)) + varint(self.intake.renew())

    def _encode_max_stream_data(self, frame: Frame) -> bytes | None:
        half = frame[2]
        if half.final_size is not None or half.discarding:
            return None
        return bytes((codes.MAX_STREAM_DATA,)) + varint(half.id) + varint(half.renew())

    def _encode_max_streams(self, frame: Frame) -> bytes:
        kind = self.uni if frame[1] == codes.MAX_STREAMS_UNI else self.bidi
        return bytes((frame[1],)) + varint(kind.grant())

    def _encode_streams_blocked(self, frame: Frame) -> bytes | None:
        kind = self.uni if frame[1] == codes.STREAMS_BLOCKED_UNI else self.bidi
        return bytes((frame[1],)) + varint(kind.peer_allows) if kind.is_blocked else None

    def _encode_data_blocked(self, frame: Frame) -> bytes | None:
        scheduler = self.scheduler
        if scheduler.sent < scheduler.limit:
            return None
        return bytes((codes.DATA_BLOCKED,)) + varint(scheduler.limit)

    def _encode_stream_data_blocked(self, frame: Frame) -> bytes | None:
        half = frame[2]
        if half.reset_code is not None or half.offset < half.limit or not half.queued:
            return None
        return bytes((codes.STREAM_DATA_BLOCKED,)) + varint(half.id) + varint(half.limit)

    def _encode_reset(self, frame: Frame) -> bytes:
        half = frame[2]
        head = bytes((codes.RESET_STREAM,)) + varint(half.id)
        return head + varint(half.reset_code) + varint(half.offset)

    def _encode_stop_sending(self, frame: Frame) -> bytes | None:
        half = frame[2]
        if half.finished:
            return None
        return bytes((codes.STOP_SENDING,)) + varint(half.id) + varint(half.stop_code)

    _ENCODERS: ClassVar[Mapping[int, Callable[[Streams, Frame], bytes | None]]] = {
        codes.MAX_DATA: _encode_max_data,
        codes.MAX_STREAM_DATA: _encode_max_stream_data,
        codes.MAX_STREAMS_BIDI: _encode_max_streams,
        codes.MAX_STREAMS_UNI: _encode_max_streams,
        codes.STREAMS_BLOCKED_BIDI: _encode_streams_blocked,
        codes.STREAMS_BLOCKED_UNI: _encode_streams_blocked,
        codes.DATA_BLOCKED: _encode_data_blocked,
        codes.STREAM_DATA_BLOCKED: _encode_stream_data_blocked,
        codes.STOP_SENDING: _encode_stop_sending,
    }

    def on_frame_acked(self, frame: Frame) -> None:
        """Note that a frame arrived."""
        if frame[1] == codes.STREAM:
            self._on_acked(frame[2], len(frame[4]), frame[5])
        elif frame[1] == codes.RESET_STREAM:
            frame[2].on_reset_acked()
            self._closed(frame[2])

    def on_frame_lost(self, frame: Frame) -> None:
        """Queue again what a lost frame said, if that still matters."""
        if frame[1] == codes.STREAM:
            _, _, half, offset, data, fin = frame
            half.on_lost(offset, data, fin)
            self.wake(half)
        elif frame[1] == codes.RESET_STREAM:
            frame[2].on_reset_lost()
            self.wake(frame[2])
        else:
            self._control.append(frame)

    def on_run_acked(self, record: Sent) -> None:
        """Note that packets of a run arrived."""
        assert record.stream is not None
        self._on_acked(record.stream, len(record.data), record.fin)

    def on_run_lost(self, record: Sent) -> None:
        """Send what packets of a run carried again."""
        half = record.stream
        assert half is not None
        half.on_lost(record.offset, record.data, record.fin)
        self.wake(half)

    def _on_acked(self, half: SendHalf, length: int, fin: bool) -> None:
        self.acked_count += length + fin
        half.on_acked(length, fin)
        if half.closed:
            self._closed(half)
        elif half.watched and half.all_delivered:
            self._writable(half)

    def _closed(self, half: SendHalf) -> None:
        self._writable(half)
        self._forget_send(half)

    def _writable(self, half: SendHalf) -> None:
        if half.take_watch():
            self._emit(events.Writable(half))

    def _readable(self, half: RecvHalf) -> None:
        if half.take_watch():
            self._emit(events.Readable(half))

    # --- frames in ------------------------------------------------------------------------------

    def takes_run(self, stream_id: int, offset: int, length: int) -> bool:
        """Whether `on_data` is certain to accept the bytes of a run."""
        half = self.recv_halves.get(stream_id)
        if half is None or not half.takes(offset, length):
            return False
        intake = self.intake
        return intake.received + max(0, offset + length - half.received) <= intake.limit

    def on_data(self, stream_id: int, offset: int, data: bytes, fin: bool) -> None:
        """Process the content of STREAM frames.

        Raises:
            TransportError: the peer broke a rule.
        """
        half = self.recv_halves.get(stream_id)
        if half is None:
            half = self._find_recv(stream_id, codes.STREAM)
            if half is None:
                return
        if offset + len(data) > VARINT_MAX:
            raise TransportError(codes.FRAME_ENCODING_ERROR, "offset too large", codes.STREAM)
        held = half.held
        gained = half.on_data(offset, data, fin)
        self.intake.hold(half.held - held)
        if gained:
            self._count(half, gained)
        if half.watched and half.readable:
            self._readable(half)
        if half.finished:
            # Even if the end arrives after the reader got all it wanted: it may never ask again.
            self._forget_recv(half)

    def _count(self, half: RecvHalf, gained: int) -> None:
        self.intake.count(gained)
        if half.discarding:
            self.intake.credit(gained)

    def _find_recv(self, stream_id: int, frame: int) -> RecvHalf | None:
        """Return the receiving half of a stream, opened now if it is new; None if it is over."""
        half = self.recv_halves.get(stream_id)
        if half is not None:
            return half
        if is_client_initiated(stream_id) == self._is_client:
            if is_unidirectional(stream_id):
                raise TransportError(codes.STREAM_STATE_ERROR, "data on a stream of ours", frame)
            self._check_opened(stream_id, frame)
            return None
        self._accept_up_to(stream_id, frame)
        return self.recv_halves.get(stream_id)

    def _find_send(self, stream_id: int, frame: int) -> SendHalf | None:
        """Return the sending half of a stream; None if it is over."""
        half = self.send_halves.get(stream_id)
        if half is not None:
            return half
        if is_client_initiated(stream_id) == self._is_client:
            self._check_opened(stream_id, frame)
            return None
        if is_unidirectional(stream_id):
            raise TransportError(codes.STREAM_STATE_ERROR, "the peer's own direction", frame)
        self._accept_up_to(stream_id, frame)
        return self.send_halves.get(stream_id)

    def _check_opened(self, stream_id: int, frame: int) -> None:
        if stream_id >= self._kind(stream_id).next_local:
            raise TransportError(codes.STREAM_STATE_ERROR, "a stream never opened", frame)

    def _accept_up_to(self, stream_id: int, frame: int) -> None:
        """Open the peer's streams up to this one: lower ones with it (RFC 9000 section 3.2)."""
        kind = self._kind(stream_id)
        index = stream_id >> 2
        if index < kind.accepted:
            return
        if index >= kind.allowed:
            raise TransportError(codes.STREAM_LIMIT_ERROR, "too many streams", frame)
        for i in range(kind.accepted, index + 1):
            each = i << 2 | (stream_id & 3)
            recv = self._new_recv_half(each)
            send = None
            if kind is self.bidi:
                limit = self._peer.initial_max_stream_data_bidi_local
                send = self.send_halves[each] = SendHalf(each, limit)
            kind.opened(each)
            self._emit(events.StreamOpened(send, recv))
        kind.accepted = index + 1

    def _on_reset_stream(self, data: bytes, pos: int, frame: int, arrival: object) -> int:
        stream_id, pos = read_varint(data, pos)
        code, pos = read_varint(data, pos)
        final_size, pos = read_varint(data, pos)
        half = self._find_recv(stream_id, frame)
        if half is None:
            return pos
        unread = half.received - half.consumed
        was_discarding = half.discarding
        held = half.held
        gained = half.on_reset(code, final_size)
        self.intake.let_go(held - half.held)
        if gained:
            self._count(half, gained)
        if half.reset_code is not None and not was_discarding:
            # What arrived unread will not be read.
            self.intake.credit(unread)
            half.drop_rest()
        self._readable(half)
        if half.finished:
            self._forget_recv(half)
        return pos

    def _on_stop_sending(self, data: bytes, pos: int, frame: int, arrival: object) -> int:
        stream_id, pos = read_varint(data, pos)
        code, pos = read_varint(data, pos)
        half = self._find_send(stream_id, frame)
        if half is not None and half.stopped_code is None and not half.closed:
            half.on_stopped(code)
            self.wake(half)
            self._writable(half)
        return pos

    def _on_max_stream_data(self, data: bytes, pos: int, frame: int, arrival: object) -> int:
        stream_id, pos = read_varint(data, pos)
        limit, pos = read_varint(data, pos)
        half = self._find_send(stream_id, frame)
        if half is not None and limit > half.limit:
            half.allow(limit)
            self.wake(half)
        return pos

    def _on_max_data(self, data: bytes, pos: int, frame: int, arrival: object) -> int:
        limit, pos = read_varint(data, pos)
        self.scheduler.allow(limit)
        return pos

    def _on_max_streams(self, data: bytes, pos: int, frame: int, arrival: object) -> int:
        limit, pos = read_varint(data, pos)
        if limit > codes.MAX_STREAM_COUNT:
            raise TransportError(codes.FRAME_ENCODING_ERROR, "too many streams", frame)
        unidirectional = frame == codes.MAX_STREAMS_UNI
        kind = self.uni if unidirectional else self.bidi
        if limit > kind.peer_allows:
            kind.peer_allows = limit
            self._emit(events.StreamsAvailable(unidirectional))
        return pos

    def _on_blocked(self, data: bytes, pos: int, frame: int, arrival: object) -> int:
        """Process a ..._BLOCKED frame: limits rise by consumption only; what is owed is sent at once."""
        half = None
        if frame == codes.STREAM_DATA_BLOCKED:
            stream_id, pos = read_varint(data, pos)
            half = self._find_recv(stream_id, frame)
        limit, pos = read_varint(data, pos)
        if frame == codes.DATA_BLOCKED:
            self.intake.renew_early()
        elif frame == codes.STREAM_DATA_BLOCKED:
            if half is not None and half.may_allow_more:
                self.intake.queue_update(half)
        elif limit > codes.MAX_STREAM_COUNT:
            raise TransportError(codes.FRAME_ENCODING_ERROR, "too many streams", frame)
        else:
            kind = self.uni if frame == codes.STREAMS_BLOCKED_UNI else self.bidi
            kind.peer_is_blocked(limit)
        return pos

    HANDLERS: ClassVar[Mapping[int, Handler]] = {
        codes.RESET_STREAM: _on_reset_stream,
        codes.STOP_SENDING: _on_stop_sending,
        codes.MAX_DATA: _on_max_data,
        codes.MAX_STREAM_DATA: _on_max_stream_data,
        codes.MAX_STREAMS_BIDI: _on_max_streams,
        codes.MAX_STREAMS_UNI: _on_max_streams,
        codes.DATA_BLOCKED: _on_blocked,
        codes.STREAM_DATA_BLOCKED: _on_blocked,
        codes.STREAMS_BLOCKED_BIDI: _on_blocked,
        codes.STREAMS_BLOCKED_UNI: _on_blocked,
    }
