"""Where exported files go."""

from __future__ import annotations

import os
from pathlib import Path

from dialkey_blobs.hash import Hash
from dialkey_blobs.safe_paths import SafeFile, TargetExists
from dialkey_blobs.store.core import StoreCore
from dialkey_blobs.store.errors import BlobIncomplete, BlobMissing, file_errors
from dialkey_blobs.store.values import BlobState, Steps

__all__ = ["begin_export", "export_path"]


def begin_export(core: StoreCore, hash: Hash, target: Path, *, overwrite: bool) -> SafeFile:
    """Begin a file at a path that the user of this machine chose.

    Directories that are missing are created. Names from strangers go through `SafeRoot` instead.

    Raises:
        BlobMissing, BlobIncomplete: there is nothing to export; no directory is created.
        TargetExists: something stands there and may not be overwritten.
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
    core: StoreCore, hash: Hash, target: Path, *, overwrite: bool, durable: bool
) -> Steps[int]:
    """Write a complete blob to a path; see `begin_export` and `StoreCore.export`."""
    file = begin_export(core, hash, target, overwrite=overwrite)
    return (yield from core.export(hash, file, durable=durable))
