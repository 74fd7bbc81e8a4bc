"""Files: offered by reference, fetched verified, never overwriting anything."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final

from dialkey import DialLimits, EndpointAddr, EndpointId
from dialkey.errors import LimitExceeded, StorageError
from dialkey_blobs import Blobs, FsStore, Progress, TempTag
from dialkey_chat.messages import File

__all__ = ["Files", "open_files"]

NAMES_BYTES: Final = 1 << 20
"""What the names in a folder may add to the size that was announced."""

PREFIX: Final = ".dialkey-chat-"
OLD_S: Final = 60.0
STALL_TIMEOUT_S: Final = 15.0


class Files:
    """What we offer, and what we fetch.

    Whoever has fetched a file offers it, too, as long as it is in the room.

    Args:
        blobs: serves and fetches.
        downloads: where files go by default.
    """

    def __init__(self, blobs: Blobs, downloads: Path) -> None:
        self.blobs = blobs
        self.downloads = downloads
        self._offered: list[TempTag] = []

    async def offer(self, path: Path) -> File:
        """Make a file or folder available; it stays where it is and must not change.

        Raises:
            InvalidInput: there is no file.
            StorageError: it cannot be read.
        """
        tag, entries = await self.blobs.add_files([path])
        self._offered.append(tag)
        size = sum(entry.size for entry in entries)
        return File(path.name, size, self.blobs.ticket(tag))

    async def fetch(
        self,
        file: File,
        providers: Sequence[EndpointAddr],
        folder: Path | None,
        progress: Callable[[int, int], None],
        dial_limits: Callable[[EndpointId], DialLimits],
    ) -> list[Path]:
        """Fetch what was offered, and write it into a folder.

        Args:
            file: what.
            providers: who may have it, the most likely first.
            folder: where to; `downloads` by default.
            progress: is told how many bytes are here, and how many there will be.
            dial_limits: of a dial to one of them, since others than we have named where they are.

        Returns:
            The files that were written. All names were checked before; nothing is outside `folder`.

        Raises:
            LimitExceeded: it is larger than was announced.
            UnsafeName: a name in it leads elsewhere; nothing was written.
            TargetExists: a file is there already; nothing was written.
            DialkeyError: as `Blobs.download` and `Blobs.export`.
        """
        content = file.ticket.content
        with self.blobs.store.pin(content):
            download = self.blobs.download(
                content,
                providers=providers,
                stall_timeout_s=STALL_TIMEOUT_S,
                dial_limits=dial_limits,
            )
            async with aclosing(aiter(download)) as events:
                async for event in events:
                    if isinstance(event, Progress):
                        known = max(event.held_bytes, event.total_bytes or 0)
                        if known > file.size + NAMES_BYTES:
                            raise LimitExceeded(
                                f"it is larger than the {file.size} bytes announced"
                            )
                        progress(event.held_bytes, file.size)
            target = folder if folder is not None else self.downloads
            return [each.path for each in await self.blobs.export(content, target)]


@contextlib.asynccontextmanager
async def open_files(downloads: Path) -> AsyncIterator[Files]:
    """Keep blobs beside the downloads, so that both are on one disk, until the context ends."""
    downloads, is_new = _made(downloads)
    await _sweep(downloads)
    try:
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=downloads) as name:
            async with Blobs.persistent(name) as blobs:
                yield Files(blobs, downloads)
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                downloads.rmdir()  # which fails unless it is empty


def _made(folder: Path) -> tuple[Path, bool]:
    folder = folder.absolute()
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    return folder, is_new


async def _sweep(downloads: Path) -> None:
    """Remove what chats have left that were killed; a store that is in use cannot be opened."""
    for folder in _old_stores(downloads):
        try:
            async with FsStore(folder):
                pass
        except StorageError:
            continue
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _old_stores(downloads: Path) -> list[Path]:
    # One that was made just now may be about to be opened.
    before = time.time() - OLD_S
    found = []
    for folder in downloads.glob(f"{PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # its chat has just ended
            if folder.stat().st_mtime < before:
                found.append(folder)
    return found


def in_order(
    author: EndpointAddr | None, offered_at: EndpointAddr, others: Iterable[EndpointAddr]
) -> list[EndpointAddr]:
    """Order those who may have a file: its author first, if they are here; else last.

    Args:
        author: where the author is now, if they are here.
        offered_at: where the author was when they offered it.
        others: where others in the room are; they may have fetched it.
    """
    rest = [addr for addr in others if addr.id != offered_at.id]
    if author is None:
        return [*rest, offered_at]
    return [author.with_addrs(offered_at.addrs), *rest]
