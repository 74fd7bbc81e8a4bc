"""Where exported files go."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dialkey_blobs.hash import Hash
from dialkey_blobs.safe_paths import SafeFile, TargetExists
from dialkey_blobs.store.core import StoreCore
from dialkey_blobs.store.errors import BlobIncomplete, BlobMissing, FileFailed, file_errors
from dialkey_blobs.store.files import FileOps, open_regular
from dialkey_blobs.store.importing import hash_only
from dialkey_blobs.store.values import BlobState, Steps

__all__ = ["already_there", "begin_export", "export_path"]


def begin_export(core: StoreCore, hash: Hash, target: Path, *, overwrite: bool) -> SafeFile:
    """Start a file at a path that the user of this machine chose.

    Directories that are missing are created. Names from strangers go through `SafeRoot` instead.

    Raises:
        BlobMissing, BlobIncomplete: there is nothing to export; no directory is created.
        TargetExists: something is there and may not be overwritten.
        StorageError: the system refused.
    """
    state = core.status(hash).state
    if state is BlobState.MISSING:
        raise BlobMissing(hash)
    if state is BlobState.PARTIAL:
        raise BlobIncomplete(hash)
    with file_errors("create", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not overwrite and os.path.lexists(target):
                raise TargetExists(target)
            return SafeFile(target, target.name, directory, overwrite)
        except BaseException:
            os.close(directory)
            raise


def export_path(
    core: StoreCore, hash: Hash, target: Path, *, overwrite: bool, durable: bool, move: bool = False
) -> Steps[int]:
    """Write a complete blob to a path; see `begin_export` and `StoreCore.export`."""
    file = begin_export(core, hash, target, overwrite=overwrite)
    return (yield from core.export(hash, file, durable=durable, move=move))


def already_there(files: Sequence[tuple[Hash, int | None, Path]]) -> Steps[set[Path]]:
    """Return the paths at which the right content already is.

    An interrupted export has left it there, or the user has it from elsewhere.

    Args:
        files: hash, size if known, and path of each.
    """
    found: set[Path] = set()
    ops = FileOps()
    for hash, size, path in files:
        if not os.path.lexists(path) or path.is_symlink():
            continue
        try:
            source, status = open_regular(ops, path)
        except FileFailed:
            continue  # what is there cannot be read, so is not ours
        try:
            if size not in (None, status.st_size):
                continue
            if (yield from hash_only(source, path, status.st_size)) == hash:
                found.add(path)
        except FileFailed:
            continue  # likewise
        finally:
            os.close(source)
    return found
