"""Building 1-RTT packets: acknowledgements, control frames, stream data, probes.

Two shapes of packet. A *lone* packet holds whatever is due: an acknowledgement, control frames, pieces
of several streams. A *burst* is a run of full packets with consecutive pieces of one stream, sealed
into one buffer and masked with one call of the cipher; the kernel cuts it apart (GSO). Bulk data goes
in bursts, everything else in lone packets.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from dialkey.quic import codes, events, multipath
from dialkey.quic.codes import CID_LENGTH
from dialkey.quic.keys import TAG_LENGTH
from dialkey.quic.mtu import BASE_BYTES
from dialkey.quic.recovery import Frame, Sent
from dialkey.quic.streams import Bytes, SendHalf
from dialkey.quic.wire import encode_ack_body, encode_connection_close, varint

if TYPE_CHECKING:
    from dialkey.quic.config import Send
    from dialkey.quic.connection import Connection
    from dialkey.quic.events import CloseReason
    from dialkey.quic.path import Address, Path

MAX_BURST: Final = 44
"""Packets in one burst: as many 1452-byte ones as fit the 64 KiB that one system call may carry."""
SCRATCH_BYTES: Final = 65_535
_MIN_PAYLOAD: Final = 4
"""Shorter payloads are padded, so that the header-protection sample exists (RFC 9001 5.4.2)."""
_SMALLEST_PROBE: Final = 64
"""Room for a packet with a PATH_CHALLENGE or PATH_RESPONSE and no padding."""
_MAX_STREAM_HEAD: Final = 1 + 8 + 8 + 2
PACKET_OVERHEAD: Final = 1 + CID_LENGTH + 4 + TAG_LENGTH
_ROOM_LEFT: Final = 128
"""A lone packet with more room than this left took everything: no frame but a datagram is larger."""
_SHORT_NUMBER_RANGE: Final = 1 << 14
_ACK_ONLY_PING_EVERY: Final = 24
"""So many acknowledgement-only packets with gaps, and one asks to be acknowledged itself: then the
ranges that the peer knows of can be forgotten."""


class Scratch:
    """The buffer in which bursts are sealed; one serves all connections of a thread."""

    __slots__ = ("_slots", "buffer", "view")

    def __init__(self) -> None:
        self.buffer = bytearray(SCRATCH_BYTES)
        self.view = memoryview(self.buffer)
        self._slots: dict[int, list[memoryview]] = {}

    def slots(self, size: int) -> list[memoryview]:
        """Return where the protected part of each packet of `size` bytes stands."""
        slots = self._slots.get(size)
        if slots is None:
            if len(self._slots) > 16:
                self._slots.clear()
            count = min(MAX_BURST, SCRATCH_BYTES // size)
            head = 1 + CID_LENGTH + 2
            slots = [self.view[i * size + head : (i + 1) * size] for i in range(count)]
            self._slots[size] = slots
        return slots


# --- lone packets -------------------------------------------------------------------------------


def seal_packet(c: Connection, path: Path, payload: bytes, cid: bytes) -> bytes:
    """Seal one packet with the next number of `path`."""
    protection = c.protection
    assert protection is not None
    number = path.next_number
    path.next_number = number + 1
    wide = number - path.recovery.largest_acked > _SHORT_NUMBER_RANGE
    length = 4 if wide else 2
    first = 0x40 | protection.send_phase << 2 | (length - 1)
    number_bytes = (number & ((1 << 8 * length) - 1)).to_bytes(length, "big")
    header = bytes((first,)) + cid + number_bytes
    if len(payload) < _MIN_PAYLOAD:
        payload += bytes(_MIN_PAYLOAD - len(payload))
    key = protection.send
    nonce = (key.iv ^ (path.id << 64 | number)).to_bytes(12, "big")
    body = key.encrypt(nonce, payload, header)
    mask = protection.send_header.masks(body[4 - length : 20 - length])
    masked = bytes((first ^ (mask[0] & 0x1F),)) + cid
    masked += bytes([number_bytes[i] ^ mask[1 + i] for i in range(length)])
    if c.qlog is not None:
        c.qlog.packet_sent(path, number, len(masked) + len(body), payload)
    return masked + body


def _cid(path: Path) -> bytes | None:
    active = path.cids.peer.active
    return active.cid if active is not None else None


def build_close(c: Connection, path: Path, reason: CloseReason) -> bytes:
    """Return a packet with CONNECTION_CLOSE."""
    frame = encode_connection_close(
        reason.error_code, reason.reason, is_application=reason.is_application
    )
    payload = frame
    if path.received.largest >= 0:
        payload = b"".join(_write_acks(c, [path], path.largest_received_time)) + frame
    return seal_packet(c, path, payload, _cid(path) or b"")


def flush_path(
    c: Connection, path: Path, carries_data: bool, now: float, send: Send, scratch: Scratch
) -> None:
    """Send all that may leave on a path now.

    Args:
        carries_data: whether this is the path for everything that is not bound to a path.
    """
    cid = _cid(path)
    if cid is None or path.abandoned or path.parked:
        return
    if path.responses:
        _send_responses(c, path, cid, now, send)
    if path.challenge is not None and now >= path.challenge.next_at:
        _send_challenge(c, path, cid, now, send)
    recovery = path.recovery
    rate = recovery.pacer.rate(recovery.cc.window, recovery.srtt, recovery.cc.in_slow_start)
    allowance = recovery.pacer.allowance(now, rate)
    while True:
        size = path.mtu.current
        room = recovery.cc.available
        if not path.validated:
            room = min(room, path.amplification_room())
        paced = allowance <= 0
        # Probes are not held back by congestion, but by an address that has proved nothing yet.
        may_probe = path.probes_pending > 0 and (
            path.validated or path.amplification_room() >= size
        )
        may_send_data = (room >= size and not paced) or may_probe
        half = _next_half(c) if may_send_data and carries_data else None
        if half is not None and not may_probe:
            used = _try_burst(c, path, half, cid, room, now, send, scratch)
            if used:
                allowance -= used
                recovery.pacer.spend(used)
                continue
        used = _send_lone(c, path, cid, size, may_send_data, carries_data, now, send)
        if not used:
            if paced and carries_data and (_next_half(c) is not None or c.control):
                c.pace(recovery.pacer.next_time(now, rate))
            break
        allowance -= used
        recovery.pacer.spend(used)
        if used + _ROOM_LEFT < size and not path.probes_pending and not c.datagrams:
            # More was not there to be sent, or it would be in this packet.
            break
    _send_mtu_probe(c, path, cid, now, send)


def _emit(
    c: Connection, path: Path, packet: bytes, frames: list[Frame], now: float, send: Send
) -> None:
    """Send a sealed ack-eliciting packet and take it into flight."""
    record = Sent(path.next_number - 1, path.next_number, now, len(packet), len(packet))
    record.frames = frames
    path.recovery.on_sent(record, now)
    _count(c, path, len(packet), 1, now)
    c.sent_eliciting(now)
    path.last_activity = now
    if path.waiting_since is None:
        path.waiting_since = now
    send(path.remote, packet, len(packet))


def _count(c: Connection, path: Path, size: int, packets: int, now: float) -> None:
    c.bytes_sent += size
    path.bytes_sent += size
    protection = c.protection
    assert protection is not None
    if protection.count_sealed(packets):
        c.update_keys(now)


def _acks_due(c: Connection, path: Path, carries_data: bool, now: float) -> list[Path]:
    """Return the paths whose acknowledgements go into a packet of `path`; empty if none is due.

    Each path acknowledges on itself, which keeps round-trip times clean; what arrived on a path that
    cannot send is acknowledged on the one that carries data.
    """
    acks = [path] if path.ack_pending else []
    due = path.ack_is_due(now)
    if carries_data and c.multipath is not None:
        for other in c.paths.values():
            stuck = other.abandoned or _cid(other) is None
            if other is not path and stuck and other.ack_pending:
                acks.append(other)
                due = due or other.ack_is_due(now)
    return acks if due else []


def _write_acks(c: Connection, acks: list[Path], now: float) -> list[bytes]:
    parts = []
    for path in acks:
        delay_us = max(0, int((now - path.largest_received_time) * 1e6))
        body = encode_ack_body(path.received.ranges(), delay_us)
        if c.multipath is not None:
            parts.append(bytes((codes.PATH_ACK,)) + varint(path.id) + body)
        else:
            parts.append(bytes((codes.ACK,)) + body)
    return parts


def _send_lone(
    c: Connection,
    path: Path,
    cid: bytes,
    size: int,
    may_send_data: bool,
    carries_data: bool,
    now: float,
    send: Send,
) -> int:
    """Build and send one lone packet; return its size, or 0 if nothing was due."""
    budget = size - PACKET_OVERHEAD
    parts: list[bytes] = []
    frames: list[Frame] = []
    used = 0
    wants = path.ping_pending or path.probes_pending > 0
    pending = carries_data and (
        c.control or c.max_data_pending or c.limit_updates or c.datagrams or c.ready
    )
    has_data = may_send_data and (wants or pending)
    acks = _acks_due(c, path, carries_data, now)
    if not has_data and not acks:
        return 0
    if not acks and path.ack_pending:
        # Not due yet, but it costs nothing beside data.
        acks = [path]
    parts.extend(_write_acks(c, acks, now))
    used = sum(map(len, parts))
    if not has_data and not path.validated and path.amplification_room() < used + PACKET_OVERHEAD:
        # More from there makes room, and sets the timer anew.
        for each in acks:
            each.ack_at = None
            each.ack_pending = 1
        return 0
    if has_data and carries_data:
        used = _add_control(c, parts, frames, used, budget)
        used = _add_datagrams(c, parts, frames, used, budget)
        used = _add_streams(c, parts, frames, used, budget)
    if wants and not frames and may_send_data:
        parts.append(bytes((codes.PING,)))
        frames.append((codes.PING,))
    if not frames:
        if not acks:
            return 0
        c.ack_only_packets += 1
        if path.received.has_gaps and c.ack_only_packets % _ACK_ONLY_PING_EVERY == 0:
            parts.append(bytes((codes.PING,)))
            frames.append((codes.PING,))
    for each in acks:
        each.ack_pending = 0
        each.ack_at = None
    packet = seal_packet(c, path, b"".join(parts), cid)
    if not frames:
        _count(c, path, len(packet), 1, now)
        send(path.remote, packet, len(packet))
        # Acknowledgements alone are not paced and end the loop: nothing else was due.
        return 0
    frames.extend((codes.ACK, each, each.received.largest) for each in acks)
    path.ping_pending = False
    if path.probes_pending:
        path.probes_pending -= 1
    _emit(c, path, packet, frames, now, send)
    return len(packet)


def _add_control(
    c: Connection, parts: list[bytes], frames: list[Frame], used: int, budget: int
) -> int:
    if c.max_data_pending:
        c.max_data_pending = False
        c.control.append((codes.MAX_DATA,))
    for half in c.limit_updates:
        half.update_pending = False
        c.control.append((codes.MAX_STREAM_DATA, half))
    c.limit_updates.clear()
    control = c.control
    while control:
        frame = control[0]
        data = _encode_control(c, frame)
        if data is None:
            control.popleft()
            continue
        if used + len(data) > budget:
            break
        control.popleft()
        parts.append(data)
        frames.append(frame)
        used += len(data)
    return used


def _encode_control(c: Connection, frame: Frame) -> bytes | None:
    """Write a control frame with today's values; None when it has no use any more."""
    kind = frame[0]
    if kind == codes.MAX_DATA:
        c.max_data = c.data_consumed + c.config.connection_window
        return bytes((kind,)) + varint(c.max_data)
    if kind == codes.MAX_STREAM_DATA:
        half = frame[1]
        if half.final_size is not None or half.discarding:
            return None
        half.limit = half.consumed + half.window
        return bytes((kind,)) + varint(half.id) + varint(half.limit)
    if kind in (codes.MAX_STREAMS_BIDI, codes.MAX_STREAMS_UNI):
        limits = c.uni if kind == codes.MAX_STREAMS_UNI else c.bidi
        limits.update_pending = False
        limits.allowed = limits.finished + c.config.max_streams
        return bytes((kind,)) + varint(limits.allowed)
    if kind == codes.RESET_STREAM:
        half = frame[1]
        return bytes((kind,)) + varint(half.id) + varint(half.reset_code) + varint(half.offset)
    if kind == codes.STOP_SENDING:
        half = frame[1]
        if half.finished:
            return None
        return bytes((kind,)) + varint(half.id) + varint(half.stop_code)
    if kind == codes.NEW_CONNECTION_ID:
        cids, local = frame[1], frame[2]
        if local not in cids.local or cids.id not in c.cid_sets:
            return None
        body = varint(local.sequence) + b"\x00" + bytes((len(local.cid),)) + local.cid
        return b"".join((_path_form(c, kind, cids.id), body, local.reset_token))
    if kind == codes.RETIRE_CONNECTION_ID:
        if frame[1].id not in c.cid_sets:
            return None
        return _path_form(c, kind, frame[1].id) + varint(frame[2])
    if kind in multipath.FRAMES:
        return multipath.encode(c, frame)
    assert kind == codes.HANDSHAKE_DONE, kind
    return bytes((codes.HANDSHAKE_DONE,))


