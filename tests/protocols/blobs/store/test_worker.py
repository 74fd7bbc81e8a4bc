"""The thread behind a store: batches, long jobs beside short ones, cancellation, closing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from dialkey.errors import StorageError
from dialkey_blobs.store import StoreClosed, StoreCore
from dialkey_blobs.store.memory_core import MemoryCore
from dialkey_blobs.store.values import Steps
from dialkey_blobs.store.worker import Worker


class CountingCore(MemoryCore):
    """Counts commits, and fails them when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.commits = 0
        self.changes = 0
        self.fails = False
        self.is_closed = False

    @property
    def writes(self) -> int:
        return self.changes

    def change(self) -> None:
        self.changes += 1

    def commit(self) -> None:
        self.commits += 1
        if self.fails:
            raise StorageError("the disk is full")
        super().commit()

    def close(self) -> None:
        self.is_closed = True
        super().close()


@pytest.fixture
def core() -> CountingCore:
    return CountingCore()


@pytest.fixture
async def worker(core: CountingCore) -> AsyncIterator[Worker]:
    made = Worker(lambda: core, "test")
    yield made
    core.fails = False
    await made.close()
    assert core.is_closed


class Gate:
    """Keeps the thread busy until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, core: StoreCore) -> None:
        self.entered.set()
        assert self.open.wait(60)

    async def wait_until_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 60)


class Endless:
    """A long job that notes when it is closed."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.closed = threading.Event()

    def __call__(self, core: StoreCore) -> Steps[None]:
        try:
            while True:
                self.begun.set()
                yield 0
        finally:
            self.closed.set()

    async def wait_until_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, 60)


async def test_what_waits_is_committed_together(worker: Worker, core: CountingCore) -> None:
    gate = Gate()
    blocked = asyncio.ensure_future(worker.call(gate))
    await gate.wait_until_entered()
    calls = [asyncio.ensure_future(worker.call(lambda core, n=n: n)) for n in range(500)]
    await asyncio.sleep(0)
    before = core.commits
    gate.open.set()
    assert await asyncio.gather(*calls) == list(range(500))
    await blocked
    assert core.commits - before <= 12


async def test_errors_reach_their_own_callers(worker: Worker) -> None:
    def fail(core: StoreCore) -> None:
        raise ValueError("mine")

    results = await asyncio.gather(
        worker.call(fail), worker.call(lambda core: 1), return_exceptions=True
    )
    assert isinstance(results[0], ValueError)
    assert results[1] == 1


async def test_a_failed_commit_reaches_all_who_changed_something(
    worker: Worker, core: CountingCore
) -> None:
    gate = Gate()
    reading, writing = Endless(), Endless()

    def changing(_: StoreCore) -> Steps[None]:
        for done in writing(core):
            core.change()
            yield done

    tasks = [asyncio.ensure_future(worker.run(job)) for job in (reading, changing)]
    await reading.wait_until_begun()
    await writing.wait_until_begun()
    blocked = asyncio.ensure_future(worker.call(gate))
    await gate.wait_until_entered()
    core.fails = True
    change = asyncio.ensure_future(worker.call(lambda _: core.change()))
    await asyncio.sleep(0)
    gate.open.set()
    for failed in (tasks[1], change):
        with pytest.raises(StorageError):
            await failed
    await blocked
    core.fails = False
    assert await worker.call(lambda core: 5) == 5
    assert not tasks[0].done()
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])


async def test_short_jobs_go_between_the_steps_of_long_ones(worker: Worker) -> None:
    order: list[str] = []

    def long(core: StoreCore) -> Steps[str]:
        for number in range(1000):
            order.append("step")
            yield number
        return "done"

    progress: list[int] = []
    running = asyncio.ensure_future(worker.run(long, progress.append))
    for _ in range(3):
        await worker.call(lambda core: order.append("short"))
    assert await running == "done"
    assert order.index("short") < 1000
    assert progress == list(range(1000))


async def test_a_cancelled_long_job_is_closed(worker: Worker) -> None:
    long = Endless()
    running = asyncio.ensure_future(worker.run(long))
    await long.wait_until_begun()
    running.cancel()
    assert await asyncio.to_thread(long.closed.wait, 60)
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_cancelled_short_job_is_not_begun(worker: Worker) -> None:
    gate = Gate()
    blocked = asyncio.ensure_future(worker.call(gate))
    await gate.wait_until_entered()
    ran: list[int] = []
    calls = [asyncio.ensure_future(worker.call(lambda core: ran.append(1))) for _ in range(2)]
    await asyncio.sleep(0)
    calls[0].cancel()
    gate.open.set()
    await asyncio.wait([*calls, blocked])
    assert ran == [1]


async def test_closing_finishes_what_is_short_and_cuts_off_what_is_long(
    core: CountingCore,
) -> None:
    worker = Worker(lambda: core, "test")
    gate = Gate()
    long = Endless()
    running = asyncio.ensure_future(worker.run(long))
    await long.wait_until_begun()
    blocked = asyncio.ensure_future(worker.call(gate))
    await gate.wait_until_entered()
    waiting = asyncio.ensure_future(worker.call(lambda core: "done"))
    await asyncio.sleep(0)
    closing = [asyncio.ensure_future(worker.close()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(StoreClosed):
        await worker.call(lambda core: None)
    gate.open.set()
    await asyncio.gather(*closing)
    assert await waiting == "done"
    await blocked
    with pytest.raises(StoreClosed):
        await running
    assert long.closed.is_set()
    assert core.is_closed


async def test_a_core_that_cannot_be_made_may_be_made_later() -> None:
    attempts: Iterator[Callable[[], StoreCore]] = iter([lambda: 1 // 0, MemoryCore])  # type: ignore[list-item, return-value]

    def make() -> StoreCore:
        return next(attempts)()

    worker = Worker(make, "test")
    with pytest.raises(ZeroDivisionError):
        await worker.call(lambda core: None)
    assert await worker.call(lambda core: 3) == 3
    await worker.close()
    worker = Worker(lambda: 1 // 0, "test")  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        await worker.call(lambda core: None)
    await worker.close()


def test_a_worker_outlives_an_event_loop(core: CountingCore) -> None:
    worker = Worker(lambda: core, "test")
    gate = Gate()

    async def leave_behind() -> None:
        task = asyncio.ensure_future(worker.call(gate))
        await gate.wait_until_entered()
        task.cancel()

    async def come_back() -> int:
        answer = await worker.call(lambda core: 7)
        await worker.close()
        return answer

    asyncio.run(leave_behind())
    gate.open.set()
    assert asyncio.run(come_back()) == 7
