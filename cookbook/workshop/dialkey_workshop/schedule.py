"""Which worker does which job: the client's decisions. Sans-IO.

A job is waiting, or running at one worker, or over; so it cannot be lost, and has one result. The
least loaded worker gets the next job. One that let a job down gets none until it has announced
itself again, with growing pauses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final
from uuid import UUID

import attrs

from dialkey import EndpointId
from dialkey_workshop.announcements import Board, Here

__all__ = ["MAX_ATTEMPTS", "Assignment", "Schedule", "Task"]

MAX_ATTEMPTS: Final = 5
"""A job at which this many workers failed is itself to blame."""

FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 10.0


@attrs.frozen
class Task:
    """A job to be done.

    Attributes:
        id: names it in all attempts.
        job: what to do.
        name: of the input, for people.
        size: of the input, bytes.
    """

    id: UUID
    job: str
    name: str
    size: int


@attrs.frozen
class Assignment:
    """A job that a worker is to do now."""

    task: Task
    worker: Here


@attrs.define
class _Standing:
    """What we know of a worker beyond what it says."""

    others: int = 0  # jobs that it has of others, by its last announcement
    ours: int = 0
    troubles: int = 0  # in a row
    pause_until: float = 0.0
    awaits_news: bool = False
    is_barred: bool = False


class Schedule:
    """The jobs of one client.

    Args:
        tasks: what is to be done.
        board: who is there.
        wait_s: how long nothing may happen before it is given up.
    """

    def __init__(self, tasks: Iterable[Task], board: Board, *, wait_s: float) -> None:
        self._waiting = deque(tasks)
        self._running: dict[UUID, Assignment] = {}
        self._attempts: dict[UUID, int] = {}
        self._let_down: dict[UUID, set[EndpointId]] = {}
        self._board = board
        self._standings: dict[EndpointId, _Standing] = {}
        self._wait_s = wait_s
        self._idle_since: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether every job is."""
        return not self._waiting and not self._running

    @property
    def waiting(self) -> tuple[Task, ...]:
        """The jobs that nobody does."""
        return tuple(self._waiting)

    @property
    def is_barred(self) -> bool:
        """Whether one of the workers does not work for us."""
        return any(standing.is_barred for standing in self._standings.values())

    # --- workers --------------------------------------------------------------------------------

    def heard(self, worker: Here) -> None:
        """Take note of an announcement that is on the board."""
        standing = self._standing(worker)
        standing.others = max(0, worker.active - standing.ours)
        standing.awaits_news = False

    def expired(self, ids: Iterable[EndpointId]) -> None:
        """Forget workers that left the board."""
        for id in ids:
            standing = self._standings.get(id)
            if standing is not None and not standing.ours:
                del self._standings[id]

    # --- jobs -----------------------------------------------------------------------------------

    def assign(self, now: float) -> list[Assignment]:
        """Hand out as many jobs as workers have room for."""
        assignments: list[Assignment] = []
        unsuitable: deque[Task] = deque()
        workers = [worker for worker in self._board.workers if self._has_room(worker, now)]
        while self._waiting and workers:
            task = self._waiting.popleft()
            worker = self._choose(task, workers)
            if worker is None:
                unsuitable.append(task)
                continue
            assignment = self._running[task.id] = Assignment(task, worker)
            assignments.append(assignment)
            self._standing(worker).ours += 1
            if not self._has_room(worker, now):
                workers.remove(worker)
        self._waiting.extendleft(reversed(unsuitable))
        if self._running:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        return assignments

    def _standing(self, worker: Here) -> _Standing:
        return self._standings.setdefault(worker.id, _Standing())

    def _has_room(self, worker: Here, now: float) -> bool:
        standing = self._standing(worker)
        if standing.is_barred or standing.awaits_news or now < standing.pause_until:
            return False
        return standing.ours + standing.others < worker.slots

    def _choose(self, task: Task, workers: Iterable[Here]) -> Here | None:
        let_down = self._let_down.get(task.id, ())

        def rank(worker: Here) -> tuple[bool, float, int, EndpointId]:
            standing = self._standing(worker)
            load = (standing.ours + standing.others) / worker.slots
            return worker.id in let_down, load, standing.troubles, worker.id

        able = [w for w in workers if task.job in w.jobs and task.size <= w.max_input_bytes]
        return min(able, key=rank, default=None)

    def finished(self, assignment: Assignment) -> None:
        """A job is over, whether it has a result or cannot have one."""
        self._end(assignment).troubles = 0

    def busy(self, assignment: Assignment, now: float) -> None:
        """A worker had no room for a job after all."""
        self._trouble(self._end(assignment), now)
        self._waiting.appendleft(assignment.task)

    def barred(self, assignment: Assignment) -> None:
        """A worker does not work for us."""
        self._end(assignment).is_barred = True
        self._waiting.appendleft(assignment.task)

    def broke(self, assignment: Assignment, now: float) -> bool:
        """A worker let a job down; return whether the job will be tried again."""
        task = assignment.task
        self._trouble(self._end(assignment), now)
        self._let_down.setdefault(task.id, set()).add(assignment.worker.id)
        self._attempts[task.id] = self._attempts.get(task.id, 0) + 1
        if self._attempts[task.id] >= MAX_ATTEMPTS:
            return False
        self._waiting.appendleft(task)
        return True

    def _end(self, assignment: Assignment) -> _Standing:
        if self._running.pop(assignment.task.id, None) is not assignment:
            raise ValueError(f"job {assignment.task.id} is not running like this")
        standing = self._standings[assignment.worker.id]
        standing.ours -= 1
        return standing

    def _trouble(self, standing: _Standing, now: float) -> None:
        standing.troubles += 1
        standing.awaits_news = True
        pause = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(standing.troubles, 16))
        standing.pause_until = now + pause

    # --- time -----------------------------------------------------------------------------------

    def has_given_up(self, now: float) -> bool:
        """Return whether nobody has done anything for too long."""
        return self._idle_since is not None and now >= self._idle_since + self._wait_s

    def deadline(self, now: float) -> float | None:
        """Return when to look again even if nothing happens."""
        times = [standing.pause_until for standing in self._standings.values()]
        times = [at for at in times if at > now] if self._waiting else []
        if self._idle_since is not None:
            times.append(self._idle_since + self._wait_s)
        expiry = self._board.next_expiry()
        if expiry is not None:
            times.append(expiry)
        return min(times, default=None)
