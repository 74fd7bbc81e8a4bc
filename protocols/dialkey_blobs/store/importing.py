"""Hashing of added content: a few megabytes in each step, in constant memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from operator import attrgetter
from pathlib import Path
from typing import Final

import attrs
from blake3 import blake3

from dialkey_blobs.hash import Hash
from dialkey_blobs.hashing import Buffer
from dialkey_blobs.outboard import Outboard, OutboardBuilder
from dialkey_blobs.store.core import INLINE_BYTES, SLICE_BYTES
from dialkey_blobs.store.errors import ReferenceChanged, file_errors
from dialkey_blobs.store.files import FileOps, discard, is_hole, read_at, write_at
from dialkey_blobs.store.values import Steps
from dialkey_blobs.tree import outboard_size

__all__ = [
    "Hashed",
    "TempFile",
    "changed_during_import",
    "hash_file",
    "hash_only",
    "read_into",
    "read_small",
    "same_file",
]


_READ_BYTES: Final = 4 << 20
"""Enough for several threads of hashing, and still in a processor's cache."""
_TELL_BYTES: Final = 32 << 20
"""Hashed in one step: about 15 ms."""


class TempFile:
    """A temporary file that has no place yet; it is removed unless it is moved into place.

    Raises:
        FileFailed: it cannot be created.
    """

    def __init__(self, ops: FileOps, path: Path) -> None:
        self.path = path
        self.length = 0
        self._ops = ops
        with file_errors("create", path):
            self.descriptor = ops.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def write(self, data: Buffer, offset: int) -> None:
        """Write all of `data` at `offset`."""
        write_at(self._ops, self.descriptor, data, offset, self.path)
        self.length = max(self.length, offset + len(data))

    def lengthen(self, size: int) -> None:
        """Make the file `size` bytes long, with a hole at its end if necessary."""
        if self.length < size:
            with file_errors("write", self.path):
                self._ops.ftruncate(self.descriptor, size)
            self.length = size

    def move_to(self, target: Path, *, durable: bool) -> None:
        """Move the file to its place, replacing whatever was there."""
        if durable:
            with file_errors("sync", self.path):
                self._ops.fsync(self.descriptor)
        with file_errors("create", target):
            self._ops.replace(self.path, target)
        self._close()

    def discard(self) -> None:
        """Remove the file unless it has been moved. Idempotent."""
        if self.descriptor >= 0:
            self._close()
            discard(self._ops, self.path)

    def _close(self) -> None:
        os.close(self.descriptor)
        self.descriptor = -1


@attrs.frozen
class Hashed:
    """The result of hashing.

    Attributes:
        built: hash and size, and the outboard if it is small.
        outboard_file: the outboard if it is not.
    """

    built: Outboard
    outboard_file: TempFile | None


def hash_file(
    ops: FileOps,
    source: int,
    path: Path,
    size: int,
    new_temp: Callable[[], Path],
    copy_to: TempFile | None = None,
) -> Steps[Hashed]:
    """Hash `size` bytes of an open file, and make the outboard.

    Args:
        ops: the gateway to the file system.
        source: the descriptor.
        path: its path, for messages.
        size: its bytes; a large outboard is written out as it grows, which needs to know.
        new_temp: returns a path for a temporary file.
        copy_to: where to copy the content at the same time.

    Raises:
        ReferenceChanged: the file no longer has `size` bytes.
        FileFailed: reading or writing failed; `copy_to` is the caller's to discard.
    """
    outboard: TempFile | None = None
    builder = OutboardBuilder()
    if outboard_size(size) > INLINE_BYTES:
        outboard = TempFile(ops, new_temp())
        place = outboard.write
        builder = OutboardBuilder(size, lambda offset, pairs: place(pairs, offset))
    try:
        offset = 0
        with closing(_read_ahead(source, path, size)) as slices:
            for data in slices:
                offset += len(data)
                if offset > size:
                    break
                if copy_to is not None and not is_hole(source, offset - len(data), len(data)):
                    copy_to.write(data, offset - len(data))
                builder.update(data)
                yield offset
        if offset != size:
            raise changed_during_import(path)
        if copy_to is not None:
            copy_to.lengthen(size)
        built = builder.finish()
    except BaseException:
        if outboard is not None:
            outboard.discard()
        raise
    return Hashed(built, outboard)


