"""What is held of a blob, how two views combine, and its frames on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey.errors import WireError
from dialkey.identity.postcard import Writer
from dialkey.limits import MAX_OBSERVE_ITEM_BYTES
from dialkey_blobs.bitfield import Bitfield, ObserveReader
from dialkey_blobs.ranges import ChunkRanges

R = ChunkRanges
sizes = st.integers(0, 40 * 1024) | st.integers(0, 2**64 - 1)
sets = st.lists(st.integers(0, 45), max_size=6).map(R.from_unsorted)
bitfields = st.builds(Bitfield.of, sizes, sets)


@pytest.mark.parametrize(
    ("bitfield", "frame"),
    [
        (Bitfield(), "02 00 00"),
        (Bitfield.complete(5), "03 05 01 00"),
        (Bitfield(100_000, R((0, 16))), "06 a0 8d 06 02 00 10"),
        (Bitfield(100_000, R((16,))), "05 a0 8d 06 01 10"),
    ],
)
def test_frame_vectors(bitfield: Bitfield, frame: str) -> None:
    assert bitfield.to_frame() == bytes.fromhex(frame)
    assert ObserveReader().feed(bytes.fromhex(frame)) == [bitfield]


def test_the_documented_diff_completes_the_blob() -> None:
    before, after = Bitfield.of(100_000, R((0, 16))), Bitfield.complete(100_000)
    assert before.diff(after) == Bitfield(100_000, R((16,)))
    assert before.combine(before.diff(after)) == after


def test_canonical_forms() -> None:
    assert Bitfield.of(5, R((0, 1))) == Bitfield.complete(5)
    assert Bitfield.of(3000, R((2, 3))) == Bitfield(3000, R((2,)))
    assert Bitfield.of(3000, R((0, 2))) == Bitfield(3000, R((0, 2)))
    assert Bitfield.of(0, R.empty()) == Bitfield()


def test_validated_and_complete() -> None:
    assert not Bitfield().is_validated
    assert Bitfield.complete(0).is_validated
    assert Bitfield.complete(0).is_complete
    partial = Bitfield.of(3000, R((2, 3)))
    assert partial.is_validated
    assert not partial.is_complete
    assert partial.validated_size == 3000
    assert partial.present_bytes == 952
    assert Bitfield.of(3000, R((0, 2))).validated_size is None


@pytest.mark.parametrize(
    ("left", "right", "size"),
    [
        (Bitfield(100, R((0, 5))), Bitfield(200, R((0, 4))), 100),
        (Bitfield(9000, R((0, 5))), Bitfield(8000, R((1, 5))), 9000),
        (Bitfield(9000, R.empty()), Bitfield(8000, R((1, 5))), 8000),
        (Bitfield(9000, R((0, 5))), Bitfield(3000, R((2,))), 3000),
        (Bitfield(9000, R((8,))), Bitfield(3000, R((2,))), 9000),
        (Bitfield(), Bitfield(7, R.empty()), 7),
    ],
)
def test_the_better_known_size_wins(left: Bitfield, right: Bitfield, size: int) -> None:
    assert left.combine(right).size == right.combine(left).size == size


@given(bitfields, bitfields)
def test_combining_is_commutative_and_has_a_neutral_element(
    left: Bitfield, right: Bitfield
) -> None:
    assert left.combine(right) == right.combine(left)
    assert left.combine(Bitfield()) == left
    assert left.combine(left) == left


@given(sizes, sets, sets)
def test_diffs_lead_to_the_newer_state(size: int, older: ChunkRanges, more: ChunkRanges) -> None:
    before = Bitfield.of(size, older)
    after = before.combine(Bitfield.of(size, more))
    assert before.combine(before.diff(after)) == after


@given(st.lists(bitfields, max_size=5), st.integers(1, 7))
def test_frames_are_cut_from_pieces_of_any_size(items: list[Bitfield], step: int) -> None:
    stream = b"".join(item.to_frame() for item in items)
    reader = ObserveReader()
    found = [
        item
        for offset in range(0, len(stream), step)
        for item in reader.feed(stream[offset : offset + step])
    ]
    assert found == items
    assert reader.is_between_items


def test_boundaries_in_any_order_are_sorted() -> None:
    item = Writer().varint(9).varint(4)
    for bound in (7, 3, 3, 5):
        item.varint(bound)
    assert Bitfield.from_item(bytes(item)) == Bitfield(9, R((3, 5, 7)))


def test_long_frames_are_refused_before_they_arrive() -> None:
    for head in (Writer().varint(MAX_OBSERVE_ITEM_BYTES + 1), Writer().varint(2**63)):
        with pytest.raises(WireError):
            ObserveReader().feed(bytes(head))


@given(st.binary(max_size=50))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        ObserveReader().feed(data)
    except WireError:
        pass
    try:
        Bitfield.from_item(data)
    except WireError:
        pass
