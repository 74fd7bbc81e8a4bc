"""Measure how long a ticket and an import take, beside the `blake3` package on the same file.

    python benchmarks/blob_import.py [--size MB] [--files N] [--rounds N] [--folder FOLDER]

The package hashes the file with one thread, memory-mapped. A ticket is `ImportMode.DEFERRED`: the hash,
and an entry in a store; an import is `ImportMode.REFERENCE`: the outboard as well. Each round measures
all once, close in time, and ratios are taken within a round; the median is printed. The file is written
first and so is in the system's cache. The last line is for many small files, of 4 to 64 KiB each. Under
the table stands what opening, reading and hashing them takes without a store: nothing that asks the
system whether a file has changed meanwhile can be faster.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3

from dialkey_blobs.store import FsStore, ImportMode

MB = 1_000_000
SMALL_BYTES = range(1 << 12, 1 << 16)
TARGETS = {"ticket": 0.6, "import with outboard": 0.3, "ticket, small files": 0.6}


def write_file(path: Path, size: int) -> None:
    """Fill a file with random bytes."""
    chance = random.Random(size)
    with path.open("wb") as file:
        for start in range(0, size, 1 << 20):
            file.write(chance.randbytes(min(1 << 20, size - start)))


def seconds_to_hash(paths: Sequence[Path]) -> float:
    """Return how long the package takes, which everything is compared with."""
    began = time.perf_counter()
    for path in paths:
        blake3(max_threads=1).update_mmap(path).digest()
    return time.perf_counter() - began


def seconds_to_read(paths: Sequence[Path]) -> float:
    """Return how long it takes to open, look at, read and hash files, one after the other."""
    began = time.perf_counter()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        size = os.fstat(descriptor).st_size
        blake3(os.read(descriptor, size + 1)).digest()
        os.fstat(descriptor)
        os.close(descriptor)
    return time.perf_counter() - began


async def seconds_to_add(paths: Sequence[Path], mode: ImportMode, folder: Path) -> float:
    """Return how long it takes to add files to a new store, which is open already."""
    async with FsStore(folder) as store:
        began = time.perf_counter()
        await store.add_paths(list(paths), mode)
        return time.perf_counter() - began


async def measure(large: Path, size: int, small: Sequence[Path], rounds: int, folder: Path) -> None:
    """Print rates and ratios."""
    small_size = sum(path.stat().st_size for path in small)
    cases: dict[str, tuple[Sequence[Path], ImportMode, int]] = {
        "ticket": ([large], ImportMode.DEFERRED, size),
        "import with outboard": ([large], ImportMode.REFERENCE, size),
        "ticket, small files": (small, ImportMode.DEFERRED, small_size),
    }
    bare: list[float] = []
    rates: dict[str, list[float]] = {case: [] for case in cases}
    ratios: dict[str, list[float]] = {case: [] for case in cases}
    for number in range(rounds):
        for case, (paths, mode, total) in cases.items():
            theirs = await asyncio.to_thread(seconds_to_hash, paths)
            mine = await seconds_to_add(paths, mode, folder / f"{case} {number}")
            rates[case].append(total / mine / MB)
            ratios[case].append(theirs / mine)
        bare.append(theirs / await asyncio.to_thread(seconds_to_read, small))
    print(f"{'':<24}{'MB/s':>8}{'of blake3, one thread':>24}{'target':>9}")
    for case in cases:
        ratio = statistics.median(ratios[case])
        missed = "" if ratio >= TARGETS[case] else "   missed"
        print(
            f"{case:<24}{statistics.median(rates[case]):>8.0f}{ratio:>23.2f}x"
            f"{TARGETS[case]:>8}x{missed}"
        )
    print(f"{'open, read, hash only':<24}{'':>8}{statistics.median(bare):>23.2f}x")


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=400, help="of the file, in MB")
    parser.add_argument("--files", type=int, default=2000, help="how many small files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write the file; default: temporary")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dialkey-bench-", dir=arguments.folder) as folder:
        large = Path(folder, "large")
        write_file(large, arguments.size * MB)
        small = [Path(folder, f"small {number}") for number in range(arguments.files)]
        chance = random.Random(arguments.files)
        for path in small:
            path.write_bytes(chance.randbytes(chance.choice(SMALL_BYTES)))
        asyncio.run(measure(large, arguments.size * MB, small, arguments.rounds, Path(folder)))


if __name__ == "__main__":
    main()
