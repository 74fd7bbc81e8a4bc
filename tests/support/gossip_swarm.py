"""Members of gossip topics for tests: in memory and in virtual time, or on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar

import attrs

from dialkey import Connection, Endpoint, RecvStream, Router
from dialkey.errors import DialkeyError
from dialkey.identity import IpAddr, Remote, SecretKey
from dialkey.network.udp import UdpTransport
from dialkey.testing import MemoryNetwork, MemoryTransport
from dialkey_gossip import ALPN, Gossip, Received, Topic, TopicId
from dialkey_gossip.framing import FrameReader, frame_header
from dialkey_gossip.messages import Message, decode

TOPIC = TopicId.from_name("test")
T = TypeVar("T")


class _MortalUdp(UdpTransport):
    """UDP that can fall silent, as that of a killed process."""

    is_dead = False

    def send(self, remote: Any, data: bytes | memoryview, segment_bytes: int) -> None:
        if not self.is_dead:
            super().send(remote, data, segment_bytes)


class _MortalMemory(MemoryTransport):
    is_dead = False

    def send(self, remote: Any, data: bytes | memoryview, segment_bytes: int) -> None:
        if not self.is_dead:
            super().send(remote, data, segment_bytes)


@attrs.define(eq=False)
class Member:
    """An endpoint that serves gossip."""

    endpoint: Endpoint
    router: Router
    gossip: Gossip
    transport: _MortalUdp | _MortalMemory
    serving: asyncio.Task[None]

    async def stop(self) -> None:
        """End in good order. Idempotent."""
        await self.router.shutdown()
        await self.endpoint.close()
        await asyncio.wait([self.serving])

    async def crash(self) -> None:
        """End without a word to anybody. Idempotent."""
        self.transport.is_dead = True
        await self.stop()


class Swarm:
    """Makes members, and ends them all.

    Args:
        network: where they live; loopback if None.
        options: of every `Gossip`.
    """

    def __init__(self, network: MemoryNetwork | None = None, **options: Any) -> None:
        self.network = network
        self.members: list[Member] = []
        self._options = options
        self._numbers = itertools.count(1)

    async def add(self, *, endpoint: dict[str, Any] | None = None, **options: Any) -> Member:
        """Make a member that has joined nothing yet."""
        number = next(self._numbers)
        transport: _MortalUdp | _MortalMemory
        if self.network is None:
            transport = _MortalUdp([IpAddr.parse("127.0.0.1:0")])
        else:
            transport = _MortalMemory(self.network, address(number))
        bound = await Endpoint.bind(
            **{
                "transports": [transport],
                "entry_points": False,
                "secret_key": SecretKey(number.to_bytes(32, "big")),
                **(endpoint or {}),
            }
        )
        router = Router(bound)
        gossip = router.add(Gossip(**{"seed": number, **self._options, **options}))
        serving = asyncio.create_task(router.serve())
        member = Member(bound, router, gossip, transport, serving)
        self.members.append(member)
        return member

    async def __aenter__(self) -> Swarm:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        async with asyncio.TaskGroup() as group:
            for member in self.members:
                group.create_task(member.stop())


def address(number: int) -> IpAddr:
    """The address of the n-th member in memory; gossip carries IP addresses only."""
    return IpAddr(ipaddress.IPv4Address("10.0.0.0") + number, 4433)


@contextlib.asynccontextmanager
async def joined(
    count: int, network: MemoryNetwork | None = None, **options: Any
) -> AsyncIterator[tuple[Swarm, list[Topic]]]:
    """So many members, all in one topic through the first one, and each with a neighbour."""
    async with Swarm(network, **options) as swarm:
        topics: list[Topic] = []
        bootstrap: list[Remote] = []
        for _ in range(count):
            member = await swarm.add()
            topics.append(await member.gossip.join(TOPIC, bootstrap))
            bootstrap = [swarm.members[0].endpoint.ticket()]
        for topic in topics if count > 1 else ():
            await topic.joined(timeout=20)
        yield swarm, topics


async def until(condition: Callable[[], T], *, timeout: float = 30.0) -> T:
    """Wait until a condition holds, and return what it gave."""
    async with asyncio.timeout(timeout):
        while not (result := condition()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return result


async def next_of(topic: Topic, kind: type[T], *, timeout: float = 30.0) -> T:
    """Fetch events until there is one of a kind."""
    async with asyncio.timeout(timeout):
        async for event in topic:
            if isinstance(event, kind):
                return event
    raise AssertionError(f"the topic was left before there was a {kind.__name__}")


async def contents(topic: Topic, count: int, *, timeout: float = 30.0) -> list[bytes]:
    """Fetch the contents of so many messages."""
    return [(await next_of(topic, Received, timeout=timeout)).content for _ in range(count)]


async def everybody_has(topics: Iterable[Topic], content: bytes, *, timeout: float = 30.0) -> None:
    """Wait until each of these topics has received a content."""

    async def wait(topic: Topic) -> None:
        while (await next_of(topic, Received, timeout=timeout)).content != content:
            pass

    waits: list[Awaitable[None]] = [wait(topic) for topic in topics]
    await asyncio.gather(*waits)


class Raw:
    """A peer whose frames are written by hand."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.heard: list[Message] = []

    @classmethod
    async def dial(cls, member: Member, other: Member) -> Raw:
        return cls(await member.endpoint.connect(other.endpoint.addr(), ALPN))

    async def send(
        self, data: bytes, *, topic: TopicId | None = TOPIC, finish: bool = True
    ) -> None:
        stream = await self.connection.open_uni()
        header = b"" if topic is None else frame_header(topic)
        await stream.write(header + data, finish=finish)

    async def listen(self) -> None:
        """Read everything until the connection ends."""
        async with asyncio.TaskGroup() as group:
            try:
                while True:
                    group.create_task(self._read(await self.connection.accept_uni()))
            except DialkeyError:
                return

    async def _read(self, stream: RecvStream) -> None:
        reader = FrameReader()
        is_first = True
        try:
            while data := await stream.read():
                bodies = reader.feed(data)
                if is_first and bodies:
                    assert bodies.pop(0) == bytes(TOPIC)
                    is_first = False
                self.heard += [decode(body) for body in bodies]
        except DialkeyError:
            return
