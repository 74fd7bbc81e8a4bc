"""Reading and writing key files: the identity room's only contact with a disk.

A key file is a regular file of mode 0600. It is written under a temporary name created with O_EXCL,
synced, and only then given its name, so no reader ever meets half a key or a moment of laxer mode.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from dialkey.errors import InvalidKey, KeyFileExists, KeyFileMissing, StorageError

__all__ = ["make_parent", "read", "write"]

_MAX_FILE_BYTES: Final = 1024
_NO_HARD_LINKS: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS})
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def _failed(verb: str, path: Path, error: OSError | ValueError) -> StorageError:
    # The operating system's calls raise ValueError for a path with a NUL character.
    reason = error.strerror if isinstance(error, OSError) else None
    return StorageError(f"cannot {verb} the key file {path}: {reason or error}")


def read(path: str | Path) -> str:
    """Return the text of a key file without the white space around it.

    Raises:
        KeyFileMissing: there is no such file.
        InvalidKey: others may read it, or its size rules out a key.
        StorageError: it is not a regular file or cannot be read.
    """
    path = Path(path)
    try:
        # O_NONBLOCK: opening a FIFO by mistake must fail below, not wait for a writer.
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise KeyFileMissing(f"no such key file: {path}") from None
    except (OSError, ValueError) as error:
        raise _failed("open", path, error) from error
    try:
        _check_file(path, os.fstat(descriptor))
        data = os.read(descriptor, _MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _failed("read", path, error) from error
    finally:
        os.close(descriptor)
    if len(data) > _MAX_FILE_BYTES:
        raise InvalidKey(f"the file {path} is too large to be a key file")
    try:
        return data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise InvalidKey(
            f"the file {path} does not hold a secret key",
            hint="a key file holds one line of 64 hex digits",
        ) from None


def _check_file(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StorageError(f"the key file {path} is not a regular file")
    if os.name == "posix" and status.st_mode & _OTHERS:
        raise InvalidKey(
            f"the key file {path} can be read or changed by others "
            f"(mode {stat.S_IMODE(status.st_mode):04o})",
            hint=f"run: chmod 600 {path}; if others have used this machine, make a new key",
        )


def make_parent(path: str | Path) -> None:
    """Create the folder of `path` where it is missing, readable by its owner alone.

    Raises:
        StorageError: it cannot be created.
    """
    parent = Path(path).parent
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create the folder {parent}: {error.strerror}") from error


def write(path: str | Path, text: str, *, overwrite: bool) -> None:
    """Write `text` to a new file of mode 0600, all or nothing.

    Raises:
        KeyFileExists: there is such a file, and `overwrite` is false.
        StorageError: it cannot be written.
    """
    path = Path(path)
    if not path.name:
        raise StorageError(f"{path} is a folder, not a place for a key file")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _create(temporary, text)
        try:
            if overwrite:
                os.replace(temporary, path)
            else:
                _publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except FileExistsError:
        raise KeyFileExists(
            f"the key file {path} already exists", hint="it was not changed"
        ) from None
    except (OSError, ValueError) as error:
        raise _failed("write", path, error) from error


def _create(path: Path, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name unless the name is taken."""
    if os.name == "nt":
        # There, rename itself refuses an existing target.
        os.rename(temporary, path)
        return
    try:
        # rename would replace a file that appeared meanwhile; link fails instead.
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # The name is reserved first, so that two processes still cannot both win.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
