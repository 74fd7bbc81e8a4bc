"""With an eager task factory (Python 3.12; Textual sets one) a task runs before its creator goes on.

It may even be over before whoever made it has noted that it exists. Everything that makes tasks is used
here once in such a loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Protocol

import pytest
from dialkey_chat import RoomTicket, Settings, Written
from dialkey_chat.session import open_chat
from endpoints import network, on_loopback, virtual

import dialkey_rpc as rpc
from dialkey import Connection, Endpoint, EndpointAddr, Router, SecretKey
from dialkey.endpoint import EndpointInfo, LookupAnswer
from dialkey.errors import ResolveError
from dialkey.identity import EndpointId
from dialkey.testing import MemoryNetwork
from dialkey.testing.network import address_of
from dialkey_blobs import Blobs
from dialkey_gossip import Gossip, Received, Topic, TopicId

pytestmark = pytest.mark.skipif(sys.version_info < (3, 12), reason="this Python has no eager tasks")


def be_eager() -> None:
    factory = asyncio.eager_task_factory  # type: ignore[attr-defined]
    asyncio.get_running_loop().set_task_factory(factory)


def bound(net: MemoryNetwork, name: str, **options: Any) -> Any:
    return Endpoint.bind(transports=[net.transport(name)], entry_points=False, **options)


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What asyncio would print of tasks that nobody waits for."""
    found: list[str] = []

    def complain(self: object, context: dict[str, object]) -> None:
        found.append(f"{context.get('message')}: {context.get('exception')!r}")

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_exception_handler", complain)
    return found


# --- dials ----------------------------------------------------------------------------------------


class _AtOnce:
    """A lookup that says all that it knows without waiting for anything."""

    name = "at once"

    def __init__(self, *addrs: EndpointAddr) -> None:
        self._addrs = {addr.id: addr for addr in addrs}
        self.published: list[str | None] = []

    async def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        if id in self._addrs:
            yield LookupAnswer(EndpointInfo(self._addrs[id]))

    async def publish(self, info: EndpointInfo) -> None:
        self.published.append(info.user_data)

    async def close(self) -> None: ...


class _Hello:
    async def accept(self, connection: Connection) -> None:
        send, recv = await connection.accept_bi()
        await send.write(b"hello " + await recv.read_to_end(limit=100), finish=True)
        await connection.closed()


@virtual
async def dial_by_id() -> None:
    be_eager()
    net = network()
    async with bound(net, "ada") as ada, Router(ada) as router:
        router.accept("hello/1", _Hello())
        lookups = [_AtOnce(ada.addr()), _AtOnce()]
        async with bound(net, "ben", address_lookups=lookups) as ben:
            async with ben.connect(ada.id, "hello/1") as connection:
                send, recv = await connection.open_bi()
                await send.write(b"ben", finish=True)
                assert await recv.read_to_end(limit=100) == b"hello ben"
            began = asyncio.get_running_loop().time()
            with pytest.raises(ResolveError):
                await ben.connect(SecretKey(bytes(32)).id, "hello/1")
            assert asyncio.get_running_loop().time() - began < 0.1, "both lookups were counted"
            began = asyncio.get_running_loop().time()
            assert len(await ben.look_up(ada.id)) >= 2
            assert asyncio.get_running_loop().time() - began < 0.1


class _Later(_AtOnce):
    """A lookup that only finds out when it is asked again."""

    asked = 0

    async def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        self.asked += 1
        if self.asked > 1:
            async for answer in super().resolve(id):
                yield answer
        else:
            yield LookupAnswer(EndpointInfo(EndpointAddr(id, [address_of("gone")])))


@virtual
async def dial_by_a_stale_address() -> None:
    be_eager()
    net = network()
    async with bound(net, "ada") as ada, Router(ada) as router:
        router.accept("hello/1", _Hello())
        async with (
            bound(net, "ben", address_lookups=[_Later(ada.addr())]) as ben,
            ben.connect(ada.id, "hello/1"),
        ):
            assert asyncio.get_running_loop().time() < 5


