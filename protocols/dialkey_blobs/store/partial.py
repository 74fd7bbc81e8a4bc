"""A partial blob on the disk: content, outboard and the journal of what they hold.

Content goes to its final offset in a sparse file, and so do pairs; only then does the journal record it.
See `journal` for what that means after a crash.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs

from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.events import VerifiedContent, VerifiedParent
from dialkey_blobs.hash import Hash
from dialkey_blobs.hashing import Buffer
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.store.audit import sound_groups
from dialkey_blobs.store.core import chunks_of, contiguous, pairs_of
from dialkey_blobs.store.errors import FileFailed, file_errors
from dialkey_blobs.store.files import (
    FileOps,
    discard,
    is_hole,
    make_directory,
    read_at,
    write_at,
    write_parts_at,
)
from dialkey_blobs.store.journal import Journal, JournalWriter
from dialkey_blobs.store.values import finish
from dialkey_blobs.tree import GROUP_BYTES

__all__ = ["BlobPaths", "OpenPartials", "PartialFiles"]

_ZEROS: Final = bytes(GROUP_BYTES)
_COMPACT_BYTES: Final = 64 * 1024
# Three files each.
_MAX_OPEN: Final = 32


@attrs.frozen
class BlobPaths:
    """Where the files of a blob are.

    Attributes:
        data: content.
        outboard: pairs in pre-order.
        journal: chunks of a partial blob.
    """

    data: Path
    outboard: Path
    journal: Path

    @classmethod
    def of(cls, root: Path, hash: Hash) -> BlobPaths:
        """Return the paths below `root`, the store's directory."""
        name = hash.hex()
        folder = root / "data" / name[:2]
        return cls(folder / f"{name}.data", folder / f"{name}.obao4", folder / f"{name}.bitfield")

    @property
    def all(self) -> tuple[Path, Path, Path]:
        # The journal first: without it the others mean nothing.
        return self.journal, self.data, self.outboard


