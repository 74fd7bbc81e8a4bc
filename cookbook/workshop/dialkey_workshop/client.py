"""A client: finds workers, hands out jobs, collects the results."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Container, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final, TypeAlias
from uuid import uuid4

import attrs

import dialkey_rpc as rpc
from dialkey import EndpointId
from dialkey.errors import DialkeyError, InvalidInput, StorageError
from dialkey.printable import printable
from dialkey_blobs import BlobTicket, Hash, HashAndFormat, ImportMode, TempTag
from dialkey_gossip import NeighborUp, NoNeighbors, Received, Topic
from dialkey_workshop.announcements import Board, Hello, Here, encode
from dialkey_workshop.errors import NotAllowed, NoWorkers
from dialkey_workshop.jobs import JOB_NAME
from dialkey_workshop.schedule import Assignment, Schedule, Task
from dialkey_workshop.service import JobFailed, Order, Report, Workshop
from dialkey_workshop.site import Site

__all__ = ["Assigned", "Completed", "Event", "Failed", "HandedOver", "Limits", "Progressed", "run"]
__all__ += ["watch"]

GC_INTERVAL_S: Final = 10.0
"""Results that stand in their files need not be in the store as well."""

MAX_REASON_CHARS: Final = 300

logger = logging.getLogger("dialkey.workshop")


@attrs.frozen
class Limits:
    """How patient a client is.

    Attributes:
        patience_s: a worker that says nothing for this long is taken for dead.
        wait_s: how long nobody may work for us before we give up.
        attempt_s: how long one attempt may take.
        max_result_bytes: the longest result that is fetched.
    """

    patience_s: float = 10.0
    wait_s: float = 30.0
    attempt_s: float = 3600.0
    max_result_bytes: int = 1 << 30


@attrs.frozen
class Assigned:
    """A worker has a job now."""

    task: Task
    worker: EndpointId


@attrs.frozen
class Progressed:
    """A worker says how far it is."""

    task: Task
    worker: EndpointId
    report: Report


@attrs.frozen
class HandedOver:
    """A worker does not do a job after all; it is for another one. Attributes: reason: a sentence."""

    task: Task
    worker: EndpointId
    reason: str


@attrs.frozen
class Completed:
    """The result of a job stands in a file. Comes once for each job that has one."""

    task: Task
    worker: EndpointId
    path: Path
    size: int


@attrs.frozen
class Failed:
    """A job has failed for good. Attributes: reason: a sentence."""

    task: Task
    worker: EndpointId
    reason: str


Event: TypeAlias = Assigned | Progressed | HandedOver | Completed | Failed


@attrs.frozen
class _Input:
    tag: TempTag
    target: Path


async def watch(topic: Topic, board: Board, changed: Callable[[Here | None], None]) -> None:
    """Ask who is there, and keep a board up to date until cancelled.

    Args:
        topic: the workshop's.
        board: what to keep.
        changed: called with an announcement, or None when somebody said goodbye.
    """
    loop = asyncio.get_running_loop()
    async for event in topic:
        if isinstance(event, NeighborUp):
            with contextlib.suppress(NoNeighbors):
                await topic.broadcast(encode(Hello()))
        elif isinstance(event, Received) and event.author is not None:
            message = board.hear(event.author, event.content, loop.time())
            if message is not None and not isinstance(message, Hello):
                changed(message if isinstance(message, Here) else None)


async def run(
    site: Site,
    topic: Topic,
    job: str,
    files: Sequence[Path],
    folder: Path,
    tell: Callable[[Event], None],
    *,
    allowed: Container[EndpointId] | None = None,
    overwrite: bool = False,
    limits: Limits | None = None,
) -> None:
    """Have a job done for each of some files, by the workers that are there.

    The result for ``notes.txt`` is ``notes.txt.<job>`` in `folder`. When cancelled, workers are told
    to stop; results that were written stay.

    Args:
        site: ours.
        topic: the workshop's.
        job: what to do.
        files: the inputs.
        folder: where results go.
        tell: is told what happens.
        allowed: workers to be used; None for all.
        overwrite: whether a result may replace a file.
        limits: how patient to be.

    Raises:
        InvalidInput: the name of the job is none, or two inputs have the same name.
        StorageError: an input cannot be read, or a result not be written.
        NoWorkers, NotAllowed: nobody does it.
    """
    client = _Client(site, tell, limits or Limits(), overwrite=overwrite)
    tasks = await client.add(job, files, folder)
    board = Board(allowed)
    await client.run(topic, board, Schedule(tasks, board, wait_s=client.limits.wait_s))


class _Client:
    def __init__(
        self, site: Site, tell: Callable[[Event], None], limits: Limits, *, overwrite: bool
    ) -> None:
        self.limits = limits
        self._site = site
        self._tell = tell
        self._overwrite = overwrite
        self._inputs: dict[Task, _Input] = {}
        self._changed = asyncio.Event()
        self._schedule: Schedule

    async def add(self, job: str, files: Sequence[Path], folder: Path) -> list[Task]:
        """Put the inputs into the store, as references to the files."""
        if not JOB_NAME.fullmatch(job):
            raise InvalidInput(f"{job!r} is not the name of a job")
        targets: dict[Path, None] = {}
        for file in files:
            target = folder / f"{file.name}.{job}"
            if target in targets:
                raise InvalidInput(f"two results would be {target}", hint="run them separately")
            targets[target] = None
            if target.exists() and not self._overwrite:
                raise InvalidInput(f"there is {target} already", hint="--overwrite replaces it")
        store = self._site.blobs.store
        tags = await store.add_paths(files, ImportMode.REFERENCE)
        statuses = await store.statuses([tag.hash for tag in tags])
        for file, target, tag, status in zip(files, targets, tags, statuses, strict=True):
            task = Task(uuid4(), job, file.name, status.size or 0)
            self._inputs[task] = _Input(tag, target)
        return list(self._inputs)

    async def run(self, topic: Topic, board: Board, schedule: Schedule) -> None:
        self._schedule = schedule
        loop = asyncio.get_running_loop()

        def heard(worker: Here | None) -> None:
            if worker is not None:
                schedule.heard(worker)
            self._changed.set()

        try:
            async with asyncio.TaskGroup() as group:
                aside = [
                    group.create_task(watch(topic, board, heard)),
                    group.create_task(self._site.blobs.store.collect_garbage_every(GC_INTERVAL_S)),
                ]
                while not schedule.is_over:
                    now = loop.time()
                    schedule.expired(board.expire(now))
                    for assignment in schedule.assign(now):
                        group.create_task(self._attempt(assignment))
                    if schedule.has_given_up(now):
                        raise self._nobody(board)
                    self._changed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout_at(schedule.deadline(now)):
                            await self._changed.wait()
                for each in aside:
                    each.cancel()
        except BaseExceptionGroup as group_error:
            raise _first(group_error) from None

    def _nobody(self, board: Board) -> DialkeyError:
        waiting = self._schedule.waiting
        what = f"{len(waiting)} jobs are left, such as {waiting[0].job} of {waiting[0].name}"
        if self._schedule.is_barred:
            return NotAllowed(
                f"the workers do not work for us; {what}",
                hint=f"ask for --allow {self._site.endpoint.id}",
            )
        return NoWorkers(
            f"nobody takes our jobs; {what}",
            hint="is a worker running that does this job, and takes inputs of this size?"
            if board.workers
            else "is anybody there? 'dialkey workshop workers' shows",
        )

    # --- one attempt ----------------------------------------------------------------------------

    async def _attempt(self, assignment: Assignment) -> None:
        """Have one job done by one worker, and tell the schedule how it went."""
        task, worker = assignment.task, assignment.worker.id
        schedule = self._schedule
        now = asyncio.get_running_loop().time
        self._tell(Assigned(task, worker))
        try:
            await self._work(assignment)
        except JobFailed as error:
            schedule.finished(assignment)
            self._tell(Failed(task, worker, _plain(error.reason)))
        except rpc.PermissionDenied as error:
            schedule.barred(assignment)
            self._tell(HandedOver(task, worker, _plain(error.message)))
        except (rpc.ResourceExhausted, rpc.Unavailable) as error:
            schedule.busy(assignment, now())
            self._tell(HandedOver(task, worker, _plain(error.message)))
        except StorageError:
            raise  # ours; no other worker can help
        except (DialkeyError, TimeoutError) as error:
            reason = _plain(str(error)) or "it has gone silent"
            if schedule.broke(assignment, now()):
                self._tell(HandedOver(task, worker, reason))
            else:
                self._tell(Failed(task, worker, reason))
        finally:
            self._changed.set()

    async def _work(self, assignment: Assignment) -> None:
        task, worker = assignment.task, assignment.worker
        ticket = self._site.blobs.ticket(self._inputs[task].tag)
        order = Order(task.id, task.job, str(ticket), task.size)
        is_finished = False
        loop = asyncio.get_running_loop()
        try:
            async with (
                asyncio.timeout(self.limits.patience_s) as watchdog,
                rpc.connect(
                    Workshop,
                    self._site.endpoint,
                    worker.addr,
                    timeout=self.limits.attempt_s,
                    # What is tried again, and where, is the schedule's business.
                    reconnect=rpc.Reconnect(attempts=1),
                ) as client,
                aclosing(client.run(order)) as reports,
            ):
                with self._site.grants.granted(ticket.hash, worker.id):
                    async for report in reports:
                        if report.result is not None:
                            watchdog.reschedule(None)
                            await self._collect(assignment, Hash(report.result))
                            is_finished = True
                        watchdog.reschedule(loop.time() + self.limits.patience_s)
                        if is_finished:
                            await client.release(order.id)
                            return
                        self._tell(Progressed(task, worker.id, report))
                raise rpc.InternalError("the worker ended the job without a result")
        except (DialkeyError, JobFailed, TimeoutError) as error:
            if not is_finished:
                raise
            why = printable(str(error))
            logger.debug("%s died after its work was done: %s", worker.id.short(), why)

    async def _collect(self, assignment: Assignment, hash: Hash) -> None:
        """Fetch a result, and write it to its file."""
        task, worker = assignment.task, assignment.worker
        content = HashAndFormat(hash)
        store = self._site.blobs.store
        with store.pin(content):
            await self._site.fetch(
                BlobTicket(worker.addr, content.hash),
                limit_bytes=self.limits.max_result_bytes,
                patience_s=self.limits.patience_s,
                progress=lambda done: None,
            )
            target = self._inputs[task].target
            size = await store.export(content.hash, target, overwrite=self._overwrite)
        self._schedule.finished(assignment)
        self._tell(Completed(task, worker.id, target, size))


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _plain(text: str) -> str:
    """Make what a stranger says fit for a terminal."""
    return printable(text, max_chars=MAX_REASON_CHARS)
