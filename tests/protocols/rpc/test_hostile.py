"""Peers that break the rules: each gets a clear error, nothing grows, and the others are served."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import pytest

import dialkey_rpc as rpc
from dialkey import Connection
from dialkey.errors import DialkeyError, StreamReset, StreamStopped
from dialkey.testing import in_virtual_time
from dialkey_rpc.codec import error_from_wire
from dialkey_rpc.frames import CALL, ERROR, HEAD, ITEM, RESULT, FrameReader, StopCode, join_head
from dialkey_rpc.limits import RPC_CALL_ARRIVAL_TIMEOUT_S
from dialkey_rpc.packing import pack_frame, unpack_frame

InMemory = Callable[..., contextlib.AbstractAsyncContextManager[Any]]

SMALL = rpc.RpcLimits(envelope_bytes=2000, message_bytes=200_000, buffered_bytes=300_000, depth=8)


class Victim:
    async def echo(self, value: int) -> int:
        return value

    async def store(self, data: bytes) -> int:
        return len(data)

    async def hold(self, data: bytes) -> int:
        await asyncio.sleep(50)
        return len(data)

    async def total(self, numbers: AsyncIterator[int]) -> int:
        return sum([number async for number in numbers])

    async def count(self, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number


@contextlib.asynccontextmanager
async def attacked(
    in_memory: InMemory, **options: Any
) -> AsyncIterator[tuple[Connection, rpc.Rpc, Any]]:
    """Yield a raw connection to a service, the service, and a client that behaves."""
    service = rpc.Rpc(Victim(), limits=SMALL, **options)
    async with in_memory(service, delay_s=0.001) as world, world.connect(Victim) as client:
        raw = await world.client.connect(world.server.addr(), service.spec.alpn)
        yield raw, service, client
        await asyncio.sleep(1)
        assert await client.echo(7) == 7
        await rpc.close(client)
        raw.close()
        await asyncio.sleep(1)
        assert service.active == 0
        assert service.budget.used == 0
        assert service.calls.used == 0
        assert world.router.stats().failed == 0


async def say(raw: Connection, data: bytes, *, finish: bool = True) -> list[tuple[int, object]]:
    """Write raw bytes on a new stream; return the frames of the answer."""
    send, recv = await raw.open_bi()
    try:
        await send.write(data, finish=finish)
    except StreamStopped:
        pass
    return frames_of(await recv.read_to_end(limit=1_000_000))


def frames_of(data: bytes) -> list[tuple[int, object]]:
    reader = FrameReader(rpc.RpcLimits())
    found = [(frame.kind, unpack_frame(frame, 64)) for frame in reader.feed(data)]
    reader.finish()
    return found


def whole(kind: int, value: object) -> bytes:
    head, parts = pack_frame(kind, value)
    return b"".join((head, *parts))


ECHO = whole(CALL, ["echo", {"value": 5}])


@in_virtual_time
async def test_a_peer_that_behaves(in_memory: InMemory) -> None:
    async with attacked(in_memory) as (raw, _service, _client):
        assert await say(raw, ECHO) == [(RESULT, 5)]
        assert await say(raw, ECHO, finish=False) == [(RESULT, 5)]
        count = whole(CALL, ["count", {"to": 2}])
        assert await say(raw, count) == [(ITEM, 0), (ITEM, 1)]
        unknown = join_head(200, b"\xc1 is not even msgpack")
        assert await say(raw, unknown + ECHO) == [(RESULT, 5)]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 3),
        (b"GET / HTTP/1.1\r\n\r\n", 3),
        (ECHO[:-1], 3),
        (ECHO[:5], 3),
        (ECHO + b"x" * 100, 3),
        (whole(ITEM, 1), 3),
        (whole(RESULT, 1), 3),
        (whole(ERROR, {"status": 1}), 3),
        (whole(CALL, None), 3),
        (whole(CALL, ["echo"]), 3),
        (whole(CALL, ["echo", {"value": 5}, -1]), 3),
        (whole(CALL, ["echo", {}]), 3),
        (whole(CALL, ["echo", {"value": "5"}]), 3),
        (whole(CALL, ["total", {}]) + whole(ITEM, "x"), 3),
        (whole(CALL, ["total", {}]) + whole(CALL, ["total", {}]), 3),
        (whole(CALL, ["total", {}]) + whole(ITEM, 1)[:-1], 3),
        (join_head(CALL, b"\xc1"), 3),
        (join_head(CALL, b"\x91" * 2000), 3),
        (join_head(CALL, b"\xdd\xff\xff\xff\xff" * 400), 3),
        (whole(CALL, ["echo", {"value": 5, "deep": [[[[[[[[[]]]]]]]]]}]), 3),
        (whole(CALL, ["nothing", {}]), 4),
        (whole(CALL, ["nothing" * 200, {}]), 4),
        (HEAD.pack(CALL, 0, 0, 2001), 6),
        (HEAD.pack(CALL, 0, 1, 1) + b"\xff\xff\xff\xff", 6),
        (HEAD.pack(CALL, 0, 65_535, 1), 6),
        (whole(CALL, ["total", {}]) + HEAD.pack(ITEM, 0, 0, 2001), 6),
        (whole(CALL, ["count", {"to": 1}, 0]), 2),
    ],
)
@in_virtual_time
async def test_an_answer_to_everything(in_memory: InMemory, data: bytes, status: int) -> None:
    async with attacked(in_memory) as (raw, _service, _client):
        ((kind, plain),) = await say(raw, data)
        assert kind == ERROR
        error = error_from_wire(plain, None)
        assert error.status == status, error
        assert len(error.message) < 300


@in_virtual_time
async def test_what_follows_a_call_is_not_awaited(in_memory: InMemory) -> None:
    async with attacked(in_memory) as (raw, _service, _client):
        send, recv = await raw.open_bi()
        await send.write(ECHO)
        assert frames_of(await recv.read_to_end(limit=1000)) == [(RESULT, 5)]
        assert await send.stopped() == StopCode.DONE


@in_virtual_time
async def test_unknown_methods_make_no_labels(in_memory: InMemory) -> None:
    async with attacked(in_memory) as (raw, service, _client):
        names = set(service.stats())
        for number in range(50):
            await say(raw, whole(CALL, [f"method-{number}", {}]))
        assert set(service.stats()) == names
        assert service.stats()["?"].ended == {"remote.rpc.method": 50}


@in_virtual_time
async def test_bytes_at_random(in_memory: InMemory, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    chance = random.Random(5)
    good = [
        ECHO,
        whole(CALL, ["total", {}]) + whole(ITEM, 1) + whole(ITEM, 2),
        whole(CALL, ["count", {"to": 3}, 1000, {"a": "b"}]),
        whole(CALL, ["store", {"data": bytes(20_000)}]),
    ]
    async with attacked(in_memory) as (raw, _service, _client):

        async def attack() -> None:
            data = bytearray(chance.choice(good))
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(min(len(data), 80))] = chance.randrange(256)
            cut = chance.choice([len(data), chance.randrange(len(data))])
            try:
                await asyncio.wait_for(say(raw, bytes(data[:cut])), 200)
            except (StreamReset, TimeoutError):
                pass

        for _ in range(20):
            await asyncio.gather(*(attack() for _ in range(40)))
    assert not caplog.records


@in_virtual_time
async def test_streams_that_are_abandoned(in_memory: InMemory) -> None:
    async with attacked(in_memory) as (raw, service, _client):
        for number in range(300):
            send, recv = await raw.open_bi()
            await send.write(ECHO[: number % len(ECHO)] if number % 2 else ECHO)
            send.reset(number)
            recv.stop(number)
        await asyncio.sleep(1)
        assert service.active == 0


@in_virtual_time
async def test_a_call_that_does_not_arrive(in_memory: InMemory) -> None:
    async with attacked(in_memory) as (raw, service, client):
        streams = [await raw.open_bi() for _ in range(20)]
        for send, _ in streams:
            await send.write(HEAD.pack(CALL, 0, 1, 10) + (100_000).to_bytes(4, "big"))
        await asyncio.sleep(1)
        assert service.budget.used == 0, "what is announced takes nothing"
        assert await client.echo(1) == 1
        assert await client.store(bytes(190_000)) == 190_000
        await asyncio.sleep(RPC_CALL_ARRIVAL_TIMEOUT_S * 1.3)
        resets = 0
        for _, recv in streams:
            try:
                await recv.read_to_end(limit=1000)
            except StreamReset:
                resets += 1
        assert resets == 20


@in_virtual_time
async def test_large_calls_share_a_budget(in_memory: InMemory) -> None:
    async with attacked(in_memory) as (_raw, service, client):
        assert await client.store(bytes(150_000)) == 150_000
        held = [asyncio.create_task(client.hold(bytes(140_000))) for _ in range(2)]
        await asyncio.sleep(5)
        with pytest.raises(rpc.ResourceExhausted, match="beside those"):
            await client.store(bytes(140_000))
        assert await client.store(bytes(40_000)) == 40_000
        assert [await each for each in held] == [140_000, 140_000]
        assert await client.store(bytes(140_000)) == 140_000
        with pytest.raises(rpc.ResourceExhausted, match="the limit is 200000"):
            await client.store(bytes(250_000))
        assert service.stats()["?"].ended == {}


@in_virtual_time
async def test_more_calls_than_are_served_at_once(in_memory: InMemory) -> None:
    async with attacked(in_memory, max_calls=5) as (_raw, service, client):
        calls = [asyncio.create_task(client.hold(b"")) for _ in range(8)]
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(result == 0 for result in done) == 5
        assert sum(isinstance(result, rpc.ResourceExhausted) for result in done) == 3
        assert service.stats()["hold"].ended == {"ok": 5, "remote.rpc.exhausted": 3}


@contextlib.asynccontextmanager
async def others(world: Any, bind: Callable[..., Any], count: int) -> AsyncIterator[list[Any]]:
    """Yield clients of the world's server, each with a key of its own."""
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for number in range(count):
            endpoint = await stack.enter_async_context(
                bind(world.network, f"other-{number}", 10 + number)
            )
            address = world.server.addr()
            client = rpc.connect(Victim, endpoint, address, reconnect=rpc.Reconnect(attempts=1))
            clients.append(await stack.enter_async_context(client))
        yield clients


