"""What a provider tells of the requests that it answers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

import attrs

from dialkey.identity import EndpointId
from dialkey_blobs.hash import Hash
from dialkey_blobs.protocol import Request

__all__ = [
    "BlobServed",
    "ProviderEvent",
    "ProviderEvents",
    "ProviderEventsLagged",
    "RequestEnded",
    "RequestStarted",
]

MAX_PENDING_EVENTS: Final = 1024


@attrs.frozen
class RequestStarted:
    """An endpoint asks for something.

    Attributes:
        request_id: counts up over the life of the provider.
        remote_id: who asks.
        request: for what.
    """

    request_id: int
    remote_id: EndpointId
    request: Request


@attrs.frozen
class BlobServed:
    """A blob of a response is being sent.

    Attributes:
        request_id: as in `RequestStarted`.
        index: the blob's place in the request.
        hash: which blob.
        size: its bytes, of which perhaps only a part was asked for.
    """

    request_id: int
    index: int
    hash: Hash
    size: int


@attrs.frozen
class RequestEnded:
    """A request is over.

    Attributes:
        request_id: as in `RequestStarted`.
        remote_id: who asked.
        payload_bytes: content sent (for a push: received).
        overhead_bytes: headers and pairs.
        error: None when the getter has acknowledged everything (for a push: when everything is
            stored), else what ended it.
    """

    request_id: int
    remote_id: EndpointId
    payload_bytes: int
    overhead_bytes: int
    error: str | None


@attrs.frozen
class ProviderEventsLagged:
    """The reader was too slow, and events before the next one were dropped."""

    count: int


ProviderEvent = RequestStarted | BlobServed | RequestEnded | ProviderEventsLagged


class ProviderEvents:
    """One reader of what a provider does: ``async for event in events``; ends with `close`."""

    def __init__(self, detach: Callable[[ProviderEvents], None]) -> None:
        self._detach = detach
        self._queue: deque[ProviderEvent] = deque()
        self._dropped = 0
        self._news = asyncio.Event()
        self._closed = False

    def put(self, event: ProviderEvent) -> None:
        """Queue an event; drop the oldest if the reader is too far behind."""
        if len(self._queue) >= MAX_PENDING_EVENTS:
            self._queue.popleft()
            self._dropped += 1
        self._queue.append(event)
        self._news.set()

    def close(self) -> None:
        """Stop listening; the iteration ends. Idempotent."""
        self._closed = True
        self._detach(self)
        self._news.set()

    def __aiter__(self) -> AsyncIterator[ProviderEvent]:
        return self

    async def __anext__(self) -> ProviderEvent:
        while not self._closed:
            if self._dropped:
                count, self._dropped = self._dropped, 0
                return ProviderEventsLagged(count)
            if self._queue:
                return self._queue.popleft()
            self._news.clear()
            await self._news.wait()
        raise StopAsyncIteration
