"""Gossip: publish to a topic, and everybody in its swarm receives it.

Wire-compatible with iroh-gossip 0.101. Each member is connected to a few others (HyParView), and
messages travel along a tree that builds and repairs itself (PlumTree)::

    gossip = router.add(Gossip())
    async with gossip.join(TopicId.from_name("weather"), bootstrap=[ticket]) as topic:
        await topic.joined()
        await topic.broadcast(b"rain")
        async for event in topic:
            if isinstance(event, Received):
                print(event.content)

The state machines do no I/O: `dialkey_gossip.node` is their front, `dialkey_gossip.simulation` runs
swarms of them on virtual time. The names below are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey.lazy import lazy_names

if TYPE_CHECKING:
    from dialkey_gossip.config import BroadcastConfig, GossipConfig, MembershipConfig
    from dialkey_gossip.errors import MessageTooLarge, NoNeighbors, TopicLeft
    from dialkey_gossip.events import Event, Joined, Lagged, NeighborDown, NeighborUp, Received
    from dialkey_gossip.framing import ALPN
    from dialkey_gossip.gossip import Gossip, GossipStats
    from dialkey_gossip.ids import TopicId
    from dialkey_gossip.links import LinkStats
    from dialkey_gossip.plumtree import BroadcastStats
    from dialkey_gossip.signing import Signing
    from dialkey_gossip.tickets import TopicTicket
    from dialkey_gossip.topic import Topic

__all__ = [
    "ALPN",
    "BroadcastConfig",
    "BroadcastStats",
    "Event",
    "Gossip",
    "GossipConfig",
    "GossipStats",
    "Joined",
    "Lagged",
    "LinkStats",
    "MembershipConfig",
    "MessageTooLarge",
    "NeighborDown",
    "NeighborUp",
    "NoNeighbors",
    "Received",
    "Signing",
    "Topic",
    "TopicId",
    "TopicLeft",
    "TopicTicket",
]

_HOMES = {
    "config": ("BroadcastConfig", "GossipConfig", "MembershipConfig"),
    "errors": ("MessageTooLarge", "NoNeighbors", "TopicLeft"),
    "events": ("Event", "Joined", "Lagged", "NeighborDown", "NeighborUp", "Received"),
    "framing": ("ALPN",),
    "gossip": ("Gossip", "GossipStats"),
    "ids": ("TopicId",),
    "links": ("LinkStats",),
    "plumtree": ("BroadcastStats",),
    "signing": ("Signing",),
    "tickets": ("TopicTicket",),
    "topic": ("Topic",),
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
