"""Fetching content from one or several providers, with resumption.

A download asks only for what the store does not hold, so it goes on wherever an earlier one, or a
lost connection, ended. For a hash sequence it first fetches the sequence and its first child (the
names of a collection), then the proofs of all sizes, then the rest: so totals are known early.

Source: docs/wire/blobs.md 8.2, 8.3.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from dialkey import Connection, DialLimits, Endpoint, PathInfo
from dialkey.errors import (
    ConnectionClosedByPeer,
    DialkeyError,
    HandshakeError,
    InvalidInput,
    LocalError,
    NetworkError,
    StreamReset,
)
from dialkey.identity import EndpointAddr, EndpointId
from dialkey.limits import MAX_HASH_SEQ_BYTES
from dialkey_blobs.errors import BlobNotFound
from dialkey_blobs.getting import get
from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat
from dialkey_blobs.local import Local, look
from dialkey_blobs.protocol import (
    ALPN,
    COMPLETE_REASON,
    FAILED_REASON,
    CloseCode,
    GetRequest,
    StreamCode,
)
from dialkey_blobs.ranges import ChunkRanges, ChunkRangesSeq
from dialkey_blobs.receiving import STALL_TIMEOUT_S
from dialkey_blobs.store.core import StoreReader
from dialkey_blobs.store.values import BlobState
from dialkey_blobs.tree import CHUNK_BYTES

if TYPE_CHECKING:
    from dialkey_blobs.store import Store

__all__ = [
    "BlobFetched",
    "Connected",
    "Download",
    "DownloadEvent",
    "Downloaded",
    "Progress",
    "ProviderFailed",
]

PATIENCE_S: Final = 60.0
"""How long a provider that was reached once may deliver nothing. A dial that nobody answers takes half of
that, and a provider that restarts may be shutting down, or lack the content, for some seconds."""
MAX_REFUSALS: Final = 5
"""How often a provider that has never delivered anything may turn us away."""
RETRY_FIRST_S: Final = 0.25
RETRY_MOST_S: Final = 8.0
MAX_REQUEST_BOUNDARIES: Final = 1 << 16
MAX_REQUEST_ENTRIES: Final = 1 << 15
"""How much of what is missing is requested at once: well within the 1 MiB of a request."""
SIZES_FIRST_CHILDREN: Final = 1024
"""For up to this many children, sizes are asked for before the content."""


@attrs.frozen
class Connected:
    """A provider was reached.

    Attributes:
        remote_id: which.
        path: the path to it.
    """

    remote_id: EndpointId
    path: PathInfo


@attrs.frozen
class Progress:
    """How far the download has got.

    Attributes:
        held_bytes: content that is verified and stored, including what was there before.
        total_bytes: all content, once every size is proven; None before. For a single blob it is
            what the provider claims, until that is proven.
        bytes_per_s: content received per second, over the last few seconds.
        path: the path in use, or None between connections.
    """

    held_bytes: int
    total_bytes: int | None
    bytes_per_s: float
    path: PathInfo | None


@attrs.frozen
class BlobFetched:
    """A blob is complete.

    Attributes:
        hash: which.
        size: its bytes.
    """

    hash: Hash
    size: int


@attrs.frozen
class ProviderFailed:
    """A provider failed; what comes next depends on `retry_in_s`.

    Attributes:
        remote_id: which.
        error: why.
        retry_in_s: seconds until it is tried again, or None when it is given up.
    """

    remote_id: EndpointId
    error: DialkeyError
    retry_in_s: float | None


@attrs.frozen
class Downloaded:
    """Everything is there.

    Attributes:
        content: what was asked for.
        total_bytes: all content.
        payload_bytes: content that this download received.
        overhead_bytes: headers and pairs that it received.
        elapsed_s: how long it took.
        remote_id: who sent the last part; None if everything was there before.
    """

    content: HashAndFormat
    total_bytes: int
    payload_bytes: int
    overhead_bytes: int
    elapsed_s: float
    remote_id: EndpointId | None


DownloadEvent = Connected | Progress | BlobFetched | ProviderFailed | Downloaded


@attrs.define
class _Candidate:
    addr: EndpointAddr
    was_connected: bool = False
    has_delivered: bool = False
    fruitless: int = 0
    progressed_at: float | None = None


class _Rate:
    """Bytes per second over the last few seconds."""

    WINDOW_S: Final = 3.0

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, total: int) -> float:
        samples = self._samples
        samples.append((now, total))
        while now - samples[0][0] > self.WINDOW_S and len(samples) > 2:
            samples.popleft()
        elapsed = now - samples[0][0]
        return (total - samples[0][1]) / elapsed if elapsed > 0 else 0.0


class Download:
    """A download: iterate over its events, or await it for the last one.

    It runs while it is iterated over or awaited. Leaving the iteration or cancelling stops it; what
    was stored stays, and another download of the same content goes on from there.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        store: Store,
        content: HashAndFormat,
        providers: Sequence[EndpointAddr],
        *,
        connection: Connection | None = None,
        stall_timeout_s: float = STALL_TIMEOUT_S,
        patience_s: float = PATIENCE_S,
        dial_limits: Callable[[EndpointId], DialLimits | None] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._dial_limits = dial_limits
        self._store = store
        self.content = content
        others = [addr for addr in providers if addr.id != endpoint.id]
        if not others:
            raise InvalidInput("no other provider is named for this content")
        self._candidates = deque(_Candidate(addr) for addr in others)
        self._given = connection
        self._open: Connection | None = None
        self._is_complete = False
        self._is_spoilt = False
        self._stall_timeout_s = stall_timeout_s
        self._patience_s = patience_s
        self._rate = _Rate()
        self._payload = 0
        self._overhead = 0

    def __await__(self) -> Generator[object, None, Downloaded]:
        return self._to_end().__await__()

    async def _to_end(self) -> Downloaded:
        last: DownloadEvent | None = None
        async for event in self:
            last = event
        assert isinstance(last, Downloaded)
        return last

    async def __aiter__(self) -> AsyncGenerator[DownloadEvent, None]:
        """Yield events; the last is `Downloaded`. Close it (`contextlib.aclosing`) to stop at once.

        Raises:
            VerificationError: the only provider left lied.
            BlobNotFound, ItemNotFound, StreamReset: no provider has it, or none gives it to us.
            DialError, ConnectionLost, ConnectionClosedByPeer: no provider can be reached any more.
            StorageError: the store failed.
        """
        try:
            loop = asyncio.get_running_loop()
            started_at = loop.time()
            last_remote: EndpointId | None = None
            with self._store.pin(self.content):
                local = await self._look()
                for each in self._candidates:
                    # What an earlier download left behind came from one of them.
                    each.has_delivered = local.held_bytes > 0
                while not local.is_complete:
                    candidate = self._candidates[0]
                    held = local.held_bytes
                    if candidate.progressed_at is None:
                        # Patience begins with the first try: silence takes its time to be noticed.
                        candidate.progressed_at = loop.time()
                    try:
                        async with aclosing(self._fetch_from(candidate, local)) as events:
                            async for event in events:
                                yield event
                        last_remote = candidate.addr.id
                        local = await self._look()
                        if not local.is_complete:
                            raise BlobNotFound("the provider holds only a part of this content")
                    except LocalError:
                        raise
                    except DialkeyError as error:
                        self._leave()
                        local = await self._look()
                        delay = self._after_failure(candidate, error, local.held_bytes > held)
                        yield ProviderFailed(candidate.addr.id, error, delay)
                        if not self._candidates:
                            raise
                        if delay:
                            await asyncio.sleep(delay)
                self._is_complete = True
                yield Downloaded(
                    self.content,
                    local.held_bytes,
                    self._payload,
                    self._overhead,
                    loop.time() - started_at,
                    last_remote,
                )
        finally:
            self._leave()

    def _after_failure(
        self, candidate: _Candidate, error: DialkeyError, progressed: bool
    ) -> float | None:
        """Decide about a failed provider: seconds until it is tried again, None if never."""
        now = asyncio.get_running_loop().time()
        if progressed or candidate.progressed_at is None:
            candidate.progressed_at = now
        candidate.fruitless = 0 if progressed else candidate.fruitless + 1
        may_recover = _may_recover(error, candidate)
        candidate.has_delivered |= progressed
        self._candidates.popleft()
        if not may_recover or now - candidate.progressed_at >= self._patience_s:
            return None
        self._candidates.append(candidate)
        if len(self._candidates) > 1 and self._candidates[0].fruitless == 0:
            return 0.0
        delay: float = min(RETRY_FIRST_S * 2**candidate.fruitless, RETRY_MOST_S)
        return delay * random.uniform(0.5, 1.0)

    def spoil(self) -> None:
        """Report that the content is useless after all, for example because it cannot be written.

        Call it while handling the last event: the connection to the provider stays open until the
        iteration goes on, and is then closed with that news.
        """
        self._is_spoilt = True

    def settle(self) -> None:
        """Say that all content is in its place by another way, so that the rest is not needed.

        To be called while an event is handled; leave the iteration then.
        """
        self._is_complete = True

    def _leave(self) -> None:
        connection, self._open = self._open, None
        if connection is None:
            return
        if self._is_complete and not self._is_spoilt:
            connection.close(CloseCode.COMPLETE, COMPLETE_REASON)
        else:
            connection.close(CloseCode.FAILED, FAILED_REASON)

    async def _look(self) -> Local:
        return await self._store.run(lambda core: look(core, self.content))

    async def _dial(self, addr: EndpointAddr) -> Connection:
        limits = self._dial_limits(addr.id) if self._dial_limits is not None else None
        return await self._endpoint.connect(addr, ALPN, limits=limits)

    async def _fetch_from(
        self, candidate: _Candidate, local: Local
    ) -> AsyncGenerator[DownloadEvent, None]:
        given, self._given = self._given, None
        connection = given or await self._dial(candidate.addr)
        candidate.was_connected = True
        if given is None:
            self._open = connection
        path = _path_of(connection)
        if path is not None:
            yield Connected(connection.remote_id, path)
        for plan in (_begin_request, _sizes_request, _missing_request):
            while (request := await self._store.run(partial(plan, local=local))) is not None:
                held = local.held_bytes
                if local.total_bytes is not None:
                    await self._store.check_space(local.total_bytes - held)
                async with aclosing(self._fetch(connection, request, local)) as events:
                    async for event in events:
                        yield event
                local = await self._look()
                if local.held_bytes == held:
                    break

    async def _fetch(
        self, connection: Connection, request: GetRequest, local: Local
    ) -> AsyncGenerator[DownloadEvent, None]:
        loop = asyncio.get_running_loop()
        payload, overhead = self._payload, self._overhead
        limit = None if self.content.format is BlobFormat.RAW else MAX_HASH_SEQ_BYTES
        async with aclosing(
            get(
                self._store,
                connection,
                request,
                max_root_size=limit,
                stall_timeout_s=self._stall_timeout_s,
            )
        ) as responses:
            async for received in responses:
                self._payload = payload + received.payload_bytes
                self._overhead = overhead + received.overhead_bytes
                for blob in received.finished:
                    if _completes(request.ranges[blob.index], blob.size):
                        yield BlobFetched(blob.hash, blob.size)
                total = local.total_bytes
                if total is None and local.content.format is BlobFormat.RAW:
                    total = received.claimed_size
                yield Progress(
                    local.held_bytes + received.payload_bytes,
                    total,
                    self._rate.add(loop.time(), self._payload),
                    _path_of(connection),
                )


