"""The interface of topics: joining, publishing, events, errors, tickets."""

from __future__ import annotations

import asyncio

import pytest
from endpoints import network, virtual
from gossip_swarm import TOPIC, Swarm, address, contents, everybody_has, joined, next_of, until

from dialkey import Endpoint, Router
from dialkey.errors import EndpointClosed, InvalidInput, InvalidTicket, LocalError
from dialkey.identity import SecretKey
from dialkey_gossip import (
    ALPN,
    Gossip,
    GossipConfig,
    Joined,
    Lagged,
    MessageTooLarge,
    NeighborDown,
    NeighborUp,
    NoNeighbors,
    Received,
    TopicId,
    TopicLeft,
    TopicTicket,
)

OTHER = TopicId.from_name("other")


# --- joining ------------------------------------------------------------------------------------


@virtual
async def test_ways_to_name_a_topic() -> None:
    async with Swarm(network()) as swarm:
        alice, bob = await swarm.add(), await swarm.add()
        first = await alice.gossip.join(TOPIC)
        ticket = first.ticket()
        assert ticket.topic == TOPIC
        assert [peer.id for peer in ticket.peers] == [alice.endpoint.id]
        for name in (TOPIC, bytes(TOPIC), str(TOPIC), ticket, str(ticket), f" {ticket}\n"):
            topic = await bob.gossip.join(name, [alice.endpoint.addr()])
            assert topic.id == TOPIC
            await topic.joined(timeout=5)
            await topic.leave()
            await until(lambda: not first.neighbors())


@virtual
async def test_a_topic_is_awaited_or_entered() -> None:
    async with Swarm(network()) as swarm:
        gossip = (await swarm.add()).gossip
        async with gossip.join(TOPIC) as topic:
            assert gossip.topics() == (TOPIC,)
        assert topic.is_left
        assert gossip.topics() == ()
        async with await gossip.join(TOPIC) as topic:
            assert not topic.is_left
        assert topic.is_left
        with pytest.raises(InvalidInput):
            async with gossip.join("nonsense"):
                pytest.fail("entered")
        joining = gossip.join(TOPIC)
        assert gossip.topics() == ()
        await (await joining).leave()
        with pytest.raises(LocalError, match="awaited already"):
            await joining


@virtual
async def test_a_ticket_is_enough_and_names_neighbours_too() -> None:
    async with joined(3, network()) as (swarm, topics):
        await until(lambda: len(topics[2].neighbors()) == 2)
        ticket = TopicTicket.parse(str(topics[2].ticket()))
        assert {peer.id for peer in ticket.peers} == {each.endpoint.id for each in swarm.members}
        assert all(peer.addrs for peer in ticket.peers)
        await swarm.members[2].stop()  # who made the ticket is gone
        late = await (await swarm.add()).gossip.join(ticket)
        await late.joined(timeout=20)
        await topics[0].broadcast(b"hello")
        assert await contents(late, 1) == [b"hello"]


@virtual
async def test_what_is_not_a_topic() -> None:
    async with Swarm(network()) as swarm:
        gossip = (await swarm.add()).gossip
        for wrong in (b"short", "weather", "ab" * 31, "AB" * 32):
            with pytest.raises(InvalidInput):
                await gossip.join(wrong)
        with pytest.raises(InvalidTicket):
            await gossip.join("topicaaaa")
        with pytest.raises(InvalidInput):
            await gossip.join(5)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput):
            await gossip.join(TOPIC, ["nonsense"])
        with pytest.raises(InvalidInput, match="at least one event"):
            await gossip.join(TOPIC, capacity=0)
        assert gossip.topics() == ()


async def test_gossip_without_an_endpoint() -> None:
    gossip = Gossip()
    with pytest.raises(LocalError, match="does not serve an endpoint"):
        await gossip.join(TOPIC)
    with pytest.raises(LocalError, match="does not serve an endpoint"):
        gossip.stats()
    await gossip.shutdown()


@virtual
async def test_one_gossip_serves_one_endpoint() -> None:
    async with Swarm(network()) as swarm:
        member = await swarm.add()
        other = await swarm.add()
        with pytest.raises(LocalError, match="serves an endpoint already"):
            Router(other.endpoint).add(member.gossip)


