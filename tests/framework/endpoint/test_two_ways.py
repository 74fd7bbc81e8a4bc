"""Two ways between two endpoints: the better one is used, and a dead one is left at once."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator

import pytest
from endpoints import ALPN, connect, in_memory, network, seconds, virtual

from dialkey import Connection
from dialkey.identity import IpAddr
from dialkey.testing import Conditions, Link, MemoryNetwork
from dialkey.testing.network import address_of

HERE, THERE = IpAddr.parse("10.0.0.1:1"), IpAddr.parse("10.0.0.2:1")
MIB = 1 << 20


@contextlib.asynccontextmanager
async def two_ways(
    net: MemoryNetwork, fast_s: float = 0.01, slow_s: float = 0.05
) -> AsyncIterator[tuple[Connection, Connection, Link, Link]]:
    """A connection between endpoints with an IP way and another, and the links of both."""
    ip, other = net.link(HERE, THERE), net.link("alice", "bob")
    ip.set(Conditions(delay_s=fast_s))
    other.set(Conditions(delay_s=slow_s))
    async with (
        in_memory(net, HERE, "alice") as alice,
        in_memory(net, THERE, "bob", alpns=[ALPN]) as bob,
    ):
        here, there = await connect(alice, bob)
        yield here, there, ip, other


async def transfer(here: Connection, there: Connection, size: int, seed: int = 0) -> float:
    """Send random data, check it, and return the longest time without any of it."""
    data = random.Random(seed).randbytes(size)

    async def write() -> None:
        send = await here.open_uni()
        await send.write(data, finish=True)

    writing = asyncio.create_task(write())
    digest, last, longest = hashlib.sha256(), seconds(), 0.0
    async for chunk in await there.accept_uni():
        digest.update(chunk)
        longest = max(longest, seconds() - last)
        last = seconds()
    await writing
    assert digest.digest() == hashlib.sha256(data).digest()
    return longest


@virtual
async def test_the_dial_takes_the_faster_way() -> None:
    async with two_ways(network()) as (here, there, _, _):
        assert here.paths()[0].remote == THERE
        assert there.paths()[0].remote == HERE
        assert await transfer(here, there, MIB) < 0.2


@pytest.mark.parametrize("upwards", [True, False])
@pytest.mark.parametrize("after_s", [0.05, 0.3, 1.0])
def test_a_way_that_dies_in_the_middle_is_left(upwards: bool, after_s: float) -> None:
    @virtual
    async def scenario() -> None:
        async with two_ways(network()) as (here, there, ip, _):
            await asyncio.sleep(1)
            sender, receiver = (here, there) if upwards else (there, here)
            ip.set(Conditions(delay_s=0.01, rate_bytes_s=4_000_000, queue_bytes=100_000))

            async def cut() -> None:
                await asyncio.sleep(after_s)
                ip.down()

            cutting = asyncio.create_task(cut())
            longest = await transfer(sender, receiver, 8 * MIB)
            await cutting
            assert longest < 4, "long before any idle timeout"
            assert not here.is_closed
            remotes = {path.remote for path in here.paths() if path.is_selected}
            assert remotes == {address_of("bob")}

    scenario()


@virtual
async def test_it_comes_back_and_nothing_is_lost() -> None:
    async with two_ways(network()) as (here, there, ip, other):
        for round_number in range(4):
            dead, alive = (ip, other) if round_number % 2 == 0 else (other, ip)
            alive.up()
            await asyncio.sleep(30)
            dead.down()
            assert await transfer(here, there, MIB, seed=round_number) < 10
            assert await transfer(there, here, MIB, seed=round_number) < 10
        assert not here.is_closed


@virtual
async def test_both_ways_die_and_one_comes_back_in_time() -> None:
    async with two_ways(network()) as (here, there, ip, other):
        await asyncio.sleep(2)
        ip.down()
        other.down()
        moving = asyncio.create_task(transfer(here, there, MIB))
        await asyncio.sleep(15)
        assert not here.is_closed
        other.up()
        assert await moving < 25
        assert not here.is_closed


@virtual
async def test_both_ways_die() -> None:
    async with two_ways(network()) as (here, there, ip, other):
        await asyncio.sleep(2)
        ip.down()
        other.down()
        begin = seconds()
        await asyncio.gather(here.closed(), there.closed())
        assert 20 < seconds() - begin < 40


@pytest.mark.parametrize("seed", range(3))
def test_two_bad_ways_and_one_dies(seed: int) -> None:
    @virtual
    async def scenario() -> None:
        net = network(seed)
        async with two_ways(net) as (here, there, ip, other):
            for link in (ip, other):
                link.set(Conditions(delay_s=0.02, loss=0.05, jitter_s=0.01))
            await asyncio.sleep(3)
            moving = asyncio.create_task(transfer(here, there, MIB, seed))
            await asyncio.sleep(0.5)
            ip.down()
            await moving
            assert await transfer(there, here, MIB, seed) < 10

    scenario()
