"""Requests on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey.errors import InvalidInput, WireError
from dialkey.limits import MAX_BLOB_REQUEST_BYTES
from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat
from dialkey_blobs.protocol import (
    ALPN,
    GetManyRequest,
    GetRequest,
    ObserveRequest,
    PushRequest,
    Request,
    RequestReader,
    StreamCode,
    decode_request,
    encode_request,
)
from dialkey_blobs.ranges import ChunkRanges, ChunkRangesSeq

DA = Hash(b"\xda" * 32)
ONES, TWOS = Hash(b"\x11" * 32), Hash(b"\x22" * 32)
da, ones, twos = (hash.hex() for hash in (DA, ONES, TWOS))

sets = st.lists(st.integers(0, 2**64 - 1), max_size=5).map(ChunkRanges.from_unsorted)
sequences = st.lists(st.tuples(st.integers(0, 2**64 - 1), sets), max_size=5).map(
    lambda entries: ChunkRangesSeq(tuple(sorted(dict(entries).items())))
)
hashes = st.binary(min_size=32, max_size=32).map(Hash)
requests: st.SearchStrategy[Request] = st.one_of(
    st.builds(GetRequest, hashes, sequences),
    st.builds(PushRequest, hashes, sequences),
    st.builds(ObserveRequest, hashes, sets),
    st.builds(GetManyRequest, st.lists(hashes, max_size=4).map(tuple), sequences),
)


# docs/wire/blobs.md 9.3
VECTORS: list[tuple[Request, str]] = [
    (GetRequest.blob(DA), f"00 {da} 020001000100"),
    (GetRequest.all(HashAndFormat(DA)), f"00 {da} 020001000100"),
    (GetRequest.all(HashAndFormat(DA, BlobFormat.HASH_SEQ)), f"00 {da} 01000100"),
    (
        GetRequest.blob(DA, ChunkRanges.last_chunk()),
        f"00 {da} 020001ffffffffffffffffff010100",
    ),
    (
        GetRequest(DA, ChunkRangesSeq.sequence_and_sizes()),
        f"00 {da} 020001000101ffffffffffffffffff01",
    ),
    (GetRequest(DA, ChunkRangesSeq.empty()), f"00 {da} 00"),
    (GetManyRequest.whole((ONES, TWOS)), f"09 02 {ones} {twos} 020001000200"),
    (GetManyRequest((ONES, TWOS), ChunkRangesSeq.all()), f"09 02 {ones} {twos} 01000100"),
    (ObserveRequest(DA), f"01 {da} 0100"),
    (PushRequest(DA, ChunkRangesSeq.single()), f"08 26 {da} 020001000100"),
    (PushRequest(DA, ChunkRangesSeq.all()), f"08 24 {da} 01000100"),
]


def read(stream: bytes, step: int = 1 << 20) -> Request:
    reader = RequestReader()
    for offset in range(0, len(stream), step):
        push = reader.feed(stream[offset : offset + step])
        if push is not None:
            return push
    return reader.finish()


@pytest.mark.parametrize(("request_", "encoded"), VECTORS)
def test_vectors(request_: Request, encoded: str) -> None:
    assert encode_request(request_) == bytes.fromhex(encoded)
    assert read(bytes.fromhex(encoded)) == request_


def test_names_and_codes() -> None:
    assert bytes.fromhex("2f69726f682d62797465732f34") == ALPN
    assert [code.value for code in StreamCode] == [0, 1, 2, 3]


@given(requests, st.sampled_from([1, 7, 1000]))
def test_requests_round_trip_in_pieces_of_any_size(request_: Request, step: int) -> None:
    assert read(encode_request(request_), step) == request_


@given(requests)
def test_truncated_requests_are_refused(request_: Request) -> None:
    encoded = encode_request(request_)
    for end in {0, 1, 2, 20, 33, len(encoded) - 1}:
        if end < len(encoded):
            with pytest.raises(WireError):
                read(encoded[:end])


def test_pushed_bytes_are_left_for_the_decoder() -> None:
    stream = bytes.fromhex(f"08 26 {Hash.of(b'hello')} 020001000100 0500000000000000 68656c6c6f")
    for step in (1, 10, 1000):
        reader = RequestReader()
        found = None
        rest = b""
        for offset in range(0, len(stream), step):
            piece = stream[offset : offset + step]
            if found is None:
                found = reader.feed(piece)
                rest = reader.remainder if found else b""
            else:
                rest += piece
        assert found == PushRequest(Hash.of(b"hello"), ChunkRangesSeq.single())
        assert rest == stream[-13:]


@pytest.mark.parametrize("kind", [2, 3, 4, 5, 6, 7, 0x0A, 0x80, 0xFF])
def test_reserved_and_unknown_types_are_refused_at_once(kind: int) -> None:
    with pytest.raises(WireError, match="not known"):
        RequestReader().feed(bytes([kind]))


def test_bytes_after_the_body_are_ignored() -> None:
    for request_, encoded in VECTORS:
        if not isinstance(request_, PushRequest):
            assert decode_request(bytes.fromhex(encoded) + b"junk") == request_


def test_oversized_requests_are_refused_while_they_arrive() -> None:
    half = MAX_BLOB_REQUEST_BYTES // 2
    for kind in (0, 1, 9):
        reader = RequestReader()
        reader.feed(bytes([kind]) + bytes(half))
        reader.feed(bytes(half))
        with pytest.raises(WireError, match="exceeds"):
            reader.feed(b"x")
    with pytest.raises(WireError, match="exceeds"):
        RequestReader().feed(bytes.fromhex("08 818040"))
    with pytest.raises(WireError):
        RequestReader().feed(b"\x08" + b"\xff" * 10)


def test_the_largest_requests_are_read() -> None:
    hashes = tuple(Hash(i.to_bytes(32, "big")) for i in range(32_766))
    encoded = encode_request(GetManyRequest.whole(hashes))
    assert len(encoded) <= MAX_BLOB_REQUEST_BYTES
    assert decode_request(encoded) == GetManyRequest.whole(hashes)
    with pytest.raises(InvalidInput, match="protocol allows"):
        encode_request(GetManyRequest.whole((*hashes, DA, DA)))


def test_a_push_is_not_a_request_that_ends_with_its_stream() -> None:
    with pytest.raises(WireError, match="push"):
        decode_request(bytes.fromhex(VECTORS[-1][1]))


@given(st.sampled_from([0, 1, 8, 9]), st.binary(max_size=120))
def test_any_bytes_are_read_or_refused(kind: int, body: bytes) -> None:
    try:
        read(bytes([kind]) + body, 11)
    except WireError:
        pass
