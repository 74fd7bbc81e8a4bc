"""An asyncio event loop whose time jumps to the next timer when nothing else is left to do."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, Final, ParamSpec, TypeVar, TypeVarTuple, Unpack

_T = TypeVar("_T")
_P = ParamSpec("_P")
_Ts = TypeVarTuple("_Ts")

DEFAULT_LIMIT_S: Final = 86_400.0
_THREAD_WAIT_S: Final = 30.0
"""Real seconds that a thread may take before the loop stops believing in it."""


class Deadlock(RuntimeError):
    """Every task waits, and nothing is left that could wake one of them."""


class VirtualClock(asyncio.SelectorEventLoop):
    """An event loop in virtual time.

    `time()` starts at 0 and stands still while there is something to do; then it jumps to the next
    timer. When there is no timer either, `Deadlock` is raised out of the loop and names the tasks that
    wait. Sockets work, but their data arrives at no virtual time in particular; use
    `dialkey.testing.MemoryNetwork`. Work in threads (`run_in_executor`, `asyncio.to_thread`, and what
    `wait_for_thread` was told of) is waited for in real time, during which the clock stands still.

    Args:
        limit_s: virtual time at which a run is ended as endless, with `Deadlock`.
    """

    def __init__(self, *, limit_s: float = DEFAULT_LIMIT_S) -> None:
        self._now = 0.0
        self._limit = limit_s
        self._threads = 0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Return the virtual time, seconds."""
        return self._now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[_Ts]], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        future = super().run_in_executor(executor, func, *args)
        self.wait_for_thread(future)
        return future

    def wait_for_thread(self, future: asyncio.Future[Any]) -> None:
        """Let the clock stand still until `future` is done: a thread of somebody's own will see to that.

        A library with such a thread looks whether the running loop has a method of this name, and so
        needs to know nothing of virtual time.
        """
        self._threads += 1
        future.add_done_callback(self._thread_done)

    def _thread_done(self, future: asyncio.Future[Any]) -> None:
        self._threads -= 1

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        self._threads += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._threads -= 1

    def wait(self, timeout: float | None) -> float:
        """Let virtual time pass; return how long to wait in real time, which is 0 unless for threads.

        Raises:
            Deadlock: there is nothing to wait for.
        """
        if self._threads:
            return _THREAD_WAIT_S
        if timeout is None:
            raise Deadlock(f"nothing can happen any more, at {self._now:.3f} s{self._waiting()}")
        self._now += timeout
        if self._now > self._limit:
            raise Deadlock(f"still running after {self._limit:.0f} s{self._waiting()}")
        return 0.0

    def _waiting(self) -> str:
        lines = []
        for task in sorted(asyncio.all_tasks(self), key=lambda task: task.get_name()):
            lines.append(f"\n  {task.get_name()} waits{_innermost(task.get_coro())}")
        return "".join(lines)


def _innermost(awaited: object) -> str:
    """Return where the innermost coroutine of a chain of awaits stands."""
    where = ""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None)
        if frame is not None:
            where = f" at {frame.f_code.co_filename}:{frame.f_lineno}"
        awaited = getattr(awaited, "cr_await", None)
    return where


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualClock) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        return super().select(self._loop.wait(timeout))


def run(main: Coroutine[Any, Any, _T], *, limit_s: float = DEFAULT_LIMIT_S) -> _T:
    """Run a coroutine in virtual time and return its result, as `asyncio.run` does in real time.

    Args:
        main: what to run.
        limit_s: virtual seconds after which it is taken for endless.

    Raises:
        Deadlock: everything waits for something that cannot happen, or the limit was reached.
    """
    with asyncio.Runner(loop_factory=lambda: VirtualClock(limit_s=limit_s)) as runner:
        return runner.run(main)


def in_virtual_time(test: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, _T]:
    """Turn an asynchronous test function into one that runs in virtual time by itself.

    Fixtures and parametrization work as usual; the test needs no event loop of its own.
    """

    @functools.wraps(test)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return run(test(*args, **kwargs))

    return wrapper
