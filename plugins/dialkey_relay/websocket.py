"""RFC 6455 framing, as lean as a relay needs it.

Why not the framing of the `websockets` package? It was measured: its sans-IO protocol takes 6 to 11
microseconds to read one frame and write another, this module 2 to 3. A relay does nothing else all
day. The C function that applies the mask is still theirs.

A relay frame is one binary message, so `FrameReader.feed` returns binary messages and puts what is
rare (pings, the close frame) aside. Text messages are skipped, as in iroh. There are no extensions.

Source: RFC 6455 section 5; docs/wire/relay.md 1.7.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from dialkey_relay.errors import RelayWireError

if TYPE_CHECKING:
    from collections.abc import Callable

    apply_mask: Callable[[bytes | bytearray | memoryview, bytes], bytes]
else:
    try:
        from websockets.speedups import apply_mask
    except ImportError:
        from websockets.utils import apply_mask

__all__ = [
    "BINARY",
    "CLOSE",
    "CLOSE_GOING_AWAY",
    "CLOSE_NORMAL",
    "PING",
    "PONG",
    "FrameReader",
    "WebSocketError",
    "apply_mask",
    "binary_header",
    "encode_close",
    "encode_frame",
]

CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

CLOSE_NORMAL: Final = 1000
CLOSE_GOING_AWAY: Final = 1001
CLOSE_PROTOCOL_ERROR: Final = 1002
CLOSE_TOO_BIG: Final = 1009

_FIN_BINARY: Final = 0x80 | BINARY
_MAX_CONTROL_BYTES: Final = 125
_MAX_HEADER_BYTES: Final = 14
_MAX_PINGS_AT_ONCE: Final = 16

_length16 = struct.Struct(">H").unpack_from
_length64 = struct.Struct(">Q").unpack_from
_header16 = struct.Struct(">BBH").pack
_header64 = struct.Struct(">BBQ").pack


class WebSocketError(RelayWireError):
    """The bytes are not WebSocket frames as this side may receive them.

    Attributes:
        close_code: the code of RFC 6455 for it.
    """

    code = "remote.wire.relay.websocket"

    def __init__(self, message: str, *, close_code: int = CLOSE_PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.close_code = close_code


def binary_header(length: int) -> bytes:
    """Return the header of an unmasked, unfragmented binary message."""
    if length < 126:
        return bytes((_FIN_BINARY, length))
    if length < 65536:
        return _header16(_FIN_BINARY, 126, length)
    return _header64(_FIN_BINARY, 127, length)


def encode_frame(opcode: int, payload: bytes, mask: bytes | None = None) -> bytes:
    """Encode one unfragmented frame.

    Args:
        mask: four unpredictable bytes where a client sends, None where a server does.
    """
    length = len(payload)
    masked = 0 if mask is None else 0x80
    if length < 126:
        header = bytes((0x80 | opcode, masked | length))
    elif length < 65536:
        header = _header16(0x80 | opcode, masked | 126, length)
    else:
        header = _header64(0x80 | opcode, masked | 127, length)
    if mask is None:
        return header + payload
    return header + mask + apply_mask(payload, mask)


def encode_close(code: int, mask: bytes | None = None) -> bytes:
    """Encode a close frame without a reason."""
    return encode_frame(CLOSE, code.to_bytes(2, "big"), mask)


class FrameReader:
    """Cut a byte stream into binary messages.

    Args:
        from_client: whether the bytes come from a client, whose frames must be masked; a server's
            must not be.
        limit: the longest message in bytes.

    Attributes:
        pings: payloads of received pings that want a pong each; the caller empties it.
        close_payload: the payload of the close frame, once it has come. What follows is ignored.
        skipped_texts: how many text messages were skipped.
    """

    __slots__ = (
        "_fragment_bytes",
        "_fragment_is_text",
        "_fragments",
        "_limit",
        "_mask_bit",
        "_pending",
        "close_payload",
        "pings",
        "skipped_texts",
    )

    def __init__(self, *, from_client: bool, limit: int) -> None:
        self._mask_bit = 0x80 if from_client else 0
        self._limit = limit
        # None rather than empty containers: an idle connection should cost little.
        self._pending: bytearray | None = None
        self._fragments: list[bytes] | None = None
        self._fragment_bytes = 0
        self._fragment_is_text = False
        self.pings: list[bytes] = []
        self.close_payload: bytes | None = None
        self.skipped_texts = 0

    def feed(self, data: memoryview) -> list[bytes]:
        """Take the next bytes and return the binary messages that are complete now.

        The memory behind `data` can be reused afterwards.

        Raises:
            WebSocketError: the peer breaks the rules; nothing more can be read.
        """
        messages: list[bytes] = []
        if self._pending is None:
            used = self._parse(data, messages)
            if used < len(data):
                self._pending = bytearray(data[used:])
            return messages
        pending = self._pending
        pending += data
        with memoryview(pending) as view:
            used = self._parse(view, messages)
        if used == len(pending):
            self._pending = None
        elif used:
            # A fresh object: `del pending[:used]` would keep the memory of the largest backlog.
            self._pending = pending[used:]
        return messages

    def _parse(self, data: memoryview, messages: list[bytes]) -> int:
        """Read whole frames; return how many bytes they took."""
        at = 0
        end = len(data)
        mask_bit = self._mask_bit
        while end - at >= 2:
            if self.close_payload is not None:
                return end
            first = data[at]
            second = data[at + 1]
            if second & 0x80 != mask_bit:
                raise WebSocketError("a frame is masked the wrong way")
            length = second & 0x7F
            body = at + 2
            if length == 126:
                if end - body < 2:
                    return at
                length = _length16(data, body)[0]
                body += 2
            elif length == 127:
                if end - body < 8:
                    return at
                length = _length64(data, body)[0]
                body += 8
            if length > self._limit:
                raise WebSocketError(
                    f"a frame of {length} bytes exceeds the limit of {self._limit}",
                    close_code=CLOSE_TOO_BIG,
                )
            if mask_bit:
                body += 4
            stop = body + length
            if stop > end:
                return at
            if mask_bit:
                payload = apply_mask(data[body:stop], bytes(data[body - 4 : body]))
            else:
                payload = bytes(data[body:stop])
            at = stop
            if first == _FIN_BINARY and self._fragments is None:
                messages.append(payload)
            else:
                self._unusual(first, payload, messages)
        return at

    def _unusual(self, first: int, payload: bytes, messages: list[bytes]) -> None:
        """Handle everything but a whole binary message."""
        if first & 0x70:
            raise WebSocketError("a frame uses an extension that was not negotiated")
        opcode = first & 0x0F
        final = bool(first & 0x80)
        if opcode in (CLOSE, PING, PONG):
            if not final or len(payload) > _MAX_CONTROL_BYTES:
                raise WebSocketError("a control frame is fragmented or too long")
            if opcode == CLOSE:
                if len(payload) == 1:
                    raise WebSocketError("a close frame ends inside its code")
                self.close_payload = payload
            elif opcode == PING:
                # RFC 6455 5.5.3: only the most recent ping needs an answer.
                if len(self.pings) >= _MAX_PINGS_AT_ONCE:
                    del self.pings[0]
                self.pings.append(payload)
            return
        if opcode in (TEXT, BINARY):
            if self._fragments is not None:
                raise WebSocketError("a message begins inside another one")
            self._fragments = []
            self._fragment_bytes = 0
            self._fragment_is_text = opcode == TEXT
        elif opcode != CONTINUATION:
            raise WebSocketError(f"opcode {opcode} is unknown")
        elif self._fragments is None:
            raise WebSocketError("a continuation has no beginning")
        self._collect(payload, final, messages)

    def _collect(self, payload: bytes, final: bool, messages: list[bytes]) -> None:
        fragments = self._fragments
        assert fragments is not None
        self._fragment_bytes += len(payload)
        if self._fragment_bytes > self._limit:
            raise WebSocketError(
                f"a message exceeds the limit of {self._limit} bytes", close_code=CLOSE_TOO_BIG
            )
        # Empty fragments are legal, endless and would cost a list item each.
        if payload and not self._fragment_is_text:
            fragments.append(payload)
        if not final:
            return
        self._fragments = None
        if self._fragment_is_text:
            self.skipped_texts += 1
        else:
            messages.append(b"".join(fragments))
