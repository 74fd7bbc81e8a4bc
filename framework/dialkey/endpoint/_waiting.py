"""Tasks that wait for something that may not suffice for all of them."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """A queue of waiting tasks: first come, first served; a turn that is not taken is passed on."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        # Most queues of most connections are never used, and an empty deque takes 700 bytes.
        self._waiting: deque[asyncio.Future[None]] | None = None

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    async def wait(self) -> None:
        """Wait for a turn. Cancellation passes on a turn that came at the same moment."""
        if self._waiting is None:
            self._waiting = deque()
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.next()
            raise
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def next(self) -> None:
        """Give a turn to the task that has waited longest."""
        waiting = self._waiting
        while waiting:
            waiter = waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def all(self) -> None:
        """Wake every task, because there is nothing more to wait for."""
        for waiter in self._waiting or ():
            wake(waiter)


def wake(waiter: asyncio.Future[None] | None) -> None:
    """Wake a task, if one waits."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
