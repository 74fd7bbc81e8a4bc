"""Files, and blobs that arrive in pieces, on their way into a store on a file system."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dialkey_blobs.hash import BlobFormat
from dialkey_blobs.hashing import Buffer
from dialkey_blobs.store import deferred
from dialkey_blobs.store.core import INLINE_BYTES
from dialkey_blobs.store.database import Reference
from dialkey_blobs.store.errors import file_errors
from dialkey_blobs.store.importing import (
    Hashed,
    TempFile,
    changed_during_import,
    hash_only,
    read_small,
    same_file,
)
from dialkey_blobs.store.pins import TempTag
from dialkey_blobs.store.values import ImportMode, Steps

if TYPE_CHECKING:
    from dialkey_blobs.store.fs_core import FsCore

__all__ = ["FsImport", "add_file"]


class FsImport:
    """A blob that arrives in pieces: in memory while it is small, then in a file."""

    def __init__(self, core: FsCore, format: BlobFormat) -> None:
        self._core = core
        self._format = format
        self._small = bytearray()
        self._file: TempFile | None = None

    def write(self, data: Buffer) -> None:
        """Append `data`."""
        if self._file is None:
            if len(self._small) + len(data) <= INLINE_BYTES:
                self._small += data
                return
            self._file = self._core.temp_file()
            self._file.write(self._small, 0)
        self._file.write(data, self._file.length)

    def finish(self) -> Steps[TempTag]:
        """Hash what came and add it to the store."""
        core, file = self._core, self._file
        if file is None:
            return core.add_many([bytes(self._small)], self._format)[0]
        hashed: Hashed | None = None
        try:
            hashed = yield from core.hash_source(file.descriptor, file.path, file.length)
            return core.add_hashed(hashed, file, None, self._format)
        finally:
            file.discard()
            if hashed is not None and hashed.outboard_file is not None:
                hashed.outboard_file.discard()

    def discard(self) -> None:
        """Forget what came. Idempotent."""
        if self._file is not None:
            self._file.discard()


def add_file(core: FsCore, path: Path, mode: ImportMode, format: BlobFormat) -> Steps[TempTag]:
    """Add a file; see `StoreCore.add_path`."""
    # The path without links, since a link may point elsewhere tomorrow.
    with file_errors("open", path):
        path = Path(os.path.realpath(path))
    source, before = core.open_source(path)
    copy: TempFile | None = None
    hashed: Hashed | None = None
    try:
        if mode is ImportMode.DEFERRED and before.st_size <= deferred.MAX_DEFERRED_BYTES:
            hash = yield from hash_only(source, path, before.st_size)
            if not same_file(before, os.fstat(source)):
                raise changed_during_import(path)
            return core.defer(hash, before.st_size, Reference(path, before.st_mtime_ns), format)
        if before.st_size <= INLINE_BYTES:
            return core.add_many([read_small(source, path, before)], format)[0]
        if mode is ImportMode.COPY:
            copy = core.temp_file()
        hashed = yield from core.hash_source(source, path, before.st_size, copy)
        if not same_file(before, os.fstat(source)):
            raise changed_during_import(path)
        reference = Reference(path, before.st_mtime_ns) if copy is None else None
        return core.add_hashed(hashed, copy, reference, format)
    finally:
        os.close(source)
        for temp in (copy, hashed.outboard_file if hashed is not None else None):
            if temp is not None:
                temp.discard()
