"""Hostile names, and files that must not land anywhere else."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dialkey.errors import DialkeyError, StorageError
from dialkey_blobs import safe_paths
from dialkey_blobs.safe_paths import (
    SafeFile,
    SafeRoot,
    TargetExists,
    UnsafeName,
    check_names,
    safe_join,
)

HOSTILE = {
    "empty": "",
    "absolute": "/etc/passwd",
    "double slash": "//server/share",
    "parent": "..",
    "parent first": "../x",
    "parent inside": "a/../../x",
    "parent last": "a/..",
    "current": ".",
    "current inside": "a/./b",
    "empty component": "a//b",
    "trailing slash": "a/",
    "zero byte": "a\0b",
    "line break": "a\nb",
    "escape sequence": "a\x1b[2Jb",
    "delete": "a\x7fb",
    "second control set": "a\x9bb",
    "line separator": "a\u2028b",
    "reversed text": "invoice\u202efdp.exe",
    "isolate": "a\u2066b",
    "half a character": "a\ud800",
    "backslash": "a\\b",
    "backslash parent": "..\\..\\x",
    "share": "\\\\server\\share",
    "long component": "a" * 256,
    "long component in bytes": "é" * 128,
    "long name": "/".join(["a" * 200] * 21),
    "deep name": "/".join(["a"] * 65),
}

NOT_PORTABLE = {
    "drive": "C:\\x",
    "drive relative": "C:x",
    "alternate stream": "file.txt:hidden",
    "device": "con",
    "device in capitals": "NUL",
    "device with extension": "aux.txt",
    "device with two extensions": "Aux.tar.gz",
    "device as directory": "a/prn/b",
    "device with space": "com1 .txt",
    "device with superscript": "COM¹",
    "console": "CONIN$",
    "line printer": "lpt9",
    "dot at the end": "a.",
    "dots at the end": "a...",
    "space at the end": "a ",
    "directory with space": "a /b",
    "wildcard": "a*b",
    "question": "a?b",
    "pipe": "a|b",
    "angle": "a<b",
    "quote": 'a"b',
}

FINE = [
    "single",
    "a/b/c.txt",
    ".hidden",
    "...x",
    "a..b",
    "ein Überblick.pdf",
    "日本語/ファイル",
    "contest",
    "nullable",
    "com10",
    "console.log",
    "auxiliary/x",
    " leading space",
    "a" * 255,
    "é" * 127,
    "/".join(["deep"] * 64),
    "emoji 👩‍👩‍👧 family",
]

CLASHES = [
    ["a", "a"],
    ["a", "a/b"],
    ["a/b", "a"],
    ["d/x", "d!", "d-e", "d"],
    ["a/b/c/d", "a/b"],
    ["é", "e\u0301"],
    ["d\u00e9/x", "de\u0301/y"],
]

CASE_CLASHES = [
    ["README", "readme"],
    ["A/x", "a/y"],
    ["a/b/c", "a/B/d"],
    ["straße", "STRASSE"],
    ["a", "A/b"],
    ["Ａ", "ａ"],
]


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("portable", [True, False])
def test_hostile_names_are_refused(name: str, portable: bool, tmp_path: Path) -> None:
    with pytest.raises(UnsafeName) as caught:
        check_names(["good", name], portable=portable)
    assert caught.value.name == name
    assert str(caught.value).isprintable()
    with pytest.raises(UnsafeName):
        safe_join(tmp_path, name, portable=portable)
    with SafeRoot(tmp_path / "root", portable=portable) as root, pytest.raises(UnsafeName):
        root.create(name)
    assert list((tmp_path / "root").iterdir()) == []


@pytest.mark.parametrize("name", NOT_PORTABLE.values(), ids=NOT_PORTABLE)
def test_names_that_lie_elsewhere_are_refused_by_default(name: str) -> None:
    with pytest.raises(UnsafeName):
        check_names([name])
    if "\\" not in name:
        check_names([name], portable=False)


def test_good_names_pass() -> None:
    check_names(FINE)
    check_names([])


@pytest.mark.parametrize("names", CLASHES)
def test_clashes_are_refused(names: list[str]) -> None:
    for order in (names, names[::-1]):
        for portable in (True, False):
            with pytest.raises(UnsafeName):
                check_names([*order, "other"], portable=portable)


@pytest.mark.parametrize("names", CASE_CLASHES)
def test_names_that_differ_in_case_are_refused_by_default(names: list[str]) -> None:
    with pytest.raises(UnsafeName):
        check_names(names)
    check_names(names, portable=False)


def test_a_hundred_thousand_names() -> None:
    names = [f"directory {i % 100}/file {i}.txt" for i in range(100_000)]
    began = time.process_time()
    check_names(names)
    with pytest.raises(UnsafeName, match="twice"):
        check_names([*names, names[50_000]])
    # Measured 0.9 s for both.
    assert time.process_time() - began < 20


def test_deep_names_cost_no_more_than_their_length() -> None:
    names = ["a/" * 60 + str(i) for i in range(20_000)]
    began = time.process_time()
    check_names(names)
    assert time.process_time() - began < 20


nasty = st.text(st.sampled_from("aA.ÉéE\u0301/\\:\0 ~\u202e*NUL\ud800"), max_size=12)


@given(nasty | st.text(max_size=20), st.booleans())
def test_joined_paths_stay_below_the_root(name: str, portable: bool) -> None:
    root = Path("/nowhere/root")
    try:
        path = safe_join(root, name, portable=portable)
    except UnsafeName:
        return
    assert path.is_relative_to(root)
    assert path != root
    assert os.path.normpath(path) == str(path)
    assert str(path) == f"{root}/{name}"


@given(st.lists(nasty, max_size=6))
def test_accepted_names_are_distinct_files_on_any_system(names: list[str]) -> None:
    try:
        check_names(names)
    except UnsafeName:
        return
    folded = [name.casefold() for name in names]
    assert len(set(folded)) == len(names)
    for one in folded:
        assert not any(other.startswith(one + "/") for other in folded)


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
