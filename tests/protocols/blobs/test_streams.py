"""Verified streams: what a provider sends, what a getter accepts, and what it must not accept."""

from __future__ import annotations

import functools
import itertools
import random

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey.errors import RemoteError, StorageError
from dialkey_blobs.decoder import Decoder
from dialkey_blobs.encoder import Encoder, SubgroupCache, verified_pieces
from dialkey_blobs.errors import (
    BlobNotFound,
    BlobTooLarge,
    BlobTruncated,
    ItemNotFound,
    LeafMismatch,
    ParentMismatch,
    RangeMissing,
    VerificationError,
)
from dialkey_blobs.events import BlobEvent, VerifiedLeaf, VerifiedParent
from dialkey_blobs.hash import EMPTY_HASH, Hash
from dialkey_blobs.hashing import Buffer
from dialkey_blobs.outboard import Outboard, outboard
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.tree import Leaf, plan

R = ChunkRanges
ALL, LAST = R.all(), R.last_chunk()


def counting(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def letters(size: int) -> bytes:
    chunks = -(-size // 1024)
    return b"".join(bytes([65 + i % 26]) * 1024 for i in range(chunks))[:size]


@functools.cache
def sample(size: int) -> tuple[bytes, Outboard]:
    data = random.Random(size).randbytes(size)
    return data, outboard(data)


def reader_of(data: Buffer):  # type: ignore[no-untyped-def]
    return lambda offset, length: data[offset : offset + length]


def encoder(data: bytes, ranges: ChunkRanges, **options: object) -> Encoder:
    made = outboard(data)
    return Encoder(
        made.hash,
        len(data),
        ranges,
        reader_of(data),
        reader_of(made.data),
        **options,  # type: ignore[arg-type]
    )


def stream_of(data: bytes, ranges: ChunkRanges, **options: object) -> bytes:
    return b"".join(encoder(data, ranges, **options))


def decode(decoder: Decoder, stream: bytes, step: int = 10_000) -> list[BlobEvent]:
    events: list[BlobEvent] = []
    for offset in range(0, len(stream), step):
        events += decoder.feed(stream[offset : offset + step])
    decoder.finish()
    return events


def collect(decoder: Decoder, stream: bytes, step: int) -> tuple[list[BlobEvent], RemoteError]:
    """Decode a stream that must fail; return everything that came out, and the error."""
    events: list[BlobEvent] = []

    def run() -> None:
        for offset in range(0, len(stream), step):
            events.extend(decoder.feed(stream[offset : offset + step]))
        decoder.finish()

    with pytest.raises(RemoteError) as caught:
        run()
    error = caught.value
    assert isinstance(
        error, (VerificationError, BlobNotFound, BlobTooLarge, BlobTruncated, ItemNotFound)
    )
    return events + list(error.verified), error


def assert_genuine(events: list[BlobEvent], data: bytes) -> None:
    for event in events:
        if isinstance(event, VerifiedLeaf):
            assert data[event.offset : event.end] == event.data


sizes = st.sampled_from([0, 1, 1024, 1025, 2049, 16384, 16385, 24577, 32769, 49153, 65537, 98305])
sizes |= st.integers(0, 150_000)
chunk_sets = st.lists(st.integers(0, 160), max_size=6).map(R.from_unsorted)
chunk_sets |= st.sampled_from([ALL, LAST])


# --- vectors: docs/wire/blobs.md 9.1, 9.4, 9.5 ---------------------------------------------------


@pytest.mark.parametrize(
    ("size", "length", "expected"),
    [
        (1, 9, "7ffb6a674b6ec08da4511d22d1c282b6f120922faedc56bec534fddc00f636e7"),
        (1024, 1032, "a53a7ea023222bc36b11c64bca94dbd368e9eb805871131213384880f07ae88c"),
        (16383, 16391, "7ecb64e6ad869464673bc541476006cf64715322d5f3474bd21865fa804129a0"),
        (16384, 16392, "a5bda653ce52b510c6c8afbc614ce23e1d370c8c5b317e72249830c28e4903d4"),
        (16385, 16457, "65f98e17d77ec1b389abd47d86da737ec3e2abbd659bd204c043716f21de9c91"),
        (1 << 20, 1052616, "e67aff92075670b8ebb977e5a6c85469ac9bcdb337236f74b9a32650c1f1f088"),
        (8 << 20, 8421320, "c744cffdf041f904ea709c6497dd5f98a0f2950c158ba3e583c05413baf0be85"),
    ],
)
def test_whole_responses_of_letters(size: int, length: int, expected: str) -> None:
    data = letters(size)
    stream = stream_of(data, ALL)
    assert len(stream) == length
    assert blake3(stream).hexdigest() == expected
    events = decode(Decoder(Hash.of(data)), stream, 1 << 20)
    assert b"".join(event.data for event in events if isinstance(event, VerifiedLeaf)) == data


@pytest.mark.parametrize(
    ("size", "length", "expected"),
    [
        (1025, 1033, "1d6b64cb5191d2496c9128e16d078f12"),
        (16385, 16457, "0c6fa6b6ec04fc36a32daebfed661207"),
        (32769, 32905, "bfd53bc3a00e81f8f436473439370777"),
        (49153, 49353, "ab34e6982ee2dfc30b9c1689a7438242"),
        (70000, 70264, "6485f65f94d48c19dc660ba881c654bc"),
        (100000, 100392, "e956ede102804468fda2dab079b970ff"),
        (1 << 20, 1052616, "26e61c2d9e47ce699b4f08caf283090a"),
        ((10 << 20) + 7, 10526735, "7adb3c7cc54156819a98b240b8c282ca"),
    ],
)
def test_whole_responses_of_counting_bytes(size: int, length: int, expected: str) -> None:
    stream = stream_of(counting(size), ALL)
    assert len(stream) == length
    assert blake3(stream).hexdigest()[:32] == expected


@pytest.mark.parametrize(
    ("size", "ranges", "length", "expected"),
    [
        (1025, R((0, 1)), 1096, "272df76c596cdd92f63d1f15db03deaf9470ecc7493283a7acccd5ca74eedfd1"),
        (2048, R((0, 1)), 1096, "9d6e1fd74077fa26dc40c69b199c6d54bd86294e866157aa73db479daaf727d0"),
        (
            16384,
            R((0, 8)),
            8264,
            "6192b7fbfbfcce0ad96d5b313a809bae7d2cfc68293758170661e74aad92e43b",
        ),
        (
            16384,
            R((3, 5)),
            2440,
            "7031c012e2ec54855db6e58158b196a24d648b5c2f8e807905880aa8518ea285",
        ),
        (16384, LAST, 1288, "082a87c55c0617e9ff4717b701fa0372063c8f4a1b94f87f7e43e84f462f68f6"),
        (16385, ALL, 16457, "0c6fa6b6ec04fc36a32daebfed66120764b0877410b5fe1931c247027bb206a3"),
        (
            16385,
            R((0, 16)),
            16456,
            "e7699a8fbd4957b70d63f9fa02d48892a69872dca327ab48b50144ae985548cd",
        ),
        (
            16385,
            R((0, 1)),
            1352,
            "5e20155fd76e72991133376ec2db10c75b07a74581308cab4e1b5bfcadeb216d",
        ),
        (70000, ALL, 70264, "6485f65f94d48c19dc660ba881c654bc8f823f0c27fb9bf630e9374701dfdda6"),
        (
            70000,
            R((16, 32)),
            16584,
            "71e8734a750894445f743a2a4a0bbdb36c047f8834128101857d497be93e509b",
        ),
        (
            70000,
            R((20, 21)),
            1480,
            "7d9c002985d08752050544313aada4e81df389eddb7f8b2c6681fe2bcaa4e6b3",
        ),
        (
            70000,
            R((0, 1)) | LAST,
            1912,
            "f675045c01bce1c5302cd68f80d62e74116d9ca742c667891b0a85e069a1f167",
        ),
        (
            70000,
            R((60, 100)),
            8888,
            "b1abb3e1a92b4e17af7965b7aac47349b1a1e4efd4d736be025fb6fc3a172b25",
        ),
        (
            70000,
            R((60, 65, 200, 300)),
            6008,
            "e060329dbde720eedb8d6c3c61e79ac0a99fd4dbc5fc60a39b5c60eed6d93c5e",
        ),
        (
            49153,
            R((47,)),
            1417,
            "4f62ad0dbc7e9c2c4db4a46e602b159c0466657234b7aaadcb70539be7897010",
        ),
    ],
)
def test_partial_responses(size: int, ranges: ChunkRanges, length: int, expected: str) -> None:
    data = counting(size)
    cache = SubgroupCache()
    for options in ({}, {"cache": cache}, {"cache": cache}, {"piece_bytes": 1024}):
        stream = stream_of(data, ranges, **options)
        assert len(stream) == length
        assert blake3(stream).hexdigest() == expected
    decoder = Decoder(Hash.of(data), ranges)
    assert_genuine(decode(decoder, stream), data)
    assert decoder.size_is_proven == (ranges.selected(size).is_open)


@pytest.mark.parametrize(
    ("data", "ranges", "expected"),
    [
        (b"", ALL, "0000000000000000"),
        (b"", R((5, 7)), "0000000000000000"),
        (b"hello", ALL, "0500000000000000 68656c6c6f"),
        (b"hello world", ALL, "0b00000000000000 68656c6c6f20776f726c64"),
        (b"hello world", LAST, "0b00000000000000 68656c6c6f20776f726c64"),
        (b"hello world", R((3, 4)), "0b00000000000000 68656c6c6f20776f726c64"),
        (
            counting(1025),
            LAST,
            "0104000000000000 5c9e654411e393d1f4bec710ccd5bc5669ab177d610a0eb691fcfee92fb4e8b1"
            " 2f008e8a6979718c0c2f2fd7deb6e7fe4c1a3d8e90139c60cc163eb610ad8411 14",
        ),
        (
            counting(1025),
            R((1, 2)),
            "0104000000000000 5c9e654411e393d1f4bec710ccd5bc5669ab177d610a0eb691fcfee92fb4e8b1"
            " 2f008e8a6979718c0c2f2fd7deb6e7fe4c1a3d8e90139c60cc163eb610ad8411 14",
        ),
        (
            counting(16385),
            LAST,
            "0140000000000000 5384f9b342c6cb86badedcbe662b0e980476a8db17db3cc1f13b19329749ab1f"
            " 7eec20c857faf93c8102396e3b2ea90bcdf693ebd5cbd77211e5f606d72bc1a5 45",
        ),
        (b"hello", R.empty(), ""),
    ],
)
def test_exchanges(data: bytes, ranges: ChunkRanges, expected: str) -> None:
    stream = bytes.fromhex(expected)
    assert stream_of(data, ranges) == stream
    decoder = Decoder(Hash.of(data), ranges)
    assert_genuine(decode(decoder, stream), data)
    assert decoder.done
    if ranges:
        assert decoder.size == len(data)
        assert decoder.size_is_proven


# --- round trips -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    sizes,
    chunk_sets,
    st.sampled_from([1, 1000, 17_000, 10**6]),
    st.sampled_from([1024, 20_000, 1 << 22]),
    st.booleans(),
)
def test_what_is_encoded_is_decoded(
    size: int, ranges: ChunkRanges, step: int, batch_bytes: int, flushing: bool
) -> None:
    data, made = sample(size)
    if step == 1:
        step = max(1, size // 500)
    encoder = Encoder(
        made.hash, size, ranges, reader_of(data), reader_of(made.data), piece_bytes=batch_bytes
    )
    stream = b"".join(encoder)
    decoder = Decoder(made.hash, ranges, batch_bytes=batch_bytes)
    events: list[BlobEvent] = []
    for offset in range(0, len(stream), step):
        events += decoder.feed(stream[offset : offset + step])
        if flushing:
            events += decoder.flush()
    decoder.finish()
    assert decoder.done
    assert decoder.remainder == b""
    items = [e.node if isinstance(e, VerifiedParent) else e.leaf for e in events]  # type: ignore[union-attr]
    assert items == list(plan(size, ranges))
    assert_genuine(events, data)
    for event in events:
        if isinstance(event, VerifiedParent) and event.node.outboard_index >= 0:
            place = 64 * event.node.outboard_index
            assert made.data[place : place + 64] == event.pair
    assert decoder.size_is_proven == ranges.selected(size).is_open
    assert decoder.payload_bytes == encoder.payload_bytes
    assert decoder.overhead_bytes == encoder.overhead_bytes
    assert decoder.payload_bytes + decoder.overhead_bytes == len(stream)


def test_bytes_beyond_the_blob_are_left_for_what_follows() -> None:
    data, made = sample(40_000)
    decoder = Decoder(made.hash)
    decoder.feed(stream_of(data, ALL) + b"next")
    assert decoder.done
    assert decoder.remainder == b"next"
    nothing = Decoder(made.hash, R.empty())
    assert nothing.done
    assert nothing.feed(b"next") == []
    assert nothing.remainder == b"next"


def test_events_wait_for_a_batch_or_a_flush() -> None:
    data, made = sample(150_000)
    stream = stream_of(data, ALL)
    decoder = Decoder(made.hash)
    assert decoder.feed(stream[:70_000]) == []
    flushed = decoder.flush()
    assert [type(event) for event in flushed].count(VerifiedLeaf) == 4
    assert not decoder.size_is_proven
    rest = decoder.feed(stream[70_000:])
    assert_genuine(flushed + rest, data)
    assert decoder.size_is_proven


# --- lies ------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(sizes, chunk_sets, st.data(), st.sampled_from([999, 20_000, 10**6]))
def test_any_flipped_bit_is_noticed(
    size: int, ranges: ChunkRanges, draw: st.DataObject, step: int
) -> None:
    data, made = sample(size)
    stream = bytearray(
        b"".join(Encoder(made.hash, size, ranges, reader_of(data), reader_of(made.data)))
    )
    # A wrong size is another matter: it may go unnoticed, but only without the last chunk.
    first = 0 if ranges.selected(size).is_open else 8
    if len(stream) <= first:
        return
    position = draw.draw(st.integers(first, len(stream) - 1))
    stream[position] ^= 1 << draw.draw(st.integers(0, 7))
    decoder = Decoder(made.hash, ranges, batch_bytes=draw.draw(st.sampled_from([1024, 1 << 22])))
    events, error = collect(decoder, bytes(stream), step)
    assert_genuine(events, data)
    assert not decoder.done
    if position >= 8:
        assert isinstance(error, VerificationError)
        item_bytes = 64 if isinstance(error, ParentMismatch) else error.item.length
        assert error.stream_offset <= position < error.stream_offset + item_bytes
        assert error.hash == made.hash
        items = [e.node if isinstance(e, VerifiedParent) else e.leaf for e in events]  # type: ignore[union-attr]
        assert [*items, error.item] == list(plan(size, ranges))[: len(items) + 1]
    with pytest.raises(RemoteError) as again:
        decoder.feed(b"")
    assert again.value is error


def test_the_error_names_group_hash_and_place() -> None:
    data, made = sample(100_000)
    stream = bytearray(stream_of(data, ALL))
    stream[-1] ^= 1
    with pytest.raises(LeafMismatch) as caught:
        Decoder(made.hash).feed(stream)
    message = str(caught.value)
    assert "chunk 96 (1696 bytes from 98304)" in message
    assert made.hash.short() in message
    assert f"byte {len(stream) - 1696} of the response" in message
    assert caught.value.item.start_chunk == 96
    assert len(caught.value.verified) == len(list(plan(100_000, ALL))) - 1


def test_a_wrong_pair_is_named_even_if_all_content_is_right() -> None:
    data, made = sample(100_000)
    stream = bytearray(stream_of(data, ALL))
    # The second pair; its halves are swapped, so that every leaf still is what the blob has.
    stream[72:136] = stream[104:136] + stream[72:104]
    with pytest.raises(ParentMismatch) as caught:
        Decoder(made.hash).feed(stream)
    assert caught.value.stream_offset == 72
    assert len(caught.value.verified) == 1


@pytest.mark.parametrize("claim", [0, 1024, 99_999, 100_001, 131_072, 2**40, 2**64 - 1])
def test_wrong_sizes_with_the_last_chunk(claim: int) -> None:
    data, made = sample(100_000)
    for ranges in (ALL, LAST):
        stream = claim.to_bytes(8, "little") + stream_of(data, ranges)[8:]
        decoder = Decoder(made.hash, ranges)
        events, _ = collect(decoder, stream + bytes(20_000), 10_000)
        assert_genuine(events, data)
        assert not decoder.size_is_proven


@pytest.mark.parametrize("claim", [65_537, 99_999, 100_001, 131_072])
def test_wrong_sizes_without_the_last_chunk_are_never_proven(claim: int) -> None:
    data, made = sample(100_000)
    ranges = R((3, 5))
    decoder = Decoder(made.hash, ranges)
    stream = claim.to_bytes(8, "little") + stream_of(data, ranges)[8:]
    assert_genuine(decode(decoder, stream), data)
    assert decoder.size == claim
    assert not decoder.size_is_proven


def test_size_zero_is_only_for_the_empty_blob() -> None:
    _, made = sample(5)
    with pytest.raises(LeafMismatch):
        Decoder(made.hash).feed(bytes(8))
    assert Decoder(EMPTY_HASH).feed(bytes(8))[0].data == b""  # type: ignore[union-attr]


def test_claims_above_the_limit_are_refused_at_the_header() -> None:
    data, made = sample(5)
    with pytest.raises(BlobTooLarge) as caught:
        Decoder(made.hash, max_size=4).feed(stream_of(data, ALL))
    assert caught.value.size_bytes == 5
    assert Decoder(made.hash, max_size=5).feed(stream_of(data, ALL))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60_000), chunk_sets, st.data())
