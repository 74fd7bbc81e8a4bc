"""Streams that an application drops, before their end or without one: their places come back."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from endpoints import connected, network, stream, virtual

from dialkey.errors import StreamReset, StreamStopped
from dialkey.limits import MAX_INCOMING_STREAMS, SEND_HIGH_WATER_BYTES

COUNT = 3 * MAX_INCOMING_STREAMS


@virtual
async def test_a_dropped_receiving_end_stops_the_peer() -> None:
    async with connected(network()) as (here, there):
        send = await here.open_uni()
        await send.write(b"x")
        recv = await there.accept_uni()
        del recv
        assert await send.stopped() == 0
        with pytest.raises(StreamStopped):
            await send.write(b"more")


@virtual
async def test_a_dropped_receiving_end_that_was_read_whole_stops_nothing() -> None:
    async with connected(network()) as (here, there):
        send = await here.open_uni()
        await send.write(b"x", finish=True)
        recv = await there.accept_uni()
        assert await recv.read_to_end(10) == b"x"
        del recv
        assert await send.stopped() is None


@virtual
async def test_a_dropped_sending_end_ends_where_it_is() -> None:
    async with connected(network()) as (here, there):
        send = await here.open_uni()
        await send.write(b"all of it")
        del send
        recv = await there.accept_uni()
        assert await recv.read_to_end(100) == b"all of it"


@virtual
async def test_a_write_that_was_interrupted_is_not_taken_for_whole() -> None:
    async with connected(network()) as (here, there):
        send = await here.open_uni()
        writing = asyncio.create_task(send.write(bytes(5 * SEND_HIGH_WATER_BYTES)))
        recv = await there.accept_uni()
        await asyncio.sleep(1)
        writing.cancel()
        await asyncio.wait([writing])
        del send, writing
        with pytest.raises(StreamReset):
            await recv.read_to_end(10 * SEND_HIGH_WATER_BYTES)


@virtual
async def test_streams_dropped_in_another_thread_and_in_cycles_end_too() -> None:
    async with connected(network()) as (here, there):
        send, _, _, recv = await stream(here, there)
        cycle = [recv]
        cycle.append(cycle)  # type: ignore[arg-type]
        del recv, cycle
        thread = threading.Thread(target=gc.collect)
        thread.start()
        thread.join()
        assert await send.stopped() == 0


@virtual
async def test_dropping_after_the_end_is_quiet() -> None:
    async with connected(network()) as (here, there):
        ends = await stream(here, there)
        here.close()
        await there.closed()
        del ends


@pytest.mark.parametrize("reader", ["wants nothing", "wants less", "wants all but the end"])
@pytest.mark.parametrize("late_end", [False, True])
def test_places_of_streams_that_were_not_read_to_the_end_come_back(
    reader: str, late_end: bool
) -> None:
    @virtual
    async def scenario() -> None:
        async with connected(network()) as (here, there):

            async def write() -> None:
                for _ in range(COUNT):
                    send = await here.open_uni()
                    await send.write(b"8 bytes!", finish=not late_end)
                    if late_end:
                        await asyncio.sleep(0.05)
                        try:
                            await send.finish()
                        except StreamStopped:
                            pass

            async def read() -> None:
                for _ in range(COUNT):
                    recv = await there.accept_uni()
                    if reader == "wants less":
                        await recv.read_exactly(5)
                    elif reader == "wants all but the end":
                        await recv.read_exactly(8)

            async with asyncio.timeout(120), asyncio.TaskGroup() as group:
                group.create_task(write())
                group.create_task(read())

    scenario()


@pytest.mark.parametrize("answer", ["none", "ignored", "refused"])
def test_places_of_two_way_streams_come_back_whatever_half_is_dropped(answer: str) -> None:
    @virtual
    async def scenario() -> None:
        async with connected(network()) as (here, there):

            async def ask() -> None:
                for _ in range(COUNT):
                    send, recv = await here.open_bi()
                    await send.write(b"8 bytes!", finish=True)
                    del send, recv

            async def serve() -> None:
                for _ in range(COUNT):
                    send, recv = await there.accept_bi()
                    if answer == "refused":
                        recv.stop(1)
                        send.reset(1)
                    elif answer == "ignored":
                        try:
                            await send.write(b"answer")
                        except StreamStopped:
                            pass
                    del send, recv

            async with asyncio.timeout(120), asyncio.TaskGroup() as group:
                group.create_task(ask())
                group.create_task(serve())

    scenario()


@virtual
async def test_streams_reset_before_they_are_accepted_keep_their_places_until_then() -> None:
    async with connected(network()) as (here, there):
        for _ in range(MAX_INCOMING_STREAMS):
            send = await here.open_uni()
            send.reset(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(here.open_uni(), 20)
        for _ in range(3):
            recv = await there.accept_uni()
            with pytest.raises(StreamReset):
                await recv.read()
        async with asyncio.timeout(20):
            for _ in range(3):
                await here.open_uni()
