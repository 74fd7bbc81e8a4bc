"""The network of a simulated swarm.

Model. Each unordered pair of nodes has one latency, drawn when it is first needed. A message arrives
after that time, unless it is lost. A pair is *connected* from its first message on. A node that no longer
needs a peer closes the connection after a while, as the shell of a real node does, and the peer learns of
it. A message to a node that cannot be reached (dead, or beyond a partition) is lost; if there is no
connection, the sender learns of it after the time that a dial takes to fail.

Source: docs/wire/gossip.md 6.1, whose model this contains: without loss, partitions and lingering
connections they are the same.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from typing import Final

import attrs

from dialkey_gossip.actions import Action, Delivered, Release, Send, Tell, TopicEvent
from dialkey_gossip.config import GossipConfig
from dialkey_gossip.framing import FrameReader, frame
from dialkey_gossip.ids import PeerId, TopicId
from dialkey_gossip.messages import Gossip, Message, decode
from dialkey_gossip.node import Node

__all__ = ["TOPIC", "Counters", "Latency", "Network"]

TOPIC: Final = TopicId.from_name("simulation")
"""The one topic of a simulated swarm."""


@attrs.frozen
class Latency:
    """The one-way latency of a link, drawn evenly from min_s to max_s."""

    min_s: float = 0.01
    max_s: float = 0.05


@attrs.define
class Counters:
    """What arrived since the last reset.

    Attributes:
        payloads: messages with content.
        control: all others.
        last_hops: the highest round of a message that was new where it arrived.
    """

    payloads: int = 0
    control: int = 0
    last_hops: int = 0


class Network:
    """Nodes in one topic, and what lies between them.

    Args:
        seed: of all random choices.
        config: of every node.
        latency: of every link.
        loss: the share of messages that are lost.
        linger_s: how long a connection that nobody needs stays.
        dial_timeout_s: how long a dial takes to fail.
        is_encoded: pass every message through its frame, as a check of the encoding; node ids are
            then ids that can be encoded. Slow.
        make_id: makes the id of the n-th node; by default n as 32 bytes.
    """

    def __init__(
        self,
        seed: int,
        *,
        config: GossipConfig | None = None,
        latency: Latency | None = None,
        loss: float = 0.0,
        linger_s: float = 5.0,
        dial_timeout_s: float = 5.0,
        is_encoded: bool = False,
        make_id: Callable[[int], PeerId] | None = None,
    ) -> None:
        self.config = config if config is not None else GossipConfig()
        self.latency = latency if latency is not None else Latency()
        self.now = 0.0
        self.nodes: dict[PeerId, Node] = {}
        self.counters = Counters()
        self.on_event: Callable[[PeerId, TopicEvent], None] | None = None
        self._rng = random.Random(seed)
        self._loss = loss
        self._linger_s = linger_s
        self._dial_timeout_s = dial_timeout_s
        self._is_encoded = is_encoded
        self._make_id = make_id if make_id is not None else _number
        self._added = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._queued = 0
        self._ticks: dict[PeerId, float] = {}
        self._latencies: dict[tuple[PeerId, PeerId], float] = {}
        self._connected: dict[tuple[PeerId, PeerId], None] = {}
        self._sides: dict[PeerId, int] = {}

    # --- commands -------------------------------------------------------------------------------

    def add(self) -> PeerId:
        """Add a node, which has not joined yet."""
        peer = self._make_id(self._added)
        self._added += 1
        self.nodes[peer] = Node(peer, self.config, random.Random(self._rng.getrandbits(64)))
        return peer

    def join(self, peer: PeerId, contacts: Iterable[PeerId]) -> None:
        """Let a node join the topic through some others."""
        self._do(peer, self.nodes[peer].join(TOPIC, contacts, self.now))

    def broadcast(self, peer: PeerId, content: bytes) -> None:
        """Let a node publish new content."""
        actions = self.nodes[peer].broadcast(TOPIC, content, self.now)
        if actions is None:
            raise ValueError("this content has been published lately")
        self._do(peer, actions)

    def quit(self, peer: PeerId) -> None:
        """Let a node leave the topic in good order; it stays in the network."""
        self._do(peer, self.nodes[peer].quit(TOPIC, self.now))

    def kill(self, peer: PeerId, *, noticed_after_s: float = 0.0) -> None:
        """Let a node vanish; nodes connected to it learn of it after a time and the latency."""
        del self.nodes[peer]
        for pair in [pair for pair in self._connected if peer in pair]:
            self._lose(pair, noticed_after_s)

    def hurry(self, peer: PeerId) -> None:
        """Tell a node that its network has changed."""
        self._do(peer, self.nodes[peer].hurry(self.now))

    def partition(self, *sides: Iterable[PeerId], noticed_after_s: float = 15.0) -> None:
        """Cut all links between the sides; nodes in none of them form one more side."""
        self._sides = {peer: i for i, side in enumerate(sides) for peer in side}
        for pair in [pair for pair in self._connected if not self._is_link(*pair)]:
            self._lose(pair, noticed_after_s)

    def heal(self) -> None:
        """Undo all partitions."""
        self._sides = {}

    # --- time -----------------------------------------------------------------------------------

    def run_for(self, duration_s: float) -> None:
        """Let time pass."""
        self.run_until(self.now + duration_s)

    def run_until(self, at: float, stop: Callable[[], bool] | None = None) -> None:
        """Let time pass up to `at`, or until `stop`, called after each event, returns true."""
        queue = self._queue
        while queue and queue[0][0] <= at:
            self.now, _, event = heapq.heappop(queue)
            event()
            if stop is not None and stop():
                return
        self.now = max(self.now, at)

    # --- state ----------------------------------------------------------------------------------

    def neighbors(self, peer: PeerId) -> tuple[PeerId, ...]:
        """Return the neighbours of a node."""
        return self.nodes[peer].neighbors(TOPIC)

    def mean_degree(self) -> float:
        """Return the mean number of neighbours that are alive."""
        total = sum(
            1 for peer in self.nodes for other in self.neighbors(peer) if other in self.nodes
        )
        return total / len(self.nodes)

    def isolated(self) -> list[PeerId]:
        """Return the nodes without a neighbour."""
        return [peer for peer in self.nodes if not self.neighbors(peer)]

    def reach(self, peer: PeerId) -> int:
        """Count the nodes that can be reached from one along neighbours, itself included."""
        seen = {peer}
        fresh = [peer]
        while fresh:
            for other in self.neighbors(fresh.pop()):
                if other in self.nodes and other not in seen:
                    seen.add(other)
                    fresh.append(other)
        return len(seen)

    # --- inside ---------------------------------------------------------------------------------

    def _at(self, at: float, event: Callable[[], None]) -> None:
        self._queued += 1
        heapq.heappush(self._queue, (at, self._queued, event))

    def _latency(self, pair: tuple[PeerId, PeerId]) -> float:
        latency = self._latencies.get(pair)
        if latency is None:
            latency = self._rng.uniform(self.latency.min_s, self.latency.max_s)
            self._latencies[pair] = latency
        return latency

    def _is_link(self, a: PeerId, b: PeerId) -> bool:
        return not self._sides or self._sides.get(a) == self._sides.get(b)

    def _do(self, peer: PeerId, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._send(peer, action.peer, action.message)
            elif isinstance(action, Tell):
                event = action.event
                if isinstance(event, Delivered) and event.round is not None:
                    self.counters.last_hops = max(self.counters.last_hops, event.round)
                if self.on_event is not None:
                    self.on_event(peer, event)
            elif isinstance(action, Release):
                self._let_go_later(peer, action.peer)
        self._tick_later(peer)

    def _tick_later(self, peer: PeerId) -> None:
        deadline = self.nodes[peer].deadline()
        if deadline is None or self._ticks.get(peer, deadline + 1) <= deadline:
            return
        self._ticks[peer] = deadline

        def tick() -> None:
            if self._ticks.get(peer) == deadline:
                del self._ticks[peer]
                if (node := self.nodes.get(peer)) is not None:
                    self._do(peer, node.tick(self.now))

        self._at(deadline, tick)

    def _send(self, sender: PeerId, receiver: PeerId, message: Message) -> None:
        if self._loss and self._rng.random() < self._loss:
            return
        pair = _pair(sender, receiver)
        if receiver not in self.nodes or not self._is_link(sender, receiver):
            if pair not in self._connected:
                self._at(self.now + self._dial_timeout_s, lambda: self._lost(sender, receiver))
            return
        if self._is_encoded:
            data = frame(message, self.config.max_message_bytes)
            [body] = FrameReader(self.config.max_message_bytes).feed(data)
            message = decode(body)
        self._at(
            self.now + self._latency(pair), lambda: self._arrive(sender, receiver, pair, message)
        )

    def _arrive(
        self,
        sender: PeerId,
        receiver: PeerId,
        pair: tuple[PeerId, PeerId],
        message: Message,
    ) -> None:
        node = self.nodes.get(receiver)
        if node is None or not self._is_link(sender, receiver):
            return
        if isinstance(message, Gossip):
            self.counters.payloads += 1
        else:
            self.counters.control += 1
        if sender in self.nodes:
            self._connected[pair] = None
        self._do(receiver, node.receive(sender, TOPIC, message, self.now))

    def _let_go_later(self, peer: PeerId, other: PeerId) -> None:
        pair = _pair(peer, other)

        def let_go() -> None:
            node = self.nodes.get(peer)
            if node is None or pair not in self._connected or node.uses(other):
                return
            del self._connected[pair]
            self._at(self.now + self._latency(pair), lambda: self._lost(other, peer, is_clean=True))

        if pair in self._connected:
            self._at(self.now + self._linger_s, let_go)

    def _lose(self, pair: tuple[PeerId, PeerId], noticed_after_s: float) -> None:
        del self._connected[pair]
        # Just above the latency, so that what was sent before arrives before.
        at = self.now + noticed_after_s + self._latency(pair) + 1e-6
        for peer, other in (pair, pair[::-1]):
            if peer in self.nodes:
                self._at(at, lambda peer=peer, other=other: self._lost(peer, other))  # type: ignore[misc]

    def _lost(self, peer: PeerId, other: PeerId, *, is_clean: bool = False) -> None:
        node = self.nodes.get(peer)
        if node is not None and _pair(peer, other) not in self._connected:
            self._do(peer, node.peer_lost(other, self.now, is_clean=is_clean))


def _number(index: int) -> PeerId:
    return PeerId(index.to_bytes(32, "big"))


def _pair(a: PeerId, b: PeerId) -> tuple[PeerId, PeerId]:
    return (a, b) if a < b else (b, a)
