"""Streams and datagrams of endpoints: waiting, ending, cancelling, and holding back."""

from __future__ import annotations

import asyncio
import hashlib
import random

import pytest
from endpoints import connected, network, seconds, stream, virtual

from dialkey import Connection, RecvStream, SendStream
from dialkey.endpoint import streams as endpoint_streams
from dialkey.errors import (
    Busy,
    ConnectionClosed,
    ConnectionClosedByPeer,
    LimitExceeded,
    LocalError,
    StreamClosed,
    StreamReset,
    StreamStopped,
    WireError,
)
from dialkey.limits import MAX_SEND_QUEUES_BYTES, SEND_HIGH_WATER_BYTES, SEND_QUEUE_SHARE_BYTES
from dialkey.testing import Conditions

MIB = 1 << 20


async def soon() -> None:
    await asyncio.sleep(0.1)


# --- the usual ------------------------------------------------------------------------------------


@pytest.mark.parametrize("loopback", [False, True])
def test_an_echo(loopback: bool) -> None:
    async def scenario() -> None:
        async with connected(None if loopback else network()) as (here, there):
            send, recv = await here.open_bi()
            await send.write(b"hello ")
            await send.write(bytearray(b"wide "))
            await send.write(memoryview(b"world"), finish=True)
            their_send, their_recv = await there.accept_bi()
            assert their_recv.stream_id == their_send.stream_id == send.stream_id
            data = await their_recv.read_to_end(100)
            assert data == b"hello wide world"
            assert type(data) is bytes
            await their_send.write(data[::-1], finish=True)
            assert [chunk async for chunk in recv] == [data[::-1]]
            assert await send.stopped() is None

    if loopback:
        asyncio.run(scenario())
    else:
        virtual(scenario)()


@virtual
async def test_buffers_that_change_after_a_write_do_not_change_what_is_sent() -> None:
    async with connected(network()) as (here, there):
        send, _, _, their_recv = await stream(here, there)
        buffer = bytearray(b"before")
        await send.write(buffer)
        buffer[:] = b"after!"
        await send.finish()
        assert await their_recv.read_to_end(10) == b"before"


@virtual
async def test_reading() -> None:
    async with connected(network()) as (here, there):
        send, _, _, recv = await stream(here, there)
        await send.write(b"abcdefghij")
        await soon()
        assert recv.buffered_bytes == 10
        assert await recv.read(3) == b"abc"
        assert await recv.read_exactly(0) == b""
        assert await recv.read_exactly(4) == b"defg"
        exactly = asyncio.ensure_future(recv.read_exactly(5))
        await soon()
        assert not exactly.done()
        await send.write(b"kl")
        assert await exactly == b"hijkl"
        await send.finish()
        with pytest.raises(WireError, match="after 0 of 1 bytes") as caught:
            await recv.read_exactly(1)
        assert isinstance(caught.value, endpoint_streams.EndOfStream)
        assert caught.value.partial == b""
        assert await recv.read() == b""
        with pytest.raises(ValueError, match="positive"):
            await recv.read(0)


@virtual
async def test_an_early_end_gives_what_there_was() -> None:
    async with connected(network()) as (here, there):
        send, _, _, recv = await stream(here, there)
        await send.write(b"abc", finish=True)
        with pytest.raises(endpoint_streams.EndOfStream) as caught:
            await recv.read_exactly(10)
        assert caught.value.partial == b"abc"


@virtual
async def test_more_than_the_limit() -> None:
    async with connected(network()) as (here, there):
        send, _, _, recv = await stream(here, there)
        await send.write(bytes(100), finish=True)
        assert await recv.read_to_end(100) == bytes(100)
        send, _, _, recv = await stream(here, there)
        await send.write(bytes(101))
        with pytest.raises(LimitExceeded, match="more than 100 bytes"):
            await recv.read_to_end(100)
        assert await send.stopped() == 0
        send, _, _, recv = await stream(here, there)
        await send.write(b"x", finish=True)
        with pytest.raises(LimitExceeded):
            await recv.read_to_end(0)


# --- ends -----------------------------------------------------------------------------------------


@virtual
async def test_reset_is_seen_by_a_waiting_and_by_a_later_reader() -> None:
    async with connected(network()) as (here, there):
        send, _, _, recv = await stream(here, there)
        reading = asyncio.ensure_future(recv.read())
        await soon()
        send.reset(44)
        for _ in range(2):
            with pytest.raises(StreamReset) as caught:
                await (reading if not reading.done() else recv.read())
            assert caught.value.error_code == 44
        send.reset(45)
        with pytest.raises(StreamClosed, match="reset here"):
            await send.write(b"x")
        with pytest.raises(StreamClosed):
            await send.finish()


