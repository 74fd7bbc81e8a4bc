"""Measure remote procedure calls beside grpcio's asyncio API, in one run.

    python benchmarks/rpc.py [--quick] [--rounds N] [--json]

Each stack has a server process and a client process on loopback, with encryption. Rounds are
interleaved: in every round each stack is measured once, and ratios are taken within a round. Every
answer is compared with what is expected. The aims: ahead with one call in flight, at least 0.8 of
grpcio with a hundred. Where grpcio is not installed, there are no ratios. On a machine that is busy
with something else look at medians: a single-threaded loop that waits for a core shows in the mean.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import sys
from pathlib import Path

from measuring.report import Measurement, Series, Spread, Target, machine, table

SIDES = Path(__file__).with_name("rpc_sides.py")
STACKS = ("dialkey", "grpcio") if importlib.util.find_spec("grpc") else ("dialkey",)
TIMEOUT_S = 60.0
LINE_LIMIT = 1 << 20


class Side:
    """A process that serves or calls."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, *arguments: str) -> Side:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(SIDES),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT,
        )
        return cls(process)

    async def line(self) -> str:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), TIMEOUT_S)
        if not line:
            raise SystemExit("a process ended early; what it said is above")
        return line.decode().strip()

    async def do(self, command: str, **arguments: int) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": command, **arguments}).encode() + b"\n")
        found: dict[str, float] = json.loads(await self.line())
        return found

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 1.0)
        except TimeoutError:
            self._process.terminate()
            await self._process.wait()


MEASURED = (
    # command, field, key, title, unit, smaller is better
    ("calls-1", "rate", "calls-1", "Calls, 1 in flight", "1/s", False),
    ("calls-1", "p50_us", "p50-1", "Latency of a call, 1 in flight, p50", "us", True),
    ("calls-1", "p99_us", "p99-1", "Latency of a call, 1 in flight, p99", "us", True),
    ("calls-100", "rate", "calls-100", "Calls, 100 in flight", "1/s", False),
    ("calls-100", "p50_us", "p50-100", "Latency of a call, 100 in flight, p50", "us", True),
    ("calls-100", "p99_us", "p99-100", "Latency of a call, 100 in flight, p99", "us", True),
    ("blocks", "rate", "blocks", "Blocks of 64 KiB streamed down", "MB/s", False),
    ("numbers", "rate", "numbers", "Small items streamed down", "1/s", False),
)


async def measure(rounds: int, scale: float) -> dict[str, Measurement]:
    """Run all rounds."""
    found = {
        key: Measurement(key, title, unit, smaller_is_better=smaller)
        for _, _, key, title, unit, smaller in MEASURED
    }
    for each in found.values():
        each.series = {stack: Series() for stack in STACKS}
    commands: dict[str, tuple[str, dict[str, int]]] = {
        "calls-1": ("calls", {"count": round(2000 * scale), "in_flight": 1}),
        "calls-100": ("calls", {"count": round(10_000 * scale), "in_flight": 100}),
        "blocks": ("blocks", {"count": round(2000 * scale)}),
        "numbers": ("numbers", {"count": round(50_000 * scale)}),
    }
    servers = {stack: await Side.start(stack, "serve") for stack in STACKS}
    callers = {
        stack: await Side.start(stack, "call", await servers[stack].line()) for stack in STACKS
    }
    try:
        for stack in STACKS:
            for command, arguments in commands.values():
                small = {k: max(1, v // 5) if k == "count" else v for k, v in arguments.items()}
                await callers[stack].do(command, **small)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            # Who comes first changes.
            for name, (command, arguments) in commands.items():
                for stack in STACKS if number % 2 == 0 else STACKS[::-1]:
                    result = await callers[stack].do(command, **arguments)
                    for measured, field, key, *_ in MEASURED:
                        if measured == name:
                            found[key].series[stack].add(result[field], None)
    finally:
        for side in (*callers.values(), *servers.values()):
            await side.stop()
    return found


def targets(found: dict[str, Measurement]) -> list[Target]:
    """Return the aims beside what was found."""

    def lead(key: str) -> float | None:
        spread: Spread | None = found[key].lead("grpcio")
        return None if spread is None else spread.median

    return [
        Target("calls over grpcio, 1 in flight", lead("calls-1"), 1.0),
        Target("calls over grpcio, 100 in flight", lead("calls-100"), 0.8),
        Target("median latency, grpcio's over ours, 1 in flight", lead("p50-1"), 1.0),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run and print; a missed target is not an error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="coarse figures, in some seconds")
    parser.add_argument("--rounds", type=int, help="default 5, quick 2")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of tables")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (2 if options.quick else 5)
    found = asyncio.run(measure(rounds, 0.2 if options.quick else 1.0))
    about = machine()
    if options.json:
        body = {
            "machine": about,
            "measurements": [each.as_json() for each in found.values()],
            "targets": [each.as_json() for each in targets(found)],
        }
        print(json.dumps(body, indent=1))
        return
    print(" · ".join(str(value) for key, value in about.items() if key != "packages"))
    print(f"{rounds} rounds; medians, ratios within a round\n")
    for each in found.values():
        print(table(each), end="\n\n")
    print("Targets")
    for target in targets(found):
        print(f"  {target}")


if __name__ == "__main__":
    main()
