"""A gossip node: all topics of one endpoint, their timers, and who is connected for which.

Everything that happens is a method call with the time; it returns the list of actions to take.
`deadline` says when to call `tick` next. There is no I/O and no clock.

Source: docs/wire/gossip.md 3.1.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from typing import Final

from dialkey.limits import MAX_GOSSIP_OWN_DATA_BYTES
from dialkey_gossip.actions import (
    Action,
    Delivered,
    Learned,
    PeerDown,
    PeerUp,
    Release,
    Send,
    Tell,
)
from dialkey_gossip.config import GossipConfig
from dialkey_gossip.errors import MessageTooLarge
from dialkey_gossip.hyparview import Membership
from dialkey_gossip.ids import PeerId, TopicId
from dialkey_gossip.messages import Gossip, Graft, IHave, Message, Prune
from dialkey_gossip.plumtree import Broadcast, BroadcastStats, Validate

__all__ = ["Node", "TopicMachine"]

_CONTENT: Final = (Gossip, IHave, Graft, Prune)
_OWN_DATA_RESERVE_BYTES: Final = 64
"""What surrounds our data in the largest message that carries nothing else of variable length."""

Timer = Callable[[float], None]


class TopicMachine:
    """The two machines of one topic side by side; implements `Output` for both."""

    def __init__(
        self,
        id: TopicId,
        me: PeerId,
        config: GossipConfig,
        rng: random.Random,
        *,
        validate: Validate | None,
        act: Callable[[Action], None],
        call_at: Callable[[float, TopicMachine, Timer], None],
    ) -> None:
        self.id = id
        self.is_closed = False
        self.membership = Membership(me, config, rng, self)
        self.broadcast = Broadcast(config, rng, self, validate)
        self._act = act
        self._call_at = call_at

    def receive(self, sender: PeerId, message: Message, now: float) -> None:
        """Pass a message to the machine that it is for."""
        if isinstance(message, _CONTENT):
            self.membership.heard_content(sender, now)
            self.broadcast.receive(sender, message, now)
        else:
            self.membership.receive(sender, message, now)

    def send(self, peer: PeerId, message: Message) -> None:
        self._act(Send(self.id, peer, message))

    def neighbor_up(self, peer: PeerId, now: float, *, high: bool) -> None:
        self.broadcast.neighbor_up(peer, now, high=high)
        self._act(Tell(self.id, PeerUp(peer)))

    def neighbor_down(self, peer: PeerId, now: float) -> None:
        self.broadcast.neighbor_down(peer)
        self._act(Tell(self.id, PeerDown(peer)))

    def deliver(self, event: Delivered) -> None:
        self._act(Tell(self.id, event))

    def release(self, peer: PeerId) -> None:
        self._act(Release(self.id, peer))

    def learned(self, peer: PeerId, data: bytes | None, source: PeerId) -> None:
        self._act(Learned(peer, data, source))

    def call_at(self, at: float, timer: Timer) -> None:
        self._call_at(at, self, timer)


class Node:
    """The gossip of one endpoint.

    Times that are passed in never decrease. Actions are to be carried out in order; those for different
    peers do not depend on each other.

    Args:
        me: this endpoint.
        config: the numbers, the same for all topics.
        rng: the source of every random choice; the same seed and the same calls give the same run.
    """

    def __init__(self, me: PeerId, config: GossipConfig, rng: random.Random) -> None:
        self.me = me
        self.config = config
        self._rng = rng
        self._actions: list[Action] = []
        self._topics: dict[TopicId, TopicMachine] = {}
        self._timers: list[tuple[float, int, TopicMachine, Timer]] = []
        self._timer_count = 0
        self._own_data: bytes | None = None

    # --- commands -------------------------------------------------------------------------------

    def join(
        self,
        topic: TopicId,
        contacts: Iterable[PeerId],
        now: float,
        *,
        validate: Validate | None = None,
    ) -> list[Action]:
        """Enter a topic, unless that was done before, and ask the contacts to let us in.

        Args:
            topic: the topic.
            contacts: peers in it. None at all is fine: others may come to us.
            now: the time.
            validate: decides whether a content from a peer may be delivered and passed on. Used only by
                the call that enters the topic.
        """
        machine = self._topics.get(topic)
        if machine is None:
            machine = self._topics[topic] = TopicMachine(
                topic,
                self.me,
                self.config,
                self._rng,
                validate=validate,
                act=self._actions.append,
                call_at=self._call_at,
            )
            machine.membership.own_data = self._own_data
        machine.membership.join(contacts, now)
        return self._taken()

    def broadcast(self, topic: TopicId, content: bytes, now: float) -> list[Action] | None:
        """Publish a content to the whole swarm.

        Returns:
            The actions, or None if this very content was seen here recently (see `Broadcast`).

        Raises:
            MessageTooLarge: it does not fit; nothing was done.
            KeyError: the topic was not entered.
        """
        self._check_size(content)
        is_new = self._topics[topic].broadcast.broadcast(content, now)
        return self._taken() if is_new else None

    def broadcast_neighbors(self, topic: TopicId, content: bytes) -> list[Action]:
        """Send a content to all neighbours, who do not pass it on.

        Raises:
            MessageTooLarge: it does not fit; nothing was done.
            KeyError: the topic was not entered.
        """
        self._check_size(content)
        self._topics[topic].broadcast.broadcast_neighbors(content)
        return self._taken()

    def quit(self, topic: TopicId, now: float) -> list[Action]:
        """Leave a topic, if it was entered."""
        machine = self._topics.pop(topic, None)
        if machine is not None:
            machine.membership.quit(now)
            machine.is_closed = True
        return self._taken()

    def set_own_data(self, data: bytes) -> None:
        """Set where this endpoint is, for later messages.

        What is longer than a message has room for is left out altogether.
        """
        limit = min(
            MAX_GOSSIP_OWN_DATA_BYTES, self.config.max_message_bytes - _OWN_DATA_RESERVE_BYTES
        )
        self._own_data = data if len(data) <= limit else None
        for machine in self._topics.values():
            machine.membership.own_data = self._own_data

    def hurry(self, now: float) -> list[Action]:
        """Try lost and unreachable peers again soon, because the network has changed."""
        for machine in self._topics.values():
            machine.membership.hurry(now)
        return self._taken()

    # --- input ----------------------------------------------------------------------------------

    def receive(self, sender: PeerId, topic: TopicId, message: Message, now: float) -> list[Action]:
        """Handle a message; one for a topic that was not entered is ignored.

        So is one from ourselves, that is, from another process that uses our key.
        """
        machine = self._topics.get(topic)
        if machine is None or sender == self.me:
            return []
        machine.receive(sender, message, now)
        return self._taken()

    def peer_lost(self, peer: PeerId, now: float, *, is_clean: bool = False) -> list[Action]:
        """Note that a peer cannot be reached, or that its last connection ended.

        Args:
            peer: the peer.
            now: the time.
            is_clean: the connection was closed in good order by the peer.
        """
        for machine in self._topics.values():
            machine.membership.peer_lost(peer, now, is_clean=is_clean)
        return self._taken()

    def tick(self, now: float) -> list[Action]:
        """Handle the timers that are due."""
        while self._timers and self._timers[0][0] <= now:
            _, _, machine, timer = heapq.heappop(self._timers)
            if not machine.is_closed:
                timer(now)
        return self._taken()

    def deadline(self) -> float | None:
        """Return when `tick` should be called, or None."""
        return self._timers[0][0] if self._timers else None

    # --- state ----------------------------------------------------------------------------------

    def topics(self) -> tuple[TopicId, ...]:
        """Return the topics that were entered."""
        return tuple(self._topics)

    def uses(self, peer: PeerId) -> bool:
        """Return whether any topic needs a connection to a peer."""
        return any(machine.membership.uses(peer) for machine in self._topics.values())

    def topic(self, topic: TopicId) -> TopicMachine | None:
        """Return the machines of a topic, to look at."""
        return self._topics.get(topic)

    def neighbors(self, topic: TopicId) -> tuple[PeerId, ...]:
        """Return the neighbours in a topic; nobody if it was not entered."""
        machine = self._topics.get(topic)
        return tuple(machine.membership.active) if machine is not None else ()

    def stats(self, topic: TopicId) -> BroadcastStats:
        """Return the counters of a topic.

        Raises:
            KeyError: the topic was not entered.
        """
        return self._topics[topic].broadcast.stats

    # --- inside ---------------------------------------------------------------------------------

    def _check_size(self, content: bytes) -> None:
        limit = self.config.max_content_bytes
        if len(content) > limit:
            raise MessageTooLarge(size_bytes=len(content), limit_bytes=limit)

    def _call_at(self, at: float, machine: TopicMachine, timer: Timer) -> None:
        self._timer_count += 1
        heapq.heappush(self._timers, (at, self._timer_count, machine, timer))

    def _taken(self) -> list[Action]:
        actions = self._actions[:]
        self._actions.clear()
        return actions
