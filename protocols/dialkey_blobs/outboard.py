"""Outboards: the pairs of a blob's tree that are kept beside it, in pre-order.

An outboard is the pairs of all nodes over more than one chunk group, root first, each before the
pairs of its left and then its right side; nothing else, no size. A blob of up to one group has an
empty one.

Hashing works in *blocks* of 256 groups (4 MiB). The pairs below a block are contiguous in pre-order, so
they are written as one run when the block is hashed; only the small tree over the blocks is left for the
end.

Source: docs/wire/blobs.md 5.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import attrs
from blake3 import blake3

from dialkey.errors import InvalidInput
from dialkey_blobs.hash import Hash
from dialkey_blobs.hashing import (
    BATCH_BYTES,
    Buffer,
    group_cvs,
    parent_cv,
    parent_rows,
    subtree_cvs,
)
from dialkey_blobs.tree import (
    CHUNK_BYTES,
    GROUP_BYTES,
    PAIR_BYTES,
    group_count,
    left_length,
    outboard_size,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
else:
    from dialkey_blobs.arrays import np

__all__ = ["Outboard", "OutboardBuilder", "outboard", "outboard_offset", "outboards"]

_BLOCK_GROUPS: Final = BATCH_BYTES // GROUP_BYTES


@attrs.frozen
class Outboard:
    """The hash of a blob, its size in bytes and its pre-order outboard."""

    hash: Hash
    size: int
    data: bytes = attrs.field(repr=False)


@attrs.frozen
class _Subtree:
    """Pairs over a row of leaves, where each leaf stands for `weight` places of outboard."""

    cv: bytes
    pairs: npt.NDArray[np.uint8]
    pair_places: npt.NDArray[np.intp]
    leaf_places: npt.NDArray[np.intp]


def _merge(cvs: npt.NDArray[np.uint8], is_root: bool, weight: int = 1) -> _Subtree:
    """Build the tree over `cvs` and find the positions of its pairs in pre-order.

    Args:
        cvs: chaining values of the leaves, shape (leaves, 32), at least one.
        is_root: whether the tree is a whole blob.
        weight: pairs within a leaf and above its left edge, that is its number of groups.
    """
    levels: list[npt.NDArray[np.uint8]] = []
    row = cvs
    while len(row) > 1:
        even = len(row) - len(row) % 2
        pairs = np.ascontiguousarray(row[:even]).reshape(-1, PAIR_BYTES)
        joined = pairs.tobytes()
        if is_root and len(row) == 2:
            top = parent_cv(joined[:32], joined[32:], is_root=True)
            above = np.frombuffer(top, np.uint8).reshape(-1, 32)
        else:
            above = parent_rows(joined)
        levels.append(pairs)
        row = np.concatenate((above, row[even:])) if even < len(row) else above
    places = np.zeros(1, np.intp)
    pair_places: list[npt.NDArray[np.intp]] = [np.empty(0, np.intp)]
    for level in range(len(levels) - 1, -1, -1):
        count = len(levels[level])
        pair_places.append(places[:count])
        below = np.empty(count + len(places), np.intp)
        below[0 : 2 * count : 2] = places[:count] + 1
        # The left child holds 2**level leaves, which together take one place less than they weigh.
        below[1 : 2 * count : 2] = places[:count] + (weight << level)
        below[2 * count :] = places[count:]
        places = below
    all_pairs = np.concatenate(levels[::-1]) if levels else np.empty((0, PAIR_BYTES), np.uint8)
    return _Subtree(row[0].tobytes(), all_pairs, np.concatenate(pair_places), places)


def outboard_offset(size: int, start_chunk: int, length: int) -> int:
    """Return where the pairs of a node begin in the pre-order outboard, in bytes.

    Args:
        size: the blob's bytes.
        start_chunk: the first chunk below the node.
        length: the bytes below it.

    Raises:
        ValueError: the tree has no such node.
    """
    node_start, node_length, index = 0, size, 0
    while (node_start, node_length) != (start_chunk, length):
        if node_length <= GROUP_BYTES:
            raise ValueError("the tree has no such node")
        left = left_length(node_length)
        middle = node_start + left // CHUNK_BYTES
        if start_chunk < middle:
            node_length = left
            index += 1
        else:
            node_start, node_length = middle, node_length - left
            index += left // GROUP_BYTES
    return index * PAIR_BYTES


class OutboardBuilder:
    """Hash a blob as it arrives, and make its outboard.

    Without arguments the outboard is collected in memory (1/256 of the blob) and the size need not
    be known. With `size` and `write`, pairs are written out as soon as they are known, not in order, and
    memory is bounded by about 20 bytes for each MiB of the blob plus one block.

    Args:
        size: how many bytes will arrive.
        write: called with an offset in the outboard and the bytes that belong there.

    Raises:
        InvalidInput: only one of the two is given.
    """

    def __init__(
        self, size: int | None = None, write: Callable[[int, bytes], None] | None = None
    ) -> None:
        if (size is None) != (write is None):
            raise InvalidInput("an outboard is written out as it grows only if its size is known")
        self._size = size
        self._write = write
        self._received = 0
        # The part of the next block that has arrived; `bytes` if it arrived in one piece.
        self._waiting: bytearray | bytes = b""
        self._block_cvs: list[bytes] = []
        self._runs: list[bytes] = []
        self._hasher = blake3()

    def update(self, data: Buffer) -> None:
        """Take the next bytes; pieces of 4 MiB, and `bytes` at that, are not copied.

        Raises:
            InvalidInput: more bytes arrived than the given size.
        """
        view = memoryview(data)
        self._received += len(view)
        if self._size is not None and self._received > self._size:
            raise InvalidInput(f"more bytes came than the {self._size} that were announced")
        if self._received <= GROUP_BYTES:
            self._hasher.update(view)
        if self._waiting and view:
            missing = BATCH_BYTES - len(self._waiting)
            if missing:
                self._gather(view[:missing])
                view = view[missing:]
            # A full block waits for one more byte, which shows that it is not the root.
            if view:
                self._add_block(self._waiting)
                self._waiting = b""
        while len(view) > BATCH_BYTES:
            self._add_block(view[:BATCH_BYTES])
            view = view[BATCH_BYTES:]
        if len(view) == BATCH_BYTES and isinstance(data, bytes) and len(data) == BATCH_BYTES:
            self._waiting = data
        elif view:
            self._gather(view)

    def _gather(self, view: memoryview) -> None:
        if not isinstance(self._waiting, bytearray):
            self._waiting = bytearray(self._waiting)
        self._waiting += view

    def _add_block(self, block: Buffer) -> None:
        offset = len(self._block_cvs) * BATCH_BYTES
        self._store_block(_merge(group_cvs(block, offset // CHUNK_BYTES), False), len(block))

    def _store_block(self, subtree: _Subtree, length: int) -> None:
        run = _place(subtree)
        if self._write is None or self._size is None:
            self._runs.append(run)
        elif run:
            start_chunk = len(self._block_cvs) * (BATCH_BYTES // CHUNK_BYTES)
            self._write(outboard_offset(self._size, start_chunk, length), run)
        self._block_cvs.append(subtree.cv)

    def finish(self) -> Outboard:
        """Return hash, size and outboard; the outboard's bytes are empty if written out.

        Raises:
            InvalidInput: fewer bytes arrived than the given size.
        """
        if self._size is not None and self._received != self._size:
            raise InvalidInput(f"{self._received} bytes came instead of the announced {self._size}")
        if self._received <= GROUP_BYTES:
            return Outboard(Hash(self._hasher.digest()), self._received, b"")
        start_chunk = len(self._block_cvs) * (BATCH_BYTES // CHUNK_BYTES)
        is_root = not self._block_cvs
        last = _merge(group_cvs(self._waiting, start_chunk), is_root)
        self._store_block(last, len(self._waiting))
        self._waiting = b""
        blocks = np.frombuffer(b"".join(self._block_cvs), np.uint8).reshape(-1, 32)
        top = _merge(blocks, True, _BLOCK_GROUPS)
        root = last.cv if is_root else top.cv
        return Outboard(Hash(root), self._received, self._assemble(top))

    def _assemble(self, top: _Subtree) -> bytes:
        if self._write is not None:
            for place, pair in zip(top.pair_places.tolist(), top.pairs, strict=True):
                self._write(place * PAIR_BYTES, pair.tobytes())
            return b""
        result = bytearray(outboard_size(self._received))
        for place, pair in zip(top.pair_places.tolist(), top.pairs, strict=True):
            result[place * PAIR_BYTES : (place + 1) * PAIR_BYTES] = pair.tobytes()
        for place, run in zip(top.leaf_places.tolist(), self._runs, strict=True):
            result[place * PAIR_BYTES : place * PAIR_BYTES + len(run)] = run
        return bytes(result)


def _place(subtree: _Subtree) -> bytes:
    run = np.empty_like(subtree.pairs)
    run[subtree.pair_places] = subtree.pairs
    return run.tobytes()


def outboard(data: Buffer) -> Outboard:
    """Return hash, size and outboard of a blob in memory."""
    builder = OutboardBuilder()
    builder.update(data)
    return builder.finish()


def outboards(blobs: Sequence[Buffer]) -> list[Outboard]:
    """Return hash, size and outboard of many blobs in memory.

    Groups of all blobs share NumPy batches, so for blobs below a megabyte this is several times as
    fast as `outboard` for each.
    """
    if all(len(blob) <= GROUP_BYTES for blob in blobs):
        return [Outboard(Hash.of(blob), len(blob), b"") for blob in blobs]
    pieces = [
        (memoryview(blob)[offset : offset + GROUP_BYTES], offset // CHUNK_BYTES)
        for blob in blobs
        if len(blob) > GROUP_BYTES
        for offset in range(0, len(blob), GROUP_BYTES)
    ]
    cvs = np.frombuffer(b"".join(subtree_cvs(pieces)), np.uint8).reshape(-1, 32)
    results = []
    first = 0
    for blob in blobs:
        if len(blob) <= GROUP_BYTES:
            results.append(Outboard(Hash.of(blob), len(blob), b""))
            continue
        groups = group_count(len(blob))
        subtree = _merge(cvs[first : first + groups], True)
        results.append(Outboard(Hash(subtree.cv), len(blob), _place(subtree)))
        first += groups
    return results
