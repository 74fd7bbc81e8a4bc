"""The neighbourhood of a node: HyParView, one machine per topic, without I/O.

Theory of operation. A node keeps a small *active* view, its neighbours, which is symmetric and along
which content travels, and a larger *passive* view, an address book of other members. A joiner asks a
contact; the contact accepts it and announces it on random walks, at whose ends it finds further
neighbours. Whoever has no room evicts a neighbour, which keeps the evictor in its passive view. A lost
neighbour is replaced from the passive view, which shuffles along random walks keep fresh.

A high-priority request to become a neighbour is always granted, a low-priority one only where there is
room; each side sends one Neighbor. A refusal, like an eviction, is a ShuffleReply with other members to
try, followed by a Disconnect.

Differences from iroh's machine, on the same wire: requests count only until they are answered, all free
places are filled at once, refused and unreachable peers are retried with pauses
(`dialkey_gossip.contacts`), and a peer that mistakes us for a neighbour is told so.

Source: docs/wire/gossip.md 3.3.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final, TypeAlias

from dialkey.allowance import Allowance
from dialkey.limits import MAX_GOSSIP_NODES, MAX_GOSSIP_WALK_HOPS
from dialkey_gossip.actions import Output
from dialkey_gossip.config import GossipConfig
from dialkey_gossip.contacts import Contacts
from dialkey_gossip.hearsay import Hearsay, kept
from dialkey_gossip.ids import PeerId
from dialkey_gossip.messages import (
    Disconnect,
    ForwardJoin,
    Join,
    Neighbor,
    PeerInfo,
    Shuffle,
    ShuffleReply,
)
from dialkey_gossip.pace import PeerPace
from dialkey_gossip.recent import Recent

__all__ = ["Membership", "SwarmMessage"]

SwarmMessage: TypeAlias = Join | ForwardJoin | Shuffle | ShuffleReply | Neighbor | Disconnect

_SHUFFLE_JITTER: Final = 0.2
_TRIED_AT_ONCE: Final = 3
_REPEAT_S: Final = 2.0
"""For this long a peer is not told the same again, as the first message may still be in flight."""

_ANSWER_S: Final = 10.0
"""A joiner that takes longer to answer has failed to connect back."""

_MAX_ASKED: Final = 64
"""Unanswered requests at one time: a neighbour's messages can make us ask anybody."""

_DEPARTURES: Final = (16, 0.5)
"""How many neighbours that left in good order are replaced at once, and how many a second after that.
Otherwise, among nodes with one place each, whoever is evicted would evict the next one, forever."""

_COMINGS: Final = (4, 0.1)
"""How often one peer may evict others to get in; after that it gets in only where there is room."""


