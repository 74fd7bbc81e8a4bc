"""No global event loop: one after the other, and several at once in threads."""

from __future__ import annotations

import asyncio
import threading

from dialkey import Connection, Endpoint


async def talk(text: bytes) -> bytes:
    """Two endpoints in the running loop; one answers in capitals."""
    async with (
        Endpoint.bind(bind="127.0.0.1:0", alpns=["shout/1"], entry_points=False) as server,
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as client,
    ):

        async def answer() -> None:
            connection: Connection | None = await server.accept()
            assert connection is not None
            send, recv = await connection.accept_bi()
            await send.write((await recv.read_to_end(100)).upper(), finish=True)
            await send.stopped()

        answering = asyncio.create_task(answer())
        connection = await client.connect(server.ticket(), "shout/1")
        send, recv = await connection.open_bi()
        await send.write(text, finish=True)
        reply = await recv.read_to_end(100)
        await answering
        return reply


def test_asyncio_run_twice() -> None:
    assert asyncio.run(talk(b"once")) == b"ONCE"
    assert asyncio.run(talk(b"again")) == b"AGAIN"


def test_loops_in_threads() -> None:
    replies: dict[int, bytes] = {}

    def run(number: int) -> None:
        replies[number] = asyncio.run(talk(b"thread %d" % number))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert replies == {number: b"THREAD %d" % number for number in range(4)}


async def test_bind_is_awaitable_and_close_is_idempotent() -> None:
    endpoint = await Endpoint.bind(bind="127.0.0.1:0", entry_points=False)
    assert endpoint.bound_addrs()
    await endpoint.close()
    await endpoint.close()
    assert await endpoint.accept() is None