def _path_of(connection: Connection) -> PathInfo | None:
    return next(iter(connection.paths()), None)


def _completes(ranges: ChunkRanges, size: int) -> bool:
    """Return whether a blob is complete with these ranges: true except for requests for sizes."""
    return ranges != ChunkRanges.last_chunk() or size <= CHUNK_BYTES


def _may_recover(error: DialkeyError, candidate: _Candidate) -> bool:
    if isinstance(error, NetworkError):
        return candidate.was_connected
    is_busy = isinstance(error, StreamReset) and error.error_code == StreamCode.LIMIT
    is_closed = isinstance(error, ConnectionClosedByPeer)
    if candidate.has_delivered and candidate.was_connected:
        # It may be restarting: then it has no such content yet, or not even the protocol. Who says so
        # over the very connection that has brought something means it.
        is_missing = isinstance(error, BlobNotFound | HandshakeError) or (
            isinstance(error, StreamReset) and error.error_code == StreamCode.INTERNAL
        )
        return is_busy or is_closed or is_missing
    return (is_busy or is_closed) and candidate.fruitless < MAX_REFUSALS


def _begin_request(reader: StoreReader, local: Local) -> GetRequest | None:
    """Return the request for a hash sequence and its first child, if it is not held."""
    if local.content.format is BlobFormat.RAW or local.children is not None:
        return None
    assert local.missing is not None
    sets = [local.missing.ranges[0], ChunkRanges.all()]
    return GetRequest(local.content.hash, ChunkRangesSeq.finite(sets))


