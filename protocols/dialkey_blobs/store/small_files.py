"""Many files at once: the small ones are hashed together, which is several times as fast."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

import attrs
from blake3 import blake3

from dialkey_blobs.hash import Hash
from dialkey_blobs.store.core import SLICE_BYTES
from dialkey_blobs.store.errors import FileFailed, file_errors
from dialkey_blobs.store.files import FileOps, open_regular
from dialkey_blobs.store.importing import (
    changed_during_import,
    read_into,
    read_small,
    same_file,
)
from dialkey_blobs.store.pins import TempTag, released_on_failure
from dialkey_blobs.store.values import Steps

__all__ = ["HashFiles", "HashedFile", "LargeFile", "ReadFiles", "SmallFile", "add_in_batches"]

_SMALL_BYTES: Final = 1 << 20
"""Larger files nearly fill a hashing batch by themselves."""
_MAX_FILES: Final = 256


@attrs.frozen
class SmallFile:
    """A file that was read whole.

    Attributes:
        path: without links, since a link may point elsewhere tomorrow.
        content: its bytes.
        mtime_ns: when it was last modified.
    """

    path: str
    content: bytes
    mtime_ns: int

    @property
    def size(self) -> int:
        return len(self.content)


@attrs.frozen
class HashedFile:
    """A file that was hashed and whose content was not kept.

    Attributes:
        path: as in `SmallFile`.
        hash, size: of its content.
        mtime_ns: when it was last modified.
    """

    path: str
    hash: Hash
    size: int
    mtime_ns: int


@attrs.frozen
class LargeFile:
    """A file that has not been read; its size may change before it is."""

    path: str
    size: int


F = TypeVar("F", SmallFile, HashedFile)


class ReadFiles:
    """Reads small files whole."""

    def __init__(self, ops: FileOps) -> None:
        self._ops = ops

    def __call__(self, path: str) -> SmallFile | LargeFile:
        source, before = open_regular(self._ops, path, follow_link=False)
        try:
            if before.st_size > _SMALL_BYTES:
                return LargeFile(path, before.st_size)
            content = read_small(source, path, before)
            if not same_file(before, os.fstat(source)):
                raise changed_during_import(path)
            return SmallFile(path, content, before.st_mtime_ns)
        finally:
            os.close(source)


class HashFiles:
    """Hashes small files, one after the other in the same memory: new memory costs more than reading."""

    def __init__(self, ops: FileOps) -> None:
        self._ops = ops
        self._buffer = memoryview(bytearray(_SMALL_BYTES + 1))

    def __call__(self, path: str) -> HashedFile | LargeFile:
        source, before = open_regular(self._ops, path, follow_link=False)
        try:
            size = before.st_size
            if size > _SMALL_BYTES:
                return LargeFile(path, size)
            content = read_into(self._buffer, source, path, before)
            hash = Hash(blake3(content).digest())
            if not same_file(before, os.fstat(source)):
                raise changed_during_import(path)
            return HashedFile(path, hash, size, before.st_mtime_ns)
        finally:
            os.close(source)


def add_in_batches(
    paths: Sequence[Path],
    read: Callable[[str], F | LargeFile],
    add_batch: Callable[[Sequence[F]], list[TempTag]],
    add_path: Callable[[Path], Steps[TempTag]],
) -> Steps[list[TempTag]]:
    """Add files in their order: small ones with `add_batch`, others with `add_path`.

    Raises:
        ReferenceChanged: a file changed while it was read.
        FileFailed: one cannot be read, or is not a regular file.
    """
    done = 0
    with released_on_failure() as tags:
        for batch in _batches(paths, read):
            if isinstance(batch, LargeFile):
                steps = add_path(Path(batch.path))
                while True:
                    try:
                        yield done + next(steps)
                    except StopIteration as end:
                        tags.append(end.value)
                        break
                done += batch.size
            else:
                tags += add_batch(batch)
                done += sum(file.size for file in batch)
            yield done
    return tags


def _batches(
    paths: Sequence[Path], read: Callable[[str], F | LargeFile]
) -> Iterator[list[F] | LargeFile]:
    batch: list[F] = []
    size = 0
    resolve = _Resolver()
    for path in paths:
        file = resolve.read(path, read)
        is_large = isinstance(file, LargeFile)
        if batch and (is_large or len(batch) == _MAX_FILES or size > SLICE_BYTES - _SMALL_BYTES):
            yield batch
            batch, size = [], 0
        if isinstance(file, LargeFile):
            yield file
        else:
            batch.append(file)
            size += file.size
    if batch:
        yield batch


class _Resolver:
    """Finds paths without links, and resolves each folder once, as files come in groups."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def read(self, path: Path, read: Callable[[str], F | LargeFile]) -> F | LargeFile:
        """Read a file at its path without links."""
        folder, _, name = os.fspath(path).rpartition("/")
        real = self._folders.get(folder)
        if real is None:
            # Of a file in the top folder, nothing is before the slash.
            parent = os.path.dirname(path)
            with file_errors("open", path):
                real = os.path.join(os.path.realpath(parent), "")
            self._folders[folder] = real
        if name != os.pardir:
            try:
                return read(real + name)
            except FileFailed as error:
                if error.errno != errno.ELOOP:
                    raise
        with file_errors("open", path):
            found = os.path.realpath(path)
        return read(found)
