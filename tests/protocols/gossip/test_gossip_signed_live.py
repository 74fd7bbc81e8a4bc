"""Signed messages between endpoints, in memory and in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from endpoints import network, virtual
from gossip_swarm import TOPIC, Raw, Swarm, contents, next_of, until

from dialkey.errors import InvalidInput
from dialkey.identity import SecretKey
from dialkey_gossip import Joined, MessageTooLarge, Received, Signing, Topic
from dialkey_gossip.framing import frame
from dialkey_gossip.ids import message_id
from dialkey_gossip.messages import Gossip, Join
from dialkey_gossip.signing import Signer, read_envelope


def clock() -> float:
    return 1e9 + asyncio.get_running_loop().time()


async def signed(swarm: Swarm, count: int, **settings: float) -> list[Topic]:
    topics: list[Topic] = []
    for _ in range(count):
        member = await swarm.add()
        peers = [swarm.members[0].endpoint.addr()] if topics else []
        signing = Signing(**settings)  # type: ignore[arg-type]
        topics.append(await member.gossip.join(TOPIC, peers, signing=signing))
    for topic in topics:
        await topic.joined(timeout=10)
        await next_of(topic, Joined)
    return topics


def captured(raw: Raw) -> list[Gossip]:
    return [each for each in raw.heard if isinstance(each, Gossip)]


@virtual
async def test_messages_name_their_author() -> None:
    async with Swarm(network(), clock=clock) as swarm:
        topics = await signed(swarm, 3)
        author = swarm.members[0].endpoint.id
        assert topics[0].max_payload_bytes == 4057 - 130
        for number in (1, 2, 3):
            assert await topics[0].broadcast(b"the same each time")
            for topic in topics[1:]:
                received = await next_of(topic, Received)
                assert received.content == b"the same each time"
                assert (received.author, received.sequence) == (author, number)
        await topics[2].broadcast_neighbors(b"psst")
        received = await next_of(topics[0], Received)
        assert received.is_direct
        assert received.author == swarm.members[2].endpoint.id
        await topics[1].broadcast(bytes(topics[1].max_payload_bytes))
        assert len((await next_of(topics[0], Received)).content) == 3927
        with pytest.raises(MessageTooLarge):
            await topics[0].broadcast(bytes(3928))


@virtual
async def test_another_key_than_the_endpoints() -> None:
    key = SecretKey(b"\x09" * 32)
    async with Swarm(network(), clock=clock) as swarm:
        alice, bob = await swarm.add(), await swarm.add()
        here = await alice.gossip.join(TOPIC, signing=Signing())
        there = await bob.gossip.join(TOPIC, [alice.endpoint.addr()], signing=Signing(key))
        await there.joined(timeout=5)
        await there.broadcast(b"hello")
        assert (await next_of(here, Received)).author == key.id


@virtual
async def test_what_is_not_signed_is_neither_delivered_nor_passed_on() -> None:
    async with Swarm(network(), clock=clock) as swarm:
        topics = await signed(swarm, 2)
        plain = await swarm.add()
        outside = await plain.gossip.join(TOPIC, [swarm.members[0].endpoint.addr()])
        await outside.joined(timeout=5)
        await outside.broadcast(b"who am I?")
        await asyncio.sleep(2)
        assert topics[0].stats().rejected >= 1
        await topics[0].broadcast(b"signed")
        assert await contents(topics[1], 1) == [b"signed"]
        # Whoever does not know of signatures sees the envelope.
        assert read_envelope((await contents(outside, 1))[0]).payload == b"signed"


@virtual
async def test_replays_and_forgeries() -> None:
    async with Swarm(network(), clock=clock) as swarm:
        alice, bob = await signed(swarm, 2, max_age_s=300.0)
        raw = await Raw.dial(await swarm.add(), swarm.members[0])
        listening = asyncio.ensure_future(raw.listen())
        await raw.send(frame(Join()), finish=False)
        await until(lambda: len(alice.neighbors()) == 2)
        await alice.broadcast(b"pay 5")
        await bob.broadcast(b"pay 6")
        await until(lambda: len(captured(raw)) >= 2)
        assert len(await contents(bob, 1) + await contents(alice, 1)) == 2

        async def inject(content: bytes) -> int:
            before = alice.stats().rejected
            await raw.send(frame(Gossip(message_id(content), content, 0)))
            await asyncio.sleep(1)
            return alice.stats().rejected - before

        genuine = next(each for each in captured(raw) if b"pay 6" in each.content).content
        await asyncio.sleep(100)  # the id is forgotten by then, and the sequence is not
        assert await inject(genuine) == 1
        assert await inject(genuine.replace(b"pay 6", b"pay 7")) == 1
        assert await inject(genuine[:-1] + bytes([genuine[-1] ^ 1])) == 1
        stranger = SecretKey(b"\x05" * 32)
        other_topic = Signer(stranger, type(TOPIC).from_name("elsewhere"), clock())
        assert await inject(other_topic.seal(b"from elsewhere", clock())) == 1
        signer = Signer(stranger, TOPIC, clock())
        assert await inject(signer.seal(b"too old", clock() - 301)) == 1
        assert await inject(signer.seal(b"from the future", clock() + 310)) == 1
        assert await inject(signer.seal(b"fine", clock())) == 0
        received = await next_of(alice, Received)
        assert (received.content, received.author, received.sequence) == (b"fine", stranger.id, 3)
        raw.connection.close()
        await listening


@virtual
async def test_who_leaves_and_comes_back_is_heard() -> None:
    """Also within the millisecond, and after its clock was set back."""
    offset = 0.0
    async with Swarm(network(), clock=lambda: clock() + offset) as swarm:
        alice, bob = await signed(swarm, 2)
        await bob.broadcast(b"before")
        assert await contents(alice, 1) == [b"before"]
        for change in (0.0, -60.0):
            offset += change
            await bob.leave()
            peers = [swarm.members[0].endpoint.addr()]
            bob = await swarm.members[1].gossip.join(TOPIC, peers, signing=Signing())
            await bob.joined(timeout=10)
            await bob.broadcast(b"after")
            assert await contents(alice, 1) == [b"after"]


@virtual
async def test_whoever_leaves_and_comes_back_hears_nothing_again() -> None:
    async with Swarm(network(), clock=clock) as swarm:
        alice, bob = await signed(swarm, 2)
        await alice.broadcast(b"once")
        assert await contents(bob, 1) == [b"once"]
        await bob.leave()
        peers = [swarm.members[0].endpoint.addr()]
        bob = await swarm.members[1].gossip.join(TOPIC, peers, signing=Signing())
        await bob.joined(timeout=10)
        # What travelled lately is announced to a new neighbour, so bob is sent it once more.
        await until(lambda: bob.stats().rejected == 1)
        await alice.broadcast(b"next")
        assert await contents(bob, 1) == [b"next"]


@virtual
async def test_handles_of_one_topic_agree_on_signatures() -> None:
    async with Swarm(network(), clock=clock) as swarm:
        gossip = (await swarm.add()).gossip
        topic = await gossip.join(TOPIC, signing=Signing())
        with pytest.raises(InvalidInput, match="other settings"):
            await gossip.join(TOPIC)
        await (await gossip.join(TOPIC, signing=Signing())).leave()
        await topic.leave()
        await gossip.join(TOPIC)
