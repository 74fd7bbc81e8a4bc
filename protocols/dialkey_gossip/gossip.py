"""Gossip on an endpoint: the state machines with connections, a clock and randomness."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

import attrs

from dialkey import DialLimits, NetworkChanged, Opening, hookimpl
from dialkey.errors import EndpointClosed, InvalidInput, LocalError
from dialkey.identity import EndpointAddr, EndpointId, RelayUrl, Remote, TransportAddr, parse_remote
from dialkey_gossip.actions import Action, Delivered, Learned, PeerDown, PeerUp, Release, Send, Tell
from dialkey_gossip.address_book import AddressBook, BookLookup
from dialkey_gossip.config import GossipConfig
from dialkey_gossip.dialling import Dialler
from dialkey_gossip.events import Joined, NeighborDown, NeighborUp, Received
from dialkey_gossip.framing import ALPN
from dialkey_gossip.ids import PeerId, TopicId
from dialkey_gossip.links import Links, LinkStats
from dialkey_gossip.messages import Message
from dialkey_gossip.node import Node
from dialkey_gossip.peer_data import encode_peer_data, peer_data_or_none
from dialkey_gossip.plumtree import BroadcastStats, Validate
from dialkey_gossip.relay_rules import Ip, RelayRules
from dialkey_gossip.signing import (
    ENVELOPE_OVERHEAD_BYTES,
    Opener,
    Signer,
    Signing,
    read_envelope,
)
from dialkey_gossip.tickets import TopicTicket
from dialkey_gossip.topic import Terms, Topic, parse_topic

if TYPE_CHECKING:
    from dialkey import Connection, Endpoint
    from dialkey.endpoint import AddressLookup

__all__ = ["Gossip", "GossipStats"]

DEFAULT_CAPACITY: Final = 2048
"""Events that wait for one handle; the same as in iroh."""

_OWN_ADDR_S: Final = 1.0
"""Minimum time between two checks of our own addresses."""

_SLEEP_S: Final = 5.0
"""When this much wall-clock time passed that the event loop did not see, the machine slept."""

_WATCH_S: Final = 2.0

_SESSION_STEP_S: Final = 0.002
"""Sessions of signed messages are named by milliseconds."""

logger = logging.getLogger("dialkey.gossip")


@attrs.frozen
class GossipStats:
    """What gossip holds now and has done since it started.

    Attributes:
        topics: the counters of each topic.
        links: the connections to peers.
    """

    topics: Mapping[TopicId, BroadcastStats]
    links: LinkStats


@attrs.define
class _Membership:
    """A topic that was joined here."""

    terms: Terms
    signing: Signing | None
    handles: list[Topic]
    is_joined: bool = False


class Gossip:
    """Topics for a swarm of any size, wire-compatible with iroh-gossip.

    It is a plugin: ``gossip = router.add(Gossip())``, or ``Endpoint.bind(plugins=[gossip])`` with a
    `Router`. Messages travel along a tree that the members build among themselves, each connected to
    five others; see ``docs/gossip.md`` for what that promises and what it does not.

    Args:
        config: the numbers; `max_message_bytes` must be the same in the whole swarm.
        alpn: the protocol's name, for a swarm separate from all others; iroh's by default.
        seed: fixes all random choices, for tests.
        clock: Unix time, for signatures and to notice that the machine slept.
    """

    def __init__(
        self,
        config: GossipConfig | None = None,
        *,
        alpn: str | bytes = ALPN,
        seed: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config if config is not None else GossipConfig()
        self._alpn = alpn.encode("ascii") if isinstance(alpn, str) else bytes(alpn)
        self._rng = random.Random(seed)
        self._clock = clock
        self._book = AddressBook()
        self._rules = RelayRules(self._configured_relays, self._own_ips)
        self._memberships: dict[TopicId, _Membership] = {}
        self._openers: dict[TopicId, Opener] = {}
        self._endpoint: Endpoint | None = None
        self._node: Node
        self._links: Links
        self._loop: asyncio.AbstractEventLoop
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._wall_offset_s = 0.0
        self._own_addr: EndpointAddr | None = None
        self._own_addr_at = float("-inf")
        self._shutting_down: asyncio.Task[None] | None = None
        self._session_at = 0.0

    def __repr__(self) -> str:
        return f"<Gossip with {len(self._memberships)} topics>"

    # --- the plugin -----------------------------------------------------------------------------

    @hookimpl
    def dialkey_protocols(self, endpoint: Endpoint) -> Mapping[str | bytes, Gossip]:
        """Serve the protocol on an endpoint."""
        if self._endpoint is not None:
            raise LocalError("this Gossip serves an endpoint already", hint="make another Gossip()")
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._node = Node(PeerId(bytes(endpoint.id)), self._config, self._rng)
        dialler = Dialler(endpoint, self._alpn, self._book, self._rules)
        self._links = Links(dialler, self._config.max_message_bytes, self)
        self._wall_offset_s = self._clock() - self._loop.time()
        return {self._alpn: self}

    @hookimpl
    async def dialkey_endpoint_closing(self, endpoint: Endpoint) -> None:
        """Leave all topics before the connections are closed."""
        await self.shutdown()

    @hookimpl
    def dialkey_events(self, event: object) -> None:
        """Look for lost peers when the network has changed."""
        is_open = self._endpoint is not None and self._shutting_down is None
        if is_open and isinstance(event, NetworkChanged):
            self.network_changed()

    async def accept(self, connection: Connection) -> None:
        """Serve a connection that a peer made to us."""
        self._check_open()
        await self._links.serve(connection)

    async def shutdown(self) -> None:
        """Leave all topics, tell the neighbours, and release everything. Idempotent.

        Takes at most about a second. When cancelled, the shutdown continues in the background.
        """
        if self._endpoint is None:
            return
        if self._shutting_down is None:
            self._shutting_down = asyncio.create_task(
                self._shut_down(), name="dialkey-gossip-shutdown"
            )
        await asyncio.shield(self._shutting_down)

    async def _shut_down(self) -> None:
        for topic, membership in list(self._memberships.items()):
            for handle in membership.handles:
                handle.end()
            self._act(self._node.quit(topic, self._now()))
        self._memberships.clear()
        for timer in (self._timer, self._watch):
            if timer is not None:
                timer.cancel()
        await self._links.close()

    def _check_open(self) -> None:
        if self._endpoint is None:
            raise LocalError(
                "this Gossip does not serve an endpoint yet", hint="add it with router.add(gossip)"
            )
        if self._shutting_down is not None:
            raise EndpointClosed("gossip was shut down")

    # --- topics ---------------------------------------------------------------------------------

    def join(
        self,
        topic: TopicId | TopicTicket | bytes | str,
        bootstrap: Iterable[Remote] = (),
        *,
        signing: Signing | None = None,
        capacity: int = DEFAULT_CAPACITY,
    ) -> Opening[Topic]:
        """Join a topic and start looking for its members. Returns at once; see `Topic.joined`.

        ``async with gossip.join(…) as topic`` leaves the topic at the end; after
        ``topic = await gossip.join(…)`` call `Topic.leave` yourself.

        Peers that do not answer are retried, with pauses, for as long as the topic is held, and so are
        lost neighbours. Without any bootstrap peer, we wait for others to contact us.

        Args:
            topic: a `TopicId`, its 32 bytes or 64 hex digits, or a `TopicTicket` or its text, whose
                peers are asked as well.
            bootstrap: members to ask: tickets, addresses, endpoint ids, or their text forms.
            signing: sign our messages and accept only signed ones; all members have to agree on it.
            capacity: how many events wait for this handle before the oldest is dropped.

        Returns:
            A handle. A topic can be joined several times; handles share their neighbours.

        Raises:
            InvalidInput: the topic or a peer cannot be parsed, the topic is already held with other
                settings for signatures, or the capacity is below 1.
            LocalError: gossip does not serve an endpoint yet.
            EndpointClosed: gossip was shut down.
        """
        return Opening(self._join(topic, bootstrap, signing, capacity))

    async def _join(
        self,
        topic: TopicId | TopicTicket | bytes | str,
        bootstrap: Iterable[Remote],
        signing: Signing | None,
        capacity: int,
    ) -> Topic:
        self._check_open()
        id, named = parse_topic(topic)
        peers = [*named, *(parse_remote(remote) for remote in bootstrap)]
        if capacity < 1:
            raise InvalidInput(f"a handle holds at least one event, not {capacity}")
        membership = self._memberships.get(id)
        opener: Opener | None = None
        if membership is None:
            opener = self._opener(id, signing)
            membership = _Membership(self._terms(id, signing), signing, [])
            self._memberships[id] = membership
        elif membership.signing != signing:
            raise InvalidInput(f"topic {id.short()} is held with other settings for signatures")
        handle = Topic(id, self, membership.terms, capacity)
        membership.handles.append(handle)
        neighbors = self.neighbors(id)
        for neighbor in neighbors:
            handle.deliver(NeighborUp(neighbor))
        if neighbors:
            handle.deliver(Joined())
        self._ask(id, peers, None if opener is None else opener.admit)
        self._watch_sleep()
        return handle

    def _opener(self, topic: TopicId, signing: Signing | None) -> Opener | None:
        """Return what checks signatures; it survives leaving a topic and joining it again."""
        self._openers = {id: each for id, each in self._openers.items() if not each.is_empty()}
        if signing is None:
            return None
        opener = self._openers.get(topic)
        if opener is None or opener.max_age_s != signing.max_age_s:
            opener = self._openers[topic] = Opener(topic, signing.max_age_s, self._clock)
        return opener

    def _terms(self, topic: TopicId, signing: Signing | None) -> Terms:
        limit = self._config.max_content_bytes
        if signing is None:
            return Terms(limit, None)
        assert self._endpoint is not None
        key = signing.secret_key if signing.secret_key is not None else self._endpoint.secret_key
        # Each session has to be later than the one before, even if the clock was set back.
        self._session_at = max(self._clock(), self._session_at + _SESSION_STEP_S)
        signer = Signer(key, topic, self._session_at)
        return Terms(limit - ENVELOPE_OVERHEAD_BYTES, lambda data: signer.seal(data, self._clock()))

    def _ask(
        self,
        topic: TopicId,
        peers: Iterable[EndpointAddr],
        validate: Validate | None = None,
    ) -> None:
        contacts: list[PeerId] = []
        for addr in peers:
            self._book.pin(addr)
            contacts.append(PeerId(bytes(addr.id)))
        self._refresh_own_addr()
        self._act(self._node.join(topic, contacts, self._now(), validate=validate))

    def topics(self) -> tuple[TopicId, ...]:
        """Return the topics that are held."""
        return tuple(self._memberships)

    def stats(self) -> GossipStats:
        """Return the current value of all counters.

        Raises:
            LocalError: gossip does not serve an endpoint yet.
        """
        self._check_open()
        return GossipStats(
            {topic: self.topic_stats(topic) for topic in self._memberships}, self._links.stats()
        )

    def network_changed(self) -> None:
        """Try lost and unreachable peers again soon.

        This happens by itself when the machine has slept, and on `Endpoint.network_changed`.
        """
        self._check_open()
        self._act(self._node.hurry(self._now()))

    # --- for topics -----------------------------------------------------------------------------

    def neighbors(self, topic: TopicId) -> tuple[EndpointId, ...]:
        """Return the neighbours in a topic."""
        return tuple(EndpointId(peer) for peer in self._node.neighbors(topic))

    def known_addr(self, peer: EndpointId) -> EndpointAddr:
        """Return where a peer may be found, as far as gossip knows.

        Apart from what you said yourself and where the peer was connected, this is what members say: at
        most three of those addresses, and no relay that a stranger should not make us dial.
        """
        return self._book.get(peer, self._now(), self._rules)

    def dial_limits(self, peer: EndpointId, max_addresses: int = 3) -> DialLimits:
        """Return limits for dialling a peer at addresses that members told you, or us.

        Addresses that you named yourself, and those where the peer was connected, are exempt.

        Args:
            peer: the peer to dial.
            max_addresses: how many addresses to try at most.
        """
        trusted = self._book.trusted(peer)

        async def accepts(addr: TransportAddr) -> bool:
            return self._rules.may_name(addr)

        return DialLimits(
            max_addresses=max_addresses,
            applies_to=lambda addr: addr not in trusted,
            accepts=accepts,
            may_reach=self._rules.may_reach,
        )

    @property
    def lookup(self) -> AddressLookup:
        """Finds members by their id: for ``Endpoint.bind(address_lookups=[gossip.lookup])``."""
        return BookLookup(self._book, self._rules)

    def own_addr(self) -> EndpointAddr:
        """Return where we are."""
        assert self._endpoint is not None
        return self._endpoint.addr()

    def _configured_relays(self) -> frozenset[RelayUrl]:
        assert self._endpoint is not None
        return frozenset((*self._endpoint.relay_urls, *self._endpoint.addr().relay_urls))

    def _own_ips(self) -> list[Ip]:
        return [addr.ip for addr in self.own_addr().ip_addrs]

    def topic_stats(self, topic: TopicId) -> BroadcastStats:
        """Return a copy of the counters of a topic."""
        return attrs.evolve(self._node.stats(topic))

    def add_peers(self, topic: TopicId, peers: Iterable[Remote]) -> None:
        """Ask further peers to let us into a topic that is held."""
        self._ask(topic, [parse_remote(remote) for remote in peers])

    def publish(self, topic: TopicId, content: bytes, *, to_neighbors: bool) -> bool:
        """Publish a content; False if it was seen here recently."""
        if to_neighbors:
            self._act(self._node.broadcast_neighbors(topic, content))
            return True
        actions = self._node.broadcast(topic, content, self._now())
        if actions is None:
            return False
        self._act(actions)
        return True

    async def room(self) -> None:
        """Wait while peers are slower than we are."""
        await self._links.room()

    def leave(self, topic: Topic) -> None:
        """End a handle, and leave its topic if it was the last one."""
        topic.end()
        membership = self._memberships.get(topic.id)
        if membership is None or topic not in membership.handles:
            return
        membership.handles.remove(topic)
        if not membership.handles:
            del self._memberships[topic.id]
            self._act(self._node.quit(topic.id, self._now()))

    async def settle(self) -> None:
        """Give queued messages a chance to leave."""
        await asyncio.sleep(0)

    # --- for links ------------------------------------------------------------------------------

    def on_message(self, peer: PeerId, topic: TopicId, message: Message) -> None:
        """Take a message from a peer."""
        self._refresh_own_addr()
        self._act(self._node.receive(peer, topic, message, self._now()))

    def on_lost(self, peer: PeerId, *, is_clean: bool) -> None:
        """Note that a peer can no longer be reached."""
        self._act(self._node.peer_lost(peer, self._now(), is_clean=is_clean))

    def uses(self, peer: PeerId) -> bool:
        """Return whether a topic needs a peer."""
        return self._node.uses(peer)

    def has_topic(self, topic: TopicId) -> bool:
        """Return whether a topic is held."""
        return topic in self._memberships

    # --- driving the machines -------------------------------------------------------------------

    def _now(self) -> float:
        return self._loop.time()

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._links.send(action.peer, action.topic, action.message)
            elif isinstance(action, Tell):
                self._tell(action)
            elif isinstance(action, Release):
                self._links.release(action.peer)
            elif isinstance(action, Learned):
                peer = EndpointId(action.peer)
                addr = peer_data_or_none(peer, action.data) if action.data else None
                source = EndpointId(action.source)
                self._book.hear(addr or EndpointAddr(peer), self._now(), source)
        self._tick_later()

    def _tell(self, action: Tell) -> None:
        membership = self._memberships.get(action.topic)
        if membership is None:
            return
        event = action.event
        for handle in membership.handles:
            if isinstance(event, PeerUp):
                handle.deliver(NeighborUp(EndpointId(event.peer)))
                if not membership.is_joined:
                    handle.deliver(Joined())
                handle.note_neighbor()
            elif isinstance(event, PeerDown):
                handle.deliver(NeighborDown(EndpointId(event.peer)))
            else:
                handle.deliver(self._received(event, is_signed=membership.signing is not None))
        if isinstance(event, PeerUp):
            membership.is_joined = True
        elif isinstance(event, PeerDown):
            membership.is_joined = bool(self._node.neighbors(action.topic))

    def _received(self, event: Delivered, *, is_signed: bool) -> Received:
        peer = EndpointId(event.delivered_from)
        hops = event.round or 0
        is_direct = event.round is None
        if not is_signed:
            return Received(event.content, peer, hops, is_direct)
        envelope = read_envelope(event.content)
        return Received(envelope.payload, peer, hops, is_direct, envelope.author, envelope.sequence)

    def _tick_later(self) -> None:
        deadline = self._node.deadline()
        if deadline is None or self._shutting_down is not None:
            return
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._refresh_own_addr()
        # A timer may fire a clock tick early.
        deadline = self._node.deadline()
        now = self._now()
        self._act(self._node.tick(now if deadline is None else max(now, min(deadline, now + 1e-3))))

    def _refresh_own_addr(self) -> None:
        now = self._now()
        if now - self._own_addr_at < _OWN_ADDR_S:
            return
        self._own_addr_at = now
        addr = self.own_addr()
        if addr != self._own_addr:
            self._own_addr = addr
            self._node.set_own_data(encode_peer_data(addr))

    def _watch_sleep(self) -> None:
        """Notice that the machine slept: the event loop's clock stood still, the wall clock did not."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if not self._memberships or self._shutting_down is not None:
            return
        offset_s = self._clock() - self._now()
        if offset_s - self._wall_offset_s > _SLEEP_S:
            logger.info("the clock jumped; looking for lost peers")
            self._act(self._node.hurry(self._now()))
        self._wall_offset_s = offset_s
        self._watch = self._loop.call_later(_WATCH_S, self._watch_sleep)
