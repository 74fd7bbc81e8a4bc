from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey.errors import WireError
from dialkey.identity.postcard import Reader, Writer

U64 = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (127, "7f"),
        (128, "8001"),
        (1234, "d209"),
        (4433, "d122"),
        (65535, "ffff03"),
        (2**32 - 1, "ffffffff0f"),
        (2**64 - 1, "ffffffffffffffffff01"),
    ],
)
def test_varint_vectors(value, encoded):
    assert bytes(Writer().varint(value)).hex() == encoded
    assert Reader(bytes.fromhex(encoded)).varint() == value


@pytest.mark.parametrize(
    ("encoded", "bits"),
    [
        ("ffff07", 16),  # wire document, section 3
        ("ffff04", 16),
        ("80808000", 16),
        ("ffffffff10", 32),
        ("808080808000", 32),
        ("ffffffffffffffffff02", 64),
        ("8080808080808080808000", 64),
        ("", 64),
        ("80", 64),
        ("ffff", 16),
    ],
)
def test_varints_that_are_refused(encoded, bits):
    with pytest.raises(WireError):
        Reader(bytes.fromhex(encoded)).varint(bits)


@pytest.mark.parametrize(
    ("encoded", "bits", "value"),
    [("8100", 16, 1), ("818000", 16, 1), ("8080808000", 32, 0), ("80808080808080808000", 64, 0)],
)
def test_needlessly_long_varints_are_accepted(encoded, bits, value):
    reader = Reader(bytes.fromhex(encoded))
    assert reader.varint(bits) == value
    assert reader.finished


@given(U64)
def test_varint_round_trip(value):
    reader = Reader(bytes(Writer().varint(value)))
    assert reader.varint() == value
    assert reader.finished


@pytest.mark.parametrize("value", [-1, 2**64])
def test_writer_refuses_numbers_out_of_range(value):
    with pytest.raises(ValueError, match="varint"):
        Writer().varint(value)


@given(U64, st.binary(max_size=300), st.text(max_size=100), st.booleans(), st.integers(0, 255))
def test_a_sequence_of_values(number, data, text, present, byte):
    writer = Writer().varint(number).byte_string(data).string(text).option(present).u8(byte)
    writer.raw(data).boolean(not present)
    reader = Reader(memoryview(bytes(writer)))
    assert len(writer) == reader.remaining
    assert reader.varint() == number
    assert reader.byte_string(300) == data
    assert reader.string(1000) == text
    assert reader.option() is present
    assert reader.u8() == byte
    assert reader.take(len(data)) == data
    assert reader.boolean() is (not present)
    assert reader.finished


def test_truncation_anywhere_is_an_error():
    whole = bytes(Writer().varint(300).byte_string(b"abc").string("x").option(True))
    for end in range(len(whole)):
        reader = Reader(whole[:end])
        with pytest.raises(WireError):
            (reader.varint(), reader.byte_string(9), reader.string(9), reader.option())


def test_a_huge_declared_length_costs_nothing():
    with pytest.raises(WireError, match="ends early"):
        Reader(bytes(Writer().varint(2**63)) + b"abc").byte_string(2**64)
    with pytest.raises(WireError, match="limit"):
        Reader(bytes(Writer().varint(2**63))).byte_string(100)
    with pytest.raises(WireError, match="limit"):
        Reader(b"\x65").count(100)


def test_take_refuses_negative_counts():
    with pytest.raises(ValueError, match="negative"):
        Reader(b"abc").take(-1)


def test_other_malformed_values():
    with pytest.raises(WireError, match="UTF-8"):
        Reader(b"\x02\xc3\x28").string(10)
    with pytest.raises(WireError, match="truth"):
        Reader(b"\x02").option()


def test_bytes_after_the_value_are_left():
    reader = Reader(bytearray(b"\x01\x02"))
    assert reader.u8() == 1
    assert not reader.finished
    assert reader.remaining == 1
