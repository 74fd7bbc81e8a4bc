"""Measure whole commands beside Rust's `sendme`: one file, sent and received on this machine.

    python benchmarks/whole_files.py [--size 300] [--rounds 3] [--smoke]

From the start of the sending command to the end of the receiving one, so imports, tickets, start-up and
hashes count on both sides. The tools take turns, and ratios are taken within a round. What arrived is
compared with what was sent. Where `sendme` is not on PATH, dialkey is measured alone.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from measuring.report import Measurement, Series, Spread, Target, table

from dialkey import native

MB = 1_000_000
TIMEOUT_S = 120.0
TICKET = re.compile(r"\bblob[a-z2-7]{40,}")


def dialkey(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dialkey", *arguments]


def commands(tool: str, file: Path) -> tuple[list[str], list[str]]:
    """Return what sends a file, and what receives it once the ticket is added."""
    if tool == "dialkey":
        apart = ["--preset", "minimal"]
        send = ["send", *apart, "--bind", "127.0.0.1:0", str(file)]
        return dialkey(*send), dialkey("receive", *apart, "--yes")
    apart = ["--relay", "disabled", "--no-progress"]
    send = [tool, "send", *apart, "--ticket-type", "addresses", str(file)]
    return send, [tool, "receive", *apart]


def transfer(tool: str, file: Path, folder: Path) -> float:
    """Send and receive once; return the seconds.

    Raises:
        RuntimeError: a command failed, or something else arrived.
    """
    sending, receiving = commands(tool, file)
    target = Path(tempfile.mkdtemp(dir=folder))
    began = time.perf_counter()
    sender = subprocess.Popen(
        sending,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
    )
    # Whatever hangs is ended, so that reading ends.
    watch = threading.Timer(TIMEOUT_S, sender.kill)
    watch.start()
    try:
        ticket = _ticket(sender)
        done = subprocess.run(
            [*receiving, ticket],
            cwd=target,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        took = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(f"{tool} receive: {done.stderr.strip()[-300:]}")
        if not filecmp.cmp(file, target / file.name, shallow=False):
            raise RuntimeError(f"{tool}: something else arrived")
        return took
    finally:
        watch.cancel()
        sender.terminate()
        try:
            sender.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            sender.kill()
            sender.communicate()
        shutil.rmtree(target)


def _ticket(sender: subprocess.Popen[str]) -> str:
    assert sender.stdout is not None
    said = ""
    for line in sender.stdout:
        said += line
        found = TICKET.search(line)
        if found:
            return found[0]
    raise RuntimeError(f"no ticket: {said.strip()[-300:]}")


def main(arguments: list[str] | None = None) -> None:
    """Run and print; a missed target is not an error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=300, metavar="MB", help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--smoke", action="store_true", help="only see whether everything runs")
    parser.add_argument("--quick", action="store_true", help="a small file, once")
    options = parser.parse_args(arguments)
    size, rounds = options.size, options.rounds
    if options.smoke or options.quick:
        size, rounds = (1 if options.smoke else 40), 1
    tools = ["dialkey"]
    if shutil.which("sendme"):
        tools.append("sendme")
    else:
        print("sendme is not on PATH: dialkey is measured alone.")
    found = Measurement("whole", f"One file of {size} MB, whole commands", "MB/s")
    with tempfile.TemporaryDirectory(prefix="dialkey-benchmark-") as name:
        folder = Path(name)
        file = folder / "file"
        source = random.Random(1)
        with file.open("wb") as out:
            for _ in range(size):
                out.write(source.randbytes(MB))
            os.fsync(out.fileno())
        for number in range(rounds):
            for tool in tools if number % 2 == 0 else tools[::-1]:
                series = found.series.setdefault(tool, Series())
                try:
                    series.add(size / transfer(tool, file, folder), None)
                except (RuntimeError, subprocess.TimeoutExpired) as exc:
                    series.fail(str(exc))
    print(table(found))
    lead = Spread.of(found.ratios("dialkey", "sendme"))
    wanted = 0.5 if native.part() is None else 1.0
    print(f"\nTargets, native part: {native.describe()}")
    print(f"  {Target('one file, whole commands, beside sendme', lead and lead.median, wanted)}")


if __name__ == "__main__":
    main()
