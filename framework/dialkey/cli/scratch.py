"""Temporary folders that do not stay, even when the process that made them was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dialkey.errors import LocalError

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed, which tells the same
    fcntl = None  # type: ignore[assignment]

__all__ = ["scratch_folder"]

PREFIX: Final = "dialkey-"
LOCK_NAME: Final = ".dialkey-in-use"

UNLOCKED_S: Final = 3600.0
"""An empty folder without a lock is one whose maker died between two system calls, or has just begun."""


@contextlib.contextmanager
def scratch_folder(purpose: str, *, room_bytes: int = 0) -> Iterator[Path]:
    """Make a folder that only this user can read, and remove it at the end.

    Folders of earlier processes that had no chance to remove theirs are removed first: each process
    holds a lock in its folder for as long as it lives. The folder is made where temporary files
    belong (``TMPDIR``, ``/tmp``), or else where there is a place for it: ``/var/tmp``, this folder.

    Args:
        purpose: part of the name, for people who look.
        room_bytes: what will be written; a place with less free space is passed over.

    Raises:
        LocalError: there is no place for it.
    """
    folder, lock = _make(purpose, room_bytes)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _places() -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield Path(tempfile.gettempdir())
    yield Path("/var/tmp")
    with contextlib.suppress(FileNotFoundError):
        yield Path.cwd()


def _make(purpose: str, room_bytes: int) -> tuple[Path, int | None]:
    complaints: list[str] = []
    for place in dict.fromkeys(_places()):
        try:
            _remove_stale(place)
            free_bytes = shutil.disk_usage(place).free
            if free_bytes < room_bytes:
                complaints.append(
                    f"{place}: {free_bytes >> 20} MiB free, {room_bytes >> 20} needed"
                )
                continue
            folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-", dir=place))
        except OSError as error:
            complaints.append(f"{place}: {error.strerror}")
            continue
        try:
            return folder, _lock(folder)
        except OSError as error:
            complaints.append(f"{place}: {error.strerror}")
            shutil.rmtree(folder, ignore_errors=True)
    raise LocalError(
        f"there is no place for temporary files ({'; '.join(complaints)})",
        hint="set TMPDIR to a folder with room that you may write to",
    )


def _lock(folder: Path) -> int | None:
    if fcntl is None:
        return None
    early = folder / f"{LOCK_NAME}.new"
    lock = os.open(early, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        # Some bytes, because a full disk often still takes an empty file.
        os.write(lock, f"{os.getpid()}\n".encode())
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Under its final name it is never seen without the lock.
        early.rename(folder / LOCK_NAME)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _remove_stale(place: Path) -> None:
    if fcntl is None:
        return
    with os.scandir(place) as entries:
        found = [Path(entry.path) for entry in entries if entry.name.startswith(PREFIX)]
    for folder in found:
        # Another process may be doing the same.
        with contextlib.suppress(OSError):
            state = folder.lstat()
            if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
                continue
            if _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)
            elif state.st_mtime < time.time() - UNLOCKED_S and not (folder / LOCK_NAME).exists():
                folder.rmdir()


def _is_abandoned(folder: Path) -> bool:
    try:
        lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
