"""A quarter of an hour of members that come, leave and crash, over QUIC in virtual time."""

from __future__ import annotations

import asyncio
import random

import attrs
import pytest
from endpoints import virtual
from gossip_swarm import TOPIC, Member, Swarm

from dialkey.testing import Conditions, MemoryNetwork
from dialkey_gossip import Received, Topic

MIN_MEMBERS, MAX_MEMBERS = 8, 16
SETTLED_S = 40.0
"""A crash is noticed within 30 s, and whoever has been in the swarm for longer misses nothing."""


@attrs.define(eq=False)
class Participant:
    member: Member
    topic: Topic
    since: float
    received: set[bytes] = attrs.field(factory=set)
    task: asyncio.Task[None] = attrs.field(init=False)

    async def listen(self) -> None:
        async for event in self.topic:
            if isinstance(event, Received):
                self.received.add(event.content)


def now() -> float:
    return asyncio.get_running_loop().time()


async def enter(swarm: Swarm, others: list[Participant], chance: random.Random) -> Participant:
    member = await swarm.add()
    contacts = chance.sample(others, min(2, len(others)))
    bootstrap = [each.member.endpoint.addr() for each in contacts]
    participant = Participant(member, await member.gossip.join(TOPIC, bootstrap), now())
    participant.task = asyncio.create_task(participant.listen())
    return participant


async def end(swarm: Swarm, participant: Participant, *, is_crash: bool) -> None:
    if is_crash:
        await participant.member.crash()
    else:
        await participant.topic.leave()
        await participant.member.stop()
    await participant.task
    swarm.members.remove(participant.member)


@pytest.mark.slow
@virtual
async def test_who_stays_misses_nothing() -> None:
    chance = random.Random(1)
    conditions = Conditions(delay_s=0.03, jitter_s=0.02, loss=0.01)
    async with Swarm(MemoryNetwork(seed=1, conditions=conditions)) as swarm:
        present: list[Participant] = []
        for _ in range(10):
            present.append(await enter(swarm, present, chance))
        await asyncio.sleep(SETTLED_S + 5)
        for number in range(60):
            event = chance.random()
            if event < 0.3 and len(present) > MIN_MEMBERS:
                gone = present.pop(chance.randrange(len(present)))
                await end(swarm, gone, is_crash=event < 0.15)
            elif event < 0.6 and len(present) < MAX_MEMBERS:
                present.append(await enter(swarm, present, chance))
            settled = [each for each in present if now() - each.since > SETTLED_S]
            publisher = chance.choice(settled)
            content = b"%d" % number
            await publisher.topic.broadcast(content)
            await asyncio.sleep(5)
            for each in settled:
                assert each is publisher or content in each.received
                links = each.member.gossip.stats().links
                assert links.connections <= 20
                assert links.queued_bytes < 100_000
            await asyncio.sleep(10)
        for each in present:
            await end(swarm, each, is_crash=False)
