"""Many files at once: the small ones are hashed together, which is several times as fast."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

from dialkey_blobs.store.core import SLICE_BYTES
from dialkey_blobs.store.errors import file_errors
from dialkey_blobs.store.files import FileOps, open_regular
from dialkey_blobs.store.importing import changed_during_import, read_small, same_file
from dialkey_blobs.store.pins import TempTag, released_on_failure
from dialkey_blobs.store.values import Steps

__all__ = ["SmallFile", "add_in_batches"]

_SMALL_BYTES: Final = 1 << 20
"""Larger files fill a batch of hashing nearly by themselves."""
_MAX_FILES: Final = 256


@attrs.frozen
class SmallFile:
    """A file that was read whole.

    Attributes:
        path: without links, since a link may point elsewhere tomorrow.
        content: its bytes.
        mtime_ns: when it was modified last.
    """

    path: Path
    content: bytes
    mtime_ns: int


@attrs.frozen
class LargeFile:
    """A file that was not read; its size may change before it is."""

    path: Path
    size: int


def add_in_batches(
    ops: FileOps,
    paths: Sequence[Path],
    add_batch: Callable[[Sequence[SmallFile]], list[TempTag]],
    add_path: Callable[[Path], Steps[TempTag]],
) -> Steps[list[TempTag]]:
    """Add files in their order: small ones with `add_batch`, others with `add_path`.

    Raises:
        ReferenceChanged: a file changed while it was read.
        FileFailed: one cannot be read, or is not a regular file.
    """
    done = 0
    with released_on_failure() as tags:
        for batch in _batches(ops, paths):
            if isinstance(batch, LargeFile):
                steps = add_path(batch.path)
                while True:
                    try:
                        yield done + next(steps)
                    except StopIteration as end:
                        tags.append(end.value)
                        break
                done += batch.size
            else:
                tags += add_batch(batch)
                done += sum(len(file.content) for file in batch)
            yield done
    return tags


def _batches(ops: FileOps, paths: Sequence[Path]) -> Iterator[list[SmallFile] | LargeFile]:
    batch: list[SmallFile] = []
    size = 0
    resolve = _Resolver()
    for path in paths:
        with file_errors("open", path):
            real = resolve(path)
        file = _read_if_small(ops, real)
        is_large = isinstance(file, LargeFile)
        if batch and (is_large or len(batch) == _MAX_FILES or size > SLICE_BYTES - _SMALL_BYTES):
            yield batch
            batch, size = [], 0
        if isinstance(file, LargeFile):
            yield file
        else:
            batch.append(file)
            size += len(file.content)
    if batch:
        yield batch


class _Resolver:
    """Finds paths without links, and looks at each folder once: most files have neighbours."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def __call__(self, path: Path) -> Path:
        folder, name = os.path.split(path)
        real = self._folders.get(folder)
        if real is None:
            real = self._folders[folder] = os.path.realpath(folder)
        found = os.path.join(real, name)
        if name in ("", os.curdir, os.pardir) or os.path.islink(found):
            found = os.path.realpath(path)
        return Path(found)


def _read_if_small(ops: FileOps, path: Path) -> SmallFile | LargeFile:
    source, before = open_regular(ops, path)
    try:
        if before.st_size > _SMALL_BYTES:
            return LargeFile(path, before.st_size)
        content = read_small(source, path, before)
        if not same_file(before, os.fstat(source)):
            raise changed_during_import(path)
        return SmallFile(path, content, before.st_mtime_ns)
    finally:
        os.close(source)
