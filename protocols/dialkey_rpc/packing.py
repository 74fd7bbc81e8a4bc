"""Values to msgpack and back, strictly. Sans-IO. Source: docs/rpc-wire.md, "Envelopes".

Hostile msgpack costs time linear in its length, and memory of at most some seventy times its length:
a structural pass without allocation comes first, so that a container which claims more elements than
there are never reserves room for them.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]  # it has no annotations

from dialkey_rpc.checking import an
from dialkey_rpc.errors import CannotSend, MalformedMessage
from dialkey_rpc.frames import Frame, join_head

__all__ = ["PART_BYTES", "Part", "pack", "pack_frame", "unpack", "unpack_frame"]

EXT_PART: Final = 1
"""A part of the frame, by its number in two bytes. Timestamps are -1, as in the msgpack standard."""

PART_BYTES: Final = 8192
"""Byte strings from here on are parts: below, copying them costs less than one more write."""

_NOT_CONTAINERS: Final = bytes(
    byte for byte in range(256) if not (0x80 <= byte <= 0x9F or 0xDC <= byte <= 0xDF)
)

_MAX_KEPT_BYTES: Final = 65_536
"""A scanner keeps the room for its largest input; beyond this a fresh one is used once."""


class Part:
    """Marks bytes that travel outside the envelope."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class _Packer:
    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._packer = msgpack.Packer(default=self._refer, datetime=True)

    def _refer(self, value: object) -> msgpack.ExtType:
        if type(value) is not Part:
            raise CannotSend(
                f"{an(type(value).__name__)} has no form on the wire", hint=_hint(value)
            )
        self._parts.append(value.data)
        number = len(self._parts) - 1
        if number > 0xFFFF:
            raise CannotSend("too many large byte strings in one message")
        return msgpack.ExtType(EXT_PART, number.to_bytes(2, "big"))

    def pack(self, value: object) -> tuple[bytes, Sequence[bytes]]:
        try:
            envelope: bytes = self._packer.pack(value)
        except CannotSend:
            self._parts = []
            raise
        except (TypeError, ValueError, OverflowError) as error:
            self._parts = []
            raise CannotSend(f"this value cannot be sent: {error}") from error
        if not self._parts:
            return envelope, ()
        parts, self._parts = self._parts, []
        return envelope, parts


def _hint(value: object) -> str | None:
    if isinstance(value, int):
        return "integers have 64 bits on the wire"
    if isinstance(value, datetime):
        return "give the datetime a timezone, datetime.now(UTC) for example"
    return None


def pack(value: object) -> tuple[bytes, Sequence[bytes]]:
    """Return a plain value as an envelope and its parts.

    Raises:
        CannotSend: something in it has no form on the wire.
    """
    return _mine.packer.pack(value)


def pack_frame(kind: int, value: object) -> tuple[bytes, Sequence[bytes]]:
    """Return a plain value as the head of a frame, and the parts to be written after it.

    Raises:
        CannotSend: something in it has no form on the wire, or there is too much of it.
    """
    envelope, parts = _mine.packer.pack(value)
    return join_head(kind, envelope, parts), parts


def unpack_frame(frame: Frame, max_depth: int) -> object:
    """Return what a frame says. Raises as `unpack`."""
    return unpack(frame.envelope, frame.parts, max_depth)


def unpack(envelope: bytes, parts: Sequence[bytes], max_depth: int) -> object:
    """Return an envelope as a plain value: None, bool, int, float, str, bytes, datetime, list, dict.

    Raises:
        MalformedMessage: it is not exactly one msgpack value, is nested deeper than `max_depth`,
            has text that is not UTF-8, an unknown extension, or refers to a part wrongly.
    """
    try:
        _mine.scan(envelope)
        value = msgpack.unpackb(
            envelope,
            timestamp=3,
            strict_map_key=False,
            ext_hook=_resolver(parts) if parts else _no_parts,
        )
    except (ValueError, TypeError, OverflowError, IndexError, msgpack.UnpackException) as error:
        text = str(error) or type(error).__name__
        raise MalformedMessage(f"malformed msgpack: {text}") from error
    if len(envelope) > max_depth:
        _check_depth(envelope, value, max_depth)
    return value


class _Scanner:
    """Checks that an envelope is one whole value, without making anything of it."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._kept = _new_scanner(_MAX_KEPT_BYTES)
        self._fed = 0

    def __call__(self, envelope: bytes) -> None:
        size = len(envelope)
        if size > _MAX_KEPT_BYTES:
            scanner = _new_scanner(size)
            scanner.feed(envelope)
            scanner.skip()
            return
        scanner = self._kept
        self._fed += size
        try:
            scanner.feed(envelope)
            scanner.skip()
            if scanner.tell() != self._fed:
                # What is left over would be taken for the beginning of the next envelope.
                raise ValueError("more than one value")
        except BaseException:
            self._reset()
            raise


def _new_scanner(size: int) -> Any:
    # By default it would allocate a megabyte at once.
    return msgpack.Unpacker(read_size=min(size, 4096), max_buffer_size=size)


class _Mine(threading.local):
    """The packer and the scanner of this thread: an event loop may run in each."""

    def __init__(self) -> None:
        self.packer = _Packer()
        self.scan = _Scanner()


_mine: Final = _Mine()


def _no_parts(code: int, data: bytes) -> bytes:
    raise ValueError(f"extension {code} in a message without parts")


def _resolver(parts: Sequence[bytes]) -> functools.partial[bytes]:
    return functools.partial(_resolve, list(parts))


def _resolve(left: list[bytes | None], code: int, data: bytes) -> bytes:
    if code != EXT_PART or len(data) != 2:
        raise ValueError(f"unknown extension {code} of {len(data)} bytes")
    number = int.from_bytes(data, "big")
    part = left[number]
    if part is None:
        # Else a short envelope could ask for one large part to be converted a million times.
        raise ValueError(f"part {number} is referred to twice")
    left[number] = None
    return part


def _check_depth(envelope: bytes, value: object, max_depth: int) -> None:
    if len(envelope.translate(None, _NOT_CONTAINERS)) <= max_depth:
        return  # too few bytes even to start a container
    level = [value]
    for _ in range(max_depth):
        deeper: list[object] = []
        for each in level:
            if type(each) is list:
                deeper += [x for x in each if type(x) is list or type(x) is dict]
            elif type(each) is dict:
                deeper += [x for x in each.values() if type(x) is list or type(x) is dict]
        if not deeper:
            return
        level = deeper
    raise MalformedMessage(f"msgpack nested deeper than {max_depth} levels")
