"""Garbage collection: what it spares, also while other things go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dialkey.errors import StorageError
from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.store import (
    FileFailed,
    FsStore,
    ImportMode,
    MemoryStore,
    Store,
    StoreCore,
)
from dialkey_blobs.store.fs_core import FsCore
from dialkey_blobs.store.gc import collect
from dialkey_blobs.store.memory_core import MemoryCore
from dialkey_blobs.store.values import Steps, finish

Content = Callable[..., bytes]
ItemsOf = Callable[..., tuple]  # type: ignore[type-arg]
RAW, SEQ = BlobFormat.RAW, BlobFormat.HASH_SEQ


def seq_of(*blobs: bytes) -> bytes:
    return b"".join(Hash.of(blob).digest for blob in blobs)


@pytest.fixture(params=["fs", "memory"])
def core(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreCore]:
    made: StoreCore = FsCore(tmp_path / "store") if request.param == "fs" else MemoryCore()
    yield made
    made.close()


def put(core: StoreCore, *blobs: bytes) -> list[Hash]:
    """Add blobs that nothing protects."""
    hashes = []
    for tag in core.add_many(blobs, RAW):
        hashes.append(tag.hash)
        tag.release()
    core.commit()
    return hashes


def held(core: StoreCore) -> set[Hash]:
    return {info.hash for info in core.blobs()}


def step_through(steps: Steps[object], core: StoreCore) -> None:
    for _ in steps:
        core.commit()
    core.commit()


async def test_only_what_is_protected_stays(
    store: Store, content: Content, items_of: ItemsOf
) -> None:
    named, temporary, spared, garbage = await store.add_many([content(50_000, n) for n in range(4)])
    partial, partial_garbage = content(100_000, 8), content(100_000, 9)
    for data in (partial, partial_garbage):
        await store.write_items(Hash.of(data), *items_of(data, ChunkRanges.between(0, 16)))
    await store.tags.set("named", named.content)
    await store.tags.set("partial", HashAndFormat(Hash.of(partial)))
    gone = {garbage.hash, Hash.of(partial_garbage)}
    for tag in (named, spared, garbage):
        tag.release()
    report = await store.collect_garbage([spared.content])
    assert set(report.deleted) == gone
    assert report.kept == 4
    assert {info.hash for info in await store.blobs()} == {
        named.hash,
        temporary.hash,
        spared.hash,
        Hash.of(partial),
    }
    assert await store.read(named.hash) == content(50_000)
    if isinstance(store, FsStore):
        files = {path.name.split(".")[0] for path in store.root.glob("data/*/*")}
        assert not files & {hash.hex() for hash in gone}
    assert (await store.collect_garbage([spared.content])).deleted == ()


async def test_a_sequence_protects_its_children_only(store: Store) -> None:
    grandchild = b"grandchild"
    inner = seq_of(grandchild)
    outer = seq_of(b"a", inner)
    tags = await store.add_many([b"a", grandchild, inner, outer])
    for tag in tags:
        tag.release()
    await store.tags.set("outer", HashAndFormat(Hash.of(outer), SEQ))
    assert (await store.collect_garbage()).deleted == (Hash.of(grandchild),)
    await store.tags.set("outer", HashAndFormat(Hash.of(outer), RAW))
    assert set((await store.collect_garbage()).deleted) == {Hash.of(b"a"), Hash.of(inner)}


@pytest.mark.parametrize("first", [RAW, SEQ])
def test_raw_and_sequence_are_told_apart(core: StoreCore, first: BlobFormat) -> None:
    root = seq_of(b"a", b"b")
    put(core, b"a", b"b", root)
    core.set_tag(b"1", HashAndFormat(Hash.of(root), first))
    core.set_tag(b"2", HashAndFormat(Hash.of(root), BlobFormat(1 - first)))
    assert finish(collect(core)).deleted == ()


def test_children_of_a_partial_sequence_are_protected_as_far_as_known(
    core: StoreCore, items_of: ItemsOf
) -> None:
    children = [b"%d" % number for number in range(2000)]
    root = seq_of(*children)
    put(core, *children)
    core.write_items(Hash.of(root), *items_of(root, ChunkRanges.between(16, 32)))
    core.set_tag(b"root", HashAndFormat(Hash.of(root), SEQ))
    report = finish(collect(core))
    assert report.unreadable == (Hash.of(root),)
    known = set(map(Hash.of, children[512:1024]))
    assert held(core) == known | {Hash.of(root)}


def test_a_sequence_that_is_not_there_or_is_none(core: StoreCore) -> None:
    odd = b"x" * 47
    put(core, odd, b"garbage")
    core.set_tag(b"absent", HashAndFormat(Hash.of(b"absent"), SEQ))
    core.set_tag(b"odd", HashAndFormat(Hash.of(odd), SEQ))
    report = finish(collect(core))
    assert report.deleted == (Hash.of(b"garbage"),)
    assert report.unreadable == (Hash.of(b"absent"),)


# --- while other things go on -------------------------------------------------------------------


def many(core: StoreCore) -> list[Hash]:
    """Add more unprotected blobs than one step sweeps."""
    return put(core, *(b"garbage %d" % number for number in range(350)))


def test_what_comes_during_a_collection_stays(core: StoreCore, items_of: ItemsOf) -> None:
    hashes = sorted(many(core))
    steps = collect(core)
    next(steps)
    core.commit()
    # The last ones have not been swept yet.
    late = hashes[-5:]
    core.set_tag(b"late", HashAndFormat(late[0]))
    pinned = core.pins.pin(HashAndFormat(late[1]))
    root = late[2].digest
    again = next(b"garbage %d" % n for n in range(350) if Hash.of(b"garbage %d" % n) == late[3])
    put(core, b"new", again)
    [new_root] = core.add_many([root], SEQ)
    partial = b"partial" * 10_000
    core.write_items(Hash.of(partial), *items_of(partial, ChunkRanges.between(0, 16)))
    step_through(steps, core)
    assert held(core) == {
        *late[:4],
        Hash.of(b"new"),
        Hash.of(root),
        Hash.of(partial),
    }
    pinned.release()
    new_root.release()
    step_through(collect(core), core)
    assert held(core) == {late[0]}


def test_a_sequence_that_arrives_during_a_collection_protects(
    core: StoreCore, items_of: ItemsOf
) -> None:
    hashes = sorted(many(core))
    root = b"".join(hash.digest for hash in hashes[-3:])
    core.set_tag(b"root", HashAndFormat(Hash.of(root), SEQ))
    steps = collect(core)
    next(steps)
    core.write_items(Hash.of(root), *items_of(root))
    step_through(steps, core)
    assert held(core) == {Hash.of(root), *hashes[-3:]}


def test_a_blob_that_is_deleted_and_comes_again(core: StoreCore, items_of: ItemsOf) -> None:
    data = b"again" * 20_000
    put(core, data)
    many(core)
    steps = collect(core)
    while Hash.of(data) in held(core):
        next(steps)
    # In the same transaction as its deletion.
    core.write_items(Hash.of(data), *items_of(data, ChunkRanges.between(0, 16)))
    step_through(steps, core)
    assert core.status(Hash.of(data)).bitfield.ranges == ChunkRanges.between(0, 16)
    with core.open(Hash.of(data)) as blob:
        assert blob.read_data(0, 100) == data[:100]


def test_a_collection_that_is_cut_off_can_be_run_again(core: StoreCore) -> None:
    many(core)
    steps = collect(core)
    next(steps)
    with pytest.raises(RuntimeError, match="running already"):
        next(collect(core))
    steps.close()
    core.commit()
    step_through(collect(core), core)
    assert held(core) == set()


async def test_collections_follow_one_another(store: Store) -> None:
    for tag in await store.add_many([b"%d" % number for number in range(1000)]):
        tag.release()
    one, two = await asyncio.gather(store.collect_garbage(), store.collect_garbage())
    assert (len(one.deleted), len(two.deleted)) == (1000, 0)


async def test_an_import_is_protected_until_its_tag_is_dropped(
    store: Store, content: Content, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(9 << 20))
    importing = asyncio.ensure_future(store.add_path(path))
    while not importing.done():
        await store.collect_garbage()
    tag = importing.result()
    assert await store.has(tag.hash)
    tag.release()
    assert (await store.collect_garbage()).deleted == (tag.hash,)


async def test_collecting_again_and_again() -> None:
    store = MemoryStore()
    rounds = 0
    done = asyncio.Event()

    def protect() -> list[HashAndFormat]:
        nonlocal rounds
        rounds += 1
        if rounds == 2:
            raise StorageError("say the disk is gone")
        if rounds == 4:
            done.set()
        return []

    task = asyncio.ensure_future(store.collect_garbage_every(0, protect))
    await done.wait()
    task.cancel()
    await asyncio.wait([task])
    assert store.gc_failures == 1
    await store.close()


async def test_an_error_that_is_kept_protects_nothing_of_what_failed(
    tmp_path: Path, content: Content
) -> None:
    """A traceback holds frames, and frames would hold the temp tags of what got through."""
    folder = tmp_path / "files"
    folder.mkdir()
    good = [folder / f"good {number}" for number in range(3)]
    for number, path in enumerate(good):
        path.write_bytes(content(1_100_000 if number == 1 else 20_000, number))
    kept: list[BaseException] = []
    async with FsStore(tmp_path / "store") as store:
        for mode in ImportMode:
            try:
                await store.add_paths([*good, folder / "missing"], mode)
            except FileFailed as error:
                kept.append(error)
        await store.collect_garbage()
        assert await store.blobs() == []
    assert len(kept) == len(ImportMode)