class Membership:
    """Keeps the neighbourhood of one node in one topic.

    Args:
        me: this node.
        config: the numbers.
        rng: the source of every choice; the same seed and the same input repeat the same run.
        out: receives the actions.
    """

    def __init__(self, me: PeerId, config: GossipConfig, rng: random.Random, out: Output) -> None:
        self.active: dict[PeerId, None] = {}
        self.passive: dict[PeerId, None] = {}
        self.pending: dict[PeerId, float] = {}
        self.own_data: bytes | None = None
        self._me = me
        self._config = config.membership
        self._rng = rng
        self._out = out
        self._contacts = Contacts(config.membership, rng)
        self._hearsay = Hearsay(config.max_message_bytes)
        self._late: dict[PeerId, float] = {}
        self._told = Recent(_REPEAT_S)
        self._parted = Recent(_REPEAT_S)
        self._answer_due = Recent(_ANSWER_S)
        self._joining = Recent(_ANSWER_S)
        self._departures = Allowance(*_DEPARTURES)
        self._comings = PeerPace(*_COMINGS)
        self._is_refill_due = False
        self._attempts_left = 0
        self._shuffles_sent = 0
        self._shuffle_pause_s = config.membership.first_shuffle_s
        self._is_shuffle_open = False
        self._is_shuffling = False
        self._retry_at: float | None = None

    # --- commands -------------------------------------------------------------------------------

    def join(self, contacts: Iterable[PeerId], now: float) -> None:
        """Ask these peers to let us in, now and then repeatedly until each has answered."""
        for peer in dict.fromkeys(contacts):
            if peer != self._me and peer not in self.active:
                self._contacts.add_bootstrap(peer, now)
                self._send_join(peer, now)
        self._retry_later(now)

    def quit(self, now: float) -> None:
        """Say goodbye to everybody; the machine is not used afterwards."""
        for peer in self.active:
            self._say_goodbye(peer, alive=False, now=now)
        for peer in (*self.pending, *self._late):
            # It may have let us in already, and would keep us for as long as we are connected.
            self._out.send(peer, Disconnect(False))
            self._out.release(peer)

    def hurry(self, now: float) -> None:
        """Try lost and unreachable peers again soon, because the network has changed."""
        self._contacts.hurry(now)
        self._retry_later(now)

    def uses(self, peer: PeerId) -> bool:
        """Return whether the connection to a peer is in use here."""
        return peer in self.active or self._is_asked(peer)

    # --- input ----------------------------------------------------------------------------------

    def receive(self, sender: PeerId, message: SwarmMessage, now: float) -> None:
        """Handle a message of the swarm layer."""
        if not self._is_shuffling:
            self._is_shuffling = True
            self._shuffle_later(now)
        self._contacts.heard(sender)
        match message:
            case Join(data):
                self._on_join(sender, data, now)
            case ForwardJoin(peer, ttl):
                self._on_forward_join(sender, peer, ttl, now)
            case Neighbor(high, data):
                self._on_neighbor(sender, high, data, now)
            case Disconnect(alive):
                self._on_disconnect(sender, alive, now)
            case Shuffle():
                self._on_shuffle(sender, message)
            case ShuffleReply(nodes):
                self._on_shuffle_reply(sender, nodes, now)
        if not isinstance(message, Disconnect) and sender not in self.active:
            self._out.release(sender)
        self._drop_data(sender)

    def heard_content(self, sender: PeerId, now: float) -> None:
        """Note that a peer sent content; tell it if it mistakes us for a neighbour."""
        if self.uses(sender) or self._joining.has(sender, now):
            # What it sent before it read our Join is not a mistake; a Disconnect would undo the Join.
            return
        if not self._parted.has(sender, now):
            self._say_goodbye(sender, alive=True, now=now)

    def peer_lost(self, peer: PeerId, now: float, *, is_clean: bool = False) -> None:
        """Note that a peer cannot be reached, or that its last connection ended.

        Args:
            is_clean: whether it closed the connection in good order, so that it is probably reachable.
        """
        was_asked = self._take_asked(peer)
        if peer in self.active:
            self._remove_active(peer, now)
            self._contacts.add_lost(peer, now)
            self._check_isolated(now)
            self._refill(now, skip=peer)
        elif not is_clean:
            was_known = peer in self.passive
            self.passive.pop(peer, None)
            if was_known and not self.active:
                # Perhaps we are offline: do not use up the address book.
                self._contacts.add_lost(peer, now)
            if was_asked:
                self._refill(now, skip=peer, is_fresh=False)
        self._drop_data(peer)
        self._retry_later(now)

    # --- joining --------------------------------------------------------------------------------

    def _send_join(self, peer: PeerId, now: float) -> None:
        self._joining.add(peer, now)
        self._parted.take(peer, now)
        self._out.send(peer, Join(self.own_data))

    def _on_join(self, joiner: PeerId, data: bytes | None, now: float) -> None:
        self._store_data(joiner, data, joiner)
        may_evict = self._may_come(joiner, now)
        if not self._add_active(joiner, high=may_evict, reply=True, now=now, always=True):
            self._say_goodbye(joiner, alive=True, now=now)
            return
        # The joiner answers. If it has been evicted by then, the answer must not count as a new request.
        self._answer_due.add(joiner, now)
        if not may_evict:
            return
        forward = ForwardJoin(PeerInfo(joiner, kept(data)), self._config.active_walk_hops)
        for peer in self.active:
            if peer != joiner:
                self._out.send(peer, forward)

    def _on_forward_join(self, sender: PeerId, peer: PeerInfo, ttl: int, now: float) -> None:
        joiner = peer.id
        if joiner == self._me:
            return
        ttl = min(ttl, MAX_GOSSIP_WALK_HOPS)
        if joiner in self.active or ttl == 0 or len(self.active) <= 1:
            self._store_data(joiner, peer.data, sender)
            self._ask(joiner, high=True, now=now)
            self._drop_data(joiner)
            return
        if ttl == self._config.passive_walk_hops:
            self._add_passive(peer, sender)
        if not self._is_asked(joiner):
            others = [other for other in self.active if other not in (sender, joiner)]
            if others:
                info = PeerInfo(joiner, kept(peer.data))
                self._out.send(self._rng.choice(others), ForwardJoin(info, ttl - 1))

    def _on_neighbor(self, sender: PeerId, high: bool, data: bytes | None, now: float) -> None:
        is_reply = self._take_asked(sender)
        self._store_data(sender, data, sender)
        if self._answer_due.take(sender, now) and not is_reply and sender not in self.active:
            return
        if high and not is_reply and sender not in self.active:
            high = self._may_come(sender, now)
        if not self._add_active(sender, high=high, reply=not is_reply, now=now):
            self._say_goodbye(sender, alive=True, now=now)

    def _may_come(self, peer: PeerId, now: float) -> bool:
        """Return whether a peer may evict another one; False if it comes and goes all the time."""
        return peer != self._me and self._comings.take(peer, now)

    def _add_active(
        self, peer: PeerId, *, high: bool, reply: bool, now: float, always: bool = False
    ) -> bool:
        """Add a neighbour, making room for it if `high`; return whether it is one now."""
        if peer == self._me:
            return False
        if peer in self.active:
            # Two nodes that each think that the other one asked would answer each other forever.
            if reply and (always or not self._told.has(peer, now)):
                self._send_neighbor(peer, high=high, now=now)
            return True
        if not high and len(self.active) + len(self.pending) >= self._config.active_capacity:
            return False
        if len(self.active) >= self._config.active_capacity:
            self._evict(now)
        self.passive.pop(peer, None)
        self._take_asked(peer)
        self._parted.take(peer, now)
        self._joining.take(peer, now)
        self.active[peer] = None
        self._out.neighbor_up(peer, now, high=high)
        if reply:
            self._send_neighbor(peer, high=high, now=now)
        return True

    def _send_neighbor(self, peer: PeerId, *, high: bool, now: float) -> None:
        self._told.add(peer, now)
        self._out.send(peer, Neighbor(high, self.own_data))

    def _ask(self, peer: PeerId, *, high: bool, now: float) -> None:
        """Ask a peer to become a neighbour, unless it has been asked."""
        if self._is_asked(peer) or len(self.pending) + len(self._late) >= _MAX_ASKED:
            return
        self.pending[peer] = deadline = now + self._config.request_patience_s
        self._send_neighbor(peer, high=high, now=now)
        self._out.call_at(deadline, partial(self._request_is_late, peer))

    def _is_asked(self, peer: PeerId) -> bool:
        return peer in self.pending or peer in self._late

    def _take_asked(self, peer: PeerId) -> bool:
        was_pending = self.pending.pop(peer, None) is not None
        return self._late.pop(peer, None) is not None or was_pending

    def _request_is_late(self, peer: PeerId, now: float) -> None:
        """Ask somebody else as well when a peer does not answer."""
        if self.pending.get(peer, now + 1) > now:
            return  # it answered, and has perhaps been asked again since
        del self.pending[peer]
        self._late[peer] = deadline = now + self._config.request_timeout_s
        self._out.call_at(deadline, partial(self._request_timed_out, peer))
        self._refill(now, is_fresh=False)

    def _request_timed_out(self, peer: PeerId, now: float) -> None:
        if self._late.get(peer, now + 1) > now:
            return
        del self._late[peer]
        self._told.take(peer, now)
        self.passive.pop(peer, None)
        if not self.active:
            self._contacts.add_lost(peer, now)
            self._retry_later(now)
        self._drop_data(peer)
        self._out.release(peer)
        self._refill(now, is_fresh=False)

    # --- leaving --------------------------------------------------------------------------------

    def _evict(self, now: float) -> None:
        victim = self._rng.choice(list(self.active))
        self._remove_active(victim, now)
        self._say_goodbye(victim, alive=True, now=now)
        self._add_passive(PeerInfo(victim), victim)

    def _remove_active(self, peer: PeerId, now: float) -> None:
        del self.active[peer]
        self._told.take(peer, now)
        self._out.neighbor_down(peer, now)
        self._out.release(peer)

    def _say_goodbye(self, peer: PeerId, *, alive: bool, now: float) -> None:
        count = self._config.shuffle_active + self._config.shuffle_passive
        self._out.send(peer, ShuffleReply(self._some_nodes(count, skip=peer)))
        self._out.send(peer, Disconnect(alive))
        self._out.release(peer)
        self._parted.add(peer, now)

    def _on_disconnect(self, sender: PeerId, alive: bool, now: float) -> None:
        was_asked = self._take_asked(sender)
        if sender in self.active:
            self._remove_active(sender, now)
            if alive:
                self._add_passive(PeerInfo(sender), sender)
            else:
                self._drop_data(sender)
            self._check_isolated(now)
            self._replace(sender, now)
            self._retry_later(now)
            return
        self._out.release(sender)
        if not alive:
            self.passive.pop(sender, None)
            self._drop_data(sender)
        if was_asked:
            self._refill(now, skip=sender, is_fresh=False)

    def _check_isolated(self, now: float) -> None:
        if not self.active:
            self._contacts.isolated(now)

    def _replace(self, peer: PeerId, now: float) -> None:
        """Look for a replacement for a neighbour that left; not at once if many leave."""
        if self._departures.take(now):
            self._refill(now, skip=peer)
        elif not self._is_refill_due:
            self._is_refill_due = True
            pause_s = self._config.retry_s * self._rng.uniform(1.0, 3.0)
            self._out.call_at(now + pause_s, self._refill_is_due)

    def _refill_is_due(self, now: float) -> None:
        self._is_refill_due = False
        self._refill(now)

    # --- finding others -------------------------------------------------------------------------

    def _refill(self, now: float, *, skip: PeerId | None = None, is_fresh: bool = True) -> None:
        """Ask passive peers to fill the free places of the active view.

        Args:
            skip: a peer not to ask.
            is_fresh: a new attempt, rather than the next one after a refusal; refusals in a row are
                limited because a full swarm would refuse forever.
        """
        if is_fresh:
            self._attempts_left = self._config.refill_attempts
        while (
            self._attempts_left > 0
            and len(self.active) + len(self.pending) < self._config.active_capacity
        ):
            choices = [p for p in self.passive if p != skip and not self._is_asked(p)]
            if not choices:
                return
            self._attempts_left -= 1
            self._ask(self._rng.choice(choices), high=not self.active and not self.pending, now=now)

    def _retry_later(self, now: float) -> None:
        at = self._contacts.next_at(is_isolated=not self.active)
        if at is not None and (self._retry_at is None or at < self._retry_at):
            self._retry_at = at
            self._out.call_at(at, self._retry)

    def _retry(self, now: float) -> None:
        if self._retry_at is None or self._retry_at > now:
            return  # an earlier timer has done this one's work
        self._retry_at = None
        is_isolated = not self.active
        for peer in self._contacts.due(now, _TRIED_AT_ONCE, is_isolated=is_isolated):
            if peer in self.active:
                self._contacts.heard(peer)
            elif is_isolated:
                self._send_join(peer, now)
            else:
                # Not a Join: that would evict a neighbour at every member that the walks reach.
                self._ask(peer, high=True, now=now)
        if is_isolated:
            self._refill(now)
        self._retry_later(now)

    def _shuffle_later(self, now: float) -> None:
        jitter = self._rng.uniform(1 - _SHUFFLE_JITTER, 1 + _SHUFFLE_JITTER)
        self._out.call_at(now + self._shuffle_pause_s * jitter, self._shuffle)
        self._shuffle_pause_s = min(2 * self._shuffle_pause_s, self._config.shuffle_interval_s)

    def _shuffle(self, now: float) -> None:
        self._shuffle_later(now)
        if not self.active:
            return
        target = self._rng.choice(list(self.active))
        config = self._config
        nodes = self._sample(self.active, config.shuffle_active, skip=target)
        nodes += self._sample(self.passive, config.shuffle_passive, skip=target)
        infos = [self._hearsay.info(peer) for peer in nodes]
        infos.append(PeerInfo(self._me, self.own_data))
        self._is_shuffle_open = True
        self._shuffles_sent += 1
        message = Shuffle(self._me, self._hearsay.fit(infos), config.shuffle_walk_hops)
        self._out.send(target, message)
        self._refill(now)

    def _on_shuffle(self, sender: PeerId, message: Shuffle) -> None:
        if message.origin == self._me:
            return
        nodes = message.nodes[:MAX_GOSSIP_NODES]
        ttl = min(message.ttl, MAX_GOSSIP_WALK_HOPS)
        others = [p for p in self.active if p not in (sender, message.origin)]
        if ttl > 0 and others:
            target = self._rng.choice(others)
            self._out.send(target, Shuffle(message.origin, self._hearsay.fit(nodes), ttl - 1))
            return
        for node in nodes:
            self._add_passive(node, sender)
        if message.origin not in self.active:
            self._out.learned(message.origin, None, sender)
        reply = ShuffleReply(self._some_nodes(len(nodes), skip=message.origin))
        self._out.send(message.origin, reply)
        if message.origin not in self.active:
            self._out.release(message.origin)

    def _on_shuffle_reply(self, sender: PeerId, nodes: Sequence[PeerInfo], now: float) -> None:
        if not (self._is_shuffle_open or self.uses(sender)):
            return  # nobody asked: a stranger may not fill our address book
        for node in nodes[:MAX_GOSSIP_NODES]:
            self._add_passive(node, sender)
        if self._is_shuffle_open and not self._is_asked(sender):
            self._is_shuffle_open = False
            self._meet(sender, now)
            self._refill(now)

    def _meet(self, peer: PeerId, now: float) -> None:
        """Ask the end of our random walk, a random member of the whole swarm.

        Nodes that join at the same time are linked to each other in a long thin graph. One link from
        each of them to a random member is enough to make it compact.
        """
        if peer in self.active:
            return
        if self._shuffles_sent == 1:
            self._ask(peer, high=True, now=now)
        elif len(self.active) + len(self.pending) < self._config.active_capacity:
            self._ask(peer, high=False, now=now)

    def _sample(self, peers: Iterable[PeerId], count: int, *, skip: PeerId) -> list[PeerId]:
        choices = [peer for peer in peers if peer != skip]
        return self._rng.sample(choices, min(count, len(choices)))

    def _some_nodes(self, count: int, *, skip: PeerId) -> tuple[PeerInfo, ...]:
        """Choose members to name: passive ones first, then neighbours."""
        peers = self._sample(self.passive, count, skip=skip)
        peers += self._sample(self.active, count - len(peers), skip=skip)
        return self._hearsay.fit([self._hearsay.info(peer) for peer in peers])

    # --- what is known of peers -----------------------------------------------------------------

    def _add_passive(self, node: PeerInfo, source: PeerId) -> None:
        peer = node.id
        if peer == self._me:
            return
        if peer not in self.active and peer not in self.passive:
            if len(self.passive) >= self._config.passive_capacity:
                victim = self._rng.choice(list(self.passive))
                del self.passive[victim]
                self._drop_data(victim)
            self.passive[peer] = None
        self._store_data(peer, node.data, source)

    def _store_data(self, peer: PeerId, data: bytes | None, source: PeerId) -> None:
        """Keep what `source` said about a peer, and report that it named it: dials are charged to it."""
        new = self._hearsay.store(peer, data)
        if new is not None or not self._hearsay.has(peer):
            self._out.learned(peer, new, source)

    def _drop_data(self, peer: PeerId) -> None:
        if not (peer in self.passive or self.uses(peer)):
            self._hearsay.drop(peer)
