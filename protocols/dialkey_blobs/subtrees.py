"""Complete subtrees of 1 MiB: taken out of a stream, and verified, in one piece.

In the stream of a blob a complete subtree always looks the same: 63 pairs and 64 chunk groups, in fixed
order. So when all of it is wanted and has arrived, it is split by a fixed layout, and each chaining value
is expected in a fixed place: for the top above the subtree, for all others in its pairs. What does not
match is taken apart again (`VerifiedSubtree.items`), so that the check group by group finds the item.

Source: docs/wire/blobs.md 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

from dialkey_blobs.events import VerifiedLeaf, VerifiedParent, VerifiedSubtree
from dialkey_blobs.hashing import Buffer, parent_rows
from dialkey_blobs.tree import GROUP_BYTES, PAIR_BYTES, SUBTREE_BYTES, Parent, Subtree

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
else:
    from dialkey_blobs.arrays import np

__all__ = ["STREAM_BYTES", "cut", "items", "pairs_match", "slots"]

_PAIRS: Final = SUBTREE_BYTES // GROUP_BYTES - 1
STREAM_BYTES: Final = SUBTREE_BYTES + _PAIRS * PAIR_BYTES
"""The bytes of a complete subtree in a stream."""


def _layout() -> tuple[list[slice], list[slice], list[int], list[int]]:
    """Return where pairs and groups are in the stream, and in which half of a pair their values are."""
    pairs: list[slice] = []
    groups: list[slice] = []
    # Half 0 of pair 0 is place 0, its half 1 place 1, half 0 of pair 1 place 2; -1 is above all.
    pair_places: list[int] = []
    group_places: list[int] = []
    open_places = [-1]
    position = 0
    for item in Subtree(0, 0).items():
        place = open_places.pop()
        if isinstance(item, Parent):
            open_places += (2 * len(pairs) + 1, 2 * len(pairs))
            pair_places.append(place)
            pairs.append(slice(position, position + PAIR_BYTES))
            position = pairs[-1].stop
        else:
            group_places.append(place)
            groups.append(slice(position, position + GROUP_BYTES))
            position = groups[-1].stop
    assert position == STREAM_BYTES
    return pairs, groups, pair_places, group_places


_PAIR_SLICES, _GROUP_SLICES, _PAIR_PLACES, _GROUP_PLACES = _layout()


@cache
def _expected_of_pairs() -> npt.NDArray[np.intp]:
    return np.array(_PAIR_PLACES[1:], np.intp)


@cache
def _expected_of_groups() -> npt.NDArray[np.intp]:
    return np.array(_GROUP_PLACES, np.intp)


def cut(stream: Buffer, node: Subtree) -> VerifiedSubtree:
    """Cut a subtree out of its `STREAM_BYTES`; it is not verified yet."""
    with memoryview(stream) as view:
        pairs = b"".join([view[place] for place in _PAIR_SLICES])
        data = b"".join([view[place] for place in _GROUP_SLICES])
    return VerifiedSubtree(node, pairs, data)


def items(subtree: VerifiedSubtree) -> list[tuple[VerifiedParent | VerifiedLeaf, int, int]]:
    """Take a subtree apart, in the order of the stream.

    Returns:
        (item, where it began in the subtree's stream, the place in `pairs` of the value that it must
        have, in units of 32 bytes, or -1 for the top)
    """
    found: list[tuple[VerifiedParent | VerifiedLeaf, int, int]] = []
    pairs = groups = 0
    for item in subtree.node.items():
        if isinstance(item, Parent):
            pair = subtree.pairs[PAIR_BYTES * pairs : PAIR_BYTES * (pairs + 1)]
            at, place = _PAIR_SLICES[pairs].start, _PAIR_PLACES[pairs]
            found.append((VerifiedParent(item, pair), at, place))
            pairs += 1
        else:
            data = subtree.data[GROUP_BYTES * groups : GROUP_BYTES * (groups + 1)]
            at, place = _GROUP_SLICES[groups].start, _GROUP_PLACES[groups]
            found.append((VerifiedLeaf(item, data), at, place))
            groups += 1
    return found


def slots(subtree: VerifiedSubtree) -> npt.NDArray[np.uint8]:
    """Return the values that its groups must have, shape (64, 32)."""
    halves = np.frombuffer(subtree.pairs, np.uint8).reshape(-1, 32)
    return halves[_expected_of_groups()]


def pairs_match(subtrees: Sequence[VerifiedSubtree], expected: Sequence[bytes]) -> bool:
    """Return whether every pair of every subtree has the value that stands above it.

    Args:
        subtrees: any number.
        expected: the value that the top of each must have.
    """
    joined = b"".join([subtree.pairs for subtree in subtrees])
    values = parent_rows(joined).reshape(-1, _PAIRS, 32)
    tops = np.frombuffer(b"".join(expected), np.uint8).reshape(-1, 32)
    halves = np.frombuffer(joined, np.uint8).reshape(-1, 2 * _PAIRS, 32)
    return bool(
        np.array_equal(values[:, 0], tops)
        and np.array_equal(values[:, 1:], halves[:, _expected_of_pairs()])
    )
