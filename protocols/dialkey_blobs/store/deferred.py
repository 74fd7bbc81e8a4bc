"""Files that are offered before their outboards are made.

A ticket needs only hashes, which the `blake3` package computes at gigabytes per second. Outboards need
chaining values, which it does not expose, and take many times as long. So a file may be hashed first and
its outboard made afterwards, in the background, or sooner if somebody asks for the blob. The very first
pair depends on all of the content, so a request waits for the outboard of its own blob, but not for
others.

Such a blob is kept here, in memory, and gets its entry in the database together with its outboard.
If the process ends before, it has to be added again.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Final

import attrs

from dialkey.errors import StorageError
from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.hash import Hash
from dialkey_blobs.outboard import outboards
from dialkey_blobs.store.core import SLICE_BYTES, OpenBlob
from dialkey_blobs.store.database import Reference
from dialkey_blobs.store.errors import FileFailed, ReferenceChanged
from dialkey_blobs.store.file_blob import FileBlob
from dialkey_blobs.store.files import FileOps, open_regular
from dialkey_blobs.store.importing import Hashed, hash_file, read_small
from dialkey_blobs.store.values import BlobInfo, BlobState, Steps

__all__ = ["MAX_DEFERRED_BYTES", "DeferredBlobs", "DeferredReader"]

_log: Final = logging.getLogger("dialkey.blobs.store")

MAX_DEFERRED_BYTES: Final = 2 << 30
"""Larger files get their outboards before they are offered: a getter leaves a provider that is silent
for 30 s, and nothing can be sent until the outboard is there. On a busy machine, 70 MB/s were seen."""

_SMALL_BYTES: Final = 1 << 20
"""Larger files nearly fill a hashing batch by themselves."""
_MAX_FILES: Final = 256
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})


@attrs.define(eq=False)
class _Deferred:
    """One blob.

    Attributes:
        hash, size: what was read when the file was added.
        path, modified_ns: where it is, and when it was modified then.
        steps: the work on the outboard, once begun.
        done_bytes: how far it is.
        failed: whether the file is not what it was, which cannot be mended.
    """

    hash: Hash
    size: int
    # Text, since thousands may be kept of which few are ever asked for.
    path: str
    modified_ns: int
    steps: Steps[Hashed] | None = None
    done_bytes: int = 0
    failed: bool = False

    @property
    def reference(self) -> Reference:
        return Reference(Path(self.path), self.modified_ns)

    def changed(self) -> ReferenceChanged:
        return ReferenceChanged(
            f"{self.path} is not what was offered: it was changed or moved",
            path=Path(self.path),
            hint="offer it again",
        )


class DeferredBlobs:
    """See the module. Belongs to the thread of the store.

    Args:
        ops: the door to the file system.
        new_temp: returns a path for a file of ours.
        place: makes the entry of a blob, given its outboard and, if it is small, its content.
    """

    def __init__(
        self,
        ops: FileOps,
        new_temp: Callable[[], Path],
        place: Callable[[Hashed, Reference, bytes | None], None],
    ) -> None:
        self._ops = ops
        self._new_temp = new_temp
        self._place = place
        self._blobs: dict[Hash, _Deferred] = {}
        # The small ones among them, whose outboards are made together.
        self._small: dict[Hash, _Deferred] = {}
        # They have entries, which are not committed yet.
        self._placed: list[_Deferred] = []
        self._waiting_bytes = 0

    def __contains__(self, hash: Hash) -> bool:
        return hash in self._blobs

    def add(self, hash: Hash, size: int, path: str, modified_ns: int) -> None:
        """Keep a blob that has no entry, in place of one with that hash.

        Args:
            hash, size: of the file.
            path: where it is.
            modified_ns: when it was modified last.
        """
        if hash in self._blobs:
            self.discard(hash)
        self._keep(_Deferred(hash, size, path, modified_ns))

    def _keep(self, blob: _Deferred) -> None:
        if blob.hash not in self._blobs:
            self._waiting_bytes += blob.size
        self._blobs[blob.hash] = blob
        if blob.size <= _SMALL_BYTES:
            self._small[blob.hash] = blob

    def bitfield(self, hash: Hash) -> Bitfield | None:
        """Return what is held of a blob: everything, or None if it is not one of these."""
        blob = self._blobs.get(hash)
        return None if blob is None else Bitfield.complete(blob.size)

    def infos(self) -> list[BlobInfo]:
        """Return all."""
        return [
            BlobInfo(blob.hash, BlobState.COMPLETE, blob.size, True)
            for blob in self._blobs.values()
        ]

    def open(self, hash: Hash, reopen: Callable[[], OpenBlob]) -> DeferredReader:
        """Open a blob for reading.

        Args:
            hash: one of these.
            reopen: opens it once it has its entry.

        Raises:
            ReferenceChanged: the file is not what was added.
        """
        blob = self._blobs[hash]
        if blob.failed:
            raise blob.changed()
        return DeferredReader(self._ops, hash, blob.size, blob.reference, self.advance, reopen)

    def discard(self, hash: Hash) -> bool:
        """Forget a blob; return whether it was one of these."""
        blob = self._blobs.pop(hash, None)
        self._small.pop(hash, None)
        if blob is None:
            return False
        self._waiting_bytes -= blob.size
        _stop(blob)
        return True

    def advance(self, hash: Hash) -> bool:
        """Do a few megabytes of the work on one outboard; return whether none is left to do.

        Raises:
            ReferenceChanged: the file is not what was added; every later request fails as well.
            FileFailed: it cannot be read, or the outboard not be written. Another call starts over.
        """
        blob = self._blobs.get(hash)
        if blob is None:
            return True
        if blob.failed:
            raise blob.changed()
        if blob.hash in self._small:
            self._make_small(blob)
            return True
        if blob.steps is None:
            blob.steps = self._make(blob)
        try:
            blob.done_bytes = next(blob.steps)
        except StopIteration as end:
            self._settle(blob, end.value)
            return True
        except FileFailed as error:
            raise self._failed(blob, error) from error
        return False

    def _make(self, blob: _Deferred) -> Steps[Hashed]:
        path = Path(blob.path)
        source, before = open_regular(self._ops, path)
        try:
            if not _is_same(blob, before):
                raise blob.changed()
            hashed = yield from hash_file(self._ops, source, path, blob.size, self._new_temp)
            if hashed.built.hash == blob.hash and _is_same(blob, os.fstat(source)):
                return hashed
            if hashed.outboard_file is not None:
                hashed.outboard_file.discard()
            raise blob.changed()
        finally:
            os.close(source)

    def _make_small(self, wanted: _Deferred) -> None:
        """Make one outboard, and together with it those of others, which costs little more."""
        found: list[tuple[_Deferred, bytes]] = []
        size = 0
        for blob in [wanted, *islice(self._small.values(), _MAX_FILES)]:
            if size >= SLICE_BYTES or (blob is wanted and found):
                continue
            try:
                content = self._read(blob)
            except FileFailed as error:
                failure = self._failed(blob, error)
                if blob is wanted:
                    raise failure from error
                self._small.pop(blob.hash, None)
                _log.warning("%s", failure)
                continue
            found.append((blob, content))
            size += len(content)
        made = outboards([content for _, content in found])
        for (blob, content), built in zip(found, made, strict=True):
            if built.hash == blob.hash:
                self._settle(blob, Hashed(built, None), content)
                continue
            failure = self._failed(blob, blob.changed())
            if blob is wanted:
                raise failure
            _log.warning("%s", failure)

    def _read(self, blob: _Deferred) -> bytes:
        source, before = open_regular(self._ops, blob.path)
        try:
            if not _is_same(blob, before):
                raise blob.changed()
            return read_small(source, blob.path, before)
        finally:
            os.close(source)

    def _failed(self, blob: _Deferred, error: FileFailed) -> FileFailed:
        """Record a failure; return the error to report."""
        blob.steps = None
        if error.errno in _GONE:
            return blob.changed()  # the file may reappear unchanged
        if not isinstance(error, ReferenceChanged):
            return error
        blob.failed = True
        self._small.pop(blob.hash, None)
        return blob.changed()

    def _settle(self, blob: _Deferred, hashed: Hashed, content: bytes | None = None) -> None:
        blob.steps = None
        self._placed.append(blob)
        try:
            self._place(hashed, blob.reference, content)
        except BaseException:
            self._keep(blob)
            raise
        finally:
            if hashed.outboard_file is not None:
                hashed.outboard_file.discard()
        self.discard(blob.hash)

    def make_all(self) -> Steps[None]:
        """Make all outboards; yields the bytes done so far. Failures are logged and skipped."""
        total = self._waiting_bytes
        left_out: set[Hash] = set()
        while blob := self._next(left_out):
            try:
                self.advance(blob.hash)
            except StorageError as error:
                left_out.add(blob.hash)
                _log.warning("%s", error)
            yield max(0, total - self._waiting_bytes + blob.done_bytes)

    def _next(self, left_out: set[Hash]) -> _Deferred | None:
        return next((b for b in self._blobs.values() if b.hash not in left_out), None)

    def committed(self) -> None:
        """Note that the entries that were made are committed."""
        self._placed.clear()

    def undone(self) -> None:
        """Take back the blobs whose entries were not committed."""
        placed, self._placed = self._placed, []
        for blob in placed:
            self._keep(blob)

    def close(self) -> None:
        """Stop all work."""
        for hash in list(self._blobs):
            self.discard(hash)


def _is_same(blob: _Deferred, status: os.stat_result) -> bool:
    return (status.st_size, status.st_mtime_ns) == (blob.size, blob.modified_ns)


def _stop(blob: _Deferred) -> None:
    if blob.steps is not None:
        blob.steps.close()
        blob.steps = None
    blob.done_bytes = 0


class DeferredReader(FileBlob):
    """A blob whose content can be read at once, and whose pairs can be read once `prepare` is done."""

    def __init__(
        self,
        ops: FileOps,
        hash: Hash,
        size: int,
        reference: Reference,
        advance: Callable[[Hash], bool],
        reopen: Callable[[], OpenBlob],
    ) -> None:
        self._entry: OpenBlob | None = None
        self._advance = advance
        self._reopen = reopen
        super().__init__(ops, hash, Bitfield.complete(size), reference.path, b"", reference)

    def prepare(self) -> bool:
        if self._entry is None:
            if not self._advance(self.hash):
                return False
            self._entry = self._reopen()
        return True

    def read_outboard(self, offset: int, length: int) -> bytes:
        while not self.prepare():
            pass
        assert self._entry is not None
        return self._entry.read_outboard(offset, length)

    def close(self) -> None:
        super().close()
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.close()
