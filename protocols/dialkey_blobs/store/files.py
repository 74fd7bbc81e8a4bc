"""The only gateway to the file system: every call that changes a store's files goes through `FileOps`.

It is one small class so that a test can replace it with one that fails or ends the process at a chosen
call. So tests, not belief, tell what a crash between any two of these calls leaves behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dialkey_blobs.store.errors import DiskFull, FileFailed, file_errors

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from dialkey_blobs.hashing import Buffer
    from dialkey_blobs.safe_paths import SafeFile

__all__ = [
    "FileOps",
    "check_space",
    "discard",
    "is_hole",
    "make_directory",
    "open_regular",
    "read_at",
    "sync_folder",
    "try_clone",
    "write_at",
    "write_parts_at",
]

_MAX_READ: Final = 1 << 30
_MAX_PARTS: Final = 1024
"""What Linux takes in one call (IOV_MAX)."""
# Of linux/fs.h; Python 3.11 does not name it.
_FICLONE: Final = 0x40049409
_CANNOT_CLONE: Final = frozenset(
    {
        errno.EOPNOTSUPP,
        errno.ENOTTY,
        errno.EXDEV,
        errno.EINVAL,
        errno.ENOSYS,
        errno.EPERM,
        errno.ETXTBSY,
        errno.EBADF,
    }
)
_BLOCK: Final = 4096
"""The smallest hole of common file systems."""


class FileOps:
    """The system calls of a store; a test may derive a class that fails or stops the process."""

    def open(self, path: str | Path, flags: int, mode: int = 0o666) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def pwrite(self, descriptor: int, data: Buffer, offset: int) -> int:
        return os.pwrite(descriptor, data, offset)

    def pwritev(self, descriptor: int, parts: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(descriptor, parts, offset)

    def ftruncate(self, descriptor: int, length: int) -> None:
        os.ftruncate(descriptor, length)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def clone(self, source: int, target: int) -> None:
        """Let a file share the blocks of another, where the file system can."""
        fcntl.ioctl(target, _FICLONE, source)

    def take(self, file: SafeFile, source: Path, durable: bool) -> bool:
        return file.take(source, durable=durable)

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


def write_parts_at(
    ops: FileOps, descriptor: int, parts: Sequence[Buffer], offset: int, path: Path
) -> None:
    """Write all of `parts`, one after the other, beginning at `offset`.

    Raises:
        FileFailed: not all could be written; some of it may have been.
    """
    for first in range(0, len(parts), _MAX_PARTS):
        some = parts[first : first + _MAX_PARTS]
        written = 0
        if len(some) > 1:
            with file_errors("write", path):
                written = ops.pwritev(descriptor, some, offset)
        for part in some:
            # The system may stop anywhere.
            if written < len(part):
                write_at(ops, descriptor, memoryview(part)[written:], offset + written, path)
            written = max(0, written - len(part))
            offset += len(part)


def read_at(descriptor: int, length: int, offset: int, path: str | Path) -> bytes:
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


def is_hole(descriptor: int, offset: int, length: int) -> bool:
    """Return whether a place in a file is nothing but a hole, as far as the system says."""
    if length < _BLOCK:
        return False
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA) >= offset + length
    except OSError as error:
        # ENXIO: there is no data from there to the end.
        return error.errno == errno.ENXIO


def try_clone(ops: FileOps, source: int, target: int, path: Path) -> bool:
    """Let the file `target`, at `path`, share the blocks of `source`; return whether it does.

    Raises:
        FileFailed: the system refused for another reason than lack of support.
    """
    with file_errors("write", path):
        try:
            ops.clone(source, target)
        except OSError as error:
            if error.errno not in _CANNOT_CLONE:
                raise
            return False
    return True


def check_space(descriptor: int | Path, needed: int, path: Path) -> None:
    """Fail before anything is written if there is not enough space.

    Args:
        descriptor: an open file or directory, or its path.
        needed: bytes to be written to that file system.
        path: what is to be written, for the message.

    Raises:
        DiskFull: there is less space.
        FileFailed: the system does not say.
    """
    with file_errors("look at", path):
        status = os.statvfs(descriptor)
    free = status.f_bavail * status.f_frsize
    # Some file systems do not have these numbers and report zero for all.
    if needed > free and status.f_blocks:
        raise DiskFull(
            f"{path} needs {needed:,} bytes, and {free:,} are free there",
            path=path,
            errno=errno.ENOSPC,
            hint="free some space, or choose a folder on another disk",
        )


def open_regular(
    ops: FileOps, path: str | Path, *, follow_link: bool = True
) -> tuple[int, os.stat_result]:
    """Open a regular file for reading.

    Raises:
        FileFailed: it does not exist, is not a regular file, or may not be read; with `ELOOP`, it is
            a link that is not to be followed.
    """
    # O_NONBLOCK: opening a FIFO by mistake must fail below, not wait for a writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow_link else os.O_NOFOLLOW)
    with file_errors("open", path):
        descriptor = ops.open(path, flags)
        try:
            status = os.fstat(descriptor)
        except OSError:
            os.close(descriptor)
            raise
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise FileFailed(f"cannot import {path}: it is not a regular file", path=Path(path))
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
