"""Endpoint ids, secret keys and signatures: Ed25519 with the rules that iroh applies.

An `EndpointId` is 32 bytes that decompress to a curve point; the bytes are kept as they came, and
equality, hashing and order are on them. Signatures are plain Ed25519, verified *strictly*.
OpenSSL alone is laxer in two ways that this module closes: it takes keys that are not a point on the
curve, and signatures under keys of small order, which anybody can make.

Source: docs/wire/discovery.md 1; RFC 8032.
"""

from __future__ import annotations

import hmac
import re
from functools import lru_cache
from pathlib import Path
from typing import Final, NoReturn

import attrs
from cryptography.exceptions import InvalidSignature as _BackendInvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dialkey.errors import (
    Base32Error,
    InvalidKey,
    InvalidSignature,
    KeyFileExists,
    KeyFileMissing,
    WireError,
)
from dialkey.identity import base32, keyfile
from dialkey.identity.postcard import Reader, Writer

__all__ = ["EndpointId", "InvalidSignature", "SecretKey", "Signature"]

_P: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _P) % _P
_L: Final = 2**252 + 27742317777372353535851937790883648493
_SIGN_MASK: Final = (1 << 255) - 1

# The y coordinates of the eight points of order 1, 2, 4 and 8.
_SMALL_ORDER_Y: Final = frozenset(
    {
        0,
        1,
        _P - 1,
        int.from_bytes(
            bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
            "little",
        ),
        int.from_bytes(
            bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
            "little",
        ),
    }
)

_LOWER_HEX: Final = re.compile(r"[0-9a-f]*")
_HEX_CHARS: Final = 64
_BASE32_CHARS: Final = 52

# What things are called in messages.
_ID: Final = "an endpoint id"
_SECRET: Final = "a secret key"
_SIGNATURE: Final = "a signature"


def _y_coordinate(raw: bytes) -> int:
    return (int.from_bytes(raw, "little") & _SIGN_MASK) % _P


@lru_cache(maxsize=8192)
def _is_point(raw: bytes) -> bool:
    """Return whether `raw` decompresses; the sign bit and y >= p are not a reason to refuse it.

    Cached: one id is parsed many times, and the exponentiation takes some 50 us. Holds about 1 MiB
    at most.
    """
    y2 = pow(_y_coordinate(raw), 2, _P)
    u = (y2 - 1) % _P
    v = (_D * y2 + 1) % _P
    # v is never 0, so u/v is a square exactly when u*v is (Euler's criterion).
    return u == 0 or pow(u * v, (_P - 1) // 2, _P) == 1


def _has_small_order(raw: bytes) -> bool:
    return _y_coordinate(raw) in _SMALL_ORDER_Y


def _exact_bytes(data: bytes | bytearray | memoryview, length: int, what: str) -> bytes:
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"{what} is made of bytes, not {type(data).__name__}")
    raw = bytes(data)
    if len(raw) != length:
        raise InvalidKey(f"{what} has {length} bytes, not {len(raw)}")
    return raw


def _signature_bytes(data: bytes | bytearray | memoryview) -> bytes:
    return _exact_bytes(data, 64, _SIGNATURE)


def _id_bytes(data: bytes | bytearray | memoryview) -> bytes:
    return _exact_bytes(data, 32, _ID)


def _length_hint(text: str, what: str) -> str | None:
    if what == _ID and text.startswith("endpoint"):
        return "this looks like a ticket: EndpointTicket.parse reads it"
    return "part of it may be missing" if len(text) < _HEX_CHARS else None


def _key_text_to_bytes(text: str, what: str) -> bytes:
    """Read the 32 bytes of a key from hex or base32; messages never quote the text."""
    if not isinstance(text, str):
        raise TypeError(f"{what} is parsed from str, not {type(text).__name__}")
    if text != text.strip():
        raise InvalidKey(f"{what} has white space around it", hint="remove it")
    if len(text) == _HEX_CHARS:
        good = _LOWER_HEX.match(text)
        position = good.end() if good else 0
        if position == _HEX_CHARS:
            return bytes.fromhex(text)
        upper = text[position] in "ABCDEF"
        raise InvalidKey(
            f"character {position + 1} of {what} is not a lower-case hex digit",
            hint="hex keys are written in lower case" if upper else "check for a typing mistake",
        )
    if len(text) != _BASE32_CHARS:
        raise InvalidKey(
            f"{what} has {_HEX_CHARS} characters (hex) or {_BASE32_CHARS} (base32), "
            f"not {len(text)}",
            hint=_length_hint(text, what),
        )
    try:
        return base32.decode(text)
    except Base32Error as error:
        hint = error.hint
        if what == _ID and error.position is not None and text[error.position] in "189":
            hint = "z-base-32, as in DNS names, has its own parser: EndpointId.from_z32"
        raise InvalidKey(f"{what} is not base32: {error.message}", hint=hint) from None


