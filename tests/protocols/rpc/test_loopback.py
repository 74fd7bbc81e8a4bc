"""On real sockets: that it works, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import dialkey_rpc as rpc
from dialkey import Endpoint, SendStream

Served = Callable[..., contextlib.AbstractAsyncContextManager[Any]]


class Store:
    async def put(self, name: str, data: bytes) -> str:
        return f"{name} {hashlib.sha256(data).hexdigest()}"

    async def get(self, seed: int, size: int) -> bytes:
        return random.Random(seed).randbytes(size)

    async def copy(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            yield piece


@contextlib.asynccontextmanager
async def store(served: Served) -> AsyncIterator[Store]:
    async with (
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as server,
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as client,
        served(server, rpc.Rpc(Store())),
        rpc.connect(Store, client, server.ticket()) as found,
    ):
        yield found


async def test_bytes_arrive_whole(served: Served) -> None:
    async with store(served) as client:
        data = random.Random(1).randbytes(5_000_001)
        assert await client.put("x", data) == f"x {hashlib.sha256(data).hexdigest()}"
        found = await asyncio.gather(*(client.get(n, 100_000 * n) for n in range(10)))
        assert found == [random.Random(n).randbytes(100_000 * n) for n in range(10)]

        async def pieces() -> AsyncIterator[bytes]:
            for number in range(40):
                yield random.Random(number).randbytes(number * 3000)

        number = 0
        async for piece in client.copy(pieces()):
            assert piece == random.Random(number).randbytes(number * 3000)
            number += 1
        assert number == 40


async def test_large_bytes_are_handed_to_the_transport_as_they_are(
    served: Served, monkeypatch: Any
) -> None:
    written: list[object] = []
    write = SendStream.write

    async def spy(self: SendStream, data: Any, *, finish: bool = False) -> None:
        written.append(data)
        await write(self, data, finish=finish)

    monkeypatch.setattr(SendStream, "write", spy)
    async with store(served) as client:
        data = bytes(300_000)
        await client.put("x", data)
        assert any(each is data for each in written)
        assert sum(isinstance(each, bytes) and len(each) > 1000 for each in written) == 1


async def test_nothing_is_left_of_many_calls(served: Served) -> None:
    async with store(served) as client:

        async def some(count: int) -> None:
            for number in range(count):
                await client.put("x", b"")
                async for _ in client.copy(_pieces()):
                    if number % 2:
                        break

        await asyncio.gather(*(some(5) for _ in range(20)))
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(4):
            await asyncio.gather(*(some(5) for _ in range(20)))
        await asyncio.sleep(0)
        gc.collect()
        assert len(gc.get_objects()) - before < 2000


async def _pieces() -> AsyncIterator[bytes]:
    yield b"a"
    yield b"b"


def test_one_process_may_have_several_loops(served: Served) -> None:
    async def main() -> str:
        async with store(served) as client:
            return await client.put("x", b"")

    assert asyncio.run(main()) == asyncio.run(main())
