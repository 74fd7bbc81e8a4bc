"""Providers that lie, stop early, or say nothing: noticed at once, and nothing bad is kept."""

from __future__ import annotations

import os

import pytest
from blob_peers import Answer, Pair, handmade, p, response, saying, ticket

from dialkey import RecvStream, SendStream
from dialkey.errors import ConnectionLost, LimitExceeded, RemoteError, StreamReset
from dialkey_blobs import (
    ALPN,
    BlobFormat,
    BlobNotFound,
    BlobTruncated,
    ChunkRanges,
    ChunkRangesSeq,
    Collection,
    Downloaded,
    GetManyRequest,
    GetRequest,
    Hash,
    HashAndFormat,
    HashSeq,
    ItemNotFound,
    LeafMismatch,
    MemoryStore,
    ParentMismatch,
    ProviderFailed,
    VerificationError,
    download,
)
from dialkey_blobs.store import BlobState
from dialkey_blobs.tree import Leaf, Parent

GROUP = 16_384
DATA = os.urandom(9_000_000)
"""More than two batches of verification."""
HASH = Hash.of(DATA)
STREAM = response({HASH: DATA}, GetRequest.blob(HASH))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRY_FIRST_S", 0.001)


def offset_of(leaf: int) -> int:
    """Return where a leaf of `STREAM` begins, by its bytes: they are random."""
    return STREAM.index(DATA[leaf * GROUP : leaf * GROUP + 64])


def flipped(stream: bytes, offset: int, bit: int = 0) -> bytes:
    changed = bytearray(stream)
    changed[offset] ^= 1 << bit
    return bytes(changed)


async def check_only_truth(store: MemoryStore, hash: Hash, data: bytes) -> int:
    """Check that what a store holds of a blob is right; return how many bytes that are."""
    held = (await store.status(hash)).bitfield
    for start, end in held.ranges.limited_to(len(data)).runs():
        assert end is not None
        offset, stop = start * 1024, min(end * 1024, len(data))
        assert await store.read(hash, offset, stop - offset) == data[offset:stop]
    return held.present_bytes


@pytest.mark.parametrize(
    ("offset", "error"),
    [
        (8, ParentMismatch),
        (8 + 63, ParentMismatch),
        (8 + 64 * 5, ParentMismatch),
        (offset_of(0), LeafMismatch),
        (offset_of(0) + GROUP - 1, LeafMismatch),
        (offset_of(7), LeafMismatch),
        (offset_of(256) - 1, ParentMismatch),
        (offset_of(300), LeafMismatch),
        (offset_of(301) - 1, LeafMismatch),
        (len(STREAM) - 1, LeafMismatch),
    ],
)
async def test_a_flipped_bit_is_found_where_it_is(
    memory_peers: Pair, offset: int, error: type[VerificationError]
) -> None:
    async with handmade(saying(flipped(STREAM, offset))) as (_, endpoint):
        with pytest.raises(error) as caught:
            await memory_peers.fetching.download(ticket(endpoint, HASH))

    found = caught.value
    assert found.hash == HASH
    assert found.endpoint_id == endpoint.id
    assert found.stream_offset <= offset
    assert isinstance(found.item, Leaf if error is LeafMismatch else Parent)
    length = found.item.length if isinstance(found.item, Leaf) else 64
    assert offset < found.stream_offset + length
    # Everything before the bad item is kept, and nothing from there on.
    start = found.item.start_chunk * 1024
    assert await check_only_truth(memory_peers.fetching.store, HASH, DATA) == start