@virtual
async def test_stop_is_seen_by_a_waiting_and_by_a_later_writer() -> None:
    async with connected(network()) as (here, there):
        send, _, _, recv = await stream(here, there)
        writing = asyncio.ensure_future(send.write(bytes(10 * MIB)))
        await asyncio.sleep(1)
        assert not writing.done()
        recv.stop(33)
        with pytest.raises(StreamStopped) as caught:
            await writing
        assert caught.value.error_code == 33
        with pytest.raises(StreamStopped):
            await send.write(b"x")
        assert await send.stopped() == 33
        with pytest.raises(StreamClosed, match="stopped here"):
            await recv.read()
        recv.stop(34)


@virtual
async def test_stop_reaches_a_writer_that_has_finished_already() -> None:
    async with connected(network()) as (here, there):
        send, _, _, recv = await stream(here, there)
        writing = asyncio.ensure_future(send.write(bytes(10 * MIB), finish=True))
        await asyncio.sleep(1)
        recv.stop(33)
        with pytest.raises(StreamStopped):
            await writing
        assert await send.stopped() == 33
        with pytest.raises(StreamStopped):
            await send.delivered()


@virtual
async def test_a_writer_that_waits_with_its_end_sees_the_connection_end() -> None:
    async with connected(network()) as (here, there):
        send, *_others = await stream(here, there)
        writing = asyncio.ensure_future(send.write(bytes(10 * MIB), finish=True))
        delivering = asyncio.ensure_future(here.closed())
        await asyncio.sleep(1)
        there.close(9, b"enough")
        with pytest.raises(ConnectionClosedByPeer):
            await writing
        await delivering


@virtual
async def test_finish_ends_it() -> None:
    async with connected(network()) as (here, there):
        send, _, _, recv = await stream(here, there)
        await send.finish()
        with pytest.raises(StreamClosed, match="finished here"):
            await send.write(b"x")
        with pytest.raises(StreamClosed):
            await send.finish()
        assert await recv.read() == b""
        assert await send.stopped() is None


@virtual
async def test_delivered_waits_for_the_acknowledgement() -> None:
    async with connected(network(delay_s=0.5)) as (here, there):
        send, *_others = await stream(here, there)
        begin = seconds()
        await send.write(b"x")
        assert seconds() == begin
        await send.delivered()
        assert seconds() - begin == pytest.approx(1.0, abs=0.03)


@virtual
async def test_who_has_everything_may_stop_before_the_end() -> None:
    async with connected(network(delay_s=0.1)) as (here, there):
        send, _, _, recv = await stream(here, there)
        await send.write(b"all of it")
        assert await recv.read_exactly(9) == b"all of it"
        recv.stop(0)
        assert await send.stopped() == 0
        await send.delivered()
        with pytest.raises(StreamStopped):
            await send.finish()
        # The acknowledgement may come behind the stop.
        send, _, _, recv = await stream(here, there)
        await send.write(b"all of it")
        recv.stop(0)
        assert await send.stopped() == 0
        await send.delivered()
        # Another one misses a piece.
        send, _, _, recv = await stream(here, there)
        begin = asyncio.ensure_future(send.write(bytes(10 * MIB)))
        await recv.read_exactly(9)
        recv.stop(0)
        with pytest.raises(StreamStopped):
            await begin
        assert await send.stopped() == 0
        with pytest.raises(StreamStopped):
            await send.delivered()


@virtual
async def test_codes_are_checked() -> None:
    async with connected(network()) as (here, there):
        send, recv, *_theirs = await stream(here, there)
        for bad in (-1, 1 << 62):
            for call in (send.reset, recv.stop, here.close):
                with pytest.raises(LocalError, match="number from 0"):
                    call(bad)
        send.reset((1 << 62) - 1)


# --- one at a time, and the peer's limits ---------------------------------------------------------


@virtual
async def test_two_tasks_on_one_end_are_told_apart() -> None:
    async with connected(network()) as (here, there):
        send, recv, *_theirs = await stream(here, there)
        reading = asyncio.ensure_future(recv.read())
        writing = asyncio.ensure_future(send.write(bytes(10 * MIB)))
        datagram = asyncio.ensure_future(here.read_datagram())
        await soon()
        with pytest.raises(Busy, match="another task is reading this stream"):
            await recv.read()
        with pytest.raises(Busy, match="another task is writing this stream"):
            await send.write(bytes(10 * MIB))
        with pytest.raises(Busy, match="another task is reading datagrams"):
            await here.read_datagram()
        for task in (reading, writing, datagram):
            task.cancel()
        await asyncio.wait([reading, writing, datagram])


