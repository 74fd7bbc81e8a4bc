"""Asks all address lookups about one endpoint, concurrently, and keeps what each of them said."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Final

import attrs

from dialkey import limits
from dialkey.endpoint.lookup import AddressLookup, LookupAnswer, WatchingLookup
from dialkey.identity import EndpointId
from dialkey.printable import printable

__all__ = ["LookupReport", "Search"]

logger = logging.getLogger("dialkey.endpoint.searching")

_ASK_AGAIN_FIRST_S: Final = 2.0
_ASK_AGAIN_MOST_S: Final = 30.0
"""Pauses between queries to a lookup that cannot watch: short at first, because a peer that moved
publishes at once; later the lifetime of records (30 s)."""


@attrs.frozen
class LookupReport:
    """What one lookup said about an endpoint.

    Attributes:
        lookup: the lookup's name.
        answers: in order of arrival, the newest last.
        error: why it failed, or None.
        is_done: whether it has said all that it knew when it was asked.
        took_s: seconds until then, or until now.
    """

    lookup: str
    answers: tuple[LookupAnswer, ...]
    error: str | None
    is_done: bool
    took_s: float

    def __str__(self) -> str:
        if self.error is not None:
            said = self.error
        elif self.answers:
            count = len({each for answer in self.answers for each in answer.info.addr.addrs})
            said = (
                "no addresses" if not count else "1 address" if count == 1 else f"{count} addresses"
            )
        elif self.is_done:
            said = "does not know it"
        else:
            said = "no answer"
        return f"{self.lookup}: {said} ({self.took_s:.1f} s)"


class _Asked:
    """One lookup of a search."""

    def __init__(self, lookup: AddressLookup, begun_at: float) -> None:
        self.lookup = lookup
        self.begun_at = begun_at
        self.done_at: float | None = None
        self.answers: list[LookupAnswer] = []
        self.error: str | None = None

    def report(self, now: float) -> LookupReport:
        return LookupReport(
            self.lookup.name,
            tuple(self.answers),
            self.error,
            self.done_at is not None,
            (now if self.done_at is None else self.done_at) - self.begun_at,
        )


class Search:
    """Asks until it is closed: first everything that is known, then for changes.

    Args:
        id: whom to find.
        lookups: whom to ask.
        on_answer: called with each answer; the next one of the same lookup waits for it.
        on_done: called whenever a lookup has said all that it knew when it was asked.
    """

    def __init__(
        self,
        id: EndpointId,
        lookups: Iterable[AddressLookup],
        *,
        on_answer: Callable[[LookupAnswer], Awaitable[None]],
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        self._id = id
        self._on_answer = on_answer
        self._on_done = on_done
        now = asyncio.get_running_loop().time()
        self._asked = [_Asked(lookup, now) for lookup in lookups]
        self._tasks = [
            asyncio.create_task(self._ask(each), name=f"dialkey-lookup-{each.lookup.name}")
            for each in self._asked
        ]

    @property
    def pending(self) -> int:
        """How many lookups have not finished yet."""
        return sum(each.done_at is None for each in self._asked)

    def reports(self) -> list[LookupReport]:
        """Return what each lookup has said so far."""
        now = asyncio.get_running_loop().time()
        return [each.report(now) for each in self._asked]

    def close(self) -> None:
        """Stop asking. Idempotent; the lookups' generators are closed soon after."""
        for task in self._tasks:
            task.cancel()

    async def _ask(self, asked: _Asked) -> None:
        # With eager tasks this runs before whoever made the search has it in hand.
        await asyncio.sleep(0)
        try:
            await self._hear(asked, asked.lookup.resolve(self._id))
        except Exception as error:
            # A lookup that fails is one way less; the search continues with the others.
            asked.error = printable(str(error)) or type(error).__name__
            self._log(asked)
        asked.done_at = asyncio.get_running_loop().time()
        self._on_done()
        try:
            await self._follow(asked)
        except Exception as error:
            asked.error = printable(str(error)) or type(error).__name__
            self._log(asked)

    async def _follow(self, asked: _Asked) -> None:
        if isinstance(asked.lookup, WatchingLookup):
            await self._hear(asked, asked.lookup.watch(self._id))
            return
        pause_s = _ASK_AGAIN_FIRST_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _ASK_AGAIN_MOST_S)
            try:
                await self._hear(asked, asked.lookup.resolve(self._id))
                asked.error = None
            except Exception as error:
                asked.error = printable(str(error)) or type(error).__name__
                self._log(asked)

    async def _hear(self, asked: _Asked, answers: AsyncGenerator[LookupAnswer, None]) -> None:
        async with aclosing(answers):
            async for answer in answers:
                if answer.info.id != self._id:
                    logger.warning("lookup %s answered for another endpoint", asked.lookup.name)
                    continue
                if not answer.source:
                    answer = attrs.evolve(answer, source=asked.lookup.name)
                said_again = (answer.source, answer.info)
                asked.answers = [
                    each for each in asked.answers if (each.source, each.info) != said_again
                ]
                asked.answers.append(answer)
                # The newest say most; a chatty lookup must not fill memory.
                del asked.answers[: -limits.MAX_LOOKUP_ANSWERS]
                await self._on_answer(answer)

    def _log(self, asked: _Asked) -> None:
        logger.info("lookup %s of %s failed: %s", asked.lookup.name, self._id.short(), asked.error)
