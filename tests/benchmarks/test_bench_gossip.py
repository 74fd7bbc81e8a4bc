"""The gossip benchmark runs and prints; what it finds is tested with the protocol."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

GOSSIP = Path(__file__).parents[2] / "benchmarks" / "gossip.py"


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(GOSSIP), "--quick", "--jobs", "1", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_gossip_benchmark_prints_a_table_beside_the_original() -> None:
    text = run("--nodes", "20", "100")
    for label in ("GossipSingle n=20", "GossipMulti n=100", "GossipAll n=20", "Churn n=100 k=50"):
        assert label in text
    assert "/0.151" in text
    assert "0 missed in all scenarios" in text


def test_gossip_benchmark_with_loss_as_json() -> None:
    found = json.loads(run("--nodes", "30", "--loss", "0.01", "--json"))
    assert [each["scenario"] for each in found["scenarios"]] == [
        "GossipSingle n=30 r=3 loss=1%",
        "GossipMulti n=30 r=3 loss=1%",
        "GossipAll n=30 r=2 loss=1%",
    ]
    assert found["churn"] == []
    assert all(each["original"] is None for each in found["scenarios"])
