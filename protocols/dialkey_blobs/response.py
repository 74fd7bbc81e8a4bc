"""Responses of several blobs: which blob comes when, and the decoder for all of them.

Blobs follow one another on a stream without separators, hashes or numbers. Both sides derive the
order from the request: the blob itself, then its children by ascending index, leaving out what has
empty ranges. To know the children's hashes a side needs the hash sequence; the getter has it once
it has the first blob, from this response or from before.

Source: docs/wire/blobs.md 1.4, 1.5, 1.7, 2.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from dialkey.errors import RemoteError
from dialkey_blobs.decoder import BlobReader, with_verified
from dialkey_blobs.errors import VerificationError
from dialkey_blobs.events import BlobEvent, BlobFinished, BlobStarted
from dialkey_blobs.hash import Hash
from dialkey_blobs.hash_seq import HashSeq
from dialkey_blobs.hashing import BATCH_BYTES, Buffer
from dialkey_blobs.protocol import GetManyRequest, GetRequest, PushRequest
from dialkey_blobs.ranges import ChunkRanges, ChunkRangesSeq
from dialkey_blobs.verifying import VerifyQueue

__all__ = ["BlobPart", "ChildrenNeeded", "ResponseDecoder", "ResponseOrder"]


@attrs.frozen
class BlobPart:
    """One blob of a response.

    Attributes:
        index: 0 for the blob that was asked for, i + 1 for its child i; in an answer to GetMany,
            the place in the list of hashes.
        hash: the blob.
        ranges: what is sent of it; never empty.
    """

    index: int
    hash: Hash
    ranges: ChunkRanges


@attrs.frozen
class ChildrenNeeded:
    """The hash sequence in a blob is needed to go on; see `ResponseOrder.provide`.

    Attributes:
        hash: the blob.
    """

    hash: Hash


class ResponseOrder:
    """Return which blob comes next, for a provider or a getter.

    Call `next` until it returns None. When it returns `ChildrenNeeded`, load the hash sequence and
    `provide` it first; the sequence is asked for at most once, and only if a child is wanted.
    Indices without ranges cost nothing, however many a stranger leaves out.

    Args:
        request: a Push counts as the Get that it answers.
    """

    def __init__(self, request: GetRequest | GetManyRequest | PushRequest) -> None:
        self._sequence = request.ranges
        self._root: Hash | None = None
        self._hashes: tuple[Hash, ...] | HashSeq | None = None
        self._offset = 1
        self._parent: Hash | None = None
        self._parts: Iterator[BlobPart] | None = None
        if isinstance(request, GetManyRequest):
            self._hashes = request.hashes
            self._offset = 0
        else:
            self._root = self._parent = request.hash

    def next(self) -> BlobPart | ChildrenNeeded | None:
        """Return the next blob, or what is needed to find it, or None at the end."""
        root, self._root = self._root, None
        if root is not None and (ranges := self._sequence[0]):
            return BlobPart(0, root, ranges)
        if self._parts is None:
            if self._hashes is None:
                if self._parent is None or not _wants_children(self._sequence):
                    return None
                return ChildrenNeeded(self._parent)
            self._parts = self._iterate(self._hashes)
        return next(self._parts, None)

    def provide(self, children: HashSeq) -> None:
        """Give the hash sequence after `ChildrenNeeded`."""
        self._hashes = children

    def _iterate(self, hashes: tuple[Hash, ...] | HashSeq) -> Iterator[BlobPart]:
        limit = len(hashes) + self._offset
        for start, end, ranges in self._sequence.runs(limit):
            for index in range(max(start, self._offset), limit if end is None else end):
                yield BlobPart(index, hashes[index - self._offset], ranges)


def _wants_children(sequence: ChunkRangesSeq) -> bool:
    return any(end is None or end > 1 for _, end, _ in sequence.runs())


class ResponseDecoder:
    """Decode and verify a response of any number of blobs.

    Feed bytes; events come out in stream order: `BlobStarted`, the blob's verified parents and
    leaves, `BlobFinished`. Blobs share verification batches, so that many small ones are as fast as
    a large one. When `children_needed` is set, read the hash sequence from what was received (or
    held before) and call `provide`; bytes fed meanwhile wait.

    Errors are as with `Decoder`: after one, every further call raises it again, and its `verified`
    holds the events before the fault.

    Args:
        request: what was asked for; for a Push, its header.
        max_size: the largest claimed size of one blob to accept, in bytes, or None.
        max_root_size: the same for the blob at index 0 of a Get, which for a hash sequence has to
            be held in memory.
        batch_bytes: content that is verified at once.
        subtrees: whether complete subtrees come out in one piece, as `VerifiedSubtree`. That is
            faster. As much of one as has arrived is held back until `flush` or `finish`.
    """

    def __init__(
        self,
        request: GetRequest | GetManyRequest | PushRequest,
        *,
        max_size: int | None = None,
        max_root_size: int | None = None,
        batch_bytes: int = BATCH_BYTES,
        subtrees: bool = False,
    ) -> None:
        self._subtrees = subtrees
        self._order = ResponseOrder(request)
        self._has_root = not isinstance(request, GetManyRequest)
        self._max_size = max_size
        self._max_root_size = max_root_size if max_root_size is not None else max_size
        self._queue = VerifyQueue(batch_bytes)
        self._buffer = bytearray()
        self._reader: BlobReader | None = None
        self._part: BlobPart | None = None
        self._children_needed: Hash | None = None
        self._done = False
        self._error: RemoteError | None = None
        self._finished_stream_bytes = 0
        self._finished_payload_bytes = 0
        self._step()

    @property
    def children_needed(self) -> Hash | None:
        """The blob whose hash sequence is needed to go on, or None."""
        return self._children_needed

    @property
    def done(self) -> bool:
        """Whether all blobs have arrived and were verified."""
        return self._done and self._error is None

    @property
    def remainder(self) -> bytes:
        """Bytes that were fed beyond the end of the last blob."""
        return bytes(self._buffer) if self._done else b""

    @property
    def current(self) -> BlobPart | None:
        """The blob whose bytes come next, or None."""
        return self._part

    @property
    def payload_bytes(self) -> int:
        """Content received so far."""
        current = 0 if self._reader is None else self._reader.payload_bytes
        return self._finished_payload_bytes + current

    @property
    def overhead_bytes(self) -> int:
        """Headers and pairs received so far."""
        current = 0 if self._reader is None else self._reader.stream_bytes
        return self._finished_stream_bytes + current - self.payload_bytes

    def feed(self, data: Buffer) -> list[BlobEvent]:
        """Take the next bytes of the response and return what is verified by now.

        Raises:
            VerificationError: an item does not match; the error names it.
            BlobTooLarge: a claimed size is above the limit.
        """
        return self.feed_parts((data,))

    def feed_parts(self, parts: Iterable[Buffer]) -> list[BlobEvent]:
        """Take the next bytes of the response in several parts; otherwise as `feed`.

        Raises:
            VerificationError: an item does not match; the error names it.
            BlobTooLarge: a claimed size is above the limit.
        """
        self._check_alive()
        for part in parts:
            self._buffer += part
        return self._advance()

    def provide(self, children: HashSeq) -> list[BlobEvent]:
        """Give the hash sequence that `children_needed` asks for; return what is verified so far.

        Raises:
            VerificationError: as from `feed`, for bytes that have waited.
            BlobTooLarge: likewise.
        """
        self._check_alive()
        if self._children_needed is None:
            raise RuntimeError("no hash sequence is needed now")
        self._children_needed = None
        self._order.provide(children)
        self._step()
        return self._advance()

    def flush(self) -> list[BlobEvent]:
        """Verify what waits, without waiting for a full batch; for when the stream pauses.

        Raises:
            VerificationError: an item does not match; the error names it.
        """
        self._check_alive()
        self._take_apart()
        try:
            self._queue.verify()
        except VerificationError as error:
            self._error = error
            raise
        return self._queue.take()

    def _take_apart(self) -> None:
        """Queue everything that has arrived, including parts of an incomplete subtree."""
        if self._reader is not None:
            self._reader.take_apart()
            self._read_buffer()

    def finish(self) -> None:
        """Note that the stream has ended; `done` says whether everything was received.

        That is false while `children_needed` is set: only the hash sequence can tell whether more
        blobs should have followed.

        Raises:
            BlobNotFound: before the next blob began.
            ItemNotFound: between two items of a blob.
            BlobTruncated: within a header or an item.
            VerificationError: an item that still waited does not match.
        """
        self._check_alive()
        self._take_apart()
        if self._reader is not None:
            raise self._fail(self._reader.end_error(len(self._buffer)))

    def _step(self) -> None:
        step = self._order.next()
        self._part = step if isinstance(step, BlobPart) else None
        self._reader = None
        if isinstance(step, BlobPart):
            is_root = step.index == 0 and self._has_root
            limit = self._max_root_size if is_root else self._max_size
            self._reader = BlobReader(
                step.hash, step.ranges, self._queue, limit, subtrees=self._subtrees
            )
        elif isinstance(step, ChildrenNeeded):
            self._children_needed = step.hash
        else:
            self._done = True

    def _advance(self) -> list[BlobEvent]:
        self._read_buffer()
        return self._queue.take()

    def _read_buffer(self) -> None:
        position = 0
        try:
            while self._reader is not None:
                position, finished = self._read(self._reader, position)
                if not finished:
                    break
            if self._reader is None:
                self._queue.verify()
        except RemoteError as error:
            raise self._fail(error) from None
        del self._buffer[:position]

    def _read(self, reader: BlobReader, position: int) -> tuple[int, bool]:
        part = self._part
        assert part is not None
        if reader.size is None:
            position = reader.read_header(self._buffer, position)
            if reader.size is None:
                return position, False
            self._queue.add_note(BlobStarted(part.index, part.hash, reader.size))
        position = reader.read_items(self._buffer, position)
        if not reader.done:
            return position, False
        self._queue.add_note(
            BlobFinished(part.index, part.hash, reader.size, reader.includes_last_chunk)
        )
        self._finished_stream_bytes += reader.stream_bytes
        self._finished_payload_bytes += reader.payload_bytes
        self._step()
        return position, True

    def _fail(self, error: RemoteError) -> RemoteError:
        if not isinstance(error, VerificationError):
            error = with_verified(error, self._queue)
        self._error = error
        self._buffer.clear()
        return error

    def _check_alive(self) -> None:
        if self._error is not None:
            raise self._error