@virtual
async def test_gossip_as_a_plugin_of_the_endpoint() -> None:
    net = network()
    one, two = Gossip(seed=1), Gossip(seed=2)
    async with (
        Endpoint.bind(
            transports=[net.transport("a")], plugins=[one], secret_key=SecretKey(bytes(32))
        ) as alice,
        Endpoint.bind(transports=[net.transport("b")], plugins=[two]) as bob,
        Router(alice),
        Router(bob),
    ):
        here = await one.join(TOPIC)
        there = await two.join(TOPIC, [alice.ticket()])
        await there.joined(timeout=5)
        await there.broadcast(b"hello")
        assert await contents(here, 1) == [b"hello"]


@virtual
async def test_an_endpoint_finds_members_by_their_id() -> None:
    gossip = Gossip(seed=9)
    async with joined(2, network()) as (swarm, _):
        assert swarm.network is not None
        async with (
            Endpoint.bind(
                transports=[swarm.network.transport(address(9))],
                entry_points=False,
                address_lookups=[gossip.lookup],
            ) as endpoint,
            Router(endpoint) as router,
        ):
            topic = await router.add(gossip).join(TOPIC, [swarm.members[0].endpoint.ticket()])
            await until(lambda: len(topic.neighbors()) == 2)
            connection = await endpoint.connect(swarm.members[1].endpoint.id, ALPN)
            assert connection.remote_id == swarm.members[1].endpoint.id


@virtual
async def test_another_alpn_is_another_world() -> None:
    async with Swarm(network(), alpn="my-gossip/1") as swarm:
        alice, bob = await swarm.add(), await swarm.add()
        stranger = await swarm.add(alpn="/iroh-gossip/1")
        here = await alice.gossip.join(TOPIC)
        there = await bob.gossip.join(TOPIC, [alice.endpoint.addr()])
        apart = await stranger.gossip.join(TOPIC, [alice.endpoint.addr()])
        await there.joined(timeout=5)
        with pytest.raises(NoNeighbors, match="within 3 s"):
            await apart.joined(timeout=3)
        await here.broadcast(b"hello")
        assert await contents(there, 1) == [b"hello"]
        assert stranger.gossip.stats().links.failed_dials >= 1


@virtual
async def test_everybody_hears_of_everybody_else_through_the_first() -> None:
    """Member three knows member one only, and is connected to member two by hearsay."""
    async with joined(3, network()) as (swarm, topics):
        await until(lambda: len(topics[2].neighbors()) == 2)
        known = swarm.members[2].gossip.known_addr(swarm.members[1].endpoint.id)
        assert known.ip_addrs == swarm.members[1].endpoint.addr().ip_addrs


# --- publishing ---------------------------------------------------------------------------------


@virtual
async def test_sizes() -> None:
    async with joined(2, network()) as (_, (alice, bob)):
        assert alice.max_payload_bytes == 4057
        for size in (0, 1, 4057):
            await alice.broadcast(bytes(size))
            assert await contents(bob, 1) == [bytes(size)]
        with pytest.raises(MessageTooLarge, match="4058 bytes, and 4057 fit") as caught:
            await alice.broadcast(bytes(4058))
        assert caught.value.size_bytes == 4058
        with pytest.raises(MessageTooLarge):
            await alice.broadcast_neighbors(bytes(4058))
        await bob.broadcast(bytearray(b"on"))
        await bob.broadcast_neighbors(memoryview(b"and on"))
        assert await contents(alice, 2) == [b"on", b"and on"]


@virtual
async def test_large_messages_where_all_agree_on_them() -> None:
    config = GossipConfig(max_message_bytes=1 << 20)
    async with joined(3, network(), config=config) as (_, topics):
        content = bytes(topics[0].max_payload_bytes)
        assert len(content) > 1_000_000
        await topics[0].broadcast(content)
        await everybody_has(topics[1:], content)


@virtual
async def test_nobody_is_there() -> None:
    async with Swarm(network()) as swarm:
        topic = await (await swarm.add()).gossip.join(TOPIC)
        for publish in (topic.broadcast, topic.broadcast_neighbors):
            with pytest.raises(NoNeighbors) as caught:
                await publish(b"hello?")
            assert "joined" in str(caught.value.hint)
        with pytest.raises(NoNeighbors):
            await topic.joined(timeout=1)


