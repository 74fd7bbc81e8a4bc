"""Variable-length integers, acknowledgement frames and the small control frames of 1-RTT packets.

Sources: RFC 9000 sections 16 and 19. Readers take a buffer and a position and return the value with
the next position; anything that does not fit raises FRAME_ENCODING_ERROR.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

from dialkey.quic import codes
from dialkey.quic.codes import TransportError

VARINT_MAX = (1 << 62) - 1
_MASKS = (0x3F, 0x3FFF, 0x3FFFFFFF, VARINT_MAX)
_U16 = Struct(">H").pack
_U32 = Struct(">I").pack
_U64 = Struct(">Q").pack

MAX_ACK_RANGES = 64
"""Ranges written into one acknowledgement, and read from one: the same number as in iroh."""


def varint(value: int) -> bytes:
    """Encode `value` (0 .. 2^62-1) in the shortest form."""
    if value < 0x40:
        return bytes((value,))
    if value < 0x4000:
        return _U16(value | 0x4000)
    if value < 0x40000000:
        return _U32(value | 0x80000000)
    return _U64(value | 0xC000000000000000)


def read_varint(data: bytes, pos: int) -> tuple[int, int]:
    """Read one integer at `pos`; return it and the position behind it."""
    try:
        first = data[pos]
    except IndexError:
        raise _cut_off() from None
    if first < 0x40:
        return first, pos + 1
    size = first >> 6
    end = pos + (1 << size)
    if end > len(data):
        raise _cut_off()
    return int.from_bytes(data[pos:end], "big") & _MASKS[size], end


def read_bytes(data: bytes, pos: int, length: int) -> tuple[bytes, int]:
    """Read `length` bytes at `pos`."""
    end = pos + length
    if end > len(data):
        raise _cut_off()
    return data[pos:end], end


def _cut_off() -> TransportError:
    return TransportError(codes.FRAME_ENCODING_ERROR, "a frame is cut off")


def encode_ack_body(ranges: Iterable[tuple[int, int]], delay_us: int) -> bytes:
    """Encode largest, delay (exponent 3) and ranges of an ACK frame.

    Args:
        ranges: at most MAX_ACK_RANGES pairs (first, one past the last), newest first, not empty.
        delay_us: time since the largest one arrived.
    """
    it = iter(ranges)
    start, stop = next(it)
    rest = list(it)
    out = [varint(stop - 1), varint(delay_us >> 3), varint(len(rest)), varint(stop - 1 - start)]
    for low, high in rest:
        out.append(varint(start - high - 1))
        out.append(varint(high - 1 - low))
        start = low
    return b"".join(out)


def read_ack_body(data: bytes, pos: int) -> tuple[list[tuple[int, int]], int, int]:
    """Read what `encode_ack_body` writes.

    Returns:
        (ranges newest first as (first, one past the last), delay in microseconds, next position)
    """
    largest, pos = read_varint(data, pos)
    delay, pos = read_varint(data, pos)
    count, pos = read_varint(data, pos)
    length, pos = read_varint(data, pos)
    low = largest - length
    ranges = [(low, largest + 1)]
    # A packet cannot hold more ranges than it has bytes, so the loop is linear in the input.
    for _ in range(count):
        gap, pos = read_varint(data, pos)
        length, pos = read_varint(data, pos)
        high = low - gap - 1
        low = high - length - 1
        ranges.append((low, high))
    if low < 0:
        raise TransportError(codes.FRAME_ENCODING_ERROR, "an acknowledgement below zero", codes.ACK)
    return ranges, delay << 3, pos


def encode_connection_close(
    error_code: int, reason: bytes, *, is_application: bool, frame_type: int = 0
) -> bytes:
    """Encode CONNECTION_CLOSE; the reason is cut so that it fits one packet."""
    reason = reason[:1000]
    if is_application:
        head = bytes((codes.APPLICATION_CLOSE,)) + varint(error_code)
    else:
        head = bytes((codes.CONNECTION_CLOSE,)) + varint(error_code) + varint(frame_type)
    return head + varint(len(reason)) + reason
