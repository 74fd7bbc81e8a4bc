"""Blobs that are open for reading, for use in an event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.store.core import OpenBlob
from dialkey_blobs.store.worker import Worker

__all__ = ["StoredBlob"]

T = TypeVar("T")


class StoredBlob:
    """A blob that is open for reading, as it was when it was opened.

    Use it as an async context manager. Deleting the blob from the store does not disturb it.

    Attributes:
        hash: the blob.
        bitfield: what is held of it; the size is a claim unless `bitfield.is_validated`.
    """

    def __init__(self, worker: Worker, blob: OpenBlob) -> None:
        self.hash = blob.hash
        self.bitfield: Bitfield = blob.bitfield
        self._worker = worker
        self._blob = blob

    @property
    def size(self) -> int:
        return self.bitfield.size

    async def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes of content from `offset`; a megabyte at a time is a good size.

        Raises:
            RangeMissing: some of it is not held, or past the end.
            ReferenceChanged: the file outside the store is not what was imported.
            StorageError: it cannot be read.
        """
        return await self._worker.call(lambda core: self._blob.read_data(offset, length))

    async def read_outboard(self, offset: int, length: int) -> bytes:
        """Return pairs from `offset` of the pre-order outboard; those not held may be missing."""
        return await self._worker.call(lambda core: self._blob.read_outboard(offset, length))

    async def call(self, function: Callable[[OpenBlob], T]) -> T:
        """Call a function with the blob in the store's thread, for example to advance an `Encoder`.

        It should return within a few milliseconds, as everybody else waits.
        """
        return await self._worker.call(lambda core: function(self._blob))

    async def close(self) -> None:
        """Release files. Idempotent; not necessary once the store is closed."""
        self._worker.post(lambda core: self._blob.close())

    async def __aenter__(self) -> StoredBlob:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
