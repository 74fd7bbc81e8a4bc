"""Leaving `async with`: by its end nothing that was written is lost, by an exception at once."""

from __future__ import annotations

import asyncio
import gc
import warnings
from contextlib import AsyncExitStack

import pytest
from endpoints import ALPN, connect, connected, in_memory, network, seconds, two, virtual

from dialkey import Connection, Endpoint, Router
from dialkey.errors import LocalError
from dialkey.limits import DELIVERY_SILENCE_S, DELIVERY_TIMEOUT_S
from dialkey.testing import Conditions

MIB = 1 << 20
SLOW = Conditions(delay_s=0.05, rate_bytes_s=65_000)


@pytest.mark.parametrize("loss", [0.0, 0.02])
@pytest.mark.parametrize("size", [0, 1, 900_000])
def test_a_connection_delivers_what_was_written(size: int, loss: float) -> None:
    @virtual
    async def scenario() -> None:
        async with two(network(delay_s=0.05, loss=loss)) as (alice, bob):
            here, there = await connect(alice, bob)
            async with here:
                send = await here.open_uni()
                await send.write(bytes(size), finish=True)
            recv = await there.accept_uni()
            assert await recv.read_to_end(MIB) == bytes(size)

    scenario()


@virtual
async def test_what_is_not_finished_is_delivered_too() -> None:
    async with connected(network(delay_s=0.05)) as (here, there):
        async with here:
            send = await here.open_uni()
            await send.write(bytes(500_000))
        recv = await there.accept_uni()
        assert await recv.read_exactly(500_000) == bytes(500_000)


@virtual
async def test_a_message_in_the_queue_is_sent() -> None:
    async with connected(network(delay_s=0.05)) as (here, there):
        async with here:
            here.send_datagram(b"message")
        assert await there.read_datagram() == b"message"


@virtual
async def test_an_endpoint_delivers_what_was_written_on_all_connections() -> None:
    net = network(delay_s=0.05)
    async with in_memory(net, "bob", alpns=[ALPN]) as bob:
        connections = []
        async with in_memory(net, "alice") as alice:
            for _ in range(3):
                here, there = await connect(alice, bob)
                send = await here.open_uni()
                await send.write(bytes(900_000), finish=True)
                connections.append(there)
        for there in connections:
            recv = await there.accept_uni()
            assert await recv.read_to_end(MIB) == bytes(900_000)


@virtual
async def test_an_exit_by_exception_does_not_wait() -> None:
    async with connected(network(delay_s=0.05)) as (here, _there):
        begin = seconds()
        send = await here.open_uni()
        await send.write(bytes(900_000), finish=True)
        with pytest.raises(ZeroDivisionError):
            async with here:
                raise ZeroDivisionError
        assert seconds() == begin


@virtual
async def test_a_peer_that_is_gone_holds_an_exit_up_for_a_moment_only() -> None:
    net = network(delay_s=0.05)
    async with connected(net) as (here, _there):
        await asyncio.sleep(1)
        begin = seconds()
        async with here:
            net.link("alice", "bob").down()
            send = await here.open_uni()
            await send.write(b"x", finish=True)
        assert seconds() - begin < 2 * DELIVERY_SILENCE_S < DELIVERY_TIMEOUT_S


@pytest.mark.parametrize("leaves", ["connection", "endpoint", "router"])
def test_a_slow_peer_is_waited_for_while_it_takes_bytes(leaves: str) -> None:
    """For a megabyte over a link of half a megabit, ten seconds were not enough."""

    class Answering:
        async def accept(self, connection: Connection) -> None:
            send, _ = await connection.accept_bi()
            await send.write(bytes(900_000), finish=True)
            written.set()
            await connection.closed()

    written = asyncio.Event()

    @virtual
    async def scenario() -> None:
        net = network(delay_s=0.05)
        async with AsyncExitStack() as stack, in_memory(net, "alice") as alice:
            bob = await stack.enter_async_context(in_memory(net, "bob", alpns=[ALPN]))
            if leaves == "router":
                router = await stack.enter_async_context(Router(bob, grace_s=0))
                router.accept(ALPN, Answering())
                here = await alice.connect(bob.addr(), ALPN)
                send, recv = await here.open_bi()
                await send.write(b"?")
                net.link("bob", "alice").set(SLOW)
                await written.wait()
            else:
                here, there = await connect(alice, bob)
                net.link("bob", "alice").set(SLOW)
                writing, _ = await there.open_bi()
                await writing.write(bytes(900_000), finish=True)
                if leaves == "connection":
                    await stack.enter_async_context(there)
                _, recv = await here.accept_bi()
            begin = seconds()
            reading = asyncio.create_task(recv.read_to_end(MIB))
            await stack.aclose()
            assert 10 < seconds() - begin < DELIVERY_TIMEOUT_S
            assert await reading == bytes(900_000)

    scenario()


@virtual
async def test_a_peer_that_takes_bytes_slowly_holds_an_exit_up_for_a_stated_time() -> None:
    net = network(delay_s=0.05)
    async with connected(net) as (here, _there):
        net.link("alice", "bob").set(Conditions(delay_s=0.05, rate_bytes_s=20_000))
        async with here:
            send = await here.open_uni()
            await send.write(bytes(900_000), finish=True)
            begin = seconds()
        assert DELIVERY_TIMEOUT_S <= seconds() - begin < DELIVERY_TIMEOUT_S + 1


