"""Storing what a download brings: piece by piece, resumed, and from providers that lie."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.encoder import Encoder
from dialkey_blobs.errors import RangeMissing
from dialkey_blobs.events import VerifiedLeaf, VerifiedParent
from dialkey_blobs.hash import Hash
from dialkey_blobs.outboard import outboard
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.store import BlobState, FileFailed, FsStore, SizeConflict, Store, StoreCore
from dialkey_blobs.store.fs_core import FsCore
from dialkey_blobs.store.memory_core import MemoryCore
from dialkey_blobs.tree import Leaf, Parent

Content = Callable[..., bytes]
ItemsOf = Callable[..., tuple[int, list[VerifiedParent], list[VerifiedLeaf]]]


def encoded(core: StoreCore, hash: Hash, ranges: ChunkRanges) -> bytes:
    """Return the stream that a provider sends from a store."""
    with core.open(hash) as blob:
        held = blob.bitfield.ranges
        return b"".join(
            Encoder(hash, blob.size, ranges, blob.read_data, blob.read_outboard, available=held)
        )


@pytest.mark.parametrize("size", [900, 10_000, 16_384, 16_385, 70_000, (4 << 20) + 16_385])
async def test_a_blob_in_one_piece(
    store: Store, content: Content, items_of: ItemsOf, size: int
) -> None:
    data = content(size)
    hash = Hash.of(data)
    await store.write_items(hash, *items_of(data))
    assert await store.has(hash)
    assert await store.read(hash) == data
    async with await store.blob(hash) as blob:
        assert await blob.read_outboard(0, 1 << 20) == outboard(data).data
    # Again, and in part: nothing changes.
    await store.write_items(hash, *items_of(data))
    await store.write_items(hash, *items_of(data, ChunkRanges.last_chunk()))
    assert await store.has(hash)


@pytest.mark.parametrize("size", [10_000, 70_000, (4 << 20) + 16_385])
async def test_a_blob_in_pieces(
    store: Store, content: Content, items_of: ItemsOf, size: int
) -> None:
    data = content(size)
    hash = Hash.of(data)
    chunks = -(-size // 1024)
    step = max(3, chunks // 7)
    for start in range(0, chunks, step):
        assert not await store.has(hash)
        ranges = ChunkRanges.between(start, start + step)
        await store.write_items(hash, *items_of(data, ranges))
        held = (await store.status(hash)).bitfield
        assert ranges.limited_to(size) <= held.ranges
        assert await store.read(hash, start * 1024, 1024) == data[start * 1024 :][:1024]
    assert await store.has(hash)
    assert await store.read(hash) == data
    if isinstance(store, FsStore):
        assert list(store.root.rglob("*.bitfield")) == []


def test_everything_in_any_order_and_reopened(
    tmp_path_factory: pytest.TempPathFactory, content: Content, items_of: ItemsOf
) -> None:
    data = content(100_000)
    hash = Hash.of(data)
    pairs = st.tuples(st.integers(0, 97), st.integers(1, 40))

    @given(st.lists(st.tuples(pairs, st.booleans()), min_size=1, max_size=6))
    @settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    def run(writes: list[tuple[tuple[int, int], bool]]) -> None:
        root = tmp_path_factory.mktemp("store")
        core = FsCore(root)
        memory = MemoryCore()
        expected = Bitfield()
        for (start, length), reopen in writes:
            ranges = ChunkRanges.between(start, start + length)
            size, parents, leaves = items_of(data, ranges)
            for each in (core, memory):
                each.write_items(hash, size, parents, leaves)
                each.commit()
            expected = expected.combine(Bitfield.of(size, ranges.selected(size)))
            if reopen:
                core.close()
                core = FsCore(root)
            assert core.status(hash).bitfield == memory.status(hash).bitfield
            assert core.status(hash).bitfield.ranges == expected.ranges
            whole_groups = core.status(hash).bitfield.ranges.shrunk_to_groups(size)
            for first, end in whole_groups.runs():
                part = ChunkRanges.between(first, end)
                assert encoded(core, hash, part) == encoded(memory, hash, part)
        core.close()

    run()


async def test_what_is_not_held_is_not_read(
    store: Store, content: Content, items_of: ItemsOf
) -> None:
    data = content(100_000)
    hash = Hash.of(data)
    await store.write_items(hash, *items_of(data, ChunkRanges.between(16, 32)))
    assert await store.read(hash, 16 * 1024, 16 * 1024) == data[16 * 1024 : 32 * 1024]
    for offset, length in ((0, 1), (16 * 1024 - 1, 2), (32 * 1024 - 1, 2), (99_999, 1)):
        with pytest.raises(RangeMissing):
            await store.read(hash, offset, length)
    status = await store.status(hash)
    assert (status.state, status.size) == (BlobState.PARTIAL, None)
    await store.write_items(hash, *items_of(data, ChunkRanges.last_chunk()))
    assert (await store.status(hash)).size == 100_000


async def test_two_proven_sizes_conflict(store: Store, content: Content, items_of: ItemsOf) -> None:
    data = content(100_000)
    hash = Hash.of(data)
    # Without the last chunk, a wrong size verifies; it must not stick.
    lie = items_of(data, ChunkRanges.between(16, 32), size=131_072)
    await store.write_items(hash, *lie)
    assert (await store.status(hash)).size is None
    await store.write_items(hash, *items_of(data, ChunkRanges.last_chunk()))
    assert (await store.status(hash)).size == 100_000
    with pytest.raises(SizeConflict) as caught:
        await store.write_items(hash, *lie)
    assert (caught.value.claimed, caught.value.proven) == (131_072, 100_000)
    await store.write_items(hash, *items_of(data))
    assert await store.read(hash) == data
    with pytest.raises(SizeConflict):
        await store.write_items(hash, *lie)


@pytest.mark.parametrize("claim", [99_999, 100_001, 114_688, 131_072])
async def test_pieces_under_wrong_sizes_still_make_the_blob(
    store: Store, content: Content, items_of: ItemsOf, claim: int
) -> None:
    data = content(100_000)
    hash = Hash.of(data)
    for start in range(0, 96, 16):
        ranges = ChunkRanges.between(start, start + 16)
        size = claim if start % 32 else 100_000
        await store.write_items(hash, *items_of(data, ranges, size=size))
    await store.write_items(hash, *items_of(data, ChunkRanges.between(96)))
    assert await store.read(hash) == data
    async with await store.blob(hash) as blob:
        assert await blob.read_outboard(0, 1 << 20) == outboard(data).data


@pytest.mark.parametrize("claim", [(1 << 63) - 1, 1 << 63, (1 << 64) - 1])
async def test_a_hostile_size_costs_nothing(store: Store, tmp_path: Path, claim: int) -> None:
    # Whoever chooses the hash can make any first chunk verify under any size.
    hash = Hash.of(b"hostile")
    depth = 54
    parents = [
        VerifiedParent(Parent(0, claim >> level, level, level == 0, True, False), bytes(64))
        for level in range(depth - 10)
    ]
    first = VerifiedLeaf(Leaf(0, 1024, False), b"x" * 1024)
    await store.write_items(hash, claim, parents, [first])
    status = await store.status(hash)
    assert status.size is None
    assert status.bitfield == Bitfield(claim, ChunkRanges.between(0, 1))
    assert await store.read(hash, 0, 1024) == b"x" * 1024
    if isinstance(store, FsStore):
        used = sum(path.stat().st_blocks * 512 for path in store.root.rglob("*.*"))
        assert used < 200_000
    # A last chunk at the far end is kept sparsely, or refused by the file system.
    last_chunk = (claim - 1) // 1024
    last = VerifiedLeaf(Leaf(last_chunk, claim - last_chunk * 1024, False), b"y")
    with suppress(FileFailed):
        await store.write_items(hash, claim, [], [last])
    assert await store.read(hash, 0, 1024) == b"x" * 1024
    assert (await store.status(hash)).state is BlobState.PARTIAL
    await store.delete(hash)
    # Other blobs are not bothered.
    await store.add_bytes(b"fine" * 10_000)


async def test_a_partial_blob_is_completed_by_an_import(
    store: Store, content: Content, items_of: ItemsOf, tmp_path: Path
) -> None:
    for number, size in enumerate([10_000, 100_000, (4 << 20) + 32_768]):
        data = content(size)
        path = tmp_path / f"{number}"
        path.write_bytes(data)
        await store.write_items(Hash.of(data), *items_of(data, ChunkRanges.between(0, 5)))
        async with store.observe(Hash.of(data)) as states:
            assert not (await anext(states)).is_complete
            await store.add_path(path)
            assert (await anext(states)).is_complete
        assert await store.read(Hash.of(data)) == data
    if isinstance(store, FsStore):
        assert sorted(path.suffix for path in store.root.glob("data/*/*")) == [
            ".data",
            ".data",
            ".obao4",
        ]


async def test_a_partial_blob_that_is_deleted_can_come_again(
    store: Store, content: Content, items_of: ItemsOf
) -> None:
    data = content(100_000)
    hash = Hash.of(data)

    def delete_and_write(core: StoreCore) -> None:
        core.remove(hash)
        core.write_items(hash, *items_of(data, ChunkRanges.between(0, 16)))

    def delete_and_add(core: StoreCore) -> None:
        core.remove(hash)
        core.add_many([data], 0)  # type: ignore[arg-type]

    await store.write_items(hash, *items_of(data, ChunkRanges.between(48, 80)))
    await store.run(delete_and_write)
    assert (await store.status(hash)).bitfield.ranges == ChunkRanges.between(0, 16)
    assert await store.read(hash, 0, 100) == data[:100]
    await store.run(delete_and_add)
    assert await store.read(hash) == data
    await store.run(delete_and_write)
    assert (await store.status(hash)).bitfield.ranges == ChunkRanges.between(0, 16)
    await store.write_items(hash, *items_of(data))
    assert await store.read(hash) == data


async def test_more_partial_blobs_than_open_files(
    tmp_path: Path, content: Content, items_of: ItemsOf
) -> None:
    async with FsStore(tmp_path / "store") as store:
        blobs = [content(40_000, seed) for seed in range(40)]
        for ranges in (ChunkRanges.between(0, 16), ChunkRanges.last_chunk()):
            for blob in blobs:
                await store.write_items(Hash.of(blob), *items_of(blob, ranges))
    async with FsStore(tmp_path / "store") as store:
        statuses = await store.statuses([Hash.of(blob) for blob in blobs])
        assert all(status.bitfield.ranges == ChunkRanges((0, 16, 39)) for status in statuses)


async def test_a_provider_reads_while_a_download_writes(
    tmp_path: Path, content: Content, items_of: ItemsOf
) -> None:
    data = content(1 << 20)
    hash = Hash.of(data)

    async def ranges() -> AsyncIterator[ChunkRanges]:
        for start in range(0, 1024, 128):
            yield ChunkRanges.between(start, start + 128)

    async with FsStore(tmp_path / "store") as store:
        async for part in ranges():
            size, parents, leaves = items_of(data, part)
            before = (await store.status(hash)).bitfield
            writing = asyncio.ensure_future(store.write_items(hash, size, parents, leaves))
            for first, end in before.ranges.limited_to(size).runs():
                held = ChunkRanges.between(first, end)
                stream = await store.run(lambda core, held=held: encoded(core, hash, held))
                assert len(stream) > held.byte_count(size)
            await writing


def test_a_journal_is_kept_short(tmp_path: Path, content: Content, items_of: ItemsOf) -> None:
    data = content(16 << 10)
    hash = Hash.of(data + b"x")
    core = FsCore(tmp_path / "store")
    for number in range(1000):
        leaf = VerifiedLeaf(Leaf(16 * number, 1024, False), data[:1024])
        core.write_items(hash, 1 << 40, [], [leaf])
        for again in range(1, 3):
            leaf = VerifiedLeaf(Leaf(16 * number + again, 1024, False), data[:1024])
            core.write_items(hash, 1 << 40, [], [leaf])
    core.commit()
    journal = core.paths(hash).journal.stat().st_size
    held = core.status(hash).bitfield
    assert len(held.ranges.boundaries) == 2_000
    core.close()
    assert journal < 70_000
    core = FsCore(tmp_path / "store")
    assert core.status(hash).bitfield == held
    core.close()
