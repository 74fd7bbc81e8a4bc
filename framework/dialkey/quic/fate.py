"""What becomes of what was sent: acknowledged, or lost and perhaps sent again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey.quic import codes, events
from dialkey.quic.paths.mtu import BASE_BYTES
from dialkey.quic.paths.recovery import Sent
from dialkey.quic.streams.halves import SendHalf

if TYPE_CHECKING:
    from dialkey.quic.connection import Connection
    from dialkey.quic.paths.path import Path


def on_acked(c: Connection, path: Path, record: Sent) -> None:
    """Note that a record has arrived."""
    if record.size > BASE_BYTES:
        path.mtu.on_large_acked(record.time)
    stream = record.stream
    if stream is not None:
        _stream_acked(c, stream, len(record.data), record.fin)
        return
    if record.probe_size:
        if path.mtu.on_probe_acked(record.probe_size):
            path.recovery.cc.set_max_datagram(path.mtu.current)
        return
    for frame in record.frames or ():
        kind = frame[0]
        if kind == codes.STREAM:
            _stream_acked(c, frame[1], len(frame[3]), frame[4])
        elif kind == codes.RESET_STREAM:
            half = frame[1]
            half.on_reset_acked()
            _send_closed(c, half)
        elif kind == codes.ACK:
            frame[1].received.forget_below(frame[2])


def _stream_acked(c: Connection, half: SendHalf, length: int, fin: bool) -> None:
    half.on_acked(length, fin)
    if half.closed:
        _send_closed(c, half)
    elif half.watched and half.all_delivered:
        half.watched = False
        c.events.append(events.Writable(half))


def _send_closed(c: Connection, half: SendHalf) -> None:
    if half.watched:
        half.watched = False
        c.events.append(events.Writable(half))
    c.forget_send(half)


def on_lost(c: Connection, path: Path, record: Sent) -> None:
    """Queue again what a lost record carried and what still matters."""
    if c.qlog is not None:
        c.qlog.packets_lost(path, record)
    stream = record.stream
    if stream is not None:
        stream.on_lost(record.offset, record.data, record.fin)
        c.wake(stream)
        _maybe_shrink(path, record)
        return
    if record.probe_size:
        path.mtu.on_probe_lost(record.probe_size)
        return
    _maybe_shrink(path, record)
    for frame in record.frames or ():
        kind = frame[0]
        if kind == codes.STREAM:
            _, half, offset, data, fin = frame
            half.on_lost(offset, data, fin)
            c.wake(half)
        elif kind == codes.RESET_STREAM:
            lost_half = frame[1]
            lost_half.reset_pending = True
            c.wake(lost_half)
        elif kind not in _NEVER_AGAIN:
            c.control.append(frame)


_NEVER_AGAIN = frozenset(
    {codes.PING, codes.ACK, codes.DATAGRAM, codes.PATH_CHALLENGE, codes.PATH_RESPONSE}
)


def _maybe_shrink(path: Path, record: Sent) -> None:
    if record.size > BASE_BYTES and path.mtu.on_large_lost(record.time):
        path.recovery.cc.set_max_datagram(path.mtu.current)
