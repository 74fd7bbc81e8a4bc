"""The frames that a client and a relay exchange once the client has proven its key.

One frame is one binary WebSocket message: a type (QUIC variable-length integer, in practice one
byte) and a body that ends with the message. Datagram frames carry the 32 bytes of the other
endpoint's key, an ECN byte, for batches a segment size, and then the datagrams back to back:

====  ============================  ===========  =================================================
type  frame                         direction    body
====  ============================  ===========  =================================================
4     datagram                      to relay     destination, ECN, one datagram
5     datagram batch                to relay     destination, ECN, segment size u16, datagrams
6, 7  the same                      to client    source instead of destination
8     EndpointGone                  to client    key
9     Ping                          both         8 bytes
10    Pong                          both         the 8 bytes of the ping
11    Health (version 1 only)       to client    UTF-8 text
12    Restarting                    to client    reconnect-in u32 ms, try-for u32 ms
13    Status (version 2 only)       to client    one byte
====  ============================  ===========  =================================================

Keys stay raw bytes here: a relay forwards them without looking at what they are.

Source: docs/wire/relay.md 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final, TypeAlias

import attrs

from dialkey.limits import MAX_RELAY_HEALTH_BYTES, MAX_RELAY_PAYLOAD_BYTES
from dialkey_relay.errors import RelayViolation, RelayWireError

__all__ = [
    "ClientFrame",
    "Datagrams",
    "EndpointGone",
    "FrameType",
    "Health",
    "Ping",
    "Pong",
    "RelayVersion",
    "Restarting",
    "ServerFrame",
    "Status",
    "StatusCode",
    "decode_client_frame",
    "decode_server_frame",
    "encode_from_relay",
    "encode_server_frame",
    "encode_to_relay",
    "normalise_type",
    "split_type",
    "to_batches",
]

KEY_BYTES: Final = 32
PING_BYTES: Final = 8

MAX_SENT_CONTENT: Final = MAX_RELAY_PAYLOAD_BYTES - 1 - KEY_BYTES - 1 - 2
"""A sent frame with its type fits the payload limit, so that also a strict decoder takes it."""


class RelayVersion(IntEnum):
    """A version of the relay protocol; the larger one is preferred."""

    V1 = 1
    V2 = 2

    @property
    def subprotocol(self) -> str:
        """The WebSocket sub-protocol that names it."""
        return f"iroh-relay-v{self.value}"


class FrameType(IntEnum):
    """The first number of every message, handshake included."""

    SERVER_CHALLENGE = 0
    CLIENT_AUTH = 1
    SERVER_CONFIRMS_AUTH = 2
    SERVER_DENIES_AUTH = 3
    CLIENT_TO_RELAY_DATAGRAM = 4
    CLIENT_TO_RELAY_BATCH = 5
    RELAY_TO_CLIENT_DATAGRAM = 6
    RELAY_TO_CLIENT_BATCH = 7
    ENDPOINT_GONE = 8
    PING = 9
    PONG = 10
    HEALTH = 11
    RESTARTING = 12
    STATUS = 13


class StatusCode(IntEnum):
    """What a Status frame says; other numbers are reserved and tolerated."""

    HEALTHY = 0
    SAME_ENDPOINT_ID_CONNECTED = 1
    RATE_LIMITED = 2


HEALTH_TEXTS: Final = {
    StatusCode.HEALTHY: "This connection is the active one of its endpoint id again.",
    StatusCode.SAME_ENDPOINT_ID_CONNECTED: (
        "Another connection with the same endpoint id took over; this one receives no datagrams."
    ),
}
"""What version 1 gets in place of a status; it has no words for being rate limited."""


@attrs.frozen
class Datagrams:
    """One or more datagrams to or from one endpoint.

    Attributes:
        peer: the key of the destination (to a relay) or source (from it), 32 bytes.
        content: the datagrams back to back.
        segment_size: the size of each datagram but the last, which may be shorter; None where the
            content is a single datagram.
        ecn: the code point of the IP header, 0 to 3; 0 where there is none.
    """

    peer: bytes
    content: bytes
    segment_size: int | None = None
    ecn: int = 0

    def split(self) -> list[bytes]:
        """Cut the content into its datagrams."""
        size = self.segment_size
        if size is None or size >= len(self.content):
            return [self.content] if self.content else []
        return [self.content[at : at + size] for at in range(0, len(self.content), size)]


@attrs.frozen
class EndpointGone:
    """An endpoint that had sent something to us has left this relay."""

    peer: bytes


@attrs.frozen
class Ping:
    """Ask for a `Pong` with the same eight bytes."""

    payload: bytes


@attrs.frozen
class Pong:
    """Answer a `Ping`."""

    payload: bytes


@attrs.frozen
class Health:
    """Version 1: a remark of the relay in English."""

    text: str


@attrs.frozen
class Restarting:
    """The relay restarts.

    Attributes:
        reconnect_in_ms: wait this long before connecting again.
        try_for_ms: keep trying for this long.
    """

    reconnect_in_ms: int
    try_for_ms: int


@attrs.frozen
class Status:
    """Version 2: how the relay sees this connection; `code` is one of `StatusCode`, or new."""

    code: int


ClientFrame: TypeAlias = Datagrams | Ping | Pong
ServerFrame: TypeAlias = Datagrams | EndpointGone | Ping | Pong | Health | Restarting | Status


# --- decoding -----------------------------------------------------------------------------------


def split_type(message: bytes) -> tuple[int, int]:
    """Read the type of a message; return it and where the body begins.

    Raises:
        RelayWireError: the message is empty, or ends inside its type.
    """
    if not message:
        raise RelayWireError("a relay message is empty")
    first = message[0]
    if first < 0x40:
        return first, 1
    length = 1 << (first >> 6)
    if len(message) < length:
        raise RelayWireError("a relay message ends inside its type")
    return int.from_bytes(message[:length], "big") & ((1 << (8 * length - 2)) - 1), length


def _checked(message: bytes) -> tuple[int, bytes]:
    frame_type, start = split_type(message)
    if len(message) - start > MAX_RELAY_PAYLOAD_BYTES:
        raise RelayWireError(
            f"a relay frame has {len(message) - start} bytes, more than {MAX_RELAY_PAYLOAD_BYTES}"
        )
    return frame_type, message[start:]


def normalise_type(message: bytes) -> bytes:
    """Write a message's type in one byte, if it is one that we know.

    Raises:
        RelayWireError: the message is empty, or ends inside its type.
        RelayViolation: the type is unknown.
    """
    frame_type, start = split_type(message)
    if frame_type > FrameType.STATUS:
        raise RelayViolation(f"relay frame type {frame_type} is unknown")
    return message if start == 1 else bytes((frame_type,)) + message[start:]


def _datagrams(body: bytes, *, batch: bool) -> Datagrams:
    head = KEY_BYTES + 1 + (2 if batch else 0)
    if len(body) < head:
        raise RelayWireError(f"a datagram frame has {len(body)} bytes, fewer than {head}")
    # A batch of segments of size 0 is how some senders write "not a batch".
    size = int.from_bytes(body[KEY_BYTES + 1 : head], "big") or None
    return Datagrams(body[:KEY_BYTES], body[head:], size, body[KEY_BYTES] & 3)


def _exactly(body: bytes, length: int, name: str) -> bytes:
    if len(body) != length:
        raise RelayWireError(f"a {name} frame has {len(body)} bytes, not {length}")
    return body


def decode_client_frame(message: bytes) -> ClientFrame:
    """Decode what a client sends to a relay after the handshake.

    Raises:
        RelayWireError: the message is malformed or too long.
        RelayViolation: the type is unknown, or a client may not send it.
    """
    frame_type, body = _checked(message)
    if frame_type == FrameType.CLIENT_TO_RELAY_DATAGRAM:
        return _datagrams(body, batch=False)
    if frame_type == FrameType.CLIENT_TO_RELAY_BATCH:
        return _datagrams(body, batch=True)
    if frame_type == FrameType.PING:
        return Ping(_exactly(body, PING_BYTES, "Ping"))
    if frame_type == FrameType.PONG:
        return Pong(_exactly(body, PING_BYTES, "Pong"))
    raise RelayViolation(f"a client sent relay frame type {frame_type}")


def decode_server_frame(message: bytes, version: RelayVersion) -> ServerFrame:
    """Decode what a relay sends to a client after the handshake.

    Raises:
        RelayWireError: the message is malformed or too long.
        RelayViolation: the type is unknown, or a relay may not send it in this version.
    """
    frame_type, body = _checked(message)
    if frame_type == FrameType.RELAY_TO_CLIENT_DATAGRAM:
        return _datagrams(body, batch=False)
    if frame_type == FrameType.RELAY_TO_CLIENT_BATCH:
        return _datagrams(body, batch=True)
    if frame_type == FrameType.ENDPOINT_GONE:
        return EndpointGone(_exactly(body, KEY_BYTES, "EndpointGone"))
    if frame_type == FrameType.PING:
        return Ping(_exactly(body, PING_BYTES, "Ping"))
    if frame_type == FrameType.PONG:
        return Pong(_exactly(body, PING_BYTES, "Pong"))
    if frame_type == FrameType.RESTARTING:
        _exactly(body, 8, "Restarting")
        return Restarting(int.from_bytes(body[:4], "big"), int.from_bytes(body[4:], "big"))
    if frame_type == FrameType.HEALTH and version is RelayVersion.V1:
        return _health(body)
    if frame_type == FrameType.STATUS and version is RelayVersion.V2:
        if not body:
            raise RelayWireError("a Status frame is empty")
        return Status(body[0])
    raise RelayViolation(f"a relay sent frame type {frame_type} in version {version.value}")


def _health(body: bytes) -> Health:
    try:
        return Health(body[:MAX_RELAY_HEALTH_BYTES].decode("utf-8", "strict"))
    except UnicodeDecodeError as error:
        if len(body) > MAX_RELAY_HEALTH_BYTES and error.start > MAX_RELAY_HEALTH_BYTES - 4:
            # We cut the text inside a character ourselves.
            return Health(body[: error.start].decode("utf-8"))
        raise RelayWireError("a Health frame is not UTF-8") from None


# --- encoding -----------------------------------------------------------------------------------


def _encode_datagrams(frame: Datagrams, plain: FrameType, batch: FrameType) -> bytes:
    if len(frame.peer) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(frame.peer)}")
    if not frame.content:
        raise ValueError("a datagram frame without content is never sent")
    if len(frame.content) > MAX_SENT_CONTENT:
        raise ValueError(f"a datagram frame carries at most {MAX_SENT_CONTENT} bytes")
    ecn = bytes((frame.ecn & 3,))
    if frame.segment_size is None:
        return bytes((plain,)) + frame.peer + ecn + frame.content
    size = frame.segment_size.to_bytes(2, "big")
    return bytes((batch,)) + frame.peer + ecn + size + frame.content


def encode_to_relay(frame: ClientFrame) -> bytes:
    """Encode what a client sends to a relay.

    Raises:
        ValueError: datagrams that are empty or too long, or a payload of a wrong size.
    """
    if isinstance(frame, Datagrams):
        return _encode_datagrams(
            frame, FrameType.CLIENT_TO_RELAY_DATAGRAM, FrameType.CLIENT_TO_RELAY_BATCH
        )
    return _encode_ping(frame)


def encode_from_relay(frame: Datagrams) -> bytes:
    """Encode datagrams that a relay delivers to a client.

    Raises:
        ValueError: the datagrams are empty or too long.
    """
    return _encode_datagrams(
        frame, FrameType.RELAY_TO_CLIENT_DATAGRAM, FrameType.RELAY_TO_CLIENT_BATCH
    )


def _encode_ping(frame: Ping | Pong) -> bytes:
    if len(frame.payload) != PING_BYTES:
        raise ValueError(f"a ping carries {PING_BYTES} bytes, not {len(frame.payload)}")
    return bytes((FrameType.PING if isinstance(frame, Ping) else FrameType.PONG,)) + frame.payload


def encode_server_frame(frame: ServerFrame) -> bytes:
    """Encode what a relay sends to a client.

    Raises:
        ValueError: a field is out of range.
    """
    match frame:
        case Datagrams():
            return encode_from_relay(frame)
        case EndpointGone():
            return bytes((FrameType.ENDPOINT_GONE,)) + frame.peer
        case Ping() | Pong():
            return _encode_ping(frame)
        case Health():
            return bytes((FrameType.HEALTH,)) + frame.text.encode()
        case Restarting():
            return (
                bytes((FrameType.RESTARTING,))
                + min(frame.reconnect_in_ms, 0xFFFFFFFF).to_bytes(4, "big")
                + min(frame.try_for_ms, 0xFFFFFFFF).to_bytes(4, "big")
            )
        case Status():
            return bytes((FrameType.STATUS, frame.code))


def to_batches(
    peer: bytes, datagrams: Sequence[bytes], *, ecn: int = 0, max_segments: int = 10
) -> Iterator[Datagrams]:
    """Put datagrams to one endpoint into as few frames as the format allows, keeping their order.

    A batch holds datagrams of one size and may end with one shorter one. Empty datagrams, and those
    that no frame can carry, are left out.

    Args:
        max_segments: datagrams in one frame; 10 is what iroh sends.
    """
    run: list[bytes] = []
    run_bytes = 0
    for datagram in datagrams:
        size = len(datagram)
        if not 0 < size <= MAX_SENT_CONTENT:
            continue
        if run and (
            size > len(run[0])
            or len(run[-1]) < len(run[0])
            or len(run) >= max_segments
            or run_bytes + size > MAX_SENT_CONTENT
        ):
            yield _batch(peer, run, ecn)
            run, run_bytes = [], 0
        run.append(datagram)
        run_bytes += size
    if run:
        yield _batch(peer, run, ecn)


def _batch(peer: bytes, run: list[bytes], ecn: int) -> Datagrams:
    if len(run) == 1:
        return Datagrams(peer, bytes(run[0]), None, ecn)
    return Datagrams(peer, b"".join(run), len(run[0]), ecn)
