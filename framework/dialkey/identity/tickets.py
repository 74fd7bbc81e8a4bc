"""Tickets: an endpoint's address as one word that can be pasted, scanned or read out.

A ticket is a kind in lower case followed directly by base32 of the payload. `encode_ticket` and
`decode_ticket` do that for any kind, and `reading_ticket` and `read_ticket_version` help with the
payload; a protocol derives its kind from `Ticket`.
`EndpointTicket` is the kind that names an endpoint and nothing more.

Source: docs/wire/discovery.md 4.
"""

from __future__ import annotations

import abc
import contextlib
import re
from collections.abc import Iterator
from typing import ClassVar, Final, Self

import attrs

from dialkey.errors import Base32Error, InvalidTicket, WireError
from dialkey.identity import base32
from dialkey.identity.addresses import EndpointAddr
from dialkey.identity.postcard import Reader, Writer
from dialkey.limits import MAX_PASTED_TICKET_CHARS, MAX_TICKET_ADDRESSES, MAX_TICKET_CHARS

__all__ = [
    "EndpointTicket",
    "Ticket",
    "compact_ticket",
    "decode_ticket",
    "encode_ticket",
    "read_ticket_version",
    "reading_ticket",
    "ticket_kind",
    "without_space",
]

_KIND: Final = re.compile(r"[a-z]+")
# What mail programs, chats and terminals put into a long word: white space of all kinds, and characters
# of no width that allow or forbid a line break.
_SPACE: Final = re.compile("[\\s\u00ad\u200b\u2060\ufeff]+")

# Only for messages: what a text of another kind is called. Nothing here decodes them.
_KNOWN_KINDS: Final = ("endpoint", "blob", "doc", "services", "node")

_LOOKALIKES: Final = {"0": "the letter o", "1": "the letter l or i", "8": "the letter b"}


def ticket_kind(text: str) -> str | None:
    """Guess the kind of a ticket from its beginning, for messages and inspection.

    Returns:
        A kind of the iroh ecosystem, or None. A kind is a guess: it is not checked that the rest
        is a ticket.
    """
    text = compact_ticket(text[:MAX_PASTED_TICKET_CHARS])
    return next((kind for kind in _KNOWN_KINDS if text.startswith(kind)), None)


def compact_ticket(text: str) -> str:
    """Return the text of a ticket as it was before it was wrapped, spaced out or put in capitals.

    White space and characters of no width are removed wherever they are. ASCII text comes back in
    lower case; any other text cannot be a ticket, and keeps its case for the message that says so.
    """
    text = without_space(text)
    return text.lower() if text.isascii() else text


def without_space(text: str) -> str:
    """Return text without white space and characters of no width."""
    return _SPACE.sub("", text)


def encode_ticket(kind: str, payload: bytes) -> str:
    """Return the text of a ticket.

    Args:
        kind: lower-case ASCII letters.
        payload: the bytes that the kind defines.

    Raises:
        InvalidTicket: the text would be longer than `decode_ticket` accepts.
    """
    if not _KIND.fullmatch(kind):
        raise ValueError("the kind of a ticket is made of lower-case ASCII letters")
    text = kind + base32.encode(payload)
    if len(text) > MAX_TICKET_CHARS:
        raise InvalidTicket(
            f"the ticket would have {len(text)} characters, more than {MAX_TICKET_CHARS}",
            hint="name fewer addresses",
        )
    return text


def decode_ticket(kind: str, text: str) -> bytes:
    """Return the payload of a ticket of the kind expected.

    A ticket is read as people paste it: in capitals or lower case, and with line breaks or spaces in
    it. All else is strict: no separators, no padding, no spare bits.

    Raises:
        InvalidTicket: the text is not a ticket, or one of another kind; the message says where it
            looks wrong, counting characters without white space.
    """
    if not isinstance(text, str):
        raise TypeError(f"a ticket is parsed from str, not {type(text).__name__}")
    if len(text) <= MAX_PASTED_TICKET_CHARS:
        text = compact_ticket(text)
    if len(text) > MAX_TICKET_CHARS:
        raise InvalidTicket(
            f"the text has {len(text)} characters; a ticket has at most {MAX_TICKET_CHARS}"
        )
    if not text.startswith(kind):
        raise _wrong_kind(kind, text)
    body = text[len(kind) :]
    try:
        return base32.decode(body)
    except Base32Error as error:
        raise _bad_body(kind, body, error) from None


