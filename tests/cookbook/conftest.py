"""The cookbook's distributions, built and installed into a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COOKBOOK = Path(__file__).parents[2] / "cookbook"

# Tests of the parts of an app import it from the tree.
sys.path += [str(COOKBOOK / "workshop"), str(COOKBOOK / "echo")]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the apps from their wheels; return the environment in which they are there."""
    # The running pytest may have its paths from .pth files, which PYTHONPATH does not process.
    paths = [entry for entry in sys.path if entry]
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "error::ResourceWarning",
    }
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    commands = [
        (["hatchling", "build", "-t", "wheel", "-d", str(wheels)], COOKBOOK / app)
        for app in ("chat", "echo", "pipe", "workshop")
    ]
    for arguments, folder in commands:
        _run(arguments, folder, environ)
    install = ["pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    install += ["--disable-pip-version-check", "--target", str(site)]
    _run([*install, *map(str, sorted(wheels.glob("*.whl")))], wheels, environ)
    return {**environ, "PYTHONPATH": os.pathsep.join([str(site), *paths])}


def _run(arguments: list[str], folder: Path, environ: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
