"""Thirty endpoints in one process over loopback QUIC; many die at once; nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

import pytest
from endpoints import no_leftovers
from gossip_swarm import TOPIC, Member, Swarm, everybody_has, until

from dialkey_gossip import Topic
from dialkey_gossip.node import Node

MEMBERS = 30
KILLED = 10


async def together(swarm: Swarm, count: int) -> list[Topic]:
    first = await swarm.add()
    topics = [await first.gossip.join(TOPIC)]
    for _ in range(count - 1):
        member = await swarm.add()
        topics.append(await member.gossip.join(TOPIC, [first.endpoint.ticket()]))
    await asyncio.gather(*(topic.joined(timeout=30) for topic in topics))
    return topics


@pytest.mark.slow
async def test_thirty_endpoints_of_which_a_third_is_killed() -> None:
    # Endpoints that nobody hears from are noticed after the idle time, here three seconds.
    quick = {"idle_timeout_s": 3.0, "keep_alive_s": 1.0}
    async with Swarm() as swarm:
        first = await swarm.add(endpoint=quick)
        topics = [await first.gossip.join(TOPIC)]
        for _ in range(MEMBERS - 1):
            member = await swarm.add(endpoint=quick)
            topics.append(await member.gossip.join(TOPIC, [first.endpoint.ticket()]))
        await asyncio.gather(*(topic.joined(timeout=30) for topic in topics))
        await topics[7].broadcast(b"all here")
        await everybody_has([topic for topic in topics if topic is not topics[7]], b"all here")

        dead, alive = swarm.members[:KILLED], swarm.members[KILLED:]  # the first one is among them
        rest = topics[KILLED:]
        for member in dead:
            member.transport.is_dead = True
        gone = {member.endpoint.id for member in dead}
        await until(
            lambda: all(topic.neighbors() and not gone & {*topic.neighbors()} for topic in rest),
            timeout=30,
        )
        for index in (0, 5, 19):
            content = b"without them %d" % index
            publisher = rest[index]
            await publisher.broadcast(content)
            await everybody_has([topic for topic in rest if topic is not publisher], content)
        for member in alive:
            assert (
                member.gossip.stats().links.queued_bytes < 10_000
            )  # for one that is dialled again
    await no_leftovers()


def objects(kind: type) -> int:
    gc.collect()
    return sum(isinstance(each, kind) for each in gc.get_objects())


@pytest.mark.slow
async def test_members_that_come_and_go_leave_nothing_behind() -> None:
    async def visit(host: Member, swarm: Swarm) -> None:
        guest = await swarm.add()
        topic = await guest.gossip.join(TOPIC, [host.endpoint.ticket()])
        await topic.joined(timeout=30)
        await topic.broadcast(bytes(guest.endpoint.id))
        await topic.leave()
        await guest.stop()
        swarm.members.remove(guest)

    async with Swarm() as swarm:
        host = await swarm.add()
        topic = await host.gossip.join(TOPIC)

        async def drain() -> None:
            async for _ in topic:
                pass

        draining = asyncio.create_task(drain())
        for _ in range(10):
            await visit(host, swarm)
        tasks, nodes = len(asyncio.all_tasks()), objects(Node)
        tracemalloc.start()
        try:
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(25):
                await visit(host, swarm)
            await until(lambda: host.gossip.stats().links.connections == 0)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(asyncio.all_tasks()) <= tasks
        assert objects(Node) <= nodes
        # What stays are ids of 25 messages, and addresses heard of: some kilobytes.
        assert after - before < 600_000
        await topic.leave()
        await draining
    await no_leftovers()
