"""Failures of the network, of members and of their manners, in memory and in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections.abc import AsyncGenerator

import pytest
from endpoints import network, virtual
from gossip_swarm import (
    TOPIC,
    Member,
    Raw,
    Swarm,
    address,
    contents,
    everybody_has,
    joined,
    next_of,
    until,
)

from dialkey import EndpointId, EndpointInfo, LookupAnswer
from dialkey.errors import ConnectionClosedByPeer
from dialkey.identity import EndpointAddr, SecretKey, TransportAddr
from dialkey.testing import Conditions, MemoryNetwork
from dialkey_gossip import ALPN, Lagged, NeighborDown, Received, TopicId
from dialkey_gossip.framing import frame, frame_header
from dialkey_gossip.ids import PeerId, message_id
from dialkey_gossip.messages import ForwardJoin, Gossip, Join, Neighbor, PeerInfo

OTHER = TopicId.from_name("other")


def now() -> float:
    return asyncio.get_running_loop().time()


def cut(swarm: Swarm, ones: list[Member], others: list[Member], *, is_up: bool = False) -> None:
    """Take the links between two groups down, or up again."""
    assert swarm.network is not None
    for one, other in itertools.product(ones, others):
        link = swarm.network.link(one.transport.address, other.transport.address)
        link.up() if is_up else link.down()


class Directory:
    """An address lookup that everybody asks: where a member is now."""

    name = "directory"

    def __init__(self) -> None:
        self.addrs: dict[EndpointId, list[TransportAddr]] = {}

    async def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        if id in self.addrs:
            yield LookupAnswer(EndpointInfo(EndpointAddr(id, self.addrs[id])))

    async def publish(self, info: EndpointInfo) -> None:
        """Tests do."""

    async def close(self) -> None:
        """Nothing is open."""


# --- members and networks that fail -------------------------------------------------------------


@virtual
async def test_a_bootstrap_peer_that_comes_late_is_dialled_again() -> None:
    async with Swarm(network()) as swarm:
        bob = await swarm.add()
        alice_addr = EndpointAddr((await swarm.add()).endpoint.id, [address(2)])
        await swarm.members[1].stop()
        topic = await bob.gossip.join(TOPIC, [alice_addr])
        await asyncio.sleep(100)
        assert bob.gossip.stats().links.failed_dials >= 3
        again = await swarm.add(
            endpoint={
                "secret_key": swarm.members[1].endpoint.secret_key,
                "transports": [swarm.network.transport(address(2))],  # type: ignore[union-attr]
            }
        )
        here = await again.gossip.join(TOPIC)
        started = now()
        await topic.joined(timeout=60)
        assert now() - started <= 50
        await topic.broadcast(b"at last")
        assert await contents(here, 1) == [b"at last"]


@virtual
async def test_one_bootstrap_peer_of_several_is_enough() -> None:
    async with Swarm(network()) as swarm:
        alice, bob, gone = [await swarm.add() for _ in range(3)]
        await gone.stop()
        await alice.gossip.join(TOPIC)
        topic = await bob.gossip.join(TOPIC, [gone.endpoint.addr(), alice.endpoint.addr()])
        started = now()
        await topic.joined(timeout=10)
        assert now() - started <= 1


@virtual
async def test_both_ask_each_other_at_the_same_moment() -> None:
    async with Swarm(network()) as swarm:
        alice, bob = await swarm.add(), await swarm.add()
        here, there = await asyncio.gather(
            alice.gossip.join(TOPIC, [bob.endpoint.addr()]),
            bob.gossip.join(TOPIC, [alice.endpoint.addr()]),
        )
        await asyncio.gather(here.joined(timeout=5), there.joined(timeout=5))
        for round in range(5):
            await here.broadcast(b"to bob %d" % round)
            await there.broadcast(b"to alice %d" % round)
            assert await contents(there, 1) == [b"to bob %d" % round]
            assert await contents(here, 1) == [b"to alice %d" % round]
            await asyncio.sleep(15)
        assert alice.gossip.stats().links.connections <= 2


@virtual
async def test_a_crash_is_noticed_and_the_others_go_on() -> None:
    async with joined(8, network()) as (swarm, topics):
        await asyncio.sleep(10)
        await swarm.members[0].crash()  # the bootstrap peer of all others
        started = now()
        rest = topics[1:]
        for number in range(3):
            content = b"without you %d" % number
            await rest[number].broadcast(content)
            await everybody_has([each for each in rest if each is not rest[number]], content)
        gone = swarm.members[0].endpoint.id
        await until(lambda: not any(gone in topic.neighbors() for topic in rest), timeout=60)
        assert now() - started <= 35


@virtual
async def test_a_member_that_restarts_with_its_key() -> None:
    async with joined(3, network()) as (swarm, topics):
        old = swarm.members[2]
        await old.crash()
        new = await swarm.add(endpoint={"secret_key": old.endpoint.secret_key})
        topic = await new.gossip.join(TOPIC, [swarm.members[0].endpoint.addr()])
        await topic.joined(timeout=10)
        await topic.broadcast(b"it is me again")
        await everybody_has(topics[:2], b"it is me again")
        await asyncio.sleep(60)
        await topics[0].broadcast(b"welcome")
        await everybody_has([topics[1], topic], b"welcome")


@virtual
async def test_whoever_leaves_and_joins_again_at_once_is_in() -> None:
    """What was on its way to the member that left must not end the neighbourhood of the new one."""
    async with joined(2, network()) as (swarm, (alice, bob)):
        first, second = swarm.members
        for number in range(20):
            # An announcement is collected for some milliseconds: it leaves after bob did.
            await asyncio.sleep(0.001 * (number % 10))
            await alice.broadcast(b"last %d" % number)
            await bob.leave()
            bob = await second.gossip.join(TOPIC, [first.endpoint.addr()])
            await bob.joined(5)
            await asyncio.sleep(0.3)
            assert alice.neighbors() == (second.endpoint.id,)
            assert bob.neighbors() == (first.endpoint.id,)


@virtual
async def test_a_partition_heals() -> None:
    async with joined(6, network()) as (swarm, topics):
        await asyncio.sleep(10)
        cut(swarm, swarm.members[:3], swarm.members[3:])
        await asyncio.sleep(120)
        ids = [member.endpoint.id for member in swarm.members]
        assert all(set(topic.neighbors()) <= set(ids[:3]) for topic in topics[:3])
        cut(swarm, swarm.members[:3], swarm.members[3:], is_up=True)
        started = now()
        await until(lambda: set(topics[0].neighbors()) & set(ids[3:]), timeout=330)
        assert now() - started <= 330
        await asyncio.sleep(60)
        await topics[5].broadcast(b"one again")
        await everybody_has(topics[:5], b"one again")


@virtual
async def test_the_whole_network_goes_and_comes_back() -> None:
    async with joined(5, network()) as (swarm, topics):
        await asyncio.sleep(5)
        for index, member in enumerate(swarm.members):
            cut(swarm, [member], swarm.members[index + 1 :])
        await asyncio.sleep(600)
        assert all(topic.neighbors() == () for topic in topics)
        for index, member in enumerate(swarm.members):
            cut(swarm, [member], swarm.members[index + 1 :], is_up=True)
        await asyncio.sleep(90)
        await topics[0].broadcast(b"back")
        await everybody_has(topics[1:], b"back")


@virtual
async def test_a_member_whose_network_is_back_says_so_to_its_endpoint() -> None:
    async with joined(3, network()) as (swarm, topics):
        lost, others = swarm.members[2], swarm.members[:2]
        cut(swarm, [lost], others)
        await asyncio.sleep(600)
        assert topics[2].neighbors() == ()
        cut(swarm, [lost], others, is_up=True)
        lost.endpoint.network_changed()
        started = now()
        await topics[2].joined(timeout=30)
        assert now() - started <= 5


@virtual
async def test_both_ends_are_somewhere_else_and_are_found_by_a_lookup() -> None:
    directory = Directory()
    async with Swarm(network()) as swarm:
        options = {"address_lookups": [directory], "idle_timeout_s": 10.0}
        alice, bob = [await swarm.add(endpoint=options) for _ in range(2)]
        here = await alice.gossip.join(TOPIC)
        directory.addrs[alice.endpoint.id] = [address(1)]
        there = await bob.gossip.join(TOPIC, [alice.endpoint.id])  # by its id alone
        await there.joined(timeout=10)
        for number, member in ((101, alice), (102, bob)):
            member.transport.move_to(address(number))  # type: ignore[union-attr]
            directory.addrs[member.endpoint.id] = [address(number)]
        await next_of(here, NeighborDown, timeout=60)
        await here.joined(timeout=60)
        await there.joined(timeout=60)
        await asyncio.sleep(5)
        await here.broadcast(b"found")
        assert await contents(there, 1) == [b"found"]


@virtual
async def test_a_member_that_moves_stays_a_neighbour() -> None:
    async with joined(3, network()) as (swarm, topics):
        await asyncio.sleep(5)
        before = [topic.neighbors() for topic in topics]
        swarm.members[1].transport.move_to(address(101), announce=True)  # type: ignore[union-attr]
        for number in range(4):
            publisher = topics[number % 3]
            content = b"on the move %d" % number
            await publisher.broadcast(content)
            await everybody_has([each for each in topics if each is not publisher], content)
            await asyncio.sleep(10)
        assert [topic.neighbors() for topic in topics] == before


@virtual
async def test_two_that_move_at_once_meet_again_through_a_third() -> None:
    async with joined(3, network()) as (swarm, topics):
        await asyncio.sleep(5)
        for number, member in ((101, swarm.members[1]), (102, swarm.members[2])):
            member.transport.move_to(address(number), announce=True)  # type: ignore[union-attr]
        await asyncio.sleep(120)
        assert all(len(topic.neighbors()) == 2 for topic in topics)
        await topics[1].broadcast(b"new addresses")
        await everybody_has([topics[0], topics[2]], b"new addresses")


@virtual
async def test_a_machine_that_slept_looks_for_its_swarm_at_once() -> None:
    offset = 0.0

    def clock() -> float:
        return 1e9 + now() + offset

    async with joined(3, network(), clock=clock) as (swarm, topics):
        await asyncio.sleep(10)
        cut(swarm, swarm.members[2:], swarm.members[:2])
        await asyncio.sleep(3000)
        assert topics[2].neighbors() == ()
        await asyncio.sleep(5)
        cut(swarm, swarm.members[2:], swarm.members[:2], is_up=True)
        offset = 3600.0  # the lid was closed for an hour, and the loop's clock stood still
        started = now()
        await topics[2].joined(timeout=60)
        assert now() - started <= 8


@virtual
async def test_messages_get_through_a_bad_network() -> None:
    conditions = Conditions(delay_s=0.05, jitter_s=0.02, loss=0.05, duplicate=0.01, reorder=0.02)
    async with joined(8, MemoryNetwork(seed=5, conditions=conditions)) as (_, topics):
        await asyncio.sleep(10)
        for number in range(20):
            content = b"%d" % number
            publisher = topics[number % 8]
            await publisher.broadcast(content)
            await everybody_has([each for each in topics if each is not publisher], content)


# --- connections --------------------------------------------------------------------------------


@virtual
async def test_connections_that_nobody_needs_are_closed() -> None:
    async with joined(12, network()) as (swarm, topics):
        await asyncio.sleep(120)
        for member, topic in zip(swarm.members, topics, strict=True):
            stats = member.gossip.stats().links
            assert stats.connections <= 2 * len(topic.neighbors()) + 1
        for topic in topics[1:]:
            await topic.leave()
        await asyncio.sleep(30)
        assert topics[0].neighbors() == ()
        for member in swarm.members:
            stats = member.gossip.stats().links
            assert (stats.connections, stats.peers, stats.queued_bytes) == (0, 0, 0)


@virtual
async def test_an_idle_stranger_is_let_go() -> None:
    async with Swarm(network()) as swarm:
        alice, stranger = await swarm.add(), await swarm.add()
        await alice.gossip.join(TOPIC)
        connection = await stranger.endpoint.connect(alice.endpoint.addr(), ALPN)
        error = await connection.closed()
        assert isinstance(error, ConnectionClosedByPeer)
        assert error.error_code == 0
        assert 4 <= now() <= 12


@virtual
async def test_connections_of_one_peer_are_bounded() -> None:
    async with joined(2, network()) as (swarm, (alice, bob)):
        extra = [
            await swarm.members[1].endpoint.connect(swarm.members[0].endpoint.addr(), ALPN)
            for _ in range(30)
        ]
        await asyncio.sleep(1)
        assert swarm.members[0].gossip.stats().links.connections <= 8
        await asyncio.sleep(20)
        assert alice.neighbors()
        await bob.broadcast(b"still")
        assert await contents(alice, 1) == [b"still"]
        for connection in extra:
            connection.close()


# --- event loops that start tasks at once --------------------------------------------------------


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@virtual
async def test_a_swarm_in_a_loop_with_eager_tasks() -> None:
    """Textual sets an eager task factory: a task may have ended before it is returned."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    try:
        async with joined(3, network()) as (_, (alice, bob, carol)):
            for number in range(5):
                await alice.broadcast(b"%d" % number)
                assert await contents(bob, 1, timeout=5) == [b"%d" % number]
                assert await contents(carol, 1, timeout=5) == [b"%d" % number]
                await asyncio.sleep(0.1)
    finally:
        loop.set_task_factory(None)


