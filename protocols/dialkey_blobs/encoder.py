"""Encode the verified stream of one blob: the provider's side of a response.

Pairs of nodes over more than a group come from the outboard. Where a group is wanted only in part,
pairs below group level are needed, which no outboard holds: they are computed from its bytes. That
costs some 2 ms for each such group, and common requests touch the last group of every file (the
proof of its size). So those chaining values can be kept in a `SubgroupCache`, and computed for many
blobs in one batch.

Source: docs/wire/blobs.md 1.5, 3.3, 3.7.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from dialkey.errors import RemoteError, StorageError
from dialkey_blobs.decoder import SIZE_HEADER_BYTES, Decoder
from dialkey_blobs.errors import RangeMissing
from dialkey_blobs.hash import Hash
from dialkey_blobs.hashing import Buffer, subtree_levels
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.tree import (
    CHUNK_BYTES,
    GROUP_BYTES,
    GROUP_CHUNKS,
    PAIR_BYTES,
    Leaf,
    Parent,
    chunk_count,
    left_length,
    plan,
)

__all__ = ["READ_BYTES", "Encoder", "ReadAt", "SubgroupCache", "verified_pieces"]

ReadAt = Callable[[int, int], Buffer]
"""Called with an offset and a length in bytes; returns exactly that many bytes, or raises."""

READ_BYTES: Final = 256 * 1024
"""Content in one piece: large enough to make reading and sending cheap, small enough that many
concurrent responses fit in memory."""


# A piece of items much smaller than groups is cut off here: at 64 groups, one batch for the lanes.
_MAX_ITEMS: Final = 4096
_MAX_GROUPS: Final = 64


class SubgroupCache:
    """The chaining values within groups that are served in part; safe to share between threads.

    Args:
        max_groups: groups kept; the least recently used is dropped. A group takes about 1.5 KiB.
    """

    def __init__(self, max_groups: int = 4096) -> None:
        self._max_groups = max_groups
        self._groups: OrderedDict[tuple[Hash, int], list[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._groups)

    def get(self, hash: Hash, start_chunk: int) -> list[bytes] | None:
        """Return a group's levels as from `hashing.subtree_levels`, or None if not held."""
        with self._lock:
            levels = self._groups.get((hash, start_chunk))
            if levels is not None:
                self._groups.move_to_end((hash, start_chunk))
            return levels

    def put(self, hash: Hash, start_chunk: int, levels: list[bytes]) -> None:
        """Keep a group's levels."""
        with self._lock:
            self._groups[hash, start_chunk] = levels
            self._groups.move_to_end((hash, start_chunk))
            while len(self._groups) > self._max_groups:
                self._groups.popitem(last=False)

    def fill(self, groups: Sequence[tuple[Hash, int, Buffer]]) -> None:
        """Compute and keep many groups at once, which is up to forty times as fast.

        Args:
            groups: (blob, first chunk of the group, the group's bytes).
        """
        found = subtree_levels([(data, start_chunk) for _, start_chunk, data in groups])
        for (hash, start_chunk, _), levels in zip(groups, found, strict=True):
            self.put(hash, start_chunk, levels)


class Encoder:
    """Produce the stream for `ranges` of a blob, piece by piece.

    Iterate over it once. Each piece is the next bytes of the stream, which begins with the size.
    Empty ranges produce nothing at all. The reading callbacks run inside the iteration, so a caller
    with an event loop iterates in a thread.

    Nothing is verified: the getter does that. Where content may have changed since it was hashed,
    pass the pieces through `verified_pieces`.

    Args:
        hash: the blob; only a key for `cache`.
        size: its bytes.
        ranges: as requested.
        read_data: reads content.
        read_outboard: reads the pre-order outboard; not called for blobs of up to one group.
        available: the chunks that are held; for a complete blob all.
        cache: where to find and keep chaining values of chunks.
        piece_bytes: content in one piece.
    """

    def __init__(
        self,
        hash: Hash,
        size: int,
        ranges: ChunkRanges,
        read_data: ReadAt,
        read_outboard: ReadAt,
        *,
        available: ChunkRanges | None = None,
        cache: SubgroupCache | None = None,
        piece_bytes: int = READ_BYTES,
    ) -> None:
        self.hash = hash
        self.size = size
        self.ranges = ranges
        self.payload_bytes = 0
        self.overhead_bytes = 0
        self._read_data = read_data
        self._read_outboard = read_outboard
        self._available = ChunkRanges.all() if available is None else available
        self._cache = cache
        self._piece_bytes = piece_bytes

    def __iter__(self) -> Iterator[bytes]:
        """Yield the stream's bytes.

        Raises:
            RangeMissing: what is `available` ends here; all before it has been yielded.
            StorageError: whatever the reading callbacks raise.
        """
        if not self.ranges:
            return
        piece = _Piece(self)
        piece.parts.append(self.size.to_bytes(SIZE_HEADER_BYTES, "little"))
        piece.overhead = SIZE_HEADER_BYTES
        missing: RangeMissing | None = None
        for item in plan(self.size, self.ranges):
            missing = self._missing(item)
            if missing is not None:
                break
            piece.add(item)
            if piece.content >= self._piece_bytes or piece.is_full:
                yield piece.join()
                piece = _Piece(self)
        if piece.parts:
            yield piece.join()
        if missing is not None:
            raise missing

    def _missing(self, item: Parent | Leaf) -> RangeMissing | None:
        if self._available.is_all:
            return None
        start, end = item.start_chunk, item.start_chunk + max(1, chunk_count(item.length))
        if isinstance(item, Parent) and item.outboard_index >= 0:
            # A pair was stored as soon as anything below it was received.
            held = self._available.overlaps(start, end)
        else:
            group = _group_of(item)
            held = self._available.covers(
                group, min(group + GROUP_CHUNKS, max(1, chunk_count(self.size)))
            )
        if held:
            return None
        return RangeMissing(
            f"blob {self.hash.short()} is held only in part: chunk {start} is missing",
            start_chunk=start,
        )

    def read_data(self, offset: int, length: int) -> Buffer:
        """Read content."""
        return _exactly(self._read_data, offset, length)

    def read_pairs(self, index: int, count: int) -> Buffer:
        """Read pairs of the outboard that stand one behind the other."""
        return _exactly(self._read_outboard, index * PAIR_BYTES, count * PAIR_BYTES)

    def levels(self, groups: Sequence[int]) -> dict[int, list[bytes]]:
        """Return the levels within groups, given by their first chunks."""
        found: dict[int, list[bytes]] = {}
        unknown: list[tuple[Buffer, int]] = []
        for group in groups:
            levels = None if self._cache is None else self._cache.get(self.hash, group)
            if levels is not None:
                found[group] = levels
                continue
            offset = group * CHUNK_BYTES
            unknown.append((self.read_data(offset, min(GROUP_BYTES, self.size - offset)), group))
        for (_, group), levels in zip(unknown, subtree_levels(unknown), strict=True):
            found[group] = levels
            if self._cache is not None:
                self._cache.put(self.hash, group, levels)
        return found