@pytest.mark.parametrize(
    "claim", [0, 1, 1024, len(DATA) - 1, len(DATA) + 1, len(DATA) // 2, 2**40, 2**63, 2**64 - 1]
)
async def test_a_wrong_size_cannot_pass(memory_peers: Pair, claim: int) -> None:
    stream = claim.to_bytes(8, "little") + STREAM[8:]
    async with handmade(saying(stream)) as (_, endpoint):
        with pytest.raises(RemoteError) as caught:
            await memory_peers.fetching.download(ticket(endpoint, HASH))
    assert isinstance(caught.value, (VerificationError, ItemNotFound, BlobTruncated))
    await check_only_truth(memory_peers.fetching.store, HASH, DATA)
    assert (await memory_peers.fetching.store.status(HASH)).state is not BlobState.COMPLETE


@pytest.mark.parametrize("claim", [65_537, 99_999, 100_001, 131_072])
async def test_a_wrong_size_without_its_proof_does_no_harm(peers: Pair, claim: int) -> None:
    data = p(100_000)
    hash = Hash.of(data)
    request = GetRequest.blob(hash, ChunkRanges.between(3, 5))
    stream = claim.to_bytes(8, "little") + response({hash: data}, request)[8:]
    async with handmade(saying(stream)) as (_, endpoint):
        connection = await peers.getter.connect(endpoint.addr(), ALPN)
        await peers.fetching.get(connection, request)
        connection.close()
    status = await peers.fetching.store.status(hash)
    assert status.size is None

    # An honest provider completes it, and only the rest is fetched.
    tag = await peers.sharing.add_bytes(data)
    done = await peers.fetching.download(peers.sharing.ticket(tag))
    assert done.payload_bytes == 100_000 - 2048
    assert await peers.fetching.read_bytes(hash) == data


async def test_a_liar_is_told_to_stop(memory_peers: Pair) -> None:
    lie = flipped(STREAM, offset_of(3)) + bytes(20_000_000)
    async with handmade(saying(lie)) as (provider, endpoint):
        connection = await memory_peers.getter.connect(endpoint.addr(), ALPN)
        for number in range(2):
            with pytest.raises(LeafMismatch):
                await memory_peers.fetching.get(connection, GetRequest.blob(HASH))
            # Both requests were served over one connection, one after the other.
            assert len(provider.requests) == number + 1
        assert provider.stops[0] == 0
        connection.close()


async def test_a_lie_in_one_file_of_a_collection_keeps_the_others(memory_peers: Pair) -> None:
    contents = [os.urandom(size) for size in (1000, 2000, 3000)]
    entries = tuple((f"file-{i}", Hash.of(data)) for i, data in enumerate(contents))
    metadata, children = Collection(entries).to_blobs()
    blobs = {Hash.of(data): data for data in (*contents, metadata, children.data)}
    content = HashAndFormat(children.hash(), BlobFormat.HASH_SEQ)

    async def answer(
        request: GetRequest | GetManyRequest, send: SendStream, recv: RecvStream
    ) -> None:
        truth = contents[1][500:600]
        await send.write(response(blobs, request).replace(truth, flipped(truth, 50)))
        await send.finish()

    async with handmade(answer) as (_, endpoint):
        with pytest.raises(LeafMismatch) as caught:
            await memory_peers.fetching.download(ticket(endpoint, content))
    assert caught.value.hash == Hash.of(contents[1])
    store = memory_peers.fetching.store
    assert await store.has(content.hash)
    assert await store.has(Hash.of(metadata))
    assert await check_only_truth(store, Hash.of(contents[1]), contents[1]) < 2000


async def test_a_hash_sequence_that_is_too_large_is_not_taken(memory_peers: Pair) -> None:
    content = HashAndFormat(HASH, BlobFormat.HASH_SEQ)
    claim = (32 << 20) + 32
    stream = claim.to_bytes(8, "little") + STREAM[8:]
    async with handmade(saying(stream)) as (_, endpoint):
        with pytest.raises(LimitExceeded):
            await memory_peers.fetching.download(ticket(endpoint, content))


# --- too little ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "error"),
    [
        (0, BlobNotFound),
        (5, BlobTruncated),
        (8, ItemNotFound),
        (8 + 10, BlobTruncated),
        (8 + 64, ItemNotFound),
        (offset_of(0) + GROUP, ItemNotFound),
        (offset_of(299) + 100, BlobTruncated),
        (len(STREAM) - 1, BlobTruncated),
    ],
)
async def test_a_response_that_ends_early(
    memory_peers: Pair, length: int, error: type[RemoteError]
) -> None:
    async with handmade(saying(STREAM[:length])) as (_, endpoint):
        with pytest.raises(error) as caught:
            await memory_peers.fetching.download(ticket(endpoint, HASH))
    assert caught.value.endpoint_id == endpoint.id
    # What came is kept.
    held = await check_only_truth(memory_peers.fetching.store, HASH, DATA)
    assert held >= (length - 8) * 0.99 // GROUP * GROUP - GROUP