def test_early_ends_are_told_apart(size: int, ranges: ChunkRanges, draw: st.DataObject) -> None:
    data, made = sample(size)
    stream = b"".join(Encoder(made.hash, size, ranges, reader_of(data), reader_of(made.data)))
    if not stream:
        return
    boundaries = [8]
    for item in plan(size, ranges):
        length = item.length if isinstance(item, Leaf) else 64
        boundaries.append(boundaries[-1] + length)
    end = draw.draw(st.sampled_from([0, *boundaries]) | st.integers(0, len(stream)))
    if end == len(stream):
        return
    decoder = Decoder(made.hash, ranges)
    events, error = collect(decoder, stream[:end], 10_000)
    assert_genuine(events, data)
    if end == 0:
        assert isinstance(error, BlobNotFound)
    elif end in boundaries:
        assert isinstance(error, ItemNotFound)
        assert error.item == list(plan(size, ranges))[boundaries.index(end)]
        assert len(events) == boundaries.index(end)
    else:
        assert isinstance(error, BlobTruncated)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400), chunk_sets, st.integers(0, 2**64 - 1))
def test_any_bytes_are_refused(junk: bytes, ranges: ChunkRanges, claim: int) -> None:
    _, made = sample(70_000)
    for stream in (junk, claim.to_bytes(8, "little") + junk):
        decoder = Decoder(made.hash, ranges)
        if ranges:
            events, _ = collect(decoder, stream, 10**6)
            assert events == []