@virtual
async def test_the_same_content_again() -> None:
    async with joined(2, network()) as (_, (alice, bob)):
        assert await alice.broadcast(b"x")
        assert not await alice.broadcast(b"x")
        assert await contents(bob, 1) == [b"x"]
        assert not await bob.broadcast(b"x")
        await asyncio.sleep(95)
        assert await bob.broadcast(b"x")
        assert await contents(alice, 1) == [b"x"]


@virtual
async def test_neighbours_only() -> None:
    async with joined(7, network()) as (swarm, topics):
        await asyncio.sleep(5)
        for _ in range(2):  # repeated ones are delivered again
            await topics[6].broadcast_neighbors(b"psst")
        await asyncio.sleep(5)
        neighbors = topics[6].neighbors()
        for member, topic in zip(swarm.members[:6], topics[:6], strict=True):
            await topic.leave()
            heard = [event async for event in topic if isinstance(event, Received)]
            assert len(heard) == (2 if member.endpoint.id in neighbors else 0)
            assert all(each.is_direct and each.hops == 0 for each in heard)


@virtual
async def test_hops_are_counted() -> None:
    async with Swarm(network(), config=GossipConfig()) as swarm:
        members = [await swarm.add() for _ in range(3)]
        ends = [members[0].endpoint.addr(), members[2].endpoint.addr()]
        middle = await members[1].gossip.join(TOPIC)
        left = await members[0].gossip.join(TOPIC, [members[1].endpoint.addr()])
        await left.joined()
        assert swarm.network is not None
        swarm.network.link(*[addr.ip_addrs[0] for addr in ends]).down()
        right = await members[2].gossip.join(TOPIC, [members[1].endpoint.addr()])
        await right.joined()
        assert len(middle.neighbors()) == 2
        await left.broadcast(b"far")
        received = await next_of(right, Received)
        assert received == Received(b"far", members[1].endpoint.id, 1)
        assert not received.is_direct
        assert received.author is None


# --- events -------------------------------------------------------------------------------------


@virtual
async def test_events_in_their_order() -> None:
    async with joined(2, network()) as (swarm, (alice, bob)):
        peer = swarm.members[1].endpoint.id
        await bob.broadcast(b"1")
        await bob.broadcast(b"2")
        await asyncio.sleep(1)
        await bob.leave()
        await asyncio.sleep(1)
        await alice.leave()
        assert [event async for event in alice] == [
            NeighborUp(peer),
            Joined(),
            Received(b"1", peer, 0),
            Received(b"2", peer, 0),
            NeighborDown(peer),
        ]


@virtual
async def test_who_does_not_fetch_is_told_how_much_was_missed() -> None:
    async with Swarm(network()) as swarm:
        alice, bob = await swarm.add(), await swarm.add()
        here = await alice.gossip.join(TOPIC)
        slow = await bob.gossip.join(TOPIC, [alice.endpoint.addr()], capacity=10)
        quick = await bob.gossip.join(TOPIC)
        await here.joined()
        await slow.joined()
        for number in range(100):
            await here.broadcast(b"%d" % number)
        assert len(await contents(quick, 100)) == 100
        await here.broadcast(b"last")
        await contents(quick, 1)
        await slow.leave()
        events = [event async for event in slow]
        lagged = events[0]
        assert isinstance(lagged, Lagged)
        assert lagged.missed == 2 + 101 - 10
        assert [event.content for event in events[1:] if isinstance(event, Received)] == [
            *(b"%d" % number for number in range(91, 100)),
            b"last",
        ]


@virtual
async def test_two_handles_of_one_topic() -> None:
    async with joined(2, network()) as (swarm, (alice, bob)):
        again = await swarm.members[1].gossip.join(TOPIC)
        peer = swarm.members[0].endpoint.id
        assert await anext(again) == NeighborUp(peer)
        assert await anext(again) == Joined()
        await alice.broadcast(b"both")
        assert await contents(bob, 1) == await contents(again, 1) == [b"both"]
        await bob.leave()
        assert bob.neighbors() == ()
        assert again.neighbors() == (peer,)
        await again.broadcast(b"still here")
        assert await contents(alice, 1) == [b"still here"]
        await again.leave()
        await next_of(alice, NeighborDown)


