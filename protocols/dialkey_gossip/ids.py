"""Topic ids, and the two kinds of 32 bytes that the state machines pass around."""

from __future__ import annotations

import re
import secrets
from typing import Final, NewType

import attrs
from blake3 import blake3

from dialkey.errors import InvalidInput

__all__ = ["MessageId", "PeerId", "TopicId", "message_id"]

PeerId = NewType("PeerId", bytes)
"""An endpoint id as its 32 bytes; the machines compare and hash them a lot, and never parse them."""

MessageId = NewType("MessageId", bytes)
"""The BLAKE3 hash of a message's content."""

_HEX: Final = re.compile(r"[0-9a-f]{64}")


def message_id(content: bytes) -> MessageId:
    """Return the id of a content: equal contents have equal ids, in every topic and from everyone."""
    return MessageId(blake3(content).digest())


def _topic_bytes(data: bytes | bytearray | memoryview) -> bytes:
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"a topic id is made of bytes, not {type(data).__name__}")
    raw = bytes(data)
    if len(raw) != 32:
        raise InvalidInput(
            f"a topic id has 32 bytes, not {len(raw)}",
            hint="TopicId.from_name makes one from any text",
        )
    return raw


@attrs.frozen(repr=False, eq=False)
class TopicId:
    """The 32 bytes that name a topic. Whoever knows them can join it.

    Args:
        data: exactly 32 bytes; random ones make a topic that nobody can guess.

    Raises:
        InvalidInput: not 32 bytes.
    """

    _raw: bytes = attrs.field(converter=_topic_bytes)

    @classmethod
    def generate(cls) -> TopicId:
        """Make one that nobody can guess: 32 random bytes."""
        return cls(secrets.token_bytes(32))

    @classmethod
    def from_name(cls, name: str) -> TopicId:
        """Derive a topic id from a text that everybody knows: BLAKE3 of its UTF-8 bytes.

        Nothing is added to the text, so other implementations get the same id by hashing it. If the
        name can be guessed, strangers can join the topic.
        """
        return cls(blake3(name.encode("utf-8")).digest())

    @classmethod
    def parse(cls, text: str) -> TopicId:
        """Parse 64 lower-case hex digits.

        Raises:
            InvalidInput: the text is something else.
        """
        if not _HEX.fullmatch(text):
            raise InvalidInput(
                "a topic id is written as 64 lower-case hex digits",
                hint="TopicId.from_name makes one from any text",
            )
        return cls(bytes.fromhex(text))

    def short(self) -> str:
        """Return the first five bytes as hex, for logs."""
        return self._raw[:5].hex()

    def __bytes__(self) -> bytes:
        return self._raw

    def __str__(self) -> str:
        return self._raw.hex()

    def __repr__(self) -> str:
        return f"TopicId({self})"

    def __eq__(self, other: object) -> bool:
        return self._raw == other._raw if isinstance(other, TopicId) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._raw)
