"""The only door to the file system: every call that changes a store's files goes through `FileOps`.

It is one small class so that a test can put another in its place, which fails or ends the process
at a chosen call. What a crash between any two of these calls leaves behind is then a matter of
tests, not of belief.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dialkey_blobs.store.errors import FileFailed, file_errors

if TYPE_CHECKING:
    import sqlite3

    from dialkey_blobs.hashing import Buffer

__all__ = [
    "FileOps",
    "discard",
    "make_directory",
    "open_regular",
    "read_at",
    "sync_folder",
    "write_at",
]

_MAX_READ: Final = 1 << 30


class FileOps:
    """The system calls of a store; a test may derive a class that fails or stops the process."""

    def open(self, path: str | Path, flags: int, mode: int = 0o666) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def pwrite(self, descriptor: int, data: Buffer, offset: int) -> int:
        return os.pwrite(descriptor, data, offset)

    def ftruncate(self, descriptor: int, length: int) -> None:
        os.ftruncate(descriptor, length)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def replace(self, source: str | Path, target: str | Path) -> None:
        os.replace(source, target)

    def unlink(self, path: str | Path) -> None:
        os.unlink(path)

    def mkdir(self, path: str | Path) -> None:
        os.mkdir(path)

    def commit(self, connection: sqlite3.Connection) -> None:
        connection.execute("COMMIT")


def write_at(ops: FileOps, descriptor: int, data: Buffer, offset: int, path: Path) -> None:
    """Write all of `data` at `offset`.

    Raises:
        FileFailed: not all could be written; some of it may have been.
    """
    with file_errors("write", path):
        written = ops.pwrite(descriptor, data, offset)
        if written == len(data):
            return
        view = memoryview(data)
        while written < len(view):
            count = ops.pwrite(descriptor, view[written:], offset + written)
            if count == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written += count


def read_at(descriptor: int, length: int, offset: int, path: Path) -> bytes:
    """Read up to `length` bytes at `offset`; fewer only where the file ends.

    Raises:
        FileFailed: the system refused.
    """
    with file_errors("read", path):
        data = os.pread(descriptor, min(length, _MAX_READ), offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        got = len(data)
        while got < length:
            data = os.pread(descriptor, min(length - got, _MAX_READ), offset + got)
            if not data:
                break
            parts.append(data)
            got += len(data)
        return b"".join(parts)


def open_regular(ops: FileOps, path: Path) -> tuple[int, os.stat_result]:
    """Open a regular file for reading.

    Raises:
        FileFailed: it does not exist, is no regular file, or may not be read.
    """
    # O_NONBLOCK: opening a FIFO by mistake must fail below, not wait for a writer.
    with file_errors("open", path):
        descriptor = ops.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
        except OSError:
            os.close(descriptor)
            raise
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise FileFailed(f"cannot import {path}: it is no regular file", path=path)
    return descriptor, status


def make_directory(ops: FileOps, path: Path) -> None:
    """Make a directory and its parents, where they do not exist yet.

    Raises:
        FileFailed: the system refused.
    """
    with file_errors("create the directory", path):
        missing = []
        while not path.is_dir():
            missing.append(path)
            if path.parent == path:
                break
            path = path.parent
        for directory in reversed(missing):
            try:
                ops.mkdir(directory)
            except FileExistsError:
                if not directory.is_dir():
                    raise


def discard(ops: FileOps, path: Path) -> None:
    """Remove a file if it is there.

    Raises:
        FileFailed: the system refused.
    """
    with file_errors("remove", path):
        try:
            ops.unlink(path)
        except FileNotFoundError:
            pass


def sync_folder(ops: FileOps, folder: Path) -> None:
    """Wait until the names in a directory are on the disk.

    Raises:
        FileFailed: the system refused.
    """
    with file_errors("sync", folder):
        descriptor = ops.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            ops.fsync(descriptor)
        finally:
            os.close(descriptor)
