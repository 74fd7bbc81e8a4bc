"""Every process that a test, a benchmark or a command starts ends with the one that started it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open") or not Path("/proc/self/task").is_dir(), reason="needs Linux"
)

A_TEST = """
import asyncio, multiprocessing, subprocess, time

async def test_that_never_ends():
    by_hand = subprocess.Popen(["sleep", "600"])
    of_loop = await asyncio.create_subprocess_exec("sleep", "600")
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    process.start()
    print("pids", by_hand.pid, of_loop.pid, process.pid, flush=True)
    time.sleep(600)
"""


def descendants(pid: int) -> set[int]:
    """All processes below one."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            children = [int(each) for each in (task / "children").read_text().split()]
        except FileNotFoundError:
            continue  # a thread that has just ended
        for child in children:
            found |= {child, *descendants(child)}
    return found


def watch(pids: set[int]) -> dict[int, int]:
    return {pid: os.pidfd_open(pid) for pid in pids}


def end_of_all(watched: dict[int, int], within_s: float = 60.0) -> bool:
    deadline = time.monotonic() + within_s
    try:
        for descriptor in watched.values():
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return False
        return True
    finally:
        for descriptor in watched.values():
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            except ProcessLookupError:
                pass  # as it should be
        for descriptor in watched.values():
            os.close(descriptor)


def until_it_has(process: subprocess.Popen[str], count: int) -> set[int]:
    """Wait until so many processes are below one that stay."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended too early for this test"
        found = descendants(process.pid)
        if len(found) >= count:
            return found
        time.sleep(0.005)
    raise AssertionError(f"it never had {count} processes")


def until_bound(pids: set[int]) -> None:
    """Wait until `setpriv` has done its work in each process and become the program asked for."""
    deadline = time.monotonic() + 60
    while any(b"setpriv" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
        assert time.monotonic() < deadline, "setpriv does not end"
        time.sleep(0.005)


def test_what_a_test_starts_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(A_TEST)
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pytest",
            "-s",
            "-q",
            "-p",
            "conftest",
            "-p",
            "no:cacheprovider",
            "-o",
            "asyncio_mode=auto",
            str(tmp_path / "test_one.py"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        pids = next(line.split()[1:] for line in process.stdout if line.startswith("pids"))
        found = {int(pid) for pid in pids}
        until_bound(found)
        watched = watch(found)
        process.kill()
    assert len(watched) == 3
    assert end_of_all(watched)


@pytest.mark.parametrize(
    ("script", "count"),
    [
        ("transport.py --smoke --stacks dialkey", 2),
        ("relay.py --relays dialkey --pairs 1 --rounds 3 --json", 1),
        ("gossip.py --jobs 2 --json", 2),
        ("rpc.py", 4),
    ],
    ids=lambda value: str(value).split()[0],
)
def test_what_a_benchmark_starts_ends_with_it(script: str, count: int) -> None:
    name, *arguments = script.split()
    with subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks" / name), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        watched = watch(until_it_has(process, count))
        process.kill()
    assert end_of_all(watched)
