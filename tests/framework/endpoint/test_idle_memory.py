"""What an idle connection costs in memory, measured over many, and printed."""

from __future__ import annotations

import asyncio
import gc
import itertools
import multiprocessing
import tracemalloc
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection as Pipe

import pytest
from endpoints import ALPN, two

from dialkey import Connection

MOST_BYTES = 100 * 1024
KEPT_BYTES = 2 * 1024
"""What may stay of each connection when it is over: counters, interned values."""


def resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def traced_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def quiet(*ends: Sequence[Connection | None]) -> None:
    """Wait until connection ids, MTU probes and acknowledgements have all been exchanged."""
    async with asyncio.timeout(20):
        for connection in itertools.chain(*ends):
            assert connection is not None
            core = connection._driver.core
            while core.handshake is not None or any(  # noqa: ASYNC110
                path.recovery.sent or path.ack_pending for path in core.paths.values()
            ):
                await asyncio.sleep(0.005)


async def measure(count: int, used: Callable[[], int]) -> tuple[float, float]:
    """Return what one end of a connection costs while it is idle, and when it is over."""
    async with two() as (alice, bob):
        here = [await alice.connect(bob.addr(), ALPN) for _ in range(10)]
        there = [await bob.accept() for _ in here]
        await quiet(here, there)
        before = used()
        for _ in range(count):
            here.append(await alice.connect(bob.addr(), ALPN))
            there.append(await bob.accept())
        await quiet(here, there)
        each = (used() - before) / (2 * count)
        for connection in here:
            connection.close()
        async with asyncio.timeout(20):
            for connection in (*here, *there):
                assert connection is not None
                await connection._driver.drained()
        here.clear()
        there.clear()
        return each, (used() - before) / (2 * count)


def fresh_process(pipe: Pipe, count: int) -> None:
    pipe.send(asyncio.run(measure(count, resident_bytes)))


def tell(capsys: pytest.CaptureFixture[str], what: str, each: float, left: float) -> None:
    with capsys.disabled():
        print(f"\n  idle connection, one end, {what}: {each / 1024:.1f} KiB, ", end="")
        print(f"{left / 1024:.1f} KiB when it is over", end=" ")


@pytest.mark.slow
def test_500_idle_connections_are_resident_in_little_memory(
    capsys: pytest.CaptureFixture[str],
) -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=fresh_process, args=(there, 500))
    process.start()
    there.close()  # so that its end is seen if it fails
    try:
        assert here.poll(100)
        each, left = here.recv()
    finally:
        process.kill()
        process.join()
    tell(capsys, "resident", each, left)
    assert each <= MOST_BYTES


def test_connections_that_are_over_leave_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    tracemalloc.start()
    try:
        each, left = asyncio.run(measure(40, traced_bytes))
    finally:
        tracemalloc.stop()
    tell(capsys, "Python objects", each, left)
    assert each <= MOST_BYTES
    assert left <= KEPT_BYTES
