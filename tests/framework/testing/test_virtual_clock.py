"""The clock that jumps: fast, exact, and loud when nothing can happen any more."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from dialkey.testing import Deadlock, VirtualClock, in_virtual_time, run


async def later(delay_s: float, value: int) -> int:
    await asyncio.sleep(delay_s)
    return value


def test_a_day_passes_at_once() -> None:
    begin = time.monotonic()

    async def main() -> float:
        await asyncio.sleep(86_000)
        return asyncio.get_running_loop().time()

    assert run(main()) == pytest.approx(86_000)
    assert time.monotonic() - begin < 5


@in_virtual_time
async def test_timers_fire_in_order_and_on_time() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClock)
    fired: list[tuple[float, int]] = []
    for i, delay_s in enumerate([3.0, 1.0, 2.0, 1.0]):
        loop.call_later(delay_s, lambda i=i: fired.append((loop.time(), i)))  # type: ignore[misc]
    await asyncio.sleep(5)
    assert [i for _, i in fired] == [1, 3, 2, 0]
    assert [round(at, 6) for at, _ in fired] == [1.0, 1.0, 2.0, 3.0]


@in_virtual_time
async def test_time_stands_still_while_there_is_work() -> None:
    for _ in range(1000):
        await asyncio.sleep(0)
    assert asyncio.get_running_loop().time() == 0


@in_virtual_time
async def test_timeouts_and_gathering() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await asyncio.sleep(11)
    assert asyncio.get_running_loop().time() == pytest.approx(10)
    assert await asyncio.gather(later(3, 1), later(1, 2)) == [1, 2]
    assert asyncio.get_running_loop().time() == pytest.approx(13)


@pytest.mark.parametrize("number", [1, 2])
@in_virtual_time
async def test_parameters_and_fixtures_reach_the_test(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert number in (1, 2)
    assert monkeypatch is not None


@in_virtual_time
async def test_threads_are_waited_for_in_real_time() -> None:
    assert await asyncio.to_thread(lambda: time.sleep(0.01) or 5) == 5
    assert asyncio.get_running_loop().time() == 0


def test_when_nothing_can_happen_it_says_who_waits() -> None:
    async def hang() -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        task = asyncio.create_task(hang(), name="the one that hangs")
        await asyncio.sleep(2)
        await task

    with pytest.raises(Deadlock) as caught:
        run(main())
    text = str(caught.value)
    assert "2.000 s" in text
    assert "the one that hangs waits at" in text
    assert __file__ in text


def test_an_endless_run_ends() -> None:
    async def main() -> None:
        while True:
            await later(1, 0)

    with pytest.raises(Deadlock, match="still running after 50 s"):
        run(main(), limit_s=50)


def test_exceptions_and_results_come_through() -> None:
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run(fail())
    assert run(later(1, 7)) == 7
    assert run(later(1, 8)) == 8


def test_a_thread_of_somebodys_own_is_waited_for() -> None:
    """As the store of blobs has one: time passed while it worked, and what waited timed out."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualClock)
        future: asyncio.Future[None] = loop.create_future()
        may_end = threading.Event()
        loop.wait_for_thread(future)

        def work() -> None:
            may_end.wait()
            loop.call_soon_threadsafe(future.set_result, None)

        thread = threading.Thread(target=work)
        thread.start()
        loop.call_soon(loop.call_soon, may_end.set)
        async with asyncio.timeout(1):
            await future
        thread.join()
        return loop.time()

    assert run(main()) == 0


def test_without_a_thread_to_wait_for_time_goes_on() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualClock)
        future: asyncio.Future[None] = loop.create_future()
        loop.wait_for_thread(future)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        await asyncio.sleep(10)
        assert loop.time() == pytest.approx(10)

    run(main())
