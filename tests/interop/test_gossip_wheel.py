"""Gossip with real iroh endpoints as the carrier: their QUIC, messages written by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TypeVar

import iroh
import pytest
import wheel_peer as wheel
from gossip_swarm import TOPIC, Member, Swarm, contents, next_of, until

from dialkey.identity import EndpointId
from dialkey_gossip import (
    ALPN,
    GossipConfig,
    MembershipConfig,
    NeighborDown,
    NeighborUp,
    Received,
    Topic,
    TopicId,
)
from dialkey_gossip.framing import FrameReader, frame, frame_header, read_header
from dialkey_gossip.ids import PeerId, message_id
from dialkey_gossip.messages import (
    Disconnect,
    ForwardJoin,
    Gossip,
    Graft,
    IHave,
    Join,
    Message,
    Neighbor,
    PeerInfo,
    Prune,
    Shuffle,
    ShuffleReply,
    decode,
)
from dialkey_gossip.peer_data import decode_peer_data, encode_peer_data

pytestmark = pytest.mark.interop

M = TypeVar("M", bound=Message)
OTHER = TopicId.from_name("other")


class Carrier:
    """A member whose QUIC is iroh's."""

    def __init__(self, endpoint: iroh.Endpoint, connection: iroh.Connection) -> None:
        self.id = wheel.id_of(endpoint)
        self.peer = PeerId(bytes(self.id))
        self.data = encode_peer_data(wheel.addr_of(endpoint))
        self.connection = connection
        self.ended: list[TopicId] = []
        self._streams: dict[TopicId, iroh.SendStream] = {}
        self._heard: asyncio.Queue[tuple[TopicId, bytes]] = asyncio.Queue()
        self._listening = asyncio.create_task(self._listen())

    async def say(self, *messages: Message, topic: TopicId = TOPIC) -> None:
        """Send messages, in one stream for each topic."""
        data = b"".join(frame(message) for message in messages)
        stream = self._streams.get(topic)
        if stream is None:
            stream = self._streams[topic] = await self.connection.open_uni()
            data = frame_header(topic) + data
        await stream.write_all(data)
        if isinstance(messages[-1], Disconnect):
            await stream.finish()
            del self._streams[topic]

    async def hear(self, kind: type[M], *, topic: TopicId = TOPIC) -> M:
        """Return the next message of a kind; shuffles, which come at any time, may be between."""
        async with asyncio.timeout(15):
            while True:
                where, body = await self._heard.get()
                message = decode(body)
                assert frame(message)[4:] == body  # nothing is behind it
                if isinstance(message, kind):
                    assert where == topic
                    return message
                assert isinstance(message, Shuffle | ShuffleReply | IHave), message

    async def stop(self) -> None:
        self._listening.cancel()
        await asyncio.wait([self._listening])
        self.connection.close(0, b"")

    async def _listen(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._read(await self.connection.accept_uni()))

    async def _read(self, stream: iroh.RecvStream) -> None:
        reader = FrameReader()
        topic: TopicId | None = None
        with contextlib.suppress(iroh.IrohError):
            while data := bytes(await stream.read(4096)):
                for body in reader.feed(data):
                    if topic is None:
                        topic = read_header(body)
                    else:
                        self._heard.put_nowait((topic, body))
            assert topic is not None
            self.ended.append(topic)


class Table:
    """Our member, and carriers around it."""

    def __init__(self, stack: contextlib.AsyncExitStack, member: Member) -> None:
        self._stack = stack
        self.member = member

    async def guest(self) -> Carrier:
        """A wheel endpoint that has dialled us."""
        endpoint = await self._stack.enter_async_context(wheel.bind())
        addr = wheel.iroh_addr(self.member.endpoint.addr())
        return self._seat(endpoint, await endpoint.connect(addr, ALPN))

    async def host(self) -> tuple[iroh.Endpoint, asyncio.Task[Carrier]]:
        """A wheel endpoint that waits for us to dial."""
        endpoint = await self._stack.enter_async_context(wheel.bind(ALPN.decode()))

        async def wait() -> Carrier:
            return self._seat(endpoint, await wheel.accept(endpoint))

        return endpoint, asyncio.create_task(wait())

    def _seat(self, endpoint: iroh.Endpoint, connection: iroh.Connection) -> Carrier:
        carrier = Carrier(endpoint, connection)
        self._stack.push_async_callback(carrier.stop)
        return carrier


