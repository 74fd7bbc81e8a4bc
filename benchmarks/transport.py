"""Measure dialkey beside its peers, in one run: bulk streams, small requests, handshakes, memory.

    python benchmarks/transport.py [--quick] [--json] [--rounds N] [--stacks dialkey,aioquic,...]

Each stack has a server process and a client process on loopback. Rounds are interleaved: in every round
each stack is measured once, close in time, and ratios are taken within a round. A pass with random
data, compared by hash, comes first and is not timed. How to read the figures: docs/performance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

import attrs
import stacks
from measuring.pair import Pair, Process, WorkerError
from measuring.report import Measurement, Series, Spread, Target, machine, table

from dialkey import native

MB = 1_000_000
BLOCK = 1 << 18
IN_FLIGHT = (1, 16, 100)
STOCK = "aioquic-1452"
LOADS = {
    "uploads": ("dialkey", "aioquic", "qh3", "tls"),
    "streams": ("dialkey", "aioquic", "qh3"),
    "connections": ("dialkey", "aioquic", "qh3"),
    "messages": ("dialkey", "aioquic"),
    "datagrams": ("dialkey",),
}
"""What else is measured, and for which stacks."""
BULK_ONLY = ("qh3",)
"""It raises where others wait until the peer allows more streams: no thousands of requests."""
BLOBS = ("blobs-files", "blobs-memory")
"""They fetch named content and know no other requests."""
NOTES = """\
CPU is that of both processes together. The certificate and key are Ed25519 everywhere; aioquic and tls
prove the server's key only (qh3 one on P-256), dialkey and iroh both. Requests: 64 bytes each way, a
new bidirectional stream for each; tls has one stream, requests follow each other on the open connection.
iroh is its Python binding, minimal preset, no relay: the binding's speed, not iroh's. dialkey-relayed:
the relay is a third process, whose CPU is not counted."""


@attrs.frozen
class Size:
    """How much is measured.

    Attributes:
        seconds: about how long one timed pass lasts; amounts are calibrated to it.
        idle_connections: how many are opened to measure memory; 0 leaves it out.
        idle_streams: how many lie idle beside a bulk stream; 0 leaves it out.
    """

    rounds: int
    seconds: float
    check_bytes: int
    handshakes: int
    idle_connections: int
    idle_streams: int


FULL = Size(5, 0.8, 16 << 20, 100, 500, 1000)
QUICK = Size(2, 0.1, 1 << 19, 16, 100, 0)
SMOKE = Size(1, 0.01, 1 << 16, 4, 10, 0)
MEMORY_WARM_UP = 20
"""Connections opened and kept before memory is first looked at: imports, caches, the first arenas."""


@attrs.define
class Amounts:
    """What a stack moves in about the time of one pass."""

    bulk_bytes: int
    requests: dict[int, int]


Progress = Callable[[str], None]


class Run:
    """One run of everything."""

    def __init__(self, names: list[str], size: Size, progress: Progress) -> None:
        self._names = names
        self._size = size
        self._progress = progress
        self._pairs: dict[str, Pair] = {}
        self._amounts: dict[str, Amounts] = {}
        self._offered = 10
        self.failed: dict[str, str] = {}
        self.measurements: list[Measurement] = []

    async def run(self) -> None:
        async with AsyncExitStack() as owner:
            for name in self._names:
                await self._begin(name, owner)
            plain = [name for name in self._pairs if name not in BLOBS]
            await self._rounds(plain)
        if self._size.idle_streams:
            # Stock aioquic is left out: to open 1,000 streams takes it longer than 30 seconds.
            await self._beside_idle_streams([name for name in plain if name == "dialkey"])
            if "dialkey" in plain:
                await self._beside_idle_connections()
        if self._size.idle_connections:
            everyone = self._size.seconds >= FULL.seconds
            await self._memory(plain if everyone else [n for n in plain if n == "dialkey"])

    async def _begin(self, name: str, owner: AsyncExitStack) -> None:
        """Start a stack, check that it moves the right bytes, find out how much fits into a pass."""
        self._progress(f"{name}: check and calibrate")
        size = self._size
        try:
            pair = await owner.enter_async_context(Pair(name))
            client = pair.client
            await client.do("dial", address=pair.address, count=1)
            counts = {}
            trial, tries = (8, 100) if size.seconds >= FULL.seconds else (3, 32)
            if name in BLOBS:
                offer = await pair.server.offer(size.check_bytes, 7)
                await client.do("fetch", offer=offer)
                await client.do("check_fetched", offer=offer, size=size.check_bytes, seed=7)
                took_bulk = await client.do(
                    "fetch", offer=await pair.server.offer(trial * BLOCK, 8)
                )
            else:
                count = 16 if name in BULK_ONLY else 64
                await client.do("check", size=size.check_bytes, seed=7, count=count)
                await client.do("download", size=trial * BLOCK)
                took_bulk = await client.do("download", size=trial * BLOCK)
                for in_flight in IN_FLIGHT if name not in BULK_ONLY else ():
                    await client.do("requests", count=2 * in_flight, in_flight=in_flight)
                    took = await client.do("requests", count=tries, in_flight=in_flight)
                    counts[in_flight] = max(
                        in_flight, round(tries * size.seconds / took["seconds"])
                    )
            blocks = round(trial * size.seconds / took_bulk["seconds"])
            await client.do("hang_up")
            self._amounts[name] = Amounts(BLOCK * min(max(blocks, 2), 2000), counts)
            self._pairs[name] = pair
        except WorkerError as exc:
            self.failed[name] = str(exc)

    # --- interleaved rounds ---------------------------------------------------------------------

    async def _rounds(self, plain: list[str]) -> None:
        bulk = Measurement("bulk", "Bulk, one stream, server to client", "MB/s", "MB")
        requests = {
            n: Measurement(f"requests-{n}", f"Small requests, {n} in flight", "1/s", "request")
            for n in IN_FLIGHT
        }
        dials = Measurement("handshakes", "Handshakes, up to 8 at once", "1/s", "handshake")
        loads = self._loads()
        self.measurements += [bulk, *requests.values(), dials, *(each for each, _ in loads)]
        for number in range(self._size.rounds):
            self._progress(f"round {number + 1} of {self._size.rounds}")
            # Who comes first changes, so that nobody always follows the same neighbour.
            turn = number % max(len(self._pairs), 1)
            names = [*self._pairs][turn:] + [*self._pairs][:turn]
            for name in names:
                await self._one(bulk, name, self._blob if name in BLOBS else self._bulk)
            for in_flight, measurement in requests.items():
                for name in names:
                    if name in plain and name not in BULK_ONLY:
                        await self._one(measurement, name, partial(self._requests, in_flight))
            for name in names:
                if name in plain:
                    await self._one(dials, name, self._handshakes)
            for measurement, measure in loads:
                for name in names:
                    if name in LOADS[measurement.key]:
                        await self._one(measurement, name, measure)
        for measurement in self.measurements:
            measurement.series = {
                name: measurement.series[name] for name in self._names if name in measurement.series
            }

    async def _one(
        self,
        measurement: Measurement,
        name: str,
        measure: Callable[[str], Awaitable[tuple[float, float]]],
    ) -> None:
        """Make one pass; a stack that fails has no figure and does not stop the others."""
        series = measurement.series.setdefault(name, Series())
        try:
            series.add(*await measure(name))
        except WorkerError as exc:
            series.fail(str(exc))
            await self._pairs[name].restart()

    async def _timed(
        self, name: str, units: float, command: str, **arguments: object
    ) -> tuple[float, float]:
        """Return units per second, and the processor time of both sides per unit."""
        pair = self._pairs[name]
        before = (await pair.server.do("cpu"))["cpu_s"]
        took = await pair.client.do(command, **arguments)
        server = (await pair.server.do("cpu"))["cpu_s"] - before
        return units / took["seconds"], (server + took["cpu_s"]) * 1e6 / units

    async def _bulk(self, name: str) -> tuple[float, float]:
        client = self._pairs[name].client
        size = self._amounts[name].bulk_bytes
        await client.do("dial", address=self._pairs[name].address, count=1)
        await client.do("download", size=max(BLOCK, size // 4 // BLOCK * BLOCK))
        found = await self._timed(name, size / MB, "download", size=size)
        await client.do("hang_up")
        return found

    async def _blob(self, name: str) -> tuple[float, float]:
        pair = self._pairs[name]
        size = self._amounts[name].bulk_bytes
        # Content that differs each time; making it, and hashing it for the offer, is not timed.
        self._offered += 2
        await pair.client.do("dial", address=pair.address, count=1)
        await pair.client.do("fetch", offer=await pair.server.offer(size // 4, self._offered))
        offer = await pair.server.offer(size, self._offered + 1)
        found = await self._timed(name, size / MB, "fetch", offer=offer)
        await pair.client.do("hang_up")
        return found

    async def _requests(self, in_flight: int, name: str) -> tuple[float, float]:
        client = self._pairs[name].client
        count = self._amounts[name].requests[in_flight]
        await client.do("dial", address=self._pairs[name].address, count=1)
        await client.do("requests", count=max(count // 5, in_flight), in_flight=in_flight)
        found = await self._timed(name, count, "requests", count=count, in_flight=in_flight)
        await client.do("hang_up")
        return found

    def _loads(self) -> list[tuple[Measurement, Callable[[str], Awaitable[tuple[float, float]]]]]:
        """Return what else is measured, and how."""
        return [
            (
                Measurement("uploads", "Bulk, one stream, client to server", "MB/s", "MB"),
                partial(self._load, 1, "upload", "size"),
            ),
            (
                Measurement("streams", "Bulk, 8 streams of one connection", "MB/s", "MB"),
                partial(self._load, 1, "downloads", "size"),
            ),
            (
                Measurement("connections", "Bulk, 4 connections, 8 streams", "MB/s", "MB"),
                partial(self._load, 4, "downloads", "size"),
            ),
            (
                Measurement(
                    "messages", "Messages of 100 bytes, each written alone", "1/s", "message"
                ),
                partial(self._load, 1, "messages", "count"),
            ),
            (
                Measurement(
                    "datagrams", "Datagrams of 1,000 bytes, there and back", "1/s", "datagram"
                ),
                partial(self._load, 1, "datagrams", "count"),
            ),
        ]

    async def _load(
        self, connections: int, command: str, amount: str, name: str
    ) -> tuple[float, float]:
        client = self._pairs[name].client
        amounts = self._amounts[name]
        total = amounts.bulk_bytes if amount == "size" else 2 * amounts.requests[16]
        streams: dict[str, object] = {"streams": 8} if command == "downloads" else {}
        await client.do("dial", address=self._pairs[name].address, count=connections)
        await client.do(command, **{amount: max(total // 4, 16)}, **streams)
        units = total / MB if amount == "size" else total
        found = await self._timed(name, units, command, **{amount: total}, **streams)
        await client.do("hang_up")
        return found

    async def _handshakes(self, name: str) -> tuple[float, float]:
        client = self._pairs[name].client
        count = self._size.handshakes
        address = self._pairs[name].address
        found = await self._timed(name, count, "dial", address=address, count=count)
        await client.do("hang_up")
        return found

    # --- other measurements ---------------------------------------------------------------------

    async def _beside_idle_streams(self, names: list[str]) -> None:
        count = self._size.idle_streams
        found = Measurement(
            "idle-streams",
            f"Bulk beside idle streams of the same connection: CPU with {count} over that with 1",
            "x",
            smaller_is_better=True,
        )
        self.measurements.append(found)
        for number in range(self._size.rounds):
            self._progress(f"idle streams, round {number + 1} of {self._size.rounds}")
            for name in names:
                series = found.series.setdefault(name, Series())
                try:
                    async with Pair(name) as pair:
                        few = await self._bulk_beside(pair, 1)
                        many = await self._bulk_beside(pair, count)
                        series.add(many / few, None)
                except WorkerError as exc:
                    series.fail(str(exc))

    async def _bulk_beside(self, pair: Pair, idle: int) -> float:
        """Return the processor time of both sides for a transfer beside idle streams."""
        await pair.client.do("dial", address=pair.address, count=1)
        await pair.client.do("open_idle", count=idle)
        await pair.client.do("download", size=BLOCK)
        cpu = await self._download_cpu(pair)
        await pair.client.do("hang_up")
        return cpu

    async def _download_cpu(self, pair: Pair) -> float:
        size = self._amounts[pair.stack].bulk_bytes
        before = (await pair.server.do("cpu"))["cpu_s"]
        took = await pair.client.do("download", size=size)
        return (await pair.server.do("cpu"))["cpu_s"] - before + took["cpu_s"]

    async def _beside_idle_connections(self) -> None:
        count = self._size.idle_streams
        found = Measurement(
            "idle-connections",
            f"Bulk beside idle connections of the same endpoints: CPU with {count} over that with 1",
            "x",
            smaller_is_better=True,
        )
        self.measurements.append(found)
        series = found.series.setdefault("dialkey", Series())
        for number in range(self._size.rounds):
            self._progress(f"idle connections, round {number + 1} of {self._size.rounds}")
            try:
                async with Pair("dialkey") as pair:
                    costs = []
                    for idle in (1, count):
                        await pair.client.do("dial", address=pair.address, count=idle)
                        await pair.client.do("touch")
                        await pair.client.do("download", size=BLOCK)
                        costs.append(await self._download_cpu(pair))
                    series.add(costs[1] / costs[0], None)
            except WorkerError as exc:
                series.fail(str(exc))

    async def _memory(self, names: list[str]) -> None:
        count = self._size.idle_connections
        sides = {
            side: Measurement(
                f"memory-{side}",
                f"Resident memory per idle connection, {side} ({count} connections)",
                "KiB",
                smaller_is_better=True,
            )
            for side in ("client", "server")
        }
        self.measurements += sides.values()
        for name in names:
            self._progress(f"{name}: memory of {count} idle connections")
            try:
                async with Pair(name) as pair:
                    # Of several first dials to one remote at once, the iroh wheel closes all but one.
                    await self._grow(pair, 1)
                    before = await self._grow(pair, MEMORY_WARM_UP)
                    after = await self._grow(pair, count)
                for side, each in sides.items():
                    grown = (after[side] - before[side]) / 1024 / count
                    each.series.setdefault(name, Series()).add(grown, None)
            except WorkerError as exc:
                for each in sides.values():
                    each.series.setdefault(name, Series()).fail(str(exc))

    @staticmethod
    async def _grow(pair: Pair, count: int) -> dict[str, float]:
        await pair.client.do("dial", address=pair.address, count=count)
        await pair.client.do("touch")
        processes: dict[str, Process] = {"client": pair.client, "server": pair.server}
        return {side: (await each.do("memory"))["rss_bytes"] for side, each in processes.items()}

    # --- what was to be reached -----------------------------------------------------------------

    def targets(self) -> list[Target]:
        """Return the aims of this version beside what was found."""
        by_key = {each.key: each for each in self.measurements}

        def ratio(key: str, above: str, below: str) -> float | None:
            spread = Spread.of(by_key[key].ratios(above, below)) if key in by_key else None
            return spread.median if spread else None

        def value(key: str) -> float | None:
            found = by_key.get(key)
            if found is None or "dialkey" not in found.series:
                return None
            spread = Spread.of(found.series["dialkey"].values)
            return spread.median if spread else None

        is_native = native.part() is not None

        def wanted(pure: float, with_native: float) -> float:
            return with_native if is_native else pure

        return [
            Target("bulk over stock aioquic", ratio("bulk", "dialkey", "aioquic"), wanted(10, 15)),
            Target("bulk over qh3", ratio("bulk", "dialkey", "qh3"), wanted(2, 3)),
            Target("bulk over asyncio TLS", ratio("bulk", "dialkey", "tls"), wanted(0.4, 0.8)),
            Target(
                "requests, one in flight, over stock aioquic",
                ratio("requests-1", "dialkey", "aioquic"),
                1.5,
            ),
            Target(
                "handshakes over stock aioquic, rate",
                ratio("handshakes", "dialkey", "aioquic"),
                1.0,
            ),
            Target(
                "blob download with hash check, over our own bulk stream",
                ratio("bulk", "blobs-files", "dialkey"),
                wanted(0.7, 0.8),
            ),
            Target("relayed over direct bulk", ratio("bulk", "dialkey-relayed", "dialkey"), 0.5),
            Target("bulk CPU beside 1000 idle streams", value("idle-streams"), 1.1, at_most=True),
            Target(
                "bulk CPU beside 1000 idle connections",
                value("idle-connections"),
                1.2,
                at_most=True,
            ),
            *(
                Target(
                    f"memory per idle connection, {side}",
                    value(f"memory-{side}"),
                    100.0,
                    at_most=True,
                    unit=" KiB",
                )
                for side in ("client", "server")
            ),
        ]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under 20 seconds, coarse figures")
    parser.add_argument("--smoke", action="store_true", help="only see whether everything runs")
    parser.add_argument("--rounds", type=int, help=f"default {FULL.rounds}, quick {QUICK.rounds}")
    parser.add_argument("--seconds", type=float, help="about the length of one timed pass")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of tables")
    parser.add_argument(
        "--stacks", default=",".join(stacks.HOMES), help="default: %(default)s", metavar="A,B,…"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.stacks.split(",")) - set(stacks.HOMES)
    if unknown:
        parser.error(f"unknown stacks: {', '.join(sorted(unknown))}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run, print, and always end with 0: figures are for reading, a missed target is not an error."""
    options = _parse(arguments)
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    if options.rounds:
        size = attrs.evolve(size, rounds=options.rounds)
    if options.seconds:
        size = attrs.evolve(size, seconds=options.seconds)
    began = time.monotonic()

    def progress(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    run = Run(options.stacks.split(","), size, progress)
    asyncio.run(run.run())
    about = machine()
    if options.json:
        found = {
            "machine": about,
            "native": native.describe(),
            "size": attrs.asdict(size),
            "failed": run.failed,
            "measurements": [each.as_json() for each in run.measurements],
            "targets": [each.as_json() for each in run.targets()],
        }
        print(json.dumps(found, indent=1))
        return
    packages = ", ".join(f"{k} {v}" for k, v in about.pop("packages").items())  # type: ignore[attr-defined]
    print(f"{' · '.join(str(each) for each in about.values())}\n{packages}")
    print(f"{size.rounds} rounds, about {size.seconds} s a pass; medians, ratios within a round\n")
    for measurement in run.measurements:
        print(table(measurement), end="\n\n")
    for name, why in run.failed.items():
        print(f"{name} was not measured: {why}")
    print(f"Targets, native part: {native.describe()}")
    for target in run.targets():
        print(f"  {target}")
    print(f"\n{NOTES}")


if __name__ == "__main__":
    main()
