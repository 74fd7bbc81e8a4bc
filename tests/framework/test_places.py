"""Places for blob requests: who has few comes next, who trickles makes room. Virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import attrs
import pytest

from dialkey.errors import LimitExceeded
from dialkey.identity import EndpointId, SecretKey
from dialkey.places import LEAST_BYTES_PER_S, PARTING_S, TURN_S, Places
from dialkey.testing import in_virtual_time

STEP_BYTES = 1 << 20


def key(number: int) -> EndpointId:
    return SecretKey(bytes([number] * 32)).id


def now() -> float:
    return asyncio.get_running_loop().time()


@attrs.define
class Getter:
    """Takes steps of a megabyte at a rate, and notes when it got its place and how it ended."""

    places: Places
    id: EndpointId
    bytes_per_s: float
    began_at: float | None = None
    done_bytes: float = 0
    most_seen: int = 0

    async def run(self, total_bytes: int = 1 << 60) -> None:
        async with self.places.hold(self.id) as place:
            self.began_at = now()
            while self.done_bytes < total_bytes:
                for _ in range(64):  # a step is written in pieces
                    await asyncio.sleep(STEP_BYTES / 64 / self.bytes_per_s)
                    place.progress(STEP_BYTES // 64)
                    self.done_bytes += STEP_BYTES / 64
                await place.pause()


Start = Callable[[Getter], "asyncio.Task[None]"]


async def ended(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def places(total: int, most: int, **options: float) -> Places:
    return Places(total, most, **{"wait_s": 60, "parting_s": PARTING_S, **options})


@in_virtual_time
async def test_four_keys_that_trickle_do_not_keep_a_fifth_out() -> None:
    shared = places(256, 64)
    trickles = [
        asyncio.create_task(Getter(shared, key(1 + number % 4), 1000).run())
        for number in range(256)
    ]
    await asyncio.sleep(30)
    assert shared.used == 256
    honest = Getter(shared, key(9), 10e6)
    began = now()
    await honest.run(20 << 20)
    assert honest.began_at is not None
    assert honest.began_at - began < 1
    assert shared.used == 255
    await asyncio.sleep(PARTING_S + 1)
    over = [task for task in trickles if task.done()]
    assert len(over) == 1
    assert isinstance(over[0].exception(), LimitExceeded)
    await ended(*trickles)
    assert shared.used == 0


@in_virtual_time
async def test_keys_with_one_trickle_each_do_not_keep_anybody_out() -> None:
    """They are equals in number, so it is their rate that tells."""
    shared = places(8, 4)
    trickles = [
        asyncio.create_task(Getter(shared, key(10 + number), LEAST_BYTES_PER_S / 2).run())
        for number in range(8)
    ]
    await asyncio.sleep(60)
    honest = Getter(shared, key(9), 10e6)
    began = now()
    await honest.run(20 << 20)
    assert now() - began < 5
    await ended(*trickles)


@in_virtual_time
async def test_a_trickle_is_nobodys_business_while_there_is_room() -> None:
    shared = places(8, 4)
    slow = Getter(shared, key(1), 1000)
    task = asyncio.create_task(slow.run())
    others = [
        asyncio.create_task(Getter(shared, key(2 + number), 1e6).run(50 << 20))
        for number in range(7)
    ]
    await asyncio.gather(*others)
    await asyncio.sleep(1000)
    assert not task.done()
    await ended(task)


@in_virtual_time
async def test_those_who_read_lose_nothing_and_all_get_turns() -> None:
    """A request with a place for hours lets others have theirs: between steps, and then goes on."""
    shared = places(2, 2)
    greedy = [Getter(shared, key(1), 10e6) for _ in range(2)]
    tasks = [asyncio.create_task(each.run()) for each in greedy]
    await asyncio.sleep(5)
    others = [Getter(shared, key(number), 10e6) for number in range(2, 6)]
    tasks += [asyncio.create_task(each.run()) for each in others]
    await asyncio.sleep(60)
    assert not any(task.done() for task in tasks)
    done = [each.done_bytes for each in others]
    assert min(done) > 0.5 * max(done) > 0
    assert sum(each.done_bytes for each in greedy) > 0.5 * min(done)
    assert all(each.began_at is not None and each.began_at < 30 * TURN_S for each in others)
    await ended(*tasks)
    assert shared.used == 0


@in_virtual_time
async def test_nobody_has_more_than_the_most_and_the_rest_waits_in_order() -> None:
    shared = places(10, 2)
    getters = [Getter(shared, key(1), 1e6) for _ in range(4)]
    tasks = [asyncio.create_task(each.run(10 << 20)) for each in getters]
    await asyncio.sleep(5)
    assert [each.began_at is not None for each in getters] == [True, True, False, False]
    await asyncio.gather(*tasks)
    began = [each.began_at for each in getters]
    assert began == sorted(began)  # type: ignore[type-var]


@in_virtual_time
async def test_waiting_has_an_end() -> None:
    shared = places(1, 1, wait_s=5)
    task = asyncio.create_task(Getter(shared, key(1), 10e6).run())
    await asyncio.sleep(1)
    with pytest.raises(LimitExceeded, match="too many"):
        await Getter(shared, key(1), 10e6).run()
    await ended(task)
    assert shared.used == 0
    await Getter(shared, key(1), 10e6).run(1 << 20)


@in_virtual_time
async def test_memory_is_given_back_at_once() -> None:
    """Without parting, as for large requests and observers, the youngest of the fullest ends."""
    shared = places(4, 4, parting_s=0, wait_s=0, least_rate=0)
    tasks = [asyncio.create_task(Getter(shared, key(1), 1).run()) for _ in range(4)]
    await asyncio.sleep(100)
    other = asyncio.create_task(Getter(shared, key(2), 1).run())
    await asyncio.sleep(1)
    assert [task.done() for task in tasks] == [False, False, False, True]
    assert isinstance(tasks[3].exception(), LimitExceeded)
    with pytest.raises(LimitExceeded):
        await Getter(shared, key(1), 1).run()
    await ended(*tasks[:3], other)
    assert shared.used == 0


@in_virtual_time
async def test_cancelling_is_cancelling() -> None:
    shared = places(1, 1)
    task = asyncio.create_task(Getter(shared, key(1), 10).run())
    waiting = asyncio.create_task(Getter(shared, key(2), 10).run())
    await asyncio.sleep(1)
    await ended(waiting, task)
    assert task.cancelled()
    assert waiting.cancelled()
    assert shared.used == 0


@in_virtual_time
async def test_a_place_is_not_given_to_a_task_that_was_just_cancelled() -> None:
    shared = places(1, 1)

    async def hold(number: int) -> None:
        async with shared.hold(key(number)):
            await asyncio.sleep(100)

    holder, cancelled, waiting = (asyncio.create_task(hold(number)) for number in range(1, 4))
    await asyncio.sleep(0.1)
    # In one turn of the loop: the place is given back before the task hears of its end.
    holder.cancel()
    cancelled.cancel()
    await asyncio.wait([holder, cancelled])
    assert holder.cancelled()
    assert cancelled.cancelled()
    await asyncio.sleep(0.1)
    assert (shared.used, waiting.done()) == (1, False)
    await ended(waiting)
    assert shared.used == 0
