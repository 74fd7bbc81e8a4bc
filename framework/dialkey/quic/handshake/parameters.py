"""QUIC transport parameters as we send and read them.

Source: RFC 9000 section 18, docs/wire/quic.md 2. What a peer may not send is refused with
TRANSPORT_PARAMETER_ERROR; unknown parameters are skipped.
"""

from __future__ import annotations

import attrs

from dialkey.quic import codes
from dialkey.quic.codes import TransportError
from dialkey.quic.packets.frames import read_bytes, read_varint, varint

_ORIGINAL_DESTINATION_CID = 0x00
_MAX_IDLE_TIMEOUT = 0x01
_STATELESS_RESET_TOKEN = 0x02
_MAX_UDP_PAYLOAD_SIZE = 0x03
_INITIAL_MAX_DATA = 0x04
_INITIAL_MAX_STREAM_DATA_BIDI_LOCAL = 0x05
_INITIAL_MAX_STREAM_DATA_BIDI_REMOTE = 0x06
_INITIAL_MAX_STREAM_DATA_UNI = 0x07
_INITIAL_MAX_STREAMS_BIDI = 0x08
_INITIAL_MAX_STREAMS_UNI = 0x09
_ACK_DELAY_EXPONENT = 0x0A
_MAX_ACK_DELAY = 0x0B
_ACTIVE_CONNECTION_ID_LIMIT = 0x0E
_INITIAL_SOURCE_CID = 0x0F
_RETRY_SOURCE_CID = 0x10
_MAX_DATAGRAM_FRAME_SIZE = 0x20
_INITIAL_MAX_PATH_ID = 0x3E
_TRAVERSAL_ADDRESSES = 0x3D7F91120401
_ADDRESS_DISCOVERY = 0x9F81A176


@attrs.define
class TransportParameters:
    """One side's parameters; the defaults are those of RFC 9000 for a parameter that is absent.

    Attributes:
        traversal_addresses: how many candidates of the other side this one holds (docs/wire/quic.md 5.1);
            None without NAT traversal.
        address_discovery: 0 sends reports of addresses, 1 receives them, 2 does both; None does not.
    """

    max_idle_timeout_ms: int = 0
    max_udp_payload_size: int = 65527
    initial_max_data: int = 0
    initial_max_stream_data_bidi_local: int = 0
    initial_max_stream_data_bidi_remote: int = 0
    initial_max_stream_data_uni: int = 0
    initial_max_streams_bidi: int = 0
    initial_max_streams_uni: int = 0
    ack_delay_exponent: int = 3
    max_ack_delay_ms: int = 25
    active_connection_id_limit: int = 2
    max_datagram_frame_size: int = 0
    initial_max_path_id: int | None = None
    traversal_addresses: int | None = None
    address_discovery: int | None = None
    original_destination_cid: bytes | None = None
    initial_source_cid: bytes | None = None
    retry_source_cid: bytes | None = None
    stateless_reset_token: bytes | None = attrs.field(default=None, repr=False)

    def encode(self) -> bytes:
        """Encode what differs from the defaults."""
        out: list[bytes] = []

        def integer(key: int, value: int) -> None:
            body = varint(value)
            out.append(varint(key) + varint(len(body)) + body)

        def raw(key: int, value: bytes | None) -> None:
            if value is not None:
                out.append(varint(key) + varint(len(value)) + value)

        raw(_ORIGINAL_DESTINATION_CID, self.original_destination_cid)
        integer(_MAX_IDLE_TIMEOUT, self.max_idle_timeout_ms)
        raw(_STATELESS_RESET_TOKEN, self.stateless_reset_token)
        integer(_MAX_UDP_PAYLOAD_SIZE, self.max_udp_payload_size)
        integer(_INITIAL_MAX_DATA, self.initial_max_data)
        integer(_INITIAL_MAX_STREAM_DATA_BIDI_LOCAL, self.initial_max_stream_data_bidi_local)
        integer(_INITIAL_MAX_STREAM_DATA_BIDI_REMOTE, self.initial_max_stream_data_bidi_remote)
        integer(_INITIAL_MAX_STREAM_DATA_UNI, self.initial_max_stream_data_uni)
        integer(_INITIAL_MAX_STREAMS_BIDI, self.initial_max_streams_bidi)
        integer(_INITIAL_MAX_STREAMS_UNI, self.initial_max_streams_uni)
        integer(_ACTIVE_CONNECTION_ID_LIMIT, self.active_connection_id_limit)
        raw(_INITIAL_SOURCE_CID, self.initial_source_cid)
        raw(_RETRY_SOURCE_CID, self.retry_source_cid)
        integer(_MAX_DATAGRAM_FRAME_SIZE, self.max_datagram_frame_size)
        if self.initial_max_path_id is not None:
            integer(_INITIAL_MAX_PATH_ID, self.initial_max_path_id)
        if self.address_discovery is not None:
            integer(_ADDRESS_DISCOVERY, self.address_discovery)
        if self.traversal_addresses is not None:
            raw(_TRAVERSAL_ADDRESSES, bytes((self.traversal_addresses,)))
        return b"".join(out)


