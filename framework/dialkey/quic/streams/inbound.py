"""Frames about streams and application datagrams, applied to a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey.quic import codes, events
from dialkey.quic.codes import TransportError
from dialkey.quic.packets.frames import VARINT_MAX, read_bytes, read_varint
from dialkey.quic.streams.halves import RecvHalf, SendHalf, is_client_initiated, is_unidirectional

if TYPE_CHECKING:
    from dialkey.quic.connection import Connection
    from dialkey.quic.paths.path import Address, Path
    from dialkey.quic.streams.table import StreamLimits


def on_stream(c: Connection, stream_id: int, offset: int, data: bytes, fin: bool) -> None:
    half = c.recv_halves.get(stream_id)
    if half is None:
        half = _find_recv(c, stream_id, codes.STREAM)
        if half is None:
            return
    if offset + len(data) > VARINT_MAX:
        raise TransportError(codes.FRAME_ENCODING_ERROR, "offset too large", codes.STREAM)
    held = half.held
    gained = half.on_data(offset, data, fin)
    c.held += half.held - held
    if gained:
        _count_received(c, half, gained)
    if half.watched and half.readable:
        half.watched = False
        c.events.append(events.Readable(half))
    if half.finished:
        # Also when the end comes after the reader had all it wanted: it may never ask again.
        c.forget_recv(half)


def _count_received(c: Connection, half: RecvHalf, gained: int) -> None:
    c.data_received += gained
    if c.data_received > c.max_data:
        raise TransportError(codes.FLOW_CONTROL_ERROR, "over the connection's limit", codes.STREAM)
    if half.discarding:
        c.credit(gained)


def _find_recv(c: Connection, stream_id: int, frame: int) -> RecvHalf | None:
    """Return the receiving half of a stream, opened now if it is new; None if it is over."""
    if is_client_initiated(stream_id) == c.is_client:
        kind = c.uni if is_unidirectional(stream_id) else c.bidi
        if is_unidirectional(stream_id):
            raise TransportError(codes.STREAM_STATE_ERROR, "data on a stream of ours", frame)
        if stream_id >= kind.next_local:
            raise TransportError(codes.STREAM_STATE_ERROR, "a stream never opened", frame)
        return None
    _accept_up_to(c, stream_id, frame)
    return c.recv_halves.get(stream_id)


def _find_send(c: Connection, stream_id: int, frame: int) -> SendHalf | None:
    """Return the sending half of a stream; None if it is over."""
    half = c.send_halves.get(stream_id)
    if half is not None:
        return half
    if is_client_initiated(stream_id) == c.is_client:
        kind = c.uni if is_unidirectional(stream_id) else c.bidi
        if stream_id >= kind.next_local:
            raise TransportError(codes.STREAM_STATE_ERROR, "a stream never opened", frame)
        return None
    if is_unidirectional(stream_id):
        raise TransportError(codes.STREAM_STATE_ERROR, "the peer's own direction", frame)
    _accept_up_to(c, stream_id, frame)
    return c.send_halves.get(stream_id)


def _accept_up_to(c: Connection, stream_id: int, frame: int) -> None:
    """Open the peer's streams up to this one: lower ones are opened with it (RFC 9000 section 3.2)."""
    unidirectional = is_unidirectional(stream_id)
    kind: StreamLimits = c.uni if unidirectional else c.bidi
    index = stream_id >> 2
    if index < kind.accepted:
        return
    if index >= kind.allowed:
        raise TransportError(codes.STREAM_LIMIT_ERROR, "too many streams", frame)
    for i in range(kind.accepted, index + 1):
        each = i << 2 | (stream_id & 3)
        recv = c.new_recv_half(each)
        send = None
        if not unidirectional:
            limit = c.peer_parameters.initial_max_stream_data_bidi_local
            send = c.send_halves[each] = SendHalf(each, limit)
        kind.opened(each)
        c.events.append(events.StreamOpened(send, recv))
    kind.accepted = index + 1


def on_reset_stream(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    stream_id, pos = read_varint(data, pos)
    code, pos = read_varint(data, pos)
    final_size, pos = read_varint(data, pos)
    half = c.recv_halves.get(stream_id) or _find_recv(c, stream_id, frame)
    if half is None:
        return pos
    unread = half.received - half.consumed
    was_discarding = half.discarding
    held = half.held
    gained = half.on_reset(code, final_size)
    c.let_go(held - half.held)
    if gained:
        _count_received(c, half, gained)
    if half.reset_code is not None and not was_discarding:
        # What arrived unread will not be read.
        c.credit(unread)
        half.consumed = half.received
    if half.watched:
        half.watched = False
        c.events.append(events.Readable(half))
    if half.finished:
        c.forget_recv(half)
    return pos


def on_stop_sending(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    stream_id, pos = read_varint(data, pos)
    code, pos = read_varint(data, pos)
    half = _find_send(c, stream_id, frame)
    if half is not None and half.stopped_code is None and not half.closed:
        half.on_stopped(code)
        c.wake(half)
        if half.watched:
            half.watched = False
            c.events.append(events.Writable(half))
    return pos


def on_max_stream_data(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    stream_id, pos = read_varint(data, pos)
    limit, pos = read_varint(data, pos)
    half = _find_send(c, stream_id, frame)
    if half is not None and limit > half.limit:
        half.limit = limit
        c.wake(half)
    return pos


def on_max_data(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    limit, pos = read_varint(data, pos)
    if limit > c.peer_max_data:
        c.peer_max_data = limit
        waiting, c.waiting_for_data_limit = c.waiting_for_data_limit, []
        for half in waiting:
            c.wake(half)
    return pos


def on_max_streams(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    limit, pos = read_varint(data, pos)
    if limit > codes.MAX_STREAM_COUNT:
        raise TransportError(codes.FRAME_ENCODING_ERROR, "too many streams", frame)
    unidirectional = frame == codes.MAX_STREAMS_UNI
    kind = c.uni if unidirectional else c.bidi
    if limit > kind.peer_allows:
        kind.peer_allows = limit
        c.events.append(events.StreamsAvailable(unidirectional))
    return pos


def on_blocked(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    """Take a ..._BLOCKED frame in: limits rise by consumption, and what is owed is given at once."""
    half = None
    if frame == codes.STREAM_DATA_BLOCKED:
        stream_id, pos = read_varint(data, pos)
        half = c.recv_halves.get(stream_id) or _find_recv(c, stream_id, frame)
    limit, pos = read_varint(data, pos)
    if frame == codes.DATA_BLOCKED:
        c.renew_data()
    elif frame == codes.STREAM_DATA_BLOCKED:
        if half is not None and half.may_allow_more:
            c.queue_limit_update(half)
    elif limit > codes.MAX_STREAM_COUNT:
        raise TransportError(codes.FRAME_ENCODING_ERROR, "too many streams", frame)
    else:
        kind = c.uni if frame == codes.STREAMS_BLOCKED_UNI else c.bidi
        kind.peer_is_blocked(limit)
    return pos


def on_datagram(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    length = len(data) - pos
    if frame == codes.DATAGRAM_WITH_LENGTH:
        length, pos = read_varint(data, pos)
    payload, pos = read_bytes(data, pos, length)
    c.events.append(events.DatagramReceived(payload))
    return pos
