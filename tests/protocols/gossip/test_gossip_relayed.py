"""Members that reach each other through a relay only."""

from __future__ import annotations

from gossip_swarm import TOPIC, Swarm, everybody_has, until

from dialkey.identity import EndpointAddr, RelayAddr, RelayUrl
from dialkey_gossip import Topic
from dialkey_relay import Everyone, RelayOptions, RelayServer


async def test_members_behind_a_relay_hear_of_each_other() -> None:
    options = RelayOptions(client_rate=None, accept_rate_per_address=None)
    async with RelayServer([Everyone()], options) as server, Swarm() as swarm:
        topics: list[Topic] = []
        for _ in range(3):
            member = await swarm.add(
                endpoint={"transports": (), "relays": [server.url], "entry_points": True}
            )
            addr = await member.endpoint.online()
            assert addr.ip_addrs == ()
            first = swarm.members[0].endpoint.id
            bootstrap = [EndpointAddr(first, [RelayAddr(RelayUrl(server.url))])] if topics else []
            topics.append(await member.gossip.join(TOPIC, bootstrap))
        # The third one learns from the first where the second one is.
        await until(lambda: all(len(topic.neighbors()) == 2 for topic in topics))
        await topics[2].broadcast(b"over there")
        await everybody_has(topics[:2], b"over there")
        known = swarm.members[2].gossip.known_addr(swarm.members[1].endpoint.id)
        assert known.relay_urls == (RelayUrl(server.url),)
