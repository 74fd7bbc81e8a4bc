"""Integers, acknowledgements and close frames on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey.quic import codes
from dialkey.quic.codes import TransportError
from dialkey.quic.packets.frames import (
    VARINT_MAX,
    encode_ack_body,
    encode_connection_close,
    read_ack_body,
    read_bytes,
    read_varint,
    varint,
)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        # RFC 9000 appendix A.1, and the edges of each length
        (151_288_809_941_952_652, "c2197c5eff14e88c"),
        (494_878_333, "9d7f3e7d"),
        (15_293, "7bbd"),
        (37, "25"),
        (0, "00"),
        (63, "3f"),
        (64, "4040"),
        (16_383, "7fff"),
        (16_384, "80004000"),
        ((1 << 30) - 1, "bfffffff"),
        (1 << 30, "c000000040000000"),
        (VARINT_MAX, "ffffffffffffffff"),
        # multipath and NAT traversal types, docs/wire/quic.md 3.2 and 5.2
        (0x3E75, "7e75"),
        (0x3D7F90, "803d7f90"),
        (0x9F81A6, "809f81a6"),
    ],
)
def test_varint_vectors(value: int, encoded: str) -> None:
    assert varint(value).hex() == encoded
    assert read_varint(bytes.fromhex(encoded), 0) == (value, len(encoded) // 2)


def test_longer_forms_are_read_too() -> None:
    assert read_varint(bytes.fromhex("4025"), 0) == (37, 2)
    assert read_varint(bytes.fromhex("c000000000000025"), 0) == (37, 8)


@given(st.integers(0, VARINT_MAX), st.binary(max_size=5), st.binary(max_size=5))
def test_varints_round_trip(value: int, before: bytes, after: bytes) -> None:
    encoded = varint(value)
    assert read_varint(before + encoded + after, len(before)) == (value, len(before + encoded))


@given(st.integers(0, VARINT_MAX), st.data())
def test_a_cut_varint_is_refused(value: int, data: st.DataObject) -> None:
    encoded = varint(value)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(TransportError) as caught:
        read_varint(encoded[:cut], 0)
    assert caught.value.error_code == codes.FRAME_ENCODING_ERROR


def test_bytes_beyond_the_end_are_refused() -> None:
    assert read_bytes(b"abc", 1, 2) == (b"bc", 3)
    with pytest.raises(TransportError):
        read_bytes(b"abc", 1, 3)
    with pytest.raises(TransportError):
        read_bytes(b"abc", 0, VARINT_MAX)


@st.composite
def ranges(draw: st.DrawFn) -> list[tuple[int, int]]:
    at = draw(st.integers(0, 1 << 20))
    found = []
    for _ in range(draw(st.integers(1, 20))):
        length = draw(st.integers(1, 5000))
        found.append((at, at + length))
        at += length + draw(st.integers(1, 5000))
    return found[::-1]


@given(ranges(), st.integers(0, 10_000_000))
def test_acknowledgements_round_trip(given_ranges: list[tuple[int, int]], delay_us: int) -> None:
    body = encode_ack_body(given_ranges, delay_us)
    assert read_ack_body(body, 0) == (given_ranges, delay_us >> 3 << 3, len(body))


@pytest.mark.parametrize(
    ("found", "delay_us", "encoded"),
    [
        ([(0, 10)], 0, "09000009"),  # docs/wire/quic.md 3.2
        ([(0, 1)], 80, "000a0000"),
        ([(5, 8), (1, 3)], 0, "0700010201 01".replace(" ", "")),
        ([(5, 6), (3, 4)], 0, "050001000000"),
    ],
)
def test_acknowledgement_vectors(found: list[tuple[int, int]], delay_us: int, encoded: str) -> None:
    assert encode_ack_body(found, delay_us).hex() == encoded
    assert read_ack_body(bytes.fromhex(encoded), 0)[0] == found


@given(st.binary(max_size=60))
def test_any_bytes_as_an_acknowledgement(data: bytes) -> None:
    try:
        found, delay_us, end = read_ack_body(data, 0)
    except TransportError:
        return
    assert end <= len(data)
    assert delay_us >= 0
    last = VARINT_MAX + 2
    for low, high in found:
        assert 0 <= low < high < last
        last = low


def test_close_frames() -> None:
    assert (
        encode_connection_close(7, b"done", is_application=True).hex() == "1d0704" + b"done".hex()
    )
    transport = encode_connection_close(0x0A, b"", is_application=False, frame_type=0x3E75)
    assert transport.hex() == "1c0a7e7500"
    assert len(encode_connection_close(1, b"x" * 9999, is_application=True)) < 1010
