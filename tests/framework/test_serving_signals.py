"""Programs that wait in `Router.serve` end in order when a signal asks them to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, signal, sys
from dialkey import Endpoint, Router

class Quiet:
    async def accept(self, connection):
        pass
    async def shutdown(self):
        print("shut down", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

async def one():
    async with (
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as endpoint,
        Router(endpoint) as router,
    ):
        router.accept("quiet/1", Quiet())
        serving = asyncio.create_task(router.serve())
        await asyncio.sleep(0)  # it waits for signals now
        print("ready", flush=True)
        await serving
    print("closed", flush=True)

async def main():
    await asyncio.gather(*[one() for _ in range(ROUTERS)])

BEFORE
asyncio.run(main())
print("end", flush=True)
"""


def started(
    *before: str, routers: int = 1, code: str = "", program: str = PROGRAM
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [
            *before,
            sys.executable,
            "-c",
            program.replace("ROUTERS", str(routers)).replace("BEFORE", code),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    for _ in range(routers):
        assert line(process) == "ready"
    return process


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def rest(process: subprocess.Popen[str], typed: str = "\n\n") -> tuple[int, list[str]]:
    with process:
        out, _ = process.communicate(typed, timeout=60)
    return process.returncode, out.split("\n")[:-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("routers", [1, 2])
def test_a_signal_ends_serving_in_order(number: signal.Signals, routers: int) -> None:
    process = started(routers=routers)
    process.send_signal(number)
    code, lines = rest(process)
    assert code == 0
    assert sorted(lines) == sorted([*["shut down", "closed"] * routers, "end"])
    assert lines[-1] == "end"


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_hangup_cuts_nothing_short(first: signal.Signals) -> None:
    process = started()
    process.send_signal(first)
    assert line(process) == "shut down"
    process.send_signal(signal.SIGHUP)
    assert rest(process) == (0, ["closed", "end"])


def test_a_second_sigterm_does_not_wait() -> None:
    process = started()
    process.send_signal(signal.SIGTERM)
    assert line(process) == "shut down"
    process.send_signal(signal.SIGTERM)
    with process:
        assert process.wait(timeout=60) == -signal.SIGTERM


def test_hangup_is_ignored_where_it_was_ignored_at_the_start() -> None:
    process = started("nohup")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert rest(process) == (0, ["shut down", "closed", "end"])


def test_a_handler_of_the_application_is_left_alone() -> None:
    process = started(code="signal.signal(signal.SIGTERM, lambda *_: print('mine', flush=True))")
    process.send_signal(signal.SIGTERM)
    assert line(process) == "mine"
    process.send_signal(signal.SIGHUP)
    assert rest(process) == (0, ["shut down", "closed", "end"])


def test_signals_may_be_left_alone_altogether() -> None:
    process = started(program=PROGRAM.replace("router.serve()", "router.serve(signals=False)"))
    process.send_signal(signal.SIGTERM)
    with process:
        assert process.wait(timeout=60) == -signal.SIGTERM


def test_serving_in_another_thread_needs_no_signals(tmp_path: Path) -> None:
    threaded = PROGRAM.replace(
        "asyncio.run(main())",
        "import threading; t = threading.Thread(target=lambda: asyncio.run(main()), daemon=True);"
        " t.start(); t.join()",
    )
    process = started(program=threaded)
    process.send_signal(signal.SIGTERM)
    with process:
        assert process.wait(timeout=60) == -signal.SIGTERM
