"""Content on its way to standard output, as soon as it is verified."""

from __future__ import annotations

import asyncio
from typing import BinaryIO, Final

from dialkey.cli import Output
from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.hash import Hash
from dialkey_blobs.store import Store
from dialkey_blobs.tree import CHUNK_BYTES

__all__ = ["Printer"]

_PIECE_BYTES: Final = 1 << 20


class Printer:
    """Writes a blob to standard output in order, as far as it is held and verified.

    A slow reader holds up the caller, and by that the download.

    Args:
        output: whose standard output.
        store: where the blob arrives.

    Attributes:
        written_bytes: what was written so far.
    """

    def __init__(self, output: Output, store: Store) -> None:
        self._output = output
        self._store = store
        self.written_bytes = 0

    async def advance(self, hash: Hash) -> None:
        """Write what has come since the last call.

        Raises:
            LocalError: standard output cannot be written.
        """
        stdout = self._output.stdout.buffer
        held = _beginning((await self._store.status(hash)).bitfield)
        while self.written_bytes < held and not self._output.has_lost_reader:
            size = min(_PIECE_BYTES, held - self.written_bytes)
            piece = await self._store.read(hash, self.written_bytes, size)
            await asyncio.to_thread(_write, stdout, piece)
            self.written_bytes += len(piece)


def _write(stdout: BinaryIO, piece: bytes) -> None:
    stdout.write(piece)
    stdout.flush()


def _beginning(held: Bitfield) -> int:
    """Return how many bytes are held from the first one on, without a gap."""
    bounds = held.ranges.boundaries
    if not bounds or bounds[0] != 0:
        return 0
    return held.size if len(bounds) == 1 else min(held.size, bounds[1] * CHUNK_BYTES)
