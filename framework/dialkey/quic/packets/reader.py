"""Opening 1-RTT packets, and handing their frames to the components that they are about.

Packets come in batches, as the kernel delivers them. Most batches of bulk data are runs (`runs`) and are
read as one. For all others, one call of the cipher removes header protection from the whole batch; then
each packet is opened and its frames are read. STREAM frames are tested for first, because nearly all
frames are STREAM frames. Every other frame has a handler at its owner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from cryptography.exceptions import InvalidTag

from dialkey.quic import codes
from dialkey.quic.codes import CID_LENGTH, TransportError
from dialkey.quic.packets import runs
from dialkey.quic.packets.frames import read_ack_body, read_varint
from dialkey.quic.packets.protection import KeyUpdateRefused, PacketProtection
from dialkey.quic.packets.runs import expand_number
from dialkey.quic.paths.mtu import BASE_BYTES
from dialkey.quic.paths.path import Address, Path

if TYPE_CHECKING:
    from dialkey.quic.paths.table import Paths
    from dialkey.quic.qlog import Trace
    from dialkey.quic.streams.table import Streams

_NUMBER_AT: Final = 1 + CID_LENGTH
_SAMPLE_AT: Final = _NUMBER_AT + 4
_MIN_PACKET: Final = _SAMPLE_AT + 16
_VAIN_TRIES: Final = 3
"""Each failure costs two attempts to open a packet, so what a peer can make us repeat is bounded."""
_NON_PROBING: Final = 1
_ELICITING: Final = 2
_DATA: Final = 4
_STREAM_FRAME: Final = _NON_PROBING | _ELICITING | _DATA
_PROBING_FRAMES: Final = frozenset(
    {
        codes.PATH_CHALLENGE,
        codes.PATH_RESPONSE,
        codes.NEW_CONNECTION_ID,
        codes.PATH_NEW_CONNECTION_ID,
        codes.OBSERVED_ADDRESS_V4,
        codes.OBSERVED_ADDRESS_V6,
    }
)
_CLOSE_FRAMES: Final = frozenset({codes.CONNECTION_CLOSE, codes.APPLICATION_CLOSE})


class Arrival(NamedTuple):
    """How a packet came: on which path, from where, and when."""

    path: Path
    remote: Address
    now: float


Handler = Callable[[Any, bytes, int, int, Arrival], int]
"""A method that reads a frame: its owner, the packet's payload, the position behind the frame's type,
that type, and how the packet came. It returns the position behind the frame."""


class FrameReader(Protocol):
    """A component that reads frames."""

    @property
    def HANDLERS(self) -> Mapping[int, Handler]:
        """By type of frame."""


class Reader:
    """Opens the packets of one connection.

    Args:
        owners: what has handlers for frames.
        heard: called when something authentic arrived.
        confirm: called when an acknowledgement proves that the server has confirmed the handshake.

    Attributes:
        packets: how many were opened.
        undecryptable, duplicate: how many were thrown away.
    """

    def __init__(
        self,
        protection: PacketProtection,
        paths: Paths,
        streams: Streams,
        owners: tuple[FrameReader, ...],
        *,
        is_client: bool,
        heard: Callable[[float], None],
        confirm: Callable[[], None],
        qlog: Trace | None,
    ) -> None:
        self._protection = protection
        self._paths = paths
        self._streams = streams
        self._owners = owners
        self._is_client = is_client
        self._heard = heard
        self._confirm = confirm
        self._qlog = qlog
        self.packets = 0
        self.undecryptable = 0
        self.duplicate = 0

    def receive(self, data: memoryview, segment: int, remote: Address, now: float) -> None:
        """Open all packets of a batch from one address.

        Raises:
            TransportError: the peer broke a rule.
        """
        if segment >= BASE_BYTES and len(data) >= 2 * segment:
            data = data[self._receive_runs(data, segment, remote, now) :]
            if not data:
                return
        end = len(data)
        # A last piece that is too short to be a packet is skipped.
        starts = [at for at in range(0, end, segment) if min(segment, end - at) >= _MIN_PACKET]
        if not starts:
            self.undecryptable += 1
            return
        samples = b"".join([data[at + _SAMPLE_AT : at + _MIN_PACKET] for at in starts])
        masks = self._protection.recv_header.masks(samples)
        mask_at = 0
        for at in starts:
            cid = bytes(data[at + 1 : at + _NUMBER_AT])
            path = self._paths.find(cid, remote)
            if path is not None and not (data[at] & 0x80):
                packet = data[at : min(at + segment, end)]
                mask = masks[mask_at : mask_at + 5]
                self._receive_packet(path, cid, packet, mask, remote, now)
            mask_at += 16

    # --- runs -----------------------------------------------------------------------------------

    def _receive_runs(self, data: memoryview, segment: int, remote: Address, now: float) -> int:
        """Read the runs at the start of a batch; return how many bytes they take."""
        tries = _VAIN_TRIES
        at = 0
        count = len(data) // segment
        while count >= 2 and tries:
            taken = self._receive_run(data[at : at + count * segment], segment, remote, now)
            if taken:
                at += taken * segment
                count = (len(data) - at) // segment
            else:
                # A packet is missing, or is of another stream; the first half may still be a run.
                tries -= 1
                count //= 2
        return at

    def _receive_run(self, data: memoryview, segment: int, remote: Address, now: float) -> int:
        """Read the full packets at the start of a batch, if they are a run; return how many.

        The result is the same as calling `_receive_packet` for each of them. Anything unusual is left to
        that method, and then nothing has changed.
        """
        protection = self._protection
        path = self._paths.known(bytes(data[1:_NUMBER_AT]))
        if (
            path is None
            or (remote is not path.remote and remote != path.remote)
            or path.parked
            or protection.awaits_confirmation
            or self._qlog is not None
        ):
            return 0
        count = min(len(data) // segment, runs.MOST)
        batch = data[: count * segment]
        run = protection.recv_run.open_run(
            batch, segment, path.id, protection.recv_phase, path.received.largest + 1
        )
        if run is None:
            return 0
        number, stream_id, offset, piece = run
        if not self._streams.takes_run(stream_id, offset, len(piece)):
            return 0
        path.on_run(number, count, len(batch), now)
        self.packets += count
        self._heard(now)
        self._streams.on_data(stream_id, offset, piece, False)
        path.owe_acknowledgement(count, now, has_awaited_data=self._is_client)
        return count

    # --- single packets -------------------------------------------------------------------------

    def _receive_packet(
        self,
        path: Path,
        cid: bytes,
        packet: memoryview,
        mask: bytes,
        remote: Address,
        now: float,
    ) -> None:
        has_moved = remote is not path.remote and remote != path.remote
        if self._is_client and has_moved and not self._paths.traversal.lets_in(remote):
            return
        first = packet[0] ^ (mask[0] & 0x1F)
        length = (first & 3) + 1
        body = _NUMBER_AT + length
        truncated = 0
        for i in range(length):
            truncated = truncated << 8 | (packet[_NUMBER_AT + i] ^ mask[1 + i])
        number = expand_number(truncated, 8 * length, path.received.largest + 1)
        if number in path.received:
            self.duplicate += 1
            return
        aad = bytes((first,)) + cid + truncated.to_bytes(length, "big")
        plain = self._open(path.id << 64 | number, first >> 2 & 1, packet[body:], aad, now)
        if plain is None:
            self.undecryptable += 1
            return
        if first & 0x18:
            raise TransportError(codes.PROTOCOL_VIOLATION, "reserved bits must be zero")
        if not plain:
            raise TransportError(codes.PROTOCOL_VIOLATION, "a packet without frames")
        if path.id not in self._paths:
            self._paths.add(path, now)
        is_newest = path.on_packet(number, remote, len(packet), now)
        self.packets += 1
        self._heard(now)
        if self._qlog is not None:
            self._qlog.packet_received(path, number, len(packet), plain)
        kind = self._read_frames(plain, Arrival(path, remote, now))
        if kind & _ELICITING:
            has_data = bool(kind & _DATA) and self._is_client
            path.owe_acknowledgement(1, now, has_awaited_data=has_data)
        if self._is_client:
            # A client does not follow a server to another address (RFC 9000 section 9).
            return
        if is_newest and kind & _NON_PROBING and remote != path.remote and not path.abandoned:
            self._paths.follow(path, remote, len(packet), now)

    def _open(
        self, nonce_low: int, phase: int, body: memoryview, aad: bytes, now: float
    ) -> bytes | None:
        """Open the sealed part of a packet; None if it is not authentic."""
        protection, paths = self._protection, self._paths
        if phase == protection.recv_phase:
            try:
                key = protection.recv
                plain = key.decrypt((key.iv ^ nonce_low).to_bytes(12, "big"), body, aad)
            except InvalidTag:
                return None
            if protection.awaits_confirmation:
                protection.confirm_update(now, paths.key_keep_s)
            return plain
        try:
            plain = protection.open_other_phase(
                nonce_low, body, aad, now, paths.key_keep_s, paths.next_numbers
            )
        except InvalidTag:
            return None
        except KeyUpdateRefused as exc:
            raise TransportError(codes.KEY_UPDATE_ERROR, str(exc)) from exc
        if self._qlog is not None and phase == protection.recv_phase:
            self._qlog.keys_updated(protection.updates)
        return plain

    # --- frames ---------------------------------------------------------------------------------

    def _read_frames(self, plain: bytes, arrival: Arrival) -> int:
        """Read all frames of a packet; return the flags _NON_PROBING, _ELICITING, _DATA."""
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
                self._streams.on_data(stream_id, offset, plain[pos:stop], bool(frame & 1))
                pos = stop
            elif frame == codes.PADDING:
                pos = end - len(plain[pos:].lstrip(b"\0"))
            elif frame == codes.ACK or frame == codes.ACK_ECN:
                kind |= _NON_PROBING
                pos = self._on_ack(0, plain, pos + 1, frame == codes.ACK_ECN, arrival.now)
            elif frame == codes.PATH_ACK or frame == codes.PATH_ACK_ECN:
                kind |= _NON_PROBING
                path_id, pos = self._paths.frames.read_path_id(plain, pos + 1, frame)
                has_ecn = frame == codes.PATH_ACK_ECN
                pos = self._on_ack(path_id, plain, pos, has_ecn, arrival.now)
            elif frame == codes.PING:
                kind |= _NON_PROBING | _ELICITING
                pos += 1
            else:
                frame, pos = read_varint(plain, pos)
                if frame not in _CLOSE_FRAMES:
                    kind |= _ELICITING
                if frame not in _PROBING_FRAMES:
                    kind |= _NON_PROBING
                pos = self._read_control(plain, pos, frame, arrival)
        return kind

    def _read_control(self, plain: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        for owner in self._owners:
            handler = owner.HANDLERS.get(frame)
            if handler is not None:
                return handler(owner, plain, pos, frame, arrival)
        raise TransportError(codes.FRAME_ENCODING_ERROR, "unknown frame type", frame)

    def _on_ack(self, path_id: int, data: bytes, pos: int, has_ecn: bool, now: float) -> int:
        ranges, delay_us, pos = read_ack_body(data, pos)
        if has_ecn:
            for _ in range(3):
                _, pos = read_varint(data, pos)
        path = self._paths.for_ack(path_id, ranges)
        if path is None:
            return pos
        if self._protection.awaits_acknowledgement:
            self._protection.on_acknowledged(path_id, ranges[0][1] - 1)
        # Only a server that has confirmed can answer 1-RTT packets (RFC 9001 section 4.1.2).
        self._confirm()
        self._paths.on_ack(path, ranges, delay_us, now)
        return pos
