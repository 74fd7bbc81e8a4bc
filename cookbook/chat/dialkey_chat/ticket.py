"""Room tickets: what a room is called, its topic, and members to join it through.

Kind ``room``; the name as a postcard string, then the payload of a topic ticket. Whoever has the
ticket is in: the topic is 32 random bytes that cannot be guessed from the name.
"""

from __future__ import annotations

from typing import ClassVar, Final, Self

import attrs

from dialkey import EndpointAddr
from dialkey.identity import Ticket
from dialkey.identity.postcard import Reader, Writer
from dialkey_chat.text import clean_text
from dialkey_gossip import TopicId, TopicTicket

__all__ = ["MAX_ROOM_NAME_CHARS", "RoomTicket"]

MAX_ROOM_NAME_CHARS: Final = 40


def _clean(name: str) -> str:
    return clean_text(name, MAX_ROOM_NAME_CHARS) or "room"


@attrs.frozen
class RoomTicket(Ticket):
    """A room and some of its members.

    Attributes:
        name: what its creator called it.
        topic: its topic, which only those know who have a ticket.
        peers: members, the best first.
    """

    KIND: ClassVar[str] = "room"

    name: str = attrs.field(converter=_clean)
    topic: TopicId
    peers: tuple[EndpointAddr, ...] = ()

    @classmethod
    def create(cls, name: str) -> Self:
        """Make a new room, in which nobody is yet."""
        return cls(name, TopicId.generate())

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the payload."""
        name = reader.string(MAX_ROOM_NAME_CHARS * 4)
        members = TopicTicket.from_bytes(reader.take(reader.remaining))
        return cls(name, members.topic, members.peers)

    @property
    def members(self) -> TopicTicket:
        """The ticket to the topic."""
        return TopicTicket(self.topic, self.peers)

    def to_bytes(self) -> bytes:
        """Encode the payload."""
        return bytes(Writer().string(self.name).raw(self.members.to_bytes()))
