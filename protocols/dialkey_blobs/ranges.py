"""Sets of chunks, sequences of such sets, and both on the wire.

A set is kept as its boundaries: strictly increasing chunk numbers at which membership toggles,
beginning with "not a member". An odd number of boundaries means that the set has no end. No
operation looks at single chunks, so a set over 2**64 chunks costs what its boundaries cost.

Source: docs/wire/blobs.md 2.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final

import attrs

from dialkey.errors import InvalidInput, WireError
from dialkey.identity import postcard
from dialkey.limits import MAX_BLOB_RANGE_BOUNDARIES, MAX_BLOB_RANGE_ENTRIES
from dialkey_blobs.tree import CHUNK_BYTES, GROUP_CHUNKS, chunk_count

__all__ = [
    "ChunkRanges",
    "ChunkRangesSeq",
    "read_range_spec",
    "read_ranges_seq",
    "write_range_spec",
    "write_ranges_seq",
]

_MAX_CHUNK: Final = (1 << 64) - 1
_SENTINEL: Final = 1 << 64


@attrs.frozen(repr=False)
class ChunkRanges:
    """An immutable set of chunk numbers.

    Supports `in`, `|`, `&`, `-`, `^`, `<=`, `>=` and truth (non-empty). Every operation takes time
    linear in the number of boundaries, membership logarithmic time.

    Args:
        boundaries: strictly increasing numbers from 0 to 2**64 - 1.

    Raises:
        InvalidInput: the boundaries are not strictly increasing, or out of range.
    """

    boundaries: tuple[int, ...] = attrs.field(default=())

    @boundaries.validator
    def _check_boundaries(
        self, attribute: attrs.Attribute[tuple[int, ...]], value: tuple[int, ...]
    ) -> None:
        if not value:
            return
        if value[0] < 0 or value[-1] > _MAX_CHUNK:
            raise InvalidInput("chunk numbers go from 0 to 2**64 - 1")
        if any(left >= right for left, right in pairwise(value)):
            raise InvalidInput("the boundaries of a chunk range must be strictly increasing")

    @classmethod
    def empty(cls) -> ChunkRanges:
        """Return the set without chunks."""
        return _EMPTY

    @classmethod
    def all(cls) -> ChunkRanges:
        """Return the set of all chunks."""
        return _ALL

    @classmethod
    def last_chunk(cls) -> ChunkRanges:
        """Return the set that asks for the last chunk of a blob, whatever its size."""
        return _LAST

    @classmethod
    def between(cls, start: int, end: int | None = None) -> ChunkRanges:
        """Return the chunks from `start` to before `end`, without end where that is None."""
        if end is None:
            return cls((start,))
        return cls((start, end)) if start < end else _EMPTY

    @classmethod
    def from_unsorted(cls, boundaries: Iterable[int]) -> ChunkRanges:
        """Return the set with these boundaries, sorted and each counted once."""
        return cls(tuple(sorted(set(boundaries))))

    @classmethod
    def from_bytes(cls, start: int, end: int | None = None) -> ChunkRanges:
        """Return the chunks that hold the bytes from `start` to before `end` (None: no end)."""
        if end is None:
            return cls((start // CHUNK_BYTES,))
        return cls.between(start // CHUNK_BYTES, chunk_count(end)) if start < end else _EMPTY

    def __bool__(self) -> bool:
        return bool(self.boundaries)

    def __contains__(self, chunk: int) -> bool:
        return bool(bisect_right(self.boundaries, chunk) & 1)

    def __or__(self, other: ChunkRanges) -> ChunkRanges:
        if not other.boundaries or self.boundaries == (0,):
            return self
        return _combine(self, other, (False, True, True, True))

    def __and__(self, other: ChunkRanges) -> ChunkRanges:
        if other.boundaries == (0,):
            return self
        return _combine(self, other, (False, False, False, True))

    def __sub__(self, other: ChunkRanges) -> ChunkRanges:
        if not other.boundaries:
            return self
        return _combine(self, other, (False, False, True, False))

    def __xor__(self, other: ChunkRanges) -> ChunkRanges:
        return ChunkRanges(tuple(sorted(set(self.boundaries) ^ set(other.boundaries))))

    def __le__(self, other: ChunkRanges) -> bool:
        return not self - other

    def __ge__(self, other: ChunkRanges) -> bool:
        return not other - self

    def __repr__(self) -> str:
        texts = [f"{start}..{'' if end is None else end}" for start, end in self.runs()]
        return f"ChunkRanges({' '.join(texts) or 'empty'})"

    @property
    def is_all(self) -> bool:
        """Whether every chunk is a member."""
        return self.boundaries == (0,)

    @property
    def is_open(self) -> bool:
        """Whether the set has no end."""
        return bool(len(self.boundaries) & 1)

    def runs(self) -> Iterator[tuple[int, int | None]]:
        """Yield (start, end) of every run of members in order; an end of None means no end."""
        bounds = self.boundaries
        for position in range(0, len(bounds), 2):
            yield bounds[position], bounds[position + 1] if position + 1 < len(bounds) else None

    def overlaps(self, start: int, end: int) -> bool:
        """Return whether any chunk from `start` to before `end` is a member."""
        position = bisect_right(self.boundaries, start)
        if start >= end:
            return False
        return bool(position & 1) or (
            position < len(self.boundaries) and self.boundaries[position] < end
        )

    def covers(self, start: int, end: int) -> bool:
        """Return whether all chunks from `start` to before `end` are members."""
        position = bisect_right(self.boundaries, start)
        if start >= end:
            return True
        return bool(position & 1) and (
            position == len(self.boundaries) or self.boundaries[position] >= end
        )

    def selected(self, size: int) -> ChunkRanges:
        """Return what a request for these chunks selects of a blob of `size` bytes.

        A request that reaches to the last chunk or past it selects the last chunk, which proves the
        size; the result then has no end. Without the last chunk the result ends before it.

        Source: docs/wire/blobs.md 3.3 (1).
        """
        last = max(chunk_count(size), 1) - 1
        bounds = self.boundaries
        reaches_end = bool(len(bounds) & 1) or (bool(bounds) and bounds[-1] > last)
        cut = bisect_left(bounds, last)
        kept = bounds[:cut]
        if bool(cut & 1) != reaches_end:
            kept = (*kept, last)
        return self if kept == bounds else ChunkRanges(kept)

    def limited_to(self, size: int) -> ChunkRanges:
        """Return the members that a blob of `size` bytes has; the result always has an end."""
        return self & ChunkRanges.between(0, chunk_count(size))

    def byte_count(self, size: int) -> int:
        """Return how many bytes of a blob of `size` bytes the members hold."""
        total = 0
        for start, end in self.runs():
            stop = size if end is None else min(size, end * CHUNK_BYTES)
            total += max(0, stop - start * CHUNK_BYTES)
        return total

    def grown_to_groups(self) -> ChunkRanges:
        """Return all chunk groups that have a member."""
        grown: list[int] = []
        for start, end in self.runs():
            low = start - start % GROUP_CHUNKS
            if grown and grown[-1] >= low:
                grown.pop()
            else:
                grown.append(low)
            if end is None or (high := -(-end // GROUP_CHUNKS) * GROUP_CHUNKS) > _MAX_CHUNK:
                break
            grown.append(high)
        return ChunkRanges(tuple(grown))

    def shrunk_to_groups(self, size: int) -> ChunkRanges:
        """Return the chunk groups of a blob of `size` bytes that are members entirely.

        The last group of the blob may be short; if its chunks are all members, so is the group.
        """
        total = chunk_count(size)
        kept: list[int] = []
        for start, end in self.runs():
            low = -(-start // GROUP_CHUNKS) * GROUP_CHUNKS
            if end is None or end >= total:
                high = -(-total // GROUP_CHUNKS) * GROUP_CHUNKS
            else:
                high = end - end % GROUP_CHUNKS
            if low < high:
                kept += (low, high)
        return ChunkRanges(tuple(kept))


def _combine(
    left: ChunkRanges, right: ChunkRanges, table: tuple[bool, bool, bool, bool]
) -> ChunkRanges:
    """Merge two sets; `table` is indexed by 2 * (in left) + (in right)."""
    # With a sentinel above every chunk number the loop need not check which side has ended.
    ours, theirs = (*left.boundaries, _SENTINEL), (*right.boundaries, _SENTINEL)
    i = j = 0
    inside = False
    merged: list[int] = []
    while (bound := min(ours[i], theirs[j])) != _SENTINEL:
        i += ours[i] == bound
        j += theirs[j] == bound
        if table[2 * (i & 1) + (j & 1)] != inside:
            inside = not inside
            merged.append(bound)
    return ChunkRanges(tuple(merged))


_EMPTY: Final = ChunkRanges(())
_ALL: Final = ChunkRanges((0,))
_LAST: Final = ChunkRanges((_MAX_CHUNK,))


def _canonical(
    entries: Iterable[tuple[int, ChunkRanges]],
) -> tuple[tuple[int, ChunkRanges], ...]:
    """Leave out entries that change nothing, unless their index is wrong, which must be noticed."""
    kept: list[tuple[int, ChunkRanges]] = []
    last_index, last = -1, _EMPTY
    for index, ranges in entries:
        if ranges != last or not last_index < index <= _MAX_CHUNK:
            kept.append((index, ranges))
        last_index, last = index, ranges
    return tuple(kept)


@attrs.frozen
class ChunkRangesSeq:
    """An endless sequence of chunk sets, run-length encoded.

    An entry (index, ranges) applies from its index to the next entry's; before the first entry the
    sets are empty, and the last entry applies for ever. In a request, index 0 is the blob itself
    and index i its child i - 1.

    It is kept as iroh would build it, which since 0.104 refuses a request that has any other form:
    an entry whose set equals the one before it is left out.

    Args:
        entries: (index, ranges), by strictly increasing index.

    Raises:
        InvalidInput: the indices are not strictly increasing, or out of range.
    """

    entries: tuple[tuple[int, ChunkRanges], ...] = attrs.field(default=(), converter=_canonical)

    @entries.validator
    def _check_entries(
        self,
        attribute: attrs.Attribute[tuple[tuple[int, ChunkRanges], ...]],
        value: tuple[tuple[int, ChunkRanges], ...],
    ) -> None:
        if value and (value[0][0] < 0 or value[-1][0] > _MAX_CHUNK):
            raise InvalidInput("indices go from 0 to 2**64 - 1")
        if any(left[0] >= right[0] for left, right in pairwise(value)):
            raise InvalidInput("the indices of a sequence of ranges must be strictly increasing")

    @classmethod
    def finite(cls, sets: Iterable[ChunkRanges]) -> ChunkRangesSeq:
        """Return the sequence of these sets, empty afterwards."""
        entries, count = _run_lengths(sets)
        if entries and entries[-1][1]:
            entries.append((count, _EMPTY))
        return cls(tuple(entries))

    @classmethod
    def endless(cls, sets: Iterable[ChunkRanges]) -> ChunkRangesSeq:
        """Return the sequence of these sets, of which the last repeats for ever."""
        return cls(tuple(_run_lengths(sets)[0]))

    @classmethod
    def empty(cls) -> ChunkRangesSeq:
        """Return the sequence that asks for nothing."""
        return cls()

    @classmethod
    def all(cls) -> ChunkRangesSeq:
        """Return the sequence that asks for a hash sequence and all its children, whole."""
        return cls(((0, _ALL),))

    @classmethod
    def single(cls, ranges: ChunkRanges = _ALL) -> ChunkRangesSeq:
        """Return the sequence that asks for `ranges` of one blob and for no children."""
        return cls.finite((ranges,))

    @classmethod
    def sequence_and_sizes(cls) -> ChunkRangesSeq:
        """Return the sequence for a hash sequence and the last chunk of each child.

        The answer proves the size of every child.
        """
        return cls(((0, _ALL), (1, _LAST)))

    @property
    def is_single_blob(self) -> bool:
        """Whether this has the form of a request for one blob without children."""
        entries = self.entries
        return len(entries) == 2 and entries[0][0] == 0 and entries[1] == (1, _EMPTY)

    @property
    def is_endless(self) -> bool:
        """Whether it asks for something at every index from some point on."""
        return bool(self.entries) and bool(self.entries[-1][1])

    def __getitem__(self, index: int) -> ChunkRanges:
        position = bisect_right(self.entries, index, key=lambda entry: entry[0])
        return self.entries[position - 1][1] if position else _EMPTY

    def runs(self, limit: int | None = None) -> Iterator[tuple[int, int | None, ChunkRanges]]:
        """Yield (start, end, ranges) of every run of indices with non-empty ranges.

        Args:
            limit: indices from here on are left out. Without it the last run may have an end of
                None, which means no end.
        """
        for position, (start, ranges) in enumerate(self.entries):
            following = position + 1 < len(self.entries)
            end = self.entries[position + 1][0] if following else limit
            if limit is not None and (end is None or end > limit):
                end = limit
            if ranges and (end is None or start < end):
                yield start, end, ranges


def _run_lengths(sets: Iterable[ChunkRanges]) -> tuple[list[tuple[int, ChunkRanges]], int]:
    entries: list[tuple[int, ChunkRanges]] = []
    previous = _EMPTY
    count = 0
    for ranges in sets:
        if ranges != previous:
            entries.append((count, ranges))
            previous = ranges
        count += 1
    return entries, count


def write_range_spec(writer: postcard.Writer, ranges: ChunkRanges) -> None:
    """Append a set as a RangeSpec: the count of boundaries, then each as distance from the last."""
    writer.varint(len(ranges.boundaries))
    previous = 0
    for bound in ranges.boundaries:
        writer.varint(bound - previous)
        previous = bound


def read_range_spec(reader: postcard.Reader, limit: int = MAX_BLOB_RANGE_BOUNDARIES) -> ChunkRanges:
    """Read a RangeSpec of at most `limit` boundaries.

    Raises:
        WireError: malformed, too many boundaries, a boundary past 2**64 - 1, or one that is repeated:
            iroh has refused such sets since 0.104.
    """
    count = reader.count(limit)
    bounds: list[int] = []
    position = 0
    for _ in range(count):
        position += reader.varint()
        if position > _MAX_CHUNK:
            raise WireError("a chunk range reaches past 2**64 - 1")
        if bounds and bounds[-1] == position:
            raise WireError("a set of chunks repeats a boundary")
        bounds.append(position)
    if not bounds:
        return _EMPTY
    return _ALL if bounds == [0] else ChunkRanges(tuple(bounds))


def write_ranges_seq(writer: postcard.Writer, sequence: ChunkRangesSeq) -> None:
    """Append a sequence: the count of entries, then each as index distance and RangeSpec."""
    writer.varint(len(sequence.entries))
    previous = 0
    for index, ranges in sequence.entries:
        writer.varint(index - previous)
        write_range_spec(writer, ranges)
        previous = index


def read_ranges_seq(reader: postcard.Reader) -> ChunkRangesSeq:
    """Read a sequence of range sets.

    Raises:
        WireError: malformed, an index past 2**64 - 1, more entries or boundaries in total than
            `MAX_BLOB_RANGE_ENTRIES` and `MAX_BLOB_RANGE_BOUNDARIES`, or not as iroh would write it: an
            index that is repeated, or an entry with the same set as the one before (for the first
            entry: the empty set).
    """
    count = reader.count(MAX_BLOB_RANGE_ENTRIES)
    entries: list[tuple[int, ChunkRanges]] = []
    index = 0
    budget = MAX_BLOB_RANGE_BOUNDARIES
    for _ in range(count):
        index += reader.varint()
        if index > _MAX_CHUNK:
            raise WireError("a sequence of ranges has an index past 2**64 - 1")
        ranges = read_range_spec(reader, budget)
        budget -= len(ranges.boundaries)
        if entries and entries[-1][0] == index:
            raise WireError("a sequence of ranges repeats an index")
        if ranges == (entries[-1][1] if entries else _EMPTY):
            raise WireError("a sequence of ranges repeats a set")
        entries.append((index, ranges))
    return ChunkRangesSeq(tuple(entries))
