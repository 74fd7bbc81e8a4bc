"""Responses of several blobs: their order, and decoding them."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey.errors import RemoteError
from dialkey_blobs.collection import Collection
from dialkey_blobs.encoder import Encoder
from dialkey_blobs.errors import (
    BlobNotFound,
    BlobTooLarge,
    BlobTruncated,
    ItemNotFound,
    LeafMismatch,
)
from dialkey_blobs.events import BlobEvent, BlobFinished, BlobStarted, VerifiedLeaf
from dialkey_blobs.hash import Hash
from dialkey_blobs.hash_seq import HashSeq
from dialkey_blobs.hashing import Buffer
from dialkey_blobs.outboard import outboard
from dialkey_blobs.protocol import GetManyRequest, GetRequest, PushRequest
from dialkey_blobs.ranges import ChunkRanges, ChunkRangesSeq
from dialkey_blobs.response import BlobPart, ChildrenNeeded, ResponseDecoder, ResponseOrder

ALL, EMPTY = ChunkRanges.all(), ChunkRanges.empty()
Blobs = dict[Hash, bytes]
AnyRequest = GetRequest | GetManyRequest | PushRequest


def reader_of(data: Buffer):  # type: ignore[no-untyped-def]
    return lambda offset, length: data[offset : offset + length]


def respond(blobs: Blobs, request: AnyRequest) -> bytes:
    """Answer as a provider does that has `blobs`."""
    order = ResponseOrder(request)
    pieces: list[bytes] = []
    while (step := order.next()) is not None:
        if isinstance(step, ChildrenNeeded):
            order.provide(HashSeq(blobs[step.hash]))
            continue
        data = blobs[step.hash]
        read_data, read_outboard = reader_of(data), reader_of(outboard(data).data)
        pieces += Encoder(step.hash, len(data), step.ranges, read_data, read_outboard)
    return b"".join(pieces)


def receive(
    decoder: ResponseDecoder, stream: bytes, step: int, held: Blobs | None = None
) -> tuple[Blobs, list[BlobEvent]]:
    """Decode a response; return the content that came, padded with zeros, and all events."""
    got = {hash: bytearray(data) for hash, data in (held or {}).items()}
    events: list[BlobEvent] = []
    fresh: list[BlobEvent] = []
    current = bytearray()

    def take() -> None:
        nonlocal current
        for event in fresh:
            if isinstance(event, BlobStarted):
                current = got.setdefault(event.hash, bytearray(event.size))
            elif isinstance(event, VerifiedLeaf):
                current[event.offset : event.end] = event.data
        events.extend(fresh)

    for offset in range(0, max(1, len(stream)), step):
        fresh = decoder.feed(stream[offset : offset + step])
        take()
        while (wanted := decoder.children_needed) is not None:
            fresh = decoder.provide(HashSeq(bytes(got[wanted])))
            take()
    decoder.finish()
    return {hash: bytes(data) for hash, data in got.items()}, events


def directory(contents: list[bytes]) -> tuple[Hash, Blobs]:
    names = [f"file{number}" for number in range(len(contents))]
    hashes = [Hash.of(data) for data in contents]
    metadata, children = Collection(tuple(zip(names, hashes, strict=True))).to_blobs()
    blobs = {Hash.of(data): data for data in (*contents, metadata, children.data)}
    return children.hash(), blobs


# --- vectors: docs/wire/blobs.md 9.4 -------------------------------------------------------------

COLLECTION_RESPONSE = bytes.fromhex(
    "4000000000000000"
    "9aa1e089374f3f757d361f1582fbf34fdb009847756fed2ddabd3f416811b04f"
    "17762fddd969a453925d65717ac3eea21320b66b54342fde15128d6caf21215f"
    "1000000000000000 436f6c6c656374696f6e56302e010161"
    "0100000000000000 61"
)


@pytest.mark.parametrize("ranges", [ChunkRangesSeq.all(), ChunkRangesSeq.sequence_and_sizes()])
def test_the_collection_exchange(ranges: ChunkRangesSeq) -> None:
    hash_seq = bytes.fromhex(
        "9aa1e089374f3f757d361f1582fbf34fdb009847756fed2ddabd3f416811b04f"
        "17762fddd969a453925d65717ac3eea21320b66b54342fde15128d6caf21215f"
    )
    metadata = bytes.fromhex("436f6c6c656374696f6e56302e010161")
    blobs = {Hash.of(data): data for data in (hash_seq, metadata, b"a")}
    root = Hash.of(hash_seq)
    assert str(root) == "aac02f486b49281dbcf65438b124db31cc7671be01620a85f7dc417102d4a237"
    request = GetRequest(root, ranges)
    assert respond(blobs, request) == COLLECTION_RESPONSE
    for step in (1, 50, 1000):
        decoder = ResponseDecoder(request)
        got, events = receive(decoder, COLLECTION_RESPONSE, step)
        assert got == blobs
        assert decoder.done
        finished = [event for event in events if isinstance(event, BlobFinished)]
        assert [(event.index, event.size) for event in finished] == [(0, 64), (1, 16), (2, 1)]
        assert all(event.size_is_proven for event in finished)
        assert decoder.payload_bytes == 81
        assert decoder.overhead_bytes == 24


def test_the_get_many_exchange() -> None:
    blobs = {Hash.of(data): data for data in (b"hello", b"hello world")}
    request = GetManyRequest.whole(tuple(sorted(blobs)))
    expected = (
        bytes.fromhex("0b00000000000000") + b"hello world" + bytes.fromhex("0500000000000000")
    )
    assert respond(blobs, request) == expected + b"hello"
    decoder = ResponseDecoder(request)
    got, events = receive(decoder, expected + b"hello", 9)
    assert got == blobs
    assert [event.index for event in events if isinstance(event, BlobStarted)] == [0, 1]


def test_a_pushed_blob_is_decoded_like_a_response() -> None:
    request = PushRequest(Hash.of(b"hello"), ChunkRangesSeq.single())
    got, _ = receive(ResponseDecoder(request), bytes.fromhex("0500000000000000") + b"hello", 4)
    assert list(got.values()) == [b"hello"]


# --- order -----------------------------------------------------------------------------------------


def order_of(request: AnyRequest, children: HashSeq) -> tuple[list[BlobPart], int]:
    order = ResponseOrder(request)
    parts: list[BlobPart] = []
    asked = 0
    while (step := order.next()) is not None:
        if isinstance(step, ChildrenNeeded):
            asked += 1
            order.provide(children)
        else:
            parts.append(step)
    return parts, asked


CHILDREN = HashSeq.of(Hash(bytes([number]) * 32) for number in range(5))
ROOT = Hash(b"\xaa" * 32)


@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.sampled_from([ALL, EMPTY, ChunkRanges((3,))])), max_size=6
    )
)
def test_order_agrees_with_indexing(entries: list[tuple[int, ChunkRanges]]) -> None:
    sequence = ChunkRangesSeq(tuple(sorted(dict(entries).items(), key=lambda entry: entry[0])))
    hashes = [ROOT, *CHILDREN]
    parts, asked = order_of(GetRequest(ROOT, sequence), CHILDREN)
    assert parts == [
        BlobPart(index, hashes[index], sequence[index])
        for index in range(len(hashes))
        if sequence[index]
    ]
    assert asked == any(sequence[index] for index in range(1, 12))
    parts, asked = order_of(GetManyRequest(tuple(CHILDREN), sequence), CHILDREN)
    assert parts == [
        BlobPart(index, CHILDREN[index], sequence[index])
        for index in range(len(CHILDREN))
        if sequence[index]
    ]
    assert asked == 0


def test_single_blobs_and_empty_requests_need_no_children() -> None:
    assert order_of(GetRequest.blob(ROOT), CHILDREN) == ([BlobPart(0, ROOT, ALL)], 0)
    assert order_of(GetRequest(ROOT, ChunkRangesSeq.empty()), CHILDREN) == ([], 0)
    assert ResponseDecoder(GetRequest(ROOT, ChunkRangesSeq.empty())).done


def test_hostile_indices_cost_nothing() -> None:
    began = time.process_time()
    far = ChunkRangesSeq(((2**63, ALL),))
    parts, asked = order_of(GetRequest(ROOT, far), CHILDREN)
    assert (parts, asked) == ([], 1)
    gap = ChunkRangesSeq(((0, ALL), (1, EMPTY), (2**64 - 1, ALL)))
    assert len(order_of(GetRequest(ROOT, gap), CHILDREN)[0]) == 1
    assert time.process_time() - began < 1


# --- round trips and lies ----------------------------------------------------------------------------

contents = st.lists(
    st.sampled_from([0, 1, 500, 1024, 1025, 5000, 16_384, 16_385, 40_000]), max_size=6
)
range_lists = st.lists(
    st.lists(st.integers(0, 40), max_size=4).map(ChunkRanges.from_unsorted), max_size=7
)


@settings(max_examples=40, deadline=None)
@given(contents, range_lists, st.booleans(), st.sampled_from([100, 7000, 10**6]), st.booleans())
def test_any_part_of_a_directory_is_transferred(
    sizes: list[int], wanted: list[ChunkRanges], endless: bool, step: int, small_batches: bool
) -> None:
    source = random.Random(len(sizes))
    root, blobs = directory([source.randbytes(size) for size in sizes])
    sequence = (ChunkRangesSeq.endless if endless else ChunkRangesSeq.finite)(wanted)
    request = GetRequest(root, sequence)
    stream = respond(blobs, request)
    batch_bytes = 5000 if small_batches else 1 << 22
    decoder = ResponseDecoder(request, batch_bytes=batch_bytes)
    # The hash sequence may have been received earlier.
    _, events = receive(decoder, stream, step, {root: blobs[root]})
    assert decoder.done
    assert decoder.remainder == b""
    assert decoder.payload_bytes + decoder.overhead_bytes == len(stream)
    hashes = [root, *HashSeq(blobs[root])]
    current = None
    for event in events:
        if isinstance(event, BlobStarted):
            assert current is None
            current = event
            assert event.hash == hashes[event.index]
            assert event.size == len(blobs[event.hash])
        elif isinstance(event, BlobFinished):
            assert current is not None
            assert (event.index, event.hash) == (current.index, current.hash)
            assert event.size_is_proven == sequence[event.index].selected(event.size).is_open
            current = None
        elif isinstance(event, VerifiedLeaf):
            assert current is not None
            assert blobs[current.hash][event.offset : event.end] == event.data
    assert current is None


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([100, 10**6]))
def test_a_flipped_bit_is_noticed_in_any_blob(draw: st.DataObject, step: int) -> None:
    root, blobs = directory([bytes([n]) * size for n, size in enumerate((1, 2000, 0, 40_000, 9))])
    request = GetRequest(root, ChunkRangesSeq.all())
    stream = bytearray(respond(blobs, request))
    stream[draw.draw(st.integers(0, len(stream) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    decoder = ResponseDecoder(request)
    verified: list[BlobEvent] = []

    def run() -> None:
        for offset in range(0, len(stream), step):
            verified.extend(decoder.feed(stream[offset : offset + step]))
            if decoder.children_needed is not None:
                verified.extend(decoder.provide(HashSeq(blobs[root])))
        decoder.finish()

    with pytest.raises(RemoteError) as caught:
        run()
    verified += caught.value.verified  # type: ignore[attr-defined]
    assert not decoder.done
    current = root
    for event in verified:
        if isinstance(event, BlobStarted):
            current = event.hash
        elif isinstance(event, VerifiedLeaf):
            assert blobs[current][event.offset : event.end] == event.data
    with pytest.raises(RemoteError):
        decoder.feed(b"")


def test_early_ends_are_told_apart() -> None:
    request = GetManyRequest.whole((Hash.of(b"hello"), Hash.of(b"hello world")))
    stream = bytes.fromhex("0500000000000000") + b"hello" + bytes.fromhex("0b00000000000000")
    for end, expected in (
        (0, BlobNotFound),
        (4, BlobTruncated),
        (8, ItemNotFound),
        (9, BlobTruncated),
        (13, BlobNotFound),
        (21, ItemNotFound),
    ):
        decoder = ResponseDecoder(request)
        events = decoder.feed(stream[:end])
        with pytest.raises(expected) as caught:
            decoder.finish()
        events += caught.value.verified
        assert sum(isinstance(event, BlobFinished) for event in events) == (end >= 13)


def test_limits_on_claimed_sizes() -> None:
    root, blobs = directory([bytes(3000)])
    request = GetRequest(root, ChunkRangesSeq.all())
    stream = respond(blobs, request)
    with pytest.raises(BlobTooLarge):
        ResponseDecoder(request, max_root_size=63).feed(stream)
    decoder = ResponseDecoder(request, max_size=2999, max_root_size=64)
    decoder.feed(stream)
    with pytest.raises(BlobTooLarge) as caught:
        decoder.provide(HashSeq(blobs[root]))
    # What came before the refused blob is kept, unverified bytes are not.
    assert sum(isinstance(event, BlobFinished) for event in caught.value.verified) == 1


def test_an_earlier_lie_is_reported_before_a_later_fault() -> None:
    request = GetManyRequest.whole((Hash.of(b"hello"), Hash.of(b"hello world")))
    decoder = ResponseDecoder(request, max_size=5)
    with pytest.raises(LeafMismatch):
        decoder.feed(
            bytes.fromhex("0500000000000000") + b"jello" + bytes.fromhex("0b00000000000000")
        )


def test_many_small_blobs_share_batches() -> None:
    source = random.Random(1)
    root, blobs = directory([source.randbytes(1024) for _ in range(2000)])
    request = GetRequest(root, ChunkRangesSeq.all())
    stream = respond(blobs, request)
    began = time.process_time()
    got, _ = receive(ResponseDecoder(request), stream, 1 << 16)
    # Measured 0.1 s.
    assert time.process_time() - began < 5
    assert got == blobs


def test_bytes_that_come_before_the_children_are_known_wait() -> None:
    root, blobs = directory([b"one", b"two"])
    request = GetRequest(root, ChunkRangesSeq.all())
    stream = respond(blobs, request)
    decoder = ResponseDecoder(request)
    events = decoder.feed(stream)
    assert decoder.children_needed == root
    assert [event.index for event in events if isinstance(event, BlobFinished)] == [0]
    assert decoder.feed(b"") == []
    decoder.provide(HashSeq(blobs[root]))
    assert decoder.done
    with pytest.raises(RuntimeError, match="no hash sequence"):
        decoder.provide(HashSeq())
