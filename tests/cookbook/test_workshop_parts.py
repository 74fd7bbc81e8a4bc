"""The parts of the workshop without I/O: announcements, the board, the schedule."""

from __future__ import annotations

from uuid import UUID

import msgpack
import pytest
from dialkey_workshop.announcements import (
    EXPIRY_S,
    MAX_JOBS,
    MAX_MESSAGE_BYTES,
    MAX_WORKERS,
    Board,
    Bye,
    Hello,
    Here,
    decode,
    encode,
)
from dialkey_workshop.schedule import MAX_ATTEMPTS, Assignment, Schedule, Task
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey import EndpointAddr, EndpointId, EndpointTicket, SecretKey
from dialkey.errors import InvalidInput, WireError

IDS = sorted(SecretKey(bytes([number]) * 32).id for number in range(1, 9))


def here(id: EndpointId = IDS[0], at_ms: int = 1, **fields: object) -> Here:
    values: dict[str, object] = {"slots": 2, "active": 0, "jobs": ["xz"], "max_input_bytes": 1000}
    return Here(addr=EndpointAddr(id), at_ms=at_ms, **{**values, **fields})


def task(number: int, job: str = "xz", size: int = 10) -> Task:
    return Task(UUID(int=number), job, f"file{number}", size)


# --- announcements --------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [here(), here(active=2, jobs=[]), Bye(7), Hello()])
def test_messages_are_read_as_they_were_written(message: object) -> None:
    assert decode(IDS[0], encode(message)) == message


def plain(**changes: object) -> dict[str, object]:
    fields = msgpack.unpackb(encode(here()))
    fields.update(changes)
    return {key: value for key, value in fields.items() if value is not None}


HOSTILE = {
    "another version": {"v": 2},
    "no version": {"v": None},
    "unknown kind": {"kind": "x"},
    "kind that is not text": {"kind": []},
    "missing field": {"slots": None},
    "text for a number": {"slots": "2"},
    "negative": {"active": -1},
    "too many slots": {"slots": 1 << 30},
    "beyond 64 bits": {"max_input_bytes": (1 << 64) - 1},
    "no list": {"jobs": "xz"},
    "job that is not text": {"jobs": [1]},
    "job that is a path": {"jobs": ["../x"]},
    "too many jobs": {"jobs": ["a"] * (MAX_JOBS + 1)},
    "no ticket": {"addr": "endpointaaaa"},
    "address that is not text": {"addr": 1},
    "somebody else": {"addr": str(EndpointTicket(EndpointAddr(IDS[1])))},
    "too long": {"extra": "x" * MAX_MESSAGE_BYTES},
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_what_is_not_an_announcement_is_one_error_and_counted(changes: dict[str, object]) -> None:
    data = msgpack.packb(plain(**changes))
    with pytest.raises(WireError):
        decode(IDS[0], data)
    board = Board()
    assert board.hear(IDS[0], data, 0.0) is None
    assert (board.ignored, board.workers) == (1, [])


def test_unknown_fields_are_skipped() -> None:
    assert decode(IDS[0], msgpack.packb(plain(mood="good"))) == here()


@settings(max_examples=100)
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.integers(-(2**63), 2**63) | st.text(max_size=5) | st.binary(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    ).map(msgpack.packb)
)
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        decode(IDS[0], data)
    except WireError:
        pass


def test_nesting_does_no_harm() -> None:
    with pytest.raises(WireError):
        decode(IDS[0], b"\x91" * 2000)


def test_a_message_that_would_be_too_long_is_not_made() -> None:
    with pytest.raises(InvalidInput):
        encode(here(jobs=["j" * 31 + chr(97 + n % 26) for n in range(MAX_JOBS)]))


# --- the board ------------------------------------------------------------------------------------


def test_a_worker_is_there_until_it_does_not_renew() -> None:
    board = Board()
    board.hear(IDS[0], encode(here()), 0.0)
    board.hear(IDS[0], encode(here(at_ms=2, active=1)), 10.0)
    assert board.expire(EXPIRY_S) == []
    assert [worker.active for worker in board.workers] == [1]
    assert board.next_expiry() == 10.0 + EXPIRY_S
    assert board.expire(10.0 + EXPIRY_S) == [IDS[0]]
    assert board.workers == []


def test_what_was_said_before_a_goodbye_and_comes_after_it_changes_nothing() -> None:
    board = Board()
    board.hear(IDS[0], encode(here(at_ms=1)), 0.0)
    board.hear(IDS[0], encode(Bye(3)), 1.0)
    assert board.hear(IDS[0], encode(here(at_ms=2)), 2.0) is None
    assert board.workers == []
    board.hear(IDS[0], encode(here(at_ms=4)), 3.0)
    assert len(board.workers) == 1


def test_strangers_are_not_counted_and_a_crowd_is_bounded() -> None:
    board = Board({IDS[1]})
    board.hear(IDS[0], encode(here()), 0.0)
    assert board.workers == []
    board.hear(IDS[1], encode(here(IDS[1])), 0.0)
    assert [worker.id for worker in board.workers] == [IDS[1]]

    board = Board()
    board.hear(IDS[0], encode(here()), 0.0)
    for number in range(MAX_WORKERS + 10):
        id = SecretKey(number.to_bytes(32, "big")).id
        board.hear(id, encode(here(id)), 0.0)
    assert len(board.workers) == MAX_WORKERS
    # Those who were there before are heard on.
    board.hear(IDS[0], encode(here(at_ms=2, active=2)), 1.0)
    assert next(worker for worker in board.workers if worker.id == IDS[0]).active == 2


