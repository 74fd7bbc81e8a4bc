"""What every store can do, without an event loop: the base of `FsCore` and `MemoryCore`.

A core belongs to one thread. Its operations are either short, or generators (`Steps`) that do a few
megabytes at a time, so that the thread can do others in between. Nothing is safe until `commit`; only
then is `on_change` told what has changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol, Self

from blake3 import blake3

from dialkey.errors import InvalidInput
from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.errors import RangeMissing
from dialkey_blobs.events import VerifiedContent, VerifiedParent, VerifiedSubtree
from dialkey_blobs.hash import EMPTY_HASH, BlobFormat, Hash, HashAndFormat
from dialkey_blobs.hashing import Buffer
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.safe_paths import SafeFile
from dialkey_blobs.store.errors import (
    BlobDamaged,
    BlobIncomplete,
    BlobInUse,
    TagExists,
    TagMissing,
    file_errors,
)
from dialkey_blobs.store.files import FileOps, check_space, write_at
from dialkey_blobs.store.pins import Pins, TempTag
from dialkey_blobs.store.values import (
    BlobInfo,
    BlobStatus,
    CheckReport,
    ImportMode,
    Steps,
    StoreStats,
    Tag,
)
from dialkey_blobs.tree import CHUNK_BYTES, PAIR_BYTES, outboard_size

__all__ = [
    "INLINE_BYTES",
    "SLICE_BYTES",
    "BytesBlob",
    "Import",
    "OpenBlob",
    "StoreCore",
    "StoreReader",
    "chunks_of",
    "contiguous",
    "pairs_of",
    "prefix_end",
    "whole_blob",
]

INLINE_BYTES: Final = 16_384
"""Content and outboards up to this size go into the database, where they cost less than a file."""

SLICE_BYTES: Final = 4 << 20
"""What a long operation does in one step: about 15 ms of hashing, or a fraction of that of copying."""


class OpenBlob(ABC):
    """A blob that is open for reading, as it was when it was opened.

    Deleting the blob from the store does not disturb it. Reading is safe in several threads; closing
    is not while another thread reads.

    Attributes:
        hash: the blob.
        bitfield: what is held of it. The size is a claim unless `bitfield.is_validated`.
    """

    def __init__(self, hash: Hash, bitfield: Bitfield) -> None:
        self.hash = hash
        self.bitfield = bitfield

    @property
    def size(self) -> int:
        return self.bitfield.size

    def read_data(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes of content from `offset`.

        Raises:
            RangeMissing: some of it is not held, or past the end.
            ReferenceChanged: the file outside the store is not what was imported.
            StorageError: it cannot be read.
            InvalidInput: offset or length is negative.
        """
        if offset < 0 or length < 0:
            raise InvalidInput("an offset and a length must not be negative")
        end = offset + length
        first, last = offset // CHUNK_BYTES, -(-end // CHUNK_BYTES)
        if end > self.size or not self.bitfield.ranges.covers(first, last):
            missing = ChunkRanges.between(first, max(last, first + 1)) - self.bitfield.ranges
            start = missing.boundaries[0] if missing else self.size // CHUNK_BYTES
            raise RangeMissing(
                f"blob {self.hash.short()} is held only in part: chunk {start} is missing",
                start_chunk=start,
            )
        return self._read_data(offset, length) if length else b""

    @abstractmethod
    def _read_data(self, offset: int, length: int) -> bytes: ...

    @property
    def stored_bytes(self) -> int:
        """What the content takes up on a disk, without holes."""
        return self.size

    def extent(self, offset: int) -> tuple[bool, int]:
        """Return whether there is content at `offset`, not a hole, and where that ends."""
        return True, self.size

    def clone_to(self, ops: FileOps, target: int, path: Path) -> bool:
        """Let an empty file share the blocks of the content; return whether that was possible."""
        return False

    def prepare(self) -> bool:
        """Do part of the work that has to be done before `read_outboard` can answer at once.

        That is about 20 ms of work in the store's thread, for a blob whose outboard is still to be
        made; see `ImportMode.DEFERRED`.

        Returns:
            Whether nothing is left to do.

        Raises:
            ReferenceChanged: the file outside the store is not what was imported.
            BlobMissing: the blob was deleted.
            StorageError: the outboard cannot be made.
        """
        return True

    @abstractmethod
    def read_outboard(self, offset: int, length: int) -> bytes:
        """Return `length` bytes of the pre-order outboard from `offset`.

        Pairs that are not held are zeros, or the result ends before them.
        """

    @abstractmethod
    def close(self) -> None:
        """Release files. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class BytesBlob(OpenBlob):
    """A complete blob in memory."""

    def __init__(self, hash: Hash, data: bytes, outboard: bytes = b"") -> None:
        super().__init__(hash, Bitfield.complete(len(data)))
        self._data = data
        self._outboard = outboard

    def _read_data(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    def read_outboard(self, offset: int, length: int) -> bytes:
        return self._outboard[offset : offset + length]

    def close(self) -> None:
        pass


class Import(Protocol):
    """A blob that arrives in pieces, of a size that is not known beforehand."""

    def write(self, data: Buffer) -> None:
        """Append `data`."""

    def finish(self) -> Steps[TempTag]:
        """Hash what came and add it to the store."""

    def discard(self) -> None:
        """Forget what came. Idempotent, and without effect after `finish` is done."""


class StoreReader(Protocol):
    """The part of a store that a provider needs, in the store's own thread."""

    def status(self, hash: Hash) -> BlobStatus:
        """Return what is held of a blob."""

    def open(self, hash: Hash) -> OpenBlob:
        """Open a blob for reading.

        Raises:
            BlobMissing: nothing is known about it.
            StorageError: it cannot be read, or is damaged.
        """


