"""The benchmark runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "relay.py"


def test_the_benchmark_runs() -> None:
    arguments = "--relays naive dialkey --pairs 1 --seconds 0.1 --rounds 1 --idle 20 --json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *arguments.split()],
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    )
    results = json.loads(done.stdout.splitlines()[-1])
    assert set(results["KiB per idle client"]) == {"naive", "dialkey"}
    assert not done.stderr
