"""Names from strangers as paths on this machine: the one place where that happens.

A received name goes through `check_names` with all names that it comes with, and reaches the disk
only through `SafeRoot`, which walks from directory to directory without following a symbolic link
and writes under a temporary name until the content is complete.

What is refused, always: an empty name or component, `.`, `..`, absolute names, backslashes, control
and direction-changing characters, text that is not UTF-8, components above 255 bytes, names above
4096 bytes or 64 components, a name twice (also in another normalisation of Unicode), a name that is a
directory of another. Unless the caller gives up *portability*, also what is a danger or a lie on
other systems: `:` (drive letters, alternate streams), reserved device names, a trailing dot or space,
characters that Windows forbids, and names that differ only in case.

Source: blobs wire reference 6.4.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Final

from dialkey.errors import ProtocolViolation, StorageError
from dialkey.limits import MAX_COLLECTION_NAME_BYTES, MAX_COLLECTION_NAME_COMPONENTS

__all__ = ["SafeFile", "SafeRoot", "TargetExists", "UnsafeName", "check_names", "safe_join"]

_MAX_COMPONENT_BYTES: Final = 255
_DIRECTION_CHARACTERS: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_CONTROL_CATEGORIES: Final = frozenset({"Cc", "Zl", "Zp", "Cs"})
_WINDOWS_CHARACTERS: Final = frozenset(':<>"|?*')
# The digits are also reserved as superscripts; a device name with an extension is still a device.
_DEVICE: Final = re.compile(
    r"(?:con|prn|aux|nul|clock\$|conin\$|conout\$|(?:com|lpt)[0-9\u00b9\u00b2\u00b3])[ ]*(?:\..*)?",
    re.IGNORECASE,
)
_TEMPORARY_PREFIX: Final = ".dialkey-"
# Elsewhere than on Linux this tries to write to the directory itself, which fails as if unsupported.
_UNNAMED: Final[int] = getattr(os, "O_TMPFILE", 0)
_NO_UNNAMED_FILES: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
_NO_HARD_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class UnsafeName(ProtocolViolation):
    """A received name must not become a path.

    Attributes:
        name: the name.
    """

    code = "remote.protocol.unsafe_name"

    def __init__(self, name: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"the name {_show(name)} is refused: {reason}", hint=hint)
        self.name = name


def _show(name: str) -> str:
    # Escaped, since a hostile name may hold what moves a terminal's cursor.
    return ascii(name if len(name) <= 80 else name[:80] + "…")


class TargetExists(StorageError):
    """There is a file already, and it may not be overwritten.

    Attributes:
        path: where.
    """

    code = "local.storage.exists"

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} exists already", hint="choose another directory, or allow overwriting"
        )
        self.path = path


def _split(name: str, portable: bool) -> tuple[str, ...]:
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        raise UnsafeName(name, "it is not valid Unicode") from None
    if not name:
        raise UnsafeName(name, "it is empty")
    if length > MAX_COLLECTION_NAME_BYTES:
        raise UnsafeName(name, f"it is longer than {MAX_COLLECTION_NAME_BYTES} bytes")
    if name.startswith("/"):
        raise UnsafeName(name, "it is absolute")
    components = tuple(name.split("/"))
    if len(components) > MAX_COLLECTION_NAME_COMPONENTS:
        raise UnsafeName(name, f"it has more than {MAX_COLLECTION_NAME_COMPONENTS} components")
    for component in components:
        reason = _component_fault(component, portable)
        if reason is not None:
            raise UnsafeName(name, reason)
    return components


def _component_fault(component: str, portable: bool) -> str | None:
    if not component:
        return "it has an empty component"
    if component in (".", ".."):
        return f"{component} is no name of a file"
    if "\\" in component:
        return "it has a backslash, which separates directories on some systems"
    if not component.isprintable() and any(
        unicodedata.category(character) in _CONTROL_CATEGORIES or character in _DIRECTION_CHARACTERS
        for character in component
    ):
        return "it has control characters"
    if len(component.encode("utf-8")) > _MAX_COMPONENT_BYTES:
        return f"a component is longer than {_MAX_COMPONENT_BYTES} bytes"
    return _portability_fault(component) if portable else None


def _portability_fault(component: str) -> str | None:
    found = _WINDOWS_CHARACTERS.intersection(component)
    if found:
        return f"the character {min(found)} means something else on some systems"
    if component[-1] in ". ":
        return "a component ends in a dot or space, which some systems drop"
    if _DEVICE.fullmatch(component):
        return f"{_show(component)} is a device on some systems"
    return None


def _key(component: str, portable: bool) -> str:
    normal = unicodedata.normalize("NFC", component)
    return unicodedata.normalize("NFC", normal.casefold()) if portable else normal


def check_names(names: Sequence[str], *, portable: bool = True) -> None:
    """Check names that are to become files below one directory.

    Takes memory of the order of the names themselves, and time of that by the logarithm of their
    number, whatever they are.

    Args:
        names: relative paths with `/` between components.
        portable: also refuse what is unsafe or ambiguous on other systems than this.

    Raises:
        UnsafeName: a name is refused, by itself or beside another one.
    """
    keys = []
    for number, name in enumerate(names):
        components = _split(name, portable)
        # Zero bytes were refused, and sort before all else: so a directory is directly followed by
        # what is in it, and whatever clashes stands side by side.
        keys.append(("\0".join(_key(component, portable) for component in components), number))
    keys.sort()
    for (left_key, left), (right_key, right) in pairwise(keys):
        _check_neighbours(names[left], left_key, names[right], right_key)


def _check_neighbours(left: str, left_key: str, right: str, right_key: str) -> None:
    if left_key == right_key:
        what = "it is there twice" if left == right else f"it clashes with {_show(left)}"
        raise UnsafeName(right, what, hint="the names of a collection must be distinct")
    if right_key.startswith(left_key + "\0"):
        raise UnsafeName(left, f"it is a file, and a directory of {_show(right)}")
    left_parts, right_parts = left.split("/"), right.split("/")
    for left_part, right_part, left_folded, right_folded in zip(
        left_parts, right_parts, left_key.split("\0"), right_key.split("\0"), strict=False
    ):
        if left_folded != right_folded:
            return
        if left_part != right_part:
            raise UnsafeName(
                right,
                f"its directory {_show(right_part)} clashes with {_show(left_part)}",
                hint="they would be one directory here or on another system",
            )


def safe_join(root: Path, name: str, *, portable: bool = True) -> Path:
    """Return the path that `name` stands for below `root`, for display and existence checks.

    The result is always below `root`, and no directory between is a symbolic link now. To write
    there use `SafeRoot`, for which that also holds a moment later.

    Raises:
        UnsafeName: the name is refused.
        StorageError: a symbolic link is in the way.
    """
    components = _split(name, portable)
    path = root
    for component in components[:-1]:
        path = path / component
        if path.is_symlink():
            raise StorageError(
                f"{path} is a symbolic link, which is not followed",
                hint="remove it, or choose another directory",
            )
    return path / components[-1]


class SafeRoot:
    """A directory below which received files are written, and nowhere else.

    Directories are entered one by one by descriptor and symbolic links are never followed, so that
    nobody can redirect a file by swapping a directory in between. Use it as a context manager. All
    methods block; they are for a thread.

    Args:
        path: the directory, which is created if it is missing. It may itself be reached through
            links; that is the caller's choice.
        portable: as for `check_names`.

    Raises:
        StorageError: it cannot be created or opened.
    """

    def __init__(self, path: Path, *, portable: bool = True) -> None:
        self.path = path
        self._portable = portable
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
        """Begin a file, and create the directories that its name needs.

        Nothing stands under the name until `SafeFile.commit`.

        Args:
            name: as for `check_names`.
            overwrite: whether a file that is there may be replaced.

        Raises:
            UnsafeName: the name is refused.
            TargetExists: something is there already and may not be overwritten.
            StorageError: a link or a file is in the way, or the disk refuses.
        """
        *directories, last = _split(name, self._portable)
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
        pass  # somebody else was faster; whatever it is, the next call looks at it
    return os.open(component, flags, dir_fd=directory)


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


class SafeFile:
    """A file that gets its name when it is complete.

    `write`, then `commit`; leaving the context without that discards it. Where the file system can,
    the file has no name at all before, so that not even a crash leaves anything behind.

    Attributes:
        path: where it will stand.
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
            TargetExists: something stands there by now and may not be overwritten.
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
        """Close the file, and remove it if it has not got its name. Idempotent."""
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


def _temporary_name() -> str:
    return f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}.part"


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        raise StorageError(f"{path}: {error.strerror}", hint=hint) from error
