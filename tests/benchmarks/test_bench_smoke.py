"""The benchmarks run and print; what they find is not tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TRANSPORT = Path(__file__).parents[2] / "benchmarks" / "transport.py"


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(TRANSPORT), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_transport_benchmark_measures_every_stack() -> None:
    found = json.loads(run("--smoke", "--json"))
    assert found["failed"] == {}
    by_key = {each["key"]: each["stacks"] for each in found["measurements"]}
    assert {"blobs-files", "blobs-memory"} <= set(by_key["bulk"])
    for key in ("bulk", "requests-1", "requests-16", "requests-100", "handshakes"):
        assert {"dialkey", "aioquic", "aioquic-1452", "iroh", "tls"} <= set(by_key[key])
    for key, stacks in by_key.items():
        for name, stack in stacks.items():
            assert stack["error"] is None, f"{key}: {name}: {stack['error']}"
    assert {"dialkey", "aioquic", "qh3", "tls"} <= set(by_key["uploads"])
    for key in ("streams", "connections"):
        assert {"dialkey", "aioquic", "qh3"} <= set(by_key[key])
    assert {"dialkey", "aioquic"} <= set(by_key["messages"])
    assert "dialkey" in by_key["datagrams"]
    assert {each["what"] for each in found["targets"]} >= {
        "bulk over stock aioquic",
        "bulk over qh3",
        "relayed over direct bulk",
    }


def test_transport_benchmark_prints_a_table() -> None:
    text = run("--smoke", "--stacks", "dialkey")
    assert "Bulk, one stream" in text
    assert "Targets" in text


def test_whole_commands_are_measured_with_or_without_sendme(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = subprocess.run(
        [sys.executable, str(TRANSPORT.with_name("whole_files.py")), "--smoke"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PATH": str(tmp_path / "bin")},
    )
    assert done.returncode == 0, done.stderr
    assert "sendme is not on PATH" in done.stdout
    assert "failed" not in done.stdout
