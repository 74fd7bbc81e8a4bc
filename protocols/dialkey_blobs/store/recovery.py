"""Opening a store: the lock, the running system's id, and tidying up after a crash."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dialkey_blobs.hash import Hash
from dialkey_blobs.store.database import Database, Place
from dialkey_blobs.store.errors import StoreLocked, file_errors
from dialkey_blobs.store.files import FileOps, discard
from dialkey_blobs.store.partial import BlobPaths
from dialkey_blobs.tree import GROUP_BYTES

if TYPE_CHECKING:
    from dialkey_blobs.store.database import Row

__all__ = ["StoreLock", "claimed_files", "empty_temp", "running_system", "sweep_rubbish"]

_log: Final = logging.getLogger("dialkey.blobs.store")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_SUFFIXES: Final = frozenset({".data", ".obao4", ".bitfield"})


class StoreLock:
    """Keeps others out of a store while it exists; a killed process does not leave one behind.

    Raises:
        StoreLocked: another process, or another object in this one, has the store open.
        FileFailed: the file cannot be created or locked.
    """

    def __init__(self, ops: FileOps, path: Path) -> None:
        with file_errors("open", path):
            self._file = ops.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        try:
            with file_errors("lock", path):
                self._lock(path)
        except BaseException:
            self.release()
            raise

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            holder = os.pread(self._file, 32, 0).decode("ascii", "replace").strip()
            who = "this process" if holder == str(os.getpid()) else f"process {holder or '?'}"
            raise StoreLocked(
                f"the store {path.parent} is open already, in {who}",
                hint="close it there, or use another directory",
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Let others in. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def running_system() -> bytes:
    """Return an id that is new whenever the machine starts; empty if the system has none."""
    try:
        return _BOOT_ID.read_bytes().strip()[:64]
    except OSError:
        return b""


def claimed_files(row: Row, paths: BlobPaths) -> set[Path]:
    """Return which of a blob's files its entry refers to."""
    if row.place == Place.PARTIAL:
        return set(paths.all)
    claimed = {paths.data} if row.place == Place.FILE else set()
    if not row.outboard_inline and (row.size or 0) > GROUP_BYTES:
        claimed.add(paths.outboard)
    return claimed


def empty_temp(ops: FileOps, folder: Path) -> None:
    """Remove what imports of an earlier process left behind."""
    with file_errors("list", folder):
        names = os.listdir(folder)
    for name in names:
        discard(ops, folder / name)


def sweep_rubbish(ops: FileOps, root: Path, database: Database) -> list[Hash]:
    """Remove files that no entry refers to.

    Returns:
        Complete blobs whose file is missing or too short.

    Raises:
        StorageError: a directory cannot be read, or a file not be removed.
    """
    short: list[Hash] = []
    removed = 0
    for number in range(256):
        folder = root / "data" / f"{number:02x}"
        entries = database.entries(number)
        found: dict[Path, int] = {}
        if folder.is_dir():
            with file_errors("list", folder), os.scandir(folder) as listing:
                found = {Path(entry.path): entry.stat().st_size for entry in listing}
        claimed: set[Path] = set()
        for hash, row in entries:
            paths = BlobPaths.of(root, hash)
            claimed |= claimed_files(row, paths)
            if row.place == Place.FILE and found.get(paths.data, -1) < (row.size or 0):
                short.append(hash)
        for path in found.keys() - claimed:
            if path.suffix in _SUFFIXES:
                discard(ops, path)
                removed += 1
    if removed or short:
        _log.info(
            "tidied up %s after a crash: %d files removed, %d blobs damaged",
            root,
            removed,
            len(short),
        )
    return short
