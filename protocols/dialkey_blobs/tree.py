"""The shape of a blob's BLAKE3 tree, and which parts of it a request covers.

BLAKE3 cuts a blob into chunks of 1024 bytes and hashes them in a binary tree, in which every left
child covers the largest power of two of chunks that leaves something to the right. Verified streams
cut that tree off at *chunk groups* of 16 chunks: below a group the hashes are not stored, because
they can be computed from the group's bytes.

A *plan* lists the items of a verified stream, in the order in which they are sent: for a subtree
that is wanted only in part, a parent (the pair of its children's chaining values); for one that is
wanted whole and fits in a group, a leaf (its bytes). Sender and receiver compute the same plan from
the size and the ranges. Plans are lazy and take memory for one path through the tree, whatever size
a stranger claims.

Source: docs/wire/blobs.md 3.2, 3.3 and 5.1.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from dialkey_blobs.ranges import ChunkRanges

__all__ = [
    "CHUNK_BYTES",
    "GROUP_BYTES",
    "GROUP_CHUNKS",
    "MAX_BLOB_BYTES",
    "PAIR_BYTES",
    "SUBTREE_BYTES",
    "Leaf",
    "Parent",
    "Subtree",
    "chunk_count",
    "group_count",
    "left_length",
    "outboard_size",
    "plan",
    "plan_with_subtrees",
]

CHUNK_BYTES: Final = 1024
GROUP_CHUNKS: Final = 16
GROUP_BYTES: Final = GROUP_CHUNKS * CHUNK_BYTES
PAIR_BYTES: Final = 64
SUBTREE_BYTES: Final = 1 << 20
"""What is sent, verified and stored in one piece where all of it is wanted."""
MAX_BLOB_BYTES: Final = (1 << 64) - 1
"""The largest size that a size header can claim."""


class Parent(NamedTuple):
    """An inner node whose pair is part of a stream.

    Attributes:
        start_chunk: the first chunk below it.
        length: the bytes below it, more than 1024.
        outboard_index: its place in the pre-order outboard, in pairs; -1 for a node within a group,
            which outboards leave out.
        is_root: whether it covers the whole blob.
        visits_left: whether items of the left child follow.
        visits_right: whether items of the right child follow.
    """

    start_chunk: int
    length: int
    outboard_index: int
    is_root: bool
    visits_left: bool
    visits_right: bool

    @property
    def node(self) -> int:
        """The in-order number that iroh's messages give this node."""
        return self.start_chunk + left_length(self.length) // CHUNK_BYTES - 1


class Leaf(NamedTuple):
    """A run of content that is part of a stream.

    Attributes:
        start_chunk: its first chunk.
        length: its bytes, at most 16,384; 0 only for the empty blob.
        is_root: whether it is the whole blob.
    """

    start_chunk: int
    length: int
    is_root: bool

    @property
    def offset(self) -> int:
        """Where it begins in the blob, in bytes."""
        return self.start_chunk * CHUNK_BYTES


class Subtree(NamedTuple):
    """A run of items: all of a subtree over exactly `SUBTREE_BYTES`, which is not the whole blob.

    Attributes:
        start_chunk: the first chunk below it.
        outboard_index: the place of its first pair in the pre-order outboard, in pairs; the others
            follow that one.
    """

    start_chunk: int
    outboard_index: int

    def items(self) -> Iterator[Parent | Leaf]:
        """Yield what a plan without subtrees has in its place."""
        top = (self.start_chunk, SUBTREE_BYTES, self.outboard_index)
        for item in _items(top, (0,), -1, 0):
            assert not isinstance(item, Subtree)
            yield item


def chunk_count(size: int) -> int:
    """Return how many chunks a blob of `size` bytes has; the empty blob has none."""
    return -(-size // CHUNK_BYTES)


def group_count(size: int) -> int:
    """Return how many chunk groups a blob of `size` bytes has; the empty blob has none."""
    return -(-size // GROUP_BYTES)


def outboard_size(size: int) -> int:
    """Return the bytes of the outboard of a blob of `size` bytes; 0 up to one group."""
    return PAIR_BYTES * (max(1, group_count(size)) - 1)


def left_length(length: int) -> int:
    """Return the bytes below the left child of a node over `length` bytes.

    Args:
        length: more than 1024, since a chunk has no children.
    """
    return CHUNK_BYTES << (((length - 1) // CHUNK_BYTES).bit_length() - 1)


def plan(size: int, ranges: ChunkRanges) -> Iterator[Parent | Leaf]:
    """Yield the items of the verified stream for `ranges` of a blob of `size` bytes.

    Empty ranges yield nothing. Ranges that reach to the end or past it select the last chunk, the
    proof of the size; so any others yield at least one item. Each step costs the logarithm of the
    number of boundaries; memory is bounded by the depth of the tree, at most 54.

    Args:
        size: 0 to 2**64 - 1 bytes.
        ranges: as requested; they may reach past the end.
    """
    for item in _items((0, size, 0), ranges.selected(size).boundaries, size, 0):
        assert not isinstance(item, Subtree)
        yield item


def plan_with_subtrees(size: int, ranges: ChunkRanges) -> Iterator[Parent | Leaf | Subtree]:
    """Yield what `plan` does, with one item for each complete subtree of `SUBTREE_BYTES`."""
    return _items((0, size, 0), ranges.selected(size).boundaries, size, SUBTREE_BYTES)


def _items(
    top: tuple[int, int, int], bounds: tuple[int, ...], size: int, in_one: int
) -> Iterator[Parent | Leaf | Subtree]:
    if not bounds:
        return
    bound_count = len(bounds)
    # (start chunk, length, outboard index); right children wait on the stack.
    stack = [top]
    while stack:
        start, length, index = stack.pop()
        position = bisect_right(bounds, start)
        whole = position == bound_count or bounds[position] >= start + chunk_count(length)
        # The stack holds only what is selected at least in part, so one state means all of it.
        if length <= CHUNK_BYTES or (whole and length <= GROUP_BYTES):
            yield Leaf(start, length, length == size)
            continue
        if whole and length == in_one != size:
            yield Subtree(start, index)
            continue
        left = left_length(length)
        middle = start + left // CHUNK_BYTES
        if whole:
            visits_left = visits_right = True
        else:
            visits_left = bool(position & 1) or bounds[position] < middle
            after = bisect_right(bounds, middle, position)
            end = start + chunk_count(length)
            visits_right = bool(after & 1) or (after < bound_count and bounds[after] < end)
        in_outboard = length > GROUP_BYTES
        yield Parent(
            start, length, index if in_outboard else -1, length == size, visits_left, visits_right
        )
        if visits_right:
            stack.append((middle, length - left, index + max(1, left // GROUP_BYTES)))
        if visits_left:
            stack.append((start, left, index + 1))
