"""Many files in one go: as if they were added one after the other, but hashed together."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dialkey_blobs import outboard as outboards
from dialkey_blobs.hash import BlobFormat, Hash
from dialkey_blobs.outboard import outboard
from dialkey_blobs.store import (
    FileFailed,
    FsStore,
    ImportMode,
    MemoryStore,
    ReferenceChanged,
    Store,
    small_files,
)
from dialkey_blobs.store.files import FileOps

SIZES = [0, 1, 1024, 16_384, 16_385, 100_000, 1 << 20, (1 << 20) + 1, 3, 5_000_000, 50_000]


@pytest.fixture(params=["memory", "files"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made = MemoryStore() if request.param == "memory" else FsStore(tmp_path / "store")
    async with made:
        yield made


def write_files(folder: Path, sizes: list[int]) -> dict[Path, bytes]:
    rng = random.Random(len(sizes))
    files = {folder / f"{number:04}": rng.randbytes(size) for number, size in enumerate(sizes)}
    for path, data in files.items():
        path.write_bytes(data)
    return files


@pytest.mark.parametrize("mode", ImportMode)
async def test_files_of_all_sizes(store: Store, mode: ImportMode, tmp_path: Path) -> None:
    files = write_files(tmp_path, SIZES)
    reports: list[int] = []

    tags = await store.add_paths(list(files), mode, BlobFormat.HASH_SEQ, progress=reports.append)

    assert [tag.hash for tag in tags] == [Hash.of(data) for data in files.values()]
    assert {tag.format for tag in tags} == {BlobFormat.HASH_SEQ}
    for data in files.values():
        built = outboard(data)
        async with await store.blob(built.hash) as blob:
            assert await blob.read(0, len(data)) == data
            assert await blob.read_outboard(0, len(built.data)) == built.data
    assert reports == sorted(reports)
    assert reports[-1] == sum(SIZES)
    if isinstance(store, FsStore):
        referenced = {info.hash for info in await store.blobs() if info.is_reference}
        large = {Hash.of(data) for data in files.values() if len(data) > 16_384}
        assert referenced == (set() if mode is ImportMode.COPY else large)


async def test_small_files_are_hashed_together(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_files(tmp_path, [20_000] * 100)
    calls: list[int] = []
    original = outboards.subtree_cvs

    def counted(pieces):  # type: ignore[no-untyped-def]
        calls.append(len(pieces))
        return original(pieces)

    monkeypatch.setattr(outboards, "subtree_cvs", counted)
    await store.add_paths(list(files))
    assert calls == [200]


async def test_what_was_added_is_protected_while_its_tag_lives(
    store: Store, tmp_path: Path
) -> None:
    files = write_files(tmp_path, [10, 20_000, 2_000_000])
    tags = await store.add_paths(list(files))
    assert (await store.collect_garbage()).deleted == ()
    tags.pop().release()
    assert len((await store.collect_garbage()).deleted) == 1


async def test_a_file_that_fails(store: Store, tmp_path: Path) -> None:
    files = write_files(tmp_path, [10, 20])
    with pytest.raises(FileFailed):
        await store.add_paths([*files, tmp_path / "missing"])
    with pytest.raises(FileFailed):
        await store.add_paths([*files, tmp_path])
    assert await store.add_paths([]) == []


@pytest.mark.parametrize("mode", ImportMode)
async def test_a_file_that_changes_while_it_is_read(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: ImportMode
) -> None:
    files = list(write_files(tmp_path, [10, 20]))
    original = small_files.same_file

    def touched(before: os.stat_result, after: os.stat_result) -> bool:
        os.utime(files[0], ns=(0, before.st_mtime_ns + 1))
        return original(before, os.stat(files[0]))

    monkeypatch.setattr(small_files, "same_file", touched)
    with pytest.raises(ReferenceChanged):
        await store.add_paths(files, mode)


@pytest.mark.parametrize("mode", ImportMode)
async def test_a_file_that_grows_or_shrinks_while_it_is_read(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: ImportMode
) -> None:
    files = list(write_files(tmp_path, [100, 30_000]))
    original = small_files.open_regular
    for size in (29_000, 31_000):

        def opened(ops: FileOps, path: str, **options: bool) -> tuple[int, os.stat_result]:
            found = original(ops, path, **options)
            os.truncate(files[1], size)  # noqa: B023
            return found

        monkeypatch.setattr(small_files, "open_regular", opened)
        with pytest.raises(ReferenceChanged):
            await store.add_paths(files, mode)
        monkeypatch.undo()


async def test_a_reference_that_changes_later_is_noticed(tmp_path: Path) -> None:
    [path] = write_files(tmp_path, [100_000])
    async with FsStore(tmp_path / "store") as store:
        [tag] = await store.add_paths([path], ImportMode.REFERENCE)
        path.write_bytes(b"another")
        with pytest.raises(ReferenceChanged):
            await store.read(tag.hash)