@virtual
async def test_opening_waits_for_the_peer_s_limit_in_order() -> None:
    async with connected(network()) as (here, there):
        first = [await here.open_uni() for _ in range(100)]
        order: list[int] = []

        async def open_one(i: int) -> SendStream:
            send = await here.open_uni()
            order.append(i)
            return send

        waiting = [asyncio.create_task(open_one(i)) for i in range(30)]
        await soon()
        assert not order
        # The other direction has its own limit.
        await here.open_bi()
        waiting[3].cancel()
        for send in first[:60]:
            await send.write(b"x", finish=True)
        for _ in range(60):
            await (await there.accept_uni()).read_to_end(10)
        await asyncio.wait(waiting)
        assert order == [i for i in range(30) if i != 3]


@virtual
async def test_opening_ends_with_the_connection() -> None:
    async with connected(network()) as (here, there):
        for _ in range(100):
            await here.open_bi()
        waiting = [asyncio.create_task(here.open_bi()) for _ in range(5)]
        await soon()
        there.close(1)
        for task in waiting:
            with pytest.raises(ConnectionClosedByPeer):
                await task


@virtual
async def test_accepting_takes_streams_in_order_and_ends_with_the_connection() -> None:
    async with connected(network()) as (here, there):
        accepting = [asyncio.create_task(there.accept_uni()) for _ in range(4)]
        await soon()
        accepting[0].cancel()
        ids = []
        for i in range(3):
            send = await here.open_uni()
            await send.write(b"%d" % i, finish=True)
            ids.append(send.stream_id)
        got = [await task for task in accepting[1:]]
        assert [recv.stream_id for recv in got] == ids
        last = asyncio.create_task(there.accept_uni())
        await soon()
        here.close(3, b"bye")
        with pytest.raises(ConnectionClosedByPeer) as caught:
            await last
        assert caught.value.error_code == 3
        with pytest.raises(ConnectionClosedByPeer):
            await there.accept_bi()


@virtual
async def test_streams_that_came_before_the_close_are_still_accepted_and_read() -> None:
    async with connected(network()) as (here, there):
        send = await here.open_uni()
        await send.write(b"last words", finish=True)
        await soon()
        here.close()
        await there.closed()
        recv = await there.accept_uni()
        assert await recv.read() == b"last words"
        assert await recv.read() == b""


@virtual
async def test_a_stream_cut_by_the_close_gives_what_came_and_then_the_error() -> None:
    async with connected(network()) as (here, there):
        send, _, _, recv = await stream(here, there)
        await send.write(b"begin")
        await soon()
        here.close(5)
        await there.closed()
        assert await recv.read() == b"begin"
        with pytest.raises(ConnectionClosedByPeer):
            await recv.read()
        with pytest.raises(ConnectionClosed):
            await send.write(b"x")


# --- cancellation ---------------------------------------------------------------------------------


@virtual
async def test_a_cancelled_read_loses_nothing() -> None:
    async with connected(network(delay_s=0.01, jitter_s=0.01)) as (here, there):
        send, _, _, recv = await stream(here, there)
        data = random.Random(0).randbytes(300_000)
        writing = asyncio.create_task(send.write(data, finish=True))
        rng = random.Random(1)
        got = b""
        while True:
            task = asyncio.create_task(recv.read(rng.choice([1, 1000, 100_000])))
            await asyncio.sleep(rng.choice([0, 0, 0.0001, 0.003]))
            if task.cancel():
                # It was still waiting; a result that was on its way must not be lost.
                try:
                    await task
                except asyncio.CancelledError:
                    continue
            chunk = await task
            got += chunk
            if not chunk:
                break
        await writing
        assert got == data


@virtual
async def test_a_cancelled_accept_or_open_loses_no_stream() -> None:
    async with connected(network(delay_s=0.01)) as (here, there):
        rng = random.Random(2)
        total = 150

        async def write() -> None:
            for i in range(total):
                send = await here.open_uni()
                await send.write(b"%d" % i, finish=True)
                await asyncio.sleep(rng.choice([0, 0.001]))

        async def occasionally_cancelled() -> list[int]:
            got: list[int] = []
            while len(got) < total:
                task = asyncio.create_task(there.accept_uni())
                await asyncio.sleep(rng.choice([0, 0.0005, 0.01]))
                task.cancel()
                try:
                    recv = await task
                except asyncio.CancelledError:
                    continue
                got.append(int(await recv.read_to_end(10)))
            return got

        writing = asyncio.create_task(write())
        assert await occasionally_cancelled() == list(range(total))
        await writing


