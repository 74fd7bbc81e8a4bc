"""``dialkey echo`` in processes of its own, installed from its wheel."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys

import pytest
from dialkey_echo.plugin import _ask
from dialkey_echo.protocol import ALPN

from dialkey import Connection, Endpoint, Router
from dialkey.cli import Options, Output
from dialkey.testing import MemoryNetwork, in_virtual_time

LARGE = """
import asyncio, os
from dialkey import Endpoint, Router
from dialkey_echo import ALPN, echo

async def main():
    async with (
        Endpoint.bind(bind="127.0.0.1:0") as here,
        Router(here) as router,
        Endpoint.bind(bind="127.0.0.1:0") as there,
    ):
        print("served unasked:", router.alpns(), "then:", router.add_installed("echo"))
        serving = asyncio.create_task(router.serve())
        async with await there.connect(here.addr(), ALPN) as connection:
            sent = [os.urandom(size) for size in (0, 1, 65_536, 4_000_000)]
            assert await asyncio.gather(*(echo(connection, data) for data in sent)) == sent
        print("failed:", router.stats().failed)
        serving.cancel()

asyncio.run(main())
"""


class Silent:
    """Accepts streams, and sends nothing back, or a byte now and then."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s

    async def accept(self, connection: Connection) -> None:
        send, _ = await connection.accept_bi()
        while True:
            await asyncio.sleep(self._interval_s)
            await send.write(b"d")


@pytest.mark.parametrize("interval_s", [5.0, 1e6])
@in_virtual_time
async def test_a_peer_that_says_too_little_is_given_up(interval_s: float) -> None:
    network = MemoryNetwork(seed=1)

    class InMemory(Options):
        async def _open_endpoint(self, plugins: tuple[object, ...]) -> Endpoint:
            return await Endpoint.bind(transports=[network.transport("b")], entry_points=False)

    async with (
        Endpoint.bind(transports=[network.transport("a")], entry_points=False) as a,
        Router(a, grace_s=0) as router,
    ):
        router.accept(ALPN, Silent(interval_s))
        with pytest.raises(TimeoutError, match="no answer within 10 s"):
            await _ask(Output(), InMemory(), str(a.ticket()), "dial keys")
        assert 10 <= asyncio.get_running_loop().time() < 15


def dialkey(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dialkey", *arguments]


def test_one_answers_and_one_asks(environment: dict[str, str]) -> None:
    with subprocess.Popen(
        dialkey("echo", "--listen", "--bind", "127.0.0.1:0"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as listening:
        try:
            assert listening.stdout is not None
            ticket = listening.stdout.readline().strip()
            asked = subprocess.run(
                dialkey("echo", ticket, "dial keys", "--json"),
                env=environment,
                capture_output=True,
                text=True,
                timeout=30,
            )
            assert asked.returncode == 0, asked.stderr
            assert json.loads(asked.stdout)["text"] == "dial keys"
            listening.send_signal(signal.SIGTERM)
            assert listening.wait(timeout=20) == 143
        finally:
            listening.kill()


def test_many_sizes_at_once_on_one_connection(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LARGE], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["served unasked: () then: ('echo',)", "failed: 0"]
