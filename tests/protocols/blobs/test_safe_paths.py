"""Hostile names, and files that must not land anywhere else."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dialkey.errors import DialkeyError, StorageError
from dialkey_blobs import safe_paths
from dialkey_blobs.names import Naming, UnsafeName
from dialkey_blobs.safe_paths import SafeFile, SafeRoot, TargetExists, naming_of, safe_join

nasty = st.text(st.sampled_from("aA.ÉéE\u0301/\\:\0 ~\u202e*NUL\ud800"), max_size=12)


@given(nasty | st.text(max_size=20))
def test_joined_paths_stay_below_the_root(name: str) -> None:
    root = Path("/nowhere/root")
    try:
        path = safe_join(root, name)
    except UnsafeName:
        return
    assert path.is_relative_to(root)
    assert path != root
    assert os.path.normpath(path) == str(path)
    assert str(path) == f"{root}/{name}"


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a\0b", "..\\..\\x"])
def test_dangerous_names_reach_no_disk(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeName):
        safe_join(tmp_path, name)
    with SafeRoot(tmp_path / "root") as root, pytest.raises(UnsafeName):
        root.create(name)
    assert list((tmp_path / "root").iterdir()) == []


def test_what_this_file_system_can_hold_is_found_out(tmp_path: Path) -> None:
    naming = naming_of(tmp_path / "not" / "there" / "yet")
    assert naming == Naming(max_component_bytes=os.pathconf(tmp_path, "PC_NAME_MAX"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_is_blind_and_narrow_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = os.path.lexists

    def blind(path: str) -> bool:
        return there(path) or os.path.basename(path) in ("probe", "e\u0301")

    monkeypatch.setattr(safe_paths.os.path, "lexists", blind)
    genuine = os.listdir

    def strips_dots(folder: str) -> list[str]:
        return [name.rstrip(".") for name in genuine(folder)]

    monkeypatch.setattr(safe_paths.os, "listdir", strips_dots)
    monkeypatch.setattr(safe_paths.os, "pathconf", lambda *_: 143)
    assert naming_of(tmp_path) == Naming(
        is_windows=True, ignores_case=True, ignores_form=True, max_component_bytes=143
    )


@pytest.fixture
def fat(tmp_path: Path) -> Iterator[Path]:
    """A file system of DOS, which knows neither case nor colons."""
    image, folder = tmp_path / "image", tmp_path / "fat"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(4 << 20)
    commands = (
        ["mkfs.vfat", str(image)],
        ["mount", "-t", "vfat", "-o", "loop,utf8", str(image), str(folder)],
    )
    for command in commands:
        try:
            made = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            pytest.skip(f"no such file system can be made here: {error}")
        if made.returncode:
            pytest.skip(f"no such file system can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_file_system_of_dos(fat: Path) -> None:
    naming = naming_of(fat)
    assert naming.is_windows
    assert naming.ignores_case
    assert list(fat.iterdir()) == []


# --- files -----------------------------------------------------------------------------------------


def no_unnamed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = os.open

    def refuse(path: str, flags: int, *args: int, **kwargs: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return genuine(path, flags, *args, **kwargs)

    monkeypatch.setattr(safe_paths.os, "open", refuse)


@pytest.fixture(params=["unnamed", "named"])
def root(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SafeRoot]:
    """Give a root on a file system with and without unnamed files."""
    if request.param == "named":
        no_unnamed_files(monkeypatch)
    with SafeRoot(tmp_path / "out") as made:
        yield made


def files_below(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if not p.is_dir())


def put(root: SafeRoot, name: str, data: bytes, *, overwrite: bool = False) -> None:
    with root.create(name, overwrite=overwrite) as file:
        file.write(data)
        file.commit()


def test_a_file_appears_when_it_is_complete(root: SafeRoot) -> None:
    with root.create("a/b/c.txt") as file:
        file.write(b"he")
        file.write(memoryview(b"llo"))
        assert not file.path.exists()
        file.commit()
        assert file.path.read_bytes() == b"hello"
    assert files_below(root.path) == ["a/b/c.txt"]
    assert file.path == root.path / "a/b/c.txt"


def test_what_is_not_committed_leaves_nothing(root: SafeRoot) -> None:
    with root.create("x") as file:
        file.write(b"part")
    file.discard()
    assert files_below(root.path) == []


def test_nothing_is_overwritten_unasked(root: SafeRoot) -> None:
    put(root, "x", b"old")
    with pytest.raises(TargetExists) as caught:
        root.create("x")
    assert caught.value.path == root.path / "x"
    late = root.create("late")
    (root.path / "late").write_bytes(b"somebody else's")
    with late:
        late.write(b"ours")
        with pytest.raises(TargetExists):
            late.commit()
    assert (root.path / "late").read_bytes() == b"somebody else's"
    put(root, "x", b"new", overwrite=True)
    assert (root.path / "x").read_bytes() == b"new"
    assert files_below(root.path) == ["late", "x"]


def test_links_are_replaced_and_never_followed(root: SafeRoot, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "target").write_bytes(b"precious")
    (root.path / "link").symlink_to(outside / "target")
    (root.path / "dangling").symlink_to(outside / "new")
    (root.path / "dir").symlink_to(outside)
    for name in ("link", "dangling"):
        with pytest.raises(TargetExists):
            root.create(name)
        put(root, name, b"ours", overwrite=True)
        assert not (root.path / name).is_symlink()
    for overwrite in (False, True):
        with pytest.raises(StorageError, match="symbolic link"):
            root.create("dir/x", overwrite=overwrite)
    with pytest.raises(StorageError, match="symbolic link"):
        safe_join(root.path, "dir/x")
    assert (outside / "target").read_bytes() == b"precious"
    assert files_below(outside) == ["target"]


def test_a_directory_swapped_for_a_link_redirects_nothing(root: SafeRoot, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with root.create("dir/x") as file:
        (root.path / "dir").rename(root.path / "moved")
        (root.path / "dir").symlink_to(outside)
        file.write(b"data")
        file.commit()
    assert files_below(outside) == []
    assert (root.path / "moved/x").read_bytes() == b"data"


def test_files_and_directories_in_the_way(root: SafeRoot) -> None:
    put(root, "file", b"")
    (root.path / "directory").mkdir()
    with pytest.raises(StorageError, match="where a directory is needed"):
        root.create("file/x")
    with pytest.raises(TargetExists):
        root.create("directory")
    with pytest.raises(StorageError):
        put(root, "directory", b"x", overwrite=True)
    assert files_below(root.path) == ["file"]


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_unnamed_files(monkeypatch)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(safe_paths.os, "link", refuse)
    with SafeRoot(tmp_path / "out") as root:
        put(root, "x", b"data")
        late = root.create("late")
        (root.path / "late").write_bytes(b"somebody else's")
        with late, pytest.raises(TargetExists):
            late.commit()
        assert files_below(root.path) == ["late", "x"]


def test_a_full_disk_is_one_clear_error(root: SafeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with root.create("x") as file:
        monkeypatch.setattr(safe_paths.os, "write", full)
        with pytest.raises(StorageError, match="free some space"):
            file.write(b"data")
    monkeypatch.undo()
    assert files_below(root.path) == []


def test_short_writes_are_continued(root: SafeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = os.write
    monkeypatch.setattr(safe_paths.os, "write", lambda fd, data: genuine(fd, data[:3]))
    put(root, "x", b"0123456789")
    assert (root.path / "x").read_bytes() == b"0123456789"


def test_committing_without_waiting_for_the_disk(root: SafeRoot) -> None:
    with root.create("x") as file:
        file.write(b"data")
        file.commit(durable=False)
    assert files_below(root.path) == ["x"]


def test_descriptors_are_closed(root: SafeRoot) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        put(root, f"a/{number}", b"x")
        with pytest.raises(TargetExists):
            root.create(f"a/{number}")
        with pytest.raises(StorageError):
            root.create(f"a/{number}/b")
        with root.create(f"a/not {number}") as file:
            assert isinstance(file, SafeFile)
    assert len(os.listdir("/proc/self/fd")) == before


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(nasty, min_size=1, max_size=4))
def test_whatever_the_names_nothing_lands_outside(tmp_path: Path, names: list[str]) -> None:
    jail = tmp_path / "jail"
    with SafeRoot(jail / "out") as root:
        for name in names:
            try:
                put(root, name, b"x", overwrite=True)
            except DialkeyError:
                pass
    assert {path.name for path in tmp_path.iterdir()} == {"jail"}
    assert {path.name for path in jail.iterdir()} == {"out"}