@contextlib.asynccontextmanager
async def table(**membership: float) -> AsyncIterator[tuple[Table, Topic]]:
    config = GossipConfig(membership=MembershipConfig(**membership))  # type: ignore[arg-type]
    async with Swarm(config=config) as swarm, contextlib.AsyncExitStack() as stack:
        member = await swarm.add()
        yield Table(stack, member), await member.gossip.join(TOPIC)


async def joined(around: Table, topic: Topic) -> Carrier:
    """Have a carrier join us."""
    carrier = await around.guest()
    await carrier.say(Join(carrier.data))
    await carrier.hear(Neighbor)
    await carrier.say(Neighbor(True, carrier.data))
    await until(lambda: carrier.id in topic.neighbors())
    return carrier


async def test_it_joins_us() -> None:
    async with table() as (around, topic):
        carrier = await around.guest()
        await carrier.say(Join(carrier.data))
        assert await next_of(topic, NeighborUp) == NeighborUp(carrier.id)
        answer = await carrier.hear(Neighbor)
        assert answer.high
        assert answer.data is not None
        ours = around.member.endpoint
        assert decode_peer_data(ours.id, answer.data).ip_addrs == ours.addr().ip_addrs
        assert around.member.gossip.known_addr(carrier.id).ip_addrs


async def test_we_join_it() -> None:
    async with table() as (around, topic):
        endpoint, arrival = await around.host()
        await topic.add_peers([wheel.addr_of(endpoint)])
        carrier = await arrival
        join = await carrier.hear(Join)
        assert join.data is not None
        assert topic.neighbors() == ()
        await carrier.say(Neighbor(True, carrier.data))
        await topic.joined(timeout=5)
        assert await carrier.hear(Neighbor) == Neighbor(True, join.data)
        assert await topic.broadcast(b"hi")
        message = await carrier.hear(Gossip)
        assert message == Gossip(message_id(b"hi"), b"hi", 0)


async def test_content_both_ways() -> None:
    async with table() as (around, topic):
        carrier = await joined(around, topic)
        for size in (0, 1, 4057):
            content = bytes(size)
            await carrier.say(Gossip(message_id(content), content, 3))
            received = await next_of(topic, Received)
            assert received == Received(content, carrier.id, 3)
        for size in (2, 4056):
            await topic.broadcast(bytes(size))
            assert (await carrier.hear(Gossip)).content == bytes(size)
        await topic.broadcast_neighbors(b"near")
        assert await carrier.hear(Gossip) == Gossip(message_id(b"near"), b"near", None)
        await carrier.say(Gossip(message_id(b"psst"), b"psst", None))
        received = await next_of(topic, Received)
        assert received.is_direct
        forged = Gossip(message_id(b"another"), b"forged", 0)
        await carrier.say(forged, Gossip(message_id(b"end"), b"end", 0))
        assert await contents(topic, 1) == [b"end"]


async def test_we_pass_on_between_two_of_them_and_prune() -> None:
    async with table() as (around, topic):
        one, other = await joined(around, topic), await joined(around, topic)
        walk = await one.hear(ForwardJoin)
        assert walk == ForwardJoin(PeerInfo(other.peer, other.data), 6)
        content = Gossip(message_id(b"x"), b"x", 4)
        await one.say(content)
        assert await other.hear(Gossip) == Gossip(message_id(b"x"), b"x", 5)
        await other.say(content)
        assert await other.hear(Prune) == Prune()
        # It is told of the next one only, and asks.
        await one.say(Gossip(message_id(b"y"), b"y", 0))
        told = await other.hear(IHave)
        while (message_id(b"y"), 1) not in told.entries:
            told = await other.hear(IHave)
        await other.say(Graft(message_id(b"y"), 1))
        assert await other.hear(Gossip) == Gossip(message_id(b"y"), b"y", 1)
        await one.say(Gossip(message_id(b"z"), b"z", 0))
        assert await other.hear(Gossip) == Gossip(message_id(b"z"), b"z", 1)


async def test_its_prune_and_what_we_ask_for() -> None:
    async with table() as (around, topic):
        carrier = await joined(around, topic)
        await carrier.say(Prune())
        await asyncio.sleep(0.1)
        await topic.broadcast(b"announced")
        assert (message_id(b"announced"), 0) in (await carrier.hear(IHave)).entries
        await carrier.say(Graft(message_id(b"announced"), 0))
        assert (await carrier.hear(Gossip)).content == b"announced"
        await carrier.say(IHave(((message_id(b"held back"), 2),)))
        assert await carrier.hear(Graft) == Graft(message_id(b"held back"), 2)
        await carrier.say(Gossip(message_id(b"held back"), b"held back", 2))
        assert await contents(topic, 1) == [b"held back"]