# --- manners ------------------------------------------------------------------------------------


@virtual
async def test_nonsense_ends_a_stream_and_nothing_else() -> None:
    async with joined(2, network()) as (swarm, (alice, bob)):
        stranger = await swarm.add()
        raw = await Raw.dial(stranger, swarm.members[0])
        chance = random.Random(1)
        for data in (
            chance.randbytes(3000),
            (0x1001).to_bytes(4, "big"),
            frame(Join())[:-1],
            b"\xff" * 100,
            (2).to_bytes(4, "big") + b"\x07\x07",
        ):
            await raw.send(data)
        await raw.send(b"\x00\x00\x00\x05hello", topic=None)
        await asyncio.sleep(1)
        assert not raw.connection.is_closed
        listening = asyncio.ensure_future(raw.listen())
        await raw.send(frame(Join()))
        await until(lambda: any(isinstance(each, Neighbor) for each in raw.heard))
        assert stranger.endpoint.id in alice.neighbors()
        assert 4 <= swarm.members[0].gossip.stats().links.malformed <= 8
        await bob.broadcast(b"undisturbed")
        assert await contents(alice, 1) == [b"undisturbed"]
        raw.connection.close()
        await listening


@virtual
async def test_frames_after_an_unknown_message_count() -> None:
    async with joined(1, network()) as (swarm, (alice,)):
        raw = await Raw.dial(await swarm.add(), swarm.members[0])
        unknown = (3).to_bytes(4, "big") + b"\x01\x09\x00"
        await raw.send(unknown + frame(Gossip(message_id(b"x"), b"x", 0)), finish=False)
        assert await contents(alice, 1) == [b"x"]


