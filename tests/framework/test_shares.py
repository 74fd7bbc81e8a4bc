"""Fair shares: who has little passes, the fullest gives way, and nothing is lost in the books."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from dialkey.errors import InvalidInput
from dialkey.shares import Claim, FairShares


def nothing() -> None:
    """Give way without anything to let go of."""


def taken(shares: FairShares[str], holder: str, amount: int, now: float = 0.0) -> Claim:
    claim = shares.claim(holder, nothing, now=now)
    assert claim.take(amount, now)
    return claim


def test_nobody_has_more_than_the_most() -> None:
    shares = FairShares[str](100, 30)
    claim = taken(shares, "a", 30)
    assert not claim.take(1)
    assert not shares.claim("a", nothing).take(1), "another claim of the same holder"
    taken(shares, "b", 30)
    claim.give(10)
    assert claim.take(10)
    assert shares.used == 60


def test_the_fullest_gives_way_to_who_has_little() -> None:
    shares = FairShares[str](100)
    gone: list[str] = []
    big = shares.claim("attacker", lambda: gone.append("big"))
    small = shares.claim("attacker", lambda: gone.append("small"))
    other = shares.claim("other", lambda: gone.append("other"))
    assert big.take(60)
    assert small.take(10)
    assert other.take(30)
    newcomer = shares.claim("newcomer", lambda: gone.append("newcomer"))
    assert newcomer.take(20)
    assert gone == ["big"]
    assert big.gave_way
    assert not big.take(1)
    assert (shares.held_by("attacker"), shares.held_by("newcomer")) == (10, 20)


def test_of_equal_claims_the_youngest_gives_way() -> None:
    shares = FairShares[str](4)
    claims = [taken(shares, "attacker", 1) for _ in range(4)]
    taken(shares, "newcomer", 1)
    assert [claim.gave_way for claim in claims] == [False, False, False, True]


def test_the_fullest_is_refused_and_nobody_gives_way_to_an_equal() -> None:
    shares = FairShares[str](4)
    a = taken(shares, "a", 2)
    b = taken(shares, "b", 2)
    assert not a.take(1), "it would have more than anybody"
    assert not shares.claim("c", nothing).take(2), "it would have as much"
    assert not a.gave_way
    assert not b.gave_way


def test_a_refusal_leaves_everybody_as_they_were() -> None:
    """Else a stranger could push others out by asking for what cannot be had."""
    shares = FairShares[str](100)
    claims = [
        taken(shares, "a", 20),
        taken(shares, "a", 20),
        *(taken(shares, x, 20) for x in "bcd"),
    ]
    newcomer = shares.claim("newcomer", nothing)
    assert not newcomer.take(30)
    assert not any(claim.gave_way for claim in claims)
    assert newcomer.take(15)
    assert [claim.gave_way for claim in claims] == [False, True, False, False, False]


def test_more_than_there_is_makes_nobody_give_way() -> None:
    shares = FairShares[str](10)
    held = taken(shares, "a", 10)
    assert not shares.claim("b", nothing).take(11)
    assert not held.gave_way


def test_slow_claims_give_way_first_once_places_are_short() -> None:
    """A thousand keys with one place each are equals; the one that trickles makes room."""
    shares = FairShares[int](3, least_rate=100, grace_s=10)
    now = 0.0
    gone: list[int] = []

    def claim(holder: int) -> Claim:
        made = shares.claim(holder, lambda: gone.append(holder), now=now)
        assert made.take(1, now)
        return made

    quick, trickle, young = claim(0), claim(1), None
    for _ in range(40):
        now += 1
        quick.progress(150, now)
        trickle.progress(50, now)
        if now == 39:
            young = claim(2)  # slow, but nobody can tell yet
    assert gone == [], "there was room"
    newcomer = shares.claim(3, nothing, now=now)
    assert newcomer.take(1, now)
    assert gone == [1]
    assert not shares.claim(4, nothing, now=now).take(1, now), "all others are quick enough"
    assert young is not None
    assert not young.gave_way


def test_a_fast_start_does_not_pay_for_standing_still_afterwards() -> None:
    shares = FairShares[str](1, least_rate=100, grace_s=10)
    claim = taken(shares, "a", 1)
    claim.progress(1e9, 1.0)
    assert not shares.claim("b", nothing, now=11.0).take(1, 11.0)
    assert shares.claim("b", nothing, now=31.0).take(1, 31.0)
    assert claim.gave_way


def test_shortage_costs_no_walk_over_all_holders() -> None:
    """Each refusal and each eviction is a few steps in the order of holders, not one for each holder."""

    def cost(holders: int) -> float:
        shares = FairShares[int](holders)
        for holder in range(holders):
            assert shares.claim(holder, nothing).take(1)
        newcomer = shares.claim(-1, nothing)
        assert not newcomer.take(1)  # makes the order
        began = time.process_time()
        for _ in range(2000):
            assert not newcomer.take(1)
        return time.process_time() - began

    # A walk would cost a hundred times as much.
    assert cost(20_000) < 20 * max(cost(200), 0.001)


def test_negative_limits_are_refused() -> None:
    with pytest.raises(InvalidInput):
        FairShares[str](-1)


def must_make_room(claims: dict[int, list[int]], wanted: int, missing: int) -> bool:
    """Return whether the fullest, losing whole claims, can make room without falling behind the taker.

    Of several that are equally full any may be the one; here all of them have to do.
    """
    if missing <= 0:
        return True
    most = max((sum(parts) for parts in claims.values()), default=0)
    if most <= wanted:
        return False
    return all(
        must_make_room({**claims, holder: sorted(parts)[:-1]}, wanted, missing - max(parts))
        for holder, parts in claims.items()
        if sum(parts) == most
    )


class Shares(RuleBasedStateMachine):
    """Takes and gives in any order, against the plain definition of the rules."""

    TOTAL = 50
    MOST = 35

    def __init__(self) -> None:
        super().__init__()
        self.shares = FairShares[int](self.TOTAL, self.MOST)
        self.held: dict[Claim, tuple[int, int]] = {}
        self.lost: list[Claim] = []

    claims = Bundle("claims")

    def per_holder(self) -> dict[int, int]:
        sums: dict[int, int] = {}
        for holder, amount in self.held.values():
            sums[holder] = sums.get(holder, 0) + amount
        return sums

    @rule(target=claims, holder=st.integers(0, 6))
    def open(self, holder: int) -> Claim:
        lost = self.lost
        claim = self.shares.claim(holder, lambda: lost.append(claim))
        self.held[claim] = (holder, 0)
        return claim

    @rule(claim=claims, amount=st.integers(0, 40))
    def take(self, claim: Claim, amount: int) -> None:
        before = self.per_holder()
        self.lost.clear()
        granted = claim.take(amount)
        if claim not in self.held:
            assert not granted
            return
        holder, had = self.held[claim]
        wanted = before[holder] + amount
        others = {each: value for each, value in before.items() if each != holder}
        for gone in self.lost:
            assert granted, "gave way to nobody"
            loser, amount_lost = self.held.pop(gone)
            assert loser != holder
            assert others[loser] > wanted, "gave way to somebody who has as much"
            assert others[loser] == max(others.values()), "was not the fullest"
            others[loser] -= amount_lost
        if granted:
            assert wanted <= self.MOST
            self.held[claim] = (holder, had + amount)
        else:
            fits = sum(others.values()) + wanted <= self.TOTAL
            assert wanted > self.MOST or not fits, "refused though there was room"
            missing = sum(others.values()) + wanted - self.TOTAL
            claims: dict[int, list[int]] = {}
            for other, part in self.held.values():
                if other != holder:
                    claims.setdefault(other, []).append(part)
            assert wanted > self.MOST or not must_make_room(claims, wanted, missing)

    @rule(claim=claims, amount=st.integers(0, 40))
    def give(self, claim: Claim, amount: int) -> None:
        claim.give(amount)
        if claim in self.held:
            holder, had = self.held[claim]
            self.held[claim] = (holder, max(0, had - amount))

    @rule(claim=claims)
    def release(self, claim: Claim) -> None:
        claim.release()
        self.held.pop(claim, None)

    @invariant()
    def the_books_agree(self) -> None:
        sums = self.per_holder()
        assert self.shares.used == sum(sums.values()) <= self.TOTAL
        for holder in range(7):
            assert self.shares.held_by(holder) == sums.get(holder, 0) <= self.MOST
        assert self.shares.holders == len(sums)


TestShares = Shares.TestCase
TestShares.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