class StoreCore(ABC):
    """See the module.

    Attributes:
        pins: what temp tags protect.
        on_change: called at `commit` with each blob of which the store now holds more or less.
    """

    def __init__(self, ops: FileOps) -> None:
        self.pins = Pins()
        self.on_change: Callable[[Hash, Bitfield], None] = lambda hash, bitfield: None
        self._touched: set[Hash] | None = None
        self._new_roots: list[HashAndFormat] | None = None
        self._ops = ops
        self._changes: dict[Hash, Bitfield] = {}

    @property
    def writes(self) -> int:
        """A number that grows with every change that needs a commit."""
        return 0

    # --- reading --------------------------------------------------------------------------------

    def status(self, hash: Hash) -> BlobStatus:
        """Return what is held of a blob; the empty blob is always complete."""
        if hash == EMPTY_HASH:
            return BlobStatus.of(Bitfield.complete(0))
        return BlobStatus.of(self._bitfield(hash))

    @abstractmethod
    def _bitfield(self, hash: Hash) -> Bitfield | None: ...

    def open(self, hash: Hash) -> OpenBlob:
        """Open a blob for reading; see `StoreReader`."""
        return BytesBlob(hash, b"") if hash == EMPTY_HASH else self._open(hash)

    @abstractmethod
    def _open(self, hash: Hash) -> OpenBlob: ...

    @abstractmethod
    def blobs(self) -> list[BlobInfo]:
        """Return all entries, by hash; the empty blob is not listed."""

    def export(
        self, hash: Hash, file: SafeFile, *, durable: bool, move: bool = False
    ) -> Steps[int]:
        """Write a complete blob to a file, verify it on the way, and give the file its name.

        If the file system can, blocks are shared instead of copied. Holes stay holes.

        Args:
            hash: the blob.
            file: where to write it.
            durable: wait until the disk has everything.
            move: if possible, move the file itself there and keep a reference to it.

        Returns:
            The bytes.

        Raises:
            BlobIncomplete: only a part is held.
            BlobDamaged: the stored bytes do not match the hash; the file does not get its name.
            DiskFull: there is not enough space for a copy; noticed before copying starts.
        """
        with file, self.open(hash) as blob:
            if not blob.bitfield.is_complete:
                raise BlobIncomplete(hash)
            target: int | None = file.fileno()
            assert target is not None
            if blob.clone_to(self._ops, target, file.path):
                yield from self._verify(blob, file.path)
            else:
                check_space(target, blob.stored_bytes, file.path)
                yield from self._verify(blob, file.path, target)
                with file_errors("write", file.path):
                    self._ops.ftruncate(target, blob.size)
            file.commit(durable=durable)
            return blob.size

    def _verify(self, blob: OpenBlob, path: Path, target: int | None = None) -> Steps[None]:
        """Hash the content of a complete blob, and write it to a file, if one is given."""
        hasher = blake3()
        offset = 0
        while offset < blob.size:
            has_content, end = blob.extent(offset)
            length = min(SLICE_BYTES, end - offset)
            if not has_content:
                hasher.update(bytes(length))
            else:
                data = blob.read_data(offset, length)
                hasher.update(data)
                if target is not None:
                    write_at(self._ops, target, data, offset, path)
            offset += length
            yield offset
        if hasher.digest() != blob.hash.digest:
            raise BlobDamaged(
                f"the stored content of blob {blob.hash.short()} is damaged", hash=blob.hash
            )

    # --- adding ---------------------------------------------------------------------------------

    @abstractmethod
    def add_many(self, blobs: Sequence[Buffer], format: BlobFormat) -> list[TempTag]:
        """Add blobs from memory, all at once."""

    @abstractmethod
    def begin_import(self, format: BlobFormat) -> Import:
        """Start adding a blob that arrives in pieces."""

    @abstractmethod
    def add_path(self, path: Path, mode: ImportMode, format: BlobFormat) -> Steps[TempTag]:
        """Add a file.

        Raises:
            ReferenceChanged: the file changed while it was read.
            FileFailed: it cannot be read, or is not a regular file.
        """

    @abstractmethod
    def add_paths(
        self, paths: Sequence[Path], mode: ImportMode, format: BlobFormat
    ) -> Steps[list[TempTag]]:
        """Add many files; see `add_path`. Those before one that fails are in the store."""

    @abstractmethod
    def write_items(
        self,
        hash: Hash,
        size: int,
        parents: Sequence[VerifiedParent],
        leaves: Sequence[VerifiedContent],
    ) -> None:
        """Add verified parts of a blob.

        Args:
            hash: the blob.
            size: the claim with which they were verified.
            parents: with their pairs. Each must be an ancestor of a leaf that is given here: only
                the leaf's match proves that they are where the claimed size places them.
            leaves: with their content.

        Raises:
            SizeConflict: another size is proven already.
            StorageError: not all could be stored; what was held before is intact.
        """

    def make_outboards(self) -> Steps[None]:
        """Make the outboards that `ImportMode.DEFERRED` has postponed.

        Failures are logged, and occur again for whoever asks for the blob.
        """
        yield from ()

    # --- tags -----------------------------------------------------------------------------------

    @abstractmethod
    def tag(self, name: bytes) -> HashAndFormat | None:
        """Return what a tag names, or None."""

    @abstractmethod
    def tags(self, first: bytes, end: bytes | None) -> list[Tag]:
        """Return the tags from `first` to before `end` (None: no end), by name."""

    @abstractmethod
    def delete_tags(self, first: bytes, end: bytes | None) -> int:
        """Delete the tags from `first` to before `end` (None: no end); return how many."""

    @abstractmethod
    def _put_tag(self, name: bytes, content: HashAndFormat) -> None: ...

    def set_tag(self, name: bytes, content: HashAndFormat) -> None:
        """Add a tag, or replace it."""
        self._put_tag(name, content)
        if self._new_roots is not None:
            self._new_roots.append(content)

    def create_tag(self, content: HashAndFormat, now: datetime) -> bytes:
        """Add a tag with a name that is not in use, made from the time; return it.

        Source: docs/wire/blobs.md 5.3.
        """
        stamp = f"auto-{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03}Z".encode()
        name = stamp
        number = 0
        while self.tag(name) is not None:
            number += 1
            name = b"%s-%d" % (stamp, number)
        self.set_tag(name, content)
        return name

    def rename_tag(self, old: bytes, new: bytes) -> None:
        """Rename a tag.

        Raises:
            TagMissing: there is no such tag.
            TagExists: the new name is in use.
        """
        content = self.tag(old)
        if content is None:
            raise TagMissing(f"there is no tag {_show(old)}")
        if old == new:
            return
        if self.tag(new) is not None:
            raise TagExists(f"there is a tag {_show(new)} already", hint="delete it first")
        self.set_tag(new, content)
        self.delete_tags(old, old + b"\0")

    # --- maintenance ----------------------------------------------------------------------------

    def delete(self, hashes: Iterable[Hash], *, force: bool = False) -> int:
        """Delete blobs; return how many were there.

        Raises:
            BlobInUse: one has a tag or a temp tag of its own, and `force` is not given; then
                nothing is deleted. Children of tagged hash sequences are not looked for.
        """
        wanted = list(hashes)
        if not force:
            used = {content.hash for content in self.pins.live()}
            used.update(tag.hash for tag in self.tags(b"", None))
            for hash in wanted:
                if hash in used:
                    raise BlobInUse(hash)
        return sum(self.remove(hash) for hash in wanted)

    @abstractmethod
    def remove(self, hash: Hash) -> bool:
        """Delete a blob, protected or not; return whether it was there."""

    @abstractmethod
    def check(self, hash: Hash) -> Steps[CheckReport]:
        """Hash what is held of a blob, and drop what does not match.

        Raises:
            BlobMissing: nothing is known about it.
        """

    @contextmanager
    def collecting(self) -> Iterator[tuple[set[Hash], list[HashAndFormat]]]:
        """Watch what changes while garbage is collected; one collection can run at a time.

        Yields:
            (blobs that are written from now on, contents that are tagged or pinned)
        """
        if self._touched is not None:
            raise RuntimeError("a garbage collection of this store is running already")
        self._touched, self._new_roots = set(), []
        self.pins.watch(self._new_roots)
        try:
            yield self._touched, self._new_roots
        finally:
            self.pins.watch(None)
            self._touched = self._new_roots = None

    @abstractmethod
    def stats(self) -> StoreStats:
        """Return counts and sizes."""

    # --- life -----------------------------------------------------------------------------------

    def commit(self) -> None:
        """Make all changes safe and visible, then report them.

        Raises:
            StorageError: everything since the last commit is undone.
        """
        changes, self._changes = self._changes, {}
        for hash, bitfield in changes.items():
            self.on_change(hash, bitfield)

    @abstractmethod
    def close(self) -> None:
        """Commit and release everything. Idempotent."""

    def _changed(self, hash: Hash, bitfield: Bitfield) -> None:
        self._changes[hash] = bitfield
        if self._touched is not None:
            self._touched.add(hash)