@virtual
async def test_a_peer_that_sends_only_nonsense_is_closed() -> None:
    async with joined(1, network()) as (swarm, _):
        raw = await Raw.dial(await swarm.add(), swarm.members[0])
        for _ in range(20):
            try:
                await raw.send(b"\x00\x00\x00\x01\xff")
            except ConnectionClosedByPeer:
                break
        error = await raw.connection.closed()
        assert isinstance(error, ConnectionClosedByPeer)
        assert error.error_code == 2


@virtual
async def test_a_stream_without_a_header_holds_up_nobody() -> None:
    async with joined(1, network()) as (swarm, (alice,)):
        raw = await Raw.dial(await swarm.add(), swarm.members[0])
        silent = await raw.connection.open_uni()
        await silent.write(b"\x00\x00\x00")
        for number in range(3):
            content = b"%d" % number
            await raw.send(frame(Gossip(message_id(content), content, 0)))
            assert await contents(alice, 1, timeout=2) == [content]


@virtual
async def test_a_header_byte_by_byte() -> None:
    async with joined(1, network()) as (swarm, (alice,)):
        raw = await Raw.dial(await swarm.add(), swarm.members[0])
        stream = await raw.connection.open_uni()
        for byte in frame_header(TOPIC) + frame(Gossip(message_id(b"slow"), b"slow", 0)):
            await stream.write(bytes([byte]))
            await asyncio.sleep(0.05)
        assert await contents(alice, 1) == [b"slow"]


