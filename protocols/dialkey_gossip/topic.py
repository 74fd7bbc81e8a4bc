"""The application's handle on a topic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Protocol, Self

import attrs

from dialkey.errors import InvalidInput
from dialkey.event_queue import EventQueue
from dialkey.identity import EndpointAddr, EndpointId, Remote, compact_ticket
from dialkey_gossip.errors import MessageTooLarge, NoNeighbors, TopicLeft
from dialkey_gossip.events import Event
from dialkey_gossip.ids import TopicId
from dialkey_gossip.plumtree import BroadcastStats
from dialkey_gossip.tickets import TopicTicket

__all__ = ["Topic"]


class Host(Protocol):
    """What a topic needs from its gossip."""

    def neighbors(self, topic: TopicId) -> tuple[EndpointId, ...]: ...

    def known_addr(self, peer: EndpointId) -> EndpointAddr: ...

    def own_addr(self) -> EndpointAddr: ...

    def topic_stats(self, topic: TopicId) -> BroadcastStats: ...

    def add_peers(self, topic: TopicId, peers: Iterable[Remote]) -> None: ...

    def publish(self, topic: TopicId, content: bytes, *, to_neighbors: bool) -> bool: ...

    async def room(self) -> None: ...

    def leave(self, topic: Topic) -> None: ...

    async def settle(self) -> None: ...


@attrs.frozen
class Terms:
    """What all handles of a topic share. Attributes: seal: makes the content of a payload."""

    max_payload_bytes: int
    seal: Callable[[bytes], bytes] | None


class Topic:
    """A membership in a topic: publish, and receive what others publish.

    Made by `Gossip.join`. Leave it with `leave`, or use it as an asynchronous context manager. Events
    are fetched with ``async for event in topic``, which ends when the topic is left; several tasks
    may share the work, and each event goes to one of them. Each of several handles of one topic receives
    everything, and the topic is left with the last of them.

    Gossip promises little: a message soon reaches, most probably, those who are in the swarm when it is
    published. There is no order, nobody learns who received what, those who come later do not get earlier
    messages, and a content that is published again within 90 seconds is dropped.
    """

    def __init__(self, id: TopicId, host: Host, terms: Terms, capacity: int) -> None:
        self._id = id
        self._host = host
        self._terms = terms
        self.inbox: EventQueue[Event] = EventQueue(capacity)
        self._is_left = False
        self._arrived = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Topic {self._id.short()}{' left' if self._is_left else ''}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.leave()

    # --- state ----------------------------------------------------------------------------------

    @property
    def id(self) -> TopicId:
        """The topic's id."""
        return self._id

    @property
    def is_left(self) -> bool:
        """Whether this handle has left the topic."""
        return self._is_left

    @property
    def max_payload_bytes(self) -> int:
        """The longest content that `broadcast` takes."""
        return self._terms.max_payload_bytes

    def neighbors(self) -> tuple[EndpointId, ...]:
        """Return the members that are now connected to us in this topic.

        At most five by default, however large the swarm is; it is not a list of members.
        """
        return () if self._is_left else self._host.neighbors(self._id)

    def stats(self) -> BroadcastStats:
        """Return the counters of the topic.

        Raises:
            TopicLeft: the topic was left.
        """
        self._check_open()
        return self._host.topic_stats(self._id)

    def ticket(self, peers: int = 3) -> TopicTicket:
        """Return a ticket to this topic that names us and some neighbours.

        It works for as long as one of those named is in the topic and can be reached at its addresses,
        or found by its id. Make a fresh one whenever you hand one out.

        Args:
            peers: how many neighbours to name besides us, at most.

        Raises:
            TopicLeft: the topic was left.
        """
        self._check_open()
        others = [self._host.known_addr(peer) for peer in self.neighbors()[:peers]]
        return TopicTicket(self._id, [self._host.own_addr(), *others])

    # --- publishing -----------------------------------------------------------------------------

    async def joined(self, timeout: float | None = None) -> None:
        """Wait until there is a neighbour; return at once if there is one.

        Args:
            timeout: seconds; by default, wait for as long as it takes.

        Raises:
            NoNeighbors: nobody was reached in time. Attempts continue.
            TopicLeft: the topic was left.
        """
        try:
            async with asyncio.timeout(timeout):
                while not self.neighbors():
                    self._check_open()
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise NoNeighbors(
                f"nobody joined topic {self._id.short()} with us within {timeout:g} s",
                hint="are the bootstrap peers in the topic, and reachable?",
            ) from None
        self._check_open()

    async def broadcast(self, content: bytes | bytearray | memoryview) -> bool:
        """Publish a content to everybody in the swarm.

        Returns when it is queued for our neighbours. Waits, at most a second for each of them, while
        they are slower than we publish. We do not receive it ourselves.

        Returns:
            True if it was sent; False if this very content was seen here within 90 seconds, in which
            case everybody would drop it. With signatures, each message counts as new.

        Raises:
            MessageTooLarge: it is longer than `max_payload_bytes`.
            NoNeighbors: nobody is connected in this topic; wait for `joined`.
            TopicLeft: the topic was left.
        """
        return await self._publish(content, to_neighbors=False)

    async def broadcast_neighbors(self, content: bytes | bytearray | memoryview) -> None:
        """Send a content to our neighbours only; they do not pass it on.

        Raises:
            MessageTooLarge, NoNeighbors, TopicLeft: as `broadcast`.
        """
        await self._publish(content, to_neighbors=True)

    async def _publish(
        self, content: bytes | bytearray | memoryview, *, to_neighbors: bool
    ) -> bool:
        self._check_open()
        payload = bytes(content)
        if len(payload) > self.max_payload_bytes:
            raise MessageTooLarge(size_bytes=len(payload), limit_bytes=self.max_payload_bytes)
        await self._host.room()
        self._check_open()
        if not self.neighbors():
            raise NoNeighbors(
                f"nobody is connected in topic {self._id.short()}",
                hint="await topic.joined() first",
            )
        seal = self._terms.seal
        return self._host.publish(
            self._id, payload if seal is None else seal(payload), to_neighbors=to_neighbors
        )

    # --- events ---------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self.inbox.get()
        if event is None:
            raise StopAsyncIteration
        return event

    # --- coming and going -----------------------------------------------------------------------

    async def add_peers(self, peers: Iterable[Remote]) -> None:
        """Ask further members to let us in.

        Those that are already neighbours are not asked. Others are retried until they answer.

        Raises:
            InvalidInput: one of them cannot be parsed.
            TopicLeft: the topic was left.
        """
        self._check_open()
        self._host.add_peers(self._id, peers)

    async def leave(self) -> None:
        """Leave the topic: neighbours are told, and iteration ends. Idempotent.

        Events that arrived before that can still be fetched.
        """
        if not self._is_left:
            self._host.leave(self)
            await self._host.settle()

    def end(self) -> None:
        """End this handle; for the gossip that made it."""
        self._is_left = True
        self.inbox.end()
        self._arrived.set()

    def deliver(self, event: Event) -> None:
        """Take an event; for the gossip that made it."""
        self.inbox.put(event)

    def note_neighbor(self) -> None:
        """Wake those who wait for a neighbour; for the gossip that made it."""
        self._arrived.set()

    def _check_open(self) -> None:
        if self._is_left:
            raise TopicLeft(
                f"topic {self._id.short()} was left", hint="join it again with Gossip.join"
            )


def parse_topic(
    topic: TopicId | TopicTicket | bytes | str,
) -> tuple[TopicId, tuple[EndpointAddr, ...]]:
    """Parse what names a topic, and return the peers that a ticket names with it.

    Raises:
        InvalidInput: it does not name a topic.
    """
    if isinstance(topic, TopicTicket):
        return topic.topic, topic.peers
    if isinstance(topic, TopicId):
        return topic, ()
    if isinstance(topic, str):
        text = topic.strip()
        if compact_ticket(text).startswith(TopicTicket.KIND):
            ticket = TopicTicket.parse(text)
            return ticket.topic, ticket.peers
        return TopicId.parse(text), ()
    if isinstance(topic, bytes | bytearray | memoryview):
        return TopicId(topic), ()
    raise InvalidInput(
        f"a topic is named by a TopicId, 32 bytes or a ticket, not by {type(topic).__name__}"
    )
