"""What can go wrong in a store, and where each error belongs in the tree of `dialkey.errors`.

::

    LocalError
    ├── StorageError
    │   ├── FileFailed               the operating system refused; carries path and errno
    │   │   ├── DiskFull             ... because there is no space
    │   │   └── ReferenceChanged     a file that is kept by reference is not what was imported
    │   ├── StoreLocked              another process, or another object here, has the store open
    │   ├── StoreDamaged             the database cannot be used
    │   └── BlobDamaged              stored bytes do not match their hash
    ├── BlobMissing                  the store does not hold the blob
    ├── BlobIncomplete               ... holds only a part of it
    ├── BlobInUse                    a tag or a temp tag protects it from deletion
    ├── TagMissing
    ├── TagExists
    └── StoreClosed                  the store was closed before or during the call
    RemoteError
    └── ProtocolViolation
        └── SizeConflict             a provider claims another size than the one that is proven
"""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from dialkey.errors import LocalError, ProtocolViolation, StorageError

if TYPE_CHECKING:
    from dialkey_blobs.hash import Hash

__all__ = [
    "BlobDamaged",
    "BlobInUse",
    "BlobIncomplete",
    "BlobMissing",
    "DiskFull",
    "FileFailed",
    "ReferenceChanged",
    "SizeConflict",
    "StoreClosed",
    "StoreDamaged",
    "StoreLocked",
    "TagExists",
    "TagMissing",
    "database_errors",
    "database_failed",
    "file_errors",
    "file_failed",
]

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_HINTS: Final = {
    errno.EACCES: "give this user access to the path, or choose another one",
    errno.EPERM: "give this user access to the path, or choose another one",
    errno.EROFS: "the file system is mounted read-only; choose another path",
    errno.EFBIG: "the file system cannot hold a file of this size",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "the system has too many open files",
    errno.EIO: "the disk reports a fault; check the system's log",
    errno.EXDEV: "`data` and `temp` of a store must be on one file system",
    errno.ENOENT: "it was moved or deleted, or never existed",
}
_SQLITE_FULL: Final = "database or disk is full"


class FileFailed(StorageError):
    """The operating system refused an operation on a file.

    Attributes:
        path: the file or directory.
        errno: the system's error number, or None.
    """

    code = "local.storage.file"

    def __init__(
        self, message: str, *, path: Path, errno: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.path = path
        self.errno = errno


class DiskFull(FileFailed):
    """There is no space left; what was stored before is intact."""

    code = "local.storage.full"


class ReferenceChanged(FileFailed):
    """A file that was imported by reference has been changed, moved or deleted since."""

    code = "local.storage.reference_changed"


class StoreLocked(StorageError):
    """The store is open elsewhere."""

    code = "local.storage.locked"


class StoreDamaged(StorageError):
    """The store's database is not a database, or one of a newer version."""

    code = "local.storage.damaged"


class BlobDamaged(StorageError):
    """Stored bytes do not match their hash; the store has recorded that.

    Attributes:
        hash: the blob.
    """

    code = "local.storage.blob_damaged"

    def __init__(self, message: str, *, hash: Hash) -> None:
        super().__init__(message, hint="fetch or import the blob again")
        self.hash = hash


class BlobMissing(LocalError):
    """The store does not hold the blob.

    Attributes:
        hash: the blob.
    """

    code = "local.blobs.missing"

    def __init__(self, hash: Hash) -> None:
        super().__init__(f"the store does not hold blob {hash.short()}")
        self.hash = hash


class BlobIncomplete(LocalError):
    """The store holds only a part of the blob.

    Attributes:
        hash: the blob.
    """

    code = "local.blobs.incomplete"

    def __init__(self, hash: Hash) -> None:
        super().__init__(
            f"the store holds only a part of blob {hash.short()}", hint="fetch the rest first"
        )
        self.hash = hash


class BlobInUse(LocalError):
    """A tag or a temp tag protects the blob from deletion.

    Attributes:
        hash: the blob.
    """

    code = "local.blobs.in_use"

    def __init__(self, hash: Hash) -> None:
        super().__init__(
            f"a tag protects blob {hash.short()}", hint="delete the tag first, or use force"
        )
        self.hash = hash


class TagMissing(LocalError):
    code = "local.blobs.tag_missing"


class TagExists(LocalError):
    code = "local.blobs.tag_exists"


class StoreClosed(LocalError):
    code = "local.blobs.store_closed"

    def __init__(self) -> None:
        super().__init__("the store is closed")


class SizeConflict(ProtocolViolation):
    """A provider claims another size than the one that its own last chunk has proven before.

    Attributes:
        hash: the blob.
        claimed: the claim in bytes.
        proven: the proven size in bytes.
    """

    code = "remote.protocol.blobs_size"

    def __init__(self, hash: Hash, *, claimed: int, proven: int) -> None:
        super().__init__(
            f"the provider claims {claimed} bytes for blob {hash.short()}, which has {proven}"
        )
        self.hash = hash
        self.claimed = claimed
        self.proven = proven


def file_failed(action: str, path: str | Path, error: OSError) -> FileFailed:
    """Return the error for a failed operation, with a hint where one is known.

    Args:
        action: a verb that fits between "cannot" and the path.
        path: what it was done to.
        error: what the system said.
    """
    path = Path(path)
    reason = error.strerror or str(error)
    message = f"cannot {action} {path}: {reason}"
    if error.errno in _FULL:
        return DiskFull(
            message,
            path=path,
            errno=error.errno,
            hint="free some space and try again; what was stored before is intact",
        )
    hint = _HINTS.get(error.errno) if error.errno is not None else None
    return FileFailed(message, path=path, errno=error.errno, hint=hint)


class file_errors:
    """Translate errors of the operating system within the block.

    A path with a NUL character makes the system's calls raise ValueError, and an offset past 2**63
    OverflowError; both are translated too.
    """

    # A class, because a generator's context costs several times as much, four times for each file.
    __slots__ = ("_action", "_path")

    def __init__(self, action: str, path: str | Path) -> None:
        self._action = action
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            return
        action, path = self._action, self._path
        if isinstance(error, OSError):
            raise file_failed(action, path, error) from error
        if isinstance(error, OverflowError):
            refused = OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            raise file_failed(action, path, refused) from error
        if isinstance(error, ValueError):
            raise FileFailed(f"cannot {action} {path!r}: {error}", path=Path(path)) from error


class database_errors:
    """Translate errors of SQLite within the block."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, sqlite3.Error):
            raise database_failed(self._path, error) from error


def database_failed(path: Path, error: sqlite3.Error) -> StorageError:
    """Return the error for a failed operation on the database at `path`."""
    message = f"cannot use the database {path}: {error}"
    if str(error) == _SQLITE_FULL:
        return DiskFull(
            message,
            path=path,
            errno=errno.ENOSPC,
            hint="free some space and try again; what was stored before is intact",
        )
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        return StoreDamaged(message, hint="restore the store from a copy, or begin a new one")
    return FileFailed(message, path=path, hint=None)
