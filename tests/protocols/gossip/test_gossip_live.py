"""Gossip between endpoints on loopback."""

from __future__ import annotations

from endpoints import no_leftovers
from gossip_swarm import TOPIC, Swarm, contents, everybody_has, joined, next_of, until

from dialkey_gossip import Joined, NeighborDown, NeighborUp, Received


async def test_two_members() -> None:
    async with joined(2) as (swarm, (alice, bob)):
        assert alice.neighbors() == (swarm.members[1].endpoint.id,)
        assert bob.neighbors() == (swarm.members[0].endpoint.id,)
        assert await anext(bob) == NeighborUp(swarm.members[0].endpoint.id)
        assert await anext(bob) == Joined()
        assert await alice.broadcast(b"hello")
        assert await anext(bob) == Received(b"hello", swarm.members[0].endpoint.id, 0)
        assert await bob.broadcast(b"hello yourself")
        received = await next_of(alice, Received)
        assert received == Received(b"hello yourself", swarm.members[1].endpoint.id, 0)
        await bob.leave()
        assert await next_of(alice, NeighborDown) == NeighborDown(swarm.members[1].endpoint.id)
        assert alice.neighbors() == bob.neighbors() == ()
    await no_leftovers()


async def test_three_members() -> None:
    async with joined(3) as (_, topics):
        await until(lambda: all(len(topic.neighbors()) == 2 for topic in topics))
        for number, topic in enumerate(topics):
            content = b"from %d" % number
            await topic.broadcast(content)
            await everybody_has([each for each in topics if each is not topic], content)
        await topics[0].leave()
        await until(lambda: [len(topic.neighbors()) for topic in topics] == [0, 1, 1])
        await topics[1].broadcast(b"only us")
        assert await contents(topics[2], 1) == [b"only us"]
    await no_leftovers()


async def test_a_member_stops() -> None:
    async with joined(2) as (swarm, (alice, bob)):
        await swarm.members[1].stop()
        assert bob.is_left
        assert await next_of(alice, NeighborDown) == NeighborDown(swarm.members[1].endpoint.id)
    await no_leftovers()


async def test_leave_and_join_again() -> None:
    async with joined(2) as (swarm, (alice, bob)):
        await bob.leave()
        await next_of(alice, NeighborDown)
        again = await swarm.members[1].gossip.join(TOPIC, [swarm.members[0].endpoint.ticket()])
        await again.joined(timeout=5)
        await until(lambda: alice.neighbors())
        await alice.broadcast(b"welcome back")
        assert await contents(again, 1) == [b"welcome back"]
    await no_leftovers()


async def test_nobody_is_there() -> None:
    async with Swarm() as swarm:
        member = await swarm.add()
        topic = await member.gossip.join(TOPIC)
        assert topic.neighbors() == ()
        await topic.leave()
    await no_leftovers()
