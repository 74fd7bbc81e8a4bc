"""Processes that a command starts end with it, however it ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LINUX = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits with pidfd_open of Linux")

PARENT = """
import asyncio, sys
from dialkey.cli import child

async def main():
    async with child("ping", "--listen", "--bind", "127.0.0.1:0") as process:
        ticket = (await process.stdout.readline()).decode()
        assert ticket.startswith("endpoint"), ticket
        print(process.pid, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
    print(process.returncode, flush=True)

asyncio.run(main())
"""


def started(*command: str, tmp: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp)},
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def wait_for_end(descriptor: int) -> bool:
    """Wait for the end of a process that is not ours; say whether it came."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    try:
        return bool(poll.poll(60_000))
    finally:
        os.close(descriptor)


def test_a_child_is_asked_to_end_with_the_context(tmp_path: Path) -> None:
    with started("-c", PARENT, tmp=tmp_path) as process:
        line(process)
        out, err = process.communicate("\n", timeout=60)
    assert out == "143\n"
    assert "Traceback" not in err


@LINUX
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    with started("-c", PARENT, tmp=tmp_path) as process:
        descriptor = os.pidfd_open(int(line(process)))
        process.send_signal(number)
        process.wait(60)
    assert wait_for_end(descriptor)


@LINUX
def test_a_killed_demo_leaves_no_process_and_the_next_start_no_folder(tmp_path: Path) -> None:
    demo = ("-m", "dialkey", "demo", "--json", "--size")
    with started(*demo, "200", tmp=tmp_path) as process:
        line(process)  # the first progress: relay and sender are at work
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        descriptors = [os.pidfd_open(int(pid)) for pid in children]
        process.kill()
        process.wait(60)
    assert len(descriptors) == 2
    assert all(wait_for_end(each) for each in descriptors)
    assert any(tmp_path.iterdir()), "the test says nothing if the demo made no folder there"
    with started(*demo, "0.1", tmp=tmp_path) as process:
        _, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (0, "")
    assert list(tmp_path.iterdir()) == []
