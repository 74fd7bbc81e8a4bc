"""Blob downloads: what is announced, transferred, verified chunk group by chunk group, and stored.

Two kinds: from a file to a store on disk, as `dialkey send` and `dialkey receive` do it, and from memory
to memory. Where a measurement ends, every byte has been verified against the hash and stored.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from pathlib import Path

from dialkey import Connection, Endpoint, Router
from dialkey_blobs.blobs import Blobs
from dialkey_blobs.protocol import ALPN
from dialkey_blobs.store import ImportMode, TempTag
from dialkey_blobs.ticket import BlobTicket
from stacks.base import Answer, Mismatch, Offering, Session, Stack, Stream, random_blocks

KEPT_OFFERS = 2
"""Older files are deleted: a run would fill the disk."""


class _Session(Session):
    """A connection, and a store of its own: what an earlier one fetched would not be fetched again."""

    def __init__(self, blobs: Blobs, connection: Connection, folder: Folder | None) -> None:
        self.blobs = blobs
        self.connection = connection
        self._folder = folder

    async def open(self) -> Stream:
        raise NotImplementedError("blobs have requests of their own")

    async def close(self) -> None:
        self.connection.close()
        await self.blobs.close()
        if self._folder is not None:
            self._folder.cleanup()


Folder = tempfile.TemporaryDirectory[str]


class BlobsFilesStack(Stack, Offering):
    in_memory = False

    def __init__(self) -> None:
        self._endpoint: Endpoint | None = None
        self._router: Router | None = None
        self._serving: asyncio.Task[None] | None = None
        self._blobs: Blobs | None = None
        self._folder: Folder | None = None
        self._offers: list[tuple[Path | None, TempTag]] = []

    def _make(self) -> tuple[Blobs, Folder | None]:
        if self.in_memory:
            return Blobs.memory(), None
        folder = tempfile.TemporaryDirectory(prefix="dialkey-benchmark-")
        return Blobs.persistent(Path(folder.name, "store")), folder

    async def _bind(self) -> Endpoint:
        if self._endpoint is None:
            self._endpoint = await Endpoint.bind(bind="127.0.0.1:0", entry_points=False)
        return self._endpoint

    async def serve(self, answer: Answer) -> str:
        endpoint = await self._bind()
        self._blobs, self._folder = self._make()
        self._router = Router(endpoint)
        self._router.add(self._blobs)
        await self._router.__aenter__()
        self._serving = asyncio.ensure_future(self._router.serve())
        return str(endpoint.ticket())

    async def dial(self, address: str) -> Session:
        endpoint = await self._bind()
        blobs, folder = self._make()
        blobs.attach(endpoint)
        return _Session(blobs, await endpoint.connect(address, ALPN), folder)

    async def offer(self, size: int, seed: int) -> str:
        assert self._blobs is not None
        while len(self._offers) >= KEPT_OFFERS:
            old, tag = self._offers.pop(0)
            tag.release()
            if old is not None:
                old.unlink()
        path: Path | None = None
        if self._folder is None:
            data = b"".join(block for block, _ in random_blocks(size, seed))
            tag = await self._blobs.add_bytes(data)
        else:
            path = Path(self._folder.name, f"offer-{seed}-{size}")
            _write(path, size, seed)
            tag = await self._blobs.add_path(path, ImportMode.REFERENCE)
        self._offers.append((path, tag))
        return str(self._blobs.ticket(tag))

    async def fetch(self, session: Session, offer: str) -> None:
        assert isinstance(session, _Session)
        await session.blobs.download(offer, connection=session.connection)

    async def check(self, session: Session, offer: str, size: int, seed: int) -> None:
        assert isinstance(session, _Session)
        expected = hashlib.sha256()
        for block, _ in random_blocks(size, seed):
            expected.update(block)
        found = await session.blobs.read_bytes(BlobTicket.parse(offer).hash, limit=size)
        if hashlib.sha256(found).digest() != expected.digest():
            raise Mismatch("the blob that is stored is not the one that was offered")

    async def close(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
        if self._router is not None:
            await self._router.__aexit__(None, None, None)
        if self._blobs is not None:
            await self._blobs.close()
        if self._endpoint is not None:
            await self._endpoint.close()
        if self._folder is not None:
            self._folder.cleanup()


class BlobsMemoryStack(BlobsFilesStack):
    in_memory = True


def _write(path: Path, size: int, seed: int) -> None:
    with path.open("wb") as file:
        for block, _ in random_blocks(size, seed):
            file.write(block)
