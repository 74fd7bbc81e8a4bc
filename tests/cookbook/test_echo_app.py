"""``dialkey echo`` in processes of its own, installed from its wheel."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

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
