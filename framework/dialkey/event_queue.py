"""The events that wait for one reader: bounded, and honest about what was dropped.

State is offered twice in dialkey, as a snapshot and as events. A reader of events that falls behind holds
up nobody: the oldest are dropped, and the next thing that it gets is `Lagged`, with how many it missed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, Self, TypeVar

import attrs

__all__ = ["EventQueue", "Lagged"]

T = TypeVar("T")


@attrs.frozen
class Lagged:
    """Events were dropped because they were not fetched in time: look at the snapshot.

    Attributes:
        missed: how many.
    """

    missed: int


class EventQueue(Generic[T]):
    """A queue that drops its oldest events when nobody fetches them: ``async for event in queue``.

    Several tasks may fetch; each event goes to one of them, first come, first served.

    Args:
        capacity: events that wait at most.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("a queue of events holds at least one")
        self._capacity = capacity
        self._events: deque[T] = deque()
        self._missed = 0
        self._has_ended = False
        self._waiters: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        """Return how many events wait."""
        return len(self._events)

    def put(self, event: T) -> None:
        """Add an event; the oldest one goes if there is no room. After the end nothing is added."""
        if self._has_ended:
            return
        if len(self._events) >= self._capacity:
            self._events.popleft()
            self._missed += 1
        self._events.append(event)
        self._wake()

    def clear(self) -> None:
        """Forget what waits."""
        self._events.clear()
        self._missed = 0

    def end(self) -> None:
        """End the queue; what is in it can still be fetched. Idempotent."""
        self._has_ended = True
        while self._waiters:
            self._wake()

    async def get(self) -> T | Lagged | None:
        """Wait for the next event; None after the last one. Cancellation loses no event."""
        while not self._events:
            if self._has_ended:
                return None
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                elif self._events:
                    self._wake()  # the event that woke us is for somebody else now
                raise
        if self._missed:
            lagged, self._missed = Lagged(self._missed), 0
            return lagged
        return self._events.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T | Lagged:
        event = await self.get()
        if event is None:
            raise StopAsyncIteration
        return event

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
