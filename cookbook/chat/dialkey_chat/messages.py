"""What travels in a room, as msgpack maps; ``v`` is the version, ``kind`` says which.

Two sorts of things are said. *Presence* (`Hello`, `Bye`) is true for a moment: the signature that
gossip puts around a message is enough. A *letter* (what somebody wrote, or the offer of a file)
outlives the moment, and is passed on to those who come later by others than its author. So it
carries a signature of its own, over the room and the content: whoever hands out history can keep a
letter back, but cannot forge or change one, nor bring it into another room.

    letter := msgpack [author, content, signature]       signature over domain || topic || content

Everything is checked here, once: types, lengths, signatures, file names. What is shown to people is
cleaned here, too (see `dialkey_chat.text`).
"""

from __future__ import annotations

import hashlib
from typing import Final, TypeAlias

import attrs
import msgpack  # type: ignore[import-untyped]

from dialkey import EndpointAddr, EndpointId, EndpointTicket, SecretKey
from dialkey.errors import InvalidInput, InvalidKey, InvalidTicket, WireError
from dialkey.identity import IpAddr, RelayAddr, TransportAddr
from dialkey_blobs import BlobTicket
from dialkey_chat.text import clean_name, clean_text
from dialkey_gossip import TopicId

__all__ = [
    "MAX_LETTER_BYTES",
    "MAX_TEXT_CHARS",
    "Bye",
    "File",
    "Hello",
    "Letter",
    "Message",
    "open_letter",
    "pack",
    "unpack",
    "write_letter",
]

VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 3_840
"""Fits into one message of gossip, with its signature."""

MAX_LETTER_BYTES: Final = 3_800
MAX_TEXT_CHARS: Final = 3_000
MAX_NAME_BYTES: Final = 200
MAX_TICKET_CHARS: Final = 2_000
MAX_FILE_CHARS: Final = 100
MAX_ADDRS: Final = 3
"""All dial where somebody claims to be: it must not be worth much against a third party."""

MAX_FILE_BYTES: Final = 1 << 60
MAX_AT_MS: Final = 1 << 52

_DOMAIN: Final = b"dialkey-chat letter v1\x00"


@attrs.frozen
class Hello:
    """I am here.

    Attributes:
        name: what I want to be called.
        addr: where I am now.
        lifetime_s: how long to believe it.
        at_ms: when I said so, in milliseconds of Unix time; the later one counts.
    """

    name: str
    addr: EndpointAddr
    lifetime_s: float
    at_ms: int


@attrs.frozen
class Bye:
    """I leave. Attributes as in `Hello`."""

    at_ms: int


@attrs.frozen
class File:
    """The offer of a file or folder.

    Attributes:
        name: what it is called; for showing only, the names to be written are in the collection.
        size: bytes, as its sender says.
        ticket: the collection, and where its sender was at that time.
    """

    name: str
    size: int
    ticket: BlobTicket


@attrs.frozen
class Letter:
    """Something that was written to all.

    Attributes:
        author: who has signed it.
        name: what the author was called then.
        at_ms: when, in milliseconds of Unix time, as the author says.
        body: a text, or a file.
        id: names it; the same for everybody.
        wire: the letter as it travels, to pass it on.
    """

    author: EndpointId
    name: str
    at_ms: int
    body: str | File
    id: bytes = attrs.field(repr=False)
    wire: bytes = attrs.field(repr=False)

    @property
    def order(self) -> tuple[int, bytes]:
        """The sort order of letters, the same for everybody."""
        return self.at_ms, self.id


Message: TypeAlias = Hello | Bye | Letter


# --- letters --------------------------------------------------------------------------------------


def write_letter(key: SecretKey, topic: TopicId, name: str, body: str | File, at_ms: int) -> Letter:
    """Write and sign a letter.

    Raises:
        InvalidInput: it is empty, or too long.
    """
    if isinstance(body, str):
        fields: dict[str, object] = {"kind": "text", "text": clean_text(body, MAX_LETTER_BYTES)}
    else:
        file = clean_text(body.name, MAX_FILE_CHARS)
        fields = {"kind": "file", "file": file, "size": body.size, "blob": str(body.ticket)}
    content = _packed({"v": VERSION, "at": at_ms, "name": clean_name(name), **fields})
    signature = bytes(key.sign(_to_sign(topic, content)))
    wire = _packed([bytes(key.id), content, signature])
    if len(wire) > MAX_LETTER_BYTES:
        raise InvalidInput(
            f"that is too long: {len(wire)} bytes, and {MAX_LETTER_BYTES} fit",
            hint="say it in several messages, or /send it as a file",
        )
    try:
        return open_letter(topic, wire)
    except WireError as error:
        raise InvalidInput(f"that cannot be sent: {error.message}") from None


def open_letter(topic: TopicId, wire: bytes) -> Letter:
    """Read a letter that came from anywhere, and check that its author has signed it.

    Raises:
        WireError: it is malformed, or forged.
    """
    if not isinstance(wire, bytes) or len(wire) > MAX_LETTER_BYTES:
        raise WireError(f"a letter has at most {MAX_LETTER_BYTES} bytes")
    parts = _unpacked(wire)
    if not isinstance(parts, list) or len(parts) != 3:
        raise WireError("a letter has three parts")
    author_bytes, content, signature = parts
    if not all(isinstance(part, bytes) for part in parts):
        raise WireError("the parts of a letter are bytes")
    try:
        author = EndpointId(author_bytes)
    except InvalidKey as error:
        raise WireError(f"the author: {error.message}") from None
    author.verify(signature, _to_sign(topic, content))
    fields = _Fields(_unpacked(content))
    # Not of the signature: were there several for one content, it would be the same letter still.
    id = hashlib.blake2b(author_bytes + content, digest_size=16).digest()
    name = clean_name(fields.text("name", MAX_NAME_BYTES))
    return Letter(author, name, fields.number("at", MAX_AT_MS), _body(author, fields), id, wire)