@virtual
async def test_a_peer_that_does_not_read_holds_an_exit_up_for_a_moment_only() -> None:
    async with connected(network()) as (here, there):
        begin = seconds()
        async with here:
            send = await here.open_uni()
            await send.write(bytes(900_000))
            await send.write(bytes(500_000), finish=True)
        recv = await there.accept_uni()
        assert DELIVERY_SILENCE_S <= seconds() - begin < DELIVERY_SILENCE_S + 1
        assert recv.buffered_bytes > 0


@virtual
async def test_what_was_reset_is_not_waited_for() -> None:
    async with connected(network(delay_s=0.05)) as (here, there):
        begin = seconds()
        async with here:
            send = await here.open_uni()
            await send.write(bytes(900_000))
            send.reset(7)
        assert seconds() - begin < 0.2
        await there.closed()


@virtual
async def test_cancelling_an_exit_closes_at_once() -> None:
    async with connected(network()) as (here, there):

        async def leave() -> None:
            async with here:
                send = await here.open_uni()
                await send.write(bytes(900_000))
                await send.write(bytes(500_000), finish=True)

        leaving = asyncio.create_task(leave())
        await asyncio.sleep(1)
        assert not here.is_closed
        leaving.cancel()
        await asyncio.wait([leaving])
        assert here.is_closed
        await there.closed()


@virtual
async def test_a_handler_that_is_cancelled_at_the_end_loses_nothing_it_wrote() -> None:
    class Answering:
        async def accept(self, connection: Connection) -> None:
            while True:
                send, _recv = await connection.accept_bi()
                await send.write(bytes(100_000), finish=True)
                asked.set()

    asked = asyncio.Event()
    net = network(delay_s=0.02)
    async with in_memory(net, "alice") as alice, in_memory(net, "bob") as bob:
        router = Router(bob, grace_s=0)
        async with router:
            router.accept(ALPN, Answering())
            connection = await alice.connect(bob.addr(), ALPN)
            send, recv = await connection.open_bi()
            await send.write(b"?", finish=True)
            await asked.wait()
        assert await recv.read_to_end(MIB) == bytes(100_000)


# --- await and async with -------------------------------------------------------------------------


@virtual
async def test_a_dial_is_awaited_entered_or_made_a_task() -> None:
    async with two(network()) as (alice, bob):
        async with alice.connect(bob.addr(), ALPN) as connection:
            assert not connection.is_closed
        assert connection.is_closed
        task = asyncio.create_task(alice.connect(bob.addr(), ALPN))
        waited = await asyncio.wait_for(alice.connect(bob.addr(), ALPN), 10)
        async with asyncio.TaskGroup() as group:
            grouped = group.create_task(alice.connect(bob.addr(), ALPN))
        for each in (await task, waited, grouped.result()):
            assert type(each) is Connection
            each.close()


@virtual
async def test_a_dial_is_for_once() -> None:
    async with two(network()) as (alice, bob):
        dial = alice.connect(bob.addr(), ALPN)
        (await dial).close()
        with pytest.raises(LocalError, match="awaited already"):
            await dial


@virtual
async def test_a_dial_that_fails_enters_nothing() -> None:
    async with two(network()) as (alice, _bob):
        with pytest.raises(LocalError):
            async with alice.connect(alice.addr(), ALPN):
                pytest.fail("entered")


@virtual
async def test_a_dial_that_nobody_awaits_is_warned_of() -> None:
    async with two(network()) as (alice, bob):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            alice.connect(bob.addr(), ALPN)
            gc.collect()
        assert ["never awaited" in str(each.message) for each in caught] == [True]


# --- what people try first ------------------------------------------------------------------------


@virtual
async def test_a_plain_with_is_told_what_to_write() -> None:
    net = network()
    binding = in_memory(net, "carol")
    with pytest.raises(TypeError, match="async with"), binding:
        pass
    async with binding as carol, two(net) as (alice, bob):
        here, there = await connect(alice, bob)
        for each in (carol, here, Router(carol)):
            with pytest.raises(TypeError, match="async with"), each:
                pass
        there.close()


def test_without_a_loop_a_program_is_told_how_to_get_one() -> None:
    binding = Endpoint.bind(entry_points=False)
    with pytest.raises(RuntimeError, match=r"asyncio\.run\(main\(\)\)"):
        binding.send(None)


@virtual
async def test_what_an_endpoint_hands_out_is_a_copy() -> None:
    async with in_memory(network(), "alice", alpns=["a/1"]) as alice:
        alice.alpns.append("b/1")
        alice.bound_addrs().clear()
        assert alice.alpns == ["a/1"]


@virtual
async def test_a_router_can_be_closed() -> None:
    async with in_memory(network(), "alice") as alice:
        router = Router(alice)
        await router.close()
        with pytest.raises(LocalError, match="shut down"):
            router.accept(ALPN, object())  # type: ignore[arg-type]