async def test_a_reset_keeps_what_came_before(memory_peers: Pair) -> None:
    async def answer(
        request: GetRequest | GetManyRequest, send: SendStream, recv: RecvStream
    ) -> None:
        await send.write(STREAM[: offset_of(310)])
        await send.delivered()
        send.reset(77)

    async with handmade(answer) as (_, endpoint):
        with pytest.raises(StreamReset, match="code 77") as caught:
            await memory_peers.fetching.download(ticket(endpoint, HASH))
    assert caught.value.error_code == 77
    # What is in flight may be lost with the reset, but not what was read before.
    assert await check_only_truth(memory_peers.fetching.store, HASH, DATA) > 0


async def test_a_provider_that_falls_silent_is_left(memory_peers: Pair) -> None:
    async def answer(
        request: GetRequest | GetManyRequest, send: SendStream, recv: RecvStream
    ) -> None:
        if request == GetRequest.blob(HASH):
            await send.write(STREAM[: offset_of(100)])

    async with handmade(answer) as (provider, endpoint):
        with pytest.raises(ConnectionLost, match="sent nothing"):
            await memory_peers.fetching.download(
                ticket(endpoint, HASH), stall_timeout_s=0.3, patience_s=0.5
            )
    held = await check_only_truth(memory_peers.fetching.store, HASH, DATA)
    assert held == 100 * GROUP
    # It was tried again a few times, from where it had stopped.
    assert len(provider.requests) > 1
    assert provider.requests[1] == GetRequest(
        HASH, ChunkRangesSeq.single(ChunkRanges.between(100 * 16))
    )


async def test_what_follows_the_end_is_ignored(memory_peers: Pair) -> None:
    data = b"hello"
    stream = response({Hash.of(data): data}, GetRequest.blob(Hash.of(data)))
    async with handmade(saying(stream + b"and more")) as (_, endpoint):
        await memory_peers.fetching.download(ticket(endpoint, Hash.of(data)))
    assert await memory_peers.fetching.read_bytes(Hash.of(data)) == data


# --- others help --------------------------------------------------------------------------------


def _answers() -> dict[str, Answer]:
    async def resetting(
        request: GetRequest | GetManyRequest, send: SendStream, recv: RecvStream
    ) -> None:
        send.reset(1)

    return {
        "lies": saying(flipped(STREAM, offset_of(300))),
        "has nothing": saying(b""),
        "has a part": saying(STREAM[: offset_of(200)]),
        "refuses": resetting,
    }


@pytest.mark.parametrize("behaviour", _answers())
async def test_the_next_provider_goes_on_where_a_bad_one_stopped(
    peers: Pair, behaviour: str
) -> None:
    tag = await peers.sharing.add_bytes(DATA)
    async with handmade(_answers()[behaviour]) as (_, bad):
        events = [
            event
            async for event in peers.fetching.download(
                ticket(bad, HASH), providers=[peers.provider.addr()]
            )
        ]
    failures = [event for event in events if isinstance(event, ProviderFailed)]
    assert [(event.remote_id, event.retry_in_s) for event in failures] == [(bad.id, None)]
    done = events[-1]
    assert isinstance(done, Downloaded)
    assert done.remote_id == peers.provider.id
    # Nothing was received twice, but the group that was a lie is not counted.
    assert done.payload_bytes == len(DATA)
    assert await peers.fetching.read_bytes(tag.hash) == DATA


async def test_if_all_lie_the_last_error_is_raised(memory_peers: Pair) -> None:
    async with (
        handmade(saying(flipped(STREAM, 100))) as (_, one),
        handmade(saying(flipped(STREAM, offset_of(2)))) as (_, two),
    ):
        with pytest.raises(LeafMismatch) as caught:
            await memory_peers.fetching.download(ticket(one, HASH), providers=[two.addr()])
    assert caught.value.endpoint_id == two.id


async def test_children_of_a_sequence_that_lies_about_itself(memory_peers: Pair) -> None:
    sequence = HashSeq.of([Hash.of(b"a"), Hash.of(b"b")])
    content = HashAndFormat(sequence.hash(), BlobFormat.HASH_SEQ)
    stream = (64).to_bytes(8, "little") + flipped(sequence.data, 3)
    async with handmade(saying(stream)) as (_, endpoint):
        with pytest.raises(LeafMismatch):
            await memory_peers.fetching.download(ticket(endpoint, content))
    assert await memory_peers.fetching.store.blobs() == []