def prefix_end(prefix: bytes) -> bytes | None:
    """Return the first byte string after all that begin with `prefix`; None if there is none."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None


def contiguous(pieces: Iterable[tuple[int, Buffer]]) -> Iterator[tuple[int, list[Buffer]]]:
    """Yield (offset, parts) of every run of pieces, given as (offset, bytes), that follow one another."""
    start = end = 0
    parts: list[Buffer] = []
    for offset, data in pieces:
        if parts and offset != end:
            yield start, parts
            parts = []
        if not parts:
            start = offset
        parts.append(data)
        end = offset + len(data)
    if parts:
        yield start, parts


def pairs_of(
    parents: Sequence[VerifiedParent], leaves: Sequence[VerifiedContent]
) -> list[tuple[int, bytes]]:
    """Return (offset in the outboard, pairs), in ascending order, each once."""
    found = {item.node.outboard_index: item.pair for item in parents}
    found.pop(-1, None)
    found |= {
        item.node.outboard_index: item.pairs for item in leaves if isinstance(item, VerifiedSubtree)
    }
    return [(index * PAIR_BYTES, pairs) for index, pairs in sorted(found.items())]


def whole_blob(
    size: int, parents: Sequence[VerifiedParent], leaves: Sequence[VerifiedContent]
) -> tuple[bytes, bytes] | None:
    """Return content and outboard if the items are all of a blob of `size` bytes, else None."""
    if not leaves or leaves[0].offset or leaves[-1].end != size:
        return None
    runs = list(contiguous([(leaf.offset, leaf.data) for leaf in leaves]))
    pairs = b"".join(pairs for _, pairs in pairs_of(parents, leaves))
    if len(runs) > 1 or len(pairs) != outboard_size(size):
        return None
    return b"".join(runs[0][1]), pairs


def chunks_of(leaves: Sequence[VerifiedContent]) -> ChunkRanges:
    """Return the chunks that leaves in ascending order hold."""
    bounds: list[int] = []
    for item in leaves:
        start, end = item.start_chunk, -(-item.end // CHUNK_BYTES)
        if bounds and bounds[-1] == start:
            bounds[-1] = end
        elif not bounds or bounds[-1] < start:
            bounds += (start, end)
        else:
            raise InvalidInput("leaves must be in ascending order")
    return ChunkRanges(tuple(bounds))


def _show(name: bytes) -> str:
    return ascii(name.decode("utf-8", "backslashreplace"))
