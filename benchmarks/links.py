"""Measure dialkey over links with delay, loss, jitter and a rate, beside TCP and sendme.

    sudo python benchmarks/links.py [--rounds N] [--links WORD] [--json] [--svg FILE]

Each link joins two network namespaces (`dialkey.testing.tunnel`), so this needs root and iproute2. Over
each link the same bytes go, in turn:

    tcp      a plain socket, BBR where the kernel has it, from connect to the last byte
    bare     one stream of dialkey, from the dial to the last byte
    sendme   `sendme receive`, the whole command; where sendme (Rust, iroh-blobs) is on PATH
    dialkey  `dialkey receive`, the whole command

Figures are Mbit/s of payload, medians of the rounds; the ratios are medians of the ratios in one round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Final

import attrs

PATIENCE_S: Final = 120.0
STACKS: Final = ("tcp", "bare", "sendme", "dialkey")
TARGETS: Final = (
    ("bare", "tcp", 0.9),
    ("dialkey", "sendme", 1.0),
    ("dialkey", "tcp", 0.75),
)
BIN: Final = Path(sys.executable).parent


@attrs.frozen
class Link:
    """Delay, jitter and queue in milliseconds (delay each way), rate in Mbit/s."""

    name: str
    delay: float
    rate: float
    queue: float = 100
    loss: float = 0.0
    jitter: float = 0.0
    in_order: bool = True
    mib: int = 20

    def options(self) -> list[str]:
        found = [f"--delay={self.delay}", f"--rate={self.rate}", f"--queue={self.queue}"]
        found += [f"--loss={self.loss}", f"--jitter={self.jitter}"]
        return [*found, "--in-order"] if self.in_order else found


LINKS: Final = (
    Link("10 ms", 10, 100, mib=40),
    Link("50 ms", 50, 100, mib=40),
    Link("50 ms, 0.1 % loss", 50, 100, loss=0.001, mib=40),
    Link("100 ms", 100, 50),
    Link("25 ms, 1 % loss", 25, 50, loss=0.01),
    Link("25 ms, 10 ms jitter in order", 25, 50, jitter=10),
    Link("25 ms, 10 ms jitter that reorders", 25, 50, jitter=10, in_order=False),
    Link("30 ms, queue of 500 ms", 30, 20, queue=500),
)

TCP_SEND = """
import socket, sys
s = socket.create_server(("10.66.0.1", 5000))
try:
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
except OSError:
    pass
print("ready", flush=True)
c, _ = s.accept()
with open(sys.argv[1], "rb") as file:
    c.sendall(file.read())
c.close()
"""
TCP_RECEIVE = """
import socket, time
start = time.perf_counter()
s = socket.create_connection(("10.66.0.1", 5000))
n = 0
while data := s.recv(1 << 20):
    n += len(data)
print(n, time.perf_counter() - start)
"""
BARE_SEND = """
import asyncio, sys
from dialkey import Endpoint

async def main():
    data = open(sys.argv[1], "rb").read()
    async with Endpoint.bind(bind="10.66.0.1:0", alpns=["bulk/1"]) as endpoint:
        print(endpoint.ticket(), flush=True)
        connection = await endpoint.accept()
        send, recv = await connection.accept_bi()
        await recv.read_to_end(limit=16)
        await send.write(data, finish=True)
        await connection.closed()

asyncio.run(main())
"""
BARE_RECEIVE = """
import asyncio, sys, time
from dialkey import Endpoint

async def main():
    async with Endpoint.bind(bind="10.66.0.2:0") as endpoint:
        start = time.perf_counter()
        connection = await endpoint.connect(sys.argv[1], "bulk/1")
        send, recv = await connection.open_bi()
        await send.write(b"go", finish=True)
        n = 0
        while data := await recv.read(1 << 20):
            n += len(data)
        print(n, time.perf_counter() - start, flush=True)
        connection.close()