@virtual
async def test_a_topic_that_we_are_not_in_is_ignored() -> None:
    async with joined(1, network()) as (swarm, (alice,)):
        raw = await Raw.dial(await swarm.add(), swarm.members[0])
        await raw.send(frame(Join()), topic=OTHER)
        await asyncio.sleep(1)
        assert alice.neighbors() == ()
        assert raw.heard == []


@virtual
async def test_a_member_that_reads_nothing_holds_up_nobody() -> None:
    async with joined(3, network()) as (swarm, topics):
        raw = await Raw.dial(await swarm.add(), swarm.members[0])
        await raw.send(frame(Join()), finish=False)
        await until(lambda: raw.connection.endpoint.id in topics[0].neighbors())
        gossip = swarm.members[0].gossip
        slowest = 0.0
        received = asyncio.ensure_future(contents(topics[2], 1500, timeout=300))
        for number in range(1500):
            started = now()
            await topics[0].broadcast(number.to_bytes(4, "big") + bytes(4000))
            slowest = max(slowest, now() - started)
            assert gossip.stats().links.queued_bytes <= 2 << 20
        assert len(set(await received)) == 1500
        assert slowest <= 1.1
        await asyncio.sleep(40)
        assert gossip.stats().links.queued_bytes == 0
        error = await raw.connection.closed()
        assert isinstance(error, ConnectionClosedByPeer)


