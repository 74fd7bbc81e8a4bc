"""What the state machines ask for, and what they report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import attrs

from dialkey_gossip.ids import MessageId, PeerId, TopicId
from dialkey_gossip.messages import Message

__all__ = [
    "Action",
    "Delivered",
    "Learned",
    "Output",
    "PeerDown",
    "PeerUp",
    "Release",
    "Send",
    "Tell",
    "TopicEvent",
]


@attrs.frozen
class PeerUp:
    """A peer became a neighbour."""

    peer: PeerId


@attrs.frozen
class PeerDown:
    """A peer is no longer a neighbour."""

    peer: PeerId


@attrs.frozen
class Delivered:
    """A message arrived for the first time.

    Attributes:
        id: its id.
        content: its content.
        round: hops travelled, 0 from the publisher itself; None in the neighbour scope.
        delivered_from: the neighbour that sent it, which need not be its author.
    """

    id: MessageId
    content: bytes
    round: int | None
    delivered_from: PeerId


TopicEvent: TypeAlias = PeerUp | PeerDown | Delivered


@attrs.frozen
class Send:
    """Send a message to a peer; connect to it first if necessary."""

    topic: TopicId
    peer: PeerId
    message: Message


@attrs.frozen
class Tell:
    """Tell the application of a topic."""

    topic: TopicId
    event: TopicEvent


@attrs.frozen
class Release:
    """The topic no longer needs a connection to this peer; other topics may."""

    topic: TopicId
    peer: PeerId


@attrs.frozen
class Learned:
    """Somebody named a peer. Attributes: data: where it is; None if that was not said."""

    peer: PeerId
    data: bytes | None
    source: PeerId


Action: TypeAlias = Send | Tell | Release | Learned


class Output(Protocol):
    """Where the two machines of a topic put their actions, in order."""

    def send(self, peer: PeerId, message: Message) -> None:
        """Send a message of this topic."""

    def neighbor_up(self, peer: PeerId, now: float, *, high: bool) -> None:
        """Report that a peer became a neighbour."""

    def neighbor_down(self, peer: PeerId, now: float) -> None:
        """Report that a peer is no longer a neighbour."""

    def deliver(self, event: Delivered) -> None:
        """Hand a message to the application."""

    def release(self, peer: PeerId) -> None:
        """Report that this topic no longer needs a connection to a peer."""

    def learned(self, peer: PeerId, data: bytes | None, source: PeerId) -> None:
        """Report who named a peer, and where it may be found if that was said as well."""

    def call_at(self, at: float, timer: Callable[[float], None]) -> None:
        """Call a function once with the time, at `at` or later, unless the topic ends before."""
