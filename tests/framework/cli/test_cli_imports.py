"""``dialkey --help`` stays quick: what it imports is compared, not how long it takes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = (
    "OpenSSL",
    "aioquic",
    "asyncio",
    "blake3",
    "cryptography",
    "msgpack",
    "numpy",
    "rich",
    "sqlite3",
    "ssl",
)
"""Each costs from 10 ms to over 100 ms. asyncio is needed by every hook manager; see ALLOWED."""

ALLOWED = {"asyncio", "ssl"}
"""`dialkey.hooks` needs asyncio, and asyncio imports ssl."""

SCRIPT = """
import sys
from dialkey.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print("\\n".join(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


@pytest.mark.parametrize("argv", [["--help"], ["key", "--help"], ["ticket", "inspect", "--help"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *argv],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "Usage: dialkey" in done.stdout
    imported = set(done.stderr.split())
    assert "typer" in imported
    assert imported.isdisjoint(set(HEAVY) - ALLOWED)


def test_plugins_of_this_distribution_are_light() -> None:
    """Entry points are imported on every start, also for ``--help``."""
    script = """
import sys
import dialkey_blobs.plugin
print("\\n".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert set(done.stdout.split()).isdisjoint(set(HEAVY) - ALLOWED)
