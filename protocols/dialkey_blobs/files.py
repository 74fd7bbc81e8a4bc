"""Files on their way out of collections.

Source: docs/wire/blobs.md 6.4.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from dialkey.errors import DialkeyError
from dialkey_blobs.collection import Collection
from dialkey_blobs.hash import Hash
from dialkey_blobs.names import ANYWHERE, Placement, check_names, place
from dialkey_blobs.safe_paths import SafeRoot, TargetExists, naming_of
from dialkey_blobs.store.core import StoreCore, StoreReader
from dialkey_blobs.store.errors import BlobIncomplete, BlobMissing
from dialkey_blobs.store.values import BlobState, finish

if TYPE_CHECKING:
    from dialkey_blobs.store import Store

__all__ = ["Export", "Exported", "FolderExporter", "complete_sizes", "open_folder", "place_below"]

BATCH_BYTES: Final = 4 << 20
BATCH_FILES: Final = 64
"""Small files written in one go: some ten milliseconds of the store's thread."""


@attrs.frozen
class Exported:
    """A file that was written.

    Attributes:
        path: where.
        size: its bytes.
    """

    path: Path
    size: int


class Export:
    """An export: iterate over the files as they are done, or await it for all of them.

    It runs while it is iterated over or awaited. Leaving the iteration or cancelling stops it; files
    that are done stay.

    Args:
        run: does the whole export, and yields each file.
    """

    def __init__(self, run: Callable[[], AsyncGenerator[Exported, None]]) -> None:
        self._run = run

    def __aiter__(self) -> AsyncGenerator[Exported, None]:
        """Return an iterator; close it (`contextlib.aclosing`) to stop at once."""
        return self._run()

    def __await__(self) -> Generator[object, None, list[Exported]]:
        return self._to_end().__await__()

    async def _to_end(self) -> list[Exported]:
        async with aclosing(self._run()) as files:
            return [file async for file in files]


def complete_sizes(reader: StoreReader, collection: Collection) -> list[int]:
    """Return the sizes of a collection's files.

    Raises:
        BlobMissing, BlobIncomplete: one is not held (in full).
    """
    sizes: list[int] = []
    for _, hash in collection:
        status = reader.status(hash)
        if status.state is BlobState.MISSING:
            raise BlobMissing(hash)
        if status.state is BlobState.PARTIAL:
            raise BlobIncomplete(hash)
        sizes.append(status.bitfield.size)
    return sizes


def place_below(folder: Path, names: Sequence[str]) -> Placement:
    """Find out where the files of a collection go below a folder, which need not exist yet.

    Raises:
        UnsafeName: a name is dangerous, or conflicts with another.
    """
    check_names(names)
    everywhere = place(names, ANYWHERE)
    if not everywhere.renamed:
        return everywhere
    return place(names, naming_of(folder))


def open_folder(path: Path, names: Sequence[str], overwrite: bool) -> SafeRoot:
    """Open the folder for files, none of which may be there unless they may be overwritten.

    Args:
        path: the folder.
        names: local names, as `place_below` returns them.
        overwrite: as for `Blobs.export`.

    Raises:
        TargetExists: one is there.
        StorageError: the folder cannot be opened.
    """
    if not overwrite:
        for name in names:
            target = path.joinpath(*name.split("/"))
            if os.path.lexists(target):
                raise TargetExists(target)
    return SafeRoot(path)


Entry = tuple[tuple[str, Hash], int]
"""Name, hash, size."""


@attrs.frozen
class FolderExporter:
    """Writes the files of a collection, small ones many at a time.

    Attributes:
        folder: where to.
        overwrite, durable, move: as for `Blobs.export`.
    """

    folder: SafeRoot
    overwrite: bool = attrs.field(kw_only=True)
    durable: bool = attrs.field(kw_only=True)
    move: bool = attrs.field(kw_only=True, default=False)

    async def export(self, store: Store, entries: Sequence[Entry]) -> AsyncIterator[Exported]:
        """Yield each file as it is done; see `Blobs.export`."""
        for batch in _batches(entries):
            if len(batch) > 1:
                done, error = await store.run(partial(self._write, batch=batch))
                for file in done:
                    yield file
                if error is not None:
                    raise error
                continue
            [((name, hash), _)] = batch
            target = await asyncio.to_thread(self.folder.create, name, overwrite=self.overwrite)
            size = await store.export(hash, target, durable=self.durable, move=self.move)
            yield Exported(target.path, size)

    def _write(
        self, core: StoreCore, batch: Sequence[Entry]
    ) -> tuple[list[Exported], DialkeyError | None]:
        done: list[Exported] = []
        try:
            for (name, hash), size in batch:
                target = self.folder.create(name, overwrite=self.overwrite)
                finish(core.export(hash, target, durable=self.durable, move=self.move))
                done.append(Exported(target.path, size))
        except DialkeyError as error:
            return done, error
        return done, None


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    total = 0
    for entry in entries:
        if batch and (total + entry[1] > BATCH_BYTES or len(batch) == BATCH_FILES):
            yield batch
            batch, total = [], 0
        batch.append(entry)
        total += entry[1]
    if batch:
        yield batch
