"""Files on their way into and out of collections.

Source: blobs wire reference 6.3, 6.4.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from dialkey.errors import DialkeyError, InvalidInput
from dialkey_blobs.collection import Collection
from dialkey_blobs.hash import Hash
from dialkey_blobs.safe_paths import SafeRoot, TargetExists, check_names
from dialkey_blobs.store.core import StoreCore, StoreReader
from dialkey_blobs.store.errors import BlobIncomplete, BlobMissing
from dialkey_blobs.store.values import BlobState, finish

if TYPE_CHECKING:
    from dialkey_blobs.store import Store

__all__ = ["Exported", "FolderExporter", "collect_files", "complete_sizes", "open_folder"]

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


def open_folder(path: Path, names: Sequence[str], overwrite: bool) -> SafeRoot:
    """Open the folder for files, none of which may be there unless they may be overwritten.

    Raises:
        UnsafeName: a name leads elsewhere, or cannot stand beside the others.
        TargetExists: one is there.
        StorageError: the folder cannot be opened.
    """
    check_names(names)
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
        overwrite, durable: as for `Blobs.export`.
    """

    folder: SafeRoot
    overwrite: bool = attrs.field(kw_only=True)
    durable: bool = attrs.field(kw_only=True)

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
            size = await store.export(hash, target, durable=self.durable)
            yield Exported(target.path, size)

    def _write(
        self, core: StoreCore, batch: Sequence[Entry]
    ) -> tuple[list[Exported], DialkeyError | None]:
        done: list[Exported] = []
        try:
            for (name, hash), size in batch:
                target = self.folder.create(name, overwrite=self.overwrite)
                finish(core.export(hash, target, durable=self.durable))
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


def collect_files(paths: Iterable[str | Path]) -> list[tuple[str, Path]]:
    """Return (name, file) of all regular files at or below paths, sorted by name.

    Raises:
        InvalidInput: a path does not exist, nothing was found, or a name occurs twice or cannot
            be received safely.
    """
    found: dict[str, Path] = {}
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise InvalidInput(f"there is no file or folder {path}")
        path = path.resolve()
        for file in _walk(path):
            name = "/".join([path.name, *file.relative_to(path).parts])
            if name in found:
                raise InvalidInput(
                    f"two files would have the name {name!r}", hint="send them separately"
                )
            found[name] = file
    if not found:
        raise InvalidInput("there is no regular file at these paths")
    entries = sorted(found.items(), key=lambda item: item[0].encode("utf-8", "surrogateescape"))
    check_names([name for name, _ in entries], portable=False)
    return entries


def _walk(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = []
    for folder, folders, files in os.walk(path):
        folders.sort()
        for file in sorted(files):
            each = Path(folder, file)
            if each.is_file() and not each.is_symlink():
                found.append(each)
    return found
