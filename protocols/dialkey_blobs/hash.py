"""Hashes of blobs and what a hash is of: raw bytes, or a sequence of further hashes."""

from __future__ import annotations

import enum
from typing import Final

import attrs
from blake3 import blake3

from dialkey.errors import InvalidInput
from dialkey.identity import base32

__all__ = ["EMPTY_HASH", "BlobFormat", "Hash", "HashAndFormat"]

_HEX_DIGITS: Final = frozenset("0123456789abcdef")


# A hash is a key in many tables.
@attrs.frozen(order=True, repr=False, cache_hash=True)
class Hash:
    """The BLAKE3 hash that names a blob.

    Hashes are ordered by their bytes. `str` gives 64 hex digits; `bytes` gives the 32 bytes.

    Raises:
        InvalidInput: `digest` is not 32 bytes.
    """

    digest: bytes = attrs.field(converter=bytes)

    @digest.validator
    def _check_digest(self, attribute: attrs.Attribute[bytes], value: bytes) -> None:
        if len(value) != 32:
            raise InvalidInput(f"a hash has 32 bytes, not {len(value)}")

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Hash:
        """Hash `data`, all of it."""
        return cls(blake3(data).digest())

    @classmethod
    def parse(cls, text: str) -> Hash:
        """Parse 64 lower-case hex digits, or base32 of 32 bytes.

        Raises:
            InvalidInput: the text is neither.

        Source: docs/wire/blobs.md 7.1.
        """
        if len(text) == 64:
            if not _HEX_DIGITS.issuperset(text):
                raise InvalidInput("a hash of 64 characters must be lower-case hex digits")
            return cls(bytes.fromhex(text))
        return cls(base32.decode(text))

    def hex(self) -> str:
        """Return 64 lower-case hex digits."""
        return self.digest.hex()

    def short(self) -> str:
        """Return the first 10 hex digits, for logs and people."""
        return self.digest[:5].hex()

    def __bytes__(self) -> bytes:
        return self.digest

    def __str__(self) -> str:
        return self.digest.hex()

    def __repr__(self) -> str:
        return f"Hash({self.short()}…)"


EMPTY_HASH: Final = Hash(
    bytes.fromhex("af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262")
)
"""The hash of the empty blob, which every store holds."""


class BlobFormat(enum.IntEnum):
    """What a blob's bytes are; the values are the wire's.

    `HASH_SEQ` means hashes of 32 bytes each, whose blobs belong to this one.
    """

    RAW = 0
    HASH_SEQ = 1


@attrs.frozen(order=True, cache_hash=True)
class HashAndFormat:
    """A hash and whether it names a single blob or a sequence with its children.

    The text form is 64 hex digits, after an `s` for a hash sequence.
    """

    hash: Hash
    format: BlobFormat = BlobFormat.RAW

    @classmethod
    def parse(cls, text: str) -> HashAndFormat:
        """Parse 64 hex digits, or `s` and 64 hex digits.

        Raises:
            InvalidInput: the text is neither.
        """
        digits = text.removeprefix("s")
        if len(digits) != 64:
            raise InvalidInput("expected 64 hex digits, or `s` and 64 hex digits")
        is_seq = len(digits) != len(text)
        return cls(Hash.parse(digits), BlobFormat.HASH_SEQ if is_seq else BlobFormat.RAW)

    def __str__(self) -> str:
        return ("s" if self.format is BlobFormat.HASH_SEQ else "") + str(self.hash)