asyncio.run(main())
"""


class Failed(Exception):
    """A stack did not do it."""


@attrs.define
class Lab:
    """Two namespaces with a link between them, and a file to send."""

    a: str
    b: str
    file: Path
    folder: Path

    def start(self, space: str, *command: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", space, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=cwd or self.folder,
            start_new_session=True,
        )

    def run(self, space: str, *command: str, cwd: Path | None = None) -> str:
        try:
            done = subprocess.run(
                ["ip", "netns", "exec", space, *command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                cwd=cwd or self.folder,
                timeout=PATIENCE_S,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"took more than {PATIENCE_S:.0f} s") from None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise Failed(lines[-1])
        return done.stdout


def stop(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def lab_of(link: Link) -> Iterator[Lab]:
    a, b = f"dkl{os.getpid()}a", f"dkl{os.getpid()}b"
    with (
        tempfile.TemporaryDirectory(prefix="dialkey-links-") as folder,
        contextlib.ExitStack() as end,
    ):
        for space in (a, b):
            subprocess.run(["ip", "netns", "add", space], check=True)
            end.callback(subprocess.run, ["ip", "netns", "del", space], check=False)
        tunnel = subprocess.Popen(
            [sys.executable, "-m", "dialkey.testing.tunnel", a, b, *link.options()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        end.callback(tunnel.wait)
        end.callback(tunnel.terminate)
        assert tunnel.stdout is not None
        if "up" not in tunnel.stdout.readline():
            raise SystemExit("the link did not come up; is this root?")
        file = Path(folder) / "bytes.bin"
        file.write_bytes(os.urandom(link.mib << 20))
        yield Lab(a, b, file, Path(folder))


def _timed_pair(lab: Lab, send: str, receive: str) -> float:
    sender = lab.start(lab.a, sys.executable, "-c", send, str(lab.file))
    try:
        assert sender.stdout is not None
        line = sender.stdout.readline().strip()
        if not line:
            raise Failed("the sender did not start")
        n, seconds = lab.run(lab.b, sys.executable, "-c", receive, line).split()
    finally:
        stop(sender)
    if int(n) != lab.file.stat().st_size:
        raise Failed(f"only {n} bytes arrived")
    return float(seconds)


def tcp(lab: Lab) -> float:
    return _timed_pair(lab, TCP_SEND, TCP_RECEIVE)


def bare(lab: Lab) -> float:
    return _timed_pair(lab, BARE_SEND, BARE_RECEIVE)


def _command(lab: Lab, send: list[str], receive: list[str], pattern: str) -> float:
    there = lab.folder / "there"
    here = lab.folder / "here"
    for folder in (there, here):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    sender = lab.start(lab.a, *send, cwd=there)
    try:
        assert sender.stdout is not None
        ticket = None
        while ticket is None and (line := sender.stdout.readline()):
            ticket = re.search(pattern, line)
        if ticket is None:
            raise Failed("the sender printed no ticket")
        start = time.perf_counter()
        lab.run(lab.b, *receive, ticket.group(), cwd=here)
        seconds = time.perf_counter() - start
    finally:
        stop(sender)
    if not any(path.stat().st_size == lab.file.stat().st_size for path in here.rglob("*.bin")):
        raise Failed("the file did not arrive")
    return seconds


def sendme(lab: Lab) -> float:
    quiet = ["--relay", "disabled", "--no-progress"]
    send = ["sendme", "send", *quiet, "--ticket-type", "addresses", str(lab.file)]
    return _command(lab, send, ["sendme", "receive", *quiet], r"blob[a-z2-7]{50,}")


def dialkey(lab: Lab) -> float:
    program = str(BIN / "dialkey")
    apart = ["--preset", "minimal"]
    send = [program, "send", *apart, str(lab.file)]
    return _command(lab, send, [program, "receive", *apart, "--yes"], r"blob[a-z2-7]{50,}")


RUN: Final[dict[str, Callable[[Lab], float]]] = {
    "tcp": tcp,
    "bare": bare,
    "sendme": sendme,
    "dialkey": dialkey,
}


def measure(link: Link, stacks: list[str], rounds: int) -> dict[str, list[float | None]]:
    """Return Mbit/s of each stack in each round; None where it failed."""
    found: dict[str, list[float | None]] = {stack: [] for stack in stacks}
    with lab_of(link) as lab:
        for _ in range(rounds):
            for stack in stacks:
                try:
                    seconds = RUN[stack](lab)
                except Failed as exc:
                    print(f"  {link.name}: {stack} failed: {exc}", file=sys.stderr)
                    found[stack].append(None)
                else:
                    found[stack].append(link.mib * 8 * 1.048576 / seconds)
    return found


def ratio(found: dict[str, list[float | None]], one: str, other: str) -> float | None:
    """Return the median of the ratios of the rounds in which both did it."""
    pairs = zip(found.get(one, ()), found.get(other, ()), strict=False)
    ratios = [a / b for a, b in pairs if a is not None and b is not None]
    return median(ratios) if ratios else None


def middle(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def svg(rows: dict[str, dict[str, float | None]]) -> str:
    """Draw the medians as bars, a group for each link."""
    colours = {"tcp": "#9aa5b1", "bare": "#7fb069", "sendme": "#e07a5f", "dialkey": "#2a6f97"}
    stacks = [s for s in STACKS if any(row.get(s) is not None for row in rows.values())]
    bar, gap, left, width = 14, 16, 250, 560
    group = bar * len(stacks) + gap
    most = max((v for row in rows.values() for v in row.values() if v is not None), default=1.0)
    height = group * len(rows) + 50
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 70}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for i, stack in enumerate(stacks):
        x = left + 110 * i
        out.append(f'<rect x="{x}" y="10" width="12" height="12" fill="{colours[stack]}"/>')
        out.append(f'<text x="{x + 18}" y="20">{stack}</text>')
    for number, (name, row) in enumerate(rows.items()):
        y = 40 + number * group
        out.append(f'<text x="{left - 8}" y="{y + group / 2}" text-anchor="end">{name}</text>')
        for i, stack in enumerate(stacks):
            value = row.get(stack)
            length = 0 if value is None else value / most * width
            at = y + i * bar
            out.append(
                f'<rect x="{left}" y="{at}" width="{length:.1f}" height="{bar - 2}" '
                f'fill="{colours[stack]}"/>'
            )
            label = "failed" if value is None else f"{value:.1f}"
            out.append(f'<text x="{left + length + 4:.1f}" y="{at + 10}">{label}</text>')
    out.append(f'<text x="{left}" y="{height - 4}">Mbit/s of payload, medians</text></svg>')
    return "\n".join(out) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="dialkey, TCP and sendme over the same bad links")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--links", default="", help="only links whose name contains this")
    parser.add_argument("--stacks", default=",".join(STACKS))
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")
    parser.add_argument("--svg", type=Path, help="draw a plot into this file")
    options = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("ip") is None:
        print("this needs root and iproute2: it builds network namespaces", file=sys.stderr)
        return 1
    stacks = [stack for stack in options.stacks.split(",") if stack in RUN]
    if "sendme" in stacks and shutil.which("sendme") is None:
        print("sendme is not on PATH: it is left out", file=sys.stderr)
        stacks.remove("sendme")
    rows: dict[str, dict[str, float | None]] = {}
    ratios: dict[str, dict[str, float | None]] = {}
    for link in LINKS:
        if options.links not in link.name:
            continue
        found = measure(link, stacks, options.rounds)
        rows[link.name] = {stack: middle(found[stack]) for stack in stacks}
        ratios[link.name] = {
            f"{one}/{other}": ratio(found, one, other) for one, other, _ in TARGETS
        }
        if not options.json:
            shown = "  ".join(
                f"{stack} {'failed' if value is None else f'{value:.1f}'}"
                for stack, value in rows[link.name].items()
            )
            print(f"{link.name + f', {link.rate:g} Mbit/s':46} {shown}", flush=True)
    if options.json:
        print(json.dumps({"mbit_s": rows, "ratios": ratios}, indent=2))
    else:
        print("\nTargets, medians of the ratios of one round")
        for one, other, aim in TARGETS:
            for name, each in ratios.items():
                value = each[f"{one}/{other}"]
                verdict = "not measured" if value is None else f"{value:5.2f}x"
                if value is not None:
                    verdict += "  met" if value >= aim else "  missed"
                print(f"  {f'{one} over {other}, {name}':58} >= {aim:.2f}x  {verdict}")
    if options.svg is not None:
        options.svg.write_text(svg(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