@virtual
async def test_a_cancelled_write_may_have_sent_a_beginning() -> None:
    async with connected(network()) as (here, there):
        send, _, _, recv = await stream(here, there)
        data = random.Random(0).randbytes(8 * MIB)
        writing = asyncio.create_task(send.write(data))
        await asyncio.sleep(1)
        writing.cancel()
        await asyncio.wait([writing])
        send.reset(1)
        got = bytearray()

        async def read_all() -> None:
            async for chunk in recv:
                got.extend(chunk)

        with pytest.raises(StreamReset):
            await read_all()
        assert data.startswith(got)


@virtual
async def test_every_wait_can_be_cancelled_and_leaves_the_connection_usable() -> None:
    async with connected(network()) as (here, there):
        send, recv, *_theirs = await stream(here, there)
        for _ in range(100 - 1):
            await here.open_bi()
        await send.write(bytes(SEND_HIGH_WATER_BYTES // 2))
        waits = [
            here.accept_bi(),
            here.accept_uni(),
            here.open_bi(),
            here.read_datagram(),
            here.closed(),
            recv.read(),
            send.stopped(),
        ]
        tasks = [asyncio.create_task(each) for each in waits]  # type: ignore[arg-type]
        await soon()
        for task in tasks:
            assert not task.done(), task
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        assert not here._driver._readers
        assert not here._driver._writers
        there.send_datagram(b"still here")
        assert await here.read_datagram() == b"still here"


# --- datagrams ------------------------------------------------------------------------------------


@virtual
async def test_datagrams() -> None:
    async with connected(network()) as (here, there):
        for size in (0, 1, 1000, 1150):
            here.send_datagram(bytes([7]) * size)
            assert await there.read_datagram() == bytes([7]) * size
        await asyncio.sleep(1)
        largest = here.max_datagram_size
        assert largest is not None
        here.send_datagram(bytearray(largest))
        assert await there.read_datagram() == bytes(largest)
        with pytest.raises(LocalError, match="does not fit"):
            here.send_datagram(bytes(largest + 1))


@virtual
async def test_datagrams_that_nobody_reads_push_out_the_oldest() -> None:
    async with connected(network(delay_s=0.001)) as (here, there):
        for i in range(3000):
            here.send_datagram(b"%04d" % i + bytes(900))
            if i % 20 == 0:
                await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        assert there._driver._datagram_bytes <= 1_250_000
        assert there.stats().dropped_datagrams > 500
        first = int((await there.read_datagram())[:4])
        assert first > 500


@virtual
async def test_empty_datagrams_cost_something_too() -> None:
    async with connected(network()) as (here, there):
        for _ in range(300):
            for _ in range(300):
                here.send_datagram(b"")
            await asyncio.sleep(0.1)
        assert len(there._driver._datagrams) <= 1_250_000 // 48


@virtual
async def test_datagrams_that_came_before_the_close_are_read() -> None:
    async with connected(network()) as (here, there):
        here.send_datagram(b"a")
        here.send_datagram(b"b")
        await soon()
        here.close()
        await there.closed()
        assert await there.read_datagram() == b"a"
        assert await there.read_datagram() == b"b"
        with pytest.raises(ConnectionClosedByPeer):
            await there.read_datagram()
        with pytest.raises(ConnectionClosed):
            here.send_datagram(b"c")


# --- back-pressure and many -----------------------------------------------------------------------


@virtual
async def test_a_writer_waits_for_a_stalled_reader() -> None:
    async with connected(network()) as (here, there):
        send, _, _, recv = await stream(here, there)
        written = 0

        async def write() -> None:
            nonlocal written
            for _ in range(200):
                await send.write(bytes(65_536))
                written += 65_536
            await send.finish()

        writing = asyncio.create_task(write())
        await asyncio.sleep(20)
        held = SEND_HIGH_WATER_BYTES + 1_250_000 + 2 * 65_536
        assert 1_250_000 < written <= held
        # Reading wakes it, and all arrives.
        total = 0
        async for chunk in recv:
            total += len(chunk)
        await writing
        assert total == 200 * 65_536


@virtual
async def test_all_streams_together_queue_a_limited_amount() -> None:
    async with connected(network()) as (here, there):
        streams = [await stream(here, there) for _ in range(60)]
        written = [0] * len(streams)

        async def write(index: int) -> None:
            send = streams[index][0]
            for _ in range(40):
                await send.write(bytes(65_536))
                written[index] += 65_536
            await send.finish()

        async def read(index: int) -> int:
            return sum([len(chunk) async for chunk in streams[index][3]])

        writing = [asyncio.create_task(write(index)) for index in range(len(streams))]
        await asyncio.sleep(20)
        queued = here._driver.core.streams.queued_bytes
        assert queued > SEND_HIGH_WATER_BYTES
        assert queued <= MAX_SEND_QUEUES_BYTES + len(streams) * (SEND_QUEUE_SHARE_BYTES + 65_536)
        assert not any(task.done() for task in writing)
        # A peer that reads them all at once gets everything; nobody waits for good.
        sizes = await asyncio.wait_for(
            asyncio.gather(*(read(index) for index in range(len(streams)))), 60
        )
        await asyncio.gather(*writing)
        assert sizes == written == [40 * 65_536] * len(streams)


@virtual
async def test_a_stream_with_little_waits_for_no_other() -> None:
    async with connected(network()) as (here, there):
        unread = [await stream(here, there) for _ in range(90)]
        data = bytes(4 * SEND_HIGH_WATER_BYTES)
        async with asyncio.TaskGroup() as tasks:
            writing = [tasks.create_task(each[0].write(data)) for each in unread]
            await soon()
            assert here._driver.core.streams.queued_bytes > MAX_SEND_QUEUES_BYTES
            send, *_rest = await stream(here, there)
            await asyncio.wait_for(send.write(bytes(SEND_QUEUE_SHARE_BYTES)), 1)
            assert not any(task.done() for task in writing)
            for task in writing:
                task.cancel()


@virtual
async def test_a_small_write_beside_a_stalled_stream_goes_through() -> None:
    async with connected(network()) as (here, there):
        send, *_others = await stream(here, there)
        writing = asyncio.create_task(send.write(bytes(10 * MIB)))
        await asyncio.sleep(1)
        begin = seconds()
        _, _, _, recv = await stream(here, there)
        assert seconds() - begin < 0.1
        assert recv.buffered_bytes == 0
        writing.cancel()


@pytest.mark.parametrize("lossy", [False, True])
def test_a_thousand_streams_at_once(lossy: bool) -> None:
    conditions = Conditions(delay_s=0.005, loss=0.02 if lossy else 0.0)

    @virtual
    async def scenario() -> None:
        net = network()
        net.conditions = conditions
        async with connected(net) as (here, there):

            async def echo(send: SendStream, recv: RecvStream) -> None:
                await send.write(await recv.read_to_end(10_000), finish=True)

            async def serve() -> None:
                async with asyncio.TaskGroup() as group:
                    for _ in range(1000):
                        group.create_task(echo(*await there.accept_bi()))

            async def ask(i: int) -> None:
                send, recv = await here.open_bi()
                data = b"%d:" % i * 100
                await send.write(data, finish=True)
                assert await recv.read_to_end(10_000) == data

            async with asyncio.TaskGroup() as group:
                group.create_task(serve())
                for i in range(1000):
                    group.create_task(ask(i))
            assert not here._driver.core.streams.send_halves

    scenario()


@pytest.mark.parametrize("loopback", [False, True])
def test_random_data_both_ways(loopback: bool) -> None:
    async def one_way(here: Connection, there: Connection, seed: int) -> None:
        data = random.Random(seed).randbytes(3 * MIB)

        async def write() -> None:
            send = await here.open_uni()
            rng = random.Random(seed)
            at = 0
            while at < len(data):
                size = rng.choice([1, 100, 5000, 200_000])
                await send.write(data[at : at + size])
                at += size
            await send.finish()

        digest = hashlib.sha256()
        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            async for chunk in await there.accept_uni():
                digest.update(chunk)
        assert digest.digest() == hashlib.sha256(data).digest()

    async def scenario() -> None:
        net = None if loopback else network(delay_s=0.01, loss=0.01, jitter_s=0.002)
        async with connected(net) as (here, there):
            await asyncio.gather(one_way(here, there, 1), one_way(there, here, 2))

    if loopback:
        asyncio.run(scenario())
    else:
        virtual(scenario)()


@virtual
async def test_priorities() -> None:
    net = network(delay_s=0.02, rate_bytes_s=500_000, queue_bytes=50_000)
    async with connected(net) as (here, there):
        streams = []
        for priority in (0, 5, -5):
            send = await here.open_uni()
            send.set_priority(priority)
            assert send.priority == priority
            await send.write(bytes(300_000), finish=True)
            streams.append(send)

        finished: list[int] = []

        async def read() -> None:
            recv = await there.accept_uni()
            async for _ in recv:
                pass
            finished.append(recv.stream_id)

        async with asyncio.TaskGroup() as group:
            for _ in streams:
                group.create_task(read())
        by_priority = sorted(streams, key=lambda send: -send.priority)
        assert finished == [send.stream_id for send in by_priority]
