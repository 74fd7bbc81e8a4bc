"""Whole blobs, ranges, hash sequences, collections and many blobs, over real connections."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from blob_peers import EDGE_SIZES, Pair, p, ticket

from dialkey.errors import InvalidInput, ProtocolViolation, StreamReset
from dialkey_blobs import (
    ALPN,
    BlobFetched,
    BlobFormat,
    ChunkRanges,
    ChunkRangesSeq,
    Connected,
    Downloaded,
    GetManyRequest,
    GetRequest,
    Hash,
    HashAndFormat,
    HashSeq,
    Progress,
)
from dialkey_blobs.store import BlobMissing, BlobState

HASH_SEQ = BlobFormat.HASH_SEQ


async def share_sequence(peers: Pair, contents: list[bytes]) -> HashAndFormat:
    """Add a hash sequence; its tags live as long as the store."""
    tags = await peers.sharing.store.add_many(contents)
    sequence = HashSeq.of(tag.hash for tag in tags)
    tag = await peers.sharing.store.add_bytes(sequence.data, HASH_SEQ)
    for each in (*tags, tag):
        each.leak()
    return tag.content


# --- whole blobs --------------------------------------------------------------------------------


async def test_whole_blobs_of_edge_sizes(peers: Pair) -> None:
    for size in EDGE_SIZES:
        data = p(size)
        tag = await peers.sharing.add_bytes(data)

        done = await peers.fetching.download(peers.sharing.ticket(tag))

        assert await peers.fetching.read_bytes(tag.hash) == data
        assert done.total_bytes == done.payload_bytes == size
        # The empty blob needs no provider.
        assert done.remote_id == (peers.provider.id if size else None)


async def test_a_download_tells_how_far_it_is(peers: Pair) -> None:
    size = 3_000_000
    tag = await peers.sharing.add_bytes(p(size))

    events = [event async for event in peers.fetching.download(str(peers.sharing.ticket(tag)))]

    assert isinstance(events[0], Connected)
    assert events[0].remote_id == peers.provider.id
    assert events[0].path.kind == "direct"
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress[-1].held_bytes == size
    assert [event.held_bytes for event in progress] == sorted(
        event.held_bytes for event in progress
    )
    assert all(event.total_bytes in (None, size) for event in progress)
    assert progress[-1].path is not None
    assert BlobFetched(tag.hash, size) in events
    assert isinstance(events[-1], Downloaded)
    assert events[-1].content == tag.content
    assert events[-1].overhead_bytes == 8 + 64 * (-(-size // 16_384) - 1)


async def test_what_is_held_is_not_fetched_again(peers: Pair) -> None:
    tag = await peers.sharing.add_bytes(p(500_000))
    first = await peers.fetching.download(peers.sharing.ticket(tag))
    second = await peers.fetching.download(peers.sharing.ticket(tag))
    assert (first.payload_bytes, second.payload_bytes) == (500_000, 0)
    assert second.remote_id is None


async def test_a_download_over_an_open_connection_leaves_it_open(peers: Pair) -> None:
    connection = await peers.connect()
    for size in (10, 100_000):
        tag = await peers.sharing.add_bytes(p(size))
        await peers.fetching.download(tag.content, connection=connection)
    assert not connection.is_closed


async def test_nobody_to_ask_is_an_error_at_once(memory_peers: Pair) -> None:
    blobs = memory_peers.fetching
    content = HashAndFormat(Hash.of(b"nobody"))
    with pytest.raises(InvalidInput):
        blobs.download(content)
    with pytest.raises(InvalidInput, match="no other provider"):
        blobs.download(blobs.ticket(content))


# --- ranges -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1025, 16_384, 70_000])
async def test_ranges(peers: Pair, size: int) -> None:
    connection = await peers.connect()
    for number, ranges in enumerate(
        [
            ChunkRanges.between(0, 1),
            ChunkRanges.between(3, 5),
            ChunkRanges.between(16, 32),
            ChunkRanges.between(20, 21) | ChunkRanges.between(60, 65),
            ChunkRanges.between(60, 100),
            ChunkRanges.last_chunk(),
            ChunkRanges.between(0, 1) | ChunkRanges.last_chunk(),
            ChunkRanges.between(4000),
        ]
    ):
        data = bytes([number]) + p(size - 1)
        tag = await peers.sharing.add_bytes(data)

        received = await peers.fetching.get(connection, GetRequest.blob(tag.hash, ranges))

        held = (await peers.fetching.store.status(tag.hash)).bitfield
        assert held.ranges.limited_to(size) == ranges.selected(size).limited_to(size)
        assert received.payload_bytes == held.present_bytes
        for start, end in held.ranges.limited_to(size).runs():
            assert end is not None
            offset, stop = start * 1024, min(end * 1024, size)
            read = await peers.fetching.store.read(tag.hash, offset, stop - offset)
            assert read == data[offset:stop]
        # The rest, and nothing but the rest, completes it.
        done = await peers.fetching.download(tag.content, connection=connection)
        assert done.payload_bytes == size - held.present_bytes
        assert await peers.fetching.read_bytes(tag.hash) == data


async def test_a_partial_blob_is_served_as_far_as_it_is_held(peers: Pair) -> None:
    data = p(200_000)
    tag = await peers.sharing.add_bytes(data)
    connection = await peers.connect()
    await peers.fetching.get(connection, GetRequest.blob(tag.hash, ChunkRanges.between(32, 96)))

    # Now the getter is asked for what it holds, over the same connection.
    asked = await peers.provider.connect((await peers.serve_back()).addr(), ALPN)
    with peers.sharing.store.pin(tag.content):
        await peers.sharing.store.delete(tag.hash, force=True)
    received = await peers.sharing.get(
        asked, GetRequest.blob(tag.hash, ChunkRanges.between(32, 64))
    )
    assert received.payload_bytes == 32 * 1024
    # A hole: what is before it arrives, then the stream is reset.
    with pytest.raises(StreamReset) as caught:
        await peers.sharing.get(asked, GetRequest.blob(tag.hash, ChunkRanges.between(64, 128)))
    assert caught.value.error_code == 3
    held = (await peers.sharing.store.status(tag.hash)).bitfield
    assert held.ranges == ChunkRanges.between(32, 96)
    assert await peers.sharing.store.read(tag.hash, 32_768, 65_536) == data[32_768:98_304]
    asked.close()


# --- hash sequences and many blobs --------------------------------------------------------------


async def test_hash_sequences(peers: Pair) -> None:
    contents = [p(size) for size in (0, 1, 1024, 16_383, 16_384, 16_385, 100_000)]
    content = await share_sequence(peers, contents)

    done = await peers.fetching.download(ticket(peers.provider, content))

    for data in contents:
        assert await peers.fetching.read_bytes(Hash.of(data)) == data
    assert done.total_bytes == sum(map(len, contents)) + 32 * len(contents)
    assert done.payload_bytes == done.total_bytes


async def test_an_empty_hash_sequence(peers: Pair) -> None:
    content = HashAndFormat(Hash.of(b""), HASH_SEQ)
    done = await peers.fetching.download(ticket(peers.provider, content))
    assert done.total_bytes == 0


async def test_a_sequence_with_the_same_blob_many_times(peers: Pair) -> None:
    contents = [p(50_000), p(7), p(50_000), p(50_000), p(7)]
    content = await share_sequence(peers, contents)
    done = await peers.fetching.download(ticket(peers.provider, content))
    assert done.payload_bytes == done.total_bytes == 50_007 + 32 * 5


async def test_a_sequence_of_which_some_is_held(peers: Pair) -> None:
    contents = [p(size) for size in (40_000, 50_000, 60_000)]
    content = await share_sequence(peers, contents)
    (await peers.fetching.add_bytes(p(50_000))).leak()
    connection = await peers.connect()
    await peers.fetching.get(
        connection, GetRequest.blob(Hash.of(p(60_000)), ChunkRanges.between(0, 16))
    )

    done = await peers.fetching.download(content, connection=connection)

    assert done.total_bytes == 150_000 + 96
    # The size proofs come first, so the order of requests does not matter for what is fetched.
    assert done.payload_bytes == done.total_bytes - 50_000 - 16_384
    assert await peers.fetching.read_bytes(Hash.of(p(60_000))) == p(60_000)


async def test_only_some_children(peers: Pair) -> None:
    contents = [p(size) for size in (10, 20_000, 30)]
    content = await share_sequence(peers, contents)
    connection = await peers.connect()
    sets = [ChunkRanges.all(), ChunkRanges.empty(), ChunkRanges.all()]

    await peers.fetching.get(connection, GetRequest(content.hash, ChunkRangesSeq.finite(sets)))

    states = await peers.fetching.store.statuses([Hash.of(data) for data in contents])
    assert [status.state for status in states] == [
        BlobState.MISSING,
        BlobState.COMPLETE,
        BlobState.MISSING,
    ]


async def test_many_blobs_in_one_request(peers: Pair) -> None:
    contents = [p(size) for size in (100_000, 0, 5, 16_385)]
    for tag in await peers.sharing.store.add_many(contents):
        tag.leak()
    hashes = tuple(Hash.of(data) for data in contents)
    connection = await peers.connect()

    received = await peers.fetching.get(connection, GetManyRequest.whole(hashes))

    assert received.payload_bytes == sum(map(len, contents))
    for data in contents:
        assert await peers.fetching.read_bytes(Hash.of(data)) == data


async def test_a_sequence_that_lacks_a_child_there(peers: Pair) -> None:
    contents = [p(size) for size in (10_000, 20_000, 30_000)]
    content = await share_sequence(peers, contents)
    await peers.sharing.store.delete(Hash.of(contents[1]), force=True)
    with pytest.raises(StreamReset, match="does not have"):
        await peers.fetching.download(ticket(peers.provider, content))

    (await peers.sharing.add_bytes(contents[1])).leak()
    done = await peers.fetching.download(ticket(peers.provider, content))

    # The sequence and its first child had come.
    assert done.payload_bytes == 50_000
    assert done.total_bytes == 60_096


async def test_a_ticket_for_a_sequence_that_is_none(peers: Pair) -> None:
    tag = await peers.sharing.add_bytes(p(1001))
    connection = await peers.connect()
    for _ in range(2):
        with pytest.raises(ProtocolViolation, match="not a hash sequence"):
            await peers.fetching.download(HashAndFormat(tag.hash, HASH_SEQ), connection=connection)


# --- collections --------------------------------------------------------------------------------


def write_tree(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def read_tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


async def test_a_folder(peers: Pair, tmp_path: Path) -> None:
    files = {
        "album/one.txt": b"one",
        "album/empty": b"",
        "album/again.txt": b"one",
        "album/nested/deep/er/big.bin": p(300_000),
        "album/with space/Grüße aus Köln 🎈.txt": "hällo".encode(),
        "album/日本語": b"x" * 16_384,
    }
    write_tree(tmp_path / "source", files)
    (tmp_path / "source/album/no files here").mkdir()
    (tmp_path / "source/album/link").symlink_to("one.txt")

    tag, entries = await peers.sharing.add_files([tmp_path / "source/album"])
    done = await peers.fetching.download(peers.sharing.ticket(tag))
    paths = [file.path async for file in peers.fetching.export(done.content, tmp_path / "out")]

    assert read_tree(tmp_path / "out") == files
    assert sorted(paths) == sorted(tmp_path / "out" / name for name in files)
    assert [entry.name for entry in entries] == sorted(files, key=str.encode)
    assert {entry.name: entry.size for entry in entries} == {
        name: len(data) for name, data in files.items()
    }
    assert await peers.fetching.entries(done.content) == entries


async def test_an_export_is_awaited_or_iterated_over(peers: Pair, tmp_path: Path) -> None:
    write_tree(tmp_path / "album", {"one": b"1", "two": p(100_000)})
    tag, _ = await peers.sharing.add_files([tmp_path / "album"])
    await peers.fetching.download(peers.sharing.ticket(tag))
    awaited = await peers.fetching.export(tag.content, tmp_path / "awaited")
    export = peers.fetching.export(tag.content, tmp_path / "iterated")
    assert not (tmp_path / "iterated").exists()
    iterated = [file async for file in export]
    assert sorted(file.path for file in awaited) == [
        tmp_path / "awaited/album/one",
        tmp_path / "awaited/album/two",
    ]
    assert [file.size for file in awaited] == [file.size for file in iterated]
    assert read_tree(tmp_path / "awaited") == read_tree(tmp_path / "iterated")
    with pytest.raises(BlobMissing):
        await peers.fetching.export(Hash.of(b"unknown"), tmp_path / "nothing")
    async with peers.fetching.store.blob(Hash.of(p(100_000))) as blob:
        assert blob.size == 100_000


async def test_a_single_file_is_a_collection_of_one(peers: Pair, tmp_path: Path) -> None:
    (tmp_path / "only.bin").write_bytes(p(5000))
    tag, _ = await peers.sharing.add_files([tmp_path / "only.bin"])
    done = await peers.fetching.download(peers.sharing.ticket(tag))
    [file] = [file async for file in peers.fetching.export(done.content, tmp_path / "out")]
    assert file.path == tmp_path / "out/only.bin"
    assert file.path.read_bytes() == p(5000)


async def test_a_thousand_tiny_files(peers: Pair, tmp_path: Path) -> None:
    files = {f"many/{i % 10}/{i}": b"%d" % i * (i % 40) for i in range(1000)}
    write_tree(tmp_path / "source", files)
    tag, _ = await peers.sharing.add_files([tmp_path / "source/many"])

    events = [event async for event in peers.fetching.download(peers.sharing.ticket(tag))]
    async for _ in peers.fetching.export(tag.content, tmp_path / "out"):
        pass

    assert read_tree(tmp_path / "out") == files
    done = events[-1]
    assert isinstance(done, Downloaded)
    assert done.payload_bytes == done.total_bytes
    fetched = [event.hash for event in events if isinstance(event, BlobFetched)]
    # Beside the files the sequence and the list of names; the empty blob is always there.
    wanted = {Hash.of(data) for data in files.values() if data}
    assert len(fetched) == len(set(fetched)) == len(wanted) + 2


async def test_a_sequence_of_more_than_a_thousand_blobs(peers: Pair) -> None:
    # Above `SIZES_FIRST_CHILDREN`, and the sequence itself has several chunk groups.
    contents = [b"%d" % i for i in range(1500)]
    content = await share_sequence(peers, contents)
    done = await peers.fetching.download(ticket(peers.provider, content))
    assert done.payload_bytes == done.total_bytes == sum(map(len, contents)) + 32 * 1500


# --- many at once -------------------------------------------------------------------------------


async def test_sixty_requests_at_once_on_one_connection(peers: Pair) -> None:
    contents = [os.urandom(20_000 + 7 * i) for i in range(60)]
    for tag in await peers.sharing.store.add_many(contents):
        tag.leak()
    connection = await peers.connect()

    received = await asyncio.gather(
        *(peers.fetching.get(connection, GetRequest.blob(Hash.of(data))) for data in contents)
    )

    assert [each.payload_bytes for each in received] == [len(data) for data in contents]
    for data in contents:
        assert await peers.fetching.read_bytes(Hash.of(data)) == data


async def test_the_same_content_twice_at_once(peers: Pair) -> None:
    data = p(6_000_000)
    tag = await peers.sharing.add_bytes(data)
    source = peers.sharing.ticket(tag)
    await asyncio.gather(*(peers.fetching.download(source) for _ in range(3)))
    assert await peers.fetching.read_bytes(tag.hash) == data
