"""The link of the lab against its own specification: delay, loss, rate, order and cuts, as measured."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from lab import Lab, why_not

REASON = why_not()
pytestmark = [pytest.mark.lab, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
s.bind(("10.66.0.2", 7))
print("ready", flush=True)
while True:
    data, where = s.recvfrom(2048)
    s.sendto(data, where)
"""
ASK = """
import json, socket, sys, time
count, size, gap = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
s.setblocking(False)
sent, came, order, at = {}, {}, [], []
start = time.monotonic()
n = 0
deadline = None
while deadline is None or time.monotonic() < deadline:
    now = time.monotonic()
    while n < count and now >= start + n * gap:
        sent[n] = now
        s.sendto(n.to_bytes(4, "big") + bytes(size - 4), ("10.66.0.2", 7))
        n += 1
    if n == count and deadline is None:
        deadline = now + 2
    try:
        number = int.from_bytes(s.recv(2048)[:4], "big")
    except BlockingIOError:
        time.sleep(0.0002)
        continue
    now = time.monotonic()
    came.setdefault(number, now - sent[number])
    order.append(number)
    at.append(now)
    if len(came) == count:
        break
print(json.dumps({"trips": list(came.values()), "order": order, "at": at}))
"""


class Wire:
    """A tunnel between two hosts, and what tests do with it."""

    def __init__(self, lab: Lab, process: asyncio.subprocess.Process, one: str) -> None:
        self.lab = lab
        self.process = process
        self.one = one

    async def tell(self, order: dict[str, object]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        return json.loads(await asyncio.wait_for(self.process.stdout.readline(), 20))

    async def ask(self, count: int, size: int, gap_s: float) -> Any:
        """Send datagrams to the echo, and return what came back."""
        found = await asyncio.to_thread(
            subprocess.run,
            [
                *("ip", "netns", "exec", self.one, sys.executable, "-c", ASK),
                *map(str, (count, size, gap_s)),
            ],
            capture_output=True,
            check=True,
            timeout=60,
        )
        return json.loads(found.stdout)


@contextlib.asynccontextmanager
async def wire(*options: str) -> AsyncIterator[Wire]:
    async with Lab() as lab:
        one, other = lab.host("one"), lab.host("other")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dialkey.testing.tunnel", one.space, other.space, *options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        up = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
        assert up["event"] == "up"
        echo = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", other.space, sys.executable, "-c", ECHO),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert echo.stdout is not None
            await asyncio.wait_for(echo.stdout.readline(), 20)
            yield Wire(lab, process, one.space)
        finally:
            echo.kill()
            await echo.wait()
            assert process.stdin is not None
            process.stdin.close()
            assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_the_delay_is_what_was_asked_for() -> None:
    async with wire("--delay", "40") as link:
        found = await link.ask(150, 100, 0.005)
        assert len(found["trips"]) == 150
        # The median, because a busy machine wakes any process late now and then, never early.
        assert statistics.median(found["trips"]) == pytest.approx(0.080, rel=0.05)
        assert min(found["trips"]) >= 0.080


async def test_the_loss_is_what_was_asked_for() -> None:
    async with wire("--loss", "0.2", "--seed", "5") as link:
        await link.ask(4000, 60, 0.0003)
        stats = await link.tell({"stats": True})
        for direction in (stats["there"], stats["back"]):
            assert direction["lost"] / direction["sent"] == pytest.approx(0.2, abs=0.02)
            assert direction["delivered"] == direction["sent"] - direction["lost"]


async def test_the_rate_is_what_was_asked_for() -> None:
    """Three times as much is offered as the link carries; the rest finds no room in its queue."""
    # Half a second of packets waits in the queue, so the link does not fall idle when a busy machine
    # wakes somebody late.
    async with wire("--rate", "8", "--queue", "500") as link:
        found = await link.ask(3000, 972, 0.0003)
        at, trips = found["at"], found["trips"]
        half = len(at) // 2
        # Medians, because anybody is woken late now and then.
        step = statistics.median(
            later - earlier for earlier, later in zip(at, at[half:], strict=False)
        )
        assert half * 1000 * 8 / step == pytest.approx(8e6, rel=0.05)
        assert len(at) < 3000
        # A full queue there; back there is none, for it comes at the rate.
        assert statistics.median(trips[-len(trips) // 3 :]) == pytest.approx(0.5, abs=0.05)


async def test_jitter_reorders_unless_it_must_not() -> None:
    async with wire("--delay", "5", "--jitter", "20") as link:
        order = (await link.ask(300, 60, 0.001))["order"]
        assert order != sorted(order)
    async with wire("--delay", "5", "--jitter", "20", "--in-order") as link:
        order = (await link.ask(300, 60, 0.001))["order"]
        assert order == sorted(order)


async def test_a_cut_is_silent_and_ends() -> None:
    async with wire("--delay", "5") as link:
        assert await link.tell({"up": False}) == {"event": "changed"}
        assert (await link.ask(10, 60, 0.001))["trips"] == []
        await link.tell({"up": True})
        assert len((await link.ask(10, 60, 0.001))["trips"]) == 10


async def test_directions_change_by_themselves() -> None:
    async with wire() as link:
        await link.tell({"back": {"loss": 1.0}})
        assert (await link.ask(10, 60, 0.001))["trips"] == []
        stats = await link.tell({"stats": True})
        assert stats["there"]["lost"] == 0
        assert stats["back"]["lost"] >= 10


async def test_a_wrong_order_changes_nothing_and_says_so() -> None:
    async with wire() as link:
        for order in ({"sideways": 1}, {"there": {"loss": 7}}, {"there": {"speed": 7}}, {"up": 1}):
            answer = await link.tell(dict(order))
            assert answer["event"] == "error"
            assert answer["message"]
        assert len((await link.ask(10, 60, 0.001))["trips"]) == 10


def test_a_namespace_that_is_not_there_is_a_sentence() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "dialkey.testing.tunnel", "dk-none-a", "dk-none-b"],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 1
    assert "dk-none-a" in found.stderr
    assert "Traceback" not in found.stderr
