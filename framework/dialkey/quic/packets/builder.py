"""Building 1-RTT packets: acknowledgements, control frames, stream data, probes.

Two shapes of packet. A *lone* packet holds whatever is due: an acknowledgement, control frames, pieces
of several streams; it is made here. A *burst* is a run of full packets with consecutive pieces of one
stream (`bursts`); the kernel cuts it apart (GSO). Bulk data goes in bursts, everything else in lone
packets. Whose turn it is: `streams.scheduler`. What becomes of it: `fate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dialkey.quic import codes
from dialkey.quic.codes import CID_LENGTH, TAG_LENGTH
from dialkey.quic.packets.bursts import SHORT_NUMBER_RANGE, count_sent, try_burst
from dialkey.quic.packets.frames import encode_ack_body, encode_connection_close, varint
from dialkey.quic.paths import multipath
from dialkey.quic.paths.mtu import BASE_BYTES
from dialkey.quic.paths.recovery import Frame, Sent
from dialkey.quic.streams.scheduler import next_half, rotate, take

if TYPE_CHECKING:
    from dialkey.quic.config import Send
    from dialkey.quic.connection import Connection
    from dialkey.quic.events import CloseReason
    from dialkey.quic.paths.path import Address, Path

_MIN_PAYLOAD: Final = 4
"""Shorter payloads are padded, so that the header-protection sample exists (RFC 9001 5.4.2)."""
_SMALLEST_PROBE: Final = 64
"""Room for a packet with a PATH_CHALLENGE or PATH_RESPONSE and no padding."""
_MAX_STREAM_HEAD: Final = 1 + 8 + 8 + 2
PACKET_OVERHEAD: Final = 1 + CID_LENGTH + 4 + TAG_LENGTH
_ROOM_LEFT: Final = 128
"""A lone packet with more room than this left took everything: no frame but a datagram is larger."""
_ACK_ONLY_PING_EVERY: Final = 24
"""So many acknowledgement-only packets with gaps, and one asks to be acknowledged itself: then the
ranges that the peer knows of can be forgotten."""


# --- lone packets -------------------------------------------------------------------------------


def seal_packet(c: Connection, path: Path, payload: bytes, cid: bytes) -> bytes:
    """Seal one packet with the next number of `path`."""
    protection = c.protection
    assert protection is not None
    number = path.begin_run()
    path.next_number = number + 1
    wide = number - path.recovery.largest_acked > SHORT_NUMBER_RANGE
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


def flush_path(c: Connection, path: Path, carries_data: bool, now: float, send: Send) -> None:
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
    if not _has_work(c, path, carries_data, now):
        if recovery.cc.available >= path.mtu.current:
            recovery.limited_by_app()
        _send_mtu_probe(c, path, cid, now, send)
        return
    rate = recovery.cc.pacing_rate(recovery.srtt)
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
        half = next_half(c) if may_send_data and carries_data else None
        if half is not None and not may_probe:
            # As much as the pacer lets go at once: a longer burst is a queue for whoever shares the link.
            burst = min(room, max(int(allowance), 2 * size))
            used = try_burst(c, path, half, cid, burst, now, send)
            if used:
                allowance -= used
                recovery.pacer.spend(used)
                continue
        used = _send_lone(c, path, cid, size, may_send_data, carries_data, now, send)
        if not used:
            if paced and carries_data and (next_half(c) is not None or _has_frames(c)):
                c.pace(recovery.pacer.next_time(now, rate))
            elif may_send_data:
                recovery.limited_by_app()
            break
        allowance -= used
        recovery.pacer.spend(used)
        if used + _ROOM_LEFT < size and not path.probes_pending and not c.datagrams:
            # More was not there to be sent, or it would be in this packet.
            recovery.limited_by_app()
            break
    _send_mtu_probe(c, path, cid, now, send)


def _has_work(c: Connection, path: Path, carries_data: bool, now: float) -> bool:
    """Whether a packet could be built now, congestion and pacing aside."""
    if path.ping_pending or path.probes_pending:
        return True
    if carries_data and (c.ready or _has_frames(c)):
        return True
    return bool(_acks_due(c, path, carries_data, now))


def _has_frames(c: Connection) -> bool:
    """Whether something beside streams waits for the path that carries data."""
    return bool(c.control or c.max_data_pending or c.limit_updates or c.datagrams)


def _emit(
    c: Connection, path: Path, packet: bytes, frames: list[Frame], now: float, send: Send
) -> None:
    """Send a sealed ack-eliciting packet and take it into flight."""
    record = Sent(path.next_number - 1, path.next_number, now, len(packet), len(packet))
    record.frames = frames
    path.recovery.on_sent(record, now)
    count_sent(c, path, len(packet), 1, now)
    c.sent_eliciting(now)
    path.last_activity = now
    if path.waiting_since is None:
        path.waiting_since = now
    send(path.remote, packet, len(packet))


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
    pending = carries_data and (c.ready or _has_frames(c))
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
        count_sent(c, path, len(packet), 1, now)
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
    c.add_stream_credit()
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
        return bytes((kind,)) + varint(c.intake.renew())
    if kind == codes.MAX_STREAM_DATA:
        half = frame[1]
        if half.final_size is not None or half.discarding:
            return None
        return bytes((kind,)) + varint(half.id) + varint(half.renew())
    if kind in (codes.MAX_STREAMS_BIDI, codes.MAX_STREAMS_UNI):
        limits = c.uni if kind == codes.MAX_STREAMS_UNI else c.bidi
        return bytes((kind,)) + varint(limits.grant())
    if kind in (codes.STREAMS_BLOCKED_BIDI, codes.STREAMS_BLOCKED_UNI):
        limits = c.uni if kind == codes.STREAMS_BLOCKED_UNI else c.bidi
        return bytes((kind,)) + varint(limits.peer_allows) if limits.is_blocked else None
    if kind == codes.DATA_BLOCKED:
        is_blocked = c.data_sent >= c.peer_max_data
        return bytes((kind,)) + varint(c.peer_max_data) if is_blocked else None
    if kind == codes.STREAM_DATA_BLOCKED:
        half = frame[1]
        if half.reset_code is not None or half.offset < half.limit or not half.queued:
            return None
        return bytes((kind,)) + varint(half.id) + varint(half.limit)
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
        half = next_half(c)
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
            offset, piece, fin = take(c, half, budget - used - _MAX_STREAM_HEAD)
            kind = codes.STREAM | 0x02 | (0x04 if offset else 0) | (0x01 if fin else 0)
            head = bytes((kind,)) + varint(half.id)
            if offset:
                head += varint(offset)
            head += varint(len(piece))
            parts.append(head)
            parts.append(bytes(piece))
            frames.append((codes.STREAM, half, offset, piece, fin))
            used += len(head) + len(piece)
        rotate(c, half)
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
    count_sent(c, path, len(packet), 1, now)
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
    c.packet_bytes_sent += len(packet)
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
