"""The store on a file system, without an event loop.

Layout below the store's directory::

    blobs.db              what is held where, tags, small content (SQLite)
    data/ab/ab….data      content, sparse while the blob is partial
    data/ab/ab….obao4     outboard, unless it is small and in the database
    data/ab/ab….bitfield  journal of a partial blob
    temp/                 files that have no place yet; emptied on opening
    lock                  held while the store is open

Theory of operation. The database is the truth about what exists; a file that no entry refers to is
garbage. So an entry is committed before files are made for a partial blob, content is moved into place
before the entry that refers to it is committed, and files are removed after their entry. A crash at any
point leaves garbage at worst, which is removed when a store that was not closed is opened.

What a killed process has written stays in the kernel, so nothing waits for the disk. A power failure is
different: after it, partial blobs are hashed again before they are trusted (see `journal`); complete ones
are trusted if their size is right. With `durable`, complete blobs and commits wait for the disk.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

from dialkey.errors import StorageError
from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.events import VerifiedContent, VerifiedParent
from dialkey_blobs.hash import EMPTY_HASH, BlobFormat, Hash, HashAndFormat
from dialkey_blobs.hashing import Buffer
from dialkey_blobs.outboard import outboards
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.safe_paths import SafeFile
from dialkey_blobs.store.checking import check_blob
from dialkey_blobs.store.core import (
    INLINE_BYTES,
    BytesBlob,
    Import,
    OpenBlob,
    StoreCore,
    whole_blob,
)
from dialkey_blobs.store.database import Database, Place, Reference, Row
from dialkey_blobs.store.deferred import DeferredBlobs
from dialkey_blobs.store.errors import (
    BlobDamaged,
    BlobMissing,
    ReferenceChanged,
    SizeConflict,
    file_errors,
)
from dialkey_blobs.store.file_blob import FileBlob
from dialkey_blobs.store.files import FileOps, make_directory, open_regular, sync_folder
from dialkey_blobs.store.fs_import import FsImport, add_file
from dialkey_blobs.store.importing import Hashed, TempFile, hash_file
from dialkey_blobs.store.leftovers import Leftovers
from dialkey_blobs.store.partial import BlobPaths, OpenPartials, PartialFiles
from dialkey_blobs.store.pins import TempTag, released_on_failure
from dialkey_blobs.store.recovery import (
    StoreLock,
    claimed_files,
    empty_temp,
    running_system,
    sweep_rubbish,
)
from dialkey_blobs.store.small_files import (
    HashedFile,
    HashFiles,
    ReadFiles,
    SmallFile,
    add_in_batches,
)
from dialkey_blobs.store.values import (
    BlobInfo,
    CheckOutcome,
    CheckReport,
    ImportMode,
    Steps,
    StoreStats,
    Tag,
    finish,
)
from dialkey_blobs.tree import GROUP_BYTES, outboard_size

__all__ = ["FsCore"]

_log: Final = logging.getLogger("dialkey.blobs.store")


class FsCore(StoreCore):
    """See the module.

    Args:
        root: the store's directory, created if it is missing.
        ops: the gateway to the file system.
        durable: whether complete blobs and commits wait for the disk.
        epoch: id of the running operating system, by default the one that it reports.

    Raises:
        StoreLocked: the store is open elsewhere.
        StoreDamaged: the database is not one, or of a newer version.
        StorageError: the directory cannot be used.
    """

    def __init__(
        self,
        root: Path,
        *,
        ops: FileOps | None = None,
        durable: bool = False,
        epoch: bytes | None = None,
    ) -> None:
        super().__init__(FileOps() if ops is None else ops)
        self.root = root
        self._durable = durable
        self._epoch = running_system() if epoch is None else epoch
        self._partials = OpenPartials()
        self._unsealed: set[Hash] = set()
        self._leftovers = Leftovers(self._ops)
        self._deferred = DeferredBlobs(self._ops, self.new_temp, self._place_deferred)
        self._closed = False
        for folder in (root, root / "data", root / "temp"):
            make_directory(self._ops, folder)
        self._lock = StoreLock(self._ops, root / "lock")
        try:
            self._database = Database(root / "blobs.db", self._ops, durable=durable)
        except BaseException:
            self._lock.release()
            raise
        try:
            self._recover()
        except BaseException:
            self._release()
            raise

    def _recover(self) -> None:
        empty_temp(self._ops, self.root / "temp")
        was_closed = self._database.state("closed")
        self._database.set_state("closed", 0)
        self.commit()
        if was_closed == 0:
            for hash in sweep_rubbish(self._ops, self.root, self._database):
                finish(self.check(hash))
                self.commit()

    # --- small things ---------------------------------------------------------------------------

    def paths(self, hash: Hash) -> BlobPaths:
        """Return where the files of a blob are."""
        return BlobPaths.of(self.root, hash)

    def new_temp(self) -> Path:
        """Return a path for a file that has no place yet."""
        return self.root / "temp" / secrets.token_hex(16)

    def stored_outboard(self, hash: Hash, row: Row) -> bytes | Path:
        """Return the outboard of a complete blob, or the path of its file."""
        if row.outboard_inline:
            return self._database.inline_outboard(row)
        return self.paths(hash).outboard if (row.size or 0) > GROUP_BYTES else b""

    def content_path(self, hash: Hash, row: Row) -> Path:
        """Return the file with the content of a complete blob."""
        if row.place == Place.REFERENCE:
            return self._database.reference(row).path
        return self.paths(hash).data

    # --- for imports and checks -----------------------------------------------------------------

    def entry(self, hash: Hash) -> Row | None:
        """Return what the database says about a blob."""
        return self._database.row(hash)

    def inline_content(self, row: Row) -> bytes:
        """Return the content of a blob that is in the database."""
        return self._database.inline_data(row)

    def reference(self, row: Row) -> Reference:
        """Return the file of a blob outside the store."""
        return self._database.reference(row)

    def renew_reference(self, row: Row, reference: Reference) -> None:
        """Note that the file of a blob outside the store was touched, but not changed."""
        self._database.set_reference(row, reference)

    def open_source(self, path: Path) -> tuple[int, os.stat_result]:
        """Open a regular file; see `open_regular`."""
        return open_regular(self._ops, path)

    def open_files(
        self, hash: Hash, row: Row, outboard: bytes | Path, reference: Reference | None = None
    ) -> FileBlob:
        """Open a complete blob as its files are, sound or not."""
        path = self.paths(hash).data if reference is None else reference.path
        bitfield = Bitfield.complete(row.size or 0)
        return FileBlob(self._ops, hash, bitfield, path, outboard, reference)

    def temp_file(self) -> TempFile:
        """Create a file that has no place yet."""
        return TempFile(self._ops, self.new_temp())

    def hash_source(
        self, source: int, path: Path, size: int, copy_to: TempFile | None = None
    ) -> Steps[Hashed]:
        """Hash an open file; see `hash_file`."""
        return hash_file(self._ops, source, path, size, self.new_temp, copy_to)

    # --- reading --------------------------------------------------------------------------------

    def _bitfield(self, hash: Hash) -> Bitfield | None:
        row = self._database.row(hash)
        if row is None:
            return self._deferred.bitfield(hash)
        if row.place == Place.PARTIAL:
            return self._partial(hash).bitfield
        return Bitfield.complete(row.size or 0)

    def _open(self, hash: Hash) -> OpenBlob:
        try:
            return self._open_entry(hash)
        except BlobDamaged:
            outcome = finish(self.check(hash)).outcome
            if outcome not in (CheckOutcome.GOOD, CheckOutcome.REPAIRED):
                raise
            return self._open_entry(hash)

    def _open_entry(self, hash: Hash) -> OpenBlob:
        bitfield = self._bitfield(hash)
        row = self._database.row(hash)
        if row is None and hash in self._deferred:
            return self._deferred.open(hash, lambda: self._open(hash))
        if row is None or bitfield is None:
            raise BlobMissing(hash)
        paths = self.paths(hash)
        if row.place == Place.INLINE:
            return BytesBlob(hash, self._database.inline_data(row))
        if row.place == Place.PARTIAL:
            return FileBlob(self._ops, hash, bitfield, paths.data, paths.outboard)
        outboard = self.stored_outboard(hash, row)
        if row.place == Place.REFERENCE:
            reference = self._database.reference(row)
            return FileBlob(self._ops, hash, bitfield, reference.path, outboard, reference)
        for path in (paths.data, outboard):
            if isinstance(path, Path) and not path.exists():
                raise BlobDamaged(f"{path} is gone", hash=hash)
        blob = FileBlob(self._ops, hash, bitfield, paths.data, outboard)
        if blob.data_length < blob.size or blob.outboard_length < outboard_size(blob.size):
            blob.close()
            raise BlobDamaged(f"{paths.data} or its outboard was cut off", hash=hash)
        return blob

    def _partial(self, hash: Hash) -> PartialFiles:
        """Return the files of a partial blob; if they turn out complete, the entry becomes so."""
        partial = self._partials.get(hash)
        if partial is not None:
            return partial
        partial = PartialFiles(self._ops, self.paths(hash), hash, self._epoch, self.new_temp())
        self._partials.add(partial)
        if partial.bitfield.is_complete:
            self._complete(partial)
        return partial

    def blobs(self) -> list[BlobInfo]:
        deferred = self._deferred.infos()
        if not deferred:
            return self._database.blobs()
        return sorted(self._database.blobs() + deferred, key=lambda info: info.hash)

    # --- exporting ------------------------------------------------------------------------------

    def export(
        self, hash: Hash, file: SafeFile, *, durable: bool, move: bool = False
    ) -> Steps[int]:
        row = self._database.row(hash)
        if not move or row is None or row.place != Place.FILE:
            return (yield from super().export(hash, file, durable=durable))
        with file:
            with self.open(hash) as blob:
                yield from self._verify(blob, file.path)
            # In the meantime the blob may have been deleted, or moved elsewhere.
            if self._database.row(hash) == row and self._move(hash, row, file, durable):
                return row.size or 0
            return (yield from super().export(hash, file, durable=durable))

    def _move(self, hash: Hash, row: Row, file: SafeFile, durable: bool) -> bool:
        """Move a blob's file to `file`, and keep a reference; return whether that was possible.

        The file has both names until the entry is committed, so that it is never without an owner.
        """
        data = self.paths(hash).data
        if not self._ops.take(file, data, durable):
            return False
        with file_errors("look at", data):
            modified_ns = os.stat(data).st_mtime_ns
        # The directory may be named through links, which may point elsewhere tomorrow.
        target = Path(os.path.realpath(file.path.parent), file.path.name)
        outboard = self._database.inline_outboard(row) if row.outboard_inline else None
        self._put(
            hash,
            Place.REFERENCE,
            row.size or 0,
            outboard=outboard,
            reference=Reference(target, modified_ns),
        )
        return True

    # --- adding ---------------------------------------------------------------------------------

    def add_many(self, blobs: Sequence[Buffer], format: BlobFormat) -> list[TempTag]:
        with released_on_failure() as tags:
            for built, content in zip(outboards(blobs), blobs, strict=True):
                self._put_bytes(built.hash, content, built.data)
                tags.append(self.pins.pin(HashAndFormat(built.hash, format)))
        return tags

    def _put_bytes(self, hash: Hash, content: Buffer, outboard: bytes) -> None:
        if hash == EMPTY_HASH or self._is_owned(hash):
            return
        if len(content) <= INLINE_BYTES:
            self._put(hash, Place.INLINE, len(content), data=bytes(content))
            return
        data, pairs = self.temp_file(), None
        try:
            data.write(content, 0)
            if len(outboard) > INLINE_BYTES:
                pairs = self.temp_file()
                pairs.write(outboard, 0)
            self._place(hash, len(content), data, outboard, pairs)
        finally:
            data.discard()
            if pairs is not None:
                pairs.discard()

    def _is_owned(self, hash: Hash) -> bool:
        """Return whether a blob is complete in the store itself, and appears to be sound."""
        row = self._database.row(hash)
        if row is None or row.place in (Place.PARTIAL, Place.REFERENCE):
            return False
        if row.place == Place.INLINE:
            return True
        try:
            return os.stat(self.paths(hash).data).st_size >= (row.size or 0)
        except OSError:
            return False

    def begin_import(self, format: BlobFormat) -> Import:
        return FsImport(self, format)

    def add_path(self, path: Path, mode: ImportMode, format: BlobFormat) -> Steps[TempTag]:
        return (yield from add_file(self, path, mode, format))

    def add_paths(
        self, paths: Sequence[Path], mode: ImportMode, format: BlobFormat
    ) -> Steps[list[TempTag]]:
        def add_batch(files: Sequence[SmallFile]) -> list[TempTag]:
            return self._add_small(files, mode, format)

        def defer_batch(files: Sequence[HashedFile]) -> list[TempTag]:
            return self._defer_small(files, format)

        def add_one(path: Path) -> Steps[TempTag]:
            return add_file(self, path, mode, format)

        if mode is ImportMode.DEFERRED:
            return (yield from add_in_batches(paths, HashFiles(self._ops), defer_batch, add_one))
        return (yield from add_in_batches(paths, ReadFiles(self._ops), add_batch, add_one))

    def _add_small(
        self, files: Sequence[SmallFile], mode: ImportMode, format: BlobFormat
    ) -> list[TempTag]:
        with released_on_failure() as tags:
            for built, file in zip(outboards([file.content for file in files]), files, strict=True):
                if mode is ImportMode.COPY or built.size <= INLINE_BYTES:
                    self._put_bytes(built.hash, file.content, built.data)
                    tags.append(self.pins.pin(HashAndFormat(built.hash, format)))
                else:
                    reference = Reference(Path(file.path), file.mtime_ns)
                    tags.append(self.add_hashed(Hashed(built, None), None, reference, format))
        return tags

    def _defer_small(self, files: Sequence[HashedFile], format: BlobFormat) -> list[TempTag]:
        rows = self._database.rows([file.hash for file in files])
        for file in files:
            self._defer(file.hash, file.size, file.path, file.mtime_ns, rows.get(file.hash))
        return self.pins.pin_many([HashAndFormat(file.hash, format) for file in files])

    def defer(self, hash: Hash, size: int, reference: Reference, format: BlobFormat) -> TempTag:
        """Keep a file outside the store whose outboard is still to be made."""
        path, row = os.fspath(reference.path), self._database.row(hash)
        self._defer(hash, size, path, reference.modified_ns, row)
        return self.pins.pin(HashAndFormat(hash, format))

    def _defer(self, hash: Hash, size: int, path: str, modified_ns: int, row: Row | None) -> None:
        if hash == EMPTY_HASH:
            return
        if row is not None:
            if self._is_owned(hash):
                return
            # This replaces an entry that is not complete, or is of another file.
            self.remove(hash)
        self._deferred.add(hash, size, path, modified_ns)
        self._changed(hash, Bitfield.complete(size))

    def make_outboards(self) -> Steps[None]:
        return (yield from self._deferred.make_all())

    def _place_deferred(self, hashed: Hashed, reference: Reference, content: bytes | None) -> None:
        built = hashed.built
        if content is not None and built.size <= INLINE_BYTES:
            self._put_bytes(built.hash, content, built.data)
            return
        self._place(built.hash, built.size, None, built.data, hashed.outboard_file, reference)

    def add_hashed(
        self,
        hashed: Hashed,
        data: TempFile | None,
        reference: Reference | None,
        format: BlobFormat,
    ) -> TempTag:
        """Make an entry for content that is in one of our files, or in one outside the store."""
        hash, size = hashed.built.hash, hashed.built.size
        if not self._is_owned(hash):
            self._place(hash, size, data, hashed.built.data, hashed.outboard_file, reference)
        return self.pins.pin(HashAndFormat(hash, format))

    def _place(
        self,
        hash: Hash,
        size: int,
        data: TempFile | None,
        outboard: bytes,
        outboard_file: TempFile | None,
        reference: Reference | None = None,
    ) -> None:
        """Move files to where they belong and make the entry that refers to them."""
        self._prepare(hash)
        paths = self.paths(hash)
        is_new = self._database.row(hash) is None
        make_directory(self._ops, paths.data.parent)
        try:
            for temp, target in ((outboard_file, paths.outboard), (data, paths.data)):
                if temp is not None:
                    temp.move_to(target, durable=self._durable)
            if self._durable:
                sync_folder(self._ops, paths.data.parent)
        except StorageError:
            if is_new:
                self._leftovers.discard(paths.all)
            raise
        if is_new:
            self._leftovers.created(paths.all)
        place = Place.REFERENCE if data is None else Place.FILE
        inline = outboard if outboard_file is None else None
        self._put(hash, place, size, outboard=inline, reference=reference)

    def _put(
        self,
        hash: Hash,
        place: int,
        size: int,
        *,
        data: bytes | None = None,
        outboard: bytes | None = None,
        reference: Reference | None = None,
    ) -> None:
        """Make the entry of a complete blob, and mark for removal what it does not refer to."""
        self._partials.close(hash)
        self._unsealed.discard(hash)
        self._deferred.discard(hash)
        old = self._database.row(hash)
        row = self._database.put(
            hash, place, size, data=data, outboard=outboard, reference=reference
        )
        if old is not None:
            self._doom(hash, row)
        self._changed(hash, Bitfield.complete(size))

    def write_items(
        self,
        hash: Hash,
        size: int,
        parents: Sequence[VerifiedParent],
        leaves: Sequence[VerifiedContent],
    ) -> None:
        if hash == EMPTY_HASH or not leaves:
            return
        row = self._database.row(hash)
        if row is None and hash in self._deferred:
            return
        if row is None:
            whole = whole_blob(size, parents, leaves)
            if whole is not None:
                self._put_bytes(hash, *whole)
                return
            self._prepare(hash)
            self._database.put(hash, Place.PARTIAL)
            # The entry first: files without one would not survive a crash.
            self._flush()
        held = self._bitfield(hash)
        assert held is not None
        if held.is_validated and held.size != size:
            raise SizeConflict(hash, claimed=size, proven=held.size)
        if held.is_complete:
            return
        partial = self._partial(hash)
        self._unsealed.add(hash)
        partial.write(size, parents, leaves)
        self._changed(hash, partial.bitfield)
        if partial.bitfield.is_complete:
            self._complete(partial)

    def _complete(self, partial: PartialFiles) -> None:
        size = partial.bitfield.size
        if size <= INLINE_BYTES:
            self._put(partial.hash, Place.INLINE, size, data=partial.read_data(0, size))
            return
        partial.truncate_data(size)
        if self._durable:
            partial.sync()
        pairs = outboard_size(size)
        outboard = partial.read_outboard(0, pairs) if pairs <= INLINE_BYTES else None
        self._put(partial.hash, Place.FILE, size, outboard=outboard)

    # --- tags -----------------------------------------------------------------------------------

    def tag(self, name: bytes) -> HashAndFormat | None:
        return self._database.tag(name)

    def tags(self, first: bytes, end: bytes | None) -> list[Tag]:
        return self._database.tags(first, end)

    def delete_tags(self, first: bytes, end: bytes | None) -> int:
        return self._database.delete_tags(first, end)

    def _put_tag(self, name: bytes, content: HashAndFormat) -> None:
        self._database.set_tag(name, content)

    # --- maintenance ----------------------------------------------------------------------------

    def remove(self, hash: Hash) -> bool:
        row = self._database.row(hash)
        if row is None:
            is_known = self._deferred.discard(hash)
            if is_known:
                self._changed(hash, Bitfield())
            return is_known
        self._partials.close(hash)
        self._unsealed.discard(hash)
        self._database.delete(row)
        if row.place != Place.INLINE:
            self._doom(hash, None)
        self._changed(hash, Bitfield())
        return True

    def check(self, hash: Hash) -> Steps[CheckReport]:
        if hash == EMPTY_HASH:
            whole = Bitfield.complete(0)
            return CheckReport(hash, CheckOutcome.GOOD, whole, whole)
        before = self._deferred.bitfield(hash)
        try:
            while not self._deferred.advance(hash):
                yield 0
        except ReferenceChanged:
            self.remove(hash)
            return CheckReport(hash, CheckOutcome.LOST, before or Bitfield(), Bitfield())
        return (yield from check_blob(self, hash))

    def strike(self, hash: Hash, lost: ChunkRanges) -> None:
        """Forget chunks of a partial blob."""
        partial = self._partial(hash)
        partial.strike(lost)
        self._changed(hash, partial.bitfield)

    def demote(self, hash: Hash, bitfield: Bitfield, outboard: bytes | Path) -> None:
        """Turn a complete blob in a file into a partial one that holds `bitfield`."""
        self._prepare(hash)
        if isinstance(outboard, bytes):
            pairs = self.temp_file()
            try:
                pairs.write(outboard, 0)
                pairs.move_to(self.paths(hash).outboard, durable=self._durable)
            finally:
                pairs.discard()
        partial = PartialFiles(self._ops, self.paths(hash), hash, self._epoch, self.new_temp())
        self._partials.add(partial)
        partial.reset(bitfield)
        self._database.put(hash, Place.PARTIAL)
        self._unsealed.add(hash)
        self._changed(hash, bitfield)

    def replace_outboard(self, hash: Hash, row: Row, hashed: Hashed) -> None:
        """Replace the damaged outboard of a complete blob."""
        reference = self._database.reference(row) if row.place == Place.REFERENCE else None
        if hashed.outboard_file is not None:
            hashed.outboard_file.move_to(self.paths(hash).outboard, durable=self._durable)
        inline = hashed.built.data if hashed.outboard_file is None else None
        self._database.put(hash, row.place, row.size, outboard=inline, reference=reference)

    def stats(self) -> StoreStats:
        stats = self._database.stats(len(self.pins.live()))
        deferred = self._deferred.infos()
        return attrs.evolve(
            stats,
            complete=stats.complete + len(deferred),
            references=stats.references + len(deferred),
            reference_bytes=stats.reference_bytes + sum(info.size or 0 for info in deferred),
        )

    # --- transactions ---------------------------------------------------------------------------

    @property
    def writes(self) -> int:
        return self._database.writes

    def commit(self) -> None:
        try:
            self._database.commit()
        except StorageError:
            self._undo()
            raise
        self._leftovers.committed()
        self._deferred.committed()
        super().commit()

    def _flush(self) -> None:
        """Commit in the middle of a batch."""
        try:
            self._database.flush()
        except StorageError:
            self._undo()
            raise
        self._leftovers.committed()
        self._deferred.committed()

    def _undo(self) -> None:
        """Drop pending changes; what the files say is in force again."""
        self._leftovers.undone()
        self._deferred.undone()
        self._changes.clear()
        self._partials.close_all()

    def _doom(self, hash: Hash, row: Row | None) -> None:
        paths = self.paths(hash)
        claimed = set() if row is None else claimed_files(row, paths)
        self._leftovers.doom(hash, set(paths.all) - claimed)

    def _prepare(self, hash: Hash) -> None:
        """Cancel the pending removal of a blob's files, as they are being made again."""
        self._partials.close(hash)
        if self._leftovers.is_doomed(hash):
            self._flush()

    # --- life -----------------------------------------------------------------------------------

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self.commit()
            try:
                for hash in self._unsealed:
                    self._partial(hash).seal()
                if self._leftovers.is_tidy:
                    self._database.set_state("closed", 1)
                self.commit()
            except StorageError as error:
                # Nothing is lost: the next opening checks more, and hashes after a power failure.
                _log.warning("the store %s was not closed cleanly: %s", self.root, error)
        finally:
            self._release()

    def _release(self) -> None:
        self._deferred.close()
        self._partials.close_all()
        self._database.close()
        self._lock.release()
