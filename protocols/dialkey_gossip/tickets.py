"""Topic tickets: a topic and some peers in it, as one word that can be pasted.

The creator of a topic leaves sooner or later, and a ticket that names only the creator is useless then.
A topic ticket therefore names several members.

The format is ours: kind ``topic``; a varint version 0, the topic id, a varint count, and that many
endpoint addresses, encoded as in endpoint tickets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Self

import attrs

from dialkey.errors import InvalidTicket
from dialkey.identity import EndpointAddr, Ticket, read_ticket_version
from dialkey.identity.postcard import Reader, Writer
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
class TopicTicket(Ticket):
    """A ticket that names a topic and peers to join it through.

    Args:
        topic: the topic.
        peers: members, the best first; entries for the same member are merged.

    Raises:
        InvalidTicket: there are more peers than a ticket may have, or the text would be too long.
    """

    KIND: ClassVar[str] = "topic"

    topic: TopicId
    peers: tuple[EndpointAddr, ...] = attrs.field(default=(), converter=_distinct)

    def __attrs_post_init__(self) -> None:
        if len(self.peers) > MAX_GOSSIP_TICKET_PEERS:
            raise InvalidTicket(f"a topic ticket names at most {MAX_GOSSIP_TICKET_PEERS} peers")
        super().__attrs_post_init__()

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the payload completely."""
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
