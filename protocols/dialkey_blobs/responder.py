"""What a provider sends for a request, produced step by step in the store's thread.

One step reads and encodes about a megabyte, be it a piece of one blob or a thousand small ones, so
that going to another thread and back costs little. Blobs are opened when their turn comes.

Source: docs/wire/blobs.md 1.4 to 1.6, 3.7.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import attrs

from dialkey.errors import DialkeyError, LocalError, ProtocolViolation, StorageError
from dialkey.limits import MAX_HASH_SEQ_BYTES
from dialkey_blobs.encoder import Encoder, SubgroupCache
from dialkey_blobs.errors import RangeMissing
from dialkey_blobs.hash import Hash
from dialkey_blobs.hash_seq import HashSeq
from dialkey_blobs.protocol import GetManyRequest, GetRequest
from dialkey_blobs.response import BlobPart, ChildrenNeeded, ResponseOrder
from dialkey_blobs.store.core import OpenBlob, StoreReader
from dialkey_blobs.store.errors import BlobIncomplete, BlobMissing, StoreClosed
from dialkey_blobs.tree import CHUNK_BYTES, GROUP_BYTES, GROUP_CHUNKS

if TYPE_CHECKING:
    from dialkey_blobs.store import Store

__all__ = ["CannotServe", "Responder", "ResponderCaches", "Served", "load_hash_seq", "release"]

STEP_BYTES: Final = 1 << 20
MAX_BLOBS_PER_STEP: Final = 256
"""Small blobs opened in one step: about ten milliseconds of the store's thread."""
STEP_S: Final = 0.02
"""A request for many small parts costs much more than its bytes suggest."""
LOOK_AHEAD: Final = 64
"""Blobs whose groups that are wanted in part are hashed at once: as fast as it gets with NumPy."""


class CannotServe(Exception):
    """The response ends here: something is not held. What was produced before is valid.

    Attributes:
        reason: what is not held.
    """

    def __init__(self, reason: DialkeyError) -> None:
        super().__init__(reason)
        self.reason = reason


@attrs.frozen
class Served:
    """The start of one blob in a response.

    Attributes:
        index: its place in the request.
        hash: which blob.
        size: its bytes.
    """

    index: int
    hash: Hash
    size: int


class ResponderCaches:
    """What the responses of one provider share. Belongs to the store's thread.

    Attributes:
        subgroups: chaining values within groups that are served in part.
    """

    def __init__(self) -> None:
        self.subgroups = SubgroupCache()
        # A sequence may be 32 MiB; concurrent requests for the same one must not each load it.
        self._sequences: WeakValueDictionary[Hash, HashSeq] = WeakValueDictionary()

    def hash_seq(self, reader: StoreReader, hash: Hash) -> HashSeq:
        """Return a hash sequence as `load_hash_seq` does, shared among all who use it now."""
        children = self._sequences.get(hash)
        if children is None:
            children = self._sequences[hash] = load_hash_seq(reader, hash)
        return children


