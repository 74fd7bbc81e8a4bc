"""How the native part is found, and that nothing needs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = "from dialkey import native; print(native.part() is not None, native.describe())"


def ask(tmp_path: Path, module: str | None, **environment: str) -> tuple[str, str]:
    """Return what a new interpreter says that finds `module` as the native part, and its stderr."""
    if module is not None:
        (tmp_path / "dialkey_native.py").write_text(module)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip(), found.stderr


def test_a_part_that_fits_is_used(tmp_path: Path) -> None:
    assert ask(tmp_path, "API = 1\n__version__ = '7.8.9'", DIALKEY_NATIVE="") == ("True 7.8.9", "")


@pytest.mark.parametrize("value", ["0", "off", "No", " false "])
def test_it_can_be_turned_off(tmp_path: Path, value: str) -> None:
    said, warned = ask(tmp_path, "raise AssertionError('imported')", DIALKEY_NATIVE=value)
    assert said == "False off (DIALKEY_NATIVE)"
    assert not warned


def test_a_stale_build_is_not_called(tmp_path: Path) -> None:
    said, warned = ask(tmp_path, "API = 0", DIALKEY_NATIVE="")
    assert said == "False does not fit: interface 0 instead of 1"
    assert "Install the matching one" in warned


def test_a_part_that_cannot_be_loaded_is_told_and_not_needed(tmp_path: Path) -> None:
    broken = "raise ImportError('wrong ELF class')"
    said, warned = ask(tmp_path, broken, DIALKEY_NATIVE="")
    assert said == "False cannot be loaded: wrong ELF class"
    assert "wrong ELF class" in warned


def test_its_absence_is_not_worth_a_word(tmp_path: Path) -> None:
    absent = "raise ModuleNotFoundError(\"No module named 'dialkey_native'\")"
    assert ask(tmp_path, absent, DIALKEY_NATIVE="") == ("False not installed", "")
