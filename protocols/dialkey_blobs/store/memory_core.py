"""The store in memory, without an event loop.

Partial blobs are kept by chunk group and pair, so that a size that a stranger claims costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.events import VerifiedContent, VerifiedParent
from dialkey_blobs.hash import EMPTY_HASH, BlobFormat, Hash, HashAndFormat
from dialkey_blobs.hashing import Buffer
from dialkey_blobs.outboard import OutboardBuilder, outboards
from dialkey_blobs.store.core import (
    SLICE_BYTES,
    BytesBlob,
    Import,
    OpenBlob,
    StoreCore,
    chunks_of,
    pairs_of,
    whole_blob,
)
from dialkey_blobs.store.errors import BlobMissing, SizeConflict
from dialkey_blobs.store.files import FileOps, open_regular, read_at
from dialkey_blobs.store.importing import changed_during_import, same_file
from dialkey_blobs.store.pins import TempTag
from dialkey_blobs.store.small_files import ReadFiles, SmallFile, add_in_batches
from dialkey_blobs.store.values import (
    BlobInfo,
    BlobState,
    CheckOutcome,
    CheckReport,
    ImportMode,
    Steps,
    StoreStats,
    Tag,
)
from dialkey_blobs.tree import GROUP_BYTES, PAIR_BYTES, outboard_size

__all__ = ["MemoryCore"]


class _Partial:
    """What is held of a blob."""

    def __init__(self) -> None:
        self.bitfield = Bitfield()
        self._groups: dict[int, bytearray | memoryview] = {}
        self._pairs: dict[int, bytes] = {}

    def write(
        self, size: int, parents: Sequence[VerifiedParent], leaves: Sequence[VerifiedContent]
    ) -> None:
        """Add verified items."""
        for leaf in leaves:
            offset, view = leaf.offset, memoryview(leaf.data)
            while view:
                number, start = divmod(offset, GROUP_BYTES)
                part = view[: GROUP_BYTES - start]
                offset += len(part)
                view = view[len(part) :]
                if len(part) == GROUP_BYTES:
                    self._groups[number] = part
                    continue
                group = self._groups.setdefault(number, bytearray())
                if isinstance(group, memoryview):
                    continue  # everything is held
                if len(group) < start:
                    group.extend(bytes(start - len(group)))
                group[start : start + len(part)] = part
        for offset, pairs in pairs_of(parents, leaves):
            for at in range(0, len(pairs), PAIR_BYTES):
                self._pairs[(offset + at) // PAIR_BYTES] = pairs[at : at + PAIR_BYTES]
        self.bitfield = self.bitfield.combine(Bitfield.of(size, chunks_of(leaves)))

    def read_data(self, offset: int, length: int) -> bytes:
        """Return content that is held."""
        parts = []
        while length > 0:
            number, start = divmod(offset, GROUP_BYTES)
            count = min(length, GROUP_BYTES - start)
            parts.append(self._groups.get(number, bytearray())[start : start + count])
            offset += count
            length -= count
        return b"".join(parts)

    def read_outboard(self, offset: int, length: int) -> bytes:
        """Return pairs; those that are not held are zeros."""
        first, last = offset // PAIR_BYTES, -(-(offset + length) // PAIR_BYTES)
        zero = bytes(PAIR_BYTES)
        pairs = b"".join(self._pairs.get(index, zero) for index in range(first, last))
        start = offset - first * PAIR_BYTES
        return pairs[start : start + length]


class _PartialBlob(OpenBlob):
    def __init__(self, hash: Hash, partial: _Partial) -> None:
        super().__init__(hash, partial.bitfield)
        self._partial = partial

    def _read_data(self, offset: int, length: int) -> bytes:
        return self._partial.read_data(offset, length)

    def read_outboard(self, offset: int, length: int) -> bytes:
        return self._partial.read_outboard(offset, length)

    def close(self) -> None:
        pass


class _Complete:
    def __init__(self, data: bytes, outboard: bytes) -> None:
        self.data = data
        self.outboard = outboard
        self.bitfield = Bitfield.complete(len(data))


class MemoryCore(StoreCore):
    """See the module."""

    def __init__(self, *, ops: FileOps | None = None) -> None:
        super().__init__(FileOps() if ops is None else ops)
        self._entries: dict[Hash, _Partial | _Complete] = {}
        self._tags: dict[bytes, HashAndFormat] = {}

    # --- reading --------------------------------------------------------------------------------

    def _bitfield(self, hash: Hash) -> Bitfield | None:
        entry = self._entries.get(hash)
        return None if entry is None else entry.bitfield

    def _open(self, hash: Hash) -> OpenBlob:
        entry = self._entries.get(hash)
        if entry is None:
            raise BlobMissing(hash)
        if isinstance(entry, _Complete):
            return BytesBlob(hash, entry.data, entry.outboard)
        return _PartialBlob(hash, entry)

    def blobs(self) -> list[BlobInfo]:
        return [
            BlobInfo(hash, BlobState.COMPLETE, len(entry.data), False)
            if isinstance(entry, _Complete)
            else BlobInfo(hash, BlobState.PARTIAL, None, False)
            for hash, entry in sorted(self._entries.items(), key=lambda pair: pair[0])
        ]

    # --- adding ---------------------------------------------------------------------------------

    def add_many(self, blobs: Sequence[Buffer], format: BlobFormat) -> list[TempTag]:
        return [
            self.put(built.hash, bytes(content), built.data, format)
            for built, content in zip(outboards(blobs), blobs, strict=True)
        ]

    def put(self, hash: Hash, data: bytes, outboard: bytes, format: BlobFormat) -> TempTag:
        """Add a complete blob whose hash is known to be right."""
        self._complete(hash, data, outboard)
        return self.pins.pin(HashAndFormat(hash, format))

    def _complete(self, hash: Hash, data: bytes, outboard: bytes) -> None:
        if hash != EMPTY_HASH and not isinstance(self._entries.get(hash), _Complete):
            self._entries[hash] = _Complete(data, outboard)
            self._changed(hash, Bitfield.complete(len(data)))

    def begin_import(self, format: BlobFormat) -> Import:
        return _MemoryImport(self, format)

    def add_path(self, path: Path, mode: ImportMode, format: BlobFormat) -> Steps[TempTag]:
        source, before = open_regular(self._ops, path)
        try:
            arriving = _MemoryImport(self, format)
            offset = 0
            # One byte more is requested, so that a file that has grown does not pass.
            while data := read_at(source, SLICE_BYTES, offset, path):
                arriving.write(data)
                offset += len(data)
                yield 0
            if offset != before.st_size or not same_file(before, os.fstat(source)):
                raise changed_during_import(path)
            return (yield from arriving.finish())
        finally:
            os.close(source)

    def add_paths(
        self, paths: Sequence[Path], mode: ImportMode, format: BlobFormat
    ) -> Steps[list[TempTag]]:
        def add_batch(files: Sequence[SmallFile]) -> list[TempTag]:
            return self.add_many([file.content for file in files], format)

        def add_one(path: Path) -> Steps[TempTag]:
            return self.add_path(path, mode, format)

        return (yield from add_in_batches(paths, ReadFiles(self._ops), add_batch, add_one))

    def write_items(
        self,
        hash: Hash,
        size: int,
        parents: Sequence[VerifiedParent],
        leaves: Sequence[VerifiedContent],
    ) -> None:
        if hash == EMPTY_HASH or not leaves:
            return
        entry = self._entries.get(hash)
        if entry is None:
            whole = whole_blob(size, parents, leaves)
            if whole is not None:
                self._complete(hash, *whole)
                return
            entry = self._entries[hash] = _Partial()
        held = entry.bitfield
        if held.is_validated and held.size != size:
            raise SizeConflict(hash, claimed=size, proven=held.size)
        if isinstance(entry, _Complete):
            return
        entry.write(size, parents, leaves)
        self._changed(hash, entry.bitfield)
        if entry.bitfield.is_complete:
            size = entry.bitfield.size
            outboard = entry.read_outboard(0, outboard_size(size))
            self._complete(hash, entry.read_data(0, size), outboard)

    # --- tags -----------------------------------------------------------------------------------

    def tag(self, name: bytes) -> HashAndFormat | None:
        return self._tags.get(name)

    def _names(self, first: bytes, end: bytes | None) -> list[bytes]:
        return sorted(name for name in self._tags if name >= first and (end is None or name < end))

    def tags(self, first: bytes, end: bytes | None) -> list[Tag]:
        return [Tag(name, self._tags[name]) for name in self._names(first, end)]

    def delete_tags(self, first: bytes, end: bytes | None) -> int:
        names = self._names(first, end)
        for name in names:
            del self._tags[name]
        return len(names)

    def _put_tag(self, name: bytes, content: HashAndFormat) -> None:
        self._tags[name] = content

    # --- maintenance ----------------------------------------------------------------------------

    def remove(self, hash: Hash) -> bool:
        if self._entries.pop(hash, None) is None:
            return False
        self._changed(hash, Bitfield())
        return True

    def check(self, hash: Hash) -> Steps[CheckReport]:
        held = self.status(hash).bitfield
        entry = self._entries.get(hash)
        if entry is None and hash != EMPTY_HASH:
            raise BlobMissing(hash)
        yield 0
        # Only a hardware fault changes what is in memory.
        if isinstance(entry, _Complete) and Hash.of(entry.data) != hash:
            self.remove(hash)
            return CheckReport(hash, CheckOutcome.LOST, held, Bitfield())
        return CheckReport(hash, CheckOutcome.GOOD, held, held)

    def stats(self) -> StoreStats:
        sizes = [len(e.data) for e in self._entries.values() if isinstance(e, _Complete)]
        return StoreStats(
            complete=len(sizes),
            partial=len(self._entries) - len(sizes),
            references=0,
            complete_bytes=sum(sizes),
            reference_bytes=0,
            tags=len(self._tags),
            pins=len(self.pins.live()),
        )

    def close(self) -> None:
        self.commit()
        self._entries.clear()


class _MemoryImport:
    def __init__(self, core: MemoryCore, format: BlobFormat) -> None:
        self._core = core
        self._format = format
        self._data = bytearray()

    def write(self, data: Buffer) -> None:
        self._data += data

    def finish(self) -> Steps[TempTag]:
        builder = OutboardBuilder()
        with memoryview(self._data) as view:
            for offset in range(0, len(view), SLICE_BYTES):
                builder.update(view[offset : offset + SLICE_BYTES])
                yield offset
        built = builder.finish()
        return self._core.put(built.hash, bytes(self._data), built.data, self._format)

    def discard(self) -> None:
        self._data = bytearray()
