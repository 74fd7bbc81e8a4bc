"""The three base-32 alphabets of the ecosystem, decoded strictly.

All of them are most significant bit first, five bits per character, without padding. *Strict*
means that every byte string has exactly one text: padding, white space, separators, impossible
lengths and non-zero spare bits in the last character are errors. (``base64.b32decode`` lets spare
bits pass.)

========================= ==================================== ==========================
functions                 alphabet                             case on input
========================= ==================================== ==========================
`encode`, `decode`        RFC 4648: ``a-z2-7``                 any
`encode_z32`, …           z-base-32                            lower only
`encode_hex`, …           RFC 4648 "extended hex": ``0-9a-v``  lower only
========================= ==================================== ==========================

Source: docs/wire/discovery.md 1.3.
"""

from __future__ import annotations

import base64
import re
from typing import Final

import attrs

from dialkey.errors import Base32Error

__all__ = [
    "Base32Error",
    "decode",
    "decode_hex",
    "decode_z32",
    "encode",
    "encode_hex",
    "encode_z32",
]


@attrs.frozen
class _Alphabet:
    name: str
    foreign: re.Pattern[str]
    encode_table: dict[int, int]
    decode_table: dict[int, int]

    @classmethod
    def of(cls, name: str, characters: str) -> _Alphabet:
        # `int(text, 32)` reads extended hex in C and in linear time, so that is what we decode to;
        # b32encode writes upper-case RFC 4648, so that is what we encode from.
        return cls(
            name,
            re.compile(f"[^{characters}]"),
            str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", characters),
            str.maketrans(characters, "0123456789abcdefghijklmnopqrstuv"),
        )


_RFC4648: Final = _Alphabet.of("base32", "abcdefghijklmnopqrstuvwxyz234567")
_Z32: Final = _Alphabet.of("z-base-32", "ybndrfg8ejkmcpqxot1uwisza345h769")
_HEX: Final = _Alphabet.of("base32hex", "0123456789abcdefghijklmnopqrstuv")

# Characters that do not complete a byte can only come from a text that was cut off.
_IMPOSSIBLE_REMAINDERS: Final = frozenset({1, 3, 6})


def _encode(data: bytes, alphabet: _Alphabet) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=").translate(alphabet.encode_table)


def _decode(text: str, alphabet: _Alphabet) -> bytes:
    if match := alphabet.foreign.search(text):
        raise Base32Error(
            f"character {match.start() + 1} is not in the {alphabet.name} alphabet",
            position=match.start(),
        )
    if len(text) % 8 in _IMPOSSIBLE_REMAINDERS:
        raise Base32Error(
            f"{len(text)} characters is not a possible length for {alphabet.name}",
            hint="the text may be cut off, or a character is missing or doubled",
        )
    if not text:
        return b""
    length = len(text) * 5 // 8
    spare_bits = len(text) * 5 % 8
    value = int(text.translate(alphabet.decode_table), 32)
    if value & ((1 << spare_bits) - 1):
        raise Base32Error(
            f"the last character carries bits that {alphabet.name} leaves zero",
            position=len(text) - 1,
            hint="the text may be cut off, or its last character mistyped",
        )
    return (value >> spare_bits).to_bytes(length, "big")


def encode(data: bytes) -> str:
    """Encode to lower-case RFC 4648 base32 without padding."""
    return _encode(data, _RFC4648)


def decode(text: str) -> bytes:
    """Decode RFC 4648 base32 without padding, in either case.

    Raises:
        Base32Error: the text has another character, an impossible length or spare bits set.
    """
    # Only ASCII letters are folded: `str.lower` would turn the Kelvin sign into a `k`.
    return _decode(text.lower() if text.isascii() else text, _RFC4648)


def encode_z32(data: bytes) -> str:
    """Encode to z-base-32, the form of DNS labels and pkarr paths."""
    return _encode(data, _Z32)


def decode_z32(text: str) -> bytes:
    """Decode z-base-32, lower case only.

    Raises:
        Base32Error: the text has another character, an impossible length or spare bits set.
    """
    return _decode(text, _Z32)


def encode_hex(data: bytes) -> str:
    """Encode to lower-case base32hex without padding, the form of TLS server names."""
    return _encode(data, _HEX)


def decode_hex(text: str) -> bytes:
    """Decode base32hex, lower case only.

    Raises:
        Base32Error: the text has another character, an impossible length or spare bits set.
    """
    return _decode(text, _HEX)