def _wrong_kind(kind: str, text: str) -> InvalidTicket:
    article = "an" if kind[0] in "aeiou" else "a"
    expected = f"{article} {kind} ticket begins with {kind!r}"
    other = ticket_kind(text)
    if not text:
        return InvalidTicket("the text is empty where a ticket was expected", hint=expected)
    if other is not None:
        return InvalidTicket(
            f"this looks like a ticket of kind {other!r} where {kind!r} was expected",
            hint=expected,
        )
    if len(text) in (52, 64):
        return InvalidTicket(
            f"this may be an endpoint id rather than {article} {kind} ticket", hint=expected
        )
    return InvalidTicket(f"this is not {article} {kind} ticket", hint=expected)


def _bad_body(kind: str, body: str, error: Base32Error) -> InvalidTicket:
    if error.position is None or (error.position == len(body) - 1 and error.hint):
        return InvalidTicket(f"the ticket is incomplete: {error.message}", hint=error.hint)
    character = body[error.position]
    hint = "it is written with the letters a-z and the digits 2-7"
    if character in _LOOKALIKES:
        hint = f"{character} does not occur in tickets; it may be {_LOOKALIKES[character]}"
    elif character == "=":
        hint = "tickets have no padding: remove the equals signs"
    return InvalidTicket(
        f"the ticket has {character!r} at character {len(kind) + error.position + 1}", hint=hint
    )


@contextlib.contextmanager
def reading_ticket(payload: bytes) -> Iterator[Reader]:
    """Decode the payload of a ticket of any kind inside the block.

    Raises:
        InvalidTicket: the block raised `WireError`, because the payload is something else.
    """
    try:
        yield Reader(payload)
    except WireError as error:
        raise InvalidTicket(
            f"the ticket cannot be read: {error.message}",
            hint="it may be cut off or mistyped; copy it again",
        ) from None


def read_ticket_version(reader: Reader) -> None:
    """Read the version with which payloads begin; 0 is the only one.

    Raises:
        InvalidTicket: it is another one.
        WireError: the payload ends before.
    """
    version = reader.varint(32)
    if version != 0:
        raise InvalidTicket(
            f"the ticket is of version {version}, which is not known",
            hint="it may be mistyped, or made by a newer release",
        )


@attrs.frozen
class Ticket(abc.ABC):
    """A ticket of any kind; a protocol derives its own from it.

    A derived class is a frozen attrs class that sets `KIND` and defines `to_bytes` and `read`. The text
    is made at once, so that a ticket that cannot be written down is never there.

    Raises:
        InvalidTicket: the text would be too long.
    """

    KIND: ClassVar[str]
    """What the text begins with: lower-case ASCII letters."""

    _text: str = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_text", encode_ticket(self.KIND, self.to_bytes()))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the text of a ticket, in capitals or lower case and wrapped or not.

        Raises:
            InvalidTicket: the text is something else; message and hint say where it looks wrong.
        """
        return cls.from_bytes(decode_ticket(cls.KIND, text))

    @classmethod
    def from_bytes(cls, payload: bytes) -> Self:
        """Decode the payload of a ticket.

        Raises:
            InvalidTicket: the payload is something else.
        """
        with reading_ticket(payload) as reader:
            return cls.read(reader)

    @classmethod
    @abc.abstractmethod
    def read(cls, reader: Reader) -> Self:
        """Read the payload.

        Raises:
            InvalidTicket, WireError: it is something else.
        """

    @abc.abstractmethod
    def to_bytes(self) -> bytes:
        """Encode the payload."""

    def __str__(self) -> str:
        return self._text


@attrs.frozen
class EndpointTicket(Ticket):
    """A ticket that names an endpoint and where it may be reached.

    Bytes after the payload are ignored, as in iroh.

    Args:
        addr: the endpoint. Scope ids of its IPv6 addresses are not carried by the text.

    Raises:
        InvalidTicket: there are more addresses than a ticket may have.
    """

    KIND: ClassVar[str] = "endpoint"

    addr: EndpointAddr

    def __attrs_post_init__(self) -> None:
        if len(self.addr.addrs) > MAX_TICKET_ADDRESSES:
            raise InvalidTicket(f"a ticket has at most {MAX_TICKET_ADDRESSES} addresses")
        super().__attrs_post_init__()

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the payload."""
        read_ticket_version(reader)
        return cls(EndpointAddr.read(reader))

    def to_bytes(self) -> bytes:
        """Encode the payload."""
        writer = Writer().varint(0)
        self.addr.write(writer)
        return bytes(writer)
