"""Checking a store: damage is found, struck off, and what is sound stays."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from dialkey_blobs.hash import Hash
from dialkey_blobs.outboard import outboard
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.store import (
    BlobDamaged,
    BlobMissing,
    BlobState,
    CheckOutcome,
    FsStore,
    ImportMode,
)
from dialkey_blobs.store.fs_core import FsCore
from dialkey_blobs.store.values import finish

Content = Callable[..., bytes]
ItemsOf = Callable[..., tuple]  # type: ignore[type-arg]
SMALL_OUTBOARD = 1 << 20
LARGE_OUTBOARD = (4 << 20) + 32_768


def flip(path: Path, offset: int) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def file_of(root: Path, data: bytes, suffix: str) -> Path:
    name = Hash.of(data).hex()
    return root / "data" / name[:2] / (name + suffix)


async def outcome(store: FsStore, data: bytes) -> CheckOutcome:
    return (await store.check(Hash.of(data))).outcome


@pytest.mark.parametrize("size", [0, 10, 16_384, SMALL_OUTBOARD, LARGE_OUTBOARD])
@pytest.mark.parametrize("mode", ImportMode)
async def test_sound_blobs(tmp_path: Path, content: Content, size: int, mode: ImportMode) -> None:
    (tmp_path / "file").write_bytes(content(size))
    async with FsStore(tmp_path / "store") as store:
        await store.add_path(tmp_path / "file", mode)
        report = await store.check(Hash.of(content(size)))
        assert report.outcome is CheckOutcome.GOOD
        assert report.before == report.after
        assert report.after.is_complete


@pytest.mark.parametrize("size", [SMALL_OUTBOARD, LARGE_OUTBOARD])
async def test_damaged_content_is_struck_off_and_can_be_fetched(
    tmp_path: Path, content: Content, items_of: ItemsOf, size: int
) -> None:
    data = content(size)
    hash = Hash.of(data)
    async with FsStore(tmp_path / "store") as store:
        await store.add_bytes(data)
        for offset in (20_000, 500_000):
            flip(file_of(store.root, data, ".data"), offset)
        with pytest.raises(BlobDamaged):
            await store.export(hash, tmp_path / "out")
        assert sorted(os.listdir(tmp_path)) == ["store"]
        report = await store.check(hash)
        assert report.outcome is CheckOutcome.DEMOTED
        assert report.before.is_complete
        missing = ChunkRanges.between(0, -(-size // 1024)) - report.after.ranges
        assert missing == ChunkRanges((16, 32, 480, 496))
        assert (await store.status(hash)).size == size
        assert await outcome(store, data) is CheckOutcome.GOOD
    # It is the same after reopening, and only what is missing has to come.
    async with FsStore(tmp_path / "store") as store:
        await store.write_items(hash, *items_of(data, missing))
        assert await store.has(hash)
        assert await store.read(hash) == data
        assert await outcome(store, data) is CheckOutcome.GOOD


async def test_a_damaged_outboard_is_made_anew(tmp_path: Path, content: Content) -> None:
    data = content(LARGE_OUTBOARD)
    path = file_of(tmp_path / "store", data, ".obao4")
    async with FsStore(tmp_path / "store") as store:
        await store.add_bytes(data)
        flip(path, 64)
        assert await outcome(store, data) is CheckOutcome.REPAIRED
        assert path.read_bytes() == outboard(data).data
        path.unlink()
        # Reading notices that by itself.
        assert await store.read(Hash.of(data), 0, 5) == data[:5]
        assert path.read_bytes() == outboard(data).data


async def test_content_and_outboard_damaged(tmp_path: Path, content: Content) -> None:
    data = content(LARGE_OUTBOARD)
    async with FsStore(tmp_path / "store") as store:
        await store.add_bytes(data)
        flip(file_of(store.root, data, ".data"), 0)
        flip(file_of(store.root, data, ".obao4"), 0)
        # Without the root pair nothing can be proven.
        assert await outcome(store, data) is CheckOutcome.LOST
        assert (await store.status(Hash.of(data))).state is BlobState.MISSING
    assert os.listdir(file_of(store.root, data, ".data").parent) == []


async def test_a_file_that_was_cut_off_or_deleted(tmp_path: Path, content: Content) -> None:
    cut, gone = content(SMALL_OUTBOARD, 1), content(SMALL_OUTBOARD, 2)
    async with FsStore(tmp_path / "store") as store:
        await store.add_many([cut, gone])
        os.truncate(file_of(store.root, cut, ".data"), 600_000)
        file_of(store.root, gone, ".data").unlink()
        with pytest.raises(BlobDamaged):
            await store.read(Hash.of(cut), 0, 1)
        with pytest.raises(BlobDamaged):
            await store.read(Hash.of(gone), 0, 1)
        assert (await store.status(Hash.of(cut))).bitfield.ranges == ChunkRanges.between(0, 576)
        assert await store.read(Hash.of(cut), 0, 100) == cut[:100]
        with pytest.raises(BlobMissing):
            await store.read(Hash.of(gone), 0, 1)


async def test_small_blobs_in_the_database(tmp_path: Path, content: Content) -> None:
    async with FsStore(tmp_path / "store") as store:
        await store.add_many([content(100), content(200)])
    connection = sqlite3.connect(tmp_path / "store" / "blobs.db")
    connection.execute("UPDATE inline_data SET bytes = ? WHERE length(bytes) = 100", (bytes(100),))
    connection.commit()
    connection.close()
    async with FsStore(tmp_path / "store") as store:
        reports = [report async for report in store.check_all()]
        outcomes = {report.hash: report.outcome for report in reports}
        assert outcomes == {
            Hash.of(content(100)): CheckOutcome.LOST,
            Hash.of(content(200)): CheckOutcome.GOOD,
        }
        assert [info.hash for info in await store.blobs()] == [Hash.of(content(200))]


async def test_references(tmp_path: Path, content: Content) -> None:
    async with FsStore(tmp_path / "store") as store:
        for name in ("touched", "changed", "resized", "gone"):
            data = content(SMALL_OUTBOARD, name)
            (tmp_path / name).write_bytes(data)
            await store.add_path(tmp_path / name, ImportMode.REFERENCE)
        os.utime(tmp_path / "touched", ns=(1, 1))
        flip(tmp_path / "changed", 3)
        os.truncate(tmp_path / "resized", 5)
        (tmp_path / "gone").unlink()
        assert await outcome(store, content(SMALL_OUTBOARD, "touched")) is CheckOutcome.GOOD
        data = content(SMALL_OUTBOARD, "touched")
        assert await store.read(Hash.of(data)) == data
        for name in ("changed", "resized", "gone"):
            assert await outcome(store, content(SMALL_OUTBOARD, name)) is CheckOutcome.LOST
        assert len(await store.blobs()) == 1
    assert len((tmp_path / "changed").read_bytes()) == SMALL_OUTBOARD


async def test_partial_blobs(tmp_path: Path, content: Content, items_of: ItemsOf) -> None:
    data = content(SMALL_OUTBOARD)
    hash = Hash.of(data)
    async with FsStore(tmp_path / "store") as store:
        # From 70 on, a group is held in part: that cannot be checked, and is believed.
        await store.write_items(hash, *items_of(data, ChunkRanges((0, 70, 512))))
        assert await outcome(store, data) is CheckOutcome.GOOD
        flip(file_of(store.root, data, ".data"), 40 * 1024)
        report = await store.check(hash)
        assert report.outcome is CheckOutcome.DEMOTED
        assert report.after.ranges == ChunkRanges((0, 32, 48, 70, 512))
        await store.write_items(hash, *items_of(data, ChunkRanges.between(32, 48)))
        await store.write_items(hash, *items_of(data, ChunkRanges.between(70, 512)))
        assert await store.read(hash) == data


def test_a_check_while_the_blob_changes(
    tmp_path: Path, content: Content, items_of: ItemsOf
) -> None:
    data = content(12 << 20)
    hash = Hash.of(data)
    core = FsCore(tmp_path / "store")
    core.write_items(hash, *items_of(data, ChunkRanges.between(0, 12_000)))
    core.commit()
    flip(core.paths(hash).data, 100)
    steps = core.check(hash)
    next(steps)
    core.write_items(hash, *items_of(data, ChunkRanges.between(12_000, 12_100)))
    core.commit()
    report = finish(steps)
    assert report.outcome is CheckOutcome.DEMOTED
    assert core.status(hash).bitfield.ranges == ChunkRanges.between(16, 12_100)
    # A blob that goes away meanwhile is no longer of interest.
    steps = core.check(hash)
    next(steps)
    core.remove(hash)
    core.commit()
    assert finish(steps).after.ranges == ChunkRanges.empty()
    core.close()