class Responder:
    """Produce a response.

    Args:
        request: what is asked for.
        caches: shared with other responses, where there are any.

    Attributes:
        payload_bytes: content produced so far.
        overhead_bytes: headers and pairs produced so far.
    """

    def __init__(
        self, request: GetRequest | GetManyRequest, caches: ResponderCaches | None = None
    ) -> None:
        self._order = ResponseOrder(request)
        self._caches = caches or ResponderCaches()
        self._upcoming: deque[BlobPart | ChildrenNeeded | None] = deque()
        self._blob: OpenBlob | None = None
        self._encoder: Encoder | None = None
        self._pieces: Iterator[bytes] | None = None
        self._finished_payload = 0
        self._finished_overhead = 0
        self._over = False

    @property
    def payload_bytes(self) -> int:
        current = self._encoder.payload_bytes if self._encoder is not None else 0
        return self._finished_payload + current

    @property
    def overhead_bytes(self) -> int:
        current = self._encoder.overhead_bytes if self._encoder is not None else 0
        return self._finished_overhead + current

    def step(self, reader: StoreReader) -> tuple[list[bytes], list[Served], Exception | None, bool]:
        """Produce the next part.

        Returns:
            (bytes to send, blobs started, what ended the response early or None, whether it is over)
        """
        pieces: list[bytes] = []
        begun: list[Served] = []
        size = 0
        end = time.monotonic() + STEP_S
        try:
            while (
                size < STEP_BYTES
                and len(begun) < MAX_BLOBS_PER_STEP
                and not self._over
                and time.monotonic() < end
            ):
                if self._pieces is None:
                    self._next_blob(reader, begun)
                    continue
                if self._blob is not None and not self._blob.prepare():
                    # Its outboard is being made, a part in each step.
                    if pieces:
                        break
                    continue
                piece = next(self._pieces, None)
                if piece is None:
                    self._end_blob()
                else:
                    pieces.append(piece)
                    size += len(piece)
        except (BlobMissing, BlobIncomplete, RangeMissing, ProtocolViolation) as error:
            self.close()
            return pieces, begun, CannotServe(error), True
        except StorageError as error:
            self.close()
            return pieces, begun, error, True
        return pieces, begun, None, self._over

    def _next_blob(self, reader: StoreReader, begun: list[Served]) -> None:
        if not self._upcoming:
            self._look_ahead(reader)
        step = self._upcoming.popleft()
        if step is None:
            self._over = True
        elif isinstance(step, ChildrenNeeded):
            self._order.provide(self._caches.hash_seq(reader, step.hash))
        else:
            self._open(reader, step)
            assert self._blob is not None
            begun.append(Served(step.index, step.hash, self._blob.size))

    def _look_ahead(self, reader: StoreReader) -> None:
        """Look at what comes next: one blob, or a run of blobs of which only parts are wanted.

        A getter may ask for the last chunk of each of thousands of blobs. The pairs that prove it are not
        in any outboard, and computing those of many blobs at once is forty times as fast.
        """
        groups: list[tuple[Hash, int, bytes]] = []
        while len(self._upcoming) < LOOK_AHEAD:
            step = self._order.next()
            self._upcoming.append(step)
            if not isinstance(step, BlobPart) or step.ranges.is_all:
                break
            try:
                groups += self._partial_groups(reader, step)
            except (LocalError, ProtocolViolation):
                break  # whatever it is will be dealt with when the blob's turn comes
        if len(groups) > 1:
            self._caches.subgroups.fill(groups)

    def _partial_groups(self, reader: StoreReader, part: BlobPart) -> list[tuple[Hash, int, bytes]]:
        """Return the groups of a blob of which parts are wanted, unless they are many or known."""
        with reader.open(part.hash) as blob:
            wanted = part.ranges.selected(blob.size).limited_to(max(blob.size, 1))
            whole = wanted.shrunk_to_groups(blob.size)
            found: list[tuple[Hash, int, bytes]] = []
            for start, end in (wanted.grown_to_groups() - whole).runs():
                assert end is not None
                if end - start > GROUP_CHUNKS or len(found) > 1:
                    return []
                offset = start * CHUNK_BYTES
                length = min(GROUP_BYTES, blob.size - offset)
                # A group of one chunk has no pairs.
                if length > CHUNK_BYTES and self._caches.subgroups.get(part.hash, start) is None:
                    found.append((part.hash, start, blob.read_data(offset, length)))
            return found

    def _open(self, reader: StoreReader, part: BlobPart) -> None:
        blob = self._blob = reader.open(part.hash)
        if not blob.bitfield.ranges:
            raise BlobMissing(part.hash)
        self._encoder = Encoder(
            part.hash,
            blob.size,
            part.ranges,
            blob.read_data,
            blob.read_outboard,
            available=blob.bitfield.ranges,
            cache=self._caches.subgroups,
        )
        # Not verified here: the store notices when a file outside it was written to, and the getter
        # checks every byte in any case.
        self._pieces = iter(self._encoder)

    def _end_blob(self) -> None:
        if self._encoder is not None:
            self._finished_payload += self._encoder.payload_bytes
            self._finished_overhead += self._encoder.overhead_bytes
        self._encoder = self._pieces = None
        if self._blob is not None:
            self._blob.close()
            self._blob = None

    def close(self) -> None:
        """Release what is open. Idempotent; call it in the store's thread."""
        self._over = True
        self._end_blob()


def load_hash_seq(reader: StoreReader, hash: Hash) -> HashSeq:
    """Read a complete hash sequence.

    Raises:
        BlobMissing, BlobIncomplete: it is not held.
        ProtocolViolation: it is not a hash sequence, or is longer than we handle.
    """
    with reader.open(hash) as blob:
        if not blob.bitfield.is_complete:
            raise BlobIncomplete(hash)
        if blob.size > MAX_HASH_SEQ_BYTES or blob.size % 32:
            raise ProtocolViolation(
                f"blob {hash.short()} is not a hash sequence, or one of more than"
                f" {MAX_HASH_SEQ_BYTES // 32} hashes"
            )
        return HashSeq(blob.read_data(0, blob.size))


async def release(store: Store, responder: Responder) -> None:
    """Close a responder in its store's thread, even if the caller is cancelled."""
    try:
        await asyncio.shield(store.run(lambda _: responder.close()))
    except StoreClosed:
        pass  # and with it all its files
