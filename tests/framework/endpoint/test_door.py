"""The door for strangers, sans-IO: places, proof of addresses, failures, and a rate for each source."""

from __future__ import annotations

import random

import attrs
import pytest

from dialkey import limits
from dialkey.allowance import Allowance
from dialkey.endpoint.door import Door, Verdict, sources_of
from dialkey.identity import IpAddr

START = 5000.0


def host(number: int) -> tuple[str, ...]:
    return (f"192.0.2.{number}",)


def ip(text: str) -> tuple[str, ...]:
    return sources_of(IpAddr.parse(text))


@attrs.frozen
class Carried:
    """A path address of a transport that says what it counts as."""

    name: str
    carrier: str

    @property
    def counts_as(self) -> tuple[str, ...]:
        return self.name, self.carrier


def fill(door: Door, count: int, sources: tuple[str, ...], *, at: float = START) -> list[object]:
    """Let so many handshakes of one source begin; return their names."""
    names: list[object] = [(sources, number) for number in range(count)]
    for name in names:
        door.enter(name, sources, at)
    return names


# --- what counts as one ---------------------------------------------------------------------------


def test_what_counts_as_one_source() -> None:
    assert ip("192.0.2.1:1000") == ip("192.0.2.1:2000") != ip("192.0.2.2:1000")
    assert ip("[::ffff:192.0.2.1]:5") == ip("192.0.2.1:1"), "the same host on a socket for both"
    one, other, near, far = map(
        ip,
        (
            "[2001:db8:1:2::1]:1",
            "[2001:db8:1:2:ffff::9]:2",
            "[2001:db8:1:3::1]:1",
            "[2001:db8:2:2::1]:1",
        ),
    )
    assert one == other, "a /64 is one customer, who has all of its addresses"
    assert one[0] != near[0]
    assert one[1] == near[1], "and may have many of those"
    assert not set(one) & set(far)
    assert ip("[::1]:1") != ip("[fe80::1]:1")
    assert sources_of(Carried("id", "relay")) == ("id", "relay")
    assert sources_of("a name") == ("'a name'",)


# --- proof ------------------------------------------------------------------------------------------


def test_few_are_let_in_and_then_one_source_proves_its_address() -> None:
    door = Door()
    for number in range(limits.MAX_HALF_OPEN_PER_ADDRESS):
        assert door.ask(host(1), START, proved=False) is Verdict.ADMIT
        door.enter(number, host(1), START)
    assert door.ask(host(1), START, proved=False) is Verdict.PROVE
    assert door.ask(host(1), START, proved=True) is Verdict.ADMIT
    assert door.ask(host(2), START, proved=False) is Verdict.ADMIT
    door.leave(0, START, failed=False)
    assert door.ask(host(1), START, proved=False) is Verdict.ADMIT


def test_above_some_in_all_everybody_proves_an_address() -> None:
    door = Door()
    for number in range(limits.RETRY_ABOVE_HALF_OPEN):
        door.enter(number, host(number), START)
    assert door.ask(host(200), START, proved=False) is Verdict.PROVE
    assert door.ask(host(200), START, proved=True) is Verdict.ADMIT


def test_failures_count_as_in_progress_for_some_seconds() -> None:
    door = Door()
    for number in range(limits.MAX_HALF_OPEN_PER_ADDRESS):
        door.enter(number, host(1), START)
        door.leave(number, START, failed=True)
    assert len(door) == 0
    until = START + limits.FAILED_HANDSHAKE_COUNTS_S
    assert door.ask(host(1), until - 0.1, proved=False) is Verdict.PROVE
    assert door.ask(host(2), until - 0.1, proved=False) is Verdict.ADMIT
    assert door.ask(host(1), until, proved=False) is Verdict.ADMIT
    for number in range(limits.RETRY_ABOVE_HALF_OPEN):
        door.failed(host(number), until)
    assert door.ask(host(200), until, proved=False) is Verdict.PROVE


def test_what_succeeded_counts_no_more() -> None:
    door = Door()
    for number in range(limits.MAX_HALF_OPEN_PER_ADDRESS):
        door.enter(number, host(1), START)
        door.leave(number, START, failed=False)
    assert door.ask(host(1), START, proved=False) is Verdict.ADMIT
    assert door.recent_failures(START) == 0


# --- places -----------------------------------------------------------------------------------------


