"""The messages of gossip and their encoding.

Two layers share one enum: the *swarm* layer (HyParView) keeps the neighbourhood, the *gossip* layer
(PlumTree) carries content along it. The topic is not in a message; it heads the stream.

Source: docs/wire/gossip.md 0 and 2.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import attrs

from dialkey.errors import InvalidKey, WireError
from dialkey.identity import EndpointId
from dialkey.identity.postcard import Reader, Writer
from dialkey_gossip.ids import MessageId, PeerId

__all__ = [
    "MAX_ROUND",
    "Disconnect",
    "ForwardJoin",
    "Gossip",
    "Graft",
    "IHave",
    "Join",
    "Message",
    "Neighbor",
    "PeerInfo",
    "Prune",
    "Shuffle",
    "ShuffleReply",
    "decode",
    "encode",
    "encoded_size",
    "ihave_capacity",
    "max_content",
]

MAX_ROUND: Final = 0xFFFF
"""Rounds are 16 bits on the wire and saturate."""

_SWARM, _GOSSIP = 0, 1
_JOIN, _FORWARD_JOIN, _SHUFFLE, _SHUFFLE_REPLY, _NEIGHBOR, _DISCONNECT = range(6)
_CONTENT, _PRUNE, _GRAFT, _IHAVE = range(4)
_HIGH, _LOW = 0, 1
_SCOPE_SWARM, _SCOPE_NEIGHBORS = 0, 1

_MIN_PEER_INFO_BYTES: Final = 33
_MIN_IHAVE_BYTES: Final = 33
_MAX_IHAVE_BYTES: Final = 35
_IHAVE_RESERVE_BYTES: Final = 36
"""Layer, kind and count, and the topic id that iroh reserves room for without sending it."""

_CONTENT_OVERHEAD_BYTES: Final = 36
"""Layer, kind, id, scope and a round below 128; the length of the content comes on top."""


@attrs.frozen
class PeerInfo:
    """A peer and what is known about where it is.

    Attributes:
        id: the peer.
        data: opaque to the machines (see `dialkey_gossip.peer_data`); None where nothing is known.
    """

    id: PeerId
    data: bytes | None = None


@attrs.frozen
class Join:
    """Ask a member to let us into its topic. Attributes: data: of the sender."""

    data: bytes | None = None


@attrs.frozen
class ForwardJoin:
    """Announce a joiner on a random walk of `ttl` further hops."""

    peer: PeerInfo
    ttl: int


@attrs.frozen
class Shuffle:
    """Offer some known peers to the node at the end of a random walk of `ttl` further hops."""

    origin: PeerId
    nodes: tuple[PeerInfo, ...]
    ttl: int


@attrs.frozen
class ShuffleReply:
    """Answer a shuffle, or say goodbye, with some known peers."""

    nodes: tuple[PeerInfo, ...] = ()


@attrs.frozen
class Neighbor:
    """Ask to become a neighbour, or agree to it.

    Attributes:
        high: whether the receiver should make room if it has none.
        data: of the sender.
    """

    high: bool
    data: bytes | None = None


@attrs.frozen
class Disconnect:
    """Stop being neighbours. Attributes: alive: whether the sender stays in the topic."""

    alive: bool


@attrs.frozen
class Gossip:
    """Carry content.

    Attributes:
        id: the BLAKE3 hash of the content.
        content: up to `max_content` bytes.
        round: hops travelled, 0 from the publisher itself; None in the neighbour scope, where
            nobody passes the message on.
    """

    id: MessageId
    content: bytes
    round: int | None


@attrs.frozen
class Prune:
    """Ask to be sent announcements of messages instead of the messages."""


@attrs.frozen
class Graft:
    """Ask to be sent messages at once. Attributes: id: the one that is missing, if any."""

    id: MessageId | None
    round: int


@attrs.frozen
class IHave:
    """Announce messages by id and round."""

    entries: tuple[tuple[MessageId, int], ...]


Message: TypeAlias = (
    Join
    | ForwardJoin
    | Shuffle
    | ShuffleReply
    | Neighbor
    | Disconnect
    | Gossip
    | Prune
    | Graft
    | IHave
)


def _write_data(writer: Writer, data: bytes | None) -> None:
    writer.option(data is not None)
    if data is not None:
        writer.byte_string(data)


def _write_nodes(writer: Writer, nodes: tuple[PeerInfo, ...]) -> None:
    writer.varint(len(nodes))
    for node in nodes:
        writer.raw(node.id)
        _write_data(writer, node.data)


def encode(message: Message) -> bytes:
    """Encode a message, without the length that frames it."""
    writer = Writer()
    match message:
        case Gossip(id, content, round_):
            writer.u8(_GOSSIP).u8(_CONTENT).raw(id).byte_string(content)
            if round_ is None:
                writer.u8(_SCOPE_NEIGHBORS)
            else:
                writer.u8(_SCOPE_SWARM).varint(round_)
        case IHave(entries):
            writer.u8(_GOSSIP).u8(_IHAVE).varint(len(entries))
            for id, round_ in entries:
                writer.raw(id).varint(round_)
        case Graft(wanted, round_):
            writer.u8(_GOSSIP).u8(_GRAFT).option(wanted is not None)
            if wanted is not None:
                writer.raw(wanted)
            writer.varint(round_)
        case Prune():
            writer.u8(_GOSSIP).u8(_PRUNE)
        case Join(data):
            _write_data(writer.u8(_SWARM).u8(_JOIN), data)
        case ForwardJoin(peer, ttl):
            writer.u8(_SWARM).u8(_FORWARD_JOIN).raw(peer.id)
            _write_data(writer, peer.data)
            writer.varint(ttl)
        case Shuffle(origin, nodes, ttl):
            _write_nodes(writer.u8(_SWARM).u8(_SHUFFLE).raw(origin), nodes)
            writer.varint(ttl)
        case ShuffleReply(nodes):
            _write_nodes(writer.u8(_SWARM).u8(_SHUFFLE_REPLY), nodes)
        case Neighbor(high, data):
            writer.u8(_SWARM).u8(_NEIGHBOR).u8(_HIGH if high else _LOW)
            _write_data(writer, data)
        case Disconnect(alive):
            # The second flag is obsolete: everybody sends false and nobody reads it.
            writer.u8(_SWARM).u8(_DISCONNECT).boolean(alive).boolean(False)
    return bytes(writer)


def _read_peer(reader: Reader) -> PeerId:
    raw = reader.take(32)
    try:
        EndpointId(raw)
    except InvalidKey as error:
        raise WireError(error.message) from None
    return PeerId(raw)


def _read_data(reader: Reader) -> bytes | None:
    return reader.byte_string(reader.remaining) if reader.option() else None


def _read_info(reader: Reader) -> PeerInfo:
    return PeerInfo(_read_peer(reader), _read_data(reader))


def _read_nodes(reader: Reader) -> tuple[PeerInfo, ...]:
    count = reader.count(reader.remaining // _MIN_PEER_INFO_BYTES)
    return tuple([_read_info(reader) for _ in range(count)])


def _read_swarm(reader: Reader, kind: int) -> Message:
    if kind == _JOIN:
        return Join(_read_data(reader))
    if kind == _FORWARD_JOIN:
        return ForwardJoin(_read_info(reader), reader.varint(16))
    if kind == _SHUFFLE:
        return Shuffle(_read_peer(reader), _read_nodes(reader), reader.varint(16))
    if kind == _SHUFFLE_REPLY:
        return ShuffleReply(_read_nodes(reader))
    if kind == _NEIGHBOR:
        priority = reader.varint(32)
        if priority not in (_HIGH, _LOW):
            raise WireError(f"a priority is 0 or 1, not {priority}")
        return Neighbor(priority == _HIGH, _read_data(reader))
    if kind == _DISCONNECT:
        alive = reader.boolean()
        reader.boolean()
        return Disconnect(alive)
    raise WireError(f"a swarm message is of kind 0 to 5, not {kind}")


def _read_gossip(reader: Reader, kind: int) -> Message:
    if kind == _CONTENT:
        id = MessageId(reader.take(32))
        content = reader.byte_string(reader.remaining)
        scope = reader.varint(32)
        if scope == _SCOPE_SWARM:
            return Gossip(id, content, reader.varint(16))
        if scope == _SCOPE_NEIGHBORS:
            return Gossip(id, content, None)
        raise WireError(f"a delivery scope is 0 or 1, not {scope}")
    if kind == _PRUNE:
        return Prune()
    if kind == _GRAFT:
        wanted = MessageId(reader.take(32)) if reader.option() else None
        return Graft(wanted, reader.varint(16))
    if kind == _IHAVE:
        count = reader.count(reader.remaining // _MIN_IHAVE_BYTES)
        return IHave(tuple([(MessageId(reader.take(32)), reader.varint(16)) for _ in range(count)]))
    raise WireError(f"a gossip message is of kind 0 to 3, not {kind}")


def decode(data: bytes) -> Message:
    """Decode one message; bytes after it are ignored, as in iroh.

    Work and memory are linear in the size of `data`. Whether a content fits its id is for the
    receiver to check; ids of peers are checked to be keys.

    Raises:
        WireError: the bytes are not a message.
    """
    reader = Reader(data)
    layer = reader.varint(32)
    if layer == _SWARM:
        return _read_swarm(reader, reader.varint(32))
    if layer == _GOSSIP:
        return _read_gossip(reader, reader.varint(32))
    raise WireError(f"a message is of layer 0 or 1, not {layer}")


def encoded_size(message: Message) -> int:
    """Return the number of bytes of a message, as `encode` would write it."""
    return len(encode(message))


def max_content(max_message_bytes: int) -> int:
    """Return the longest content that every relay can pass on within the message limit.

    Writers keep a frame's body strictly below the limit: 4,057 bytes of content for 4,096.

    Source: docs/wire/gossip.md 1.3.
    """
    room = max_message_bytes - 1 - _CONTENT_OVERHEAD_BYTES
    length_bytes = 1
    while room - length_bytes >= 1 << 7 * length_bytes:
        length_bytes += 1
    return room - length_bytes


def ihave_capacity(max_message_bytes: int) -> int:
    """Return the number of entries in the largest IHave: 116 for messages of 4,096 bytes."""
    return (max_message_bytes - _IHAVE_RESERVE_BYTES) // _MAX_IHAVE_BYTES