@attrs.frozen(repr=False, eq=False)
class Signature:
    """A 64-byte Ed25519 signature: R, then s in little-endian.

    Any 64 bytes can be held; whether they prove something is for `EndpointId.verify`.

    Raises:
        InvalidKey: not 64 bytes.
    """

    _raw: bytes = attrs.field(converter=_signature_bytes)

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Parse 128 hex digits, in either case (iroh itself prints both).

        Raises:
            InvalidKey: the text is not that.
        """
        if len(text) != 128 or not _LOWER_HEX.fullmatch(text.lower() if text.isascii() else text):
            raise InvalidKey("a signature is written as 128 hex digits")
        return cls(bytes.fromhex(text))

    def __bytes__(self) -> bytes:
        return self._raw

    def __str__(self) -> str:
        return self._raw.hex()

    def __repr__(self) -> str:
        return f"Signature({self})"

    def __eq__(self, other: object) -> bool:
        return self._raw == other._raw if isinstance(other, Signature) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._raw)


@attrs.frozen(repr=False, eq=False, order=False)
class EndpointId:
    """The public key that names an endpoint.

    Args:
        data: 32 bytes, the compressed Edwards form. They are kept as given: two encodings of one
            point are two ids, as in iroh.

    Raises:
        InvalidKey: not 32 bytes, or no point of the curve.
    """

    _raw: bytes = attrs.field(converter=_id_bytes)

    def __attrs_post_init__(self) -> None:
        if not _is_point(self._raw):
            raise InvalidKey(
                "these 32 bytes are not a public key: they are not a point on the curve",
                hint="check for a typing mistake; about half of all 32-byte strings are not keys",
            )

    @classmethod
    def parse(cls, text: str) -> EndpointId:
        """Parse lower-case hex (64 characters) or base32 (52 characters, either case).

        White space is refused, and z-base-32 has its own parser, `from_z32`: both base-32 forms
        have the same length and some texts mean a different key in each.

        Raises:
            InvalidKey: the text is neither, or not a key.
        """
        return cls(_key_text_to_bytes(text, _ID))

    @classmethod
    def from_z32(cls, text: str) -> EndpointId:
        """Parse z-base-32 (52 characters, lower case), the form of DNS names and pkarr paths.

        Raises:
            InvalidKey: the text is not that, or not a key.
        """
        try:
            raw = base32.decode_z32(text)
        except Base32Error as error:
            raise InvalidKey(
                f"an endpoint id is not z-base-32: {error.message}", hint=error.hint
            ) from None
        return cls(raw)

    @classmethod
    def read(cls, reader: Reader) -> EndpointId:
        """Read 32 raw bytes.

        Raises:
            WireError: the data ends early, or the bytes are not a key.
        """
        raw = reader.take(32)
        try:
            return cls(raw)
        except InvalidKey as error:
            raise WireError(error.message) from None

    def write(self, writer: Writer) -> None:
        """Append the 32 raw bytes."""
        writer.raw(self._raw)

    def to_base32(self) -> str:
        """Return the 52-character lower-case base32 form."""
        return base32.encode(self._raw)

    def to_z32(self) -> str:
        """Return the 52-character z-base-32 form of DNS names and pkarr paths."""
        return base32.encode_z32(self._raw)

    def to_base32hex(self) -> str:
        """Return the 52-character base32hex form of TLS server names."""
        return base32.encode_hex(self._raw)

    def short(self) -> str:
        """Return the first five bytes as hex, for logs; not unique and not parsed anywhere."""
        return self._raw[:5].hex()

    @property
    def is_weak(self) -> bool:
        """Whether the key has small order: anybody can sign for it, so it proves nothing."""
        return _has_small_order(self._raw)

    def verify(self, signature: Signature | bytes, message: bytes) -> None:
        """Check that the holder of this key signed `message`; return normally if so.

        Strict: s must be reduced, R must be a point, and neither R nor this key may have small
        order. `verifies` answers with a truth value instead.

        Raises:
            InvalidSignature: the signature does not hold.
        """
        raw = bytes(signature)
        if len(raw) != 64:
            raise InvalidSignature(f"a signature has 64 bytes, not {len(raw)}")
        if self.is_weak:
            raise InvalidSignature("the key has small order: anybody can sign for it")
        if int.from_bytes(raw[32:], "little") >= _L:
            raise InvalidSignature("the signature is not in its reduced form")
        if _has_small_order(raw[:32]):
            raise InvalidSignature("the signature's point has small order")
        # That R is a point needs no check: OpenSSL compares it with the bytes of one it computed.
        try:
            Ed25519PublicKey.from_public_bytes(self._raw).verify(raw, bytes(message))
        except (_BackendInvalidSignature, ValueError):
            raise InvalidSignature("the signature does not match key and message") from None

    def verifies(self, signature: Signature | bytes, message: bytes) -> bool:
        """Return whether `verify` would pass."""
        try:
            self.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def __bytes__(self) -> bytes:
        return self._raw

    def __str__(self) -> str:
        return self._raw.hex()

    def __repr__(self) -> str:
        return f"EndpointId({self})"

    # Written out rather than generated: ids are keys of dictionaries on the way of every packet.
    def __eq__(self, other: object) -> bool:
        return self._raw == other._raw if isinstance(other, EndpointId) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._raw)

    def __lt__(self, other: EndpointId) -> bool:
        return self._raw < other._raw if isinstance(other, EndpointId) else NotImplemented

    def __le__(self, other: EndpointId) -> bool:
        return self._raw <= other._raw if isinstance(other, EndpointId) else NotImplemented

    def __gt__(self, other: EndpointId) -> bool:
        return self._raw > other._raw if isinstance(other, EndpointId) else NotImplemented

    def __ge__(self, other: EndpointId) -> bool:
        return self._raw >= other._raw if isinstance(other, EndpointId) else NotImplemented


class SecretKey:
    """The secret half of an endpoint's identity: a 32-byte RFC 8032 seed.

    Immutable. It never shows in `repr` or `str`, cannot be pickled, compares in constant time and
    hashes by its public half. `bytes(key)` and `to_hex` are the two ways to export it.

    It is not an attrs class on purpose: `attrs.asdict` and converters would unfold the seed.

    Args:
        seed: any 32 bytes; they should come from a random source.

    Raises:
        InvalidKey: not 32 bytes.
    """

    __slots__ = ("_id", "_key", "_seed")

    _id: EndpointId
    _key: Ed25519PrivateKey
    _seed: bytes

    def __init__(self, seed: bytes | bytearray | memoryview) -> None:
        raw = _exact_bytes(seed, 32, _SECRET)
        key = Ed25519PrivateKey.from_private_bytes(raw)
        object.__setattr__(self, "_seed", raw)
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "_id", EndpointId(key.public_key().public_bytes_raw()))

    @classmethod
    def generate(cls) -> SecretKey:
        """Make a new key from the operating system's random source."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> SecretKey:
        """Parse lower-case hex (64 characters) or base32 (52 characters, either case).

        Messages never quote the text.

        Raises:
            InvalidKey: the text is neither.
        """
        return cls(_key_text_to_bytes(text, _SECRET))

    @classmethod
    def load(cls, path: str | Path) -> SecretKey:
        """Read a key from a file that holds it as hex or base32.

        Raises:
            InvalidKey: the file does not hold a key, or others may read it (POSIX permissions).
            StorageError: the file is missing or cannot be read.
        """
        text = keyfile.read(path)
        try:
            return cls.parse(text)
        except InvalidKey as error:
            raise InvalidKey(
                f"the file {path} does not hold a secret key: {error.message}", hint=error.hint
            ) from None

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the key to a file that only its owner can read: lower hex and a newline.

        The file appears whole or not at all, also when the machine stops meanwhile. An existing
        file is left alone unless `overwrite`.

        Raises:
            StorageError: the file exists, or could not be written.
        """
        keyfile.write(path, self.to_hex() + "\n", overwrite=overwrite)

    @classmethod
    def load_or_create(cls, path: str | Path) -> SecretKey:
        """Read the key in `path`, or make one and save it there if there is no such file.

        Missing folders are made, readable by their owner alone. When several processes start at
        once, all end up with the key of one of them.

        Raises:
            InvalidKey: the file does not hold a key, or others may read it.
            StorageError: the file could not be read or written.
        """
        try:
            return cls.load(path)
        except KeyFileMissing:
            pass
        key = cls.generate()
        keyfile.make_parent(path)
        try:
            key.save(path)
        except KeyFileExists:
            return cls.load(path)
        return key

    @property
    def id(self) -> EndpointId:
        """The endpoint id: the public half."""
        return self._id

    def sign(self, message: bytes) -> Signature:
        """Sign `message`: plain Ed25519, deterministic."""
        return Signature(self._key.sign(bytes(message)))

    def signing_key(self) -> Ed25519PrivateKey:
        """Return the key as `cryptography` object, for the TLS handshake of the QUIC room."""
        return self._key

    def to_hex(self) -> str:
        """Export the secret as 64 lower-case hex digits."""
        return self._seed.hex()

    def __bytes__(self) -> bytes:
        return self._seed

    def __repr__(self) -> str:
        return f"SecretKey(id={self._id.short()}…)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretKey):
            return NotImplemented
        return hmac.compare_digest(self._seed, other._seed)

    def __hash__(self) -> int:
        return hash(self._id)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise attrs.exceptions.FrozenInstanceError

    def __delattr__(self, name: str) -> NoReturn:
        raise attrs.exceptions.FrozenInstanceError

    def __copy__(self) -> SecretKey:
        return self

    def __deepcopy__(self, memo: object) -> SecretKey:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a SecretKey is not pickled; use save() and load(), or to_hex()")
