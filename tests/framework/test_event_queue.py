"""Events for one reader: bounded, and what was dropped is said."""

from __future__ import annotations

import asyncio

import pytest

from dialkey.event_queue import EventQueue, Lagged


async def test_a_queue_says_what_it_dropped() -> None:
    queue = EventQueue[int](3)
    for n in range(5):
        queue.put(n)
    assert await queue.get() == Lagged(2)
    assert [await queue.get() for _ in range(3)] == [2, 3, 4]
    queue.put(9)
    queue.end()
    queue.put(8)
    assert await queue.get() == 9
    assert await queue.get() is None
    assert await queue.get() is None


async def test_a_queue_wakes_one_reader_for_each_event() -> None:
    queue = EventQueue[int](10)
    readers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    readers[0].cancel()
    queue.put(1)
    assert await readers[1] == 1
    assert not readers[2].done()
    queue.end()
    assert await readers[2] is None


async def test_a_cancelled_reader_passes_its_event_on() -> None:
    queue = EventQueue[int](10)
    first, second = (asyncio.create_task(queue.get()) for _ in range(2))
    await asyncio.sleep(0)
    queue.put(1)
    first.cancel()
    assert await second == 1
    with pytest.raises(ValueError, match="at least one"):
        EventQueue[int](0)


async def test_it_is_iterated_to_its_end() -> None:
    queue = EventQueue[int](2)
    for number in range(5):
        queue.put(number)
    queue.end()
    queue.put(5)
    assert [event async for event in queue] == [Lagged(3), 3, 4]


async def test_what_is_cleared_is_neither_there_nor_missed() -> None:
    queue = EventQueue[int](1)
    queue.put(1)
    queue.put(2)
    queue.clear()
    queue.end()
    assert [event async for event in queue] == []
