"""Kill -9 at any moment, full disks, power failures: nothing that was promised is lost.

A workload of all kinds of changes runs in a child process, which tells through a pipe what has been
promised to it. It is killed at a chosen call of the file system, in the middle of a write or of a
commit, or from outside. Then the store is opened again, compared with the promises, and the work
goes on.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import sqlite3
import subprocess
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from dialkey.errors import StorageError
from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.events import VerifiedLeaf, VerifiedParent
from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat
from dialkey_blobs.hashing import Buffer
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.store import (
    BlobState,
    CheckOutcome,
    DiskFull,
    FileFailed,
    FsStore,
    ImportMode,
    StoreCore,
    TempTag,
    partial,
)
from dialkey_blobs.store.exporting import begin_export
from dialkey_blobs.store.files import FileOps
from dialkey_blobs.store.fs_core import FsCore
from dialkey_blobs.store.gc import collect
from dialkey_blobs.store.recovery import claimed_files
from dialkey_blobs.store.values import finish

Content = Callable[..., bytes]
ItemsOf = Callable[..., tuple[int, list[VerifiedParent], list[VerifiedLeaf]]]
Promise = Callable[[str], None]


# Made once, since verifying is the slow part.
_pieces: list[tuple[bytes, ChunkRanges, tuple[int, list[VerifiedParent], list[VerifiedLeaf]]]] = []


# --- the workload -------------------------------------------------------------------------------


class Workload:
    """Things to do with a store; doing them again does what is still missing.

    Args:
        folder: where the store, the files to import and the exported ones are.
        content: makes content.
        items_of: makes verified items.
    """

    def __init__(self, folder: Path, content: Content, items_of: ItemsOf) -> None:
        self.root = folder / "store"
        self.out = folder / "out"
        self.small = [content(size, 1) for size in (100, 5000, 16_384)]
        self.medium = content(90_000, 1)
        self.large = content((4 << 20) + 32_768, 1)
        self.referenced = content(120_000, 1)
        self.garbage = [content(size, 2) for size in (300, 50_000)]
        self.fetched = [content(size, 3) for size in (900, 9_000, 30_000, 100_000, 500_000)]
        self.sources = folder / "sources"
        self.sources.mkdir()
        (self.sources / "copied").write_bytes(self.large)
        (self.sources / "referenced").write_bytes(self.referenced)
        self._items_of = items_of
        self.pieces = self._make_pieces(items_of)

    def _make_pieces(
        self, items_of: ItemsOf
    ) -> list[tuple[bytes, ChunkRanges, tuple[int, list[VerifiedParent], list[VerifiedLeaf]]]]:
        """Return the pieces of all blobs that are fetched, in turns."""
        if not _pieces:
            for blob in self.fetched:
                chunks = -(-len(blob) // 1024)
                width = chunks // 5 + 3
                for start in range(0, chunks, width):
                    ranges = ChunkRanges.between(start, start + width)
                    _pieces.append((blob, ranges, items_of(blob, ranges)))
            random.Random(5).shuffle(_pieces)
        return _pieces

    @property
    def blobs(self) -> list[bytes]:
        """What is held in the end."""
        return [*self.small, self.medium, self.large, self.referenced, *self.fetched]

    def steps(self, core: StoreCore, promise: Promise) -> Iterator[Callable[[], None]]:
        """Yield what to do; each is followed by a commit before the next."""

        def add(blobs: list[bytes], name: str) -> None:
            for tag in core.add_many(blobs, BlobFormat.RAW):
                core.set_tag(name.encode() + tag.hash.digest[:4], tag.content)
                promise(f"whole {tag.hash} if committed")

        def add_path(name: str, mode: ImportMode) -> None:
            tag = finish(core.add_path(self.sources / name, mode, BlobFormat.RAW))
            core.set_tag(name.encode(), tag.content)
            promise(f"whole {tag.hash} if committed")

        def write(blob: bytes, ranges: ChunkRanges, number: int) -> None:
            core.set_tag(b"fetched %d" % len(blob), HashAndFormat(Hash.of(blob)))
            hash = Hash.of(blob)
            if core.status(hash).bitfield.ranges >= ranges:
                return
            core.write_items(hash, *self.pieces[number][2])
            promise(f"part {number} if committed")

        def import_pieces() -> None:
            arriving = core.begin_import(BlobFormat.RAW)
            try:
                arriving.write(self.medium[:50_000])
                arriving.write(self.medium[50_000:])
                tag = finish(arriving.finish())
            finally:
                arriving.discard()
            core.set_tag(b"medium", tag.content)
            promise(f"whole {tag.hash} if committed")

        def make_garbage() -> None:
            core.add_many(self.garbage, BlobFormat.RAW)
            blob = self.garbage[1] + b"partial"
            core.write_items(Hash.of(blob), *self._items_of(blob, ChunkRanges.between(0, 16)))

        def export() -> None:
            if not self.out.exists():
                file = begin_export(core, Hash.of(self.large), self.out, overwrite=False)
                finish(core.export(Hash.of(self.large), file, durable=False))
                promise("exported")

        yield lambda: add(self.small, "small")
        yield make_garbage
        third = len(self.pieces) // 3
        for number, (blob, ranges, _) in enumerate(self.pieces):
            if number == third:
                yield lambda: add_path("copied", ImportMode.COPY)
                yield export
                yield lambda: finish(collect(core)) and None
            if number == 2 * third:
                yield import_pieces
                yield lambda: add_path("referenced", ImportMode.REFERENCE)
                yield make_garbage
            yield lambda b=blob, r=ranges, n=number: write(b, r, n)  # type: ignore[misc]
        yield lambda: finish(collect(core)) and None

    def run(self, core: StoreCore, promise: Promise = lambda text: None) -> None:
        """Do everything."""
        for step in self.steps(core, promise):
            step()
            core.commit()
            promise("committed")

    def assert_promises(self, core: FsCore, promises: list[str]) -> None:
        """Compare a store that was opened again with what was promised before."""
        committed = (
            len(promises) - promises[::-1].index("committed") if "committed" in (promises) else 0
        )
        for promise in promises[:committed]:
            kind, _, rest = promise.partition(" ")
            if kind == "whole":
                assert core.status(Hash.parse(rest.split()[0])).state is BlobState.COMPLETE
            elif kind == "part":
                blob, ranges, _ = self.pieces[int(rest.split()[0])]
                assert core.status(Hash.of(blob)).bitfield.ranges >= ranges.limited_to(len(blob))
            elif kind == "exported":
                assert self.out.exists()
        self.assert_sound(core)

    def assert_sound(self, core: FsCore) -> None:
        """Check that everything the store claims to hold is right, and that there is nothing else.

        Nothing is struck off: what a kill leaves needs no repair.
        """
        by_hash = {Hash.of(blob): blob for blob in [*self.blobs, *self.garbage]}
        partial_garbage = self.garbage[1] + b"partial"
        by_hash[Hash.of(partial_garbage)] = partial_garbage
        for info in core.blobs():
            blob = by_hash[info.hash]
            bitfield = core.status(info.hash).bitfield
            with core.open(info.hash) as opened:
                for first, end in bitfield.ranges.limited_to(len(blob)).runs():
                    assert end is not None
                    start, stop = first * 1024, min(end * 1024, len(blob))
                    assert opened.read_data(start, stop - start) == blob[start:stop]
            report = finish(core.check(info.hash))
            assert report.outcome is CheckOutcome.GOOD, report
        core.commit()
        if self.out.exists():
            assert self.out.read_bytes() == self.large
        assert sorted(os.listdir(self.out.parent)) == sorted(
            ["sources", "store"] + ["out"] * self.out.exists()
        )
        self.assert_no_rubbish(core)

    def assert_no_rubbish(self, core: FsCore) -> None:
        """Check that every file belongs to an entry."""
        claimed: set[Path] = set()
        for info in core.blobs():
            row = core.entry(info.hash)
            assert row is not None
            claimed |= claimed_files(row, core.paths(info.hash))
        assert set(core.root.glob("data/*/*")) <= claimed
        assert list(core.root.glob("temp/*")) == []

    def assert_done(self, core: FsCore) -> None:
        """Check that all has been done."""
        for blob in self.blobs:
            with core.open(Hash.of(blob)) as opened:
                assert opened.read_data(0, opened.size) == blob
        assert {info.hash for info in core.blobs()} == set(map(Hash.of, self.blobs))
        assert self.out.read_bytes() == self.large


@pytest.fixture
def workload(tmp_path: Path, content: Content, items_of: ItemsOf) -> Workload:
    return Workload(tmp_path, content, items_of)


@pytest.fixture(autouse=True)
def short_journals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let journals be rewritten often, so that this is interrupted too."""
    monkeypatch.setattr(partial, "_COMPACT_BYTES", 200)


