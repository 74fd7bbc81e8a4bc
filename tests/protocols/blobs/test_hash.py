"""Hashes and their text forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey.errors import InvalidInput
from dialkey.identity import base32
from dialkey_blobs.hash import EMPTY_HASH, BlobFormat, Hash, HashAndFormat


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
        (b"hello", "ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f"),
        (b"hello world", "d74981efa70a0c880b8d8c1985d075dbcbf679b99a5f9914e5aaf96b831a9e24"),
        (b"hi there", "0b84d358e4c8be6c38626b2182ff575818ba6bd3f4b90464994be14cb354a072"),
        (bytes(100), "ac6f86fff630a56a21f59d3a0c1c6907fe3f7cafd5fa916f9b722032f6059ed9"),
    ],
)
def test_hash_vectors(data: bytes, expected: str) -> None:
    assert str(Hash.of(data)) == expected


def test_the_empty_hash() -> None:
    assert Hash.of(b"") == EMPTY_HASH


@given(st.binary(min_size=32, max_size=32))
def test_text_round_trips(digest: bytes) -> None:
    hash = Hash(digest)
    assert Hash.parse(str(hash)) == hash
    assert Hash.parse(base32.encode(digest)) == hash
    assert Hash.parse(base32.encode(digest).upper()) == hash
    assert bytes(hash) == digest
    assert hash.short() == str(hash)[:10]


@pytest.mark.parametrize("text", ["", "ab", "AF" * 32, "g" * 64, "a" * 63, "a" * 65, "é" * 64])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Hash.parse(text)


def test_length_is_checked() -> None:
    with pytest.raises(InvalidInput, match="32 bytes"):
        Hash(b"short")


def test_hashes_are_ordered_by_bytes() -> None:
    assert sorted([Hash(b"\2" * 32), Hash(b"\1" * 32)]) == [Hash(b"\1" * 32), Hash(b"\2" * 32)]


def test_hash_and_format_text() -> None:
    raw = HashAndFormat(EMPTY_HASH)
    seq = HashAndFormat(EMPTY_HASH, BlobFormat.HASH_SEQ)
    assert str(seq) == "s" + str(EMPTY_HASH)
    assert HashAndFormat.parse(str(raw)) == raw
    assert HashAndFormat.parse(str(seq)) == seq


@pytest.mark.parametrize("text", ["s", "", "x" + "0" * 64, "ss" + "0" * 64, "s" + "0" * 52])
def test_other_hash_and_format_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        HashAndFormat.parse(text)
