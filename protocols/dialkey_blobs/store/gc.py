"""Garbage collection: delete what neither a tag nor a temp tag protects.

Mark: every tag, temp tag and content that the caller names protects its blob; one of a hash sequence
also protects its children, as far as the sequence can be read. Sweep: all other blobs go, including
partial ones. Other work goes on between the steps. So before each part of the sweep, what has been tagged
or pinned meanwhile is marked as well, hash sequences that have grown are read again, and what was written
since the start is kept.

A hash is marked as raw and as a hash sequence separately: having seen one does not spare the other.

Source: docs/wire/blobs.md 5.3.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from dialkey.errors import StorageError
from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.store.core import SLICE_BYTES, StoreCore
from dialkey_blobs.store.errors import BlobMissing
from dialkey_blobs.store.values import BlobState, GcReport, Steps
from dialkey_blobs.tree import CHUNK_BYTES

__all__ = ["collect"]

_log: Final = logging.getLogger("dialkey.blobs.store")
_SWEEP_BATCH: Final = 100
_MARK_BATCH: Final = 1000


def collect(core: StoreCore, protect: Iterable[HashAndFormat] = ()) -> Steps[GcReport]:
    """Delete unprotected blobs; yields the number of roots and blobs looked at so far.

    Only one collection of a store may run at a time.

    Args:
        core: the store.
        protect: contents to spare besides the tagged ones.
    """
    with core.collecting() as (touched, new_roots):
        marks = _Marks(core)
        roots = {*protect, *core.pins.live(), *(tag.content for tag in core.tags(b"", None))}
        done = 0
        for content in roots:
            yield from marks.mark(content)
            done += 1
            if done % _MARK_BATCH == 0:
                yield done
        candidates = [info.hash for info in core.blobs() if info.hash not in marks.live]
        deleted: list[Hash] = []
        for start in range(0, len(candidates), _SWEEP_BATCH):
            # There is no pause between here and the deletion in which anything could be written.
            for content in [*new_roots, *marks.grown(touched)]:
                for _ in marks.mark(content):
                    pass
            new_roots.clear()
            for hash in candidates[start : start + _SWEEP_BATCH]:
                if hash not in marks.live and hash not in touched and core.remove(hash):
                    deleted.append(hash)
                    # Its removal is a change too, and would shield it if it were written again.
                    touched.discard(hash)
            done += min(_SWEEP_BATCH, len(candidates) - start)
            yield done
        kept = sum(info.hash in marks.live for info in core.blobs())
        return GcReport(kept, tuple(deleted), tuple(sorted(marks.unreadable)))


class _Marks:
    """What is protected.

    Attributes:
        live: the blobs.
        unreadable: hash sequences of which not all children are known.
    """

    def __init__(self, core: StoreCore) -> None:
        self.live: set[Hash] = set()
        self.unreadable: set[Hash] = set()
        self._core = core
        self._expanded: set[Hash] = set()

    def grown(self, touched: set[Hash]) -> list[HashAndFormat]:
        """Return the unreadable sequences that were written to, or added, since they were read."""
        return [
            HashAndFormat(hash, BlobFormat.HASH_SEQ) for hash in self.unreadable if hash in touched
        ]

    def mark(self, content: HashAndFormat) -> Steps[None]:
        """Protect `content`."""
        hash = content.hash
        self.live.add(hash)
        if content.format is not BlobFormat.HASH_SEQ or hash in self._expanded:
            return
        try:
            complete = yield from self._mark_children(hash)
        except BlobMissing:
            complete = False
        except StorageError as error:
            complete = False
            _log.warning("children of %s are protected only in part: %s", hash.short(), error)
        if complete:
            self._expanded.add(hash)
            self.unreadable.discard(hash)
        else:
            self.unreadable.add(hash)

    def _mark_children(self, hash: Hash) -> Steps[bool]:
        state = self._core.status(hash).state
        if state is BlobState.MISSING:
            return False
        with self._core.open(hash) as blob:
            held = blob.bitfield.ranges & ChunkRanges.from_bytes(0, blob.size)
            for first, last in held.runs():
                assert last is not None
                # 32 divides the size of a chunk, so no hash lies across a gap. A blob that is no
                # hash sequence may end in less than a hash.
                stop = min(last * CHUNK_BYTES, blob.size)
                for offset in range(first * CHUNK_BYTES, stop, SLICE_BYTES):
                    data = blob.read_data(offset, min(SLICE_BYTES, stop - offset))
                    for at in range(0, len(data) - 31, 32):
                        self.live.add(Hash(data[at : at + 32]))
                    yield offset
            return blob.bitfield.is_complete
