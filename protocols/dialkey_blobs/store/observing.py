"""Telling those who observe a blob when the store holds more of it."""

from __future__ import annotations

import asyncio

from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.hash import Hash
from dialkey_blobs.store.core import StoreCore
from dialkey_blobs.store.worker import Worker

__all__ = ["Observation", "Observers"]


class Observation:
    """What is held of a blob, now and after each change: an async iterator and context manager.

    Items are whole states; `Bitfield.diff` tells what is new. A slow reader gets the newest state and
    none in between, so being slow costs nothing. It ends when the store is closed.

    Source: docs/wire/blobs.md 1.4 (Observe) and 5.2.
    """

    def __init__(self, observers: Observers, worker: Worker, hash: Hash) -> None:
        self._observers = observers
        self._worker = worker
        self._hash = hash
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._latest = Bitfield()
        self._held: Bitfield | None = None
        self._is_over = False

    def __aiter__(self) -> Observation:
        return self

    async def __anext__(self) -> Bitfield:
        if self._held is None:
            self._held = await self._worker.call(self._begin)
            return self._held
        while not self._is_over:
            self._news.clear()
            if self._latest != self._held:
                self._held = self._latest
                return self._held
            await self._news.wait()
        raise StopAsyncIteration

    async def __aenter__(self) -> Observation:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop observing; the iteration ends. Idempotent."""
        self._worker.post(self._end)
        self._take(None)

    def _begin(self, core: StoreCore) -> Bitfield:
        self._observers.add(self._hash, self)
        self._latest = core.status(self._hash).bitfield
        return self._latest

    def _end(self, core: StoreCore) -> None:
        self._observers.remove(self._hash, self)

    def tell(self, bitfield: Bitfield | None) -> None:
        """Deliver a new state from any thread; None means that there will be no more."""
        try:
            self._loop.call_soon_threadsafe(self._take, bitfield)
        except RuntimeError:
            pass  # the loop has ended, and so has whoever waited

    def _take(self, bitfield: Bitfield | None) -> None:
        if bitfield is None:
            self._is_over = True
        else:
            self._latest = bitfield
        self._news.set()


class Observers:
    """The observations of a store, by blob; belongs to the store's thread."""

    def __init__(self) -> None:
        self._by_hash: dict[Hash, set[Observation]] = {}

    def add(self, hash: Hash, observation: Observation) -> None:
        """Add an observation."""
        self._by_hash.setdefault(hash, set()).add(observation)

    def remove(self, hash: Hash, observation: Observation) -> None:
        """Remove an observation."""
        group = self._by_hash.get(hash, set())
        group.discard(observation)
        if not group:
            self._by_hash.pop(hash, None)

    def changed(self, hash: Hash, bitfield: Bitfield) -> None:
        """Tell those who observe a blob."""
        for observation in self._by_hash.get(hash, ()):
            observation.tell(bitfield)

    def close(self) -> None:
        """End all observations; the store's thread must have ended."""
        by_hash, self._by_hash = self._by_hash, {}
        for group in by_hash.values():
            for observation in group:
                observation.tell(None)