def _body(author: EndpointId, fields: _Fields) -> str | File:
    match fields.text("kind", 16):
        case "text":
            text = clean_text(fields.text("text", MAX_LETTER_BYTES), MAX_TEXT_CHARS)
            if not text:
                raise WireError("the letter says nothing")
            return text
        case "file":
            try:
                ticket = BlobTicket.parse(fields.text("blob", MAX_TICKET_CHARS))
            except InvalidTicket as error:
                raise WireError(f"the offer: {error.message}") from None
            # Nobody makes us dial somebody else.
            if ticket.addr.id != author:
                raise WireError("the offer comes from somebody else")
            name = clean_text(fields.text("file", MAX_FILE_CHARS * 4), MAX_FILE_CHARS) or "file"
            ticket = attrs.evolve(ticket, addr=few_addrs(ticket.addr))
            return File(name, fields.number("size", MAX_FILE_BYTES), ticket)
    raise WireError("the letter is of an unknown kind")


def _to_sign(topic: TopicId, content: bytes) -> bytes:
    return _DOMAIN + bytes(topic) + content


# --- messages -------------------------------------------------------------------------------------


def pack(message: Message) -> bytes:
    """Encode a message for gossip.

    Raises:
        InvalidInput: it is too long.
    """
    match message:
        case Letter():
            fields: dict[str, object] = {"kind": "letter", "letter": message.wire}
        case Hello():
            addr = few_addrs(message.addr)
            fields = {
                "kind": "hello",
                "name": message.name,
                "addr": str(EndpointTicket(addr)),
                "lifetime": message.lifetime_s,
                "at": message.at_ms,
            }
        case Bye():
            fields = {"kind": "bye", "at": message.at_ms}
    data = _packed({"v": VERSION, **fields})
    if len(data) > MAX_MESSAGE_BYTES:
        raise InvalidInput(f"the message has {len(data)} bytes, and {MAX_MESSAGE_BYTES} fit")
    return data


def unpack(topic: TopicId, author: EndpointId, data: bytes) -> Message:
    """Decode a message that `author` has published, as gossip has proven.

    Raises:
        WireError: it is malformed, of another version, or speaks of somebody else than its author.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError("the message is too long", endpoint_id=author)
    fields = _Fields(_unpacked(data))
    match fields.text("kind", 16):
        case "letter":
            letter = open_letter(topic, fields.raw("letter", MAX_LETTER_BYTES))
            if letter.author != author:
                raise WireError("the letter comes from somebody else", endpoint_id=author)
            return letter
        case "hello":
            try:
                addr = EndpointTicket.parse(fields.text("addr", MAX_TICKET_CHARS)).addr
            except InvalidTicket as error:
                raise WireError(f"the address: {error.message}", endpoint_id=author) from None
            if addr.id != author:
                raise WireError("the address belongs to somebody else", endpoint_id=author)
            addr = few_addrs(addr)
            name = clean_name(fields.text("name", MAX_NAME_BYTES))
            return Hello(name, addr, fields.seconds("lifetime"), fields.number("at", MAX_AT_MS))
        case "bye":
            return Bye(fields.number("at", MAX_AT_MS))
    raise WireError("the message is of an unknown kind", endpoint_id=author)


def few_addrs(addr: EndpointAddr) -> EndpointAddr:
    """Keep one relay, and of the others one port of each IP address; a few in all."""
    relays = [each for each in addr.addrs if isinstance(each, RelayAddr)][:1]
    by_ip = {each.ip: each for each in reversed(addr.addrs) if isinstance(each, IpAddr)}
    others = list(by_ip.values())[::-1]
    # Public ones first, but not only those: two people may sit in one room.
    public = [each for each in others if each.ip.is_global]
    private = [each for each in others if not each.ip.is_global]
    chosen: list[TransportAddr] = [*relays, *public[:1], *private[:1], *public[1:], *private[1:]]
    return EndpointAddr(addr.id, chosen[:MAX_ADDRS])


class _Fields:
    """A map from a stranger: every access says which type and which limit it expects."""

    def __init__(self, plain: object) -> None:
        if not isinstance(plain, dict):
            raise WireError("this is not a map")
        self._plain = plain
        if self.number("v", 1 << 16) != VERSION:
            raise WireError("this version is not known")

    def text(self, key: str, max_bytes: int) -> str:
        value = self._plain.get(key)
        if not isinstance(value, str) or len(value.encode()) > max_bytes:
            raise WireError(f"{key!r} is not a text of at most {max_bytes} bytes")
        return value

    def raw(self, key: str, max_bytes: int) -> bytes:
        value = self._plain.get(key)
        if not isinstance(value, bytes) or len(value) > max_bytes:
            raise WireError(f"{key!r} is not at most {max_bytes} bytes")
        return value

    def number(self, key: str, limit: int) -> int:
        value = self._plain.get(key)
        if type(value) is not int or not 0 <= value <= limit:
            raise WireError(f"{key!r} is not a number up to {limit}")
        return value

    def seconds(self, key: str) -> float:
        value = self._plain.get(key)
        # Not a number is in no range.
        if not isinstance(value, int | float) or not 0 <= value <= 3600:
            raise WireError(f"{key!r} is not a time of at most an hour")
        return float(value)


def _packed(value: object) -> bytes:
    data: bytes = msgpack.packb(value)
    return data


def _unpacked(data: bytes) -> object:
    try:
        plain: object = msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError(f"this is not msgpack: {type(error).__name__}") from None
    return plain