class PartialFiles:
    """The three files, open.

    Opening creates what is missing, reads the journal, and after a power failure hashes what it cannot
    trust; that takes about three seconds per gigabyte held.

    Args:
        ops: the gateway to the file system.
        paths: the files.
        hash: the blob.
        epoch: id of the running operating system; empty if unknown.
        temp: a path in the same file system for a temporary file.

    Raises:
        FileFailed: they cannot be opened, read or written.
    """

    def __init__(
        self, ops: FileOps, paths: BlobPaths, hash: Hash, epoch: bytes, temp: Path
    ) -> None:
        self.hash = hash
        self.paths = paths
        self.bitfield = Bitfield()
        self._ops = ops
        self._epoch = epoch
        self._temp = temp
        self._files: list[int] = []
        self._knows_epoch = False
        try:
            make_directory(ops, paths.data.parent)
            for path in (paths.data, paths.outboard, paths.journal):
                with file_errors("open", path):
                    self._files.append(ops.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW))
            self._writer = self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> JournalWriter:
        length = os.fstat(self._files[2]).st_size
        data = read_at(self._files[2], length, 0, self.paths.journal)
        journal = Journal.read(self.hash, data)
        self.bitfield = journal.bitfield
        self._writer = JournalWriter(self.hash, journal)
        if not journal.is_trusted(self._epoch):
            self._keep_sound()
        return self._writer

    def _keep_sound(self) -> None:
        """Hash what is held, and forget what does not match.

        Parts of groups are forgotten as well: the pairs that would prove them are not stored.
        """
        held = self.bitfield
        steps = sound_groups(self.hash, held.size, held.ranges, self.read_data, self.read_outboard)
        ranges = finish(steps)
        self.reset(Bitfield.of(held.size, ranges) if ranges else Bitfield())

    def strike(self, lost: ChunkRanges) -> None:
        """Forget chunks.

        Raises:
            FileFailed: the journal cannot be written; nothing is forgotten.
        """
        held = self.bitfield
        ranges = held.ranges.limited_to(held.size) - lost
        self.reset(Bitfield.of(held.size, ranges) if ranges else Bitfield())

    def reset(self, bitfield: Bitfield) -> None:
        """Rewrite the journal.

        Raises:
            FileFailed: it cannot be written; the old one is in force.
        """
        ops, paths = self._ops, self.paths
        writer = JournalWriter(self.hash)
        records = writer.epoch(self._epoch) + writer.chunks(bitfield)
        with file_errors("create", self._temp):
            descriptor = ops.open(self._temp, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            write_at(ops, descriptor, records, 0, self._temp)
            with file_errors("replace", paths.journal):
                ops.replace(self._temp, paths.journal)
        except BaseException:
            os.close(descriptor)
            discard(ops, self._temp)
            raise
        writer.appended()
        os.close(self._files[2])
        self._files[2] = descriptor
        self._writer = writer
        self._knows_epoch = True
        self.bitfield = bitfield

    def write(
        self, size: int, parents: Sequence[VerifiedParent], leaves: Sequence[VerifiedContent]
    ) -> None:
        """Store verified items, then say so in the journal.

        Raises:
            FileFailed: not all could be stored; the bitfield is as before.
        """
        ops, paths = self._ops, self.paths
        length = os.fstat(self._files[0]).st_size
        try:
            end = length
            for offset, parts in contiguous(self._to_write(leaves)):
                write_parts_at(ops, self._files[0], parts, offset, paths.data)
                end = max(end, offset + sum(len(part) for part in parts))
            if leaves and leaves[-1].end > end:
                self.lengthen(leaves[-1].end)
        except FileFailed:
            # What was written would only take space on a full disk.
            with suppress(FileFailed):
                self.truncate_data(length)
            raise
        for offset, parts in contiguous(pairs_of(parents, leaves)):
            write_parts_at(ops, self._files[1], parts, offset, paths.outboard)
        added = Bitfield.of(size, chunks_of(leaves))
        merged = self.bitfield.combine(added)
        if merged == self.bitfield:
            return
        if self._writer.length > _COMPACT_BYTES and self._writer.length > 32 * len(
            merged.ranges.boundaries
        ):
            self.reset(merged)
            return
        records = b"" if self._knows_epoch else self._writer.epoch(self._epoch)
        records += self._writer.chunks(added)
        try:
            write_at(ops, self._files[2], records, self._writer.length, paths.journal)
        except BaseException:
            self._writer.failed()
            raise
        self._writer.appended()
        self._knows_epoch = True
        self.bitfield = merged

    def _to_write(self, leaves: Sequence[VerifiedContent]) -> Iterator[tuple[int, Buffer]]:
        """Yield (offset, content), without groups of zeros where there is a hole already."""
        for leaf in leaves:
            starts = range(0, len(leaf.data), GROUP_BYTES)
            zeros = [at for at in starts if self._is_hole_of_zeros(leaf, at)]
            if not zeros:
                yield leaf.offset, leaf.data
                continue
            for at in starts:
                if at not in zeros:
                    yield leaf.offset + at, memoryview(leaf.data)[at : at + GROUP_BYTES]

    def _is_hole_of_zeros(self, leaf: VerifiedContent, at: int) -> bool:
        length = min(GROUP_BYTES, len(leaf.data) - at)
        is_zero = leaf.data.startswith(_ZEROS[:length], at)
        return is_zero and is_hole(self._files[0], leaf.offset + at, length)

    def lengthen(self, size: int) -> None:
        """Make the content `size` bytes long, with a hole at its end."""
        with file_errors("write", self.paths.data):
            self._ops.ftruncate(self._files[0], size)

    def read_data(self, offset: int, length: int) -> bytes:
        """Return content; less than asked for where the file ends."""
        return read_at(self._files[0], length, offset, self.paths.data)

    def read_outboard(self, offset: int, length: int) -> bytes:
        """Return pairs; less than asked for where the file ends."""
        return read_at(self._files[1], length, offset, self.paths.outboard)

    def truncate_data(self, size: int) -> None:
        """Cut content to `size` bytes if the file is longer."""
        with file_errors("cut", self.paths.data):
            if os.fstat(self._files[0]).st_size != size:
                self._ops.ftruncate(self._files[0], size)

    def sync(self) -> None:
        """Wait until content and pairs are on the disk."""
        paths = (self.paths.data, self.paths.outboard)
        for descriptor, path in zip(self._files[:2], paths, strict=True):
            with file_errors("sync", path):
                self._ops.fsync(descriptor)

    def seal(self) -> None:
        """Write everything to the disk and record that, so that it is trusted after a power failure."""
        self.sync()
        record = self._writer.sealed()
        try:
            write_at(self._ops, self._files[2], record, self._writer.length, self.paths.journal)
            with file_errors("sync", self.paths.journal):
                self._ops.fsync(self._files[2])
        except BaseException:
            self._writer.failed()
            raise
        self._writer.appended()

    def close(self) -> None:
        """Close the files. Idempotent."""
        files, self._files = self._files, []
        for descriptor in files:
            os.close(descriptor)


class OpenPartials:
    """The partial blobs whose files are open; the least recently used are closed."""

    def __init__(self) -> None:
        self._by_hash: OrderedDict[Hash, PartialFiles] = OrderedDict()

    def get(self, hash: Hash) -> PartialFiles | None:
        """Return the files of a blob if they are open."""
        partial = self._by_hash.get(hash)
        if partial is not None:
            self._by_hash.move_to_end(hash)
        return partial

    def add(self, partial: PartialFiles) -> None:
        """Keep files open, and close others if there are too many."""
        self._by_hash[partial.hash] = partial
        while len(self._by_hash) > _MAX_OPEN:
            self._by_hash.popitem(last=False)[1].close()

    def close(self, hash: Hash) -> None:
        """Close the files of a blob if they are open."""
        partial = self._by_hash.pop(hash, None)
        if partial is not None:
            partial.close()

    def close_all(self) -> None:
        """Close all."""
        while self._by_hash:
            self._by_hash.popitem()[1].close()