# --- what a provider does not have -----------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 150_000), chunk_sets, chunk_sets)
def test_partial_blobs_are_served_up_to_the_first_gap(
    size: int, held: ChunkRanges, ranges: ChunkRanges
) -> None:
    data, made = sample(size)
    held = held.selected(size)
    whole_groups = held.shrunk_to_groups(size)
    # What is not held is zero, as in a sparse file.
    sparse, pairs = bytearray(size), bytearray(len(made.data))
    for item in plan(size, held):
        if isinstance(item, Leaf):
            place = slice(item.offset, item.offset + item.length)
            sparse[place] = data[place]
        elif item.outboard_index >= 0:
            place = slice(64 * item.outboard_index, 64 * item.outboard_index + 64)
            pairs[place] = made.data[place]
    encoder = Encoder(
        made.hash,
        size,
        ranges,
        reader_of(bytes(sparse)),
        reader_of(bytes(pairs)),
        available=held,
    )
    pieces: list[bytes] = []
    try:
        for piece in encoder:
            pieces.append(piece)
        complete = True
    except RangeMissing:
        complete = False
    wanted = ranges.selected(size).grown_to_groups().limited_to(size)
    assert complete == (wanted <= whole_groups)
    expected = b"".join(Encoder(made.hash, size, ranges, reader_of(data), reader_of(made.data)))
    sent = b"".join(pieces)
    assert expected.startswith(sent)
    assert complete == (sent == expected)


