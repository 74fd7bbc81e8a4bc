"""Which files the paths that somebody wants to send stand for.

Source: docs/wire/blobs.md 6.3.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import attrs

from dialkey.errors import InvalidInput, StorageError
from dialkey_blobs.names import check_own_names, show_name

__all__ = ["Collected", "LeftOut", "collect", "collect_files"]

OWN_STATE: Final = ".dialkey-"
"""The names of our own unfinished downloads and temporary files start with this."""

_KINDS: Final = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@attrs.frozen
class LeftOut:
    """Something below a folder that is not sent, because collections cannot hold it.

    Attributes:
        path: where it is.
        kind: a symbolic link, a special file (pipe, socket, device), an empty folder, or the state of
            one of our own downloads.
    """

    path: Path
    kind: Literal["link", "special file", "empty folder", "download state"]


@attrs.frozen
class Collected:
    """What is to be sent.

    Attributes:
        files: (name, path), sorted by name.
        left_out: what is not sent, sorted by path.
    """

    files: tuple[tuple[str, Path], ...]
    left_out: tuple[LeftOut, ...]


def collect_files(paths: Iterable[str | Path]) -> list[tuple[str, Path]]:
    """Return (name, path) of what `collect` finds."""
    return list(collect(paths).files)


def collect(paths: Iterable[str | Path]) -> Collected:
    """Find all regular files at or below paths.

    Names start with the last component of the path that was given. A link that is given itself is
    followed, under its own name. Links below a folder are not followed.

    Raises:
        InvalidInput: a path does not exist or is something special, nothing was found, or a name
            occurs twice.
        UnsendableName: a name would be refused by every receiver.
        StorageError: a folder cannot be read.
    """
    found: dict[str, Path] = {}
    left_out: list[LeftOut] = []
    for given in paths:
        path = Path(given)
        name = _own_name(path)
        files = [(name, path)]
        if _is_folder(path):
            files, without = _below(path, name)
            left_out += without
        for file_name, file in files:
            if file_name in found and not os.path.samefile(found[file_name], file):
                raise InvalidInput(
                    f"two files would have the name {show_name(file_name)}",
                    hint="send them separately",
                )
            found[file_name] = file
    if not found:
        raise InvalidInput("there are no files at these paths", hint="empty folders are not sent")
    check_own_names(list(found))
    return Collected(
        tuple(sorted(found.items(), key=lambda item: item[0].encode())),
        tuple(sorted(left_out, key=lambda each: each.path)),
    )


def _own_name(path: Path) -> str:
    name = path.name
    if name in ("", ".."):
        name = path.resolve().name
    if not name:
        raise InvalidInput(
            "a whole file system is not sent at once", hint="name files and folders in it"
        )
    return name


def _is_folder(path: Path) -> bool:
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidInput(f"there is no file or folder {show_name(str(path))}") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return stat.S_ISDIR(mode)
    kind = next((words for test, words in _KINDS if test(mode)), "something special")
    raise InvalidInput(
        f"{show_name(str(path))} is {kind}, neither a file nor a folder",
        hint="to send what comes out of it, pipe it into 'dialkey send -'",
    )


def _below(top: Path, top_name: str) -> tuple[list[tuple[str, Path]], list[LeftOut]]:
    files: list[tuple[str, Path]] = []
    left_out: list[LeftOut] = []
    folders = [(top_name, top)]
    while folders:
        name, folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                inside = list(entries)
        except OSError as error:
            raise _unreadable(folder, error) from error
        if not inside:
            left_out.append(LeftOut(folder, "empty folder"))
        for entry in inside:
            path = folder / entry.name
            if entry.is_symlink():
                left_out.append(LeftOut(path, "link"))
            elif entry.name.startswith(OWN_STATE):
                left_out.append(LeftOut(path, "download state"))
            elif entry.is_dir(follow_symlinks=False):
                folders.append((f"{name}/{entry.name}", path))
            elif entry.is_file(follow_symlinks=False):
                files.append((f"{name}/{entry.name}", path))
            else:
                left_out.append(LeftOut(path, "special file"))
    return files, left_out


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{show_name(str(path))} cannot be read: {error.strerror}",
        hint="make it readable, or leave it out",
    )
