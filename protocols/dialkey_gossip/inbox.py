"""The events that wait for one reader: bounded, and honest about what was dropped."""

from __future__ import annotations

import asyncio
from collections import deque

from dialkey_gossip.events import Event, Lagged

__all__ = ["Inbox"]


class Inbox:
    """A queue that drops its oldest events when nobody fetches them.

    Args:
        capacity: events that wait at most.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("an inbox holds at least one event")
        self._capacity = capacity
        self._events: deque[Event] = deque()
        self._missed = 0
        self._is_closed = False
        self._waiters: deque[asyncio.Future[None]] = deque()

    def put(self, event: Event) -> None:
        """Add an event; the oldest one goes if there is no room."""
        if self._is_closed:
            return
        if len(self._events) >= self._capacity:
            self._events.popleft()
            self._missed += 1
        self._events.append(event)
        self._wake()

    def close(self) -> None:
        """End the queue; what is in it can still be fetched."""
        self._is_closed = True
        while self._waiters:
            self._wake()

    async def get(self) -> Event | None:
        """Wait for the next event; None after the last one. Cancellation loses no event."""
        while not self._events:
            if self._is_closed:
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

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
