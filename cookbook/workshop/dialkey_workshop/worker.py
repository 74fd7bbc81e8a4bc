"""A worker: announces itself, takes orders, does them, offers the results."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Final
from uuid import UUID

import attrs

import dialkey_rpc as rpc
from dialkey import EndpointId
from dialkey.errors import DialkeyError
from dialkey_blobs import BlobFormat, BlobTicket
from dialkey_gossip import NeighborUp, NoNeighbors, Received, Topic
from dialkey_workshop.announcements import (
    ANNOUNCE_INTERVAL_S,
    Bye,
    Hello,
    Here,
    Message,
    decode,
    encode,
)
from dialkey_workshop.jobs import JOBS, JobError
from dialkey_workshop.runner import JobCrashed, run_job
from dialkey_workshop.service import JobFailed, Order, Report, Step
from dialkey_workshop.site import Site

__all__ = ["Terms", "Worker", "announce"]

HEARTBEAT_S: Final = 1.0
FETCH_PATIENCE_S: Final = 20.0
HOLD_S: Final = 600.0
"""How long a result waits to be fetched before its slot is given to somebody else."""

ANNOUNCE_GAP_S: Final = 0.2
"""Changes within this time are announced together."""

logger = logging.getLogger("dialkey.workshop")


@attrs.frozen
class Terms:
    """What a worker does, and how much.

    Attributes:
        slots: jobs at a time.
        max_input_bytes: the longest input.
        jobs_file: a Python file with further jobs, which `load_jobs` has read here, too.
    """

    slots: int = 2
    max_input_bytes: int = 1 << 30
    jobs_file: Path | None = None


@attrs.define(eq=False)
class _Work:
    """A job that is being done, followed by one call or several."""

    caller: EndpointId
    order: Order
    report: Report
    followers: int = 0
    news: asyncio.Event = attrs.field(factory=asyncio.Event)
    released: asyncio.Event = attrs.field(factory=asyncio.Event)
    task: asyncio.Task[None] = attrs.field(init=False)

    def tell(self, report: Report) -> None:
        self.report = report
        self.wake()

    def wake(self) -> None:
        news, self.news = self.news, asyncio.Event()
        news.set()


class Worker:
    """Implements `Workshop`.

    Args:
        site: where.
        terms: how much.
        changed: called when the load changes.
        tell: called with what happens to a job: its order, the caller, and a word.
    """

    def __init__(
        self,
        site: Site,
        terms: Terms,
        *,
        changed: Callable[[], None] = lambda: None,
        tell: Callable[[Order, EndpointId, str], None] = lambda order, caller, what: None,
    ) -> None:
        self._site = site
        self._terms = terms
        self._changed = changed
        self._tell = tell
        self._works: dict[tuple[EndpointId, UUID], _Work] = {}
        self._is_leaving = False

    @property
    def active(self) -> int:
        """The jobs that are here now."""
        return len(self._works)

    async def run(self, order: Order) -> AsyncGenerator[Report, None]:
        """Do a job, or follow one; see `Workshop`."""
        caller = rpc.current_call().remote_id
        work = self._works.get((caller, order.id)) or self._begin(caller, order)
        work.followers += 1
        try:
            while not work.task.done():
                news, report = work.news, work.report
                yield report
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT_S):
                        await news.wait()
            if work.task.cancelled():
                raise rpc.Unavailable("the job was cancelled: the worker is leaving")
            work.task.result()
        finally:
            work.followers -= 1
            if not work.followers:
                if not work.released.is_set():
                    work.task.cancel()
                await asyncio.wait({work.task})

    async def release(self, order_id: UUID) -> None:
        """Forget a result; see `Workshop`."""
        work = self._works.get((rpc.current_call().remote_id, order_id))
        if work is not None and work.report.result is not None:
            work.released.set()

    async def leave(self, grace_s: float) -> None:
        """Take no more orders; wait for the jobs that are here, and cancel them after `grace_s`.

        When cancelled itself, it cancels the jobs at once. Their callers are told, and find other
        workers.
        """
        self._is_leaving = True
        tasks = [work.task for work in self._works.values()]
        if not tasks:
            return
        try:
            await asyncio.wait(tasks, timeout=grace_s)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    # --- a job ----------------------------------------------------------------------------------

    def _begin(self, caller: EndpointId, order: Order) -> _Work:
        if self._is_leaving:
            raise rpc.Unavailable("this worker is leaving")
        if order.job not in JOBS:
            raise rpc.InvalidArgument("this worker does not do that job")
        if not 0 <= order.input_bytes <= self._terms.max_input_bytes:
            raise rpc.InvalidArgument(f"at most {self._terms.max_input_bytes} bytes are taken")
        try:
            ticket = BlobTicket.parse(order.input)
        except DialkeyError as error:
            raise rpc.InvalidArgument(f"the input: {error.message}") from error
        # Nobody makes us dial somebody else.
        if ticket.addr.id != caller or ticket.format is not BlobFormat.RAW:
            raise rpc.InvalidArgument("the input is a blob of the caller")
        if self.active >= self._terms.slots:
            raise rpc.ResourceExhausted(f"all {self._terms.slots} slots are taken")
        work = _Work(caller, order, Report(Step.FETCHING))
        work.task = asyncio.create_task(self._perform(work, ticket))
        self._works[caller, order.id] = work
        work.task.add_done_callback(lambda task: self._ended(work, task))
        self._changed()
        return work

    def _ended(self, work: _Work, task: asyncio.Task[None]) -> None:
        del self._works[work.caller, work.order.id]
        work.wake()
        self._changed()
        error = None if task.cancelled() else task.exception()
        what = "cancelled" if task.cancelled() else "done" if error is None else f"failed: {error}"
        self._tell(work.order, work.caller, what)

    async def _perform(self, work: _Work, ticket: BlobTicket) -> None:
        """Do the job, and wait until its result is released. What it stored is gone at the end."""
        store = self._site.blobs.store
        self._tell(work.order, work.caller, "begun")
        try:
            with tempfile.TemporaryDirectory(dir=self._site.folder) as name, store.batch() as kept:
                source, result = Path(name, "input"), Path(name, "result")
                with store.pin(ticket.content):
                    await self._fetch(work, ticket)
                    await store.export(ticket.hash, source, durable=False)
                await self._compute(work, source, result)
                tag = kept.add(await self._site.blobs.add_path(result))
                with self._site.grants.granted(tag.hash, work.caller):
                    done_bytes = work.order.input_bytes
                    work.tell(Report(Step.FINISHED, done_bytes, bytes(tag.hash)))
                    async with asyncio.timeout(HOLD_S):
                        await work.released.wait()
        except TimeoutError as error:
            raise rpc.ResourceExhausted("the result was not fetched in time") from error
        finally:
            await store.collect_garbage()

    async def _fetch(self, work: _Work, ticket: BlobTicket) -> None:
        try:
            await self._site.fetch(
                ticket,
                limit_bytes=self._terms.max_input_bytes,
                patience_s=FETCH_PATIENCE_S,
                progress=lambda done: work.tell(Report(Step.FETCHING, done)),
            )
        except (DialkeyError, TimeoutError) as error:
            raise rpc.InvalidArgument(f"the input cannot be fetched: {error}") from error

    async def _compute(self, work: _Work, source: Path, result: Path) -> None:
        work.tell(Report(Step.WORKING))
        try:
            await run_job(
                work.order.job,
                source,
                result,
                jobs_file=self._terms.jobs_file,
                progress=lambda done: work.tell(Report(Step.WORKING, done)),
            )
        except JobError as error:
            raise JobFailed(str(error)) from error
        except JobCrashed as error:
            raise rpc.InternalError(str(error)) from error

    # --- what others hear -----------------------------------------------------------------------

    def here(self, at_ms: int) -> Here:
        """Return what is to be announced."""
        return Here(
            self._site.endpoint.addr(),
            self._terms.slots,
            min(self.active, self._terms.slots),
            tuple(sorted(JOBS)),
            self._terms.max_input_bytes,
            at_ms,
        )


async def announce(topic: Topic, worker: Worker, changed: asyncio.Event) -> None:
    """Announce a worker until cancelled, then say goodbye.

    Args:
        topic: the workshop's.
        worker: whom.
        changed: set it when there is something new to say.
    """
    answering = asyncio.create_task(_answer(topic, changed))
    at_ms = 0
    try:
        while True:
            at_ms = max(at_ms + 1, time.time_ns() // 1_000_000)
            changed.clear()
            await _say(topic, worker.here(at_ms))
            # Workers that were started together do not go on speaking together.
            interval_s = ANNOUNCE_INTERVAL_S * random.uniform(0.9, 1.1)
            await asyncio.sleep(ANNOUNCE_GAP_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await changed.wait()
    finally:
        answering.cancel()
        await asyncio.wait({answering})
        await _say(topic, Bye(max(at_ms + 1, time.time_ns() // 1_000_000)))


async def _say(topic: Topic, message: Message) -> None:
    try:
        await topic.broadcast(encode(message))
    except NoNeighbors:
        pass  # the first who comes will hear it


async def _answer(topic: Topic, changed: asyncio.Event) -> None:
    async for event in topic:
        if isinstance(event, NeighborUp):
            changed.set()
        elif isinstance(event, Received) and event.author is not None:
            try:
                message = decode(event.author, event.content)
            except DialkeyError as error:
                logger.debug("ignored: %s", error)
                continue
            if isinstance(message, Hello):
                changed.set()