_PATH_FORMS = {
    codes.NEW_CONNECTION_ID: codes.PATH_NEW_CONNECTION_ID,
    codes.RETIRE_CONNECTION_ID: codes.PATH_RETIRE_CONNECTION_ID,
}


def _path_form(c: Connection, kind: int, path_id: int) -> bytes:
    """Return the head of a frame about connection ids: with multipath it names the path."""
    if c.multipath is None:
        return bytes((kind,))
    return varint(_PATH_FORMS[kind]) + varint(path_id)


def _add_datagrams(
    c: Connection, parts: list[bytes], frames: list[Frame], used: int, budget: int
) -> int:
    while c.datagrams:
        data = c.datagrams[0]
        head = bytes((codes.DATAGRAM_WITH_LENGTH,)) + varint(len(data))
        if used + len(head) + len(data) > budget:
            if used == 0:
                # It fitted when it was queued; the path has become smaller since.
                c.next_datagram()
                c.datagrams_dropped += 1
                continue
            break
        c.next_datagram()
        parts.append(head + data)
        frames.append((codes.DATAGRAM,))
        used += len(head) + len(data)
    return used


def _add_streams(
    c: Connection, parts: list[bytes], frames: list[Frame], used: int, budget: int
) -> int:
    while budget - used > _MAX_STREAM_HEAD:
        half = _next_half(c)
        if half is None:
            break
        if half.reset_pending:
            half.reset_pending = False
            frame = (codes.RESET_STREAM, half)
            data = _encode_control(c, frame)
            assert data is not None
            if used + len(data) > budget:
                half.reset_pending = True
                break
            parts.append(data)
            frames.append(frame)
            used += len(data)
        else:
            offset, piece, fin = _take(c, half, budget - used - _MAX_STREAM_HEAD)
            kind = codes.STREAM | 0x02 | (0x04 if offset else 0) | (0x01 if fin else 0)
            head = bytes((kind,)) + varint(half.id)
            if offset:
                head += varint(offset)
            head += varint(len(piece))
            parts.append(head)
            parts.append(bytes(piece))
            frames.append((codes.STREAM, half, offset, piece, fin))
            used += len(head) + len(piece)
        _rotate(c, half)
    return used


