"""From the network to the screen: a queue that a slow reader cannot make grow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Final, Self

from dialkey_chat.room import Notice, Remark

__all__ = ["Notices"]

CAPACITY: Final = 2_000


class Notices:
    """Notices in order, for one reader; iterate over it. It ends when it is closed and empty.

    When the reader is too slow, the oldest are dropped, and a remark says how many.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._queue: deque[Notice] = deque(maxlen=capacity)
        self._dropped = 0
        self._is_closed = False
        self._filled = asyncio.Event()

    def put(self, notices: Iterable[Notice]) -> None:
        """Append some."""
        for notice in notices:
            self._dropped += len(self._queue) == self._queue.maxlen
            self._queue.append(notice)
        if self._queue:
            self._filled.set()

    def close(self) -> None:
        """Let the reader come to an end."""
        self._is_closed = True
        self._filled.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Notice:
        while not self._queue:
            if self._is_closed:
                raise StopAsyncIteration
            self._filled.clear()
            await self._filled.wait()
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            return Remark(f"{dropped} lines were left out")
        return self._queue.popleft()
