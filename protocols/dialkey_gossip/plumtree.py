"""How content travels between neighbours: PlumTree, one machine per topic, without I/O.

Theory of operation. Every neighbour is *eager* or *lazy*. A new message goes to eager neighbours at
once and is announced to lazy ones by its id (IHave), some milliseconds of announcements at a time.
Whoever gets a message twice answers Prune, and both ends make that link lazy: what stays eager is a
tree. Whoever sees an announcement but not the message asks an announcer for it (Graft), which makes the
link eager again: the tree repairs itself, and loses a message only when every announcer is gone.

What is better here than in iroh's machine, on the same wire:

- Concurrent messages shape different trees, and pruning for each of them cuts the links of the others
  until all content crawls along grafts. Here only one of them prunes: the one with the lowest id, on
  which all nodes agree without talking about it. While several are concurrent, a few links beyond the
  tree stay eager, preferring those that first brought the most messages.
- The time before a graft adapts to what is observed, so a message that is on its way along a long branch
  is not asked for needlessly.
- A route whose announcements prove faster replaces the slower one without a payload being sent twice;
  iroh compares hops alone.
- A message is not sent to a neighbour that has announced it.

Source: docs/wire/gossip.md 3.4 to 3.6.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias

import attrs

from dialkey.limits import (
    MAX_GOSSIP_ANNOUNCED_IDS,
    MAX_GOSSIP_CACHE_BYTES,
    MAX_GOSSIP_MESSAGE_IDS,
)
from dialkey_gossip.actions import Delivered, Output
from dialkey_gossip.concurrency import Concurrency
from dialkey_gossip.config import GossipConfig
from dialkey_gossip.ids import MessageId, PeerId, message_id
from dialkey_gossip.messages import (
    MAX_ROUND,
    Gossip,
    Graft,
    IHave,
    Prune,
    ihave_capacity,
    max_content,
)
from dialkey_gossip.quota import Quota

__all__ = ["Broadcast", "BroadcastStats", "ContentMessage", "Validate"]

ContentMessage: TypeAlias = Gossip | IHave | Graft | Prune

Validate: TypeAlias = Callable[[PeerId, bytes], bool]
"""Decides from a content and who brought it whether it may be delivered and passed on."""

_BUSY_MESSAGES: Final = 3
"""This many at once means several publishers; two may come from one publisher in quick succession."""

_SWEEP_S: Final = 1.0
_JITTER: Final = 0.1
_LAST_SHORT_ROUND: Final = 127
"""Rounds above this take a second byte."""

_USEFULNESS_DECAY: Final = 0.99


@attrs.define
class BroadcastStats:
    """What happened in one topic since it was joined; a snapshot is a copy.

    Attributes:
        delivered: messages that were new.
        duplicates: messages that were not.
        forged: messages whose content does not fit their id.
        rejected: messages that the topic's validator refused.
        grafts: messages asked for because they did not arrive.
        ignored_announcements: announcements beyond the limit for one neighbour.
        refused: messages of peers that brought more than we remember for one peer.
    """

    delivered: int = 0
    duplicates: int = 0
    forged: int = 0
    rejected: int = 0
    grafts: int = 0
    ignored_announcements: int = 0
    refused: int = 0


@attrs.define
class _Seen:
    """A message known here. Attributes: parent: who brought it first; None for our own."""

    at: float
    parent: PeerId | None


@attrs.define
class _Missing:
    """A message that was announced and has not arrived.

    Attributes:
        since: when it was first announced.
        announcers: who announced it and has not been asked yet, in order, with their rounds.
        asked: who was asked.
        is_timed: whether a timer runs.
    """

    since: float
    announcers: dict[PeerId, int] = attrs.field(factory=dict)
    asked: set[PeerId] = attrs.field(factory=set)
    is_timed: bool = False


class Broadcast:
    """Carries the content of one topic to and from the neighbours of one node.

    Args:
        config: the numbers.
        rng: the source of jitter.
        out: receives the actions.
        validate: decides whether a content may be delivered and passed on; all by default.
    """

    def __init__(
        self,
        config: GossipConfig,
        rng: random.Random,
        out: Output,
        validate: Validate | None = None,
    ) -> None:
        self.eager: dict[PeerId, None] = {}
        self.lazy: dict[PeerId, None] = {}
        self.stats = BroadcastStats()
        self._config = config.broadcast
        self._rng = rng
        self._out = out
        self._validate = validate
        self._max_content = max_content(config.max_message_bytes)
        self._ihave_capacity = ihave_capacity(config.max_message_bytes)
        # Both hold entries in the order of their age. A plain dict walks over all that was deleted
        # at its front to find the oldest one.
        self._seen: OrderedDict[MessageId, _Seen] = OrderedDict()
        self._cache: OrderedDict[MessageId, tuple[float, Gossip]] = OrderedDict()
        self._quota = Quota(MAX_GOSSIP_MESSAGE_IDS)
        self._cache_bytes = 0
        self._concurrency = Concurrency(config.broadcast.concurrency_s)
        self._missing: dict[MessageId, _Missing] = {}
        self._announced: dict[PeerId, int] = {}
        self._usefulness: dict[PeerId, float] = {}
        self._announcements: dict[PeerId, list[tuple[MessageId, int]]] = {}
        self._is_dispatch_due = False
        self._is_sweep_due = False
        # How long messages take after their first announcement, smoothed as TCP smooths round trips.
        self._lead_s: float | None = None
        self._lead_deviation_s = 0.0

    # --- neighbours -----------------------------------------------------------------------------

    def neighbor_up(self, peer: PeerId, now: float, *, high: bool) -> None:
        """Add a neighbour, and announce recent messages to it.

        Args:
            peer: the neighbour.
            now: the time.
            high: whether the request had high priority: one side may have had no neighbours.
        """
        # Once there is a tree, another link can only bring duplicates; it waits to be grafted.
        limit = 1 if self._seen and not high else self._config.eager_limit
        if len(self.eager) < limit:
            self.eager[peer] = None
        else:
            self.lazy[peer] = None
        recent: list[tuple[MessageId, int]] = []
        for at, message in reversed(self._cache.values()):
            if now - at > self._config.recent_s or len(recent) == self._ihave_capacity:
                break
            recent.append((message.id, message.round or 0))
        if recent:
            self._announcements[peer] = recent[::-1]
            self._dispatch_later(now)

    def neighbor_down(self, peer: PeerId) -> None:
        """Remove a neighbour, and what it announced."""
        self.eager.pop(peer, None)
        self.lazy.pop(peer, None)
        self._announcements.pop(peer, None)
        self._usefulness.pop(peer, None)
        if self._announced.pop(peer, 0):
            for missing in self._missing.values():
                missing.announcers.pop(peer, None)

    def _is_neighbor(self, peer: PeerId) -> bool:
        return peer in self.eager or peer in self.lazy

    def _make_eager(self, peer: PeerId) -> None:
        self.lazy.pop(peer, None)
        self.eager[peer] = None

    def _make_lazy(self, peer: PeerId) -> None:
        self.eager.pop(peer, None)
        self.lazy[peer] = None

    # --- our own messages -----------------------------------------------------------------------

    def broadcast(self, content: bytes, now: float) -> bool:
        """Publish a content to the whole swarm.

        Returns:
            False, doing nothing, if this very content was seen here within the retention of ids:
            everybody would drop it as a duplicate.
        """
        id = message_id(content)
        if id in self._seen:
            return False
        self._remember(id, None, now)
        message = Gossip(id, content, 0)
        self._keep(message, now)
        self._push(message, None, (), now)
        return True

    def broadcast_neighbors(self, content: bytes) -> None:
        """Send a content to the neighbours, who do not pass it on."""
        message = Gossip(message_id(content), content, None)
        for peer in (*self.eager, *self.lazy):
            self._out.send(peer, message)

    # --- input ----------------------------------------------------------------------------------

    def receive(self, sender: PeerId, message: ContentMessage, now: float) -> None:
        """Handle a message of the gossip layer."""
        match message:
            case Gossip():
                self._on_gossip(sender, message, now)
            case IHave(entries):
                self._on_ihave(sender, entries, now)
            case Graft():
                self._on_graft(sender, message)
            case Prune():
                if self._is_neighbor(sender):
                    self._make_lazy(sender)

    def _on_gossip(self, sender: PeerId, message: Gossip, now: float) -> None:
        id = message.id
        if message_id(message.content) != id:
            self.stats.forged += 1
            return
        if (seen := self._seen.get(id)) is not None:
            self.stats.duplicates += 1
            if self._is_neighbor(sender):
                self._on_duplicate(sender, id, seen, now)
            return
        if message.round is not None and not self._quota.has_room(sender):
            # If another message were forgotten instead, that one could be delivered again.
            self.stats.refused += 1
            return
        if self._validate is not None and not self._validate(sender, message.content):
            self.stats.rejected += 1
            return
        self.stats.delivered += 1
        delivered = Delivered(id, message.content, message.round, sender)
        if message.round is None:
            self._out.deliver(delivered)
            return
        seen = self._remember(id, sender, now)
        missing = self._missing.pop(id, None)
        holders: tuple[PeerId, ...] = ()
        if missing is not None:
            self._forget_announcers(missing)
            if sender not in missing.asked:
                self._observe_lead(now - missing.since)
            holders = tuple(missing.announcers)
        relayed = self._relayed(message)
        self._keep(relayed, now)
        self._push(relayed, sender, holders, now)
        if missing is not None:
            self._optimize(sender, message.round + 1, missing, seen, id, now)
        self._note_use(sender, message.round)
        self._out.deliver(delivered)

    def _relayed(self, message: Gossip) -> Gossip:
        assert message.round is not None
        round_ = min(message.round + 1, MAX_ROUND)
        if round_ > _LAST_SHORT_ROUND and len(message.content) >= self._max_content:
            # One byte more would exceed the limit, and the round is only a hint.
            round_ = _LAST_SHORT_ROUND
        return Gossip(message.id, message.content, round_)

    def _on_graft(self, sender: PeerId, message: Graft) -> None:
        if self._is_neighbor(sender):
            self._make_eager(sender)
        if message.id is not None and (kept := self._cache.get(message.id)) is not None:
            self._out.send(sender, kept[1])

    # --- the tree -------------------------------------------------------------------------------

    def _on_duplicate(self, sender: PeerId, id: MessageId, seen: _Seen, now: float) -> None:
        """Cut a link that is not needed, if this message is the one to decide."""
        concurrency = self._concurrency
        if concurrency.is_one_way(seen.at):
            # One publisher in quick succession, or several behind the same neighbour: one tree.
            self._prune(sender)
            return
        if not concurrency.is_lowest(id, seen.at):
            return
        victim = sender
        if sender in self.eager and concurrency.count(seen.at) >= _BUSY_MESSAGES:
            if len(self.eager) <= self._config.eager_floor:
                return
            others = [peer for peer in self.eager if peer != seen.parent] or [sender]
            victim = min(others, key=lambda peer: self._usefulness.get(peer, 0.0))
        self._prune(victim)

    def _prune(self, peer: PeerId) -> None:
        self._make_lazy(peer)
        self._out.send(peer, Prune())

    def _optimize(
        self,
        sender: PeerId,
        round_: int,
        missing: _Missing,
        seen: _Seen,
        id: MessageId,
        now: float,
    ) -> None:
        """Make an announcer our parent in the tree, if it would have been much faster."""
        if not missing.announcers or self._concurrency.count(seen.at) > 1:
            return
        config = self._config
        announcers = missing.announcers
        peer = min(announcers, key=lambda peer: announcers[peer])
        if round_ - announcers[peer] < config.optimization_hops:
            # The first one announced has the fastest way; it must not be a descendant of ours. A
            # message that had to be asked for says nothing about the tree: it fell into the gap of
            # a change, and changing again because of that would go on forever.
            peer = next(iter(announcers))
            is_faster = now - missing.since >= config.optimization_lead_s
            if not is_faster or missing.asked or announcers[peer] >= round_:
                return
        if peer not in self.eager:
            self._make_eager(peer)
            self._out.send(peer, Graft(None, announcers[peer]))
        if self._is_neighbor(sender):
            self._prune(sender)

    def _note_use(self, sender: PeerId, round_: int) -> None:
        for peer in self._usefulness:
            self._usefulness[peer] *= _USEFULNESS_DECAY
        if self._is_neighbor(sender):
            use = self._usefulness.get(sender, 0.0)
            self._usefulness[sender] = use + 1 / (2 + round_)

    # --- announcements --------------------------------------------------------------------------

    def _on_ihave(
        self, sender: PeerId, entries: tuple[tuple[MessageId, int], ...], now: float
    ) -> None:
        if not self._is_neighbor(sender):
            return
        for id, round_ in entries:
            if id in self._seen:
                continue
            missing = self._missing.get(id)
            if missing is None or sender not in missing.announcers:
                count = self._announced.get(sender, 0)
                if count >= MAX_GOSSIP_ANNOUNCED_IDS:
                    self.stats.ignored_announcements += 1
                    continue
                self._announced[sender] = count + 1
            if missing is None:
                missing = self._missing[id] = _Missing(now)
            missing.announcers[sender] = round_
            if not missing.is_timed:
                missing.is_timed = True
                self._graft_in(self._graft_timeout(), id, now)

    def _graft_in(self, delay_s: float, id: MessageId, now: float) -> None:
        delay_s *= self._rng.uniform(1.0, 1.0 + _JITTER)
        self._out.call_at(now + delay_s, partial(self._graft_due, id))

    def _graft_due(self, id: MessageId, now: float) -> None:
        missing = self._missing.get(id)
        if missing is None:
            return
        missing.is_timed = False
        if not missing.announcers:
            del self._missing[id]  # whoever announces it next starts over
            return
        # When a link fails, many messages are missing at once: ask one neighbour for all of them.
        peer = next((p for p in missing.announcers if p in self.eager), None)
        if peer is None:
            peer = next(iter(missing.announcers))
        round_ = missing.announcers.pop(peer)
        self._count_down(peer)
        missing.asked.add(peer)
        missing.is_timed = True
        self._make_eager(peer)
        self.stats.grafts += 1
        self._out.send(peer, Graft(id, round_))
        self._graft_in(self._config.graft_retry_s, id, now)

    def _graft_timeout(self) -> float:
        config = self._config
        if self._lead_s is None:
            return config.graft_timeout_s
        observed_s = self._lead_s + 4 * self._lead_deviation_s
        return max(config.graft_timeout_s, min(observed_s, config.graft_timeout_max_s))

    def _observe_lead(self, lead_s: float) -> None:
        if self._lead_s is None:
            self._lead_s, self._lead_deviation_s = lead_s, lead_s / 2
            return
        self._lead_deviation_s += (abs(lead_s - self._lead_s) - self._lead_deviation_s) / 4
        self._lead_s += (lead_s - self._lead_s) / 8

    def _forget_announcers(self, missing: _Missing) -> None:
        for peer in missing.announcers:
            self._count_down(peer)

    def _count_down(self, peer: PeerId) -> None:
        left = self._announced.get(peer, 0) - 1
        if left > 0:
            self._announced[peer] = left
        else:
            self._announced.pop(peer, None)

    # --- sending --------------------------------------------------------------------------------

    def _push(
        self, message: Gossip, sender: PeerId | None, holders: tuple[PeerId, ...], now: float
    ) -> None:
        if len(message.content) > self._max_content:
            return  # it was read within the limit, but nobody may write it
        for peer in self.eager:
            if peer != sender and peer not in holders:
                self._out.send(peer, message)
        assert message.round is not None
        entry = (message.id, message.round)
        for peer in self.lazy:
            if peer != sender and peer not in holders:
                self._announcements.setdefault(peer, []).append(entry)
        self._dispatch_later(now)

    def _dispatch_later(self, now: float) -> None:
        if self._announcements and not self._is_dispatch_due:
            self._is_dispatch_due = True
            self._out.call_at(now + self._config.dispatch_delay_s, self._dispatch)

    def _dispatch(self, now: float) -> None:
        self._is_dispatch_due = False
        announcements, self._announcements = self._announcements, {}
        for peer, entries in announcements.items():
            for start in range(0, len(entries), self._ihave_capacity):
                chunk = tuple(entries[start : start + self._ihave_capacity])
                self._out.send(peer, IHave(chunk))

    # --- memory ---------------------------------------------------------------------------------

    def _remember(self, id: MessageId, parent: PeerId | None, now: float) -> _Seen:
        seen = self._seen[id] = _Seen(now, parent)
        self._quota.take(parent)
        self._concurrency.add(id, now, parent)
        if not self._is_sweep_due:
            self._is_sweep_due = True
            self._out.call_at(now + _SWEEP_S, self._sweep)
        return seen

    def _keep(self, message: Gossip, now: float) -> None:
        self._cache[message.id] = (now, message)
        self._cache_bytes += len(message.content)
        while self._cache_bytes > MAX_GOSSIP_CACHE_BYTES:
            self._drop_oldest_payload()

    def _drop_oldest_payload(self) -> None:
        _, (_, message) = self._cache.popitem(last=False)
        self._cache_bytes -= len(message.content)

    def _sweep(self, now: float) -> None:
        self._is_sweep_due = False
        oldest = now - self._config.payload_retention_s
        while self._cache and next(iter(self._cache.values()))[0] <= oldest:
            self._drop_oldest_payload()
        oldest = now - self._config.id_retention_s
        while self._seen and next(iter(self._seen.values())).at <= oldest:
            _, seen = self._seen.popitem(last=False)
            self._quota.give(seen.parent)
        if self._seen:
            self._is_sweep_due = True
            self._out.call_at(now + _SWEEP_S, self._sweep)