# --- choosing what to send ----------------------------------------------------------------------


def _next_half(c: Connection) -> SendHalf | None:
    """Return the half whose turn it is and that can send, without removing it from its queue."""
    for priority, queue in c.ready.items():
        while queue:
            half = queue[0]
            if half.wants_to_send and half.priority == priority:
                if (
                    half.reset_pending
                    or half.retransmit
                    or not half.queued
                    or c.data_sent < c.peer_max_data
                ):
                    return half
                queue.popleft()
                half.in_queue = False
                c.waiting_for_data_limit.append(half)
                continue
            queue.popleft()
            half.in_queue = False
            c.wake(half)
    if c.ready and not any(c.ready.values()):
        c.ready.clear()
    return None


def _rotate(c: Connection, half: SendHalf) -> None:
    """Let the next stream of the same priority have its turn."""
    queue: deque[SendHalf] = c.ready[half.priority]
    if queue and queue[0] is half:
        queue.popleft()
        if half.wants_to_send:
            queue.append(half)
        else:
            half.in_queue = False


def _take(c: Connection, half: SendHalf, want: int) -> tuple[int, Bytes, bool]:
    """Take the next piece of a stream: (offset, data, whether it is the last)."""
    if half.retransmit:
        offset, data, fin = half.retransmit.popleft()
        if len(data) > want:
            rest = memoryview(data)[want:]
            half.retransmit.appendleft((offset + want, rest, fin))
            data, fin = memoryview(data)[:want], False
        half.retransmit_bytes -= len(data)
        return offset, data, fin
    offset = half.offset
    data = b""
    if half.queued:
        allowed = min(want, half.limit - offset, c.peer_max_data - c.data_sent)
        data = half.take(allowed)
        half.offset = offset + len(data)
        c.data_sent += len(data)
    fin = half.fin and not half.queued
    if fin:
        half.fin_sent = True
    if half.watched and half.queued <= half.low_water:
        half.watched = False
        c.events.append(events.Writable(half))
    return offset, data, fin


