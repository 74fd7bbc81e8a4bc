"""Temporary folders do not stay, and are made where there is a place for them."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from dialkey.cli import scratch_folder
from dialkey.errors import LocalError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


HOLDER = """
import sys, tempfile
from dialkey.cli import scratch_folder
tempfile.tempdir = sys.argv[1]
with scratch_folder("test") as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


def holder(place: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_it_is_private_and_ends_with_the_context(place: Path) -> None:
    with scratch_folder("test") as folder:
        assert folder.parent == place
        assert folder.name.startswith("dialkey-test-")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "file").write_text("x")
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(
    place: Path,
) -> None:
    dead, abandoned = holder(place)
    alive, used = holder(place)
    with dead, alive:
        dead.send_signal(signal.SIGKILL)
        dead.wait(60)
        with scratch_folder("test") as folder:
            assert not abandoned.exists()
            assert (used / "deep" / "file").exists()
            assert folder.exists()
        assert (used / "deep" / "file").exists()
        alive.communicate(timeout=60)
    assert list(place.iterdir()) == []


def test_what_is_not_ours_stays(place: Path) -> None:
    (place / "dialkey-notes").mkdir()
    (place / "dialkey-notes" / "file").write_text("x")
    (place / "dialkey-file").write_text("x")
    (place / "elsewhere").mkdir()
    (place / "dialkey-link").symlink_to(place / "elsewhere")
    (place / "elsewhere" / ".dialkey-in-use").write_text("1\n")
    early = place / "dialkey-early"
    early.mkdir()
    old = place / "dialkey-old"
    old.mkdir()
    os.utime(old, (0, 0))
    os.utime(place / "dialkey-notes", (0, 0))
    with scratch_folder("test"):
        pass
    assert {path.name for path in place.iterdir()} == {
        *("dialkey-notes", "dialkey-file", "elsewhere", "dialkey-link"),
        "dialkey-early",
    }, "only the empty folder of long ago is nobody's"


def test_another_place_is_taken_where_there_is_no_room(
    place: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other")
    monkeypatch.chdir(other)
    free = {place: 10, Path("/var/tmp"): 10, other: 10**9}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[path]))
    with scratch_folder("test", room_bytes=10**6) as folder:
        assert folder.parent == other
    free[other] = 10
    with (
        pytest.raises(LocalError, match="no place for temporary files") as caught,
        scratch_folder("test", room_bytes=10**6),
    ):
        pass
    assert "TMPDIR" in str(caught.value.hint)


def test_another_place_is_taken_where_nothing_can_be_written(
    place: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other")
    monkeypatch.chdir(other)
    monkeypatch.setattr("dialkey.cli.scratch._places", lambda: iter([place / "absent", other]))
    with scratch_folder("test") as folder:
        assert folder.parent == other