@virtual
async def test_several_tasks_share_the_events() -> None:
    async with joined(2, network()) as (_, (alice, bob)):
        seen: list[bytes] = []

        async def work() -> None:
            async for event in bob:
                if isinstance(event, Received):
                    seen.append(event.content)

        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(work())
            for number in range(30):
                await alice.broadcast(b"%d" % number)
            await until(lambda: len(seen) == 30)
            await bob.leave()
        assert len(set(seen)) == 30


@virtual
async def test_cancelling_a_reader_loses_no_event() -> None:
    async with joined(2, network()) as (_, (alice, bob)):
        await next_of(bob, Joined)
        got: list[bytes] = []
        for number in range(40):
            reader = asyncio.ensure_future(anext(bob))
            if number % 2:
                await alice.broadcast(b"%d" % number)
            await asyncio.sleep(0.0005 * number)  # it is just under way, or there
            reader.cancel()
            await asyncio.wait([reader])
            if not reader.cancelled():
                event = reader.result()
                assert isinstance(event, Received)
                got.append(event.content)
        await asyncio.sleep(1)
        await bob.leave()
        got += [event.content async for event in bob if isinstance(event, Received)]
        assert sorted(got) == sorted(b"%d" % number for number in range(1, 40, 2))


# --- leaving ------------------------------------------------------------------------------------


@virtual
async def test_a_topic_that_was_left() -> None:
    async with joined(2, network()) as (swarm, (_, bob)):
        await bob.leave()
        await bob.leave()
        assert bob.is_left
        for call in (
            bob.joined(),
            bob.broadcast(b"x"),
            bob.broadcast_neighbors(b"x"),
            bob.add_peers([]),
        ):
            with pytest.raises(TopicLeft, match="was left"):
                await call
        for name in ("stats", "ticket"):
            with pytest.raises(TopicLeft):
                getattr(bob, name)()
        assert swarm.members[1].gossip.topics() == ()


@virtual
async def test_leaving_ends_those_who_wait() -> None:
    async with Swarm(network()) as swarm:
        topic = await (await swarm.add()).gossip.join(TOPIC)
        reader = asyncio.ensure_future(anext(topic, None))
        waiter = asyncio.ensure_future(topic.joined())
        await asyncio.sleep(1)
        async with topic:
            pass
        assert await reader is None
        with pytest.raises(TopicLeft):
            await waiter


@virtual
async def test_after_the_end_of_the_endpoint() -> None:
    async with joined(2, network()) as (swarm, (_, bob)):
        member = swarm.members[1]
        await member.stop()
        assert bob.is_left
        with pytest.raises(TopicLeft):
            await bob.broadcast(b"x")
        with pytest.raises(EndpointClosed):
            await member.gossip.join(TOPIC)
        await member.gossip.shutdown()


@virtual
async def test_topics_share_a_connection_and_leave_alone() -> None:
    async with joined(2, network()) as (swarm, topics):
        alice, bob = (member.gossip for member in swarm.members)
        here = await alice.join(OTHER)
        there = await bob.join(OTHER, [swarm.members[0].endpoint.addr()])
        await there.joined(timeout=5)
        assert alice.stats().links.connections == 1
        await topics[1].leave()
        await next_of(topics[0], NeighborDown)
        await asyncio.sleep(20)
        await there.broadcast(b"on")
        assert await contents(here, 1) == [b"on"]
        assert topics[0].neighbors() == ()


@virtual
async def test_more_topics_than_a_connection_has_streams() -> None:
    async with Swarm(network()) as swarm:
        alice, bob = await swarm.add(), await swarm.add()
        topics = [TopicId.from_name(str(number)) for number in range(130)]
        here = [await alice.gossip.join(each) for each in topics]
        there = [await bob.gossip.join(each, [alice.endpoint.addr()]) for each in topics]
        await asyncio.sleep(30)
        together = [pair for pair in zip(here, there, strict=True) if pair[1].neighbors()]
        assert len(together) >= 90
        for one, other in together[:90]:
            await one.broadcast(b"hello")
            await contents(other, 1)
        assert swarm.members[0].gossip.stats().links.slow_peers == 0