def _sizes_request(reader: StoreReader, local: Local) -> GetRequest | None:
    """Return the request for the last chunk of each child whose size is not proven."""
    children = local.children
    if children is None or len(children) > SIZES_FIRST_CHILDREN:
        return None
    sets = [ChunkRanges.empty()]
    wanted = False
    seen: set[Hash] = set()
    for hash in children:
        status = reader.status(hash)
        if hash in seen or status.size is not None or status.state is BlobState.COMPLETE:
            sets.append(ChunkRanges.empty())
        else:
            wanted = True
            sets.append(ChunkRanges.last_chunk())
        seen.add(hash)
    return GetRequest(local.content.hash, ChunkRangesSeq.finite(sets)) if wanted else None


def _missing_request(reader: StoreReader, local: Local) -> GetRequest | None:
    """Return a request for what is missing, or as much of it as a request should hold."""
    if local.missing is None:
        return None
    return GetRequest(local.content.hash, _cut_off(local.missing.ranges))


def _cut_off(sequence: ChunkRangesSeq) -> ChunkRangesSeq:
    kept: list[tuple[int, ChunkRanges]] = []
    room = MAX_REQUEST_BOUNDARIES
    for index, ranges in sequence.entries:
        if room < 2 or len(kept) >= MAX_REQUEST_ENTRIES:
            kept.append((index, ChunkRanges.empty()))
            break
        if len(ranges.boundaries) > room:
            ranges = ChunkRanges(ranges.boundaries[: room - room % 2])
        room -= len(ranges.boundaries)
        kept.append((index, ranges))
    return ChunkRangesSeq(tuple(kept))
