"""The connections to peers: dialled when something is to be sent, kept while they are needed.

All connections with a peer are read; the newest one is written to, because a peer that was restarted, or
that dialled at the same moment, is found there. A connection that no topic needs is closed after a while,
in a way that leaves an iroh peer able to dial us again.

Source: docs/wire/gossip.md 1.4.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from dialkey.errors import (
    ConnectionClosed,
    ConnectionClosedByPeer,
    DialkeyError,
)
from dialkey.identity import EndpointId
from dialkey.limits import (
    MAX_GOSSIP_CONNECTIONS_PER_PEER,
    MAX_GOSSIP_PEERS,
)
from dialkey.printable import printable_traceback
from dialkey_gossip.dialling import Dialler
from dialkey_gossip.ids import PeerId, TopicId
from dialkey_gossip.incoming import Incoming
from dialkey_gossip.messages import Disconnect, Message, ShuffleReply
from dialkey_gossip.send_queue import NoStreamGranted, SendQueue

if TYPE_CHECKING:
    from dialkey import Connection

__all__ = ["LinkStats", "Links", "Owner"]

CLOSE_DONE: Final = 0
CLOSE_DONE_REASON: Final = b"close from disconnect"
"""What iroh closes with as well."""

CLOSE_TOO_SLOW: Final = 1
CLOSE_BUSY: Final = 3

STALL_TIMEOUT_S: Final = 10.0
"""A peer that takes nothing for this long is given up; others supply it, or it comes back."""

LINGER_S: Final = 5.0
"""An eviction is often followed by a new request, and what was sent has to arrive."""

PATIENCE_S: Final = 1.0
"""How long a full queue makes publishers and readers wait before it counts as slow."""

_FINISH_TIMEOUT_S: Final = 1.0
_MAX_HEARD_TOPICS: Final = 64
_MANY_QUEUES: Final = 32
"""Beyond this, queues of topics that were left are removed."""

logger = logging.getLogger("dialkey.gossip")


class Owner(Protocol):
    """What the links serve."""

    def on_message(self, peer: PeerId, topic: TopicId, message: Message) -> None:
        """Take a message."""

    def on_lost(self, peer: PeerId, *, is_clean: bool) -> None:
        """Note that a peer cannot be reached, or that its last connection ended."""

    def uses(self, peer: PeerId) -> bool:
        """Return whether a topic needs the connection to a peer."""

    def has_topic(self, topic: TopicId) -> bool:
        """Return whether messages of a topic are of interest."""


@attrs.frozen
class LinkStats:
    """What has happened between this node and its peers since the start; see also `Gossip.stats`.

    Attributes:
        peers: peers that are connected or being dialled.
        connections: open connections.
        queued_bytes: bytes that wait to be sent.
        dials: dials started.
        failed_dials: dials that failed.
        dropped_messages: messages not sent because the peer was too slow.
        slow_peers: peers given up because they took nothing.
        malformed: frames and streams that could not be read.
    """

    peers: int
    connections: int
    queued_bytes: int
    dials: int
    failed_dials: int
    dropped_messages: int
    slow_peers: int
    malformed: int


class _Link:
    """One peer."""

    def __init__(self, peer: EndpointId) -> None:
        self.peer = peer
        self.id = PeerId(bytes(peer))
        self.connections: list[Connection] = []
        self.queues: dict[TopicId, SendQueue] = {}
        self.dial: asyncio.Task[None] | None = None
        self.check: asyncio.TimerHandle | None = None
        self.heard_at = 0.0
        self.heard_topics: dict[TopicId, None] = {}
        self.has_parted = False

    @property
    def is_idle(self) -> bool:
        return all(queue.is_empty and queue.task is None for queue in self.queues.values())


class _Ear:
    """Receives what one peer sends."""

    def __init__(
        self,
        link: _Link,
        owner: Owner,
        counts: Counter[str],
        dialler: Dialler,
        room: Callable[[], Coroutine[object, object, None]],
    ) -> None:
        self._link = link
        self._owner = owner
        self._counts = counts
        self._dialler = dialler
        self._room = room

    def count(self, received_bytes: int) -> None:
        self._dialler.earn(self._link.id, received_bytes)

    def wants(self, topic: TopicId) -> bool:
        link = self._link
        link.heard_at = asyncio.get_running_loop().time()
        if len(link.heard_topics) < _MAX_HEARD_TOPICS:
            link.heard_topics[topic] = None
        return self._owner.has_topic(topic)

    def take(self, topic: TopicId, message: Message) -> None:
        self._owner.on_message(self._link.id, topic, message)

    def note_malformed(self) -> None:
        self._counts["malformed"] += 1

    async def room(self) -> None:
        await self._room()


class Links:
    """All peers of one node.

    Everything runs in the event loop of the endpoint; no method but those marked `async` waits.

    Args:
        dialler: dials peers.
        max_message_bytes: the limit on a frame's body.
        owner: takes what arrives.
    """

    def __init__(self, dialler: Dialler, max_message_bytes: int, owner: Owner) -> None:
        self._dialler = dialler
        self._max_message_bytes = max_message_bytes
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._links: dict[PeerId, _Link] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._counts: Counter[str] = Counter()
        self._drained = asyncio.Event()
        self._is_closing = False

    # --- sending --------------------------------------------------------------------------------

    def send(self, peer: PeerId, topic: TopicId, message: Message) -> None:
        """Queue a message, and dial the peer if it is not connected."""
        if self._is_closing:
            return
        link = self._links.get(peer)
        if link is None:
            link = self._links[peer] = _Link(EndpointId(peer))
        queue = link.queues.get(topic) or self._add_queue(link, topic)
        link.has_parted = isinstance(message, Disconnect | ShuffleReply)
        dropped = queue.dropped
        if not queue.put(message):
            self._give_up(link)
            return
        self._counts["dropped"] += queue.dropped - dropped
        if link.connections:
            self._flush(link, queue)
        elif link.dial is None:
            self._dial(link)

    def _add_queue(self, link: _Link, topic: TopicId) -> SendQueue:
        queue = SendQueue(topic, self._max_message_bytes)
        if len(link.queues) > _MANY_QUEUES:
            link.queues = {
                each.topic: each
                for each in link.queues.values()
                if each.task or not each.is_empty or self._owner.has_topic(each.topic)
            }
        link.queues[topic] = queue
        return queue

    async def room(self) -> None:
        """Wait while queues are full, at most a second; those that still are then count as slow."""
        deadline = self._loop.time() + PATIENCE_S
        while full := self._full_queues():
            self._drained.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._drained.wait()
            except TimeoutError:
                for queue in full:
                    queue.is_slow = queue.is_full
                return

    def _full_queues(self) -> list[SendQueue]:
        return [
            queue
            for link in self._links.values()
            for queue in link.queues.values()
            if queue.is_full
        ]

    def _flush(self, link: _Link, queue: SendQueue) -> None:
        if queue.task is None and not queue.is_empty:
            name = f"dialkey-gossip-send-{queue.topic.short()}-{link.peer.short()}"
            queue.task = self._running(self._run_queue(link, queue), name)

    async def _run_queue(self, link: _Link, queue: SendQueue) -> None:
        try:
            while link.connections and not queue.is_empty:
                connection = link.connections[-1]
                try:
                    await queue.flush(connection, STALL_TIMEOUT_S)
                except TimeoutError:
                    self._give_up(link)
                    return
                except NoStreamGranted:
                    logger.info("%s grants no stream for another topic", link.peer.short())
                    self._counts["dropped"] += queue.clear()
                except DialkeyError as error:
                    # With the connection, `_serve` deals. A stream alone ends when the peer wants
                    # no more of it; the next message opens another one.
                    logger.debug("cannot send to %s: %s", link.peer.short(), error)
                    await asyncio.sleep(0)
                    if connection in link.connections and connection.is_closed:
                        return
        finally:
            queue.task = None
            self._drained.set()

    def _give_up(self, link: _Link) -> None:
        """Close all connections to a peer that takes nothing."""
        logger.info("peer %s takes nothing; letting it go", link.peer.short())
        self._counts["slow"] += 1
        for queue in link.queues.values():
            queue.clear()
        self._drained.set()
        for connection in link.connections:
            connection.close(CLOSE_TOO_SLOW, b"too slow")

    # --- dialling -------------------------------------------------------------------------------

    def _dial(self, link: _Link) -> None:
        name = f"dialkey-gossip-dial-{link.peer.short()}"
        link.dial = self._running(self._run_dial(link), name)

    async def _run_dial(self, link: _Link) -> None:
        # The machine that asked for it is still running, and must not learn of a failure yet.
        await asyncio.sleep(0)
        try:
            connection = await self._dialler.dial(link.id)
        except DialkeyError as error:
            self._counts["failed_dials"] += 1
            logger.debug("cannot dial %s: %s", link.peer.short(), error)
            link.dial = None
            self._dial_failed(link)
            return
        finally:
            link.dial = None
        if self._is_closing:
            connection.close(CLOSE_DONE, CLOSE_DONE_REASON)
            return
        name = f"dialkey-gossip-serve-{link.peer.short()}"
        self._spawn(self.serve(connection), name)

    def _dial_failed(self, link: _Link) -> None:
        if link.connections or self._links.get(link.id) is not link:
            return
        self._forget(link)
        self._owner.on_lost(link.id, is_clean=False)

    # --- receiving ------------------------------------------------------------------------------

    async def serve(self, connection: Connection) -> None:
        """Take a connection, dialled or accepted, and read it until it ends.

        Cancelling it closes the connection.
        """
        peer = PeerId(bytes(connection.remote_id))
        link = self._links.get(peer)
        if self._is_closing:
            connection.close(CLOSE_DONE, CLOSE_DONE_REASON)
            return
        if link is None:
            if len(self._links) >= MAX_GOSSIP_PEERS:
                connection.close(CLOSE_BUSY, b"too many peers")
                return
            link = self._links[peer] = _Link(connection.remote_id)
        if len(link.connections) >= MAX_GOSSIP_CONNECTIONS_PER_PEER:
            # The oldest: to iroh, the end of one that it no longer sends on means nothing.
            link.connections[0].close(CLOSE_DONE, CLOSE_DONE_REASON)
        self._dialler.reached(connection)
        link.connections.append(connection)
        link.heard_at = self._loop.time()
        for queue in link.queues.values():
            self._flush(link, queue)
        self.release(peer)
        is_clean = False
        try:
            ear = _Ear(link, self._owner, self._counts, self._dialler, self.room)
            await Incoming(connection, self._max_message_bytes, ear).read()
            error = await connection.closed()
            is_clean = isinstance(error, ConnectionClosed) or (
                isinstance(error, ConnectionClosedByPeer)
                and error.is_application
                and error.error_code == CLOSE_DONE
            )
            logger.debug("connection with %s ended: %s", link.peer.short(), error)
        finally:
            connection.close(CLOSE_DONE, CLOSE_DONE_REASON)
            self._ended(link, connection, is_clean)

    def _ended(self, link: _Link, connection: Connection, is_clean: bool) -> None:
        link.connections.remove(connection)
        if self._links.get(link.id) is not link:
            return
        if link.connections:
            for queue in link.queues.values():
                self._flush(link, queue)
            return
        if link.dial is not None:
            return  # it ends soon, one way or the other
        self._forget(link)
        if not self._is_closing:
            self._owner.on_lost(link.id, is_clean=is_clean)

    # --- letting go -----------------------------------------------------------------------------

    def release(self, peer: PeerId) -> None:
        """Close the connections to a peer after a while, unless some topic needs them."""
        link = self._links.get(peer)
        if link is not None and link.check is None and not self._is_closing:
            link.check = self._loop.call_later(LINGER_S, self._check, link)

    def _check(self, link: _Link) -> None:
        link.check = None
        if self._owner.uses(link.id) or not link.connections:
            return  # it will be released again, or it has ended
        is_quiet = self._loop.time() - link.heard_at >= LINGER_S * 0.9
        if not link.is_idle or not is_quiet:
            self.release(link.id)
            return
        if not link.has_parted:
            # An iroh node that is not answered keeps sending into the closed connection; this tells
            # it that we are not a neighbour, and makes it dial anew next time.
            for topic in link.heard_topics:
                if self._owner.has_topic(topic):
                    self.send(link.id, topic, ShuffleReply())
            link.has_parted = True
        self._spawn(self._part(link), f"dialkey-gossip-part-{link.peer.short()}")

    async def _part(self, link: _Link) -> None:
        await self._finish(link)
        if self._owner.uses(link.id) or not link.is_idle:
            return  # changed its mind meanwhile; its queues open new streams
        for connection in link.connections:
            connection.close(CLOSE_DONE, CLOSE_DONE_REASON)

    async def _finish(self, link: _Link) -> None:
        """Wait a moment until a peer has everything that was queued for it."""
        try:
            async with asyncio.timeout(_FINISH_TIMEOUT_S):
                while tasks := [queue.task for queue in link.queues.values() if queue.task]:
                    await asyncio.wait(tasks)
                for queue in list(link.queues.values()):
                    await queue.finish()
        except (TimeoutError, DialkeyError) as error:
            logger.debug("%s may not have everything: %r", link.peer.short(), error)

    def _forget(self, link: _Link) -> None:
        if link.check is not None:
            link.check.cancel()
            link.check = None
        if self._links.get(link.id) is link:
            del self._links[link.id]
        self._drained.set()

    async def close(self) -> None:
        """Send what is queued, wait a moment for acknowledgements, then close everything."""
        self._is_closing = True
        links = [link for link in self._links.values() if link.connections]
        if links:
            await asyncio.gather(*(self._finish(link) for link in links))
        for link in list(self._links.values()):
            if link.check is not None:
                link.check.cancel()
                link.check = None
            for connection in link.connections:
                connection.close(CLOSE_DONE, CLOSE_DONE_REASON)
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._links.clear()

    # --- the rest -------------------------------------------------------------------------------

    def stats(self) -> LinkStats:
        """Return the current counters."""
        counts = self._counts
        links = self._links.values()
        return LinkStats(
            peers=len(self._links),
            connections=sum(len(link.connections) for link in links),
            queued_bytes=sum(
                queue.queued_bytes for link in links for queue in link.queues.values()
            ),
            dials=self._dialler.dials,
            failed_dials=counts["failed_dials"],
            dropped_messages=counts["dropped"],
            slow_peers=counts["slow"],
            malformed=counts["malformed"],
        )

    def connected(self) -> tuple[EndpointId, ...]:
        """Return the peers with an open connection."""
        return tuple(link.peer for link in self._links.values() if link.connections)

    def _spawn(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _running(
        self, work: Coroutine[object, object, None], name: str
    ) -> asyncio.Task[None] | None:
        """Start work that unregisters itself when it ends; None if it has already ended.

        With an eager task factory (Textual sets one) a task may have ended before it is returned.
        """
        task = self._spawn(work, name)
        return None if task.done() else task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._counts["failed_tasks"] += 1
            logger.error("%s failed\n%s", task.get_name(), printable_traceback(error))
