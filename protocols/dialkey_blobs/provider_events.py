"""What a provider reports about the requests that it answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from dialkey.event_queue import EventQueue, Lagged
from dialkey.identity import EndpointId
from dialkey_blobs.hash import Hash
from dialkey_blobs.protocol import Request

__all__ = [
    "BlobServed",
    "ProviderEvent",
    "ProviderEvents",
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
        request: what it asks for.
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


ProviderEvent = RequestStarted | BlobServed | RequestEnded | Lagged


class ProviderEvents(EventQueue[ProviderEvent]):
    """One reader of what a provider does: ``async for event in events``; ends with `close`."""

    def __init__(self, detach: Callable[[ProviderEvents], None]) -> None:
        super().__init__(MAX_PENDING_EVENTS)
        self._detach = detach

    def close(self) -> None:
        """Stop listening; the iteration ends. Idempotent."""
        self._detach(self)
        self.clear()
        self.end()
