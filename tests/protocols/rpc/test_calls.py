"""Calls between endpoints, in virtual time: results, streams, errors, options."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Protocol

import attrs
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

import dialkey_rpc as rpc
from dialkey.errors import AlpnMismatch, ConnectionClosed, InvalidInput
from dialkey.testing import in_virtual_time

InMemory = Callable[..., contextlib.AbstractAsyncContextManager[Any]]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@attrs.frozen
class Paint:
    colour: Colour
    when: datetime
    data: bytes = b""
    under: Paint | int | None = None


@attrs.define
class TooMuch(Exception):
    wanted: int
    left: int


class Studio:
    def __init__(self) -> None:
        self.log: list[object] = []

    async def add(self, a: int, b: int = 10) -> int:
        return a + b

    async def mix(self, one: Paint, other: Paint) -> Paint:
        return Paint(one.colour, other.when, one.data + other.data, other)

    async def nothing(self) -> None:
        """Do nothing."""

    async def count(self, to: int, *, step: int = 1) -> AsyncIterator[int]:
        for number in range(0, to, step):
            yield number

    def letters(self, text: str) -> AsyncIterator[str]:
        return self._letters(text)

    async def _letters(self, text: str) -> AsyncIterator[str]:
        for letter in text:
            await asyncio.sleep(1)
            yield letter

    async def later(self, text: str) -> AsyncIterator[str]:
        await asyncio.sleep(1)
        return self._letters(text)

    async def total(self, numbers: AsyncIterator[int], start: int = 0) -> int:
        async for number in numbers:
            start += number
        return start

    async def first(self, numbers: AsyncIterable[int]) -> int:
        async for number in numbers:
            return number
        return -1

    async def shout(self, words: AsyncIterator[str]) -> AsyncIterator[str]:
        async for word in words:
            yield word.upper()

    @rpc.method(raises=[TooMuch, KeyError])
    async def take(self, wanted: int) -> int:
        if wanted < 0:
            raise KeyError("negative")
        if wanted == 13:
            raise rpc.PermissionDenied("not that one")
        raise TooMuch(wanted, 3)

    @rpc.method(raises=[TooMuch])
    async def pour(self, wanted: int) -> AsyncIterator[int]:
        for number in range(3):
            yield number
        raise TooMuch(wanted, 0)

    async def fail(self) -> int:
        raise ValueError("a secret")

    async def lie(self) -> int:
        return "no number"  # type: ignore[return-value]

    async def huge(self) -> int:
        return 2**70


async def items(*values: Any) -> AsyncIterator[Any]:
    for value in values:
        yield value


@in_virtual_time
async def test_calls_with_one_result(in_memory: InMemory) -> None:
    async with in_memory(rpc.Rpc(Studio())) as world, world.connect(Studio) as studio:
        assert await studio.add(1, 2) == 3
        assert await studio.add(b=5, a=1) == 6
        assert await studio.add(1) == 11
        assert await studio.nothing() is None
        now = datetime(2026, 5, 6, tzinfo=UTC)
        one, other = Paint(Colour.RED, now, b"1" * 9000), Paint(Colour.BLUE, now, b"2", 7)
        assert await studio.mix(one, other) == Paint(
            Colour.RED, now, b"1" * 9000 + b"2", Paint(Colour.BLUE, now, b"2", 7)
        )
        found = await asyncio.gather(*(studio.add(n, n) for n in range(300)))
        assert found == [2 * n for n in range(300)]


@in_virtual_time
async def test_a_call_takes_one_round_trip(in_memory: InMemory) -> None:
    async with in_memory(rpc.Rpc(Studio())) as world, world.connect(Studio) as studio:
        await studio.add(1, 2)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await studio.add(1, 2)
        assert loop.time() - began < 0.11


@in_virtual_time
async def test_streams_down(in_memory: InMemory) -> None:
    async with in_memory(rpc.Rpc(Studio())) as world, world.connect(Studio) as studio:
        assert [n async for n in studio.count(1000, step=3)] == list(range(0, 1000, 3))
        assert [n async for n in studio.count(0)] == []
        assert [x async for x in studio.letters("abc")] == ["a", "b", "c"]
        later = await studio.later("xy")  # type: ignore[misc]  # a coroutine without `yield`
        assert [x async for x in later] == ["x", "y"]


@in_virtual_time
async def test_items_come_when_they_are_made(in_memory: InMemory) -> None:
    loop = asyncio.get_running_loop()
    async with in_memory(rpc.Rpc(Studio())) as world, world.connect(Studio) as studio:
        await studio.nothing()
        began = loop.time()
        came = [loop.time() - began async for _ in studio.letters("abc")]
        assert came == pytest.approx([1.1, 2.1, 3.1], abs=0.06)


@in_virtual_time
async def test_streams_up_and_dialogues(in_memory: InMemory) -> None:
    async with in_memory(rpc.Rpc(Studio())) as world, world.connect(Studio) as studio:
        assert await studio.total(items(*range(500))) == sum(range(500))
        assert await studio.total(items(), start=7) == 7
        assert await studio.total(start=1, numbers=items(1)) == 2
        assert [w async for w in studio.shout(items("a", "b"))] == ["A", "B"]

        # Each answer is there before the next word is spoken.
        heard: asyncio.Queue[str] = asyncio.Queue()

        async def words() -> AsyncIterator[str]:
            yield "one"
            assert await heard.get() == "ONE"
            yield "two"

        async for word in studio.shout(words()):
            heard.put_nowait(word)
        assert heard.get_nowait() == "TWO"


@in_virtual_time
async def test_an_answer_before_the_end_of_what_streams_up(in_memory: InMemory) -> None:
    closed: list[str] = []

    async def endless() -> AsyncIterator[int]:
        try:
            number = 41
            while True:
                number += 1
                yield number
                await asyncio.sleep(0.01)
        finally:
            closed.append("closed")

    service = rpc.Rpc(Studio())
    async with in_memory(service) as world, world.connect(Studio) as studio:
        assert await studio.first(endless()) == 42
        await asyncio.sleep(1)
        assert closed == ["closed"]
        assert service.active == 0
        assert await studio.add(1, 1) == 2


@in_virtual_time
async def test_errors(in_memory: InMemory, caplog: pytest.LogCaptureFixture) -> None:
    async with in_memory(rpc.Rpc(Studio())) as world, world.connect(Studio) as studio:
        with pytest.raises(TooMuch) as too_much:
            await studio.take(5)
        assert (too_much.value.wanted, too_much.value.left) == (5, 3)
        with pytest.raises(KeyError):
            await studio.take(-1)
        with pytest.raises(rpc.PermissionDenied, match="not that one") as denied:
            await studio.take(13)
        assert denied.value.endpoint_id == world.server.id
        assert not caplog.records

        with pytest.raises(rpc.InternalError) as internal:
            await studio.fail()
        assert "secret" not in str(internal.value)
        assert internal.value.remote_traceback is None
        (record,) = caplog.records
        assert "Studio.fail failed" in record.message

        with pytest.raises(rpc.InternalError):
            await studio.huge()
        with pytest.raises(rpc.InternalError):
            await studio.lie()
        assert "expected int, got str" in caplog.text
        with pytest.raises(rpc.CannotSend, match=r"a cannot be sent.*expected int, got str"):
            await studio.add("1", 2)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="is missing the argument 'a'"):
            await studio.add()  # type: ignore[call-arg]
        with pytest.raises(rpc.CannotSend, match="64 bits"):
            await studio.add(2**64)
        with pytest.raises(TypeError, match="not an asynchronous iterator"):
            await studio.total([1, 2])  # type: ignore[arg-type]
        assert await studio.add(1) == 11


@in_virtual_time
async def test_errors_within_streams(in_memory: InMemory) -> None:
    async with in_memory(rpc.Rpc(Studio())) as world, world.connect(Studio) as studio:
        poured = studio.pour(9)
        assert [await anext(poured) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(TooMuch):
            await anext(poured)
        with pytest.raises(StopAsyncIteration):
            await anext(poured)
        with pytest.raises(rpc.CannotSend, match=r"an item cannot be sent.*expected int, got str"):
            await studio.total(items(1, "two"))


@in_virtual_time
async def test_a_service_in_development_tells_everything(
    in_memory: InMemory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    service = rpc.Rpc(Studio(), expose_errors=True)
    async with in_memory(service) as world, world.connect(Studio) as studio:
        with pytest.raises(rpc.InternalError, match="ValueError: a secret") as internal:
            await studio.fail()
        assert "in fail" in (internal.value.remote_traceback or "")


# --- clients ------------------------------------------------------------------------------------


class Adder(Protocol):
    async def add(self, a: int, b: int = 10) -> int: ...

    async def missing(self) -> int: ...


@in_virtual_time
async def test_an_interface_and_a_version_that_is_behind(in_memory: InMemory) -> None:
    async with (
        in_memory(rpc.Rpc(Studio(), name="adder")) as world,
        world.connect(Adder, name="adder") as adder,
    ):
        assert await adder.add(1, 2) == 3
        with pytest.raises(rpc.MethodNotFound, match="missing"):
            await adder.missing()


@in_virtual_time
async def test_only_the_interface_is_served(in_memory: InMemory) -> None:
    class Small:
        async def add(self, a: int, b: int = 10) -> int:
            raise NotImplementedError

    service = rpc.Rpc(Studio(), Small)
    assert set(service.stats()) == {"add", "$schema", "?"}
    async with (
        in_memory(service) as world,
        world.connect(Small) as small,
        world.connect(Studio, name="Small") as studio,
    ):
        assert await small.add(1) == 11
        with pytest.raises(rpc.MethodNotFound):
            await studio.nothing()
    with pytest.raises(rpc.ServiceDefinitionError, match="does not implement"):
        rpc.Rpc(object(), Small)
    with pytest.raises(rpc.ServiceDefinitionError, match="is a class"):
        rpc.Rpc(Studio)


@in_virtual_time
async def test_what_a_client_is(in_memory: InMemory) -> None:
    async with in_memory(rpc.Rpc(Studio())) as world:
        client = await world.connect(Studio)
        assert repr(client) == "<client of Studio>"
        for name in ("log", "_letters", "add_more"):
            with pytest.raises(AttributeError, match="cannot be reached"):
                getattr(client, name)
        assert client.nothing.__doc__ == "Do nothing."
        assert client.add.__qualname__ == "Studio.add"
        await rpc.close(client)
        await rpc.close(client)
        with pytest.raises(ConnectionClosed):
            await client.add(1)
        with pytest.raises(InvalidInput, match="not a client"):
            await rpc.close(Studio())
        with pytest.raises(AlpnMismatch):
            await world.connect(Studio, name="other")
        with pytest.raises(rpc.ServiceDefinitionError, match="is a class"):
            world.connect(Studio())


@in_virtual_time
async def test_the_schema_can_be_asked_for(in_memory: InMemory) -> None:
    service = rpc.Rpc(Studio())
    async with in_memory(service) as world, world.connect(Studio) as studio:
        schema = await rpc.schema(studio)
        assert schema == service.schema
        assert schema.hash == rpc.schema_of(rpc.ServiceSpec.of(Studio)).hash


@in_virtual_time
async def test_counters_on_both_sides(in_memory: InMemory) -> None:
    service = rpc.Rpc(Studio())
    async with in_memory(service) as world, world.connect(Studio) as studio:
        await studio.add(1)
        assert [n async for n in studio.count(3)] == [0, 1, 2]
        await studio.total(items(1, 2))
        with pytest.raises(TooMuch):
            await studio.take(1)
        with pytest.raises(KeyError):
            await studio.take(-1)
        await asyncio.sleep(1)
        for stats in (service.stats(), rpc.stats(studio)):
            assert stats["add"].ended == {"ok": 1}
            assert stats["count"].items_down == 3
            assert stats["total"].items_up == 2
            assert sum(stats["take"].ended.values()) == 2
            assert all(each.active == 0 for each in stats.values())
            assert stats["take"].ended == {"remote.rpc.application": 2}
        page = rpc.metrics_page(service, studio, rpc.Rpc(Studio()), rpc.Rpc(Studio(), name="other"))
        families = {f.name: f for f in text_string_to_metric_families(page.body.decode())}
        calls = {
            tuple(map(sample.labels.get, ("service", "side", "method", "outcome"))): sample.value
            for sample in families["dialkey_rpc_calls"].samples
        }
        assert calls["Studio", "server", "add", "ok"] == 1, "those of one service are added up"
        assert calls["Studio", "client", "add", "ok"] == 1
        services = {s.labels["service"] for s in families["dialkey_rpc_calls_active"].samples}
        assert services == {"Studio", "other"}
        assert page.content_type.startswith("text/plain; version=")
        newer = rpc.metrics_page(service, accept="application/openmetrics-text; version=1.0.0")
        assert newer.content_type.startswith("application/openmetrics-text; version=1.0.0")
        assert newer.body.endswith(b"# EOF\n")
        assert list(openmetrics_families(newer.body.decode()))
        with pytest.raises(InvalidInput, match="not a client"):
            rpc.metrics_page(Studio())


# --- who calls, and with what -------------------------------------------------------------------


class Diary:
    """Tells what surrounds a call."""

    async def whoami(self) -> str:
        call = rpc.current_call()
        assert call.method.name == "whoami"
        return call.remote_id.short()

    async def metadata(self) -> dict[str, str]:
        return dict(rpc.current_call().metadata)

    async def remaining(self) -> float | None:
        return rpc.current_call().remaining_s()

    async def burn(self) -> None:
        raise AssertionError("nobody may")

    async def pages(self, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number


@in_virtual_time
async def test_what_surrounds_a_call(in_memory: InMemory) -> None:
    async with (
        in_memory(rpc.Rpc(Diary())) as world,
        world.connect(Diary, metadata={"tenant": "a"}) as diary,
    ):
        assert await diary.whoami() == world.client.id.short()
        assert await diary.metadata() == {"tenant": "a"}
        more = rpc.with_options(diary, metadata={"trace": "7"}, timeout=30)
        assert await more.metadata() == {"tenant": "a", "trace": "7"}
        assert await diary.remaining() is None
        assert 29 < (await more.remaining() or 0) <= 30
        with rpc.deadline(10):
            assert 9 < (await more.remaining() or 0) <= 10
            with rpc.deadline(20):
                assert 9 < (await diary.remaining() or 0) <= 10
        assert await diary.remaining() is None
        with pytest.raises(InvalidInput):
            rpc.with_options(diary, timeout=0)
        with pytest.raises(InvalidInput):
            rpc.with_options(diary, metadata={"a": 1})  # type: ignore[dict-item]
        with pytest.raises(InvalidInput):
            rpc.with_options(diary, metadata={str(n): "" for n in range(65)})
    with pytest.raises(rpc.RpcError.__mro__[3], match="no call is being served"):
        rpc.current_call()


@in_virtual_time
async def test_who_may_call_what(in_memory: InMemory) -> None:
    friends: set[Any] = set()
    service = rpc.Rpc(
        Diary(), allow={"burn": friends, "*": lambda id: id in friends, "whoami": {0}}
    )
    async with in_memory(service) as world, world.connect(Diary) as diary:
        for call in (diary.burn(), diary.metadata(), diary.whoami(), rpc.schema(diary)):
            with pytest.raises(rpc.PermissionDenied, match="may not call"):
                await call
        friends.add(world.client.id)
        assert await diary.metadata() == {}
        assert (await rpc.schema(diary)).service == "Diary"
        with pytest.raises(rpc.PermissionDenied):
            await diary.whoami()
    with pytest.raises(rpc.ServiceDefinitionError, match="'nothing'"):
        rpc.Rpc(Diary(), allow={"nothing": ()})


@in_virtual_time
async def test_middleware(in_memory: InMemory) -> None:
    seen: list[str] = []

    async def outer(call: rpc.Call, proceed: rpc.Proceed) -> object:
        seen.append(f"outer {call.method.name}")
        if call.metadata.get("token") != "yes":
            raise rpc.PermissionDenied("no token")
        try:
            return await proceed()
        finally:
            seen.append("outer end")

    async def inner(call: rpc.Call, proceed: rpc.Proceed) -> object:
        seen.append("inner")
        result = await proceed()
        if call.method.streams_down:
            return doubled(result)
        return str(result).upper()

    async def doubled(numbers: Any) -> AsyncIterator[int]:
        async for number in numbers:
            yield 2 * number

    service = rpc.Rpc(Diary(), middleware=[outer, inner])
    async with in_memory(service) as world, world.connect(Diary) as diary:
        with pytest.raises(rpc.PermissionDenied, match="no token"):
            await diary.whoami()
        assert seen == ["outer whoami"]
        seen.clear()
        diary = rpc.with_options(diary, metadata={"token": "yes"})
        assert await diary.whoami() == world.client.id.short().upper()
        assert seen == ["outer whoami", "inner", "outer end"]
        assert [n async for n in diary.pages(3)] == [0, 2, 4]


@in_virtual_time
async def test_calls_leave_nothing_for_the_garbage_collector(in_memory: InMemory) -> None:
    """A service that is busy would spend a tenth of its time collecting its own calls."""
    async with in_memory(rpc.Rpc(Studio())) as world, world.connect(Studio) as studio:
        await studio.add(1)
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                await studio.add(1)
            await asyncio.sleep(1)
            left = [each for each in gc.get_objects() if type(each).__name__ == "_ServerCall"]
            assert len(left) <= 1
        finally:
            gc.enable()