def test_lookups_are_asked_again(complaints: list[str]) -> None:
    dial_by_a_stale_address()
    assert not complaints


def test_lookups_that_answer_at_once_are_counted(complaints: list[str]) -> None:
    dial_by_id()
    assert not complaints


@virtual
async def publish_again() -> None:
    be_eager()
    lookup = _AtOnce()
    async with bound(network(), "ada", address_lookups=[lookup]) as ada:
        for text in ("one", "two", "three"):
            ada.set_user_data(text)
            await asyncio.sleep(1)
    assert lookup.published[-3:] == ["one", "two", "three"]


def test_every_change_is_published() -> None:
    publish_again()


# --- protocols ------------------------------------------------------------------------------------


@rpc.service("eager/1")
class Counter(Protocol):
    async def add(self, a: int, b: int) -> int: ...

    def count(self, to: int) -> AsyncGenerator[int, None]: ...


class _Counter:
    async def add(self, a: int, b: int) -> int:
        return a + b

    async def count(self, to: int) -> AsyncGenerator[int, None]:
        for number in range(to):
            yield number


@virtual
async def call() -> None:
    be_eager()
    net = network()
    async with bound(net, "ada") as ada, Router(ada) as router, bound(net, "ben") as ben:
        router.add(rpc.Rpc(_Counter(), Counter))
        async with rpc.connect(Counter, ben, ada.addr()) as client:
            assert await asyncio.gather(*(client.add(n, 1) for n in range(20))) == [*range(1, 21)]
            assert [each async for each in client.count(5)] == [0, 1, 2, 3, 4]


def test_rpc(complaints: list[str]) -> None:
    call()
    assert not complaints


@virtual
async def fetch() -> None:
    be_eager()
    content = bytes(range(256)) * 1000
    net = network()
    async with (
        bound(net, "ada") as ada,
        Router(ada) as ada_router,
        bound(net, "ben") as ben,
        Router(ben) as ben_router,
    ):
        shelf, fetched = ada_router.add(Blobs.memory()), ben_router.add(Blobs.memory())
        tag = await shelf.add_bytes(content)
        await fetched.download(tag.content, providers=[ada.addr()])
        assert await fetched.read_bytes(tag.hash) == content


def test_blobs(complaints: list[str]) -> None:
    fetch()
    assert not complaints


@virtual
async def chatter() -> None:
    be_eager()
    net = network()
    topic = TopicId(bytes(32))
    async with contextlib.AsyncExitStack() as stack:
        topics: list[Topic] = []
        first: list[EndpointAddr] = []
        for name in ("ada", "ben", "cyd"):
            endpoint = await stack.enter_async_context(bound(net, name))
            router = await stack.enter_async_context(Router(endpoint))
            gossip = router.add(Gossip())
            topics.append(await stack.enter_async_context(gossip.join(topic, first)))
            first = first or [endpoint.addr()]
        for each in topics:
            await each.joined(30)
        await topics[2].broadcast(b"hello")
        for each in topics[:2]:
            async for event in each:
                if isinstance(event, Received):
                    assert event.content == b"hello"
                    break


def test_gossip(complaints: list[str]) -> None:
    chatter()
    assert not complaints


async def test_the_chat(tmp_path: Path, complaints: list[str]) -> None:
    be_eager()
    place = RoomTicket.create("tea")
    async with (
        asyncio.timeout(30),
        on_loopback() as one,
        open_chat(one, place, Settings("ada", tmp_path / "a", heartbeat_s=0.3)) as ada,
        on_loopback() as other,
        open_chat(other, ada.ticket(), Settings("ben", tmp_path / "b", heartbeat_s=0.3)) as ben,
    ):
        ben.say("hello")
        async for notice in ada.notices:
            if isinstance(notice, Written) and notice.letter.body == "hello":
                break
    assert not complaints
