"""Places for tasks, shared fairly: who has few comes next, and who does not move makes room.

The rules are those of `dialkey.shares.FairShares`; here they meet tasks, such as blob requests. A task
that has to make room is not ended at once. Between two steps it gives its place away and waits for
another one; only if it does not come that far, because its peer takes next to nothing, is it ended.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Final

from dialkey.errors import LimitExceeded
from dialkey.shares import Claim, FairShares

__all__ = ["LEAST_BYTES_PER_S", "PARTING_S", "TURN_S", "Place", "Places"]

LEAST_BYTES_PER_S: Final = 16_384
"""Below this a request is slow, which only matters once places are short: a tenth of a poor mobile
connection, and 256 requests of that kind are a hundredth of what one machine can serve."""

GRACE_S: Final = 10.0
"""Over how long that is measured: a handover between networks takes a few seconds."""

PARTING_S: Final = 10.0
"""How long a request that has to make room may take to the end of its step, a megabyte: those who read
100 KB/s lose nothing."""

TURN_S: Final = 2.0
"""After this long a place passes, if it can, to somebody who waits and has none: one turn each."""

LOOK_S: Final = 1.0
"""How often those who wait look for places whose holders have become slow."""


class Places:
    """A number of places that holders share, such as endpoints or addresses.

    Args:
        total: how many there are.
        most: how many one holder may have.
        wait_s: how long to wait for one before the request is turned away.
        parting_s: how long a request that has to make room may go on; 0 ends it at once, and then
            pauses do not give its place away either.
        least_rate: bytes per second below which a holder is slow; 0 where nothing moves.
    """

    def __init__(
        self,
        total: int,
        most: int,
        *,
        wait_s: float,
        parting_s: float,
        least_rate: float = LEAST_BYTES_PER_S,
    ) -> None:
        self._shares = FairShares[Hashable](total, most, least_rate=least_rate, grace_s=GRACE_S)
        self._wait_s = wait_s
        self._parting_s = parting_s
        self._waiting: dict[Hashable, deque[tuple[Claim, asyncio.Future[None]]]] = {}
        self._look: asyncio.TimerHandle | None = None

    @property
    def used(self) -> int:
        """How many places are taken."""
        return self._shares.used

    @asynccontextmanager
    async def hold(self, holder: Hashable) -> AsyncIterator[Place]:
        """Hold a place. The running task is cancelled if it has to make room and does not.

        Raises:
            LimitExceeded: there was no place in time, or somebody else needed this one.
        """
        task = asyncio.current_task()
        assert task is not None
        place = Place(self, holder, task, self._parting_s)
        try:
            await place.take()
            yield place
        except asyncio.CancelledError:
            if not place.has_ended_task or task.cancelling() != 1:
                raise
            task.uncancel()
            raise LimitExceeded("the request made room for somebody with fewer") from None
        finally:
            place.release()

    # --- for places -----------------------------------------------------------------------------

    async def claim(self, place: Place) -> Claim:
        """Take a place, or wait for one."""
        loop = asyncio.get_running_loop()
        holder = place.holder
        claim = self._shares.claim(holder, place.make_room, now=loop.time())
        if holder not in self._waiting and claim.take(1, loop.time()):
            return claim
        future: asyncio.Future[None] = loop.create_future()
        entry = (claim, future)
        self._waiting.setdefault(holder, deque()).append(entry)
        if self._look is None:
            self._look = loop.call_later(LOOK_S, self._look_again)
        try:
            async with asyncio.timeout(self._wait_s):
                await future
        except BaseException as error:
            queue = self._waiting.get(holder)
            if queue is not None and entry in queue:
                queue.remove(entry)
                if not queue:
                    del self._waiting[holder]
            claim.release()
            self.serve_waiting()
            if isinstance(error, TimeoutError):
                raise LimitExceeded("too many requests at a time") from None
            raise
        return claim

    def is_wanted_more(self, holder: Hashable) -> bool:
        """Whether somebody waits who has fewer places than this holder."""
        held = self._shares.held_by(holder)
        return any(self._shares.held_by(other) < held for other in self._waiting)

    def serve_waiting(self) -> None:
        """Give free places to those who wait, first to those who have the fewest."""
        now = asyncio.get_running_loop().time()
        served = True
        while served and self._waiting:
            served = False
            for holder in sorted(self._waiting, key=self._shares.held_by):
                queue = self._waiting[holder]
                claim, future = queue[0]
                if not claim.take(1, now):
                    continue  # it has its share; somebody with more may have another one's room
                queue.popleft()
                if not queue:
                    del self._waiting[holder]
                if not future.done():  # else its task was cancelled, and gives the place back
                    future.set_result(None)
                served = True
                break
        if not self._waiting and self._look is not None:
            self._look.cancel()
            self._look = None

    def _look_again(self) -> None:
        self._look = None
        self.serve_waiting()
        if self._waiting:
            self._look = asyncio.get_running_loop().call_later(LOOK_S, self._look_again)


class Place:
    """One place, while a task holds it.

    Attributes:
        holder: on whose account it is.
        has_ended_task: whether the task was cancelled because it did not make room.
    """

    def __init__(
        self, places: Places, holder: Hashable, task: asyncio.Task[object], parting_s: float
    ) -> None:
        self.holder = holder
        self.has_ended_task = False
        self._places = places
        self._task = task
        self._parting_s = parting_s
        self._claim: Claim | None = None
        self._since = 0.0
        self._end_timer: asyncio.TimerHandle | None = None

    async def take(self) -> None:
        """Take a place, or wait for one."""
        self._claim = await self._places.claim(self)
        self._since = asyncio.get_running_loop().time()

    def release(self) -> None:
        """Give it back. Idempotent."""
        if self._end_timer is not None:
            self._end_timer.cancel()
            self._end_timer = None
        if self._claim is not None:
            self._claim.release()
            self._claim = None
            self._places.serve_waiting()

    def progress(self, done_bytes: int) -> None:
        """Report what was sent or received since the last report."""
        if self._claim is not None:
            self._claim.progress(done_bytes, asyncio.get_running_loop().time())

    async def pause(self) -> None:
        """Let others have a turn if they wait and have less. Call it where nothing is half done.

        Raises:
            LimitExceeded: no place became free again in time.
        """
        claim = self._claim
        if claim is None or self._parting_s <= 0:
            return
        is_over = asyncio.get_running_loop().time() - self._since >= TURN_S
        if claim.gave_way or (is_over and self._places.is_wanted_more(self.holder)):
            self.release()
            await self.take()

    def make_room(self) -> None:
        """Note that somebody else has the place now; end the task unless it comes to a pause in time."""
        if self._parting_s <= 0:
            self._end()
        else:
            loop = asyncio.get_running_loop()
            self._end_timer = loop.call_later(self._parting_s, self._end)

    def _end(self) -> None:
        self._end_timer = None
        self.has_ended_task = True
        self._task.cancel()
