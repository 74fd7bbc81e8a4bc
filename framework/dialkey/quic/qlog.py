"""Traces of connections in the qlog format, one record per line, for viewers such as qvis.

aioquic writes the handshake's part of a trace and this module the rest: 1-RTT packets of all paths with
their frames, and the state of loss recovery. A trace is written as it happens, so a long connection
costs no memory, and a process that dies leaves everything up to then. Without a trace nothing is paid.

Source: draft-ietf-quic-qlog-main-schema, draft-ietf-quic-qlog-quic-events, JSON text sequences
(RFC 7464).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TextIO

from aioquic.quic.logger import QuicLogger, QuicLoggerTrace

from dialkey.quic import codes
from dialkey.quic.codes import TransportError
from dialkey.quic.packets.frames import read_ack_body, read_bytes, read_varint

if TYPE_CHECKING:
    from dialkey.quic.events import CloseReason
    from dialkey.quic.paths.path import Path
    from dialkey.quic.paths.recovery import Sent

QLOG_VERSION: Final = "0.3"
MAX_RANGES: Final = 8
"""How many acknowledged ranges are written; viewers draw the newest."""

_FIELDS: Final[dict[int, tuple[str, tuple[str, ...]]]] = {
    codes.PING: ("ping", ()),
    codes.RESET_STREAM: ("reset_stream", ("stream_id", "error_code", "final_size")),
    codes.STOP_SENDING: ("stop_sending", ("stream_id", "error_code")),
    codes.CRYPTO: ("crypto", ("offset", "length")),
    codes.NEW_TOKEN: ("new_token", ("length",)),
    codes.MAX_DATA: ("max_data", ("maximum",)),
    codes.MAX_STREAM_DATA: ("max_stream_data", ("stream_id", "maximum")),
    codes.MAX_STREAMS_BIDI: ("max_streams", ("maximum",)),
    codes.MAX_STREAMS_UNI: ("max_streams", ("maximum",)),
    codes.DATA_BLOCKED: ("data_blocked", ("limit",)),
    codes.STREAM_DATA_BLOCKED: ("stream_data_blocked", ("stream_id", "limit")),
    codes.STREAMS_BLOCKED_BIDI: ("streams_blocked", ("limit",)),
    codes.STREAMS_BLOCKED_UNI: ("streams_blocked", ("limit",)),
    codes.NEW_CONNECTION_ID: ("new_connection_id", ("sequence_number", "retire_prior_to")),
    codes.RETIRE_CONNECTION_ID: ("retire_connection_id", ("sequence_number",)),
    codes.PATH_CHALLENGE: ("path_challenge", ()),
    codes.PATH_RESPONSE: ("path_response", ()),
    codes.CONNECTION_CLOSE: ("connection_close", ("error_code", "trigger_frame_type", "length")),
    codes.APPLICATION_CLOSE: ("connection_close", ("error_code", "length")),
    codes.HANDSHAKE_DONE: ("handshake_done", ()),
    codes.DATAGRAM_WITH_LENGTH: ("datagram", ("length",)),
    codes.PATH_ABANDON: ("path_abandon", ("path_id", "error_code")),
    codes.PATH_STATUS_BACKUP: ("path_status_backup", ("path_id", "sequence_number")),
    codes.PATH_STATUS_AVAILABLE: ("path_status_available", ("path_id", "sequence_number")),
    codes.PATH_NEW_CONNECTION_ID: (
        "path_new_connection_id",
        ("path_id", "sequence_number", "retire_prior_to"),
    ),
    codes.PATH_RETIRE_CONNECTION_ID: ("path_retire_connection_id", ("path_id", "sequence_number")),
    codes.MAX_PATH_ID: ("max_path_id", ("maximum",)),
    codes.PATHS_BLOCKED: ("paths_blocked", ("maximum",)),
    codes.PATH_CIDS_BLOCKED: ("path_cids_blocked", ("path_id", "sequence_number")),
    codes.ADD_ADDRESS_V4: ("add_address", ("sequence_number",)),
    codes.ADD_ADDRESS_V6: ("add_address", ("sequence_number",)),
    codes.REACH_OUT_V4: ("reach_out", ("round",)),
    codes.REACH_OUT_V6: ("reach_out", ("round",)),
    codes.OBSERVED_ADDRESS_V4: ("observed_address", ("sequence_number",)),
    codes.OBSERVED_ADDRESS_V6: ("observed_address", ("sequence_number",)),
    codes.REMOVE_ADDRESS: ("remove_address", ("sequence_number",)),
}
"""Name and leading numbers of each frame; what follows them is left out of the trace."""

_NEW_CIDS: Final = frozenset({codes.NEW_CONNECTION_ID, codes.PATH_NEW_CONNECTION_ID})
_CHALLENGES: Final = frozenset({codes.PATH_CHALLENGE, codes.PATH_RESPONSE})
_ADDRESS_BYTES: Final = {
    codes.ADD_ADDRESS_V4: 6,
    codes.ADD_ADDRESS_V6: 18,
    codes.REACH_OUT_V4: 6,
    codes.REACH_OUT_V6: 18,
    codes.OBSERVED_ADDRESS_V4: 6,
    codes.OBSERVED_ADDRESS_V6: 18,
}
_ACKS: Final = frozenset({codes.ACK, codes.ACK_ECN, codes.PATH_ACK, codes.PATH_ACK_ECN})

FrameRecord = dict[str, Any]


def describe(payload: bytes) -> list[FrameRecord]:
    """Return what a payload holds, in qlog's words; it may be malformed."""
    frames: list[FrameRecord] = []
    pos = 0
    try:
        while pos < len(payload):
            pos = _describe_one(payload, pos, frames)
    except TransportError:
        frames.append({"frame_type": "unknown", "raw_frame_type": payload[pos]})
    return frames


