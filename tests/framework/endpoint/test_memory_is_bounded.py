"""A reader that stalls stops the writer, and neither side's memory grows."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
from multiprocessing.connection import Connection as Pipe

import pytest

from dialkey import Connection, Endpoint
from dialkey.limits import SEND_HIGH_WATER_BYTES, STREAM_RECEIVE_WINDOW_BYTES

GIB = 1 << 30
PIECE = bytes(1 << 16)
ROOM = 24 << 20
"""What a side may grow by: windows of the stream and the connection, and the allocator's own."""


def resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def binding(*alpns: str) -> object:
    return Endpoint.bind(bind="127.0.0.1:0", alpns=alpns, entry_points=False)


def reader_process(pipe: Pipe) -> None:
    async def read_late() -> None:
        async with binding("late/1") as endpoint:  # type: ignore[attr-defined]
            pipe.send(str(endpoint.ticket()))
            connection = await endpoint.accept()
            recv = await connection.accept_uni()
            before = resident_bytes()
            # The writer says through the pipe that it has been stopped.
            await asyncio.to_thread(pipe.recv)
            pipe.send(resident_bytes() - before)
            size = 0
            async for chunk in recv:
                size += len(chunk)
            pipe.send((size, resident_bytes() - before))
            await connection.closed()

    asyncio.run(read_late())


@pytest.mark.slow
async def test_one_gib_against_a_reader_that_stalls() -> None:
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=reader_process, args=(there,))
    process.start()
    there.close()  # so that its end is seen if it fails
    try:
        ticket = await asyncio.to_thread(here.recv)
        async with binding() as endpoint:  # type: ignore[attr-defined]
            connection: Connection = await endpoint.connect(ticket, "late/1")
            stream = await connection.open_uni()
            await stream.write(PIECE)
            before = resident_bytes()
            written = len(PIECE)

            async def write_all() -> None:
                nonlocal written
                while written < GIB:
                    await stream.write(PIECE)
                    written += len(PIECE)
                await stream.finish()
                await stream.stopped()

            writing = asyncio.ensure_future(write_all())
            last = -1
            while last != written:
                # It stalls by itself: wait until a whole probe interval brings nothing new.
                last = written
                await asyncio.wait([writing], timeout=0.5)
            assert not writing.done()
            assert written <= STREAM_RECEIVE_WINDOW_BYTES + SEND_HIGH_WATER_BYTES + (1 << 20)
            assert resident_bytes() - before < ROOM
            here.send("stalled")
            assert await asyncio.to_thread(here.recv) < ROOM
            await writing
            size, grown = await asyncio.to_thread(here.recv)
            assert size == GIB
            assert grown < ROOM
            assert resident_bytes() - before < ROOM
    finally:
        process.join(10)
        process.kill()
        process.join()