async def test_shuffles() -> None:
    async with table(first_shuffle_s=0.5, shuffle_interval_s=1.0) as (around, topic):
        carrier = await joined(around, topic)
        ours = await carrier.hear(Shuffle)
        assert ours.origin == bytes(around.member.endpoint.id)
        assert ours.ttl == 6
        assert ours.nodes[-1].id == ours.origin
        assert ours.nodes[-1].data is not None
        stranger = PeerInfo(PeerId(bytes(EndpointId(bytes(32)))), b"\x00\x00")
        await carrier.say(Shuffle(carrier.peer, (stranger, PeerInfo(carrier.peer)), 6))
        reply = await carrier.hear(ShuffleReply)
        assert carrier.peer not in [each.id for each in reply.nodes]


async def test_a_walk_that_ends_at_us_makes_us_dial() -> None:
    async with table() as (around, topic):
        carrier = await joined(around, topic)
        endpoint, arrival = await around.host()
        data = encode_peer_data(wheel.addr_of(endpoint))
        await carrier.say(ForwardJoin(PeerInfo(PeerId(bytes(wheel.id_of(endpoint))), data), 6))
        newcomer = await arrival
        assert (await newcomer.hear(Neighbor)).high
        await newcomer.say(Neighbor(True, data))
        await until(lambda: len(topic.neighbors()) == 2)


async def test_we_leave_and_it_leaves() -> None:
    async with table() as (around, topic):
        one, other = await joined(around, topic), await joined(around, topic)
        await one.hear(ForwardJoin)
        await one.say(Disconnect(True))
        assert await next_of(topic, NeighborDown) == NeighborDown(one.id)
        await topic.leave()
        assert isinstance(await other.hear(ShuffleReply), ShuffleReply)
        assert await other.hear(Disconnect) == Disconnect(False)
        await until(lambda: other.ended == [TOPIC])
        # The connection is still good, for another topic too.
        again = await around.member.gossip.join(OTHER)
        await other.say(Join(other.data), topic=OTHER)
        await other.hear(Neighbor, topic=OTHER)
        assert again.neighbors() == (other.id,)


async def test_a_full_node_evicts_in_good_order() -> None:
    async with table(active_capacity=2) as (around, topic):
        carriers = [await joined(around, topic) for _ in range(2)]
        await carriers[0].hear(ForwardJoin)
        third = await around.guest()
        await third.say(Join(third.data))
        await third.hear(Neighbor)
        down = await next_of(topic, NeighborDown)
        victim = next(each for each in carriers if each.id == down.peer)
        assert await victim.hear(ShuffleReply)
        assert await victim.hear(Disconnect) == Disconnect(True)
        await victim.say(Neighbor(False, victim.data))  # asks politely, and is refused
        assert await victim.hear(Disconnect) == Disconnect(True)
        assert len(topic.neighbors()) == 2


async def test_nonsense_is_read_to_its_end() -> None:
    """Were its stream stopped, an iroh node would send nothing at all any more."""
    async with table() as (around, topic):
        carrier = await joined(around, topic)
        stream = await carrier.connection.open_uni()
        await stream.write_all(frame_header(TOPIC) + b"\xff" * 1000)
        for _ in range(20):
            await stream.write_all(bytes(1000))
            await asyncio.sleep(0.01)
        await stream.finish()
        assert await stream.stopped() is None
        await carrier.say(Gossip(message_id(b"on"), b"on", 0))
        assert await contents(topic, 1) == [b"on"]


async def test_an_unneeded_connection_is_closed_as_iroh_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dialkey_gossip.links.LINGER_S", 0.3)
    async with table() as (around, topic):
        carrier = await joined(around, topic)
        await carrier.say(Disconnect(True))
        async with asyncio.timeout(15):
            reason = str(await carrier.connection.closed())
        assert "close from disconnect" in reason
        assert around.member.gossip.stats().links.failed_dials == 0
        assert topic.neighbors() == ()


async def test_it_is_gone() -> None:
    async with table() as (around, topic):
        carrier = await joined(around, topic)
        carrier.connection.close(0, b"bye")
        assert await next_of(topic, NeighborDown, timeout=5) == NeighborDown(carrier.id)