@in_virtual_time
async def test_one_endpoint_does_not_take_all_calls(
    in_memory: InMemory, bind: Callable[..., Any]
) -> None:
    service = rpc.Rpc(Victim(), max_calls=100)
    async with (
        in_memory(service, delay_s=0.001) as world,
        others(world, bind, 2) as (greedy, honest),
    ):
        calls = [asyncio.create_task(greedy.hold(b"")) for _ in range(90)]
        await asyncio.sleep(5)
        assert service.calls.used == 25
        assert await honest.echo(1) == 1
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(result == 0 for result in done) == 25
        assert sum(isinstance(result, rpc.ResourceExhausted) for result in done) == 65


@in_virtual_time
async def test_when_all_calls_are_taken_the_fullest_makes_room(
    in_memory: InMemory, bind: Callable[..., Any]
) -> None:
    service = rpc.Rpc(Victim(), max_calls=8)
    async with (
        in_memory(service, delay_s=0.001) as world,
        others(world, bind, 2) as (greedy, honest),
    ):
        calls = [asyncio.create_task(greedy.hold(b"")) for _ in range(8)]
        await asyncio.sleep(5)
        assert service.calls.used == 8
        mine = [asyncio.create_task(honest.hold(b"")) for _ in range(6)]
        done = await asyncio.gather(*calls, *mine, return_exceptions=True)
        gone = [result for result in done[:8] if result != 0]
        assert [type(each) for each in gone] == [rpc.ResourceExhausted] * 4
        assert "made room" in str(gone[0])
        assert done[8:].count(0) == 4
        assert service.calls.used == 0
        assert service.stats()["hold"].ended == {"ok": 8, "remote.rpc.exhausted": 6}