class _Piece:
    """Consecutive items, whose bytes are fetched together when the piece is complete.

    Content and pairs are read in runs that are as long as possible, and the levels of all groups that
    are served in part are computed in one batch.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.parts: list[Buffer] = []
        self.content = 0
        self.overhead = 0
        self._encoder = encoder
        self._leaves: list[tuple[int, Leaf]] = []
        self._pairs: list[tuple[int, int]] = []  # (place, index in the outboard)
        self._nodes: list[tuple[int, Parent]] = []
        self._groups: dict[int, None] = {}

    @property
    def is_full(self) -> bool:
        """Whether more items would take too much memory before their bytes are fetched."""
        return len(self.parts) >= _MAX_ITEMS or len(self._groups) >= _MAX_GROUPS

    def add(self, item: Parent | Leaf) -> None:
        place = len(self.parts)
        if isinstance(item, Leaf):
            self._leaves.append((place, item))
            self.content += item.length
            self.parts.append(b"")
            return
        self.overhead += PAIR_BYTES
        self.parts.append(b"")
        if item.outboard_index >= 0:
            self._pairs.append((place, item.outboard_index))
        else:
            self._nodes.append((place, item))
            self._groups[_group_of(item)] = None

    def join(self) -> bytes:
        self._read_pairs()
        if self._nodes:
            self._compute_nodes()
        run: list[tuple[int, Leaf]] = []
        for place, leaf in self._leaves:
            if run and run[-1][1].offset + run[-1][1].length != leaf.offset:
                self._read_run(run)
                run = []
            run.append((place, leaf))
        if run:
            self._read_run(run)
        self._encoder.payload_bytes += self.content
        self._encoder.overhead_bytes += self.overhead
        return b"".join(self.parts)

    def _read_pairs(self) -> None:
        pairs = self._pairs
        begin = 0
        for end in range(1, len(pairs) + 1):
            if end < len(pairs) and pairs[end][1] == pairs[end - 1][1] + 1:
                continue
            data = memoryview(self._encoder.read_pairs(pairs[begin][1], end - begin))
            for number, (place, _) in enumerate(pairs[begin:end]):
                self.parts[place] = data[number * PAIR_BYTES : (number + 1) * PAIR_BYTES]
            begin = end

    def _read_run(self, run: list[tuple[int, Leaf]]) -> None:
        start = run[0][1].offset
        length = run[-1][1].offset + run[-1][1].length - start
        data = memoryview(self._encoder.read_data(start, length))
        for place, leaf in run:
            self.parts[place] = data[leaf.offset - start : leaf.offset - start + leaf.length]

    def _compute_nodes(self) -> None:
        levels = self._encoder.levels(list(self._groups))
        for place, node in self._nodes:
            group = _group_of(node)
            # The children are neighbours on the level on which the left child is a single value.
            level = (left_length(node.length) // CHUNK_BYTES).bit_length() - 1
            start = 32 * ((node.start_chunk - group) >> level)
            self.parts[place] = levels[group][level][start : start + PAIR_BYTES]


def _group_of(item: Parent | Leaf) -> int:
    return item.start_chunk - item.start_chunk % GROUP_CHUNKS


def _exactly(read: ReadAt, offset: int, length: int) -> Buffer:
    data = read(offset, length)
    if len(data) != length:
        raise StorageError(
            f"{len(data)} bytes were read at offset {offset} where {length} were expected",
            hint="the file may have been cut off by another program",
        )
    return data


def verified_pieces(pieces: Iterable[bytes], hash: Hash, ranges: ChunkRanges) -> Iterator[bytes]:
    """Yield the pieces of a stream after verifying them, for content that may have changed.

    Args:
        pieces: from an `Encoder`; pieces of about 4 MiB are verified the fastest.
        hash: the blob.
        ranges: what the stream is for.

    Raises:
        StorageError: the content no longer matches the hash; nothing wrong was yielded.
    """
    decoder = Decoder(hash, ranges)
    for piece in pieces:
        try:
            decoder.feed(piece)
            decoder.flush()
        except RemoteError as error:
            raise StorageError(
                f"the content of blob {hash.short()} has changed: {error.message}",
                hint="a file that was added by reference was changed; add it again",
            ) from error
        yield piece
