"""The one thread that a store's core lives in, and how event loops talk to it.

Short jobs that have queued up run one after the other and are committed together; that is what makes
thousands of small changes cheap. Long jobs are generators and advance by one step between such
batches, so a large import does not keep a provider from reading. A caller gets its answer after the
commit, never before.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, TypeVar, cast

from dialkey.printable import printable_traceback
from dialkey_blobs.store.core import StoreCore
from dialkey_blobs.store.errors import StoreClosed
from dialkey_blobs.store.values import Steps

__all__ = ["Progress", "Worker"]

A = TypeVar("A")
T = TypeVar("T")

Progress = Callable[[int], None]
"""Called in the caller's event loop with the bytes that are done."""

_log: Final = logging.getLogger("dialkey.blobs.store")
_MAX_BATCH: Final = 1000
# How long a reader may have to wait for others.
_MAX_BATCH_S: Final = 0.05


class _Job(Generic[T]):
    """One thing to do, and who waits for the result."""

    def __init__(
        self,
        function: Callable[[StoreCore], T | Steps[T]],
        is_long: bool,
        progress: Progress | None = None,
    ) -> None:
        self.function = function
        self.is_long = is_long
        self.steps: Steps[T] | None = None
        self.progress = progress
        # Without a loop nobody awaits it.
        self.loop: asyncio.AbstractEventLoop | None = None
        self.future: asyncio.Future[T] | concurrent.futures.Future[T] = concurrent.futures.Future()
        self.result: T | None = None
        self.error: BaseException | None = None
        # Whether it has changed something since the last commit, and so fails with the next.
        self.has_written = False

    def in_loop(self) -> asyncio.Future[T]:
        """Return the future to await, in the running loop."""
        self.loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = self.loop.create_future()
        self.future = future
        # In virtual time (dialkey.testing) the clock has to stand still while our thread works.
        wait_for_thread = getattr(self.loop, "wait_for_thread", None)
        if wait_for_thread is not None:
            wait_for_thread(future)
        return future

    def fail(self, error: BaseException) -> None:
        # Not kept: the error's traceback refers to it, and a temp tag would live as long as that.
        self.result = None
        self.error = error

    def deliver(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(cast(T, self.result))


class Worker:
    """A thread that makes a core with its first job, and closes it with its last.

    Args:
        make_core: called in the thread.
        name: the thread's name.
    """

    def __init__(self, make_core: Callable[[], StoreCore], name: str) -> None:
        self._make_core = make_core
        self._name = name
        self._queue: SimpleQueue[_Job[Any]] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closing = False
        self._waiting: deque[_Job[Any]] = deque()
        self._long: list[_Job[Any]] = []

    async def call(self, function: Callable[[StoreCore], T]) -> T:
        """Do something short.

        Cancelling the caller does not stop it once it has started.
        """
        return await self._submit(_Job(function, is_long=False))

    async def run(
        self, function: Callable[[StoreCore], Steps[T]], progress: Progress | None = None
    ) -> T:
        """Do something long, step by step.

        Cancelling the caller closes the generator before its next step.
        """
        return await self._submit(_Job(function, is_long=True, progress=progress))

    async def _submit(self, job: _Job[T]) -> T:
        future = job.in_loop()
        self._start(job)
        return await future

    def _start(self, job: _Job[Any]) -> None:
        with self._lock:
            if self._is_closing:
                raise StoreClosed
            if self._thread is None:
                # A daemon: a store that nobody closes must not keep the process from ending, and
                # being killed at any moment is something it is made for.
                self._thread = threading.Thread(target=self._main, name=self._name, daemon=True)
                self._thread.start()
            self._queue.put(job)

    def post(self, function: Callable[[StoreCore], None]) -> None:
        """Do something short that nobody waits for; nothing if the store is closing."""
        job = _Job(function, is_long=False)
        assert isinstance(job.future, concurrent.futures.Future)
        job.future.add_done_callback(_log_failure)
        try:
            self._start(job)
        except StoreClosed:
            pass

    async def close(self) -> None:
        """Finish the short jobs that wait, cancel the long ones, close the core. Idempotent.

        Raises:
            StorageError: what was still to be written could not be.
        """
        closing = self._begin_close()
        await asyncio.shield(asyncio.to_thread(self._end_close, closing))

    def _begin_close(self) -> _Job[None] | None:
        """Accept no more jobs; return the job that closes, if this call is the first."""
        job = _Job(_close, is_long=False)
        with self._lock:
            if self._is_closing:
                return None
            self._is_closing = True
            if self._thread is None:
                return None
            self._queue.put(job)
        return job

    def _end_close(self, job: _Job[None] | None) -> None:
        if self._thread is not None:
            self._thread.join()
        if job is not None:
            assert isinstance(job.future, concurrent.futures.Future)
            job.future.result()

    # --- in the thread --------------------------------------------------------------------------

    def _main(self) -> None:
        core: StoreCore | None = None
        while core is None:
            job = self._queue.get()
            if job.function is _close:
                self._deliver([job])
                return
            try:
                core = self._make_core()
            except Exception as error:
                self._fail([job], error)  # raised again where the caller awaits; others may retry
            else:
                self._waiting.append(job)
        while self._run_batch(core):
            pass
        # Jobs that were accepted while the store was closing.
        self._fail([*self._long, *self._waiting], StoreClosed())

    def _run_batch(self, core: StoreCore) -> bool:
        """Run the short jobs that wait, and a step of the long ones; return whether to go on."""
        finished: list[_Job[Any]] = []
        end = time.monotonic() + _MAX_BATCH_S
        go_on = True
        for _ in range(_MAX_BATCH):
            job = self._next(may_wait=not finished and not self._long)
            if job is None:
                break
            if job.future.cancelled():
                continue
            if job.is_long:
                self._long.append(job)
                continue
            if job.function is _close:
                self._close_long()
                go_on = False
            writes = core.writes
            self._attempt(job, core)
            job.has_written = core.writes != writes
            finished.append(job)
            if not go_on or time.monotonic() > end:
                break
        stepped = list(self._long) if go_on else []
        for job in stepped:
            writes = core.writes
            if self._step(job, core):
                self._long.remove(job)
                finished.append(job)
            job.has_written |= core.writes != writes
        self._commit(core, finished, go_on)
        return go_on

    def _next(self, *, may_wait: bool) -> _Job[Any] | None:
        if self._waiting:
            return self._waiting.popleft()
        try:
            return self._queue.get(block=may_wait)
        except Empty:
            return None

    def _attempt(self, job: _Job[Any], core: StoreCore) -> None:
        try:
            job.result = job.function(core)
        except Exception as error:
            job.error = error  # raised again where the caller awaits it

    def _step(self, job: _Job[Any], core: StoreCore) -> bool:
        """Advance a long job; return whether it has ended."""
        if job.future.cancelled():
            self._close_steps(job)
            return True
        try:
            if job.steps is None:
                job.steps = cast(Steps[Any], job.function(core))
            done = next(job.steps)
        except StopIteration as end:
            job.result = end.value
            return True
        except Exception as error:
            job.error = error  # raised again where the caller awaits it
            return True
        if job.progress is not None and job.loop is not None:
            self._tell(job.loop, job.progress, done)
        return False

    def _close_steps(self, job: _Job[Any]) -> None:
        if job.steps is None:
            return
        try:
            job.steps.close()
        except Exception as error:
            _log.warning(
                "could not tidy up after a cancelled operation\n%s", printable_traceback(error)
            )

    def _close_long(self) -> None:
        for job in self._long:
            self._close_steps(job)
        self._fail(self._long, StoreClosed())
        self._long = []

    def _commit(self, core: StoreCore, finished: list[_Job[Any]], is_open: bool) -> None:
        if is_open:
            try:
                core.commit()
            except Exception as error:  # raised again where the callers await
                self._undone(finished, error)
        for job in self._long:
            job.has_written = False
        self._deliver(finished)

    def _undone(self, finished: list[_Job[Any]], error: Exception) -> None:
        """Fail the jobs that have changed something; those that only read keep their results."""
        if not any(job.has_written for job in [*finished, *self._long]):
            _log.error(
                "a commit failed though nothing was to be committed\n%s", printable_traceback(error)
            )
        for job in finished:
            if job.has_written:
                job.fail(job.error or error)
        for job in [job for job in self._long if job.has_written]:
            # What it has done since the last commit is undone, which it cannot know.
            self._long.remove(job)
            self._close_steps(job)
            job.fail(error)
            finished.append(job)

    def _deliver(self, jobs: list[_Job[Any]]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop | None, list[_Job[Any]]] = {}
        for job in jobs:
            by_loop.setdefault(job.loop, []).append(job)
        for loop, group in by_loop.items():
            if loop is None:
                _deliver_all(group)
            else:
                self._tell(loop, _deliver_all, group)

    def _fail(self, jobs: Iterable[_Job[Any]], error: Exception) -> None:
        failed = list(jobs)
        for job in failed:
            job.error = error
        self._deliver(failed)

    def _tell(
        self, loop: asyncio.AbstractEventLoop, function: Callable[[A], object], argument: A
    ) -> None:
        try:
            loop.call_soon_threadsafe(function, argument)
        except RuntimeError:
            pass  # the loop has ended, and so has whoever waited


def _log_failure(future: concurrent.futures.Future[None]) -> None:
    if not future.cancelled() and future.exception() is not None:
        _log.warning("a store could not tidy up: %s", future.exception())


def _deliver_all(jobs: list[_Job[Any]]) -> None:
    for job in jobs:
        job.deliver()


def _close(core: StoreCore) -> None:
    core.close()
