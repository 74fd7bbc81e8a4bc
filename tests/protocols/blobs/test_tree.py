"""The shape of the tree and the plan of items, against the rule written out naively."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey_blobs.outboard import outboard_offset
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.tree import (
    Leaf,
    Parent,
    chunk_count,
    group_count,
    left_length,
    outboard_size,
    plan,
)

R = ChunkRanges


def text(size: int, ranges: ChunkRanges) -> str:
    letters = {Parent: "P", Leaf: "L"}
    return " ".join(
        f"{letters[type(item)]}[{item.start_chunk},{item.length}]" for item in plan(size, ranges)
    )


# docs/wire/blobs.md 9.5
PLANS = [
    (1025, R((0, 1)), "P[0,1025] L[0,1024]"),
    (2048, R((0, 1)), "P[0,2048] L[0,1024]"),
    (16384, R((0, 8)), "P[0,16384] L[0,8192]"),
    (
        16384,
        R((3, 5)),
        "P[0,16384] P[0,8192] P[0,4096] P[2,2048] L[3,1024] P[4,4096] P[4,2048] L[4,1024]",
    ),
    (16384, R.last_chunk(), "P[0,16384] P[8,8192] P[12,4096] P[14,2048] L[15,1024]"),
    (16385, R.all(), "P[0,16385] L[0,16384] L[16,1]"),
    (16385, R((0, 16)), "P[0,16385] L[0,16384]"),
    (
        16385,
        R((0, 1)),
        "P[0,16385] P[0,16384] P[0,8192] P[0,4096] P[0,2048] L[0,1024]",
    ),
    (
        70000,
        R.all(),
        "P[0,70000] P[0,65536] P[0,32768] L[0,16384] L[16,16384] P[32,32768] L[32,16384]"
        " L[48,16384] L[64,4464]",
    ),
    (70000, R((16, 32)), "P[0,70000] P[0,65536] P[0,32768] L[16,16384]"),
    (
        70000,
        R((20, 21)),
        "P[0,70000] P[0,65536] P[0,32768] P[16,16384] P[16,8192] P[20,4096] P[20,2048] L[20,1024]",
    ),
    (
        70000,
        R((0, 1)) | R.last_chunk(),
        "P[0,70000] P[0,65536] P[0,32768] P[0,16384] P[0,8192] P[0,4096] P[0,2048] L[0,1024]"
        " P[64,4464] L[68,368]",
    ),
    (
        70000,
        R((60, 100)),
        "P[0,70000] P[0,65536] P[32,32768] P[48,16384] P[56,8192] L[60,4096] L[64,4464]",
    ),
    (
        70000,
        R((60, 65, 200, 300)),
        "P[0,70000] P[0,65536] P[32,32768] P[48,16384] P[56,8192] L[60,4096] P[64,4464]"
        " P[64,4096] P[64,2048] L[64,1024] L[68,368]",
    ),
    (
        49153,
        R((47,)),
        "P[0,49153] P[32,16385] P[32,16384] P[40,8192] P[44,4096] P[46,2048] L[47,1024] L[48,1]",
    ),
]


@pytest.mark.parametrize(("size", "ranges", "expected"), PLANS)
def test_plan_vectors(size: int, ranges: ChunkRanges, expected: str) -> None:
    assert text(size, ranges) == expected


@pytest.mark.parametrize(
    ("size", "ranges", "expected"),
    [
        (0, R((5, 7)), "L[0,0]"),
        (0, R.empty(), ""),
        (1, R((9,)), "L[0,1]"),
        (1024, R((1, 2)), "L[0,1024]"),
        (1025, R.empty(), ""),
        (3000, R((5, 7)), "P[0,3000] L[2,952]"),
        (16384, R.all(), "L[0,16384]"),
        (16385, R.last_chunk(), "P[0,16385] L[16,1]"),
        (3072, R((0, 2)), "P[0,3072] L[0,2048]"),
    ],
)
def test_special_cases(size: int, ranges: ChunkRanges, expected: str) -> None:
    assert text(size, ranges) == expected


def naive_plan(size: int, ranges: ChunkRanges) -> list[tuple[str, int, int]]:
    """Follow the normative rule chunk by chunk."""
    last = max(chunk_count(size), 1) - 1
    chunks = {chunk for chunk in range(last) if chunk in ranges}
    if ranges.is_open or any(end is not None and end > last for _, end in ranges.runs()):
        chunks.add(last)
    items: list[tuple[str, int, int]] = []

    def visit(start: int, length: int) -> None:
        own = set(range(start, start + max(1, chunk_count(length))))
        if not own & chunks:
            return
        if len(own) == 1 or (own <= chunks and length <= 16384):
            items.append(("L", start, length))
            return
        left = 1024
        while 2 * left < length:
            left *= 2
        items.append(("P", start, length))
        visit(start, left)
        visit(start + left // 1024, length - left)

    visit(0, size)
    return items


edge_sizes = [0, 1, 1024, 1025, 1026, 1045, 1066, 2049, 2050, 4170, 16384, 16385, 24577, 36865]
edge_sizes += [45057, 49153, 65536, 65537, 98305]
sizes = st.sampled_from(edge_sizes) | st.integers(0, 200_000)
ranges_of_chunks = st.lists(st.integers(0, 220), max_size=7).map(R.from_unsorted)


@given(sizes, ranges_of_chunks)
def test_plan_follows_the_rule(size: int, ranges: ChunkRanges) -> None:
    found = [
        ("P" if isinstance(item, Parent) else "L", item.start_chunk, item.length)
        for item in plan(size, ranges)
    ]
    assert found == naive_plan(size, ranges)


@given(sizes, ranges_of_chunks)
def test_items_carry_their_place(size: int, ranges: ChunkRanges) -> None:
    items = list(plan(size, ranges))
    starts = {(item.start_chunk, item.length) for item in items}
    for item in items:
        assert item.is_root == (item.length == size)
        if isinstance(item, Parent):
            left = left_length(item.length)
            right = (item.start_chunk + left // 1024, item.length - left)
            assert item.visits_left == ((item.start_chunk, left) in starts)
            assert item.visits_right == (right in starts)
            if item.length > 16384:
                offset = outboard_offset(size, item.start_chunk, item.length)
                assert item.outboard_index * 64 == offset
            else:
                assert item.outboard_index == -1


@given(sizes)
def test_whole_plans_list_the_outboard_in_order(size: int) -> None:
    indices = [item.outboard_index for item in plan(size, R.all()) if isinstance(item, Parent)]
    assert indices == list(range(outboard_size(size) // 64))


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, 0), (16384, 0), (16385, 64), (1 << 20, 4032), (8 << 20, 32704), ((10 << 20) + 7, 40960)],
)
def test_outboard_sizes(size: int, expected: int) -> None:
    assert outboard_size(size) == expected


def test_pre_order_places_of_the_documented_example() -> None:
    nodes = [(0, 70000), (0, 65536), (0, 32768), (32, 32768)]
    assert [outboard_offset(70000, start, length) // 64 for start, length in nodes] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="no such node"):
        outboard_offset(70000, 16, 16385)


def test_node_numbers() -> None:
    # A node's id is the number of its start chunk plus the chunks on its left, minus one.
    root = next(plan(70000, R.all()))
    assert isinstance(root, Parent)
    assert root.node == 63


def test_counts() -> None:
    assert [chunk_count(n) for n in (0, 1, 1024, 1025)] == [0, 1, 1, 2]
    assert [group_count(n) for n in (0, 1, 16384, 16385)] == [0, 1, 1, 2]
    assert [left_length(n) for n in (1025, 2048, 2049, 3072, 4096, 4097)] == [
        1024,
        1024,
        2048,
        2048,
        2048,
        4096,
    ]


def test_the_largest_claim_is_planned_lazily() -> None:
    size = 2**64 - 1
    first = list(itertools.islice(plan(size, R.all()), 100))
    assert len(first) == 100
    path = list(plan(size, R.last_chunk()))
    assert len(path) == 55
    assert path[-1] == Leaf(2**54 - 1, 1023, False)
    holes = R.from_unsorted(range(0, 2**20, 3))
    assert len(list(itertools.islice(plan(size, holes), 1000))) == 1000
