"""Names from strangers as paths on this machine: the one place where that happens.

A received name goes through `check_names` together with all names that arrive with it, and reaches the
disk only through `SafeRoot`, which walks from directory to directory without following a symbolic link
and writes under a temporary name until the content is complete.

`names` says which names are refused, and what becomes of those that a file system cannot hold.

Source: docs/wire/blobs.md 6.4.
"""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from dialkey.errors import StorageError
from dialkey_blobs.names import Naming, split_name

__all__ = ["SafeFile", "SafeRoot", "TargetExists", "naming_of", "safe_join"]

_LONGEST_COMPONENT_BYTES: Final = 255
_TEMPORARY_PREFIX: Final = ".dialkey-"
# Outside Linux this tries to write to the directory itself, which fails as if unsupported.
_UNNAMED: Final[int] = getattr(os, "O_TMPFILE", 0)
_NO_UNNAMED_FILES: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
_NO_HARD_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class TargetExists(StorageError):
    """There is a file already, and it may not be overwritten.

    Attributes:
        path: where.
    """

    code = "local.storage.exists"

    def __init__(self, path: Path, *, hint: str | None = None) -> None:
        super().__init__(
            f"{path} already exists", hint=hint or "choose another folder, or allow overwriting"
        )
        self.path = path


def safe_join(root: Path, name: str) -> Path:
    """Return the path that `name` stands for below `root`, for display and existence checks.

    The result is always below `root`, and no directory between is a symbolic link now. To write
    there use `SafeRoot`, for which that also holds a moment later.

    Raises:
        UnsafeName: the name is refused.
        StorageError: a symbolic link is in the way.
    """
    components = split_name(name)
    path = root
    for component in components[:-1]:
        path = path / component
        if path.is_symlink():
            raise StorageError(
                f"{path} is a symbolic link, which is not followed",
                hint="remove it, or choose another directory",
            )
    return path / components[-1]


def naming_of(folder: Path) -> Naming:
    """Try out which names the file system of a folder can hold.

    The folder need not exist yet; its nearest existing parent is tried. A file system that cannot be
    written to is assumed to hold what this system usually holds: writing will say what is wrong.
    """
    usual = Naming(is_windows=os.name == "nt", ignores_case=os.name == "nt")
    folder = folder.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY_PREFIX, dir=folder) as place:
            is_windows = usual.is_windows or not (
                _can_hold(place, "a:b?") and _can_hold(place, "a.") and _can_hold(place, "a\\b")
            )
            return Naming(
                is_windows=is_windows,
                ignores_case=_can_make(place, "Probe") and _is_there(place, "probe"),
                ignores_form=_can_make(place, "\u00e9") and _is_there(place, "e\u0301"),
                max_component_bytes=_longest_component(place),
            )
    except OSError:
        return usual


def _can_hold(folder: str, name: str) -> bool:
    return _can_make(folder, name) and name in os.listdir(folder)


def _can_make(folder: str, name: str) -> bool:
    try:
        with open(os.path.join(folder, name), "xb"):
            return True
    except OSError:
        return False


def _is_there(folder: str, name: str) -> bool:
    return os.path.lexists(os.path.join(folder, name))


def _longest_component(folder: str) -> int:
    try:
        return min(os.pathconf(folder, "PC_NAME_MAX"), _LONGEST_COMPONENT_BYTES)
    except (AttributeError, OSError, ValueError):
        return _LONGEST_COMPONENT_BYTES