@virtual
async def test_a_burst_to_an_application_that_is_slow() -> None:
    async with joined(2, network()) as (_, (alice, bob)):
        for number in range(10_000):
            await alice.broadcast(b"%d" % number)
        await asyncio.sleep(10)
        await bob.leave()
        events = [event async for event in bob]
        lagged = [event.missed for event in events if isinstance(event, Lagged)]
        received = [event for event in events if isinstance(event, Received)]
        assert len(received) <= 2048
        assert sum(lagged) + len(events) - len(lagged) == 10_000 + 2
        assert received[-1].content == b"9999"


@virtual
async def test_hearsay_about_nobody_costs_little() -> None:
    """A member can name endpoints that do not exist, and so make us dial them."""
    async with joined(2, network()) as (swarm, (alice, bob)):
        raw = await Raw.dial(await swarm.add(), swarm.members[0])
        await raw.send(frame(Join()), finish=False)
        await until(lambda: len(alice.neighbors()) == 2)
        stream = await raw.connection.open_uni()
        await stream.write(frame_header(TOPIC))
        for number in range(500):
            nobody = PeerId(bytes(SecretKey((10_000 + number).to_bytes(32, "big")).id))
            await stream.write(frame(ForwardJoin(PeerInfo(nobody, b"\x00\x00"), 0)))
        await asyncio.sleep(0.5)
        stats = swarm.members[0].gossip.stats().links
        assert stats.peers <= 2 + 64
        assert stats.dials <= 200
        await bob.broadcast(b"meanwhile")
        assert await contents(alice, 1) == [b"meanwhile"]
        await asyncio.sleep(60)
        assert swarm.members[0].gossip.stats().links.peers <= 3


@pytest.mark.parametrize("seed", range(3))
def test_random_streams_of_a_stranger(seed: int) -> None:
    @virtual
    async def run() -> None:
        chance = random.Random(seed)
        async with joined(2, network()) as (swarm, (alice, bob)):
            stranger = await swarm.add()
            for _ in range(4):
                raw = await Raw.dial(stranger, swarm.members[0])
                for _ in range(30):
                    good = frame(Join()) + frame(Gossip(message_id(b"y"), b"y", 3))
                    data = bytearray(good * chance.randint(1, 5))
                    for _ in range(chance.randint(0, 3)):
                        data[chance.randrange(len(data))] = chance.randrange(256)
                    try:
                        await raw.send(
                            bytes(data[: chance.randint(0, len(data))]),
                            topic=chance.choice([None, TOPIC, TOPIC, OTHER]),
                            finish=chance.random() < 0.7,
                        )
                    except ConnectionClosedByPeer:
                        break
                await asyncio.sleep(1)
            await bob.broadcast(b"undisturbed")
            await everybody_has([alice], b"undisturbed")
            await stranger.stop()
            await asyncio.sleep(60)
            assert swarm.members[0].gossip.stats().links.peers <= 2

    run()
