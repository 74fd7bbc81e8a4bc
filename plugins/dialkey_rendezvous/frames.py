"""The frames of the rendezvous protocol. Sans-IO.

A frame is a type (one byte), the length of its body (two bytes, big endian) and the body.

Source: docs/wire/rendezvous.md 3.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

import attrs

from dialkey.errors import LimitExceeded, WireError
from dialkey_rendezvous.limits import MAX_BODY_BYTES

__all__ = [
    "Allocated",
    "Answer",
    "Claim",
    "Claimed",
    "Failed",
    "Failure",
    "Frame",
    "FrameReader",
    "Gone",
    "Offer",
    "OffererConfirms",
    "Reason",
    "Refused",
    "SealedTicket",
    "Taken",
    "TakerConfirms",
    "encode",
]

HEAD_BYTES: Final = 3
ELEMENT_BYTES: Final = 32
MAC_BYTES: Final = 32
TAG_BYTES: Final = 16


class Reason(enum.IntEnum):
    """Why a server refuses."""

    UNKNOWN = 1
    EXPIRED = 2
    USED = 3
    BURNT = 4
    BUSY = 5
    TOO_OFTEN = 6
    WITHDRAWN = 7


class Failure(enum.IntEnum):
    """Why one of the two ends an exchange."""

    WRONG_CODE = 1
    WORDS_DIFFER = 2
    BROKEN = 3


@attrs.frozen
class Offer:
    """To the server: give me a number."""

    lifetime_s: int


@attrs.frozen
class Claim:
    """To the server: I know the code with this number; my message of SPAKE2."""

    nameplate: int
    message: bytes


@attrs.frozen
class Allocated:
    """From the server: the number, and for how long."""

    nameplate: int
    lifetime_s: int


@attrs.frozen
class Claimed:
    """From the server: somebody claims the code; their message of SPAKE2."""

    message: bytes


@attrs.frozen
class Gone:
    """From the server: the other side has left, or took too long."""


@attrs.frozen
class Refused:
    """From the server: no, and when to ask again."""

    reason: Reason
    wait_s: int = 0


@attrs.frozen
class Answer:
    """From offerer to taker: its message of SPAKE2."""

    compares: bool
    message: bytes


@attrs.frozen
class TakerConfirms:
    """From taker to offerer: the proof that it has the key."""

    compares: bool
    mac: bytes


@attrs.frozen
class OffererConfirms:
    """From offerer to taker: the proof that it has the key."""

    mac: bytes


@attrs.frozen
class SealedTicket:
    """From offerer to taker: the ticket, sealed."""

    data: bytes


@attrs.frozen
class Taken:
    """From taker to offerer: the proof that it has opened the ticket."""

    mac: bytes


@attrs.frozen
class Failed:
    """From one of the two to the other: this is the end."""

    failure: Failure


Frame = (
    Offer
    | Claim
    | Allocated
    | Claimed
    | Gone
    | Refused
    | Answer
    | TakerConfirms
    | OffererConfirms
    | SealedTicket
    | Taken
    | Failed
)

_TYPES: Final[dict[type[Frame], int]] = {
    Offer: 0x01,
    Claim: 0x02,
    Allocated: 0x11,
    Claimed: 0x12,
    Gone: 0x13,
    Refused: 0x14,
    Answer: 0x21,
    TakerConfirms: 0x22,
    OffererConfirms: 0x23,
    SealedTicket: 0x24,
    Taken: 0x25,
    Failed: 0x26,
}


def encode(frame: Frame) -> bytes:
    """Return the bytes of a frame."""
    body = _body(frame)
    return bytes([_TYPES[type(frame)]]) + len(body).to_bytes(2, "big") + body


def _body(frame: Frame) -> bytes:
    match frame:
        case Offer(lifetime_s):
            return lifetime_s.to_bytes(2, "big")
        case Claim(nameplate, message):
            return nameplate.to_bytes(4, "big") + message
        case Allocated(nameplate, lifetime_s):
            return nameplate.to_bytes(4, "big") + lifetime_s.to_bytes(2, "big")
        case Gone():
            return b""
        case Refused(reason, wait_s):
            return bytes([reason]) + wait_s.to_bytes(2, "big")
        case Answer(compares, rest) | TakerConfirms(compares, rest):
            return bytes([compares]) + rest
        case Failed(failure):
            return bytes([failure])
        case Claimed(rest) | OffererConfirms(rest) | SealedTicket(rest) | Taken(rest):
            return rest


def _flag(number: int) -> bool:
    if number > 1:
        raise WireError(f"a flag is 0 or 1, not {number}")
    return number == 1


_DECODERS: Final[dict[int, tuple[int | None, Callable[[bytes], Frame]]]] = {
    0x01: (2, lambda body: Offer(int.from_bytes(body, "big"))),
    0x02: (4 + ELEMENT_BYTES, lambda body: Claim(int.from_bytes(body[:4], "big"), body[4:])),
    0x11: (
        6,
        lambda body: Allocated(int.from_bytes(body[:4], "big"), int.from_bytes(body[4:], "big")),
    ),
    0x12: (ELEMENT_BYTES, Claimed),
    0x13: (0, lambda body: Gone()),
    0x14: (3, lambda body: Refused(Reason(body[0]), int.from_bytes(body[1:], "big"))),
    0x21: (1 + ELEMENT_BYTES, lambda body: Answer(_flag(body[0]), body[1:])),
    0x22: (1 + MAC_BYTES, lambda body: TakerConfirms(_flag(body[0]), body[1:])),
    0x23: (MAC_BYTES, OffererConfirms),
    0x24: (None, SealedTicket),
    0x25: (MAC_BYTES, Taken),
    0x26: (1, lambda body: Failed(Failure(body[0]))),
}
"""For each type the length of its body, where that is fixed, and what makes a frame of it."""


class FrameReader:
    """Makes frames of what arrives. After an error it is of no more use."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes in, and return the frames that are complete now.

        Raises:
            LimitExceeded: a frame is longer than one of its type can be.
            WireError: the bytes are not frames.
        """
        pending = self._pending
        pending += data
        frames: list[Frame] = []
        at = 0
        while len(pending) - at >= HEAD_BYTES:
            kind, size = pending[at], int.from_bytes(pending[at + 1 : at + HEAD_BYTES], "big")
            expected, decode = _look_up(kind)
            if size > MAX_BODY_BYTES:
                raise LimitExceeded(f"a frame of {size} bytes; {MAX_BODY_BYTES} are allowed")
            if (size != expected) if expected is not None else (size <= TAG_BYTES):
                raise WireError(f"a frame of type {kind:#04x} does not have {size} bytes")
            end = at + HEAD_BYTES + size
            if len(pending) < end:
                break
            try:
                frames.append(decode(bytes(pending[at + HEAD_BYTES : end])))
            except ValueError as error:
                raise WireError(f"a frame of type {kind:#04x}: {error}") from None
            at = end
        del pending[:at]
        return frames


def _look_up(kind: int) -> tuple[int | None, Callable[[bytes], Frame]]:
    found = _DECODERS.get(kind)
    if found is None:
        raise WireError(f"there is no frame of type {kind:#04x}")
    return found
