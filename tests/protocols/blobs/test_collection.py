"""Hash sequences and collections."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey.errors import InvalidInput, WireError
from dialkey.identity.postcard import Writer
from dialkey.limits import MAX_COLLECTION_NAME_BYTES
from dialkey_blobs.collection import COLLECTION_HEADER, Collection
from dialkey_blobs.hash import EMPTY_HASH, Hash
from dialkey_blobs.hash_seq import HashSeq

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
hashes = st.binary(min_size=32, max_size=32).map(Hash)
collections = st.lists(st.tuples(names, hashes), max_size=6).map(
    lambda entries: Collection(tuple(entries))
)


def named(*names: str) -> Collection:
    return Collection(tuple((name, Hash.of(bytes([i]))) for i, name in enumerate(names)))


# --- hash sequences --------------------------------------------------------------------------------


def test_the_interesting_sizes_fixture() -> None:
    def letters(size: int) -> bytes:
        chunks = -(-size // 1024)
        return b"".join(bytes([65 + i % 26]) * 1024 for i in range(chunks))[:size]

    sizes = (0, 1, 1024, 16383, 16384, 16385, 1 << 20, 8 << 20)
    sequence = HashSeq.of(Hash.of(letters(size)) for size in sizes)
    assert len(sequence.data) == 256
    expected = "bb19a47f4650f341750fbdc15a92a5a9c5ca18d5820e7c161169526ca905366c"
    assert str(sequence.hash()) == expected


@given(st.lists(hashes, max_size=8))
def test_sequences_hold_hashes(items: list[Hash]) -> None:
    sequence = HashSeq.of(items)
    assert list(sequence) == items
    assert len(sequence) == len(items)
    assert [sequence[i] for i in range(len(items))] == items
    assert HashSeq(sequence.data) == sequence
    if items:
        assert sequence[-1] == items[-1]
    with pytest.raises(IndexError):
        sequence[len(items)]


def test_other_lengths_are_refused() -> None:
    with pytest.raises(WireError, match="multiple of 32"):
        HashSeq(bytes(33))
    with pytest.raises(WireError, match="larger"):
        HashSeq(bytes((32 << 20) + 32))


# --- collections: docs/wire/blobs.md 6.2 ---------------------------------------------------------


@pytest.mark.parametrize(
    ("collection", "metadata", "root"),
    [
        (
            Collection(),
            "436f6c6c656374696f6e56302e00",
            "c69e3bb6adb62a337f033d8d5d34498f7e58af9eadfbd8a835b6b0f7e861dbad",
        ),
        (
            Collection((("a", Hash.of(b"a")),)),
            "436f6c6c656374696f6e56302e010161",
            "aac02f486b49281dbcf65438b124db31cc7671be01620a85f7dc417102d4a237",
        ),
        (
            named("blob0", "blob1", "blob2"),
            "436f6c6c656374696f6e56302e0305626c6f623005626c6f623105626c6f6232",
            "aab660b34dc8c1cecd063ab454233e8562b1c55b896c685b542b19166ccb0189",
        ),
        (
            Collection((("somefile.bin", Hash.of(bytes(100))),)),
            "436f6c6c656374696f6e56302e010c736f6d6566696c652e62696e",
            "c1b3754230cda01ff9d6dd0f881afaa8d57bc8f6eb5b87ac3baa4d00241053b1",
        ),
    ],
)
def test_vectors(collection: Collection, metadata: str, root: str) -> None:
    names, children = collection.to_blobs()
    assert names.hex() == metadata
    assert str(children.hash()) == root
    assert Collection.from_blobs(names, children) == collection


def test_more_metadata_vectors() -> None:
    assert named("test", "a", "b").to_blobs()[0].hex() == (
        "436f6c6c656374696f6e56302e03047465737401610162"
    )
    assert Hash.of(Collection().to_blobs()[0]).hex()[:8] == "3c62686f"
    some_file = Collection((("somefile.bin", Hash.of(bytes(100))),)).to_blobs()[0]
    assert Hash.of(some_file).hex() == (
        "35df6b1b1fc0ed0cf728b2cc1c5f36a995118942c695e2ddfe2d4bcd738fb8c2"
    )


@given(collections)
def test_collections_round_trip(collection: Collection) -> None:
    assert Collection.from_blobs(*collection.to_blobs()) == collection


def test_a_hundred_thousand_entries() -> None:
    collection = Collection(tuple((f"file {i}", EMPTY_HASH) for i in range(100_000)))
    assert Collection.from_blobs(*collection.to_blobs()) == collection
    assert len(collection) == len(collection.names) == 100_000


def test_loading_is_strict() -> None:
    metadata, children = named("a", "b").to_blobs()
    for bad in (
        b"",
        b"CollectionV1." + metadata[13:],
        metadata[:-1],
        metadata + b"x",
        COLLECTION_HEADER,
        COLLECTION_HEADER + bytes(Writer().varint(2).byte_string(b"\xff").byte_string(b"b")),
    ):
        with pytest.raises(WireError):
            Collection.from_blobs(bad, children)
    for wrong in (HashSeq(), HashSeq(bytes(32)), HashSeq(bytes(128))):
        with pytest.raises(WireError, match="names for"):
            Collection.from_blobs(metadata, wrong)
    empty = Collection().to_blobs()[0]
    with pytest.raises(WireError):
        Collection.from_blobs(empty, HashSeq())


def test_names_are_limited() -> None:
    long = "x" * (MAX_COLLECTION_NAME_BYTES + 1)
    with pytest.raises(InvalidInput, match="longer"):
        named(long).to_blobs()
    with pytest.raises(InvalidInput, match="UTF-8"):
        named("\ud800").to_blobs()
    encoded = COLLECTION_HEADER + bytes(Writer().varint(1).string(long))
    with pytest.raises(WireError, match="limit"):
        Collection.from_blobs(encoded, HashSeq(bytes(64)))


@given(st.binary(max_size=80), st.integers(0, 4))
def test_any_bytes_are_read_or_refused(data: bytes, count: int) -> None:
    for metadata in (data, COLLECTION_HEADER + data):
        try:
            Collection.from_blobs(metadata, HashSeq(bytes(32 * count)))
        except WireError:
            pass
