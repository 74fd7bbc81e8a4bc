"""Opening 1-RTT packets and applying their frames to a connection.

Packets come in batches, as the kernel hands them over. Most batches of bulk data are runs (`runs`) and
are taken in as one. For any other, header protection is removed by one call of the cipher; then each
packet is opened and its frames applied, STREAM frames first among the tests because nearly all frames
are that. Frames about streams: `streams.inbound`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag

from dialkey import limits
from dialkey.quic import codes, events
from dialkey.quic.codes import CID_LENGTH, TransportError
from dialkey.quic.packets import runs
from dialkey.quic.packets.frames import read_ack_body, read_bytes, read_varint
from dialkey.quic.packets.protection import KeyUpdateRefused
from dialkey.quic.packets.runs import expand_number
from dialkey.quic.paths import multipath
from dialkey.quic.paths.mtu import BASE_BYTES
from dialkey.quic.paths.path import MAX_PENDING_RESPONSES, Address, Path, PeerCid
from dialkey.quic.streams.inbound import (
    on_blocked,
    on_datagram,
    on_max_data,
    on_max_stream_data,
    on_max_streams,
    on_reset_stream,
    on_stop_sending,
    on_stream,
)

if TYPE_CHECKING:
    from dialkey.quic.connection import Connection

_NUMBER_AT = 1 + CID_LENGTH
_SAMPLE_AT = _NUMBER_AT + 4
_MIN_PACKET = _SAMPLE_AT + 16
_VAIN_TRIES = 3
"""Each opens packets to no avail; what a peer can make us do twice must be bounded."""
_NON_PROBING = 1
_ELICITING = 2
_DATA = 4
_STREAM_FRAME = _NON_PROBING | _ELICITING | _DATA

MAX_ACK_DELAY_S = 0.025


def receive_packets(
    c: Connection, data: memoryview, segment: int, remote: Address, now: float
) -> None:
    """Open all packets of a batch from one address.

    Raises:
        TransportError: the peer broke a rule.
    """
    protection = c.protection
    assert protection is not None
    if segment >= BASE_BYTES and len(data) >= 2 * segment:
        data = data[_receive_runs(c, data, segment, remote, now) :]
        if not data:
            return
    end = len(data)
    # A last piece too short to be a packet is left out.
    starts = [at for at in range(0, end, segment) if min(segment, end - at) >= _MIN_PACKET]
    if not starts:
        c.packets_undecryptable += 1
        return
    samples = b"".join([data[at + _SAMPLE_AT : at + _MIN_PACKET] for at in starts])
    masks = protection.recv_header.masks(samples)
    mask_at = 0
    for at in starts:
        cid = bytes(data[at + 1 : at + _NUMBER_AT])
        place = c.cids.get(cid)
        path = None
        if place is not None:
            path = c.paths.get(place[0])
            if path is None and not c.is_client:
                # The first packet of a path that the client opens, if it is authentic.
                path = c.new_path(c.cid_sets[place[0]], remote, validated=False)
        if path is not None and not (data[at] & 0x80):
            packet = data[at : min(at + segment, end)]
            _receive_packet(c, path, cid, packet, masks[mask_at : mask_at + 5], remote, now)
            if c.close_reason is not None:
                return
        mask_at += 16


def _receive_runs(
    c: Connection, data: memoryview, segment: int, remote: Address, now: float
) -> int:
    """Take in what is runs at the start of a batch; return how many bytes those are."""
    tries = _VAIN_TRIES
    at = 0
    count = len(data) // segment
    while count >= 2 and tries:
        taken = _receive_run(c, data[at : at + count * segment], segment, remote, now)
        if taken:
            at += taken * segment
            count = (len(data) - at) // segment
        else:
            # Something is missing in it, or another stream's; its first half may still be a run.
            tries -= 1
            count //= 2
    return at


def _receive_run(c: Connection, data: memoryview, segment: int, remote: Address, now: float) -> int:
    """Take the full packets at the start of a batch in, if they are a run; return how many those are.

    It leaves the connection as `_receive_packet` does, called for each of them. Whatever is in any way
    unusual is left to that, and then nothing has changed.
    """
    protection = c.protection
    assert protection is not None
    place = c.cids.get(bytes(data[1:_NUMBER_AT]))
    path = c.paths.get(place[0]) if place is not None else None
    if (
        path is None
        or (remote is not path.remote and remote != path.remote)
        or path.parked
        or protection.awaits_confirmation
        or c.qlog is not None
    ):
        return 0
    count = min(len(data) // segment, runs.MOST)
    batch, received = data[: count * segment], path.received
    run = protection.recv_run.open_run(
        batch, segment, path.id, protection.recv_phase, received.largest + 1
    )
    if run is None:
        return 0
    number, stream_id, offset, piece = run
    half = c.recv_halves.get(stream_id)
    if half is None or not half.takes(offset, len(piece)):
        return 0
    if c.data_received + max(0, offset + len(piece) - half.received) > c.max_data:
        return 0
    received.add_run(number, number + count)
    c.packets_received += count
    path.largest_received_time = now
    path.count_received(remote, len(batch))
    path.last_received = now
    c.heard(now)
    on_stream(c, stream_id, offset, piece, False)
    _owe_acknowledgement(c, path, count, _STREAM_FRAME, now)
    return count


def _receive_packet(
    c: Connection,
    path: Path,
    cid: bytes,
    packet: memoryview,
    mask: bytes,
    remote: Address,
    now: float,
) -> None:
    if c.is_client and remote is not path.remote and remote != path.remote:
        # A client follows no server to another address (RFC 9000 section 9).
        return
    first = packet[0] ^ (mask[0] & 0x1F)
    length = (first & 3) + 1
    body = _NUMBER_AT + length
    truncated = 0
    for i in range(length):
        truncated = truncated << 8 | (packet[_NUMBER_AT + i] ^ mask[1 + i])
    received = path.received
    number = expand_number(truncated, 8 * length, received.largest + 1)
    if number in received:
        c.packets_duplicate += 1
        return
    aad = bytes((first,)) + cid + truncated.to_bytes(length, "big")
    plain = _open(c, path, first, number, packet[body:], aad, now)
    if plain is None:
        c.packets_undecryptable += 1
        return
    if first & 0x18:
        raise TransportError(codes.PROTOCOL_VIOLATION, "reserved bits must be zero")
    if not plain:
        raise TransportError(codes.PROTOCOL_VIOLATION, "a packet without frames")
    if path.id not in c.paths:
        multipath.add_path(c, path, now)
    newest = number > received.largest
    received.add(number)
    c.packets_received += 1
    if newest:
        path.largest_received_time = now
    path.count_received(remote, len(packet))
    if path.parked:
        # An answer, after all.
        path.unpark(path.remote, now)
    path.last_received = now
    c.heard(now)
    if c.qlog is not None:
        c.qlog.packet_received(path, number, len(packet), plain)
    kind = _apply_frames(c, path, plain, remote, now)
    if kind & _ELICITING:
        _owe_acknowledgement(c, path, 1, kind, now)
    moved = remote is not path.remote and remote != path.remote
    if moved and newest and kind & _NON_PROBING and not path.abandoned:
        _follow(c, path, remote, len(packet), now)


def _owe_acknowledgement(c: Connection, path: Path, packets: int, kind: int, now: float) -> None:
    path.last_activity = now
    if kind & _DATA and c.is_client:
        path.is_receiving = True
    path.ack_pending += packets
    if path.ack_at is None:
        srtt = path.recovery.srtt
        path.ack_at = now + min(MAX_ACK_DELAY_S, max(0.001, srtt / 4))


def _open(
    c: Connection, path: Path, first: int, number: int, body: memoryview, aad: bytes, now: float
) -> bytes | None:
    protection = c.protection
    assert protection is not None
    nonce_low = path.id << 64 | number
    if first >> 2 & 1 == protection.recv_phase:
        try:
            key = protection.recv
            plain = key.decrypt((key.iv ^ nonce_low).to_bytes(12, "big"), body, aad)
        except InvalidTag:
            return None
        if protection.awaits_confirmation:
            protection.confirm_update(now, c.key_keep_s)
        return plain
    try:
        plain = protection.open_other_phase(nonce_low, body, aad, now, c.key_keep_s, c.next_numbers)
    except InvalidTag:
        return None
    except KeyUpdateRefused as exc:
        raise TransportError(codes.KEY_UPDATE_ERROR, str(exc)) from exc
    if c.qlog is not None and first >> 2 & 1 == protection.recv_phase:
        c.qlog.keys_updated(protection.updates)
    return plain


def _follow(c: Connection, path: Path, remote: Address, size: int, now: float) -> None:
    """Follow a client that sends from another address (RFC 9000 section 9.3)."""
    previous = path.remote
    same_host = getattr(previous, "ip", None) is not None and getattr(
        previous, "ip", None
    ) == getattr(remote, "ip", None)
    path.migrate(remote, size, same_host=same_host, initial_rtt=c.config.initial_rtt_s)
    c.events.append(events.PathMigrated(path.id, previous, remote))
    if path.validated:
        # Somebody else's packet, or a network that was there for a moment, had led it away.
        c.events.append(events.PathValidated(path.id, remote))
    else:
        # A path that was never proved is asked until it is idle for too long; nothing to go back to.
        path.start_challenge(now, None if path.previous_remote is not None else float("inf"))
    c.rotate_cid(path)


def _apply_frames(c: Connection, path: Path, plain: bytes, remote: Address, now: float) -> int:
    """Apply all frames of a packet; return the flags _NON_PROBING, _ELICITING, _DATA."""
    pos = 0
    end = len(plain)
    kind = 0
    while pos < end:
        frame = plain[pos]
        if frame & 0xF8 == codes.STREAM:
            kind = _STREAM_FRAME
            stream_id, pos = read_varint(plain, pos + 1)
            offset = 0
            if frame & 4:
                offset, pos = read_varint(plain, pos)
            if frame & 2:
                length, pos = read_varint(plain, pos)
                stop = pos + length
                if stop > end:
                    raise TransportError(codes.FRAME_ENCODING_ERROR, "cut off", codes.STREAM)
            else:
                stop = end
            on_stream(c, stream_id, offset, plain[pos:stop], bool(frame & 1))
            pos = stop
        elif frame == codes.PADDING:
            pos = end - len(plain[pos:].lstrip(b"\0"))
        elif frame == codes.ACK or frame == codes.ACK_ECN:
            kind |= _NON_PROBING
            pos = _on_ack(c, 0, plain, pos + 1, frame == codes.ACK_ECN, now)
        elif frame == codes.PATH_ACK or frame == codes.PATH_ACK_ECN:
            kind |= _NON_PROBING
            path_id, pos = _read_path_id(c, plain, pos + 1, frame)
            pos = _on_ack(c, path_id, plain, pos, frame == codes.PATH_ACK_ECN, now)
        elif frame == codes.PING:
            kind |= _NON_PROBING | _ELICITING
            pos += 1
        else:
            frame, pos = read_varint(plain, pos)
            handler = _HANDLERS.get(frame)
            if handler is None:
                raise TransportError(codes.FRAME_ENCODING_ERROR, "unknown frame type", frame)
            probing = frame in _PROBING
            if frame != codes.CONNECTION_CLOSE and frame != codes.APPLICATION_CLOSE:
                kind |= _ELICITING
            if not probing:
                kind |= _NON_PROBING
            pos = handler(c, path, plain, pos, frame, remote, now)
            if c.close_reason is not None:
                return kind
    return kind


def _read_path_id(c: Connection, data: bytes, pos: int, frame: int) -> tuple[int, int]:
    """Read the path id with which every frame of the multipath extension begins."""
    if c.multipath is None:
        raise TransportError(codes.PROTOCOL_VIOLATION, "multipath was not negotiated", frame)
    path_id, pos = read_varint(data, pos)
    if path_id > multipath.MAX_PATH_ID:
        raise TransportError(codes.FRAME_ENCODING_ERROR, "path id too large", frame)
    return path_id, pos


# --- acknowledgements ---------------------------------------------------------------------------


def _on_ack(c: Connection, path_id: int, data: bytes, pos: int, ecn: bool, now: float) -> int:
    ranges, delay_us, pos = read_ack_body(data, pos)
    if ecn:
        for _ in range(3):
            _, pos = read_varint(data, pos)
    path = c.paths.get(path_id)
    if path is None:
        multipath.path_for_ack(c, path_id, codes.PATH_ACK)
        return pos
    if ranges[0][1] > path.next_number:
        raise TransportError(codes.PROTOCOL_VIOLATION, "an unsent packet was acknowledged")
    if path.skips.claimed(ranges):
        raise TransportError(
            codes.PROTOCOL_VIOLATION, "a packet was acknowledged whose number was left out"
        )
    exponent = c.peer_parameters.ack_delay_exponent
    delay_s = (delay_us >> 3 << exponent) / 1e6
    assert c.protection is not None
    if c.protection.awaits_acknowledgement:
        c.protection.on_acknowledged(path_id, ranges[0][1] - 1)
    if not c.confirmed:
        # Only a server that has confirmed can answer 1-RTT packets (RFC 9001 section 4.1.2).
        c.handshake_confirmed()
    if path.recovery.on_ack(ranges, delay_s, now):
        multipath.answered(c, path, now)
        if path.recovery.eliciting_in_flight:
            path.waiting_since = now
        if c.qlog is not None:
            c.qlog.metrics(path)
    return pos


# --- the connection itself ----------------------------------------------------------------------


def _on_crypto(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    """Read past a CRYPTO frame: session tickets, which we never asked for (docs/wire/quic.md 1.8)."""
    offset, pos = read_varint(data, pos)
    length, pos = read_varint(data, pos)
    if offset + length > limits.MAX_POST_HANDSHAKE_CRYPTO_BYTES:
        raise TransportError(codes.CRYPTO_BUFFER_EXCEEDED, "too much after the handshake", frame)
    _, pos = read_bytes(data, pos, length)
    return pos


def _on_new_token(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    length, pos = read_varint(data, pos)
    if not c.is_client or not length:
        raise TransportError(codes.PROTOCOL_VIOLATION, "a token out of place", frame)
    _, pos = read_bytes(data, pos, length)
    return pos


def _on_new_connection_id(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    path_id = 0
    if frame == codes.PATH_NEW_CONNECTION_ID:
        path_id, pos = _read_path_id(c, data, pos, frame)
    sequence, pos = read_varint(data, pos)
    retire_prior_to, pos = read_varint(data, pos)
    if pos >= len(data):
        raise TransportError(codes.FRAME_ENCODING_ERROR, "cut off", frame)
    length = data[pos]
    if not 1 <= length <= 20:
        raise TransportError(codes.FRAME_ENCODING_ERROR, "a connection id's length", frame)
    if length != codes.CID_LENGTH:
        raise TransportError(codes.PROTOCOL_VIOLATION, "connection ids must have 8 bytes", frame)
    cid, pos = read_bytes(data, pos + 1, length)
    token, pos = read_bytes(data, pos, codes.RESET_TOKEN_LENGTH)
    cids = c.cid_sets.get(path_id) or multipath.find_cids(c, path_id, frame)
    if cids is None or (c.multipath is not None and path_id in c.multipath.abandoned):
        return pos
    had_none = cids.peer.active is None
    cids.peer.add(PeerCid(sequence, cid, token), retire_prior_to)
    if cids.peer.retirements:
        c.announce_retirements(cids)
    elif had_none and path_id in c.paths:
        c.publish_reset_token(cids)
    if had_none and path_id:
        c.events.append(events.PathsAvailable())
    return pos


def _on_retire_connection_id(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    path_id = 0
    if frame == codes.PATH_RETIRE_CONNECTION_ID:
        path_id, pos = _read_path_id(c, data, pos, frame)
    sequence, pos = read_varint(data, pos)
    cids = c.cid_sets.get(path_id)
    if cids is None:
        return pos
    if sequence >= cids.next_sequence:
        raise TransportError(codes.PROTOCOL_VIOLATION, "an id never issued was retired", frame)
    for index, local in enumerate(cids.local):
        if local.sequence == sequence:
            del cids.local[index]
            del c.cids[local.cid]
            c.events.append(events.CidRetired(local.cid))
            if path_id in c.paths and not c.paths[path_id].abandoned:
                c.issue_cids(cids)
            break
    return pos


def _on_path_challenge(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    token, pos = read_bytes(data, pos, 8)
    if remote != path.remote:
        # Answers to other addresses are outside congestion control: one at a time, or a peer that
        # forges its address could have us flood whoever has it.
        for index, (_, other, _) in enumerate(path.responses):
            if other == remote:
                path.responses[index] = (token, remote, len(data))
                return pos
    if len(path.responses) < MAX_PENDING_RESPONSES:
        path.responses.append((token, remote, len(data)))
    return pos


def _on_path_response(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    token, pos = read_bytes(data, pos, 8)
    challenge = path.challenge
    if challenge is not None and token in challenge.tokens:
        path.prove()
        if path.waiting_since is not None:
            path.waiting_since = now
        c.events.append(events.PathValidated(path.id, path.remote))
    return pos


def _on_path_abandon(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    path_id, pos = _read_path_id(c, data, pos, frame)
    error_code, pos = read_varint(data, pos)
    multipath.on_abandon(c, path_id, error_code, now)
    return pos


def _on_path_status(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    path_id, pos = _read_path_id(c, data, pos, frame)
    sequence, pos = read_varint(data, pos)
    multipath.on_status(c, path_id, sequence, frame == codes.PATH_STATUS_AVAILABLE)
    return pos


def _on_max_path_id(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    value, pos = _read_path_id(c, data, pos, frame)
    multipath.on_max_path_id(c, value)
    return pos


def _on_paths_blocked(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    path_id, pos = _read_path_id(c, data, pos, frame)
    if frame == codes.PATHS_BLOCKED:
        multipath.on_blocked(c, path_id)
    else:
        sequence, pos = read_varint(data, pos)
        multipath.on_cids_blocked(c, path_id, sequence)
    return pos


def _on_close(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    code, pos = read_varint(data, pos)
    if frame == codes.CONNECTION_CLOSE:
        _, pos = read_varint(data, pos)
    length, pos = read_varint(data, pos)
    reason, pos = read_bytes(data, pos, length)
    c.peer_closed(code, reason, is_application=frame == codes.APPLICATION_CLOSE, now=now)
    return pos


def _on_handshake_done(
    c: Connection, path: Path, data: bytes, pos: int, frame: int, remote: Address, now: float
) -> int:
    if not c.is_client:
        raise TransportError(codes.PROTOCOL_VIOLATION, "HANDSHAKE_DONE from a client", frame)
    c.handshake_confirmed()
    return pos


_PROBING = frozenset(
    {
        codes.PATH_CHALLENGE,
        codes.PATH_RESPONSE,
        codes.NEW_CONNECTION_ID,
        codes.PATH_NEW_CONNECTION_ID,
    }
)
_HANDLERS = {
    codes.RESET_STREAM: on_reset_stream,
    codes.STOP_SENDING: on_stop_sending,
    codes.CRYPTO: _on_crypto,
    codes.NEW_TOKEN: _on_new_token,
    codes.MAX_DATA: on_max_data,
    codes.MAX_STREAM_DATA: on_max_stream_data,
    codes.MAX_STREAMS_BIDI: on_max_streams,
    codes.MAX_STREAMS_UNI: on_max_streams,
    codes.DATA_BLOCKED: on_blocked,
    codes.STREAM_DATA_BLOCKED: on_blocked,
    codes.STREAMS_BLOCKED_BIDI: on_blocked,
    codes.STREAMS_BLOCKED_UNI: on_blocked,
    codes.NEW_CONNECTION_ID: _on_new_connection_id,
    codes.RETIRE_CONNECTION_ID: _on_retire_connection_id,
    codes.PATH_ABANDON: _on_path_abandon,
    codes.PATH_STATUS_AVAILABLE: _on_path_status,
    codes.PATH_STATUS_BACKUP: _on_path_status,
    codes.PATH_NEW_CONNECTION_ID: _on_new_connection_id,
    codes.PATH_RETIRE_CONNECTION_ID: _on_retire_connection_id,
    codes.MAX_PATH_ID: _on_max_path_id,
    codes.PATHS_BLOCKED: _on_paths_blocked,
    codes.PATH_CIDS_BLOCKED: _on_paths_blocked,
    codes.PATH_CHALLENGE: _on_path_challenge,
    codes.PATH_RESPONSE: _on_path_response,
    codes.CONNECTION_CLOSE: _on_close,
    codes.APPLICATION_CLOSE: _on_close,
    codes.HANDSHAKE_DONE: _on_handshake_done,
    codes.DATAGRAM: on_datagram,
    codes.DATAGRAM_WITH_LENGTH: on_datagram,
}
