"""Decode the verified stream of one blob: the getter's side of a response.

Theory of operation. The getter knows the hash and what it asked for; the stream starts with a claimed
size. These three determine the items, pairs and content, and their order. Each item's expected chaining
value is known when its turn comes: the root's is the hash itself, and every pair holds those of its two
sides. So each byte is checked against the hash, a wrong one is noticed within its chunk group, and a
wrong size cannot survive the verification of the last chunk.

Source: docs/wire/blobs.md 1.5, 1.6, 3.3 to 3.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Final

from dialkey.errors import RemoteError
from dialkey_blobs.errors import (
    BlobNotFound,
    BlobTooLarge,
    BlobTruncated,
    ItemNotFound,
    VerificationError,
)
from dialkey_blobs.events import BlobEvent, VerifiedLeaf, VerifiedParent
from dialkey_blobs.hash import Hash
from dialkey_blobs.hashing import BATCH_BYTES, Buffer
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.subtrees import STREAM_BYTES, cut
from dialkey_blobs.tree import (
    PAIR_BYTES,
    SUBTREE_BYTES,
    Leaf,
    Parent,
    Subtree,
    plan,
    plan_with_subtrees,
)
from dialkey_blobs.verifying import VerifyQueue

__all__ = ["SIZE_HEADER_BYTES", "BlobReader", "Decoder"]

SIZE_HEADER_BYTES: Final = 8


class BlobReader:
    """The items of one blob, cut out of a buffer and queued for verification.

    It is the common part of `Decoder` and of the decoder of whole responses, which own buffer and
    queue.

    Args:
        hash: the blob that was asked for.
        ranges: what was asked of it.
        queue: where items wait for verification.
        max_size: the largest claimed size to accept, in bytes, or None.
        subtrees: whether complete subtrees come out in one piece.
    """

    def __init__(
        self,
        hash: Hash,
        ranges: ChunkRanges,
        queue: VerifyQueue,
        max_size: int | None = None,
        *,
        subtrees: bool = False,
    ) -> None:
        self.hash = hash
        self.ranges = ranges
        self.max_size = max_size
        self.size: int | None = None
        self.done = not ranges
        self.stream_bytes = 0
        self.payload_bytes = 0
        self._queue = queue
        self._subtrees = subtrees
        self._plan: Iterator[Parent | Leaf | Subtree] = iter(())
        self._next: Parent | Leaf | Subtree | None = None
        self._expected = [hash.digest]
        self._mark: tuple[int, int] | None = None

    @property
    def includes_last_chunk(self) -> bool:
        """Whether the stream contains the proof of the size; only known after the header."""
        return self.size is not None and self.ranges.selected(self.size).is_open

    def read_header(self, buffer: bytearray, position: int) -> int:
        """Read the size header, if it is complete; return the position after what was read.

        Raises:
            BlobTooLarge: the claim is above `max_size`.
        """
        end = position + SIZE_HEADER_BYTES
        if end > len(buffer):
            return position
        self.stream_bytes = SIZE_HEADER_BYTES
        size = int.from_bytes(buffer[position:end], "little")
        if self.max_size is not None and size > self.max_size:
            raise BlobTooLarge(
                f"the provider claims {size} bytes for blob {self.hash.short()}; the limit is"
                f" {self.max_size}",
                size_bytes=size,
            )
        self.size = size
        planned = plan_with_subtrees if self._subtrees else plan
        self._plan = planned(size, self.ranges)
        self._next = next(self._plan, None)
        if self.ranges.selected(size).is_all:
            self._mark = self._queue.begin_blob(size)
        return end

    def read_items(self, buffer: bytearray, position: int) -> int:
        """Queue the items that are complete in `buffer`; return the position after them.

        Raises:
            VerificationError: a batch was full, and an item in it does not match.
        """
        item = self._next
        start = position
        available = len(buffer)
        expected, queue, items = self._expected, self._queue, self._plan
        with memoryview(buffer) as view:
            while item is not None:
                if isinstance(item, Subtree):
                    end = position + STREAM_BYTES
                else:
                    end = position + (PAIR_BYTES if isinstance(item, Parent) else item.length)
                if end > available:
                    break
                offset = self.stream_bytes + position - start
                if isinstance(item, Subtree):
                    subtree = cut(view[position:end], item)
                    queue.add(subtree, expected.pop(), self.hash, offset)
                    self.payload_bytes += SUBTREE_BYTES
                    position = end
                    item = next(items, None)
                    continue
                data = bytes(view[position:end])
                if isinstance(item, Parent):
                    queue.add(VerifiedParent(item, data), expected.pop(), self.hash, offset)
                    if item.visits_right:
                        expected.append(data[32:])
                    if item.visits_left:
                        expected.append(data[:32])
                else:
                    queue.add(VerifiedLeaf(item, data), expected.pop(), self.hash, offset)
                    self.payload_bytes += len(data)
                position = end
                item = next(items, None)
        self._next = item
        self.stream_bytes += position - start
        if item is None:
            self.done = True
            if self._mark is not None:
                self._queue.end_whole_blob(self._mark, self.hash)
        return position

    def take_apart(self) -> None:
        """Read the next subtree item by item, without waiting for all of it."""
        if isinstance(self._next, Subtree):
            self._plan = chain(self._next.items(), self._plan)
            self._next = next(self._plan)

    def end_error(self, leftover: int) -> RemoteError:
        """Return the error for a stream that ended before this blob was complete.

        Args:
            leftover: bytes after the last complete item.
        """
        blob = f"blob {self.hash.short()}"
        if leftover:
            return BlobTruncated(
                f"the provider ended in the middle of {blob}, {self.stream_bytes + leftover} bytes"
                " into its response"
            )
        if self.size is None or self._next is None:
            return BlobNotFound(f"the provider does not have {blob}")
        item = self._next
        assert not isinstance(item, Subtree)
        what = "pair" if isinstance(item, Parent) else "content"
        return ItemNotFound(
            f"the provider has only a part of {blob}: it ended where the {what} of chunk"
            f" {item.start_chunk} should have come",
            item=item,
        )


def with_verified(error: RemoteError, queue: VerifyQueue) -> RemoteError:
    """Return the error to raise when `error` ends a stream with items still in the queue.

    What waits is verified first; if that fails, the failure is earlier in the stream, and so it is the
    error to report.
    """
    verified: tuple[BlobEvent, ...]
    try:
        queue.verify()
    except VerificationError as earlier:
        return earlier
    verified = tuple(queue.take())
    if isinstance(error, (BlobNotFound, BlobTooLarge, BlobTruncated, ItemNotFound)):
        error.verified = verified
    return error


class Decoder:
    """Decode and verify the stream of one blob.

    Feed bytes in pieces of any size; verified events come out, in stream order, when a batch of
    content (4 MiB unless told otherwise) is complete, when the blob is, or on `flush`. No byte
    comes out unverified. Memory is bounded by the batch and what one call feeds.

    After an error, every further call raises the same error. Its `verified` holds the events between the
    last ones returned and the fault, which are safe to store.

    Args:
        hash: the blob that was asked for.
        ranges: what was asked of it.
        max_size: the largest claimed size to accept, in bytes, or None.
        batch_bytes: content that is verified at once; smaller is slower, see `hashing`.

    Example:
        >>> decoder = Decoder(Hash.of(b"hello"))
        >>> decoder.feed(b"\\5\\0\\0\\0\\0\\0\\0\\0hello")[0].data
        b'hello'
        >>> decoder.done
        True
    """

    def __init__(
        self,
        hash: Hash,
        ranges: ChunkRanges | None = None,
        *,
        max_size: int | None = None,
        batch_bytes: int = BATCH_BYTES,
    ) -> None:
        self._queue = VerifyQueue(batch_bytes)
        self._reader = BlobReader(
            hash, ChunkRanges.all() if ranges is None else ranges, self._queue, max_size
        )
        self._buffer = bytearray()
        self._error: RemoteError | None = None
        self._size_is_proven = False

    @property
    def size(self) -> int | None:
        """The claimed size in bytes; None before the header."""
        return self._reader.size

    @property
    def size_is_proven(self) -> bool:
        """Whether the last chunk was verified, which proves the claimed size."""
        return self._size_is_proven

    @property
    def done(self) -> bool:
        """Whether all items have arrived and were verified."""
        return self._reader.done and self._error is None

    @property
    def remainder(self) -> bytes:
        """Bytes that were fed beyond the end of the blob; they belong to what follows."""
        return bytes(self._buffer) if self._reader.done else b""

    @property
    def payload_bytes(self) -> int:
        """Content received so far."""
        return self._reader.payload_bytes

    @property
    def overhead_bytes(self) -> int:
        """Header and pairs received so far."""
        return self._reader.stream_bytes - self._reader.payload_bytes

    def feed(self, data: Buffer) -> list[BlobEvent]:
        """Take the next bytes of the stream and return what is verified by now.

        Raises:
            VerificationError: an item does not match; the error names it.
            BlobTooLarge: the claimed size is above the limit.
        """
        self._check_alive()
        self._buffer += data
        reader = self._reader
        position = 0
        try:
            if reader.size is None and not reader.done:
                position = reader.read_header(self._buffer, position)
            if reader.size is not None and not reader.done:
                position = reader.read_items(self._buffer, position)
                if reader.done:
                    self._queue.verify()
        except RemoteError as error:
            raise self._fail(error) from None
        del self._buffer[:position]
        return self._taken()

    def flush(self) -> list[BlobEvent]:
        """Verify what waits, without waiting for a full batch; for when the stream pauses.

        Raises:
            VerificationError: an item does not match; the error names it.
        """
        self._check_alive()
        try:
            self._queue.verify()
        except RemoteError as error:
            raise self._fail(error) from None
        return self._taken()

    def finish(self) -> None:
        """Note that the stream has ended.

        Raises:
            BlobNotFound: before it began.
            ItemNotFound: between two items.
            BlobTruncated: within the header or an item.
            VerificationError: an item that still waited does not match.
        """
        self._check_alive()
        if not self._reader.done:
            raise self._fail(self._reader.end_error(len(self._buffer)))

    def _taken(self) -> list[BlobEvent]:
        events = self._queue.take()
        for event in reversed(events):
            if isinstance(event, VerifiedLeaf):
                self._size_is_proven = event.end == self._reader.size
                break
        return events

    def _fail(self, error: RemoteError) -> RemoteError:
        if not isinstance(error, VerificationError):
            error = with_verified(error, self._queue)
        self._error = error
        self._buffer.clear()
        return error

    def _check_alive(self) -> None:
        if self._error is not None:
            raise self._error
