"""Blobs that are open for reading from files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.hash import Hash
from dialkey_blobs.store.core import OpenBlob
from dialkey_blobs.store.database import Reference
from dialkey_blobs.store.errors import BlobDamaged, FileFailed, ReferenceChanged, file_errors
from dialkey_blobs.store.files import FileOps, open_regular, read_at, try_clone

__all__ = ["FileBlob"]


class FileBlob(OpenBlob):
    """A blob whose content is a file, and whose outboard is another, or bytes.

    Args:
        ops: the gateway to the file system.
        hash: the blob.
        bitfield: what is held.
        path: the content.
        outboard: bytes, or the path of a file.
        reference: for a file outside the store, what it was when it was imported.

    Raises:
        ReferenceChanged: the file outside the store is not what was imported.
        FileFailed: a file cannot be opened.
    """

    def __init__(
        self,
        ops: FileOps,
        hash: Hash,
        bitfield: Bitfield,
        path: Path,
        outboard: bytes | Path,
        reference: Reference | None = None,
    ) -> None:
        super().__init__(hash, bitfield)
        self._path = path
        self._reference = reference
        self._outboard = outboard
        self._file = self._outboard_file = -1
        try:
            self._file, _ = open_regular(ops, path)
        except FileFailed as error:
            if reference is None:
                raise
            raise ReferenceChanged(
                f"{error.message}, which is kept by reference",
                path=path,
                errno=error.errno,
                hint="put the file back, or import it from where it is now",
            ) from error
        try:
            self._check_reference()
            if isinstance(outboard, Path):
                with file_errors("open", outboard):
                    self._outboard_file = ops.open(outboard, os.O_RDONLY)
        except BaseException:
            self.close()
            raise

    @property
    def data_length(self) -> int:
        """The bytes of the file now."""
        return os.fstat(self._file).st_size

    @property
    def outboard_length(self) -> int:
        """The bytes of the outboard now."""
        if isinstance(self._outboard, bytes):
            return len(self._outboard)
        return os.fstat(self._outboard_file).st_size

    @property
    def stored_bytes(self) -> int:
        return min(self.size, 512 * os.fstat(self._file).st_blocks)

    def extent(self, offset: int) -> tuple[bool, int]:
        try:
            content = os.lseek(self._file, offset, os.SEEK_DATA)
            if content > offset:
                return False, min(content, self.size)
            return True, min(os.lseek(self._file, offset, os.SEEK_HOLE), self.size)
        except OSError as error:
            if offset < self.data_length and error.errno == errno.ENXIO:
                return False, self.size  # nothing but a hole follows
            return True, self.size  # the file system does not say

    def clone_to(self, ops: FileOps, target: int, path: Path) -> bool:
        return self.data_length == self.size and try_clone(ops, self._file, target, path)

    def is_same(self) -> bool:
        """Return whether a file outside the store is, as far as can be seen, what was imported."""
        reference = self._reference
        if reference is None:
            return True
        status = os.fstat(self._file)
        return (status.st_size, status.st_mtime_ns) == (self.size, reference.modified_ns)

    def _check_reference(self) -> None:
        if not self.is_same():
            raise ReferenceChanged(
                f"{self._path} is not what was imported: it was changed since",
                path=self._path,
                hint="import it again",
            )

    def _read_data(self, offset: int, length: int) -> bytes:
        data = self.read_raw(offset, length)
        # After reading, so that no change before it goes unnoticed.
        self._check_reference()
        if len(data) != length:
            raise BlobDamaged(
                f"{self._path} ends before the blob {self.hash.short()} does", hash=self.hash
            )
        return data

    def read_raw(self, offset: int, length: int) -> bytes:
        """Return content, held or not; less than asked for where the file ends."""
        return read_at(self._file, length, offset, self._path)

    def read_outboard(self, offset: int, length: int) -> bytes:
        if isinstance(self._outboard, bytes):
            return self._outboard[offset : offset + length]
        return read_at(self._outboard_file, length, offset, self._outboard)

    def close(self) -> None:
        for descriptor in (self._file, self._outboard_file):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._outboard_file = -1

    def __del__(self) -> None:
        self.close()