@in_virtual_time
async def test_one_endpoint_does_not_take_all_memory(
    in_memory: InMemory, bind: Callable[..., Any]
) -> None:
    """Four keys fill the budget with messages that never end; somebody with little still passes."""
    service = rpc.Rpc(
        Victim(), limits=attrs.evolve(SMALL, buffered_bytes=150_000, total_buffered_bytes=600_000)
    )
    async with (
        in_memory(service, delay_s=0.001) as world,
        others(world, bind, 5) as (*greedy, honest),
    ):
        calls = [asyncio.create_task(each.hold(bytes(140_000))) for each in greedy]
        await asyncio.sleep(5)
        assert service.budget.used > 560_000
        assert await honest.store(bytes(100_000)) == 100_000
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert sorted(map(str, done))[:3] == ["140000"] * 3
        assert sum(isinstance(result, rpc.ResourceExhausted) for result in done) == 1
        assert service.budget.used == 0


@in_virtual_time
async def test_what_unfolds_is_charged(in_memory: InMemory) -> None:
    """60 KiB of empty lists take four megabytes; a connection has a hundred streams for them."""
    service = rpc.Rpc(Victim(), limits=rpc.RpcLimits(buffered_bytes=10_000_000))
    bomb = whole(CALL, ["hold", {"data": b"", "more": [[] for _ in range(60_000)]}])
    async with in_memory(service, delay_s=0.001) as world, world.connect(Victim) as client:
        raw = await world.client.connect(world.server.addr(), service.spec.alpn)
        answers = [asyncio.create_task(say(raw, bomb)) for _ in range(20)]
        await asyncio.sleep(20)
        assert service.active <= 3
        assert service.budget.used <= 10_000_000
        assert await client.echo(1) == 1
        statuses = [
            error_from_wire(plain, None).status if kind == ERROR else 0
            for answer in await asyncio.gather(*answers)
            for kind, plain in answer
        ]
        assert statuses.count(6) >= 17
        assert service.budget.used == 0


