"""The part of the postcard encoding that the wire formats use.

Values follow one another without names, tags or padding; the reader has to know what comes next.
Integers are LEB128 varints, except a lone byte. Fixed arrays are their elements; strings, byte
strings and collections begin with a varint count; an enum begins with a varint index of 32 bits.

`Reader` never allocates by a declared length: it slices what has arrived, so a hostile count costs
an error and nothing else. Bytes after the last value are the caller's business: `Reader.finished`
tells, and iroh ignores them at the top level.

Source: docs/wire/discovery.md 3.
"""

from __future__ import annotations

from dialkey.errors import WireError

__all__ = ["Reader", "Writer"]


class Reader:
    """Read postcard values from the front of a buffer.

    Every method raises `WireError` where the bytes do not hold what was asked for; the position
    is then unspecified and the reader should be dropped.

    Args:
        data: the encoded bytes; they are copied once.
    """

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = bytes(data)
        self._position = 0

    @property
    def remaining(self) -> int:
        """The number of bytes not yet read."""
        return len(self._data) - self._position

    @property
    def finished(self) -> bool:
        """Whether all bytes have been read."""
        return self._position == len(self._data)

    def u8(self) -> int:
        """Read one byte as a number."""
        if self._position >= len(self._data):
            raise WireError("the data ends where one more byte was expected")
        value = self._data[self._position]
        self._position += 1
        return value

    def varint(self, bits: int = 64) -> int:
        """Read an unsigned varint of at most `bits` bits (16, 32 or 64).

        Encodings longer than needed are accepted up to the type's longest, as in iroh.
        """
        value = 0
        for shift in range(0, bits, 7):
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> bits:
                    break
                return value
        raise WireError(f"a varint exceeds {bits} bits")

    def take(self, count: int) -> bytes:
        """Read exactly `count` bytes."""
        if count < 0:
            raise ValueError("count is negative")
        if count > self.remaining:
            raise WireError(f"the data ends early: {count} bytes expected, {self.remaining} found")
        end = self._position + count
        value = self._data[self._position : end]
        self._position = end
        return value

    def count(self, limit: int) -> int:
        """Read the element count of a collection, refusing more than `limit`."""
        value = self.varint()
        if value > limit:
            raise WireError(f"a length of {value} exceeds the limit of {limit}")
        return value

    def byte_string(self, limit: int) -> bytes:
        """Read a length and that many bytes, refusing more than `limit`."""
        return self.take(self.count(limit))

    def string(self, limit: int) -> str:
        """Read a length in bytes and that much UTF-8, refusing more than `limit` bytes."""
        try:
            return self.byte_string(limit).decode("utf-8")
        except UnicodeDecodeError:
            raise WireError("a string is not UTF-8") from None

    def boolean(self) -> bool:
        """Read a truth value, one byte 00 or 01."""
        value = self.u8()
        if value > 1:
            raise WireError(f"a truth value is {value:#04x}, not 0 or 1")
        return value == 1

    def option(self) -> bool:
        """Read the head of an optional value; True means that the value follows."""
        return self.boolean()


class Writer:
    """Collect postcard values; `bytes(writer)` gives the encoding.

    Methods return the writer, so that calls can be chained. Values out of range are the caller's
    mistake and raise `ValueError`.
    """

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def __bytes__(self) -> bytes:
        return bytes(self._buffer)

    def __len__(self) -> int:
        return len(self._buffer)

    def u8(self, value: int) -> Writer:
        """Append one byte."""
        self._buffer.append(value)
        return self

    def varint(self, value: int) -> Writer:
        """Append an unsigned varint of at most 64 bits, in its shortest form."""
        if not 0 <= value < 1 << 64:
            raise ValueError("a varint holds 0 to 2**64 - 1")
        while value >= 0x80:
            self._buffer.append(value & 0x7F | 0x80)
            value >>= 7
        self._buffer.append(value)
        return self

    def raw(self, data: bytes | bytearray | memoryview) -> Writer:
        """Append bytes without a length."""
        self._buffer += data
        return self

    def byte_string(self, data: bytes | bytearray | memoryview) -> Writer:
        """Append a length in bytes and the bytes."""
        data = bytes(data)
        return self.varint(len(data)).raw(data)

    def string(self, text: str) -> Writer:
        """Append a text as length in bytes and UTF-8."""
        return self.byte_string(text.encode("utf-8"))

    def boolean(self, value: bool) -> Writer:
        """Append a truth value."""
        return self.u8(1 if value else 0)

    def option(self, present: bool) -> Writer:
        """Append the head of an optional value; where `present`, append the value next."""
        return self.u8(1 if present else 0)
