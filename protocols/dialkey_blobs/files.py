"""Which files go into a collection, and under what names.

Source: blobs wire reference 6.3.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from dialkey.errors import InvalidInput
from dialkey_blobs.safe_paths import check_names

__all__ = ["collect_files"]


def collect_files(paths: Iterable[str | Path]) -> list[tuple[str, Path]]:
    """Return (name, file) of all regular files at or below paths, sorted by name.

    Raises:
        InvalidInput: a path does not exist, nothing was found, or a name occurs twice or cannot
            be received safely.
    """
    found: dict[str, Path] = {}
    for given in paths:
        path = Path(given).expanduser()
        if not path.exists():
            raise InvalidInput(f"there is no file or folder {path}")
        path = path.resolve()
        for file in _walk(path):
            name = "/".join([path.name, *file.relative_to(path).parts])
            if name in found:
                raise InvalidInput(
                    f"two files would have the name {name!r}", hint="send them separately"
                )
            found[name] = file
    if not found:
        raise InvalidInput("there is no regular file at these paths")
    entries = sorted(found.items(), key=lambda item: item[0].encode("utf-8", "surrogateescape"))
    check_names([name for name, _ in entries], portable=False)
    return entries


def _walk(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = []
    for folder, folders, files in os.walk(path):
        folders.sort()
        for file in sorted(files):
            each = Path(folder, file)
            if each.is_file() and not each.is_symlink():
                found.append(each)
    return found