# --- the schedule ---------------------------------------------------------------------------------


class Client:
    """A schedule with its board, and a clock."""

    def __init__(self, *tasks: Task, wait_s: float = 30.0) -> None:
        self.board = Board()
        self.schedule = Schedule(tasks, self.board, wait_s=wait_s)
        self.now = 0.0
        self.at_ms = 0

    def hears(self, id: EndpointId, **fields: object) -> None:
        self.at_ms += 1
        message = self.board.hear(id, encode(here(id, self.at_ms, **fields)), self.now)
        assert isinstance(message, Here)
        self.schedule.heard(message)

    def assign(self) -> list[Assignment]:
        return self.schedule.assign(self.now)

    def spread(self) -> list[tuple[str, int]]:
        return [(each.task.name, IDS.index(each.worker.id)) for each in self.assign()]


def test_the_least_loaded_worker_is_first_and_slots_are_kept() -> None:
    client = Client(*map(task, range(10)))
    client.hears(IDS[0], slots=2)
    client.hears(IDS[1], slots=4, active=1)
    client.hears(IDS[2], slots=1, active=1)
    assert client.spread() == [
        ("file0", 0), ("file1", 1), ("file2", 0), ("file3", 1), ("file4", 1),
    ]  # fmt: skip
    assert client.spread() == []
    # Of the jobs that it says it has, two are ours.
    client.hears(IDS[0], slots=3, active=2)
    assert client.spread() == [("file5", 0)]


def test_a_worker_gets_only_what_it_takes() -> None:
    client = Client(task(1, "gz"), task(2, size=2000), task(3), wait_s=5)
    client.hears(IDS[0])
    [assignment] = client.assign()
    assert assignment.task.name == "file3"
    client.schedule.finished(assignment)
    assert client.assign() == []
    assert [each.name for each in client.schedule.waiting] == ["file1", "file2"]
    assert client.schedule.deadline(0.0) == 5.0
    assert client.schedule.has_given_up(5.0)


def test_a_worker_that_broke_gets_nothing_until_it_is_heard_again() -> None:
    client = Client(task(1), task(2))
    client.hears(IDS[0])
    first, second = client.assign()
    assert client.schedule.broke(first, client.now)
    client.now = 20.0
    assert client.assign() == []
    client.hears(IDS[0])
    client.hears(IDS[1])
    # The one that let this job down is the last to be asked.
    [again] = client.assign()
    assert (again.task, again.worker.id) == (first.task, IDS[1])
    client.schedule.finished(second)
    client.schedule.finished(again)
    assert client.schedule.is_over


def test_a_worker_that_lies_about_its_room_is_asked_ever_more_seldom() -> None:
    client = Client(task(1))
    asked = 0
    for tenth in range(1200):
        client.now = tenth / 10
        client.hears(IDS[0], active=0)
        for assignment in client.assign():
            asked += 1
            client.schedule.busy(assignment, client.now)
    assert 10 < asked < 25


def test_a_worker_that_does_not_work_for_us_is_not_asked_again() -> None:
    client = Client(task(1))
    client.hears(IDS[0])
    client.schedule.barred(client.assign()[0])
    client.hears(IDS[0])
    assert client.assign() == []
    assert client.schedule.is_barred


def test_a_job_at_which_everybody_breaks_is_given_up() -> None:
    client = Client(task(1))
    for attempt in range(MAX_ATTEMPTS):
        client.now += 20.0
        client.hears(IDS[attempt % 2])
        [assignment] = client.assign()
        may_repeat = client.schedule.broke(assignment, client.now)
        assert may_repeat == (attempt < MAX_ATTEMPTS - 1)
    assert client.schedule.is_over


@settings(max_examples=40)
@given(st.data())
def test_every_job_ends_once_whatever_workers_do(data: st.DataObject) -> None:
    tasks = [task(number) for number in range(data.draw(st.integers(1, 8)))]
    client = Client(*tasks, wait_s=1000.0)
    running: list[Assignment] = []
    ended: list[Task] = []
    for _ in range(400):
        client.now += data.draw(st.sampled_from([0.0, 0.3, 12.0]))
        client.schedule.expired(client.board.expire(client.now))
        client.hears(data.draw(st.sampled_from(IDS)), active=data.draw(st.integers(0, 2)))
        running += client.assign()
        assert len({each.task for each in running}) == len(running)
        for id in IDS:
            assert sum(each.worker.id == id for each in running) <= 2
        if running:
            assignment = running.pop(data.draw(st.integers(0, len(running) - 1)))
            what = data.draw(st.sampled_from(["finished", "finished", "busy", "broke"]))
            if what == "finished":
                client.schedule.finished(assignment)
                ended.append(assignment.task)
            elif what == "busy":
                client.schedule.busy(assignment, client.now)
            elif not client.schedule.broke(assignment, client.now):
                ended.append(assignment.task)
            with pytest.raises(ValueError, match="not running"):
                client.schedule.finished(assignment)
        held = [*ended, *client.schedule.waiting, *(each.task for each in running)]
        assert sorted(held, key=lambda each: each.id) == tasks
        if client.schedule.is_over:
            break
    else:
        pytest.fail("the jobs did not come to an end")