def test_a_reader_that_falls_short_is_noticed() -> None:
    data, made = sample(40_000)
    cut = Encoder(made.hash, 40_000, ALL, reader_of(data[:30_000]), reader_of(made.data))
    with pytest.raises(StorageError, match="were expected"):
        list(cut)


def test_changed_content_does_not_leave_the_house() -> None:
    data, made = sample(200_000)
    changed = bytearray(data)
    changed[150_000] ^= 1
    pieces = Encoder(
        made.hash, 200_000, ALL, reader_of(changed), reader_of(made.data), piece_bytes=32_768
    )
    verified = verified_pieces(pieces, made.hash, ALL)
    sent = b"".join(itertools.islice(verified, 4))
    assert stream_of(data, ALL).startswith(sent)
    with pytest.raises(StorageError, match="has changed"):
        next(verified)


def test_subgroup_caches_are_bounded_and_filled_in_batches() -> None:
    cache = SubgroupCache(max_groups=3)
    blobs = [sample(size) for size in (2000, 3000, 5000, 16_384)]
    cache.fill([(made.hash, 0, data) for data, made in blobs])
    assert len(cache) == 3
    assert cache.get(blobs[0][1].hash, 0) is None

    def only_the_leaf(offset: int, length: int) -> Buffer:
        assert length <= 1024
        return blobs[3][0][offset : offset + length]

    cached = Encoder(blobs[3][1].hash, 16_384, LAST, only_the_leaf, reader_of(b""), cache=cache)
    assert b"".join(cached) == stream_of(blobs[3][0], LAST)