def _read_ahead(source: int, path: Path, size: int) -> Generator[bytes, None, None]:
    """Yield the content of a file; each next slice is read while the last one is hashed.

    One byte more is requested at the end, so that a file that has grown does not pass. Close the
    generator before the file: that waits for the read in progress.

    Raises:
        FileFailed: reading failed.
    """

    def read(offset: int) -> bytes:
        return read_at(source, min(SLICE_BYTES, size - offset) or 1, offset, path)

    data = read(0)
    offset = len(data)
    if size <= SLICE_BYTES:
        # Not worth a thread.
        while data and offset <= size:
            yield data
            data = read(offset)
            offset += len(data)
        if data:
            yield data
        return
    with ThreadPoolExecutor(1, thread_name_prefix="dialkey-blobs-read") as reader:
        while data and offset <= size:
            coming = reader.submit(read, offset)
            yield data
            data = coming.result()
            offset += len(data)
    if data:
        yield data


def hash_only(source: int, path: Path, size: int) -> Steps[Hash]:
    """Hash `size` bytes of an open file, without an outboard.

    The file is read into one buffer, not mapped: if somebody cut off a mapped file meanwhile, the
    system would kill the process.

    Raises:
        ReferenceChanged: the file no longer has `size` bytes.
        FileFailed: reading failed.
    """
    hasher = blake3(max_threads=blake3.AUTO)
    buffer = memoryview(bytearray(min(size + 1, _READ_BYTES)))
    offset = 0
    told = _TELL_BYTES
    with file_errors("read", path):
        while count := os.preadv(source, [buffer], offset):
            hasher.update(buffer[:count])
            offset += count
            if offset > size:
                break
            if offset >= told:
                told = offset + _TELL_BYTES
                yield offset
    if offset != size:
        raise changed_during_import(path)
    return Hash(hasher.digest())


def read_small(source: int, path: str | Path, status: os.stat_result) -> bytes:
    """Return the content of a small open file.

    Args:
        source: the descriptor.
        path: its path, for messages.
        status: its status when it was opened.

    Raises:
        ReferenceChanged: its size has changed by now.
    """
    with file_errors("read", path):
        data = os.pread(source, status.st_size + 1, 0)
    if len(data) < status.st_size:
        # The system may have stopped early.
        data = read_at(source, status.st_size + 1, 0, path)
    if len(data) != status.st_size:
        raise changed_during_import(path)
    return data


def read_into(
    buffer: memoryview, source: int, path: str | Path, status: os.stat_result
) -> memoryview:
    """Return the content of a small open file, as `read_small` does, in a buffer with more room."""
    with file_errors("read", path):
        count = offset = os.preadv(source, [buffer], 0)
        while count and offset < status.st_size:
            count = os.preadv(source, [buffer[offset:]], offset)
            offset += count
    if offset != status.st_size:
        raise changed_during_import(path)
    return buffer[:offset]


def changed_during_import(path: str | Path) -> ReferenceChanged:
    """Return the error for a file that changes while it is read."""
    path = Path(path)
    return ReferenceChanged(
        f"{path} changed while it was imported", path=path, hint="import it again"
    )


_unchanging: Final = attrgetter("st_dev", "st_ino", "st_size", "st_mtime_ns")


def same_file(before: os.stat_result, after: os.stat_result) -> bool:
    """Return whether a file is unchanged, as far as its status tells."""
    return _unchanging(before) == _unchanging(after)
