"""What a store holds of a blob: its size, as far as known, and the chunks.

Source: docs/wire/blobs.md 1.4 (Observe) and 5.2.
"""

from __future__ import annotations

import attrs

from dialkey.errors import WireError
from dialkey.identity import postcard
from dialkey.limits import MAX_BLOB_RANGE_BOUNDARIES, MAX_OBSERVE_ITEM_BYTES
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.tree import MAX_BLOB_BYTES, chunk_count

__all__ = ["Bitfield", "ObserveReader"]


@attrs.frozen
class Bitfield:
    """The chunks that are held of a blob, and its size.

    Make one with `of` unless the ranges are in canonical form already: all chunks if the blob is
    complete, no end if the last chunk is held.

    Attributes:
        size: in bytes; a claim unless `is_validated`.
        ranges: the chunks.
    """

    size: int = 0
    ranges: ChunkRanges = attrs.field(factory=ChunkRanges.empty)

    @classmethod
    def of(cls, size: int, ranges: ChunkRanges) -> Bitfield:
        """Return the bitfield in canonical form."""
        chunks = chunk_count(size)
        if size == 0:
            return cls(0, ranges)
        if ranges.covers(0, chunks):
            return cls(size, ChunkRanges.all())
        if chunks - 1 in ranges:
            return cls(size, ranges | ChunkRanges.between(chunks - 1))
        return cls(size, ranges)

    @classmethod
    def complete(cls, size: int) -> Bitfield:
        """Return the bitfield of a complete blob."""
        return cls(size, ChunkRanges.all())

    @property
    def is_validated(self) -> bool:
        """Whether the chunk with the last byte is held, which proves the size."""
        if self.size == 0:
            return self.ranges.is_all
        return chunk_count(self.size) - 1 in self.ranges

    @property
    def is_complete(self) -> bool:
        """Whether all chunks up to the size are held."""
        if self.size == 0:
            return self.ranges.is_all
        return self.ranges.covers(0, chunk_count(self.size))

    @property
    def validated_size(self) -> int | None:
        """The size in bytes if it is proven, else None."""
        return self.size if self.is_validated else None

    @property
    def present_bytes(self) -> int:
        """How many bytes are held."""
        return self.ranges.byte_count(self.size)

    def combine(self, other: Bitfield) -> Bitfield:
        """Return what both hold together; the order does not matter."""
        return Bitfield.of(_better_size(self, other), self.ranges | other.ranges)

    def diff(self, newer: Bitfield) -> Bitfield:
        """Return what changed from this to `newer`: the chunks that only one of them holds.

        Ranges are not brought into canonical form, as they are not a set of held chunks.
        """
        return Bitfield(_better_size(self, newer), self.ranges ^ newer.ranges)

    def to_frame(self) -> bytes:
        """Encode as one frame of an answer to Observe, with its length before it."""
        item = postcard.Writer().varint(self.size).varint(len(self.ranges.boundaries))
        for bound in self.ranges.boundaries:
            item.varint(bound)
        return bytes(postcard.Writer().byte_string(bytes(item)))

    @classmethod
    def from_item(cls, item: bytes) -> Bitfield:
        """Decode a frame's content; its boundaries are sorted and duplicates dropped.

        Raises:
            WireError: malformed, or too many boundaries.
        """
        reader = postcard.Reader(item)
        size = reader.varint()
        count = reader.count(MAX_BLOB_RANGE_BOUNDARIES)
        return cls(size, ChunkRanges.from_unsorted([reader.varint() for _ in range(count)]))


def _better_size(left: Bitfield, right: Bitfield) -> int:
    """Return the size of the one that knows more: without end, reaching further, or larger."""

    def knowledge(bitfield: Bitfield) -> tuple[int, int]:
        ranges = bitfield.ranges
        reach = MAX_BLOB_BYTES + 1 if ranges.is_open else 0
        if not ranges.is_open and ranges:
            reach = ranges.boundaries[-1]
        return reach, bitfield.size

    return max(knowledge(left), knowledge(right))[1]


class ObserveReader:
    """Split the answer to Observe into bitfields.

    The first says what is held now, each later one what has been added since.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def is_between_items(self) -> bool:
        """Whether the stream may end here."""
        return not self._buffer

    def feed(self, data: bytes | bytearray | memoryview) -> list[Bitfield]:
        """Take the next bytes and return the items that are complete.

        Raises:
            WireError: malformed, or an item above `MAX_OBSERVE_ITEM_BYTES`.
        """
        self._buffer += data
        items: list[Bitfield] = []
        position = 0
        while (frame := _frame(self._buffer, position)) is not None:
            start, position = frame
            items.append(Bitfield.from_item(bytes(self._buffer[start:position])))
        del self._buffer[:position]
        return items


def _frame(buffer: bytearray, position: int) -> tuple[int, int] | None:
    """Return where the frame's content at `position` begins and ends, or None if incomplete."""
    length = 0
    # Three bytes of seven bits hold more than the limit.
    for shift in (0, 7, 14):
        if position >= len(buffer):
            return None
        byte = buffer[position]
        position += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    else:
        raise WireError("an observed item is too long")
    if length > MAX_OBSERVE_ITEM_BYTES:
        raise WireError(f"an observed item of {length} bytes exceeds {MAX_OBSERVE_ITEM_BYTES}")
    return None if position + length > len(buffer) else (position, position + length)
