"""Real iroh endpoints in processes of their own, and places without a way between them."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import attrs
import pytest

AGENT = Path(__file__).parents[1] / "support" / "relay_wheel_agent.py"


@attrs.define
class Peer:
    """A process that speaks JSON lines."""

    process: asyncio.subprocess.Process

    async def line(self, timeout: float = 30.0) -> dict[str, object]:
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout):
            line = await self.process.stdout.readline()
        assert line, "the process ended"
        return json.loads(line)

    async def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await self.process.communicate()
        except TimeoutError:
            self.process.kill()
            await self.process.communicate()


@pytest.fixture
async def wheel() -> AsyncIterator[Callable[..., object]]:
    """Start real iroh endpoints: ``await wheel("--serve", …, prefix=[…])``."""
    peers: list[Peer] = []

    async def start(*arguments: str, prefix: tuple[str, ...] = ()) -> Peer:
        process = await asyncio.create_subprocess_exec(
            *prefix,
            sys.executable,
            str(AGENT),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        peers.append(Peer(process))
        return peers[-1]

    yield start
    await asyncio.gather(*(peer.stop() for peer in peers))


_NUMBERS = itertools.count()


@attrs.frozen
class Islands:
    """Two network namespaces that reach this machine and not each other."""

    gateway: str
    names: tuple[str, str]

    def enter(self, number: int) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.names[number])


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def islands() -> Iterator[Islands]:
    """Make two namespaces, each with a cable to this one."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    tag = f"dkr{os.getpid() % 100_000}x{next(_NUMBERS) % 100}"
    names = (f"{tag}a", f"{tag}b")
    try:
        _ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this kernel gives no network namespaces: {error.stderr.decode().strip()}")
    # Whoever runs the tests beside us, in this checkout or another, has other addresses.
    place = f"10.{208 + os.getpid() // 256 % 8}.{os.getpid() % 256}"
    gateway = f"{place}.1"
    try:
        _ip("netns", "add", names[1])
        _ip("address", "add", f"{gateway}/32", "dev", "lo")
        for number, name in enumerate(names, 1):
            inside, outside = f"{tag}i{number}", f"{tag}o{number}"
            _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
            _ip("address", "add", f"{place}.{4 * number + 1}/30", "dev", outside)
            _ip("link", "set", outside, "up")
            _ip("-n", name, "address", "add", f"{place}.{4 * number + 2}/30", "dev", inside)
            _ip("-n", name, "link", "set", inside, "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "route", "add", f"{gateway}/32", "via", f"{place}.{4 * number + 1}")
        yield Islands(gateway, names)
    finally:
        subprocess.run(["ip", "address", "del", f"{gateway}/32", "dev", "lo"], check=False)
        # The kernel takes its time over namespaces, and their cables would stay until then.
        for number in (1, 2):
            link = ["ip", "link", "del", f"{tag}o{number}"]
            subprocess.run(link, check=False, capture_output=True)
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