# --- killing ------------------------------------------------------------------------------------


class KillingOps(FileOps):
    """Kills the process at one call: before it, after it, or in the middle of a write.

    Args:
        at: the number of the call, from 1; 0 for never.
        seed: decides where exactly.
    """

    def __init__(self, at: int = 0, seed: int = 0) -> None:
        self.count = 0
        self._at = at
        self._random = random.Random(seed)

    def _is_now(self) -> bool:
        self.count += 1
        return self.count == self._at

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def pwrite(self, descriptor: int, data: Buffer, offset: int) -> int:
        if self._is_now():
            count = self._random.choice([0, len(data), self._random.randrange(len(data) + 1)])
            super().pwrite(descriptor, memoryview(data)[:count], offset)
            self._die()
        return super().pwrite(descriptor, data, offset)

    def pwritev(self, descriptor: int, parts: Sequence[Buffer], offset: int) -> int:
        return self.pwrite(descriptor, b"".join(parts), offset)

    def _around(self, call: Callable[[], None]) -> None:
        now = self._is_now()
        if now and self._random.random() < 0.5:
            self._die()
        try:
            call()
        finally:
            if now:
                self._die()

    def ftruncate(self, descriptor: int, length: int) -> None:
        self._around(lambda: FileOps.ftruncate(self, descriptor, length))

    def replace(self, source: str | Path, target: str | Path) -> None:
        self._around(lambda: FileOps.replace(self, source, target))

    def unlink(self, path: str | Path) -> None:
        self._around(lambda: FileOps.unlink(self, path))

    def mkdir(self, path: str | Path) -> None:
        self._around(lambda: FileOps.mkdir(self, path))

    def commit(self, connection: sqlite3.Connection) -> None:
        self._around(lambda: FileOps.commit(self, connection))

    def open(self, path: str | Path, flags: int, mode: int = 0o666) -> int:
        if flags & os.O_CREAT and self._is_now():
            if self._random.random() < 0.5:
                super().open(path, flags, mode)
            self._die()
        return super().open(path, flags, mode)


