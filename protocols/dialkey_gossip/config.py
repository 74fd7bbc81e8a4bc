"""The numbers that shape a swarm.

Defaults are iroh's where members have to agree or where a mixed swarm should behave as one; where they
differ, the reason is given. Times are in seconds.

Source: docs/wire/gossip.md 3.2.
"""

from __future__ import annotations

from typing import Final

import attrs

from dialkey.errors import InvalidInput
from dialkey_gossip.framing import DEFAULT_MAX_MESSAGE_BYTES
from dialkey_gossip.messages import max_content

__all__ = ["BroadcastConfig", "GossipConfig", "MembershipConfig"]

_MIN_MESSAGE_BYTES: Final = 512


@attrs.frozen
class MembershipConfig:
    """How a node keeps its neighbourhood (HyParView).

    Attributes:
        active_capacity: neighbours per topic.
        passive_capacity: further members whose ids are kept as replacements for neighbours.
        active_walk_hops: length of the random walk that announces a joiner.
        passive_walk_hops: where on that walk it enters passive views.
        shuffle_walk_hops: length of a shuffle's random walk.
        shuffle_active: neighbours named in a shuffle.
        shuffle_passive: passive members named in a shuffle.
        shuffle_interval_s: mean time between shuffles; each wait is drawn within 20 % of it.
        first_shuffle_s: mean time to the first one; the waits double from there. iroh waits a whole
            interval, during which a joiner knows only those who joined just before and after it.
        request_patience_s: when to ask somebody else as well, because a peer that was asked to
            become a neighbour has not answered.
        request_timeout_s: how much later that peer counts as gone. iroh has one time for both,
            0.5 s, and so drops peers whose dial goes over a relay.
        refill_attempts: peers asked in a row before waiting for the next occasion.
        retry_s: first pause before a lost or unreachable peer is tried again; it doubles.
        retry_isolated_max_s: longest such pause while there is no neighbour at all.
        retry_max_s: longest such pause otherwise.
        lost_retention_s: how long a lost neighbour is tried before it is forgotten.
    """

    active_capacity: int = 5
    passive_capacity: int = 30
    active_walk_hops: int = 6
    passive_walk_hops: int = 3
    shuffle_walk_hops: int = 6
    shuffle_active: int = 3
    shuffle_passive: int = 4
    shuffle_interval_s: float = 60.0
    first_shuffle_s: float = 0.2
    request_patience_s: float = 0.5
    request_timeout_s: float = 5.0
    refill_attempts: int = 4
    retry_s: float = 1.0
    retry_isolated_max_s: float = 30.0
    retry_max_s: float = 300.0
    lost_retention_s: float = 6 * 3600.0

    def __attrs_post_init__(self) -> None:
        if self.active_capacity < 2 or self.passive_capacity < 1:
            raise InvalidInput(
                "a swarm needs an active_capacity of 2 or more and a passive_capacity of 1 or more",
                hint="with one neighbour each, members form pairs",
            )


@attrs.frozen
class BroadcastConfig:
    """How content travels between neighbours (PlumTree).

    Attributes:
        eager_limit: neighbours that are sent whole messages before a first message has shown which
            of them are needed. iroh sends to all.
        eager_floor: how many stay eager while several messages are concurrent, because a tree that
            is good for one publisher is a long way for another.
        concurrency_s: messages that arrive this close together are concurrent.
        graft_timeout_s: how long an announced message may take to arrive before it is asked for.
        graft_timeout_max_s: how far this grows where messages are seen to arrive later by themselves.
            iroh's never grows, so in long trees it asks for what is already on its way.
        graft_retry_s: how long one announcer may take before the next one is asked.
        dispatch_delay_s: how long announcements are collected.
        optimization_hops: hops that another route must save to replace the current one.
        optimization_lead_s: or how long before the message its announcement must arrive.
        recent_s: messages of this age are announced to a new neighbour, so that members that were cut
            off learn about them. iroh announces none.
        payload_retention_s: how long a payload is kept for neighbours that ask.
        id_retention_s: how long an id is kept against duplicates.
    """

    eager_limit: int = 4
    eager_floor: int = 3
    concurrency_s: float = 0.2
    graft_timeout_s: float = 0.08
    graft_timeout_max_s: float = 0.5
    graft_retry_s: float = 0.04
    dispatch_delay_s: float = 0.005
    optimization_hops: int = 7
    optimization_lead_s: float = 0.02
    recent_s: float = 10.0
    payload_retention_s: float = 30.0
    id_retention_s: float = 90.0

    def __attrs_post_init__(self) -> None:
        if self.eager_limit < 1:
            raise InvalidInput("eager_limit is at least 1")
        if self.concurrency_s <= 0:
            raise InvalidInput("concurrency_s is above 0")


@attrs.frozen
class GossipConfig:
    """All numbers of a gossip node.

    Attributes:
        max_message_bytes: the limit on one frame's body, at least 512; equal in the whole swarm.
        membership: the neighbourhood.
        broadcast: the distribution of content.
    """

    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    membership: MembershipConfig = attrs.field(factory=MembershipConfig)
    broadcast: BroadcastConfig = attrs.field(factory=BroadcastConfig)

    def __attrs_post_init__(self) -> None:
        if not _MIN_MESSAGE_BYTES <= self.max_message_bytes < 1 << 31:
            raise InvalidInput(
                f"max_message_bytes is at least {_MIN_MESSAGE_BYTES}, not {self.max_message_bytes}"
            )

    @property
    def max_content_bytes(self) -> int:
        """The longest content that a broadcast carries: 4,057 bytes by default."""
        return max_content(self.max_message_bytes)
