"""Chunk sets and sequences of them, as values and on the wire."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey.errors import InvalidInput, WireError
from dialkey.identity.postcard import Reader, Writer
from dialkey.limits import MAX_BLOB_RANGE_BOUNDARIES, MAX_BLOB_RANGE_ENTRIES
from dialkey_blobs.ranges import (
    ChunkRanges,
    ChunkRangesSeq,
    read_range_spec,
    read_ranges_seq,
    write_range_spec,
    write_ranges_seq,
)

R = ChunkRanges
ALL, EMPTY, LAST = R.all(), R.empty(), R.last_chunk()

LIMIT = 40
small_sets = st.lists(st.integers(0, LIMIT), max_size=8).map(R.from_unsorted)
any_sets = st.lists(st.integers(0, 2**64 - 1), max_size=8).map(R.from_unsorted)
sequences = st.lists(st.tuples(st.integers(0, 2**64 - 1), any_sets), max_size=6).map(
    lambda entries: ChunkRangesSeq(tuple(sorted(dict(entries).items())))
)


def members(ranges: ChunkRanges) -> set[int]:
    """Enumerate what lies below a number beyond every boundary."""
    return {chunk for chunk in range(LIMIT + 4) if chunk in ranges}


def spec(ranges: ChunkRanges) -> bytes:
    writer = Writer()
    write_range_spec(writer, ranges)
    return bytes(writer)


def seq(sequence: ChunkRangesSeq) -> bytes:
    writer = Writer()
    write_ranges_seq(writer, sequence)
    return bytes(writer)


# --- sets --------------------------------------------------------------------------------------


@given(small_sets, small_sets)
def test_set_operations_agree_with_sets_of_numbers(left: ChunkRanges, right: ChunkRanges) -> None:
    assert members(left | right) == members(left) | members(right)
    assert members(left & right) == members(left) & members(right)
    assert members(left - right) == members(left) - members(right)
    assert members(left ^ right) == members(left) ^ members(right)
    assert (left <= right) == (members(left) <= members(right))
    assert (left >= right) == (members(left) >= members(right))
    assert bool(left) == bool(members(left))
    assert (left == right) == (members(left) == members(right))


@given(small_sets, st.integers(0, LIMIT), st.integers(0, LIMIT))
def test_overlaps_and_covers(ranges: ChunkRanges, start: int, end: int) -> None:
    wanted = set(range(start, end))
    assert ranges.overlaps(start, end) == bool(wanted & members(ranges))
    assert ranges.covers(start, end) == (wanted <= members(ranges))


@given(small_sets, st.integers(0, 30 * 1024))
def test_selected_follows_the_rule(ranges: ChunkRanges, size: int) -> None:
    last = max(-(-size // 1024), 1) - 1
    selected = ranges.selected(size)
    for chunk in range(last):
        assert (chunk in selected) == (chunk in ranges)
    reaches_end = any(chunk in ranges for chunk in range(last, LIMIT + 4))
    assert selected.is_open == (last in selected) == reaches_end
    assert selected.selected(size) == selected


@given(small_sets, st.integers(0, 60 * 1024))
def test_group_rounding(ranges: ChunkRanges, size: int) -> None:
    chunks = -(-size // 1024)
    groups = range(LIMIT // 16 + 1)
    grown, shrunk = ranges.grown_to_groups(), ranges.shrunk_to_groups(size)
    for group in groups:
        chunk_range = range(16 * group, 16 * group + 16)
        touched = any(chunk in ranges for chunk in chunk_range)
        assert all((chunk in grown) == touched for chunk in chunk_range)
        actual = [chunk for chunk in chunk_range if chunk < chunks]
        whole = bool(actual) and all(chunk in ranges for chunk in actual)
        assert all((chunk in shrunk) == whole for chunk in chunk_range)


@given(small_sets, st.integers(0, LIMIT * 1024))
def test_byte_count(ranges: ChunkRanges, size: int) -> None:
    expected = sum(
        min(1024, size - 1024 * chunk) for chunk in members(ranges) if 1024 * chunk < size
    )
    assert ranges.byte_count(size) == expected
    assert ranges.limited_to(size).byte_count(size) == expected


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 1, R((0, 1))),
        (0, 1024, R((0, 1))),
        (1023, 1025, R((0, 2))),
        (1024, 1024, EMPTY),
        (5000, None, R((4,))),
        (0, None, ALL),
        (1024, 1025, R((1, 2))),
    ],
)
def test_byte_ranges(start: int, end: int | None, expected: ChunkRanges) -> None:
    assert R.from_bytes(start, end) == expected


def test_empty_and_backward_ranges_are_empty() -> None:
    assert R.between(5, 5) == R.between(6, 5) == EMPTY


@pytest.mark.parametrize("boundaries", [(1, 1), (2, 1), (-1,), (2**64,)])
def test_boundaries_are_checked(boundaries: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput):
        R(boundaries)


def test_repr_shows_runs() -> None:
    assert repr(R((1, 3, 9))) == "ChunkRanges(1..3 9..)"
    assert repr(EMPTY) == "ChunkRanges(empty)"


# --- one set on the wire -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranges", "encoded"),
    [
        (EMPTY, "00"),
        (ALL, "01 00"),
        (R((64,)), "01 40"),
        (R((10000,)), "01 90 4e"),
        (R((0, 64)), "02 00 40"),
        (R((1, 3, 9, 13)), "04 01 02 06 04"),
        (R((2, 7, 10, 11)), "04 02 05 03 01"),
        (R((0, 16)), "02 00 10"),
        (R((0, 10, 100, 110)), "04 00 0a 5a 0a"),
        (R((16,)), "01 10"),
        (LAST, "01 ff ff ff ff ff ff ff ff ff 01"),
        (R((0, 1)) | LAST, "03 00 01 fe ff ff ff ff ff ff ff ff 01"),
    ],
)
def test_range_spec_vectors(ranges: ChunkRanges, encoded: str) -> None:
    assert spec(ranges) == bytes.fromhex(encoded)
    assert read_range_spec(Reader(bytes.fromhex(encoded))) == ranges


@given(any_sets)
def test_range_spec_round_trips(ranges: ChunkRanges) -> None:
    reader = Reader(spec(ranges))
    assert read_range_spec(reader) == ranges
    assert reader.finished


def test_long_forms_are_read() -> None:
    assert read_range_spec(Reader(bytes.fromhex("01 80 00"))) == ALL


@pytest.mark.parametrize(
    "encoded",
    ["02 01 00", "02 00 00", "02 05 00", "03 05 00 00", "04 01 02 00 02"],
)
def test_a_repeated_boundary_is_refused(encoded: str) -> None:
    """As iroh-blobs 0.104 does; before, it toggled twice."""
    with pytest.raises(WireError, match="repeats a boundary"):
        read_range_spec(Reader(bytes.fromhex(encoded)))


def test_sums_beyond_64_bits_are_refused() -> None:
    with pytest.raises(WireError, match="past"):
        read_range_spec(Reader(bytes.fromhex("02 ffffffffffffffffff01 01")))


# --- sequences on the wire -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sequence", "encoded"),
    [
        (ChunkRangesSeq.empty(), "00"),
        (ChunkRangesSeq.all(), "01 00 01 00"),
        (ChunkRangesSeq.single(), "02 00 01 00 01 00"),
        (ChunkRangesSeq.single(LAST), "02 00 01 ff ff ff ff ff ff ff ff ff 01 01 00"),
        (ChunkRangesSeq.sequence_and_sizes(), "02 00 01 00 01 01 ff ff ff ff ff ff ff ff ff 01"),
        (
            ChunkRangesSeq.finite([R((1, 3)), R((7, 13))]),
            "03 00 02 01 02 01 02 07 06 01 00",
        ),
        (ChunkRangesSeq.endless([EMPTY] * 3 + [R((7,)), ALL]), "02 03 01 07 01 01 00"),
        (ChunkRangesSeq.finite([EMPTY, EMPTY, ALL]), "02 02 01 00 01 00"),
        (
            ChunkRangesSeq.endless([EMPTY, EMPTY, R((1_000_000,)), ALL]),
            "02 02 01 c0 84 3d 01 01 00",
        ),
        (ChunkRangesSeq.endless([ALL, R((0, 1))]), "02 00 01 00 01 02 00 01"),
        (
            ChunkRangesSeq.finite([R((1, 2)), R((1, 2)), R((2, 3)), R((2, 3))]),
            "03 00 02 01 01 02 02 02 01 02 00",
        ),
        (ChunkRangesSeq.finite([EMPTY] * 2 + [ALL] * 7), "02 02 01 00 07 00"),
        (ChunkRangesSeq.finite([ALL, ALL]), "02 00 01 00 02 00"),
        (
            ChunkRangesSeq.finite([EMPTY] * 2 + [R((1,))] * 5),
            "02 02 01 01 05 00",
        ),
    ],
)
def test_sequence_vectors(sequence: ChunkRangesSeq, encoded: str) -> None:
    assert seq(sequence) == bytes.fromhex(encoded)
    assert read_ranges_seq(Reader(bytes.fromhex(encoded))) == sequence


@given(sequences)
def test_sequences_round_trip(sequence: ChunkRangesSeq) -> None:
    reader = Reader(seq(sequence))
    assert read_ranges_seq(reader) == sequence
    assert reader.finished


@given(st.lists(small_sets, max_size=6))
def test_finite_and_endless_agree_with_lists(sets: list[ChunkRanges]) -> None:
    finite, endless = ChunkRangesSeq.finite(sets), ChunkRangesSeq.endless(sets)
    tail = sets[-1] if sets else EMPTY
    for index in range(len(sets) + 3):
        assert finite[index] == (sets[index] if index < len(sets) else EMPTY)
        assert endless[index] == (sets[index] if index < len(sets) else tail)
    assert not finite.is_endless
    assert endless.is_endless == bool(tail)


@given(sequences, st.integers(0, 50))
def test_runs_agree_with_indexing(sequence: ChunkRangesSeq, limit: int) -> None:
    found = {
        index: ranges
        for start, end, ranges in sequence.runs(limit)
        for index in range(start, limit if end is None else end)
    }
    assert found == {index: sequence[index] for index in range(limit) if sequence[index]}


def test_single_blob_form() -> None:
    assert ChunkRangesSeq.single(R((3,))).is_single_blob
    assert not ChunkRangesSeq.all().is_single_blob
    assert not ChunkRangesSeq.finite([ALL, ALL]).is_single_blob
    assert not ChunkRangesSeq.empty().is_single_blob


@pytest.mark.parametrize(
    "encoded",
    [
        "02 00 01 00 00 00",  # an index that is repeated
        "02 05 01 00 00 01 40",
        "01 00 00",  # an empty set first
        "02 03 00 01 01 00",
        "02 00 01 00 01 01 00",  # a set that is repeated
        "03 00 01 00 01 00 01 00",
        "02 00 02 01 00 01 00",  # a set that is not canonical itself
    ],
)
def test_sequences_that_iroh_would_not_write_are_refused(encoded: str) -> None:
    with pytest.raises(WireError, match="repeats"):
        read_ranges_seq(Reader(bytes.fromhex(encoded)))


@given(st.lists(st.tuples(st.integers(0, 9), small_sets), max_size=6))
def test_no_sequence_is_built_that_iroh_refuses(entries: list[tuple[int, ChunkRanges]]) -> None:
    given_entries = tuple(sorted(dict(entries).items()))
    sequence = ChunkRangesSeq(given_entries)
    assert read_ranges_seq(Reader(seq(sequence))) == sequence
    for index in range(12):
        wanted = [ranges for start, ranges in given_entries if start <= index]
        assert sequence[index] == (wanted[-1] if wanted else EMPTY)


def test_hostile_indices_cost_nothing() -> None:
    sequence = ChunkRangesSeq(((2**63, ALL), (2**63 + 2**62, EMPTY)))
    assert list(sequence.runs(1000)) == []
    assert list(sequence.runs()) == [(2**63, 2**63 + 2**62, ALL)]
    reread = read_ranges_seq(Reader(seq(sequence)))
    assert reread == sequence


def test_indices_beyond_64_bits_are_refused() -> None:
    with pytest.raises(WireError, match="past"):
        read_ranges_seq(Reader(bytes.fromhex("02 ffffffffffffffffff01 01 00 01 00")))


def test_counts_are_limited_before_anything_is_read() -> None:
    for count, read in (
        (MAX_BLOB_RANGE_BOUNDARIES + 1, read_range_spec),
        (MAX_BLOB_RANGE_ENTRIES + 1, read_ranges_seq),
        (2**64 - 1, read_range_spec),
        (2**64 - 1, read_ranges_seq),
    ):
        with pytest.raises(WireError, match="limit"):
            read(Reader(bytes(Writer().varint(count))))


def test_boundaries_are_limited_over_the_whole_sequence() -> None:
    half = MAX_BLOB_RANGE_BOUNDARIES // 2 + 1
    writer = Writer().varint(2)
    for _ in range(2):
        writer.varint(1).varint(half).raw(b"\1" * half)
    with pytest.raises(WireError, match="limit"):
        read_ranges_seq(Reader(bytes(writer)))


def test_the_largest_sequences_are_read_in_linear_time() -> None:
    count = MAX_BLOB_RANGE_ENTRIES
    encoded = bytes(Writer().varint(count)) + bytes.fromhex("0102010101020102") * (count // 2)
    began = time.process_time()
    assert len(read_ranges_seq(Reader(encoded)).entries) == count
    # Measured 0.4 s; a quadratic reader would take minutes.
    assert time.process_time() - began < 10


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (read_range_spec, read_ranges_seq):
        try:
            read(Reader(data))
        except WireError:
            pass
