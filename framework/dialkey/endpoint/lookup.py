"""Address lookups: ways to find where an endpoint can be reached, and to publish where we can.

An endpoint has any number of them, all equal: they are asked concurrently, each answer is used as it
arrives, and one that fails or hangs does not hold up the others. `StaticLookup` knows what the
application says, `MemoryLookup` what other endpoints of the process publish; others come from plugins.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from typing import Protocol, runtime_checkable

import attrs

from dialkey import limits
from dialkey.errors import InvalidInput
from dialkey.identity import EndpointAddr, EndpointId
from dialkey.network.reach import MayReach

__all__ = [
    "AddressLookup",
    "EndpointInfo",
    "LookupAnswer",
    "MemoryDirectory",
    "MemoryLookup",
    "ReportingLookup",
    "StaticLookup",
    "WatchingLookup",
]


def _check_user_data(_: object, __: object, text: str | None) -> None:
    if text is not None and len(text.encode()) > limits.MAX_USER_DATA_BYTES:
        raise InvalidInput(
            f"user data has at most {limits.MAX_USER_DATA_BYTES} bytes of UTF-8,"
            f" not {len(text.encode())}"
        )


@attrs.frozen
class EndpointInfo:
    """What is published about an endpoint.

    Attributes:
        addr: its id and where it can be reached.
        user_data: a short text of the application, which everybody can read.

    Raises:
        InvalidInput: the text has more than `limits.MAX_USER_DATA_BYTES`.
    """

    addr: EndpointAddr
    user_data: str | None = attrs.field(default=None, validator=_check_user_data)

    @property
    def id(self) -> EndpointId:
        """The endpoint's key."""
        return self.addr.id


@attrs.frozen
class LookupAnswer:
    """What one lookup knows about an endpoint.

    Attributes:
        info: the endpoint, its addresses and its user data.
        updated_at: when the endpoint said so, Unix time in seconds by its own clock; None if the source
            does not say.
        source: where it comes from, such as the server that was asked; empty means the lookup's name.
        may_reach: set if somebody other than the endpoint itself may have named its addresses. A name
            among them is then used only where it leads to IP addresses for which this is true.
    """

    info: EndpointInfo
    updated_at: float | None = None
    source: str = ""
    may_reach: MayReach | None = attrs.field(default=None, eq=False, repr=False)

    def age_s(self, now: float) -> float | None:
        """Return how old it is, given Unix time; None if that is not known."""
        return None if self.updated_at is None else max(0.0, now - self.updated_at)


class AddressLookup(Protocol):
    """One way to publish and find addresses: DNS, mDNS, a DHT, a file.

    Attributes:
        name: short, for messages.
    """

    name: str

    def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        """Yield what is found about an endpoint, as it is found; end when there is nothing more to ask.

        It is closed early when nobody needs more; it then stops its work. An exception ends this
        lookup only, and its text is shown. Answers for another id are ignored.
        """

    async def publish(self, info: EndpointInfo) -> None:
        """Publish what is now known about this endpoint.

        Called once the endpoint is bound, and whenever its home relay, its addresses or its user
        data change; never twice at a time, and always with the newest. The lookup decides what to keep
        private. An exception is logged and shown by `Endpoint.lookup_troubles`; retrying, with pauses,
        is up to the lookup.
        """

    async def close(self) -> None:
        """Stop. Idempotent."""


@runtime_checkable
class WatchingLookup(Protocol):
    """A lookup that notices changes by itself; all others are asked again from time to time."""

    def watch(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        """Yield what is known about an endpoint, then each change, until it is closed."""


@runtime_checkable
class ReportingLookup(Protocol):
    """A lookup that publishes in its own time, and reports how that goes."""

    @property
    def is_published(self) -> bool:
        """Whether others can find what was last passed to `publish`, as filtered by the lookup."""
        ...

    @property
    def publish_trouble(self) -> str:
        """Why the last attempt failed; empty if it did not."""
        ...


class _Book:
    """Answers by endpoint id, and who waits for changes; usable from several event loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[EndpointId, LookupAnswer] = {}
        self._watchers: dict[EndpointId, dict[asyncio.Event, asyncio.AbstractEventLoop]] = {}

    def get(self, id: EndpointId) -> LookupAnswer | None:
        return self._answers.get(id)

    def put(self, answer: LookupAnswer) -> None:
        with self._lock:
            self._answers[answer.info.id] = answer
            self._wake(answer.info.id)

    def drop(self, id: EndpointId, only: LookupAnswer | None = None) -> None:
        """Forget an endpoint; with `only`, only if this is still its latest answer."""
        with self._lock:
            if only is None or self._answers.get(id) is only:
                self._answers.pop(id, None)
                self._wake(id)

    def _wake(self, id: EndpointId) -> None:
        for event, loop in self._watchers.get(id, {}).items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    async def watch(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        event = asyncio.Event()
        with self._lock:
            self._watchers.setdefault(id, {})[event] = asyncio.get_running_loop()
        try:
            last = None
            while True:
                event.clear()
                answer = self.get(id)
                if answer is not None and answer != last:
                    yield answer
                last = answer
                await event.wait()
        finally:
            with self._lock:
                del self._watchers[id][event]
                if not self._watchers[id]:
                    del self._watchers[id]


class StaticLookup:
    """Addresses that the application knows from somewhere else."""

    name = "static"

    def __init__(self) -> None:
        self._book = _Book()

    def add(self, addr: EndpointAddr) -> None:
        """Remember addresses of an endpoint, besides those already known."""
        known = self._book.get(addr.id)
        if known is not None:
            addr = known.info.addr.with_addrs(addr.addrs)
        self._book.put(LookupAnswer(EndpointInfo(addr)))

    def forget(self, id: EndpointId) -> None:
        """Forget what is known about an endpoint."""
        self._book.drop(id)

    async def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        answer = self._book.get(id)
        if answer is not None:
            yield answer

    def watch(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        return self._book.watch(id)

    async def publish(self, info: EndpointInfo) -> None:
        """Nothing to publish to."""

    async def close(self) -> None:
        """Nothing to stop."""


class MemoryDirectory:
    """Where the endpoints of a process, or of a test, find each other; threads may share it.

    Each endpoint gets its own lookup: ``Endpoint.bind(address_lookups=[directory.lookup()])``.
    """

    def __init__(self) -> None:
        self._book = _Book()

    def lookup(self) -> MemoryLookup:
        """Make a lookup for one endpoint."""
        return MemoryLookup(self._book)

    def get(self, id: EndpointId) -> EndpointInfo | None:
        """Return what an endpoint has published."""
        answer = self._book.get(id)
        return None if answer is None else answer.info


class MemoryLookup:
    """Publishes into a `MemoryDirectory` and finds what others published there.

    What an endpoint published is gone when the endpoint is closed.
    """

    name = "memory"

    def __init__(self, book: _Book) -> None:
        self._book = book
        self._published: LookupAnswer | None = None

    async def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        answer = self._book.get(id)
        if answer is not None:
            yield answer

    def watch(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        return self._book.watch(id)

    async def publish(self, info: EndpointInfo) -> None:
        self._published = LookupAnswer(info, updated_at=time.time())
        self._book.put(self._published)

    async def close(self) -> None:
        published, self._published = self._published, None
        if published is not None:
            self._book.drop(published.info.id, only=published)
