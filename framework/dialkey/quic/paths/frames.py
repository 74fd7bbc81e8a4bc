"""Frames about paths and connection ids: read, written, acknowledged and lost.

Sources: RFC 9000 section 19, docs/wire/quic.md 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from dialkey.quic import codes, events
from dialkey.quic.codes import TransportError
from dialkey.quic.events import Event
from dialkey.quic.packets.frames import encode_ack_body, read_bytes, read_varint, varint
from dialkey.quic.paths.cids import PeerCid
from dialkey.quic.paths.multipath import MAX_PATH_ID
from dialkey.quic.paths.path import Path
from dialkey.quic.paths.recovery import Frame

if TYPE_CHECKING:
    from dialkey.quic.packets.reader import Arrival, Handler
    from dialkey.quic.paths.table import Paths

_PATH_FORMS: Final = {
    codes.NEW_CONNECTION_ID: codes.PATH_NEW_CONNECTION_ID,
    codes.RETIRE_CONNECTION_ID: codes.PATH_RETIRE_CONNECTION_ID,
}
_NEVER_AGAIN: Final = frozenset({codes.PING, codes.ACK, codes.PATH_CHALLENGE, codes.PATH_RESPONSE})


class PathFrames:
    """See the module. The state that they are about is in `Paths`."""

    def __init__(self, paths: Paths, emit: Callable[[Event], None]) -> None:
        self._paths = paths
        self._emit = emit

    # --- out ------------------------------------------------------------------------------------

    def encode(self, frame: Frame) -> bytes | None:
        """Write a frame with current values; None if it is no longer needed."""
        return self._ENCODERS[frame[1]](self, frame)

    def _encode_new_cid(self, frame: Frame) -> bytes | None:
        cids, local = frame[2], frame[3]
        if local not in cids.local or cids.id not in self._paths.ids.sets:
            return None
        body = varint(local.sequence) + b"\x00" + bytes((len(local.cid),)) + local.cid
        return b"".join((self._head(frame[1], cids.id), body, local.reset_token))

    def _encode_retire_cid(self, frame: Frame) -> bytes | None:
        cids = frame[2]
        if cids.id not in self._paths.ids.sets:
            return None
        return self._head(frame[1], cids.id) + varint(frame[3])

    def _head(self, kind: int, path_id: int) -> bytes:
        """Return the head of a frame about connection ids: with multipath it names the path."""
        if self._paths.multipath is None:
            return bytes((kind,))
        return varint(_PATH_FORMS[kind]) + varint(path_id)

    def _encode_abandon(self, frame: Frame) -> bytes:
        return varint(frame[1]) + varint(frame[2]) + varint(frame[3])

    def _encode_max_path_id(self, frame: Frame) -> bytes:
        return varint(frame[1]) + varint(self._paths.state_for(frame[1]).local_max)

    def _encode_paths_blocked(self, frame: Frame) -> bytes:
        return varint(frame[1]) + varint(frame[2])

    def _encode_cids_blocked(self, frame: Frame) -> bytes:
        return varint(frame[1]) + varint(frame[2]) + varint(0)

    def _encode_status(self, frame: Frame) -> bytes | None:
        path, sequence = frame[2], frame[3]
        if path.abandoned or sequence != path.status_sequence:
            return None
        return varint(frame[1]) + varint(path.id) + varint(sequence)

    _ENCODERS: ClassVar[Mapping[int, Callable[[PathFrames, Frame], bytes | None]]] = {
        codes.NEW_CONNECTION_ID: _encode_new_cid,
        codes.RETIRE_CONNECTION_ID: _encode_retire_cid,
        codes.PATH_ABANDON: _encode_abandon,
        codes.MAX_PATH_ID: _encode_max_path_id,
        codes.PATHS_BLOCKED: _encode_paths_blocked,
        codes.PATH_CIDS_BLOCKED: _encode_cids_blocked,
        codes.PATH_STATUS_AVAILABLE: _encode_status,
        codes.PATH_STATUS_BACKUP: _encode_status,
    }

    def encode_ack(self, path: Path, now: float) -> bytes:
        """Write an acknowledgement of all that arrived on a path."""
        delay_us = max(0, int((now - path.largest_received_time) * 1e6))
        body = encode_ack_body(path.received.ranges(), delay_us)
        if self._paths.multipath is None:
            return bytes((codes.ACK,)) + body
        return bytes((codes.PATH_ACK,)) + varint(path.id) + body

    def acks_due(self, path: Path, now: float, *, carries_data: bool) -> list[Path]:
        """Return the paths whose acknowledgements go into a packet of `path`; empty if none is due.

        Each path acknowledges on itself, which keeps round-trip times clean; what arrived on a path
        that cannot send is acknowledged on the one that carries data.
        """
        acks = [path] if path.ack_pending else []
        due = path.ack_is_due(now)
        if carries_data and self._paths.multipath is not None:
            for other in self._paths.values():
                is_stuck = other.abandoned or other.cid is None
                if other is not path and is_stuck and other.ack_pending:
                    acks.append(other)
                    due = due or other.ack_is_due(now)
        return acks if due else []

    def on_frame_acked(self, frame: Frame) -> None:
        """Note that a frame arrived."""
        if frame[1] == codes.ACK:
            frame[2].received.forget_below(frame[3])

    def on_frame_lost(self, frame: Frame) -> None:
        """Queue a lost frame again, if it still matters."""
        if frame[1] not in _NEVER_AGAIN:
            self._paths.queue(frame)

    # --- in -------------------------------------------------------------------------------------

    def read_path_id(self, data: bytes, pos: int, frame: int) -> tuple[int, int]:
        """Read the path id with which every frame of the multipath extension begins."""
        self._paths.state_for(frame)
        path_id, pos = read_varint(data, pos)
        if path_id > MAX_PATH_ID:
            raise TransportError(codes.FRAME_ENCODING_ERROR, "path id too large", frame)
        return path_id, pos

    def _on_new_connection_id(self, data: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        path_id = 0
        if frame == codes.PATH_NEW_CONNECTION_ID:
            path_id, pos = self.read_path_id(data, pos, frame)
        sequence, pos = read_varint(data, pos)
        retire_prior_to, pos = read_varint(data, pos)
        if pos >= len(data):
            raise TransportError(codes.FRAME_ENCODING_ERROR, "cut off", frame)
        length = data[pos]
        if not 1 <= length <= 20:
            raise TransportError(codes.FRAME_ENCODING_ERROR, "a connection id's length", frame)
        if length != codes.CID_LENGTH:
            raise TransportError(
                codes.PROTOCOL_VIOLATION, "connection ids must have 8 bytes", frame
            )
        cid, pos = read_bytes(data, pos + 1, length)
        token, pos = read_bytes(data, pos, codes.RESET_TOKEN_LENGTH)
        cids = self._paths.cids_for(path_id, frame)
        if cids is not None:
            new = PeerCid(sequence, cid, token)
            in_use = path_id in self._paths
            had_none = self._paths.ids.take(cids, new, retire_prior_to, in_use=in_use)
            if had_none and path_id:
                self._emit(events.PathsAvailable())
        return pos

    def _on_retire_connection_id(self, data: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        path_id = 0
        if frame == codes.PATH_RETIRE_CONNECTION_ID:
            path_id, pos = self.read_path_id(data, pos, frame)
        sequence, pos = read_varint(data, pos)
        cids = self._paths.ids.retire(path_id, sequence)
        path = self._paths.get(path_id)
        if cids is not None and path is not None and not path.abandoned:
            self._paths.ids.issue(cids)
        return pos

    def _on_challenge(self, data: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        token, pos = read_bytes(data, pos, 8)
        arrival.path.on_challenge(token, arrival.remote, len(data))
        return pos

    def _on_response(self, data: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        token, pos = read_bytes(data, pos, 8)
        path = arrival.path
        if self._paths.traversal.on_response(token, arrival.remote):
            return pos
        if path.on_response(token, arrival.now):
            self._emit(events.PathValidated(path.id, path.remote))
        return pos

    def _on_abandon(self, data: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        path_id, pos = self.read_path_id(data, pos, frame)
        error_code, pos = read_varint(data, pos)
        self._paths.on_abandon(path_id, error_code, arrival.now)
        return pos

    def _on_status(self, data: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        path_id, pos = self.read_path_id(data, pos, frame)
        sequence, pos = read_varint(data, pos)
        # It may arrive before the first packet of its path.
        cids = self._paths.cids_for(path_id, frame)
        if cids is not None:
            cids.on_status(sequence, frame == codes.PATH_STATUS_AVAILABLE)
        return pos

    def _on_max_path_id(self, data: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        value, pos = self.read_path_id(data, pos, frame)
        self._paths.on_max_path_id(value)
        return pos

    def _on_paths_blocked(self, data: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        """Check PATHS_BLOCKED; the limit rises by itself when a path ends."""
        path_id, pos = self.read_path_id(data, pos, frame)
        if path_id > self._paths.state_for(frame).local_max:
            raise TransportError(codes.PROTOCOL_VIOLATION, "a path id beyond the limit", frame)
        return pos

    def _on_cids_blocked(self, data: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        """Issue a connection id, if none was for this path."""
        path_id, pos = self.read_path_id(data, pos, frame)
        sequence, pos = read_varint(data, pos)
        cids = self._paths.cids_for(path_id, frame)
        if cids is None:
            return pos
        if sequence > cids.next_sequence:
            raise TransportError(codes.PROTOCOL_VIOLATION, "an id never issued was awaited", frame)
        if not cids.next_sequence and path_id <= self._paths.state_for(frame).usable_max:
            self._paths.ids.issue(cids, 1)
        return pos

    HANDLERS: ClassVar[Mapping[int, Handler]] = {
        codes.NEW_CONNECTION_ID: _on_new_connection_id,
        codes.PATH_NEW_CONNECTION_ID: _on_new_connection_id,
        codes.RETIRE_CONNECTION_ID: _on_retire_connection_id,
        codes.PATH_RETIRE_CONNECTION_ID: _on_retire_connection_id,
        codes.PATH_CHALLENGE: _on_challenge,
        codes.PATH_RESPONSE: _on_response,
        codes.PATH_ABANDON: _on_abandon,
        codes.PATH_STATUS_AVAILABLE: _on_status,
        codes.PATH_STATUS_BACKUP: _on_status,
        codes.MAX_PATH_ID: _on_max_path_id,
        codes.PATHS_BLOCKED: _on_paths_blocked,
        codes.PATH_CIDS_BLOCKED: _on_cids_blocked,
    }