def in_child(work: Callable[[Promise], None], on_promise: Callable[[int, int], None]) -> int:
    """Run `work` in a child process; return how it ended, as `os.waitpid` has it.

    Args:
        work: called in the child with a function that reports a line.
        on_promise: called with the child's id and the number of lines so far.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            work(lambda text: (os.write(writing, f"{text}\n".encode()), None)[1])
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    os.close(writing)
    promises.clear()
    with os.fdopen(reading) as lines:
        for line in lines:
            promises.append(line.strip())
            on_promise(child, len(promises))
    return os.waitpid(child, 0)[1]


promises: list[str] = []


def run_and_die(workload: Workload, ops: FileOps, kill_after: int = 0) -> bool:
    """Run the workload in a child; return whether it was killed."""

    def work(promise: Promise) -> None:
        core = FsCore(workload.root, ops=ops)
        workload.run(core, promise)
        core.close()

    def on_promise(child: int, count: int) -> None:
        if count == kill_after:
            os.kill(child, signal.SIGKILL)

    status = in_child(work, on_promise)
    assert status == 0 or os.WIFSIGNALED(status), "the workload failed"
    return os.WIFSIGNALED(status)


def count_calls(workload: Workload, ops: KillingOps) -> int:
    """Return how many calls to the file system the whole workload makes."""
    core = FsCore(workload.root, ops=ops)
    workload.run(core)
    workload.assert_done(core)
    count = ops.count
    core.close()
    return count


@pytest.mark.slow
def test_killed_at_twenty_points(tmp_path: Path, content: Content, items_of: ItemsOf) -> None:
    (tmp_path / "whole").mkdir()
    total = count_calls(Workload(tmp_path / "whole", content, items_of), KillingOps())
    points = random.Random(11).sample(range(1, total), 20)
    for seed, point in enumerate(points):
        folder = tmp_path / f"{point}"
        folder.mkdir()
        workload = Workload(folder, content, items_of)
        assert run_and_die(workload, KillingOps(point, seed)), f"call {point} of {total}"
        core = FsCore(workload.root)
        workload.assert_promises(core, promises)
        workload.run(core)
        workload.assert_done(core)
        workload.assert_no_rubbish(core)
        core.close()


def test_killed_again_and_again(workload: Workload) -> None:
    """The same store is killed every few calls, during recovery too, and still gets there."""
    chance = random.Random(12)
    kills = 0
    while run_and_die(workload, KillingOps(chance.randrange(8, 50 + 6 * kills), kills)):
        kills += 1
        if kills % 5 == 0:
            core = FsCore(workload.root)
            workload.assert_promises(core, promises)
            core.close()
        assert kills < 60
    assert kills > 5
    core = FsCore(workload.root)
    workload.assert_done(core)
    workload.assert_sound(core)
    core.close()


@pytest.mark.parametrize("after", [1, 4, 9, 15, 22, 31, 40])
def test_killed_from_outside(workload: Workload, after: int) -> None:
    """The signal comes when it comes: in Python, in a system call, or within SQLite."""
    run_and_die(workload, FileOps(), kill_after=after)
    core = FsCore(workload.root)
    workload.assert_promises(core, promises)
    workload.run(core)
    workload.assert_done(core)
    core.close()


def test_what_was_verified_is_not_fetched_again(
    workload: Workload, content: Content, items_of: ItemsOf
) -> None:
    """Of a download that is killed over and over, every piece comes at most once more."""
    data = content(300_000, 9)
    hash = Hash.of(data)
    pieces = [ChunkRanges.between(start, start + 16) for start in range(0, 293, 16)]
    items = [items_of(data, ranges) for ranges in pieces]
    fetches = kills = 0
    chance = random.Random(13)

    def download(promise: Promise) -> None:
        core = FsCore(workload.root, ops=KillingOps(chance.randrange(12, 40), kills))
        for ranges, piece in zip(pieces, items, strict=True):
            if not ranges.limited_to(len(data)) <= core.status(hash).bitfield.ranges:
                promise("fetch")
                core.write_items(hash, *piece)
                core.commit()
        core.close()

    while True:
        chance.random()
        status = in_child(download, lambda child, count: None)
        fetches += len(promises)
        if status == 0:
            break
        assert os.WIFSIGNALED(status)
        kills += 1
        assert kills < 100
    assert kills > 3
    assert fetches <= len(pieces) + kills
    core = FsCore(workload.root)
    with core.open(hash) as blob:
        assert blob.read_data(0, len(data)) == data
    core.close()


# --- power failures -----------------------------------------------------------------------------


def partly(core: StoreCore, data: bytes, ranges: ChunkRanges, items_of: ItemsOf) -> None:
    core.write_items(Hash.of(data), *items_of(data, ranges))
    core.commit()


def test_after_a_power_failure_only_what_is_sound_is_believed(
    tmp_path: Path, content: Content, items_of: ItemsOf
) -> None:
    data = content(1 << 20)
    hash = Hash.of(data)
    ranges = ChunkRanges((0, 300, 400, 450, 1000))

    def work(promise: Promise) -> None:
        core = FsCore(tmp_path, epoch=b"before")
        partly(core, data, ranges, items_of)

    assert in_child(work, lambda child, count: None) == 0
    core = FsCore(tmp_path, epoch=b"before")
    # The same system still runs: nothing is hashed, nothing forgotten.
    assert core.status(hash).bitfield.ranges == ranges
    path = core.paths(hash).data

    # Now pages got lost that the journal speaks of.
    def lose(promise: Promise) -> None:
        again = FsCore(tmp_path, epoch=b"before")
        assert again.status(hash).bitfield.ranges == ranges

    core._database.close()
    core._partials.close_all()
    core._lock.release()
    assert in_child(lose, lambda child, count: None) == 0
    with path.open("r+b") as file:
        file.seek(40 * 1024)
        file.write(bytes(4096))
        file.truncate((1 << 20) - 10)
    core = FsCore(tmp_path, epoch=b"after")
    held = core.status(hash).bitfield
    # Groups 2 and 63 are damaged; of the groups that were held in part, nothing proves them.
    assert held == Bitfield(
        1 << 20, ChunkRanges((0, 32, 48, 288, 400, 448, 1008)) - (ChunkRanges.between(1008))
    )
    partly(core, data, ChunkRanges.all(), items_of)
    with core.open(hash) as blob:
        assert blob.read_data(0, len(data)) == data
    core.close()


def test_after_closing_a_power_failure_changes_nothing(
    tmp_path: Path, content: Content, items_of: ItemsOf
) -> None:
    data = content(1 << 20)
    ranges = ChunkRanges((3, 300, 1000))
    core = FsCore(tmp_path, epoch=b"before")
    partly(core, data, ranges, items_of)
    core.close()
    core = FsCore(tmp_path, epoch=b"after")
    # Also what only hashing could not prove is still there, so it was not hashed.
    assert core.status(Hash.of(data)).bitfield.ranges == ranges
    core.close()


def test_a_complete_blob_whose_file_lost_its_end(
    tmp_path: Path, content: Content, items_of: ItemsOf
) -> None:
    data = content(1 << 20)

    def work(promise: Promise) -> None:
        core = FsCore(tmp_path, epoch=b"before")
        core.add_many([data], BlobFormat.RAW)
        core.commit()

    assert in_child(work, lambda child, count: None) == 0
    core = FsCore(tmp_path, epoch=b"after")
    path = core.paths(Hash.of(data)).data
    core.close()
    assert in_child(lambda promise: FsCore(tmp_path).commit(), lambda child, count: None) == 0
    os.truncate(path, 100_000)
    core = FsCore(tmp_path, epoch=b"after")
    assert core.status(Hash.of(data)).bitfield.ranges == ChunkRanges.between(0, 96)
    core.close()


# --- full disks and other refusals --------------------------------------------------------------


class FailingOps(KillingOps):
    """Fails from one call on, until told otherwise; writes may get half through.

    Args:
        at: the first call that fails.
        code: the error.
    """

    def __init__(self, at: int, code: int = errno.ENOSPC) -> None:
        super().__init__(0, at)
        self.first_failure = at
        self._code = code

    @property
    def _fails(self) -> bool:
        return self.count >= self.first_failure

    def mend(self) -> None:
        self.first_failure = 1 << 60

    def _refuse(self) -> None:
        raise OSError(self._code, os.strerror(self._code))

    def pwrite(self, descriptor: int, data: Buffer, offset: int) -> int:
        self.count += 1
        if self._fails:
            count = self._random.randrange(len(data) + 1)
            if count == 0 or count == len(data):
                self._refuse()
            return FileOps.pwrite(self, descriptor, memoryview(data)[:count], offset)
        return FileOps.pwrite(self, descriptor, data, offset)

    def pwritev(self, descriptor: int, parts: Sequence[Buffer], offset: int) -> int:
        return self.pwrite(descriptor, b"".join(parts), offset)

    def _around(self, call: Callable[[], None]) -> None:
        self.count += 1
        if self._fails:
            self._refuse()
        call()

    def unlink(self, path: str | Path) -> None:
        FileOps.unlink(self, path)  # removing is what always goes

    def commit(self, connection: sqlite3.Connection) -> None:
        self.count += 1
        if self._fails:
            raise sqlite3.OperationalError("database or disk is full")
        FileOps.commit(self, connection)

    def open(self, path: str | Path, flags: int, mode: int = 0o666) -> int:
        if flags & os.O_CREAT:
            self.count += 1
            if self._fails and not os.path.exists(path):
                self._refuse()
        return FileOps.open(self, path, flags, mode)


@pytest.mark.slow
def test_a_full_disk_at_every_point(tmp_path: Path, content: Content, items_of: ItemsOf) -> None:
    (tmp_path / "whole").mkdir()
    total = count_calls(Workload(tmp_path / "whole", content, items_of), FailingOps(1 << 60))
    for point in random.Random(14).sample(range(20, total), 20):
        folder = tmp_path / f"{point}"
        folder.mkdir()
        workload = Workload(folder, content, items_of)
        ops = FailingOps(point)
        core = FsCore(workload.root, ops=ops)
        promised: list[str] = []
        with pytest.raises(StorageError) as caught:
            workload.run(core, promised.append)
        assert isinstance(caught.value, DiskFull) or "out" in str(caught.value)
        assert caught.value.hint
        # Its frames hold temp tags.
        caught.value.with_traceback(None)
        del caught
        # It is still full.
        with pytest.raises(StorageError):
            workload.run(core, promised.append)
        with suppress(StorageError):
            core.commit()
        # There is space again: the same store goes on.
        ops.mend()
        workload.assert_promises(core, promised)
        workload.run(core)
        workload.assert_done(core)
        workload.assert_no_rubbish(core)
        core.close()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EIO, errno.EMFILE])
def test_other_refusals_name_the_path_and_help(tmp_path: Path, content: Content, code: int) -> None:
    ops = FailingOps(1 << 60, code)
    core = FsCore(tmp_path / "store", ops=ops)
    ops.first_failure = 0
    with pytest.raises(FileFailed) as caught:
        core.add_many([content(100_000)], BlobFormat.RAW)
    ops.mend()
    assert caught.value.errno == code
    assert str(tmp_path) in str(caught.value)
    assert caught.value.hint
    core.add_many([content(100_000)], BlobFormat.RAW)
    core.close()


def test_closing_on_a_full_disk_loses_nothing(
    tmp_path: Path, content: Content, items_of: ItemsOf, caplog: pytest.LogCaptureFixture
) -> None:
    data = content(100_000)
    ops = FailingOps(1 << 60)
    core = FsCore(tmp_path, ops=ops)
    partly(core, data, ChunkRanges.between(0, 16), items_of)
    ops.first_failure = 0
    core.close()
    assert "was not closed cleanly" in caplog.text
    core.close()
    core = FsCore(tmp_path)
    assert core.status(Hash.of(data)).bitfield.ranges == ChunkRanges.between(0, 16)
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


async def test_a_disk_that_is_really_full(
    tiny_disk: Path, tmp_path: Path, content: Content, items_of: ItemsOf
) -> None:
    fits, second, too_large = content(1_500_000), content(700_000, 1), content(1_400_000)
    async with FsStore(tiny_disk / "store") as store:
        kept = await store.add_bytes(fits)
        await store.write_items(Hash.of(second), *items_of(second, ChunkRanges.between(0, 256)))
        with pytest.raises(DiskFull) as caught:
            await store.add_bytes(too_large)
        assert str(tiny_disk) in str(caught.value)
        assert "free some space" in str(caught.value)
        hash = Hash.of(too_large)
        with pytest.raises(DiskFull):
            await store.write_items(hash, *items_of(too_large, ChunkRanges.between(0, 1300)))
        with pytest.raises(StorageError):
            await store.export(kept.hash, tiny_disk / "out")
        # Small ones fill the database up to the last page.
        with pytest.raises(DiskFull):
            await store.add_many([content(16_000, number) for number in range(300)])
        adding = (store.add_bytes(content(9_000, number)) for number in range(500))
        results = await asyncio.gather(*adding, return_exceptions=True)
        assert any(isinstance(result, DiskFull) for result in results)
        assert all(isinstance(result, DiskFull | TempTag) for result in results)
        assert sorted(os.listdir(tiny_disk)) == ["store"]
        assert await store.read(kept.hash) == fits
        held = (await store.status(Hash.of(second))).bitfield
        assert held.ranges == ChunkRanges.between(0, 256)
        await store.export(kept.hash, tmp_path / "out")
        await store.delete(kept.hash, force=True)
        await store.write_items(Hash.of(second), *items_of(second))
        assert await store.read(Hash.of(second)) == second
        assert [r async for r in store.check_all() if r.outcome is not CheckOutcome.GOOD] == []