def _describe_one(data: bytes, pos: int, frames: list[FrameRecord]) -> int:
    if data[pos] == codes.PADDING:
        end = len(data) - len(data[pos:].lstrip(b"\0"))
        frames.append({"frame_type": "padding", "length": end - pos})
        return end
    kind, pos = read_varint(data, pos)
    if kind & ~0x07 == codes.STREAM:
        return _describe_stream(kind, data, pos, frames)
    if kind in _ACKS:
        return _describe_ack(kind, data, pos, frames)
    if kind == codes.DATAGRAM:
        frames.append({"frame_type": "datagram", "length": len(data) - pos})
        return len(data)
    known = _FIELDS.get(kind)
    if known is None:
        # Nobody knows where it ends.
        frames.append({"frame_type": "unknown", "raw_frame_type": kind})
        return len(data)
    record: FrameRecord = {"frame_type": known[0]}
    for field in known[1]:
        record[field], pos = read_varint(data, pos)
    rest = record.get("length", 0)
    if kind in _CHALLENGES:
        rest = 8
    elif kind in _ADDRESS_BYTES:
        rest = _ADDRESS_BYTES[kind]
    elif kind in _NEW_CIDS:
        length, pos = read_bytes(data, pos, 1)
        rest = length[0] + codes.RESET_TOKEN_LENGTH
    body, pos = read_bytes(data, pos, rest)
    if record["frame_type"] == "connection_close":
        record["reason"] = body.decode("utf-8", "replace")
        record["error_space"] = "application" if kind == codes.APPLICATION_CLOSE else "transport"
    frames.append(record)
    return pos


def _describe_stream(kind: int, data: bytes, pos: int, frames: list[FrameRecord]) -> int:
    stream_id, pos = read_varint(data, pos)
    offset = 0
    if kind & 4:
        offset, pos = read_varint(data, pos)
    length = len(data) - pos
    if kind & 2:
        length, pos = read_varint(data, pos)
    _, end = read_bytes(data, pos, length)
    frames.append(_stream_record(stream_id, offset, length, bool(kind & 1)))
    return end


def _stream_record(stream_id: int, offset: int, length: int, fin: bool) -> FrameRecord:
    return {
        "frame_type": "stream",
        "stream_id": stream_id,
        "offset": offset,
        "length": length,
        "fin": fin,
    }


def _describe_ack(kind: int, data: bytes, pos: int, frames: list[FrameRecord]) -> int:
    record: FrameRecord = {"frame_type": "ack"}
    if kind in (codes.PATH_ACK, codes.PATH_ACK_ECN):
        record = {"frame_type": "path_ack"}
        record["path_id"], pos = read_varint(data, pos)
    ranges, delay_us, pos = read_ack_body(data, pos)
    if kind in (codes.ACK_ECN, codes.PATH_ACK_ECN):
        for _ in range(3):
            _, pos = read_varint(data, pos)
    record["ack_delay"] = delay_us / 1000
    record["acked_ranges"] = [[low, high - 1] for low, high in ranges[:MAX_RANGES]]
    frames.append(record)
    return pos