class SafeRoot:
    """A directory below which received files are written, and nowhere else.

    Directories are entered one by one by descriptor and symbolic links are never followed, so that
    nobody can redirect a file by swapping a directory in between. Use it as a context manager. All
    methods block; they are for a thread.

    Args:
        path: the directory, which is created if it is missing. It may itself be reached through
            links; that is the caller's choice.

    Raises:
        StorageError: it cannot be created or opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> SafeRoot:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory; files that were created from it stay usable. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def create(self, name: str, *, overwrite: bool = False) -> SafeFile:
        """Start a file, and create the directories that its name needs.

        Nothing has the name until `SafeFile.commit`.

        Args:
            name: a name that the file system can hold; see `names.place`.
            overwrite: whether a file that is there may be replaced.

        Raises:
            UnsafeName: the name is refused.
            TargetExists: something is there already and may not be overwritten.
            StorageError: a link or a file is in the way, or the disk refuses.
        """
        *directories, last = split_name(name)
        path = self.path.joinpath(*directories, last)
        with _storage_errors(path):
            directory = self._enter(directories)
            try:
                if not overwrite and _exists(last, directory):
                    raise TargetExists(path)
                return SafeFile(path, last, directory, overwrite)
            except BaseException:
                os.close(directory)
                raise

    def _enter(self, directories: Sequence[str]) -> int:
        directory = os.dup(self._fd)
        path = self.path
        for component in directories:
            path = path / component
            try:
                below = _enter_one(component, directory)
            except NotADirectoryError:
                raise StorageError(
                    f"{path} is a file or a symbolic link where a directory is needed",
                    hint="remove it, or choose another directory",
                ) from None
            finally:
                os.close(directory)
            directory = below
        return directory


def _enter_one(component: str, directory: int) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(component, flags, dir_fd=directory)
    except FileNotFoundError:
        pass
    try:
        os.mkdir(component, dir_fd=directory)
    except FileExistsError:
        pass  # somebody else was faster; the next call checks what it is
    return os.open(component, flags, dir_fd=directory)


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


class SafeFile:
    """A file that gets its name when it is complete.

    Call `write`, then `commit`; leaving the context without that discards it. If the file system can,
    the file has no name at all before, so that not even a crash leaves anything behind.

    Attributes:
        path: where it will be.
    """

    def __init__(self, path: Path, name: str, directory: int, overwrite: bool) -> None:
        self.path = path
        self._name = name
        self._directory = directory
        self._overwrite = overwrite
        self._temporary: str | None = None
        self._fd = self._open()

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CLOEXEC
        try:
            unnamed = os.open(".", flags | _UNNAMED, 0o666, dir_fd=self._directory)
        except OSError as error:
            if error.errno not in _NO_UNNAMED_FILES:
                raise
        else:
            if os.path.exists(f"/proc/self/fd/{unnamed}"):
                return unnamed
            os.close(unnamed)
        self._temporary = _temporary_name()
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        return os.open(self._temporary, flags, 0o666, dir_fd=self._directory)

    def __enter__(self) -> SafeFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()

    def fileno(self) -> int:
        """Return the descriptor, for calls that copy within the kernel."""
        return self._fd

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`, all of it, unbuffered.

        Raises:
            StorageError: the disk refuses.
        """
        view = memoryview(data).cast("B")
        with _storage_errors(self.path):
            while view:
                view = view[os.write(self._fd, view) :]

    def commit(self, *, durable: bool = True) -> None:
        """Give the file its name.

        Args:
            durable: wait until the disk has everything. Without it a power failure, but no other
                crash, may leave an incomplete file under the name.

        Raises:
            TargetExists: something is there by now and may not be overwritten.
            StorageError: the disk refuses.
        """
        with _storage_errors(self.path):
            if durable:
                os.fsync(self._fd)
            if self._temporary is None and self._overwrite:
                temporary = _temporary_name()
                self._link(f"/proc/self/fd/{self._fd}", temporary)
                self._temporary = temporary
            if self._overwrite:
                self._rename()
            else:
                self._link_to_name()
            if durable:
                os.fsync(self._directory)
        self.discard()

    def take(self, source: Path, *, durable: bool = True) -> bool:
        """Give the name to a file that already exists, instead of to what was written here.

        The file then has two names until the caller removes the other, so that no crash loses it.

        Args:
            source: a regular file of ours.
            durable: wait until the disk has everything.

        Returns:
            Whether that was possible; if not, nothing has changed. It is not possible across file
            systems, or on one without hard links.

        Raises:
            TargetExists: something is there and may not be overwritten.
            StorageError: the disk refuses.
        """
        with _storage_errors(self.path):
            try:
                if durable:
                    _sync(source)
                self._take(source)
            except FileExistsError:
                raise TargetExists(self.path) from None
            except OSError as error:
                if error.errno not in (errno.EXDEV, *_NO_HARD_LINKS):
                    raise
                return False
            if durable:
                os.fsync(self._directory)
        self.discard()
        return True

    def _take(self, source: Path) -> None:
        directory = self._directory
        if not self._overwrite:
            os.link(source, self._name, dst_dir_fd=directory, follow_symlinks=False)
            return
        temporary = _temporary_name()
        os.link(source, temporary, dst_dir_fd=directory, follow_symlinks=False)
        try:
            os.rename(temporary, self._name, src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            # Renaming does nothing if both are names of one file.
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)

    def _link_to_name(self) -> None:
        source = self._temporary or f"/proc/self/fd/{self._fd}"
        try:
            self._link(source, self._name)
        except FileExistsError:
            raise TargetExists(self.path) from None
        except OSError as error:
            # FAT and some network file systems have no hard links. What is left there is a look
            # and a rename, between which another local program could create the file.
            if self._temporary is None or error.errno not in _NO_HARD_LINKS:
                raise
            if _exists(self._name, self._directory):
                raise TargetExists(self.path) from None
            self._rename()

    def _link(self, source: str, target: str) -> None:
        os.link(
            source,
            target,
            src_dir_fd=self._directory,
            dst_dir_fd=self._directory,
            follow_symlinks=source.startswith("/proc/"),
        )

    def _rename(self) -> None:
        assert self._temporary is not None
        os.rename(
            self._temporary,
            self._name,
            src_dir_fd=self._directory,
            dst_dir_fd=self._directory,
        )
        self._temporary = None

    def discard(self) -> None:
        """Close the file, and remove it if it does not have its name yet. Idempotent."""
        if self._directory < 0:
            return
        os.close(self._fd)
        try:
            if self._temporary is not None:
                os.unlink(self._temporary, dir_fd=self._directory)
        except FileNotFoundError:
            pass  # somebody tidied up
        finally:
            os.close(self._directory)
            self._directory = -1


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary_name() -> str:
    return f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}.part"


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        raise StorageError(f"{path}: {error.strerror}", hint=hint) from error
