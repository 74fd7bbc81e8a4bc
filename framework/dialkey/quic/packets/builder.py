"""Building 1-RTT packets: acknowledgements, control frames, stream data, probes.

Two shapes of packet. A *lone* packet holds whatever is due: an acknowledgement, control frames, pieces
of several streams; the components that these belong to write them. A *run* is full packets with
consecutive pieces of one stream (`runs`); the kernel cuts it apart (GSO). Bulk data goes in runs,
everything else in lone packets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dialkey.quic import codes
from dialkey.quic.codes import CID_LENGTH, TAG_LENGTH
from dialkey.quic.packets.control import ControlFrames, Payload
from dialkey.quic.packets.frames import encode_connection_close, varint
from dialkey.quic.packets.protection import PacketProtection
from dialkey.quic.paths.mtu import BASE_BYTES
from dialkey.quic.paths.recovery import Frame, Sent

if TYPE_CHECKING:
    from dialkey.quic.config import Send
    from dialkey.quic.events import CloseReason
    from dialkey.quic.paths.path import Address, Path
    from dialkey.quic.paths.table import Paths
    from dialkey.quic.qlog import Trace
    from dialkey.quic.streams.datagrams import Datagrams
    from dialkey.quic.streams.halves import SendHalf
    from dialkey.quic.streams.table import Streams

PACKET_OVERHEAD: Final = 1 + CID_LENGTH + 4 + TAG_LENGTH
MAX_RUN: Final = 44
"""Packets in one run: as many of 1452 bytes as fit into the 64 KiB that one system call can send."""
RUN_BYTES: Final = 65_535
SHORT_NUMBER_RANGE: Final = 1 << 14
_MIN_PAYLOAD: Final = 4
"""Shorter payloads are padded, so that the header-protection sample exists (RFC 9001 5.4.2)."""
_SMALLEST_PROBE: Final = 64
"""Size of a packet with a PATH_CHALLENGE or PATH_RESPONSE and no padding."""
_SHORT_HEAD: Final = 1 + CID_LENGTH + 2
_ROOM_LEFT: Final = 128
"""A lone packet with more space left than this took everything: no frame but a datagram is larger."""
_ACK_ONLY_PING_EVERY: Final = 24
"""After this many packets with nothing but an ACK with gaps, one asks to be acknowledged itself, so that
ranges which the peer has seen can be forgotten."""


class Builder:
    """Builds and sends the packets of one connection.

    Args:
        asked: called when something was sent that the peer must answer.
        update_keys: called when the keys have sealed enough.

    Attributes:
        bytes_sent: in whole datagrams.
        pacing_at: when the pacer allows more; None while it holds nothing back.
    """

    def __init__(
        self,
        protection: PacketProtection,
        paths: Paths,
        streams: Streams,
        datagrams: Datagrams,
        control: ControlFrames,
        *,
        asked: Callable[[float], None],
        update_keys: Callable[[float], object],
        qlog: Trace | None,
    ) -> None:
        self._protection = protection
        self._paths = paths
        self._streams = streams
        self._datagrams = datagrams
        self._control = control
        self._asked = asked
        self._update_keys = update_keys
        self._qlog = qlog
        self._ack_only_packets = 0
        self.bytes_sent = 0
        self.pacing_at: float | None = None

    # --- what leaves now ------------------------------------------------------------------------

    def flush(self, now: float, send: Send, *, may_probe_mtu: bool) -> None:
        """Send everything that may leave now."""
        self.pacing_at = None
        selected = self._paths.use()
        for path in self._paths.values():
            cid = path.cid
            if cid is not None and not path.abandoned and not path.parked:
                self._flush_path(path, cid, path is selected, now, send)
                if may_probe_mtu:
                    self._send_mtu_probe(path, cid, now, send)

    def _flush_path(
        self, path: Path, cid: bytes, carries_data: bool, now: float, send: Send
    ) -> None:
        """Send everything that may leave on a path now.

        Args:
            carries_data: whether this path carries what is not bound to a particular path.
        """
        if path.responses:
            self._send_responses(path, cid, now, send)
        if path.challenge is not None and now >= path.challenge.next_at:
            self._send_challenge(path, cid, now, send)
        recovery = path.recovery
        if not self._has_work(path, carries_data, now):
            if recovery.cc.available >= path.mtu.current:
                recovery.limited_by_app()
            return
        rate = recovery.cc.pacing_rate(recovery.srtt)
        allowance = recovery.pacer.allowance(now, rate)
        while True:
            size = path.mtu.current
            room = recovery.cc.available
            if not path.validated:
                room = min(room, path.amplification_room())
            paced = allowance <= 0
            # Congestion does not hold probes back, but an unvalidated address does.
            may_probe = path.probes_pending > 0 and (
                path.validated or path.amplification_room() >= size
            )
            may_send_data = (room >= size and not paced) or may_probe
            half = self._streams.next_half() if may_send_data and carries_data else None
            if half is not None and not may_probe:
                # What the pacer allows at once: more would be a queue for everybody who shares the link.
                most = min(room, max(int(allowance), 2 * size))
                used = self._try_run(path, half, cid, most, now, send)
                if used:
                    allowance -= used
                    recovery.pacer.spend(used)
                    continue
            used = self._send_lone(path, cid, size, may_send_data, carries_data, now, send)
            if not used:
                if paced and carries_data and self._has_more:
                    self._pace(recovery.pacer.next_time(now, rate))
                elif may_send_data:
                    recovery.limited_by_app()
                break
            allowance -= used
            recovery.pacer.spend(used)
            if used + _ROOM_LEFT < size and not path.probes_pending and not self._datagrams:
                # There was nothing more to send, or it would be in this packet.
                recovery.limited_by_app()
                break

    def _has_work(self, path: Path, carries_data: bool, now: float) -> bool:
        """Whether a packet could be built now, congestion and pacing aside."""
        if path.ping_pending or path.probes_pending:
            return True
        if carries_data and (self._streams.scheduler or self._has_frames):
            return True
        return bool(self._paths.frames.acks_due(path, now, carries_data=carries_data))

    @property
    def _has_more(self) -> bool:
        return self._streams.next_half() is not None or self._has_frames

    @property
    def _has_frames(self) -> bool:
        """Whether anything other than stream data waits for the path that carries data."""
        return bool(self._control or self._streams.intake.has_updates or self._datagrams)

    def _pace(self, at: float) -> None:
        if self.pacing_at is None or at < self.pacing_at:
            self.pacing_at = at

    def _count(self, path: Path, size: int, packets: int, now: float) -> None:
        """Count what was sent, and change the keys if they have sealed enough."""
        self.bytes_sent += size
        path.count_sent(size)
        if self._protection.count_sealed(packets):
            self._update_keys(now)

    # --- runs -----------------------------------------------------------------------------------

    def _try_run(
        self, path: Path, half: SendHalf, cid: bytes, room: int, now: float, send: Send
    ) -> int:
        """Send a run of one stream, if at least two full packets of it wait; return its bytes."""
        size = path.mtu.current
        if half.reset_code is not None or self._control:
            return 0
        offset = half.retransmit[0][0] if half.retransmit else half.offset
        # One width of offset for the whole run, so that all packets hold the same amount.
        wide = offset + RUN_BYTES >= 1 << 30
        head = bytes((codes.STREAM | 0x04,)) + varint(half.id)
        per_packet = size - _SHORT_HEAD - TAG_LENGTH - len(head) - (8 if wide else 4)
        waiting = self._streams.scheduler.waiting_bytes(half)
        if waiting < 2 * per_packet:
            return 0
        if path.next_number - path.recovery.largest_acked > SHORT_NUMBER_RANGE:
            return 0
        # Whole packets only: the rest goes into a lone packet, together with other frames.
        count = min(waiting // per_packet, MAX_RUN, RUN_BYTES // size, room // size)
        if count < 2:
            return 0
        offset, data = self._streams.take_run(half, count * per_packet)
        count = -(-len(data) // per_packet)
        number = path.begin_run()
        protection = self._protection
        first = 0x41 | protection.send_phase << 2
        sealed = protection.send_run.seal_run(
            first, cid, path.id, number, head, offset, wide, data, size
        )
        path.take_numbers(count)
        used = len(sealed)
        record = Sent(number, number + count, now, size, used)
        record.owner = self._streams
        record.stream = half
        record.offset = offset
        record.room = per_packet
        record.data = data
        if self._qlog is not None:
            self._qlog.burst_sent(path, record)
        path.on_sent(record, now)
        self._count(path, used, count, now)
        self._asked(now)
        send(path.remote, memoryview(sealed), size)
        self._streams.had_turn(half)
        return used

    # --- lone packets ---------------------------------------------------------------------------

    def seal(self, path: Path, payload: bytes, cid: bytes) -> bytes:
        """Seal one packet with the next number of `path`."""
        protection = self._protection
        number = path.begin_run()
        path.take_numbers(1)
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
        if self._qlog is not None:
            self._qlog.packet_sent(path, number, len(masked) + len(body), payload)
        return masked + body

    def close(self, path: Path, reason: CloseReason) -> bytes:
        """Return a packet with CONNECTION_CLOSE."""
        payload = encode_connection_close(
            reason.error_code, reason.reason, is_application=reason.is_application
        )
        if path.received.largest >= 0:
            ack = self._paths.frames.encode_ack(path, path.largest_received_time)
            payload = ack + payload
        return self.seal(path, payload, path.cid or b"")

    def _emit(self, path: Path, packet: bytes, frames: list[Frame], now: float, send: Send) -> None:
        """Send a sealed packet that must be acknowledged, and take it into flight."""
        record = Sent(path.next_number - 1, path.next_number, now, len(packet), len(packet))
        record.frames = frames
        path.on_sent(record, now)
        self._count(path, len(packet), 1, now)
        self._asked(now)
        send(path.remote, packet, len(packet))

    def _send_lone(
        self,
        path: Path,
        cid: bytes,
        size: int,
        may_send_data: bool,
        carries_data: bool,
        now: float,
        send: Send,
    ) -> int:
        """Build and send one lone packet; return its size, or 0 if nothing was due."""
        wants = path.ping_pending or path.probes_pending > 0
        pending = carries_data and (bool(self._streams.scheduler) or self._has_frames)
        has_data = may_send_data and (wants or pending)
        path_frames = self._paths.frames
        acks = path_frames.acks_due(path, now, carries_data=carries_data)
        if not has_data and not acks:
            return 0
        if not acks and path.ack_pending:
            # Not due yet, but it costs nothing in a packet with data.
            acks = [path]
        payload = Payload(size - PACKET_OVERHEAD)
        for each in acks:
            payload.append(path_frames.encode_ack(each, now))
        needed = payload.used + PACKET_OVERHEAD
        if not has_data and not path.validated and path.amplification_room() < needed:
            # More data from there makes room, and sets the timer again.
            for each in acks:
                each.postpone_acknowledgement()
            return 0
        if has_data and carries_data:
            self._streams.queue_updates()
            self._control.write(payload)
            self._datagrams.write(payload)
            self._streams.write(payload)
        if wants and may_send_data and not payload.frames:
            payload.add(bytes((codes.PING,)), (path_frames, codes.PING))
        if not payload.frames:
            if not acks:
                return 0
            self._ack_only_packets += 1
            if path.received.has_gaps and self._ack_only_packets % _ACK_ONLY_PING_EVERY == 0:
                payload.add(bytes((codes.PING,)), (path_frames, codes.PING))
        for each in acks:
            each.acknowledged()
        packet = self.seal(path, b"".join(payload.parts), cid)
        if not payload.frames:
            self._count(path, len(packet), 1, now)
            send(path.remote, packet, len(packet))
            # Acknowledgements alone are not paced and end the loop: nothing else was due.
            return 0
        payload.frames.extend(
            (path_frames, codes.ACK, each, each.received.largest) for each in acks
        )
        path.on_probe_written()
        self._emit(path, packet, payload.frames, now, send)
        return len(packet)

    # --- probes and path validation -------------------------------------------------------------

    def _send_mtu_probe(self, path: Path, cid: bytes, now: float, send: Send) -> None:
        if not path.validated or path.recovery.cc.available < path.mtu.maximum:
            return
        size = path.mtu.next_probe(now)
        if not size:
            return
        payload = bytes((codes.PING,)) + bytes(size - 1 - _SHORT_HEAD - TAG_LENGTH)
        packet = self.seal(path, payload, cid)
        if len(packet) > size:
            # The packet number took four bytes.
            return
        path.mtu.on_probe_sent(size)
        record = Sent(path.next_number - 1, path.next_number, now, len(packet), len(packet))
        record.frames = []
        record.probe_size = size
        path.on_sent(record, now)
        self._count(path, len(packet), 1, now)
        send(path.remote, packet, len(packet))

    def _send_responses(self, path: Path, cid: bytes, now: float, send: Send) -> None:
        room = BASE_BYTES - _SHORT_HEAD - TAG_LENGTH
        while path.responses:
            token, remote, asked_with = path.responses[0]
            frame = bytes((codes.PATH_RESPONSE,)) + token
            if remote != path.remote:
                # That address is not validated: it gets at most three times what came from it.
                if not self._paths.has_proved(remote):
                    own = self._paths.traversal.token_for_answer(remote)
                    frame += bytes((codes.PATH_CHALLENGE,)) + own if own is not None else b""
                frame += bytes(max(0, min(room, 3 * asked_with) - len(frame)))
                self._send_off_path(self.seal(path, frame, cid), remote, send)
            elif path.recovery.cc.available < BASE_BYTES:
                return
            else:
                frame += bytes((codes.PING,))
                if path.validated or path.amplification_room() >= BASE_BYTES:
                    frame += self._paths.observed.report(remote)
                    frame += bytes(room - len(frame))
                elif path.amplification_room() < _SMALLEST_PROBE:
                    # The peer may ask again, and what it sends makes more room.
                    path.answer_none()
                    return
                packet = self.seal(path, frame, cid)
                owned = (self._paths.frames, codes.PATH_RESPONSE)
                self._emit(path, packet, [owned], now, send)
            path.on_challenge_answered()

    def probe(self, heard_bytes: int, now: float, send: Send) -> None:
        """Send the probes of NAT traversal that are due.

        Args:
            heard_bytes: how many bytes the peer has sent so far.
        """
        path = self._paths.for_probes
        if path is None or path.cid is None:
            return
        reached = [each.remote for each in self._paths.values() if each.works]
        probes = self._paths.traversal.take_probes(heard_bytes, now, reached=reached)
        for remote, token in probes:
            frame = bytes((codes.PATH_CHALLENGE,)) + token
            self._send_off_path(self.seal(path, frame, path.cid), remote, send)

    def _send_off_path(self, packet: bytes, remote: Address, send: Send) -> None:
        """Send a packet outside congestion control, to an address that is not the path's."""
        self.bytes_sent += len(packet)
        send(remote, packet, len(packet))

    def _send_challenge(self, path: Path, cid: bytes, now: float, send: Send) -> None:
        room = BASE_BYTES - _SHORT_HEAD - TAG_LENGTH
        frame = bytes((codes.PATH_CHALLENGE,)) + path.new_challenge_token(now)
        if path.validated or path.amplification_room() >= BASE_BYTES:
            frame += self._paths.observed.report(path.remote)
            frame += bytes(room - len(frame))
        elif path.amplification_room() < _SMALLEST_PROBE:
            return
        packet = self.seal(path, frame, cid)
        owned = (self._paths.frames, codes.PATH_CHALLENGE)
        self._emit(path, packet, [owned], now, send)
