"""How long data stops when the path in use goes dark without a word: a second or so, not the idle time.

Many connections in virtual time: near and far peers, either side sending, the next way a relay that is
open already or another address that must be opened first, one direction dark or both.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
from collections.abc import Sequence

import pytest
from endpoints import ALPN, connect, virtual
from two_ways import HERE, THERE, World

from dialkey import Connection
from dialkey.testing import Conditions, Link


async def longest_gap(
    sender: Connection, receiver: Connection, seconds: float, every_s: float = 0.02
) -> float:
    """Send a little again and again; return the longest time in which nothing arrived."""
    loop = asyncio.get_running_loop()
    count = int(seconds / every_s)
    sent = bytearray()

    async def write() -> None:
        send = await sender.open_uni()
        for number in range(count):
            piece = number.to_bytes(4, "big") * 100
            sent.extend(piece)
            await send.write(piece)
            await asyncio.sleep(every_s)
        await send.finish()

    writing = asyncio.create_task(write())
    got, last, longest = bytearray(), loop.time(), 0.0
    async for chunk in await receiver.accept_uni():
        got += chunk
        longest = max(longest, loop.time() - last)
        last = loop.time()
    await writing
    assert got == sent
    return longest


def dark_gap(
    seed: int, *, relayed: bool, delay_s: float, upwards: bool, direction: str, loss: float = 0.0
) -> float:
    """Return how long data stopped in one connection whose first way went dark."""
    result = 0.0

    @virtual
    async def scenario() -> None:
        nonlocal result
        world = World(seed, relayed=relayed, delay_s=delay_s)
        rng = random.Random(seed)
        async with (
            world.bind(HERE, "alice") as alice,
            world.bind(THERE, "bob", alpns=[ALPN]) as bob,
        ):
            here, there = await connect(alice, bob)
            await asyncio.sleep(3 + rng.random() * 10)
            assert here.paths()[0].remote == THERE
            for link in (world.first, world.second):
                conditions = Conditions(delay_s=delay_s, loss=loss, jitter_s=delay_s / 4)
                link.set(conditions)
            sender, receiver = (here, there) if upwards else (there, here)

            async def cut() -> None:
                await asyncio.sleep(0.5 + rng.random() * 2)
                if direction != "down":
                    world.net.one_way(HERE, THERE).down()
                if direction != "up":
                    world.net.one_way(THERE, HERE).down()

            cutting = asyncio.create_task(cut())
            result = await longest_gap(sender, receiver, 10.0)
            await cutting
            assert not here.is_closed
            assert not there.is_closed

    scenario()
    return result


@pytest.mark.parametrize("relayed", [True, False], ids=["to a relay", "to another address"])
def test_data_flows_again_within_two_seconds_and_five_at_worst(relayed: bool) -> None:
    kinds = itertools.product([0.005, 0.03, 0.15], [True, False], ["both", "up", "down"])
    gaps = sorted(
        dark_gap(
            seed,
            relayed=relayed,
            delay_s=delay_s,
            upwards=upwards,
            direction=direction,
            loss=0.02 * (seed % 2),
        )
        for seed, (delay_s, upwards, direction) in enumerate(itertools.chain(*[list(kinds)] * 2))
    )
    median, worst = statistics.median(gaps), gaps[-1]
    print(f"{len(gaps)} cuts: median {median:.2f} s, worst {worst:.2f} s; {_histogram(gaps)}")
    assert median <= 2.0
    assert worst <= 5.0


def _histogram(gaps: Sequence[float]) -> str:
    steps = [0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 100.0]
    counts = [
        sum(low < gap <= high for gap in gaps) for low, high in itertools.pairwise([0, *steps])
    ]
    return ", ".join(f"<={high:g} s: {n}" for high, n in zip(steps, counts, strict=True) if n)


@pytest.mark.parametrize("relayed", [True, False], ids=["with a relay", "two addresses"])
@pytest.mark.parametrize("seed", range(3))
def test_ways_come_and_go_and_data_flows(seed: int, relayed: bool) -> None:
    """One of two ways works at any time, the other is dark in one direction or both, or bad."""

    @virtual
    async def scenario() -> None:
        world = World(seed, relayed=relayed, delay_s=0.02)
        rng = random.Random(seed)
        async with (
            world.bind(HERE, "alice") as alice,
            world.bind(THERE, "bob", alpns=[ALPN]) as bob,
        ):
            here, there = await connect(alice, bob)
            await asyncio.sleep(5)

            async def disturb() -> None:
                while True:
                    bad, good = rng.sample([world.first, world.second], 2)
                    good.up()
                    good.set(Conditions(delay_s=0.02))
                    # The good one first: both are never bad for longer than it takes to notice.
                    await asyncio.sleep(3)
                    conditions = Conditions(delay_s=rng.choice([0.02, 0.2]), loss=rng.random() / 4)
                    bad.set(conditions)
                    rng.choice([bad, *(Link(each) for each in bad._channels)]).down()
                    await asyncio.sleep(rng.random() * 20)

            disturbing = asyncio.create_task(disturb())
            gaps = await asyncio.gather(
                longest_gap(here, there, 150.0, 0.1), longest_gap(there, here, 150.0, 0.1)
            )
            disturbing.cancel()
            await asyncio.wait([disturbing])
            print(f"longest time without data: {gaps[0]:.2f} s up, {gaps[1]:.2f} s down")
            assert max(gaps) < 6
            for side in (here, there):
                assert not side.is_closed
                core = side._driver.core
                assert core.paths.multipath is not None
                assert len(core.paths) <= 10
                assert len(core.paths.multipath.abandoned) <= 9

    scenario()
