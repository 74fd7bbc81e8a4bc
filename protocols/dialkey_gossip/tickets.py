"""Topic tickets: a topic and some peers in it, as one word that can be pasted.

The creator of a topic goes away sooner or later, and a ticket that names the creator alone dies with
it. A topic ticket therefore names several members.

The format is ours: kind ``topic``; a varint version 0, the topic id, a varint count, and so many
endpoint addresses as in endpoint tickets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import attrs

from dialkey.errors import InvalidTicket
from dialkey.identity import (
    EndpointAddr,
    decode_ticket,
    encode_ticket,
    read_ticket_version,
    reading_ticket,
)
from dialkey.identity.postcard import Writer
from dialkey.limits import MAX_GOSSIP_TICKET_PEERS
from dialkey_gossip.ids import TopicId

__all__ = ["TopicTicket"]


def _distinct(peers: Iterable[EndpointAddr]) -> tuple[EndpointAddr, ...]:
    merged: dict[object, EndpointAddr] = {}
    for peer in peers:
        known = merged.get(peer.id)
        merged[peer.id] = peer if known is None else known.with_addrs(peer.addrs)
    return tuple(merged.values())


@attrs.frozen
class TopicTicket:
    """A ticket that names a topic and peers to join it through.

    Args:
        topic: the topic.
        peers: members, the best first; the same member twice is one with all its addresses.

    Raises:
        InvalidTicket: there are more peers than a ticket may have, or the text would be too long.
    """

    KIND: ClassVar[str] = "topic"

    topic: TopicId
    peers: tuple[EndpointAddr, ...] = attrs.field(default=(), converter=_distinct)
    _text: str = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if len(self.peers) > MAX_GOSSIP_TICKET_PEERS:
            raise InvalidTicket(f"a topic ticket names at most {MAX_GOSSIP_TICKET_PEERS} peers")
        object.__setattr__(self, "_text", encode_ticket(self.KIND, self.to_bytes()))

    @classmethod
    def parse(cls, text: str) -> TopicTicket:
        """Parse the text of a ticket; white space around it is removed first.

        Raises:
            InvalidTicket: the text is something else; message and hint say where it looks wrong.
        """
        return cls.from_bytes(decode_ticket(cls.KIND, text))

    @classmethod
    def from_bytes(cls, payload: bytes) -> TopicTicket:
        """Decode the payload of a ticket.

        Raises:
            InvalidTicket: the payload is something else.
        """
        with reading_ticket(payload) as reader:
            read_ticket_version(reader)
            topic = TopicId(reader.take(32))
            count = reader.count(MAX_GOSSIP_TICKET_PEERS)
            peers = [EndpointAddr.read(reader) for _ in range(count)]
        if not reader.finished:
            raise InvalidTicket("the ticket has data after its end", hint="copy it again")
        return cls(topic, peers)

    def to_bytes(self) -> bytes:
        """Encode the payload."""
        writer = Writer().varint(0).raw(bytes(self.topic)).varint(len(self.peers))
        for peer in self.peers:
            peer.write(writer)
        return bytes(writer)

    def __str__(self) -> str:
        return self._text
