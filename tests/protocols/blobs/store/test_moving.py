"""Exports that take no space: the content itself goes to its place, or its blocks are shared."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dialkey_blobs import Blobs, TargetExists
from dialkey_blobs.events import VerifiedLeaf, VerifiedParent
from dialkey_blobs.hash import BlobFormat, Hash
from dialkey_blobs.hashing import Buffer
from dialkey_blobs.safe_paths import SafeFile
from dialkey_blobs.store import (
    BlobDamaged,
    BlobState,
    CheckOutcome,
    DiskFull,
    FsStore,
    ImportMode,
    ReferenceChanged,
    files,
)
from dialkey_blobs.store.exporting import already_there, export_path
from dialkey_blobs.store.files import FileOps
from dialkey_blobs.store.fs_core import FsCore
from dialkey_blobs.store.recovery import claimed_files
from dialkey_blobs.store.values import finish

Content = Callable[..., bytes]
ItemsOf = Callable[..., tuple[int, list[VerifiedParent], list[VerifiedLeaf]]]


class NoLinks(FileOps):
    """A file system that has no hard links, or another one than the store's."""

    def take(self, file: SafeFile, source: Path, durable: bool) -> bool:
        return False


class NoSharing(NoLinks):
    """And does not share blocks either."""

    def clone(self, source: int, target: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")


@pytest.fixture
def core(tmp_path: Path) -> Iterator[FsCore]:
    core = FsCore(tmp_path / "store")
    yield core
    core.close()


def add(core: FsCore, data: bytes) -> Hash:
    [tag] = core.add_many([data], BlobFormat.RAW)
    tag.leak()
    core.commit()
    return tag.hash


def move(core: FsCore, hash: Hash, target: Path, *, overwrite: bool = False) -> None:
    steps = export_path(core, hash, target, overwrite=overwrite, durable=True, move=True)
    finish(steps)
    core.commit()


def data_files(root: Path) -> list[Path]:
    return sorted(root.glob("data/*/*.data"))


@pytest.mark.parametrize("size", [100_000, 5_000_000])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_content_itself_moves(
    core: FsCore, tmp_path: Path, content: Content, size: int, overwrite: bool
) -> None:
    data, target = content(size), tmp_path / "out" / "file"
    hash = add(core, data)
    inode = data_files(core.root)[0].stat().st_ino
    if overwrite:
        target.parent.mkdir()
        target.write_bytes(b"old")

    move(core, hash, target, overwrite=overwrite)

    assert target.read_bytes() == data
    assert (target.stat().st_ino, target.stat().st_nlink) == (inode, 1)
    assert os.listdir(target.parent) == ["file"]
    assert data_files(core.root) == []
    # The store goes on serving it from there, also the next time it is opened.
    core.close()
    again = FsCore(core.root)
    assert [info.is_reference for info in again.blobs()] == [True]
    with again.open(hash) as blob:
        assert blob.read_data(0, size) == data
        assert len(blob.read_outboard(0, size)) == 64 * (-(-size // 16_384) - 1)
    assert finish(again.check(hash)).outcome is CheckOutcome.GOOD
    target.write_bytes(b"edited")
    with pytest.raises(ReferenceChanged):
        again.open(hash)
    again.close()


def test_nothing_is_overwritten_unasked(core: FsCore, tmp_path: Path, content: Content) -> None:
    hash, target = add(core, content(100_000)), tmp_path / "file"
    safe = SafeFile(target, target.name, os.open(tmp_path, os.O_RDONLY), False)
    target.write_bytes(b"came meanwhile")
    with pytest.raises(TargetExists):
        finish(core.export(hash, safe, durable=False, move=True))
    core.commit()
    assert target.read_bytes() == b"came meanwhile"
    assert len(data_files(core.root)) == 1


def test_damaged_content_does_not_move(core: FsCore, tmp_path: Path, content: Content) -> None:
    hash = add(core, content(3_000_000))
    [stored] = data_files(core.root)
    with stored.open("r+b") as file:
        file.seek(2_000_000)
        file.write(b"damage")
    with pytest.raises(BlobDamaged):
        move(core, hash, tmp_path / "out" / "file")
    assert os.listdir(tmp_path / "out") == []
    assert stored.exists()


def test_a_file_of_the_user_does_not_move(core: FsCore, tmp_path: Path, content: Content) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(content(100_000))
    tag = finish(core.add_path(mine, ImportMode.REFERENCE, BlobFormat.RAW))
    core.commit()
    move(core, tag.hash, tmp_path / "copy")
    assert mine.read_bytes() == (tmp_path / "copy").read_bytes()
    assert mine.stat().st_ino != (tmp_path / "copy").stat().st_ino


@pytest.mark.parametrize("kind", [NoLinks, NoSharing])
def test_where_files_cannot_move_they_are_copied(
    tmp_path: Path, content: Content, kind: type[FileOps]
) -> None:
    data = content(5_000_000)
    core = FsCore(tmp_path / "store", ops=kind())
    hash = add(core, data)
    move(core, hash, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == data
    assert [info.is_reference for info in core.blobs()] == [False]
    core.close()


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP])
def test_a_system_that_refuses_links_is_noticed(
    core: FsCore, tmp_path: Path, content: Content, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, real = content(5_000_000), os.link

    def refuse(source: Path | str, *arguments: object, **options: object) -> None:
        if not str(source).startswith("/proc/"):
            raise OSError(code, os.strerror(code))
        real(source, *arguments, **options)  # type: ignore[arg-type]

    hash = add(core, data)
    monkeypatch.setattr(os, "link", refuse)
    move(core, hash, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == data
    with core.open(hash) as blob:
        assert blob.read_data(0, len(data)) == data


def test_space_is_looked_for_before_a_copy_is_begun(
    tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    class Ops(NoSharing):
        def pwrite(self, descriptor: int, data: Buffer, offset: int) -> int:
            written.append(len(data))
            return super().pwrite(descriptor, data, offset)

    core = FsCore(tmp_path / "store", ops=Ops())
    hash = add(core, content(5_000_000))
    written.clear()
    real = os.statvfs(tmp_path)
    fields = list(real)
    fields[4] = 1000  # f_bavail
    monkeypatch.setattr(files.os, "statvfs", lambda path: os.statvfs_result(fields))
    with pytest.raises(
        DiskFull, match=r"needs 5,0\d\d,\d\d\d bytes|needs 5,000,000 bytes"
    ) as caught:
        move(core, hash, tmp_path / "file")
    assert "free some space" in (caught.value.hint or "")
    assert written == []
    assert not (tmp_path / "file").exists()
    core.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_what_fits_once_can_be_received(
    tiny_disk: Path, content: Content, items_of: ItemsOf
) -> None:
    data = content(2_000_000)
    hash = Hash.of(data)
    async with Blobs.persistent(tiny_disk / "store") as blobs:
        await blobs.store.check_space(2_000_000)
        with pytest.raises(DiskFull):
            await blobs.store.check_space(3_200_000)
        with blobs.store.batch():
            await blobs.store.write_items(hash, *items_of(data))
        with pytest.raises(DiskFull, match="needs 2,000,000 bytes"):
            [f async for f in blobs.export(hash, tiny_disk / "out")]
        done = [f async for f in blobs.export(hash, tiny_disk / "out", move=True)]
        assert [(file.path.name, file.size) for file in done] == [("out", len(data))]
        # Again, as after a kill: nothing is in the way.
        assert [f async for f in blobs.export(hash, tiny_disk / "out", move=True)] == done
    assert (tiny_disk / "out").read_bytes() == data


async def test_a_collection_with_the_same_content_twice(tmp_path: Path, content: Content) -> None:
    data, small = content(300_000), content(500)
    target = tmp_path / "out"
    async with Blobs.persistent(tmp_path / "store") as blobs:
        tags = await blobs.store.add_many([data, small])
        names = [("a", tags[0].hash), ("b/a", tags[0].hash), ("c", tags[1].hash)]
        tag = await blobs.add_collection(names)
        target.mkdir()
        (target / "c").write_bytes(small)
        paths = [f.path async for f in blobs.export(tag.content, target, move=True)]
        assert sorted(paths) == [target / "a", target / "b" / "a", target / "c"]
        (target / "c").write_bytes(b"something else")
        with pytest.raises(TargetExists):
            [f async for f in blobs.export(tag.content, target, move=True)]
    assert (target / "a").read_bytes() == (target / "b" / "a").read_bytes() == data
    assert (target / "c").read_bytes() == b"something else"


# --- holes --------------------------------------------------------------------------------------


def makes_holes(folder: Path) -> bool:
    path = folder / "probe"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    blocks = path.stat().st_blocks
    path.unlink()
    return blocks == 0


@pytest.mark.parametrize("ops", [FileOps, NoSharing])
async def test_holes_stay_holes_from_end_to_end(
    tmp_path: Path, content: Content, items_of: ItemsOf, ops: type[FileOps]
) -> None:
    if not makes_holes(tmp_path):
        pytest.skip("this file system has no holes")
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.write(content(20_000))
        file.seek(9_000_000)
        file.write(content(5_000, 1))
        file.truncate(17_000_000)
    data = source.read_bytes()

    def taken(path: Path) -> int:
        return path.stat().st_blocks * 512

    async with FsStore(tmp_path / "receiving", ops=ops()) as store:
        size, parents, leaves = items_of(data)
        half = len(leaves) // 2
        # In two parts, so that it is not written in one piece as small blobs are.
        await store.write_items(Hash.of(data), size, parents, leaves[half:])
        await store.write_items(Hash.of(data), size, parents, leaves[:half])
        assert (await store.status(Hash.of(data))).state is BlobState.COMPLETE
        [stored] = data_files(tmp_path / "receiving")
        assert stored.stat().st_size == len(data)
        assert taken(stored) < 200_000
        assert await store.read(Hash.of(data)) == data
        await store.export(Hash.of(data), tmp_path / "exported")
    assert taken(tmp_path / "exported") < 200_000
    assert (tmp_path / "exported").read_bytes() == data
    async with FsStore(tmp_path / "importing", ops=ops()) as store:
        tag = await store.add_path(source, ImportMode.COPY)
        assert await store.read(tag.hash) == data
        [stored] = data_files(tmp_path / "importing")
        assert taken(stored) < len(data)


def test_zeros_that_replace_garbage_are_written(
    core: FsCore, content: Content, items_of: ItemsOf
) -> None:
    """A killed process may have left anything where the journal does not claim to hold content."""
    data = content(40_000) + bytes(400_000) + content(40_000, 1)
    hash = Hash.of(data)
    size, parents, leaves = items_of(data)
    core.write_items(hash, size, parents, leaves[:1])
    core.commit()
    with core.paths(hash).data.open("r+b") as file:
        file.seek(100_000)
        file.write(b"garbage" * 5000)
    core.write_items(hash, size, parents, leaves[1:])
    core.commit()
    with core.open(hash) as blob:
        assert blob.read_data(0, size) == data


# --- killing ------------------------------------------------------------------------------------


class KillingOps(FileOps):
    """Kills the process before or after one call."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.count = 0
        self._at = at
        self._after = after

    def _around(self, call: Callable[[], object]) -> object:
        self.count += 1
        if self.count == self._at and not self._after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return call()
        finally:
            if self.count == self._at:
                os.kill(os.getpid(), signal.SIGKILL)

    def take(self, file: SafeFile, source: Path, durable: bool) -> bool:
        return bool(self._around(lambda: FileOps.take(self, file, source, durable)))

    def unlink(self, path: str | Path) -> None:
        self._around(lambda: FileOps.unlink(self, path))

    def commit(self, connection: sqlite3.Connection) -> None:
        self._around(lambda: FileOps.commit(self, connection))

    def pwrite(self, descriptor: int, data: Buffer, offset: int) -> int:
        result = self._around(lambda: FileOps.pwrite(self, descriptor, data, offset))
        assert isinstance(result, int)
        return result


def test_a_kill_at_any_step_loses_nothing_and_the_export_goes_on(
    tmp_path: Path, content: Content
) -> None:
    blobs = {f"file {n}": content(size, n) for n, size in enumerate((400_000, 90_000, 700))}

    def export_all(core: FsCore, out: Path) -> None:
        wanted = [(Hash.of(data), len(data), out / name) for name, data in blobs.items()]
        there = finish(already_there(wanted))
        for hash, _, path in wanted:
            if path not in there:
                move(core, hash, path)

    for point, after in [(point, after) for point in range(1, 30) for after in (False, True)]:
        folder = tmp_path / f"{point} {after}"
        folder.mkdir()
        core = FsCore(folder / "store")
        for data in blobs.values():
            add(core, data)
        core.close()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                core = FsCore(folder / "store", ops=KillingOps(point, after=after))
                export_all(core, folder / "out")
                code = 0
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        was_killed = os.WIFSIGNALED(status)
        assert was_killed or status == 0
        core = FsCore(folder / "store")
        for data in blobs.values():
            with core.open(Hash.of(data)) as blob:
                assert blob.read_data(0, len(data)) == data
        export_all(core, folder / "out")
        for name, data in blobs.items():
            assert (folder / "out" / name).read_bytes() == data
        assert sorted(os.listdir(folder / "out")) == sorted(blobs)
        claimed: set[Path] = set()
        for info in core.blobs():
            assert finish(core.check(info.hash)).outcome is CheckOutcome.GOOD
            row = core.entry(info.hash)
            assert row is not None
            claimed |= claimed_files(row, core.paths(info.hash))
        core.commit()
        assert set(core.root.glob("data/*/*")) <= claimed
        core.close()
        if not was_killed:
            assert point > 12
            break
    else:
        raise AssertionError("the export has more steps than were tried")
