"""Content on its way to standard output, as soon as it is verified."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Final, Protocol

from dialkey.cli import Output
from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.hash import Hash
from dialkey_blobs.store import Store
from dialkey_blobs.tree import CHUNK_BYTES

__all__ = ["Printer"]

_PIECE_BYTES: Final = 1 << 20


class _Raw(Protocol):
    def write(self, data: memoryview, /) -> int: ...


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
        buffer = self._output.stdout.buffer
        # Not the buffer: a thread that hangs in it would hold its lock, which the program's end needs.
        stdout: _Raw = getattr(buffer, "raw", buffer)
        held = _beginning((await self._store.status(hash)).bitfield)
        while self.written_bytes < held and not self._output.has_lost_reader:
            size = min(_PIECE_BYTES, held - self.written_bytes)
            piece = await self._store.read(hash, self.written_bytes, size)
            await _write(stdout, piece)
            self.written_bytes += len(piece)


async def _write(stdout: _Raw, piece: bytes) -> None:
    """Write in a thread that nobody waits for when the command ends: the reader may hang for ever."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    # In virtual time (dialkey.testing) the clock has to stand still while the thread works.
    wait_for_thread = getattr(loop, "wait_for_thread", None)
    if wait_for_thread is not None:
        wait_for_thread(done)

    def work() -> None:
        error: Exception | None = None
        try:
            view = memoryview(piece)
            while view:
                view = view[stdout.write(view) :]
        except Exception as failure:
            error = failure  # raised again where the caller awaits it
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            loop.call_soon_threadsafe(_settle, done, error)

    threading.Thread(target=work, name="dialkey-blobs-print", daemon=True).start()
    await done


def _settle(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


def _beginning(held: Bitfield) -> int:
    """Return how many bytes are held from the first one on, without a gap."""
    bounds = held.ranges.boundaries
    if not bounds or bounds[0] != 0:
        return 0
    return held.size if len(bounds) == 1 else min(held.size, bounds[1] * CHUNK_BYTES)
