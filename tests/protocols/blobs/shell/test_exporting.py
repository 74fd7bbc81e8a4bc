"""Content as files: where they may go, and what is never overwritten or left half-written."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dialkey.errors import InvalidInput, StorageError, WireError
from dialkey_blobs import (
    BlobFormat,
    Blobs,
    Collection,
    Hash,
    HashAndFormat,
    HashSeq,
    TargetExists,
    UnsafeName,
    UnsendableName,
    collecting,
    files,
)
from dialkey_blobs.collecting import LeftOut, collect, collect_files
from dialkey_blobs.names import ANYWHERE
from dialkey_blobs.store import BlobDamaged, BlobIncomplete, BlobMissing, ImportMode


@pytest.fixture(params=["memory", "files"])
async def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Blobs]:
    made = Blobs.memory() if request.param == "memory" else Blobs.persistent(tmp_path / "store")
    async with made:
        yield made


async def collection_of(blobs: Blobs, *names: str) -> HashAndFormat:
    """Add a collection as a stranger may send it: names are not checked."""
    entries = []
    for number, name in enumerate(names):
        tag = await blobs.add_bytes(b"file %d" % number)
        tag.leak()
        entries.append((name, tag.hash))
    metadata, children = Collection(tuple(entries)).to_blobs()
    (await blobs.add_bytes(metadata)).leak()
    tag = await blobs.store.add_bytes(children.data, BlobFormat.HASH_SEQ)
    tag.leak()
    return tag.content


async def export(blobs: Blobs, content: HashAndFormat | Hash, target: Path, **options: bool) -> int:
    return len([file async for file in blobs.export(content, target, **options)])


def everything_below(path: Path) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*"))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/etc/passwd",
        "../escape",
        "a/../../escape",
        "a/./b",
        "a//b",
        "a/",
        ".",
        "..",
        "..\\..\\escape",
        "C:\\windows",
        "nul\0byte",
        "line\nbreak",
        "/".join("a" * 100),
        "\u202eevil.exe",
    ],
)
async def test_adversarial_names_write_nothing(blobs: Blobs, name: str, tmp_path: Path) -> None:
    content = await collection_of(blobs, "good", name)
    target = tmp_path / "target"
    with pytest.raises(UnsafeName):
        await export(blobs, content, target)
    assert not target.exists()
    assert not (tmp_path / "escape").exists()


@pytest.mark.parametrize("names", [("same", "same"), ("a", "a/b"), ("a/b", "a")])
async def test_names_that_cannot_stand_beside_each_other(
    blobs: Blobs, names: tuple[str, ...], tmp_path: Path
) -> None:
    content = await collection_of(blobs, *names)
    with pytest.raises(UnsafeName):
        await export(blobs, content, tmp_path / "target")
    assert not (tmp_path / "target").exists()


ODD_NAMES = (
    *("10:30 notes.txt", "etc.", "aux.c", "a\\b", "Readme", "README", "é", "e\u0301", "A", "a/b"),
    *("naïve 日本.txt", "what?", " x "),
)


async def test_what_this_system_can_hold_is_received_as_it_is(blobs: Blobs, tmp_path: Path) -> None:
    content = await collection_of(blobs, *ODD_NAMES)
    assert await export(blobs, content, tmp_path / "target") == len(ODD_NAMES)
    for number, name in enumerate(ODD_NAMES):
        assert (tmp_path / "target" / name).read_bytes() == b"file %d" % number


async def test_what_a_system_cannot_hold_gets_a_safe_name(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "naming_of", lambda folder: ANYWHERE)
    content = await collection_of(blobs, *ODD_NAMES)
    paths = [exported.path async for exported in blobs.export(content, tmp_path / "target")]
    assert [path.name for path in paths[:4]] == ["10_30 notes.txt", "etc_", "_aux.c", "a_b"]
    for number, path in enumerate(paths):
        assert path.read_bytes() == b"file %d" % number
    assert len({str(path).casefold() for path in paths}) == len(ODD_NAMES)


async def test_a_name_that_is_too_long_here_is_shortened(blobs: Blobs, tmp_path: Path) -> None:
    content = await collection_of(blobs, "日" * 150 + ".jpg", "日" * 151 + ".jpg")
    paths = [exported.path async for exported in blobs.export(content, tmp_path / "target")]
    assert [path.read_bytes() for path in paths] == [b"file 0", b"file 1"]
    assert all(path.suffix == ".jpg" for path in paths)


async def test_nothing_is_overwritten_unasked(blobs: Blobs, tmp_path: Path) -> None:
    content = await collection_of(blobs, "a", "b/c", "d")
    target = tmp_path / "target"
    (target / "b").mkdir(parents=True)
    (target / "b/c").write_bytes(b"precious")

    with pytest.raises(TargetExists) as caught:
        await export(blobs, content, target)
    assert caught.value.path == target / "b/c"
    # Nothing else was written either.
    assert everything_below(target) == ["b", "b/c"]
    assert (target / "b/c").read_bytes() == b"precious"

    assert await export(blobs, content, target, overwrite=True) == 3
    assert (target / "b/c").read_bytes() == b"file 1"
    assert everything_below(target) == ["a", "b", "b/c", "d"]


@pytest.mark.parametrize("overwrite", [False, True])
async def test_links_are_not_followed(blobs: Blobs, overwrite: bool, tmp_path: Path) -> None:
    content = await collection_of(blobs, "link/file")
    target, outside = tmp_path / "target", tmp_path / "outside"
    target.mkdir()
    outside.mkdir()
    (target / "link").symlink_to(outside)
    with pytest.raises(StorageError):
        await export(blobs, content, target, overwrite=overwrite)
    assert everything_below(outside) == []


async def test_a_link_in_the_place_of_a_file_is_replaced_itself(
    blobs: Blobs, tmp_path: Path
) -> None:
    content = await collection_of(blobs, "file")
    target, outside = tmp_path / "target", tmp_path / "outside"
    target.mkdir()
    outside.write_bytes(b"precious")
    (target / "file").symlink_to(outside)
    with pytest.raises(TargetExists):
        await export(blobs, content, target)
    await export(blobs, content, target, overwrite=True)
    assert outside.read_bytes() == b"precious"
    assert (target / "file").read_bytes() == b"file 0"


async def test_an_incomplete_collection_is_not_begun(blobs: Blobs, tmp_path: Path) -> None:
    content = await collection_of(blobs, "a", "b")
    await blobs.store.delete(Hash.of(b"file 1"), force=True)
    with pytest.raises(BlobMissing):
        await export(blobs, content, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    with pytest.raises((BlobMissing, BlobIncomplete)):
        await export(blobs, Hash.of(b"never heard of"), tmp_path / "file")
    assert not (tmp_path / "file").exists()


async def test_single_blobs(blobs: Blobs, tmp_path: Path) -> None:
    data = random.Random(0).randbytes(5_000_000)
    tag = await blobs.add_bytes(data)
    # A name that the user of this machine chose may be anything.
    target = tmp_path / "new folder/a:b*c"
    [file] = [each async for each in blobs.export(tag.hash, target, durable=True)]
    assert (file.path, file.size) == (target, len(data))
    assert target.read_bytes() == data
    target.write_bytes(b"something else")
    with pytest.raises(TargetExists):
        await export(blobs, tag.content, target)
    assert target.read_bytes() == b"something else"
    assert await export(blobs, tag.content, target, overwrite=True) == 1
    assert target.read_bytes() == data


async def test_what_is_damaged_in_the_store_gets_no_name(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(1_000_000)
    async with Blobs.persistent(tmp_path / "store") as blobs:
        tag = await blobs.add_bytes(data)
        [stored] = [
            path
            for path in (tmp_path / "store").rglob("*")
            if path.is_file() and path.stat().st_size == len(data)
        ]
        stored.write_bytes(data[:500_000] + b"damage" + data[500_006:])
        with pytest.raises(BlobDamaged):
            await export(blobs, tag.hash, tmp_path / "out/file")
        assert everything_below(tmp_path / "out") == []


async def test_what_is_not_a_collection(blobs: Blobs, tmp_path: Path) -> None:
    a = await blobs.add_bytes(b"no list of names")
    sequence = await blobs.store.add_bytes(HashSeq.of([a.hash]).data, BlobFormat.HASH_SEQ)
    with pytest.raises(WireError):
        await export(blobs, sequence.content, tmp_path / "target")
    empty = HashAndFormat(Hash.of(b""), BlobFormat.HASH_SEQ)
    with pytest.raises(InvalidInput):
        await export(blobs, empty, tmp_path / "target")
    assert not (tmp_path / "target").exists()


# --- which files go in --------------------------------------------------------------------------


def test_which_files_are_collected(tmp_path: Path) -> None:
    for name in ("b/x", "b/a/y", "b.c", "z"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "b/empty").mkdir()
    (tmp_path / "b/link").symlink_to("x")
    (tmp_path / "b/loop").symlink_to("..")
    os.mkfifo(tmp_path / "b/pipe")
    names = [name for name, _ in collect_files([tmp_path / "b", tmp_path / "b.c", tmp_path / "z"])]
    assert names == ["b.c", "b/a/y", "b/x", "z"]
    # A link that was given itself is followed, and keeps its own name.
    (tmp_path / "alias").symlink_to("b")
    assert [name for name, _ in collect_files([tmp_path / "alias"])] == ["alias/a/y", "alias/x"]
    (tmp_path / "file alias").symlink_to("z")
    assert collect_files([tmp_path / "file alias"]) == [("file alias", tmp_path / "file alias")]


def test_a_folder_gives_its_name_however_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "top" / "sub").mkdir(parents=True)
    (tmp_path / "top" / "file").touch()
    monkeypatch.chdir(tmp_path / "top" / "sub")
    for given in ("..", "../", "../sub/..", "../../top", str(tmp_path / "top")):
        assert [name for name, _ in collect_files([given])] == ["top/file"]
    monkeypatch.chdir(tmp_path / "top")
    assert [name for name, _ in collect_files(["."])] == ["top/file"]
    assert [name for name, _ in collect_files(["file", "./file", "../top/file"])] == ["file"]
    with pytest.raises(InvalidInput, match="whole file system"):
        collect_files(["/"])


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "empty").mkdir(parents=True)
    (top / "file").touch()
    (top / "link").symlink_to("file")
    (top / "to folder").symlink_to("empty")
    (top / "dangling").symlink_to("nowhere")
    os.mkfifo(top / "pipe")
    (top / ".dialkey-0123456789abcdef").mkdir()
    (top / ".dialkey-0123456789abcdef" / "database").touch()
    (top / ".dialkey-0123456789abcdef.part").touch()
    collected = collect([top])
    assert collected.files == (("top/file", top / "file"),)
    assert collected.left_out == (
        LeftOut(top / ".dialkey-0123456789abcdef", "download state"),
        LeftOut(top / ".dialkey-0123456789abcdef.part", "download state"),
        LeftOut(top / "dangling", "link"),
        LeftOut(top / "empty", "empty folder"),
        LeftOut(top / "link", "link"),
        LeftOut(top / "pipe", "special file"),
        LeftOut(top / "to folder", "link"),
    )


async def test_the_library_tells_what_is_left_out(blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "top" / "empty").mkdir(parents=True)
    (tmp_path / "top" / "file").touch()
    told: list[LeftOut] = []
    await blobs.add_files([tmp_path / "top"], on_left_out=told.append)
    assert told == [LeftOut(tmp_path / "top" / "empty", "empty folder")]


def test_special_files_cannot_be_given(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        for name, kind in (
            (tmp_path / "pipe", "a named pipe"),
            (tmp_path / "link", "a named pipe"),
            (tmp_path / "socket", "a socket"),
            ("/dev/null", "a device"),
        ):
            with pytest.raises(InvalidInput, match=kind):
                collect([name])


def test_a_folder_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "top" / "secret").mkdir(parents=True)
    (tmp_path / "top" / "file").touch()
    genuine = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "secret":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return genuine(path)

    # Tests run as root, too, who may read everything.
    monkeypatch.setattr(collecting.os, "scandir", refuse)
    for given in ("top", "top/secret"):
        with pytest.raises(StorageError, match=r"secret' cannot be read: Permission denied"):
            collect([tmp_path / given])


def test_what_cannot_be_collected(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is no file or folder"):
        collect_files([tmp_path / "missing"])
    with pytest.raises(InvalidInput, match="there are no files"):
        collect_files([tmp_path])
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same").touch()
    with pytest.raises(InvalidInput, match="two files"):
        collect_files([tmp_path / "one/same", tmp_path / "two/same"])
    (tmp_path / "one" / "line\nbreak").touch()
    with pytest.raises(UnsendableName):
        collect_files([tmp_path / "one"])


async def test_names_that_others_could_not_receive_are_not_offered(blobs: Blobs) -> None:
    tag = await blobs.add_bytes(b"x")
    for name in ("../x", "/x", "a\nb", ""):
        with pytest.raises(UnsendableName):
            await blobs.add_collection([(name, tag.hash)])


async def test_files_that_change_after_they_were_added_by_reference(tmp_path: Path) -> None:
    data = random.Random(2).randbytes(100_000)
    path = tmp_path / "referenced"
    path.write_bytes(data)
    async with Blobs.persistent(tmp_path / "store") as blobs:
        tag = await blobs.add_path(path, ImportMode.REFERENCE)
        assert await blobs.read_bytes(tag.hash) == data
        path.write_bytes(data[:-1])
        with pytest.raises(StorageError):
            await export(blobs, tag.hash, tmp_path / "out")
        assert not (tmp_path / "out").exists()


# --- paths are read as given ----------------------------------------------------------------------


async def test_no_path_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell had its turn: what still begins with a tilde is called so."""
    home = tmp_path / "home"
    (home / "secret").mkdir(parents=True)
    (home / "secret" / "key").write_text("ssh key")
    monkeypatch.setenv("HOME", str(home))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    names = ["~$report.docx", "~backup", "~nobody-of-this-name"]
    for name in names:
        (here / name).write_text(name)
    assert [name for name, _ in collect_files(names)] == names
    async with Blobs.persistent("~/store") as blobs:
        tag, entries = await blobs.add_files(names)
        assert [entry.name for entry in entries] == names
        await export(blobs, tag.content, Path("~/out"))
        await export(blobs, entries[0].hash, Path("~/single"))
    assert everything_below(home) == ["secret", "secret/key"]
    below = everything_below(here / "~" / "out")
    assert below == names
    assert (here / "~" / "single").read_text() == names[0]
    names = [name for name, _ in collect_files(["~"])]
    assert {name.split("/")[0] for name in names} == {"~"}
    assert "~/out/~backup" in names
