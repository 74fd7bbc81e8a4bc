"""Stores for use in event loops: `FsStore` on a file system, `MemoryStore` in memory.

All work on disk and database happens in one thread for each store. One store may be used from
several event loops and threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from dialkey import Opening
from dialkey.errors import DialkeyError, InvalidInput, StorageError
from dialkey.opening import AsyncOnly, check_loop
from dialkey_blobs.events import VerifiedContent, VerifiedParent
from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat
from dialkey_blobs.hashing import Buffer
from dialkey_blobs.safe_paths import SafeFile
from dialkey_blobs.store.core import SLICE_BYTES, Import, StoreCore
from dialkey_blobs.store.exporting import already_there, export_path
from dialkey_blobs.store.files import FileOps, check_space
from dialkey_blobs.store.gc import collect
from dialkey_blobs.store.handles import StoredBlob
from dialkey_blobs.store.observing import Observation, Observers
from dialkey_blobs.store.pins import Batch, Pins, TempTag
from dialkey_blobs.store.tags import Tags
from dialkey_blobs.store.values import (
    BlobInfo,
    BlobState,
    BlobStatus,
    CheckReport,
    GcReport,
    ImportMode,
    StoreStats,
)
from dialkey_blobs.store.worker import Progress, Worker

__all__ = ["FsStore", "MemoryStore", "Store"]

T = TypeVar("T")

_log: Final = logging.getLogger("dialkey.blobs.store")
_READ_BYTES: Final = 1 << 20
_MAX_READ_BYTES: Final = 64 << 20


class Store(AsyncOnly):
    """A place for blobs; make an `FsStore` or a `MemoryStore`.

    Use it as an async context manager, or `close` it at the end. What an awaited operation has
    changed is safe from a crash of the process when it returns. An operation that is cancelled
    either happens or does not; an import or export that is cancelled leaves nothing behind.

    All operations raise `StoreClosed` once the store is closed, and `StorageError` where disk or
    database fail.

    Attributes:
        tags: the named tags.
    """

    def __init__(self, make_core: Callable[[], StoreCore], name: str) -> None:
        self._pins = Pins()
        self._observers = Observers()
        self._gc_lock = asyncio.Lock()
        self.gc_failures = 0

        def make() -> StoreCore:
            core = make_core()
            core.pins = self._pins
            core.on_change = self._observers.changed
            return core

        self._worker = Worker(make, name)
        self.tags = Tags(self._worker)

    # --- life -----------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Open the store, which otherwise happens with the first operation. Idempotent.

        Raises:
            StoreLocked: it is open elsewhere.
            StoreDamaged: its database cannot be used.
        """
        await self._worker.call(lambda core: None)

    async def close(self) -> None:
        """Finish short operations, cancel long ones, and close. Idempotent."""
        await self._worker.close()
        self._observers.close()

    async def __aenter__(self) -> Store:
        check_loop()
        try:
            await self.ready()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    # --- looking --------------------------------------------------------------------------------

    async def status(self, hash: Hash) -> BlobStatus:
        """Return how much of a blob is held."""
        return await self._worker.call(lambda core: core.status(hash))

    async def statuses(self, hashes: Sequence[Hash]) -> list[BlobStatus]:
        """Return how much of each of many blobs is held."""
        return await self._worker.call(lambda core: [core.status(hash) for hash in hashes])

    async def has(self, hash: Hash) -> bool:
        """Return whether a blob is held completely."""
        return (await self.status(hash)).state is BlobState.COMPLETE

    def observe(self, hash: Hash) -> Observation:
        """Return an iterator over what is held of a blob, now and each time that it changes."""
        return Observation(self._observers, self._worker, hash)

    async def blobs(self) -> list[BlobInfo]:
        """Return all blobs that are held, completely or in part, by hash."""
        return await self._worker.call(lambda core: core.blobs())

    async def stats(self) -> StoreStats:
        """Return counts and sizes."""
        return await self._worker.call(lambda core: core.stats())

    # --- reading --------------------------------------------------------------------------------

    async def read(self, hash: Hash, offset: int = 0, length: int | None = None) -> bytes:
        """Return content, cut off where the blob ends.

        Args:
            hash: the blob.
            offset: the first byte.
            length: bytes; None for everything that follows, which must be at most 64 MiB.

        Raises:
            BlobMissing: nothing is known about the blob.
            RangeMissing: some of that is not held.
            InvalidInput: it is too large for one piece; use `stream`.
        """

        def read(core: StoreCore) -> bytes:
            with core.open(hash) as blob:
                stop = blob.size if length is None else min(blob.size, offset + length)
                if stop - offset > _MAX_READ_BYTES:
                    raise InvalidInput(
                        f"{stop - offset} bytes of blob {hash.short()} are too many to hold at once",
                        hint="read in pieces, or use `stream`",
                    )
                return blob.read_data(offset, stop - offset) if offset < stop else b""

        return await self._worker.call(read)

    async def stream(
        self, hash: Hash, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield content in pieces of a megabyte, cut off where the blob ends.

        Raises:
            BlobMissing: nothing is known about the blob.
            RangeMissing: some of that is not held; all before it has been yielded.
        """
        async with self.blob(hash) as blob:
            stop = blob.size if length is None else min(blob.size, offset + length)
            for start in range(offset, stop, _READ_BYTES):
                yield await blob.read(start, min(_READ_BYTES, stop - start))

    def blob(self, hash: Hash) -> Opening[StoredBlob]:
        """Open a blob for reading: ``async with store.blob(hash) as blob``, or await it.

        Raises:
            BlobMissing: nothing is known about it.
        """
        return Opening(self._open_blob(hash))

    async def _open_blob(self, hash: Hash) -> StoredBlob:
        opened = await self._worker.call(lambda core: core.open(hash))
        return StoredBlob(self._worker, opened)

    async def run(self, function: Callable[[StoreCore], T]) -> T:
        """Call a function in the store's thread.

        This is the fastest way to do many small things. The function should return within a few
        milliseconds, as everybody else waits. Its changes are safe when this returns.
        """
        return await self._worker.call(function)

    # --- adding ---------------------------------------------------------------------------------

    async def add_bytes(self, data: Buffer, format: BlobFormat = BlobFormat.RAW) -> TempTag:
        """Add a blob from memory.

        Returns:
            A temp tag, which protects the blob from garbage collection. Set a named tag before you
            drop it.
        """
        if len(data) <= SLICE_BYTES:
            return (await self.add_many([data], format))[0]

        async def pieces() -> AsyncIterator[Buffer]:
            view = memoryview(data)
            for offset in range(0, len(view), SLICE_BYTES):
                yield view[offset : offset + SLICE_BYTES]

        return await self.add_stream(pieces(), format)

    async def add_many(
        self, blobs: Sequence[Buffer], format: BlobFormat = BlobFormat.RAW
    ) -> list[TempTag]:
        """Add many blobs from memory at once.

        They are hashed and committed together, so thousands of small ones are quick. Pass about ten
        megabytes at a time, so that others do not have to wait. If it fails, some may have been added,
        and nothing protects those.
        """
        return await self._worker.call(lambda core: core.add_many(blobs, format))

    async def add_stream(
        self,
        pieces: AsyncIterable[Buffer],
        format: BlobFormat = BlobFormat.RAW,
        *,
        progress: Progress | None = None,
    ) -> TempTag:
        """Add a blob that arrives in pieces.

        Args:
            pieces: of any size.
            format: what the blob is.
            progress: called with the bytes that have been hashed.
        """
        arriving: Import = await self._worker.call(lambda core: core.begin_import(format))
        collected = bytearray()

        async def hand_over() -> None:
            nonlocal collected
            full, collected = collected, bytearray()
            await self._worker.call(lambda core: arriving.write(full))

        try:
            async for piece in pieces:
                collected += piece
                if len(collected) >= SLICE_BYTES:
                    await hand_over()
            await hand_over()
            return await self._worker.run(lambda core: arriving.finish(), progress)
        except BaseException:
            self._worker.post(lambda core: arriving.discard())
            raise

    async def add_path(
        self,
        path: Path | str,
        mode: ImportMode = ImportMode.COPY,
        format: BlobFormat = BlobFormat.RAW,
        *,
        progress: Progress | None = None,
    ) -> TempTag:
        """Add a file; links are followed.

        Args:
            path: a regular file, which must not change while it is added.
            mode: take a copy, or keep a reference.
            format: what the blob is.
            progress: called with the bytes that are done.

        Raises:
            ReferenceChanged: the file changed while it was read.
            FileFailed: it cannot be read, or is not a regular file.
        """
        return await self._worker.run(
            lambda core: core.add_path(Path(path), mode, format), progress
        )

    async def add_paths(
        self,
        paths: Sequence[Path | str],
        mode: ImportMode = ImportMode.COPY,
        format: BlobFormat = BlobFormat.RAW,
        *,
        progress: Progress | None = None,
    ) -> list[TempTag]:
        """Add many files; for small ones this is several times as fast as one after the other.

        Arguments and errors are those of `add_path`; `progress` counts the bytes of all files. If one
        fails, those before it are in the store, but nothing protects them.
        """
        wanted = [path if isinstance(path, Path) else Path(path) for path in paths]
        return await self._worker.run(lambda core: core.add_paths(wanted, mode, format), progress)

    async def make_outboards(self, *, progress: Progress | None = None) -> None:
        """Make the outboards that `ImportMode.DEFERRED` has postponed.

        Requests do not have to wait for it, and those for such a blob come first. Failures are logged.

        Args:
            progress: called with the bytes that are done.
        """
        await self._worker.run(lambda core: core.make_outboards(), progress)

    async def write_items(
        self,
        hash: Hash,
        size: int,
        parents: Sequence[VerifiedParent],
        leaves: Sequence[VerifiedContent],
    ) -> None:
        """Add verified parts of a blob; see `StoreCore.write_items`.

        For items of many blobs, call `StoreCore.write_items` for each of them within one `run`.
        """
        await self._worker.call(lambda core: core.write_items(hash, size, parents, leaves))

    # --- exporting ------------------------------------------------------------------------------

    async def export(
        self,
        hash: Hash,
        target: Path | str | SafeFile,
        *,
        overwrite: bool = False,
        durable: bool = True,
        move: bool = False,
        progress: Progress | None = None,
    ) -> int:
        """Write a complete blob to a file; missing directories are created.

        The content is verified on the way, and only then gets its name.

        Args:
            hash: the blob.
            target: a path that the user of this machine chose. For names from strangers pass a file
                that `SafeRoot` created; it is committed, or else discarded.
            overwrite: for a path, whether a file that is there may be replaced.
            durable: wait until the disk has everything.
            move: move the content itself there if the file system can, which takes no extra space;
                the store then refers to it, as with `ImportMode.REFERENCE`.
            progress: called with the bytes that are done.

        Returns:
            The bytes.

        Raises:
            TargetExists: something is there and may not be overwritten.
            BlobMissing, BlobIncomplete: the blob is not held, or only in part.
            BlobDamaged: the stored bytes do not match the hash.
            DiskFull: there is not enough space for a copy; noticed before copying starts.
        """
        if not isinstance(target, SafeFile):
            path = Path(target)
            return await self._worker.run(
                lambda core: export_path(
                    core, hash, path, overwrite=overwrite, durable=durable, move=move
                ),
                progress,
            )
        file = target
        try:
            return await self._worker.run(
                lambda core: core.export(hash, file, durable=durable, move=move), progress
            )
        except BaseException:
            # If the export never started, the file is still open.
            self._worker.post(lambda core: file.discard())
            raise

    async def already_there(self, files: Sequence[tuple[Hash, int | None, Path]]) -> set[Path]:
        """Return the paths at which the right content already is.

        Args:
            files: hash, size if known, and path of each.
        """
        return await self._worker.run(lambda core: already_there(files))

    async def check_space(self, needed: int) -> None:
        """Fail if this many bytes cannot be added.

        Raises:
            DiskFull: there is not enough space.
        """

    # --- protecting and deleting ----------------------------------------------------------------

    def pin(self, content: HashAndFormat) -> TempTag:
        """Protect a blob from garbage collection, held or not, until the tag is dropped.

        Pin first, then ask whether it is held: otherwise it might be collected in between.
        """
        return self._pins.pin(content)

    def batch(self) -> Batch:
        """Return a context manager for temp tags that end together."""
        return Batch(self._pins)

    async def delete(self, *hashes: Hash, force: bool = False) -> int:
        """Delete blobs; return how many were there.

        Args:
            hashes: the blobs.
            force: whether to delete even what has a tag or temp tag of its own.

        Raises:
            BlobInUse: one is protected; nothing was deleted.
        """
        return await self._worker.call(lambda core: core.delete(hashes, force=force))

    async def collect_garbage(self, protect: Iterable[HashAndFormat] = ()) -> GcReport:
        """Delete all blobs that no tag, temp tag or entry of `protect` protects.

        Source: docs/wire/blobs.md 5.3.
        """
        spared = tuple(protect)
        async with self._gc_lock:
            return await self._worker.run(lambda core: collect(core, spared))

    async def collect_garbage_every(
        self,
        interval_s: float,
        protect: Callable[[], Iterable[HashAndFormat]] = tuple,
    ) -> None:
        """Collect garbage again and again, until cancelled or the store is closed.

        A failure is logged and counted in `gc_failures`, and does not end it.

        Args:
            interval_s: seconds to wait before each collection.
            protect: called each time for contents to spare.
        """
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.collect_garbage(protect())
            except StorageError as error:
                self.gc_failures += 1
                _log.warning("a garbage collection failed: %s", error)

    async def check(self, hash: Hash, *, progress: Progress | None = None) -> CheckReport:
        """Hash what is held of a blob, and drop what does not match.

        Raises:
            BlobMissing: nothing is known about it.
        """
        return await self._worker.run(lambda core: core.check(hash), progress)

    async def check_all(self) -> AsyncIterator[CheckReport]:
        """Check all blobs, one after the other, and yield a report of each."""
        for info in await self.blobs():
            try:
                yield await self.check(info.hash)
            except DialkeyError as error:
                if (await self.status(info.hash)).state is not BlobState.MISSING:
                    raise
                _log.debug("a blob went away before it was checked: %s", error)


class FsStore(Store):
    """A store in a directory.

    A process that is killed at any moment loses nothing that an awaited operation has stored. After
    a power failure the last changes may be missing, and partial blobs are hashed again before they
    are trusted; complete blobs are trusted if their size is right, so `check` them if in doubt.
    `durable` makes complete blobs and all changes wait for the disk.

    Args:
        root: the directory, created if it is missing.
        durable: see above.
        ops: the gateway to the file system; for tests.
    """

    def __init__(
        self, root: Path | str, *, durable: bool = False, ops: FileOps | None = None
    ) -> None:
        self.root = Path(root)

        def make_core() -> StoreCore:
            from dialkey_blobs.store.fs_core import FsCore

            return FsCore(self.root, ops=ops, durable=durable)

        super().__init__(make_core, f"dialkey-store-{self.root.name}")

    async def check_space(self, needed: int) -> None:
        await self._worker.call(lambda core: check_space(self.root, needed, self.root))


class MemoryStore(Store):
    """A store in memory; its content does not outlive `close`."""

    def __init__(self) -> None:
        def make_core() -> StoreCore:
            from dialkey_blobs.store.memory_core import MemoryCore

            return MemoryCore()

        super().__init__(make_core, "dialkey-store-memory")