class Trace(QuicLoggerTrace):
    """The trace of one connection.

    Attributes:
        now: the time of what is logged next; the connection keeps it current.
    """

    def __init__(
        self, out: TextIO, *, is_client: bool, odcid: bytes, now: float, wall_clock_ms: float
    ) -> None:
        super().__init__(is_client=is_client, odcid=odcid)
        self._out = out
        self._started_at = now
        self.now = now
        self._vantage_point["name"] = "dialkey"
        self._write(
            {
                "qlog_version": QLOG_VERSION,
                "qlog_format": "JSON-SEQ",
                "trace": {
                    "common_fields": {
                        "ODCID": odcid.hex(),
                        "time_format": "relative",
                        "reference_time": wall_clock_ms,
                    },
                    "vantage_point": self._vantage_point,
                },
            }
        )

    def _write(self, record: dict[str, Any]) -> None:
        if not self._out.closed:
            self._out.write(f"\x1e{json.dumps(record, separators=(',', ':'))}\n")

    def log_event(self, *, category: str, event: str, data: dict[str, Any]) -> None:
        """Write one event."""
        time_ms = round((self.now - self._started_at) * 1000, 3)
        self._write({"time": time_ms, "name": f"{category}:{event}", "data": data})

    def close(self) -> None:
        """End the trace. Idempotent."""
        self._out.close()

    # --- 1-RTT packets --------------------------------------------------------------------------

    def packet_sent(self, path: Path, number: int, size: int, payload: bytes) -> None:
        self._packet("packet_sent", path, number, size, describe(payload))

    def packet_received(self, path: Path, number: int, size: int, payload: bytes) -> None:
        self._packet("packet_received", path, number, size, describe(payload))

    def burst_sent(self, path: Path, burst: Sent) -> None:
        """Log each packet of a burst of stream data."""
        assert burst.stream is not None
        left = len(burst.data)
        for index, number in enumerate(range(burst.number, burst.stop)):
            length = min(burst.room, left)
            left -= length
            record = _stream_record(
                burst.stream.id, burst.offset + index * burst.room, length, False
            )
            size = burst.size - burst.room + length
            self._packet("packet_sent", path, number, size, [record])

    def _packet(
        self, event: str, path: Path, number: int, size: int, frames: list[FrameRecord]
    ) -> None:
        data = {
            "header": {"packet_type": "1RTT", "packet_number": number},
            "raw": {"length": size},
            "path_id": path.id,
            "frames": frames,
        }
        self.log_event(category="transport", event=event, data=data)

    # --- recovery and the connection ------------------------------------------------------------

    def packets_lost(self, path: Path, record: Sent) -> None:
        for number in range(record.number, record.stop):
            header = {"packet_type": "1RTT", "packet_number": number}
            data = {"header": header, "path_id": path.id}
            self.log_event(category="recovery", event="packet_lost", data=data)

    def metrics(self, path: Path) -> None:
        """Write down the state of a path's recovery."""
        recovery = path.recovery
        data: dict[str, object] = {
            "path_id": path.id,
            "smoothed_rtt": round(recovery.srtt * 1000, 3),
            "latest_rtt": round(recovery.latest_rtt * 1000, 3),
            "rtt_variance": round(recovery.variance * 1000, 3),
            "congestion_window": recovery.cc.window,
            "bytes_in_flight": recovery.cc.in_flight,
            "pto_count": recovery.pto_count,
        }
        if recovery.min_rtt < float("inf"):
            data["min_rtt"] = round(recovery.min_rtt * 1000, 3)
        data.update(recovery.cc.trace())
        self.log_event(category="recovery", event="metrics_updated", data=data)

    def keys_updated(self, updates: int) -> None:
        self.log_event(
            category="security", event="key_updated", data={"key_type": "1rtt", "phase": updates}
        )

    def connection_closed(self, reason: CloseReason) -> None:
        data = {
            "owner": "remote" if reason.cause == "peer" else "local",
            "trigger": reason.cause,
            "application_code" if reason.is_application else "connection_code": reason.error_code,
            "reason": reason.reason.decode("utf-8", "replace"),
        }
        self.log_event(category="connectivity", event="connection_closed", data=data)


class Qlog(QuicLogger):
    """Opens a trace for each connection, and passes it to aioquic.

    Args:
        open_file: opens a text file for writing, given the trace's name without its suffix.
        wall_clock_ms: returns the time of day, milliseconds since 1970.
    """

    def __init__(
        self, open_file: Callable[[str], TextIO], wall_clock_ms: Callable[[], float]
    ) -> None:
        super().__init__()
        self._open_file = open_file
        self._wall_clock_ms = wall_clock_ms
        self.now = 0.0

    def start_trace(self, is_client: bool, odcid: bytes) -> Trace:
        """Start the trace of a connection; `now` is its time zero."""
        role = "client" if is_client else "server"
        out = self._open_file(f"{odcid.hex()}_{role}")
        return Trace(
            out,
            is_client=is_client,
            odcid=odcid,
            now=self.now,
            wall_clock_ms=self._wall_clock_ms(),
        )

    def end_trace(self, trace: QuicLoggerTrace) -> None:
        """Note that aioquic is done with the trace; the connection goes on writing."""
