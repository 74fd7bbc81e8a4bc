"""The records of a server: what is taken, what is in memory, and the store behind it."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import logging
from collections.abc import Callable
from typing import TypeVar

import attrs

from dialkey.identity import EndpointId
from dialkey_pkarr.errors import InvalidPacket, StoreFailed
from dialkey_pkarr.limits import (
    AHEAD_MOST_S,
    EVICT_AFTER_S,
    EVICT_EVERY_S,
    MAX_CACHED_RECORDS,
    MAX_PENDING_GETS,
    MAX_PENDING_PUTS,
    STORE_RETRY_S,
)
from dialkey_pkarr.packets import SignedPacket
from dialkey_pkarr.server.store import RecordStore

__all__ = ["Counters", "Records", "check_time"]

T = TypeVar("T")

logger = logging.getLogger("dialkey.dns")


def check_time(packet: SignedPacket, now_s: float) -> None:
    """See that a record was signed neither long ago nor in the far future.

    Raises:
        InvalidPacket: it was.
    """
    age = now_s - packet.timestamp_us / 1_000_000
    if age > EVICT_AFTER_S:
        raise InvalidPacket("the packet was signed too long ago", hint="is the clock right?")
    if age < -AHEAD_MOST_S:
        raise InvalidPacket("the packet was signed in the future", hint="is the clock right?")


@attrs.define
class Counters:
    """What has happened since the start."""

    puts_updated: int = 0
    puts_not_newer: int = 0
    puts_refused: int = 0
    puts_limited: int = 0
    gets: int = 0
    evicted: int = 0
    store_errors: int = 0
    dns_queries_udp: int = 0
    dns_queries_tcp: int = 0
    dns_queries_https: int = 0
    dns_found: int = 0
    dns_not_found: int = 0
    dns_errors: int = 0
    dns_udp_limited: int = 0
    http_requests: int = 0
    connections_displaced: int = 0
    timeouts: int = 0


class Records:
    """Signed records in memory and in a store.

    Writes that come while a transaction runs share the next one, and are answered when it is
    committed. When the store fails, what is in memory goes on being answered; once the store is back,
    that is written to it.

    Args:
        store: where they are kept.
        clock: seconds since 1970.
        cache: how many are kept in memory.

    Attributes:
        trouble: why the store fails, None while it works.
        stored: how many records the store had when they were last counted.
    """

    def __init__(
        self,
        store: RecordStore,
        clock: Callable[[], float],
        *,
        cache: int = MAX_CACHED_RECORDS,
    ) -> None:
        self._store = store
        self._clock = clock
        self._most = cache
        self._cache: collections.OrderedDict[EndpointId, SignedPacket] = collections.OrderedDict()
        self._pending: list[tuple[SignedPacket, asyncio.Future[bool]]] = []
        self._gets = 0
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._writing = concurrent.futures.ThreadPoolExecutor(1, "dialkey-dns-write")
        self._reading = concurrent.futures.ThreadPoolExecutor(1, "dialkey-dns-read")
        self._stopping = False
        self.trouble: str | None = None
        self.stored = 0
        self.counters = Counters()

    async def __aenter__(self) -> Records:
        self.stored = await self._in_thread(self._writing, self._store.count)
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._tidy())]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._stopping = True
        self._wake.set()
        writer, tidier = self._tasks
        tidier.cancel()
        await asyncio.gather(writer, tidier, return_exceptions=True)
        await asyncio.to_thread(self._store.close)
        self._writing.shutdown(wait=False)
        self._reading.shutdown(wait=False)

    def cached(self, id: EndpointId) -> SignedPacket | None:
        """Return a record if it is in memory."""
        packet = self._cache.get(id)
        if packet is None or self._is_old(packet):
            return None
        self._cache.move_to_end(id)
        return packet

    async def get(self, id: EndpointId) -> SignedPacket | None:
        """Return the record of a key.

        Raises:
            StoreFailed: it is not in memory, and the store fails or has too much to do.
        """
        if (packet := self.cached(id)) is not None:
            return packet
        if self._gets >= MAX_PENDING_GETS:
            raise StoreFailed("too many questions wait for the database")
        if self.trouble is not None:
            raise StoreFailed(self.trouble)
        self._gets += 1
        try:
            packet = await self._in_thread(self._reading, lambda: self._store.get(id))
        finally:
            self._gets -= 1
        if packet is None or self._is_old(packet):
            # Something may have been put meanwhile.
            return self.cached(id)
        return self._remember(packet)

    async def put(self, packet: SignedPacket) -> bool:
        """Keep a record if it is newer than what is known; tell whether it is.

        Raises:
            InvalidPacket: its time is not right.
            StoreFailed: it was not kept, because the store fails or has too much to do.
        """
        check_time(packet, self._clock())
        if self.trouble is not None:
            raise StoreFailed(self.trouble)
        if len(self._pending) >= MAX_PENDING_PUTS or self._stopping:
            raise StoreFailed("too many records wait for the database")
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pending.append((packet, done))
        self._wake.set()
        is_newer = await done
        if is_newer:
            self.counters.puts_updated += 1
        else:
            self.counters.puts_not_newer += 1
        return is_newer

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._pending = self._pending, []
            if batch:
                await self._write_batch(batch)
            elif self._stopping:
                return
            if self._stopping:
                self._wake.set()

    async def _write_batch(self, batch: list[tuple[SignedPacket, asyncio.Future[bool]]]) -> None:
        packets = [packet for packet, _ in batch]
        try:
            kept = await self._in_thread(self._writing, lambda: self._store.put(packets))
        except StoreFailed as error:
            for _, done in batch:
                if not done.done():
                    done.set_exception(StoreFailed(error.message))
            return
        for (packet, done), is_newer in zip(batch, kept, strict=True):
            if is_newer:
                self._remember(packet)
            if not done.done():
                done.set_result(is_newer)

    def _remember(self, packet: SignedPacket) -> SignedPacket:
        known = self._cache.get(packet.id)
        if known is None or packet.is_newer_than(known):
            self._cache[packet.id] = known = packet
        self._cache.move_to_end(packet.id)
        while len(self._cache) > self._most:
            self._cache.popitem(last=False)
        return known

    def _is_old(self, packet: SignedPacket) -> bool:
        return packet.timestamp_us < self._oldest_us()

    def _oldest_us(self) -> int:
        return int((self._clock() - EVICT_AFTER_S) * 1_000_000)

    async def _tidy(self) -> None:
        """Forget what is old, and look after a store that failed."""
        since = 0.0
        while True:
            await asyncio.sleep(STORE_RETRY_S)
            since += STORE_RETRY_S
            try:
                if self.trouble is not None:
                    await self.recover()
                if since >= EVICT_EVERY_S:
                    since = 0.0
                    await self.evict()
            except StoreFailed:
                continue  # `trouble` says so already

    async def evict(self) -> int:
        """Forget what was signed too long ago; return how many records that were.

        Raises:
            StoreFailed: the store fails.
        """
        before = self._oldest_us()
        count = await self._in_thread(self._writing, lambda: self._store.evict(before))
        self.counters.evicted += count
        for id in [id for id, each in self._cache.items() if each.timestamp_us < before]:
            del self._cache[id]
        # Counting a million takes a while, so that it is done seldom.
        self.stored = await self._in_thread(self._writing, self._store.count)
        return count

    async def recover(self) -> None:
        """Try a store that failed again, and give it what is in memory: it may have lost that.

        Raises:
            StoreFailed: it still fails.
        """
        packets = list(self._cache.values())
        await self._in_thread(self._writing, lambda: self._store.put(packets))
        if self.trouble is not None:
            logger.warning("the database is back")
        self.trouble = None

    async def _in_thread(self, pool: concurrent.futures.Executor, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        except StoreFailed as error:
            self.counters.store_errors += 1
            if self.trouble is None:
                logger.error("%s; what is in memory is answered meanwhile", error.message)
            self.trouble = error.message
            raise