def test_when_all_places_are_taken_the_oldest_makes_room() -> None:
    door = Door()
    for number in range(limits.MAX_HALF_OPEN_HANDSHAKES):
        assert door.enter(number, (f"host {number}",), START) is None
    assert door.ask(host(1), START, proved=True) is Verdict.ADMIT
    assert door.enter("new", host(1), START) == 0
    assert door.enter("newer", host(2), START) == 1
    assert len(door) == limits.MAX_HALF_OPEN_HANDSHAKES
    assert "new" in door
    assert 0 not in door
    assert door.recent_failures(START) == 2, "who had to go counts, too"


def test_whoever_holds_most_makes_room_before_who_has_little() -> None:
    door = Door()
    door.enter("honest", host(1), START)
    names = fill(door, limits.MAX_HALF_OPEN_HANDSHAKES - 1, host(2))
    assert door.enter("new", host(3), START) == names[0]
    assert door.enter("newer", host(2), START) == names[1], "also for its own"
    assert "honest" in door


def test_a_flood_through_one_relay_pushes_out_nobody_else() -> None:
    door = Door()
    door.enter("direct", host(1), START)
    door.enter("elsewhere", ("id 1", "relay 2"), START)
    for number in range(limits.MAX_HALF_OPEN_HANDSHAKES - 2):
        door.enter(number, (f"id {number + 10}", "relay 1"), START)
    assert door.enter("new", host(2), START) == 0
    assert "direct" in door
    assert "elsewhere" in door


def test_the_fullest_id_of_a_relay_goes_before_others_of_that_relay() -> None:
    door = Door()
    door.enter("honest", ("id 1", "relay 1"), START)
    names = fill(door, limits.MAX_HALF_OPEN_HANDSHAKES - 1, ("id 2", "relay 1"))
    assert door.enter("new", ("id 3", "relay 1"), START) == names[0]
    assert "honest" in door


# --- a rate -----------------------------------------------------------------------------------------


def test_a_source_may_begin_many_at_once_and_then_some_a_second() -> None:
    door = Door()
    begun = 0
    while door.ask(host(1), START, proved=True) is Verdict.ADMIT:
        door.enter(begun, host(1), START)
        door.leave(begun, START, failed=True)
        begun += 1
    assert begun == limits.HANDSHAKE_BURST_PER_ADDRESS
    assert door.ask(host(1), START, proved=False) is Verdict.PROVE
    assert door.ask(host(2), START, proved=True) is Verdict.ADMIT
    for step in range(1, 1000):
        at = START + step / 1000
        if door.ask(host(1), at, proved=True) is Verdict.ADMIT:
            door.enter(begun, host(1), at)
            door.leave(begun, at, failed=True)
            begun += 1
    rate = begun - limits.HANDSHAKE_BURST_PER_ADDRESS
    assert rate == pytest.approx(limits.HANDSHAKES_PER_ADDRESS_PER_S, abs=2)


def test_handshakes_that_succeed_use_nothing_up() -> None:
    door = Door()
    for number in range(5 * limits.HANDSHAKE_BURST_PER_ADDRESS):
        assert door.ask(("id", "relay"), START, proved=False) is Verdict.ADMIT
        door.enter(number, ("id", "relay"), START)
        door.leave(number, START, failed=False)


def test_a_wider_source_has_an_allowance_of_its_own() -> None:
    door = Door()
    begun = 0
    while door.ask((f"id {begun}", "relay"), START, proved=True) is Verdict.ADMIT:
        door.enter(begun, (f"id {begun}", "relay"), START)
        begun += 1
    assert begun == 2 * limits.HANDSHAKE_BURST_PER_ADDRESS
    assert door.ask(("id 1", "another relay"), START, proved=True) is Verdict.ADMIT


def test_an_allowance_fills_up_to_its_burst() -> None:
    allowance = Allowance(3, 2.0, START)
    assert [allowance.take(START) for _ in range(4)] == [True, True, True, False]
    assert not allowance.take(START + 0.4)
    assert allowance.take(START + 0.5)
    assert allowance.left(START + 1e6) == 3


def test_what_is_remembered_is_bounded() -> None:
    door = Door()
    rng = random.Random(1)
    now = START
    for number in range(20_000):
        now += rng.random() / 1000
        sources = (f"{rng.getrandbits(64):x}/64", f"{rng.getrandbits(48):x}/48")
        door.enter(number, sources, now)
        door.leave(rng.randrange(number + 1), now, failed=rng.random() < 0.5)
    assert len(door) <= limits.MAX_HALF_OPEN_HANDSHAKES
    assert door.recent_failures(now) <= 4096
    assert len(door._allowances) <= 8192
    later = now + limits.FAILED_HANDSHAKE_COUNTS_S
    assert door.recent_failures(later) == 0
    assert not door._failed
    for number in range(20_000):
        door.leave(number, later, failed=False)
    assert not door._held
