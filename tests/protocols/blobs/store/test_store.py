"""What stores of both kinds do, in an event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import pytest

from dialkey.errors import InvalidInput, StorageError
from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.errors import RangeMissing
from dialkey_blobs.hash import EMPTY_HASH, BlobFormat, Hash, HashAndFormat
from dialkey_blobs.outboard import outboard
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.safe_paths import SafeRoot, TargetExists
from dialkey_blobs.store import (
    BlobIncomplete,
    BlobInUse,
    BlobMissing,
    BlobState,
    FileFailed,
    FsStore,
    ImportMode,
    MemoryStore,
    ReferenceChanged,
    Store,
    StoreClosed,
    StoreCore,
    StoreDamaged,
    StoreLocked,
    TagExists,
    TagMissing,
)
from dialkey_blobs.store.exporting import export_path
from dialkey_blobs.store.values import finish

Content = Callable[..., bytes]
ItemsOf = Callable[..., tuple]  # type: ignore[type-arg]
# Up to a group; a small outboard; one too large for the database; more than one block of hashing.
SIZES = [1, 16_384, 16_385, (4 << 20) + 1, (4 << 20) + 32_768]


async def assert_whole(store: Store, data: bytes) -> None:
    """Check that a blob is held, and is read as it is."""
    built = outboard(data)
    status = await store.status(built.hash)
    assert status.state is BlobState.COMPLETE
    assert status.size == len(data)
    async with await store.blob(built.hash) as blob:
        assert blob.size == len(data)
        assert await blob.read(0, len(data)) == data
        assert await blob.read_outboard(0, len(built.data)) == built.data
        middle = len(data) // 2
        assert await blob.read(middle, 1) == data[middle : middle + 1]


# --- adding and reading -------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
async def test_bytes_are_held_with_their_outboard(
    store: Store, content: Content, size: int
) -> None:
    data = content(size)
    with await store.add_bytes(data) as tag:
        assert tag.content == HashAndFormat(Hash.of(data), BlobFormat.RAW)
        await assert_whole(store, data)


@pytest.mark.parametrize("mode", ImportMode)
@pytest.mark.parametrize("size", SIZES)
async def test_files_are_held_with_their_outboard(
    store: Store, content: Content, tmp_path: Path, size: int, mode: ImportMode
) -> None:
    data = content(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    with await store.add_path(path, mode) as tag:
        assert tag.hash == Hash.of(data)
        await assert_whole(store, data)
    kept_outside = isinstance(store, FsStore) and mode is not ImportMode.COPY and size > 16_384
    assert (await store.blobs())[0].is_reference == kept_outside
    path.unlink()
    if not kept_outside:
        await assert_whole(store, data)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", [7_000, 5 << 20])
async def test_streams_are_held_with_their_outboard(
    store: Store, content: Content, size: int, piece: int
) -> None:
    data = content(size)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, size, piece):
            yield data[start : start + piece]

    with await store.add_stream(pieces(), BlobFormat.HASH_SEQ) as tag:
        assert tag.content == HashAndFormat(Hash.of(data), BlobFormat.HASH_SEQ)
        await assert_whole(store, data)


async def test_the_empty_blob_is_always_there(store: Store, tmp_path: Path) -> None:
    assert (await store.status(EMPTY_HASH)).size == 0
    assert await store.has(EMPTY_HASH)
    assert await store.read(EMPTY_HASH) == b""
    assert (await store.add_bytes(b"")).hash == EMPTY_HASH
    empty = tmp_path / "empty"
    empty.touch()
    assert (await store.add_path(empty, ImportMode.REFERENCE)).hash == EMPTY_HASH
    assert await store.export(EMPTY_HASH, tmp_path / "out") == 0
    assert (tmp_path / "out").read_bytes() == b""
    assert await store.blobs() == []
    await store.write_items(EMPTY_HASH, 0, [], [])


async def test_many_small_blobs_are_added_in_one_go(store: Store, content: Content) -> None:
    blobs = [content(100 + n % 50, n) for n in range(3000)] + [content(40_000), b""]
    tags = await store.add_many(blobs)
    assert [tag.hash for tag in tags] == [Hash.of(blob) for blob in blobs]
    statuses = await store.statuses([tag.hash for tag in tags])
    assert all(status.state is BlobState.COMPLETE for status in statuses)
    assert len(await store.blobs()) == 3001


async def test_reading_is_cut_off_at_the_end(store: Store, content: Content) -> None:
    data = content(50_000)
    tag = await store.add_bytes(data)
    assert await store.read(tag.hash, 49_990, 100) == data[49_990:]
    assert await store.read(tag.hash, 60_000) == b""
    assert await store.read(tag.hash, 10, 5) == data[10:15]
    assert (
        b"".join([piece async for piece in store.stream(tag.hash, 1000, 2000)]) == (data[1000:3000])
    )
    async with await store.blob(tag.hash) as blob:
        with pytest.raises(RangeMissing):
            await blob.read(49_990, 100)


async def test_too_much_is_not_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    async with FsStore(tmp_path / "store") as store:
        tag = await store.add_path(path, ImportMode.REFERENCE)
        with pytest.raises(InvalidInput, match="stream"):
            await store.read(tag.hash)
        pieces = [len(piece) async for piece in store.stream(tag.hash)]
        assert sum(pieces) == (64 << 20) + 1
        assert max(pieces) == 1 << 20


async def test_what_is_unknown_is_missing(store: Store) -> None:
    unknown = Hash.of(b"unknown")
    assert (await store.status(unknown)).state is BlobState.MISSING
    assert not await store.has(unknown)
    with pytest.raises(BlobMissing):
        await store.read(unknown)
    with pytest.raises(BlobMissing):
        await store.check(unknown)
    assert await store.delete(unknown) == 0


async def test_progress_is_told(store: Store, content: Content, tmp_path: Path) -> None:
    data = content(9 << 20)
    path = tmp_path / "file"
    path.write_bytes(data)
    imported: list[int] = []
    exported: list[int] = []
    tag = await store.add_path(path, progress=imported.append)
    await store.export(tag.hash, tmp_path / "out", progress=exported.append)
    assert imported == sorted(imported)
    assert exported == [4 << 20, 8 << 20, 9 << 20]


async def test_a_file_that_is_none_cannot_be_added(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileFailed, match="regular file"):
        await store.add_path(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FileFailed, match="not a regular file"):
        await store.add_path(tmp_path / "fifo")
    with pytest.raises(FileFailed, match="cannot open") as caught:
        await store.add_path(tmp_path / "absent")
    assert caught.value.path == tmp_path / "absent"
    assert caught.value.hint
    with pytest.raises(StorageError):
        await store.add_path("a\0b")


async def test_a_stream_that_breaks_off_leaves_nothing(store: Store, content: Content) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield content(5 << 20)
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await store.add_stream(pieces())
    assert await store.blobs() == []
    if isinstance(store, FsStore):
        assert list((store.root / "temp").iterdir()) == []


async def test_deleting_does_not_disturb_a_reader(store: Store, content: Content) -> None:
    data = content(3 << 20)
    tag = await store.add_bytes(data)
    async with await store.blob(tag.hash) as blob:
        tag.release()
        assert await store.delete(tag.hash) == 1
        assert await blob.read(1 << 20, 1000) == data[1 << 20 : (1 << 20) + 1000]
        assert await blob.call(lambda opened: opened.read_data(0, 3)) == data[:3]
    assert not await store.has(tag.hash)


async def test_statistics(store: Store, content: Content, items_of: ItemsOf) -> None:
    tags = await store.add_many([content(100), content(50_000)])
    partial = content(100_000, 1)
    await store.write_items(Hash.of(partial), *items_of(partial, ChunkRanges.between(0, 16)))
    await store.tags.set("a", tags[0].content)
    stats = await store.stats()
    assert (stats.complete, stats.partial, stats.references) == (2, 1, 0)
    assert (stats.complete_bytes, stats.tags, stats.pins) == (50_100, 1, 2)


# --- references ---------------------------------------------------------------------------------


async def test_a_changed_reference_is_noticed(tmp_path: Path, content: Content) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(100_000))
    async with FsStore(tmp_path / "store") as store:
        tag = await store.add_path(path, ImportMode.REFERENCE)
        async with await store.blob(tag.hash) as blob:
            assert await blob.read(0, 10) == content(100_000)[:10]
            path.write_bytes(content(100_000, 1))
            os.utime(path, ns=(1, 1))
            with pytest.raises(ReferenceChanged) as caught:
                await blob.read(0, 10)
        assert caught.value.path == path
        assert "import it again" in str(caught.value)
        with pytest.raises(ReferenceChanged):
            await store.read(tag.hash)
        path.unlink()
        with pytest.raises(ReferenceChanged, match="kept by reference"):
            await store.read(tag.hash)
        with pytest.raises(ReferenceChanged):
            await store.export(tag.hash, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        # Importing it from somewhere else mends it.
        (tmp_path / "moved").write_bytes(content(100_000))
        await store.add_path(tmp_path / "moved", ImportMode.REFERENCE)
        await assert_whole(store, content(100_000))


async def test_a_copy_takes_the_place_of_a_reference(tmp_path: Path, content: Content) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(5 << 20))
    async with FsStore(tmp_path / "store") as store:
        await store.add_path(path, ImportMode.REFERENCE)
        await store.add_path(path, ImportMode.COPY)
        path.unlink()
        await assert_whole(store, content(5 << 20))
        # And it stays, though the same content is offered as a reference.
        path.write_bytes(content(5 << 20))
        await store.add_path(path, ImportMode.REFERENCE)
        path.unlink()
        await assert_whole(store, content(5 << 20))


async def test_a_link_is_followed_when_it_is_added(tmp_path: Path, content: Content) -> None:
    (tmp_path / "file").write_bytes(content(100_000))
    (tmp_path / "link").symlink_to("file")
    async with FsStore(tmp_path / "store") as store:
        await store.add_path(tmp_path / "link", ImportMode.REFERENCE)
        (tmp_path / "link").unlink()
        await assert_whole(store, content(100_000))


# --- exporting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 70_000, 9 << 20])
async def test_export_makes_directories_and_the_file(
    store: Store, content: Content, tmp_path: Path, size: int
) -> None:
    tag = await store.add_bytes(content(size))
    target = tmp_path / "a" / "b" / "file"
    assert await store.export(tag.hash, target) == size
    assert target.read_bytes() == content(size)
    assert [path.name for path in target.parent.iterdir()] == ["file"]


async def test_export_overwrites_only_if_asked(
    store: Store, content: Content, tmp_path: Path
) -> None:
    tag = await store.add_bytes(content(70_000))
    target = tmp_path / "file"
    target.write_text("precious")
    with pytest.raises(TargetExists):
        await store.export(tag.hash, target)
    assert target.read_text() == "precious"
    dangling = tmp_path / "dangling"
    dangling.symlink_to("nowhere")
    with pytest.raises(TargetExists):
        await store.export(tag.hash, dangling)
    assert not (tmp_path / "nowhere").exists()
    await store.export(tag.hash, target, overwrite=True)
    assert target.read_bytes() == content(70_000)


async def test_a_file_that_appears_during_an_export_is_not_overwritten(
    store: Store, content: Content, tmp_path: Path
) -> None:
    tag = await store.add_bytes(content(9 << 20))
    target = tmp_path / "file"

    def export(core: StoreCore) -> None:
        steps = export_path(core, tag.hash, target, overwrite=False, durable=False)
        assert next(steps) == 4 << 20
        target.write_text("precious")
        finish(steps)

    with pytest.raises(TargetExists):
        await store.run(export)
    assert target.read_text() == "precious"
    assert sorted(set(os.listdir(tmp_path)) - {"store"}) == ["file"]


async def test_what_is_not_whole_is_not_exported(
    store: Store, content: Content, items_of: ItemsOf, tmp_path: Path
) -> None:
    data = content(100_000)
    with pytest.raises(BlobMissing):
        await store.export(Hash.of(data), tmp_path / "new" / "file")
    await store.write_items(Hash.of(data), *items_of(data, ChunkRanges.between(0, 32)))
    with pytest.raises(BlobIncomplete):
        await store.export(Hash.of(data), tmp_path / "new" / "file")
    assert not (tmp_path / "new").exists()


async def test_export_through_a_safe_root(store: Store, content: Content, tmp_path: Path) -> None:
    tag = await store.add_bytes(content(70_000))
    with SafeRoot(tmp_path / "root") as root:
        assert await store.export(tag.hash, root.create("a/b")) == 70_000
        with pytest.raises(BlobMissing):
            await store.export(Hash.of(b"unknown"), root.create("a/c"))
    assert [path.name for path in (tmp_path / "root" / "a").iterdir()] == ["b"]


# --- tags ---------------------------------------------------------------------------------------


async def test_tags_are_set_listed_renamed_and_deleted(store: Store) -> None:
    one = HashAndFormat(Hash.of(b"1"))
    two = HashAndFormat(Hash.of(b"2"), BlobFormat.HASH_SEQ)
    await store.tags.set("b", one)
    await store.tags.set(b"\xff\xfe", two)
    await store.tags.set("a", two)
    await store.tags.set("a", one)
    assert await store.tags.get("a") == one
    assert await store.tags.get("absent") is None
    assert [tag.name for tag in await store.tags.list()] == [b"a", b"b", b"\xff\xfe"]
    assert [tag.name for tag in await store.tags.list(format=BlobFormat.HASH_SEQ)] == [b"\xff\xfe"]
    assert [tag.content for tag in await store.tags.list(start="b")] == [one, two]
    assert [tag.name for tag in await store.tags.list(end="b")] == [b"a"]
    await store.tags.rename("b", "c")
    assert await store.tags.get("b") is None
    assert await store.tags.get("c") == one
    await store.tags.rename("c", "c")
    with pytest.raises(TagMissing):
        await store.tags.rename("b", "d")
    with pytest.raises(TagExists):
        await store.tags.rename("c", "a")
    assert await store.tags.delete("c")
    assert not await store.tags.delete("c")
    assert await store.tags.delete_many() == 2
    assert await store.tags.list() == []


async def test_tags_by_prefix(store: Store) -> None:
    any_content = HashAndFormat(Hash.of(b""))
    names = [b"", b"a", b"aa", b"ab", b"b", b"\xff", b"\xff\xff", b"\xff\xffz"]
    for name in names:
        await store.tags.set(name, any_content)
    for prefix in [*names, b"zz", b"a\xff"]:
        listed = [tag.name for tag in await store.tags.list(prefix=prefix)]
        assert listed == [name for name in names if name.startswith(prefix)]
    listed = [tag.name for tag in await store.tags.list(prefix="a", start="aa", end="ab")]
    assert listed == [b"aa"]
    assert await store.tags.delete_many(prefix=b"\xff") == 3


async def test_made_names_are_unique_and_tell_the_time(store: Store) -> None:
    any_content = HashAndFormat(Hash.of(b""))
    names = {await store.tags.create(any_content) for _ in range(30)}
    assert len(names) == 30
    assert all(name.startswith(b"auto-20") for name in names)


# --- observing ----------------------------------------------------------------------------------


async def test_observing_tells_states(store: Store, content: Content, items_of: ItemsOf) -> None:
    data = content(100_000)
    hash = Hash.of(data)
    async with store.observe(hash) as states:
        assert await anext(states) == Bitfield()
        await store.write_items(hash, *items_of(data, ChunkRanges.between(16, 32)))
        assert await anext(states) == Bitfield(100_000, ChunkRanges.between(16, 32))
        await store.write_items(hash, *items_of(data, ChunkRanges.last_chunk()))
        assert (await anext(states)).validated_size == 100_000
        await store.write_items(hash, *items_of(data))
        assert await anext(states) == Bitfield.complete(100_000)
        await store.delete(hash)
        assert await anext(states) == Bitfield()
    with pytest.raises(StopAsyncIteration):
        await anext(states)


async def test_who_looks_away_gets_the_newest_state(
    store: Store, content: Content, items_of: ItemsOf
) -> None:
    data = content(1 << 20)
    hash = Hash.of(data)
    async with store.observe(hash) as states:
        await anext(states)
        for start in range(0, 1024, 64):
            await store.write_items(hash, *items_of(data, ChunkRanges.between(start, start + 64)))
        assert (await anext(states)).is_complete


async def test_observing_ends_with_the_store(tmp_path: Path) -> None:
    store = MemoryStore()
    states = store.observe(Hash.of(b"x"))
    await anext(states)
    waiting = asyncio.ensure_future(anext(states))
    await store.close()
    with pytest.raises(StopAsyncIteration):
        await waiting


async def test_waiting_for_a_state_can_be_cancelled_and_taken_up(store: Store) -> None:
    states = store.observe(Hash.of(b"x"))
    await anext(states)
    waiting = asyncio.ensure_future(anext(states))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await store.add_bytes(b"x")
    assert (await anext(states)).is_complete


# --- life ---------------------------------------------------------------------------------------


async def test_a_store_is_open_once(tmp_path: Path) -> None:
    async with FsStore(tmp_path / "store"):
        with pytest.raises(StoreLocked, match="this process") as caught:
            await FsStore(tmp_path / "store").ready()
        assert caught.value.hint
    async with FsStore(tmp_path / "store"):
        pass


async def test_everything_is_there_after_reopening(tmp_path: Path, content: Content) -> None:
    blobs = [content(size) for size in SIZES]
    async with FsStore(tmp_path / "store") as store:
        for number, blob in enumerate(blobs):
            await store.tags.set(f"{number}", (await store.add_bytes(blob)).content)
    async with FsStore(tmp_path / "store") as store:
        for blob in blobs:
            await assert_whole(store, blob)
        assert len(await store.tags.list()) == len(blobs)


async def test_a_closed_store_says_so(store: Store) -> None:
    await store.close()
    await store.close()
    with pytest.raises(StoreClosed):
        await store.add_bytes(b"x")
    with pytest.raises(StoreClosed):
        await store.ready()


async def test_closing_a_store_that_was_never_opened(tmp_path: Path) -> None:
    await FsStore(tmp_path / "store").close()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("rubbish", [b"rubbish" * 1000, b"SQLite format 3\0" + bytes(5000)])
async def test_a_database_that_is_none(tmp_path: Path, rubbish: bytes) -> None:
    (tmp_path / "blobs.db").write_bytes(rubbish)
    store = FsStore(tmp_path)
    with pytest.raises(StoreDamaged):
        await store.ready()
    (tmp_path / "blobs.db").unlink()
    await store.add_bytes(b"works now")
    await store.close()


async def test_a_database_of_a_newer_version(tmp_path: Path) -> None:
    import sqlite3

    async with FsStore(tmp_path):
        pass
    connection = sqlite3.connect(tmp_path / "blobs.db")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(StoreDamaged, match="newer"):
        await FsStore(tmp_path).ready()


async def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="create the directory"):
        async with FsStore(tmp_path / "file" / "store"):
            pass


async def test_a_dropped_store_can_still_be_read_in_another_loop(tmp_path: Path) -> None:
    store = FsStore(tmp_path / "store")
    tag = await store.add_bytes(b"from one loop")

    def in_another_thread() -> bytes:
        return asyncio.run(store.read(tag.hash))

    assert await asyncio.to_thread(in_another_thread) == b"from one loop"
    await store.close()


async def test_a_durable_store(tmp_path: Path, content: Content, items_of: ItemsOf) -> None:
    blobs = [content(size) for size in SIZES]
    async with FsStore(tmp_path / "store", durable=True) as store:
        for number, blob in enumerate(blobs):
            if number % 2:
                await store.add_bytes(blob)
            else:
                await store.write_items(Hash.of(blob), *items_of(blob))
            await assert_whole(store, blob)


# --- temp tags and deleting ---------------------------------------------------------------------


async def test_a_protected_blob_is_deleted_only_by_force(store: Store) -> None:
    tag = await store.add_bytes(b"blob")
    with pytest.raises(BlobInUse):
        await store.delete(tag.hash)
    await store.tags.set("name", tag.content)
    tag.release()
    with pytest.raises(BlobInUse):
        await store.delete(tag.hash)
    assert await store.delete(tag.hash, force=True) == 1


async def test_temp_tags_end_in_every_way(store: Store) -> None:
    async def pins() -> int:
        return (await store.stats()).pins

    content = HashAndFormat(Hash.of(b"x"))
    tag = store.pin(content)
    again = store.pin(content)
    assert await pins() == 1
    tag.release()
    tag.release()
    assert await pins() == 1
    del again
    gc.collect()
    assert await pins() == 0
    with store.pin(content):
        assert await pins() == 1
    with store.batch() as batch:
        batch.pin(content)
        batch.add(await store.add_bytes(b"y"))
        assert await pins() == 2
    assert await pins() == 0
    store.pin(content).leak()
    assert await pins() == 1


# --- cancelling ---------------------------------------------------------------------------------


async def test_a_cancelled_import_or_export_leaves_nothing(
    store: Store, content: Content, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(20 << 20))

    async def cut_off(work: Coroutine[object, object, object]) -> None:
        entered, leave = threading.Event(), threading.Event()

        def wait(core: StoreCore) -> None:
            entered.set()
            assert leave.wait(60)

        # The thread has begun the work when it comes to wait, and goes on after the cancellation.
        task = asyncio.ensure_future(work)
        waiting = asyncio.ensure_future(store.run(wait))
        assert await asyncio.to_thread(entered.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        leave.set()
        await waiting
        # What is tidied up comes before what is asked now.
        for _ in range(2):
            await store.stats()

    await cut_off(store.add_path(path))
    assert await store.blobs() == []

    async def pieces() -> AsyncIterator[bytes]:
        yield content(20 << 20)

    await cut_off(store.add_stream(pieces()))
    assert await store.blobs() == []
    if isinstance(store, FsStore):
        assert os.listdir(store.root / "temp") == []
    tag = await store.add_path(path)
    await cut_off(store.export(tag.hash, tmp_path / "out"))
    assert sorted(set(os.listdir(tmp_path)) - {"store"}) == ["file"]
    await store.export(tag.hash, tmp_path / "out")


async def test_negative_positions_are_refused(store: Store) -> None:
    tag = await store.add_bytes(b"blob")
    with pytest.raises(InvalidInput):
        await store.read(tag.hash, -1, 2)
    async with await store.blob(tag.hash) as blob:
        with pytest.raises(InvalidInput):
            await blob.read(1, -1)