# --- services that break the rules --------------------------------------------------------------


class Liar:
    """Answers every call with the same bytes."""

    def __init__(self, answer: bytes, *, finish: bool = True, reset: int | None = None) -> None:
        self.answer = answer
        self.finish = finish
        self.reset = reset

    async def accept(self, connection: Connection) -> None:
        while True:
            send, recv = await connection.accept_bi()
            await recv.read()
            await send.write(self.answer, finish=self.finish)
            if self.reset is not None:
                send.reset(self.reset)


@contextlib.asynccontextmanager
async def lied_to(in_memory: InMemory, liar: Liar) -> AsyncIterator[Any]:
    async with in_memory(delay_s=0.001) as world:
        world.router.accept("dialkey-rpc/1/Victim", liar)
        options = rpc.Reconnect(attempts=1)
        async with world.connect(Victim, limits=SMALL, reconnect=options, timeout=60) as client:
            yield client


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", rpc.MalformedMessage),
        (b"HTTP/1.1 200 OK\r\n", rpc.MalformedMessage),
        (whole(RESULT, 5)[:-1], rpc.MalformedMessage),
        (whole(RESULT, "5"), rpc.MalformedMessage),
        (whole(CALL, ["echo", {}]), rpc.MalformedMessage),
        (whole(ITEM, 5), rpc.MalformedMessage),
        (whole(ERROR, 5), rpc.MalformedMessage),
        (whole(ERROR, {"status": 5}), rpc.PermissionDenied),
        (whole(ERROR, {"status": 99, "message": "?"}), rpc.RpcError),
        (join_head(RESULT, b"\x91" * 500), rpc.MalformedMessage),
        (HEAD.pack(RESULT, 0, 0, 2001), rpc.MessageTooLarge),
        (HEAD.pack(RESULT, 0, 2, 1) + b"\xff" * 8, rpc.MessageTooLarge),
    ],
)
@in_virtual_time
async def test_answers_that_are_wrong(
    in_memory: InMemory, answer: bytes, expected: type[DialkeyError]
) -> None:
    async with lied_to(in_memory, Liar(answer)) as client:
        for _ in range(3):
            with pytest.raises(expected) as caught:
                await client.echo(5)
            assert caught.value.endpoint_id is not None


@pytest.mark.parametrize(
    ("answer", "items", "expected"),
    [
        (whole(ITEM, 1) + whole(RESULT, 1), [1], rpc.MalformedMessage),
        (whole(ITEM, 1) + whole(ITEM, "x"), [1], rpc.MalformedMessage),
        (whole(ITEM, 1)[:-1], [], rpc.MalformedMessage),
        (whole(ERROR, {"status": 8}) + whole(ITEM, 1), [], rpc.InternalError),
    ],
)
@in_virtual_time
async def test_streams_that_are_wrong(
    in_memory: InMemory, answer: bytes, items: list[int], expected: type[DialkeyError]
) -> None:
    async with lied_to(in_memory, Liar(answer)) as client:
        stream = client.count(5)
        assert [await anext(stream) for _ in items] == items
        with pytest.raises(expected):
            await anext(stream)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (StopCode.DONE, rpc.CallCancelled),
        (StopCode.CANCELLED, rpc.CallCancelled),
        (StopCode.DEADLINE, rpc.DeadlineExceeded),
        (StopCode.MALFORMED, rpc.InvalidArgument),
        (StopCode.LIMIT, rpc.ResourceExhausted),
        (StopCode.UNAVAILABLE, rpc.Unavailable),
        (12345, rpc.CallCancelled),
    ],
)
@in_virtual_time
async def test_resets(in_memory: InMemory, code: int, expected: type[DialkeyError]) -> None:
    async with lied_to(in_memory, Liar(b"", finish=False, reset=code)) as client:
        with pytest.raises(expected, match=f"code {code}"):
            await client.echo(5)


@in_virtual_time
async def test_a_service_that_never_answers(in_memory: InMemory) -> None:
    async with lied_to(in_memory, Liar(b"", finish=False)) as client:
        with pytest.raises(rpc.DeadlineExceeded):
            await client.echo(5)


@in_virtual_time
async def test_an_answer_without_end_is_an_answer(in_memory: InMemory) -> None:
    async with lied_to(in_memory, Liar(whole(RESULT, 5) + b"more", finish=False)) as client:
        assert [await client.echo(5) for _ in range(250)] == [5] * 250