_INTEGERS = {
    _MAX_IDLE_TIMEOUT: "max_idle_timeout_ms",
    _MAX_UDP_PAYLOAD_SIZE: "max_udp_payload_size",
    _INITIAL_MAX_DATA: "initial_max_data",
    _INITIAL_MAX_STREAM_DATA_BIDI_LOCAL: "initial_max_stream_data_bidi_local",
    _INITIAL_MAX_STREAM_DATA_BIDI_REMOTE: "initial_max_stream_data_bidi_remote",
    _INITIAL_MAX_STREAM_DATA_UNI: "initial_max_stream_data_uni",
    _INITIAL_MAX_STREAMS_BIDI: "initial_max_streams_bidi",
    _INITIAL_MAX_STREAMS_UNI: "initial_max_streams_uni",
    _ACK_DELAY_EXPONENT: "ack_delay_exponent",
    _MAX_ACK_DELAY: "max_ack_delay_ms",
    _ACTIVE_CONNECTION_ID_LIMIT: "active_connection_id_limit",
    _MAX_DATAGRAM_FRAME_SIZE: "max_datagram_frame_size",
    _INITIAL_MAX_PATH_ID: "initial_max_path_id",
    _ADDRESS_DISCOVERY: "address_discovery",
}
_RAW = {
    _ORIGINAL_DESTINATION_CID: "original_destination_cid",
    _INITIAL_SOURCE_CID: "initial_source_cid",
    _RETRY_SOURCE_CID: "retry_source_cid",
    _STATELESS_RESET_TOKEN: "stateless_reset_token",
}


def decode(data: bytes) -> TransportParameters:
    """Read and check a peer's parameters.

    Raises:
        TransportError: TRANSPORT_PARAMETER_ERROR for anything malformed, repeated or out of range.
    """
    result = TransportParameters()
    seen: set[int] = set()
    pos = 0
    try:
        while pos < len(data):
            key, pos = read_varint(data, pos)
            length, pos = read_varint(data, pos)
            body, pos = read_bytes(data, pos, length)
            if key in seen:
                raise _bad(f"parameter 0x{key:x} comes twice")
            seen.add(key)
            if key in _INTEGERS:
                value, end = read_varint(body, 0)
                if end != len(body):
                    raise _bad(f"parameter 0x{key:x} has a wrong length")
                setattr(result, _INTEGERS[key], value)
            elif key == _TRAVERSAL_ADDRESSES:
                if len(body) != 1 or not body[0]:
                    raise _bad("the number of candidates is not one byte above zero")
                result.traversal_addresses = body[0]
            elif key in _RAW:
                setattr(result, _RAW[key], body)
    except TransportError as exc:
        if exc.error_code == codes.TRANSPORT_PARAMETER_ERROR:
            raise
        raise _bad("the parameters are cut off") from exc
    _check(result)
    return result


def _check(p: TransportParameters) -> None:
    if p.ack_delay_exponent > 20:
        raise _bad("ack_delay_exponent is over 20")
    if p.max_ack_delay_ms >= 1 << 14:
        raise _bad("max_ack_delay is too large")
    if p.active_connection_id_limit < 2:
        raise _bad("active_connection_id_limit is under 2")
    if p.max_udp_payload_size < 1200:
        raise _bad("max_udp_payload_size is under 1200")
    if max(p.initial_max_streams_bidi, p.initial_max_streams_uni) > codes.MAX_STREAM_COUNT:
        raise _bad("initial_max_streams is too large")
    if p.stateless_reset_token is not None and len(p.stateless_reset_token) != 16:
        raise _bad("stateless_reset_token is not 16 bytes")
    if p.initial_max_path_id is not None and p.initial_max_path_id > 0xFFFFFFFF:
        raise _bad("initial_max_path_id is too large")
    if p.address_discovery is not None and p.address_discovery > 2:
        raise _bad("address_discovery is none of 0, 1 and 2")


def _bad(reason: str) -> TransportError:
    return TransportError(codes.TRANSPORT_PARAMETER_ERROR, reason, codes.CRYPTO)