# --- bursts -------------------------------------------------------------------------------------


def _try_burst(
    c: Connection,
    path: Path,
    half: SendHalf,
    cid: bytes,
    room: int,
    now: float,
    send: Send,
    scratch: Scratch,
) -> int:
    """Send a burst of one stream, if it has at least two full packets waiting; return its bytes."""
    size = path.mtu.current
    if half.reset_code is not None or c.control:
        return 0
    offset = half.retransmit[0][0] if half.retransmit else half.offset
    # One width of offset for the whole burst, so that all packets hold equally much.
    wide = offset + SCRATCH_BYTES >= 1 << 30
    head = bytes((codes.STREAM | 0x04,)) + varint(half.id)
    per_packet = size - 1 - CID_LENGTH - 2 - TAG_LENGTH - len(head) - (8 if wide else 4)
    if half.retransmit:
        waiting = len(half.retransmit[0][1])
    else:
        waiting = min(half.queued, half.limit - offset, c.peer_max_data - c.data_sent)
    if waiting < 2 * per_packet:
        return 0
    slots = scratch.slots(size)
    if path.next_number - path.recovery.largest_acked > _SHORT_NUMBER_RANGE:
        return 0
    # Whole packets only: a remainder goes into a lone packet, together with other frames.
    count = min(waiting // per_packet, len(slots), room // size)
    if count < 2:
        return 0
    offset, data, fin = _take(c, half, count * per_packet)
    if fin:
        # The last piece fills its packet exactly; the end of the stream follows on its own.
        fin = False
        if half.fin_sent:
            half.fin_sent = False
    count = -(-len(data) // per_packet)
    number = path.next_number
    used = _seal_burst(c, path, scratch, slots, cid, head, offset, data, per_packet, wide)
    record = Sent(number, number + count, now, size, used)
    record.stream = half
    record.offset = offset
    record.room = per_packet
    record.data = data
    if c.qlog is not None:
        c.qlog.burst_sent(path, record)
    path.recovery.on_sent(record, now)
    _count(c, path, used, count, now)
    c.sent_eliciting(now)
    path.last_activity = now
    if path.waiting_since is None:
        path.waiting_since = now
    send(path.remote, scratch.view[:used], size)
    _rotate(c, half)
    return used


def _seal_burst(
    c: Connection,
    path: Path,
    scratch: Scratch,
    slots: list[memoryview],
    cid: bytes,
    head: bytes,
    offset: int,
    data: Bytes,
    per_packet: int,
    wide: bool,
) -> int:
    """Seal `data` into consecutive packets in the scratch buffer; return the bytes used."""
    protection = c.protection
    assert protection is not None
    size = path.mtu.current
    key = protection.send
    encrypt_into = key.encrypt_into
    base = key.iv ^ path.id << 64
    first = 0x41 | protection.send_phase << 2
    aad_head = bytes((first,)) + cid
    number = start_number = path.next_number
    width, flag = (8, 0xC000000000000000) if wide else (4, 0x80000000)
    at = 0
    total = len(data)
    for slot in slots:
        piece = head + ((offset + at) | flag).to_bytes(width, "big") + data[at : at + per_packet]
        if len(piece) + TAG_LENGTH < len(slot):
            slot = slot[: len(piece) + TAG_LENGTH]
        encrypt_into(
            (base ^ number).to_bytes(12, "big"),
            piece,
            aad_head + (number & 0xFFFF).to_bytes(2, "big"),
            slot,
        )
        number += 1
        at += per_packet
        if at >= total:
            break
    count = number - start_number
    path.next_number = number
    used = (count - 1) * size + 1 + CID_LENGTH + 2 + len(slot)
    # Header protection by columns: the same byte of every packet in one strided assignment.
    masks = protection.send_header.masks(b"".join([s[2:18] for s in slots[:count]]))
    out = scratch.buffer
    last = (count - 1) * size + 1
    out[0:last:size] = bytes([first ^ (m & 0x1F) for m in masks[0::16]])
    for i in range(CID_LENGTH):
        out[1 + i : last + 1 + i : size] = bytes((cid[i],)) * count
    numbers = range(start_number, number)
    high, low = 1 + CID_LENGTH, 2 + CID_LENGTH
    out[high : last + high : size] = bytes(
        [(n >> 8 & 0xFF) ^ m for n, m in zip(numbers, masks[1::16], strict=True)]
    )
    out[low : last + low : size] = bytes(
        [(n & 0xFF) ^ m for n, m in zip(numbers, masks[2::16], strict=True)]
    )
    return used


# --- probes and path validation -----------------------------------------------------------------


def _send_mtu_probe(c: Connection, path: Path, cid: bytes, now: float, send: Send) -> None:
    if not c.confirmed or not path.validated or path.recovery.cc.available < path.mtu.maximum:
        return
    size = path.mtu.next_probe(now)
    if not size:
        return
    payload = bytes((codes.PING,)) + bytes(size - 1 - CID_LENGTH - 2 - TAG_LENGTH - 1)
    packet = seal_packet(c, path, payload, cid)
    if len(packet) > size:
        # The packet number took four bytes.
        return
    path.mtu.on_probe_sent(size)
    record = Sent(path.next_number - 1, path.next_number, now, len(packet), len(packet))
    record.frames = []
    record.probe_size = size
    path.recovery.on_sent(record, now)
    _count(c, path, len(packet), 1, now)
    send(path.remote, packet, len(packet))


def _send_responses(c: Connection, path: Path, cid: bytes, now: float, send: Send) -> None:
    room = BASE_BYTES - 1 - CID_LENGTH - 2 - TAG_LENGTH
    while path.responses:
        token, remote, asked_with = path.responses[0]
        frame = bytes((codes.PATH_RESPONSE,)) + token
        if remote != path.remote:
            # Nothing is known of that address: it gets three times what came from it at most.
            frame += bytes(max(0, min(room, 3 * asked_with) - len(frame)))
            _count_off_path(c, seal_packet(c, path, frame, cid), remote, send)
        elif path.recovery.cc.available < BASE_BYTES:
            return
        else:
            frame += bytes((codes.PING,))
            if path.validated or path.amplification_room() >= BASE_BYTES:
                frame += bytes(room - len(frame))
            elif path.amplification_room() < _SMALLEST_PROBE:
                # Whoever asked may ask again, and sends more with it.
                path.responses.clear()
                return
            packet = seal_packet(c, path, frame, cid)
            _emit(c, path, packet, [(codes.PATH_RESPONSE,)], now, send)
        path.responses.popleft()


def _count_off_path(c: Connection, packet: bytes, remote: Address, send: Send) -> None:
    """Send a packet outside congestion control, to an address that is not the path's."""
    c.bytes_sent += len(packet)
    send(remote, packet, len(packet))


def _send_challenge(c: Connection, path: Path, cid: bytes, now: float, send: Send) -> None:
    room = BASE_BYTES - 1 - CID_LENGTH - 2 - TAG_LENGTH
    frame = bytes((codes.PATH_CHALLENGE,)) + path.new_challenge_token(now)
    if path.validated or path.amplification_room() >= BASE_BYTES:
        frame += bytes(room - len(frame))
    elif path.amplification_room() < _SMALLEST_PROBE:
        return
    packet = seal_packet(c, path, frame, cid)
    _emit(c, path, packet, [(codes.PATH_CHALLENGE,)], now, send)


# --- the fate of what was sent ------------------------------------------------------------------


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
