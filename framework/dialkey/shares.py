"""Budgets that many endpoints share, so that none of them can take what is everybody's. Sans-IO.

Keys cost nothing, and neither do announcements. Four rules follow, and `FairShares` keeps them:

- It counts what was *delivered* (bytes that arrived, work that began), never what was announced.
- No holder has more than its `most`.
- When the total is reached, the *fullest* holder gives way to one that has less. Whoever has little
  therefore always passes; only the fullest is refused.
- Where `least_rate` is set, a claim that makes less progress gives way before any other once places are
  short. Without it, a thousand keys with one trickling request each would hold everything for ever.

While there is room, nothing is refused and nobody gives way, and a claim costs a few additions.
"""

from __future__ import annotations

import heapq
import ipaddress
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, Final, Generic, TypeVar

from dialkey.errors import InvalidInput

__all__ = ["Claim", "FairShares", "network_of"]

Holder = TypeVar("Holder", bound=Hashable)

SPARE_ENTRIES: Final = 64
"""Outdated entries that the order of holders may have, beside four for each holder, until it is
forgotten and made anew at the next shortage."""


class _Account:
    """What one holder has."""

    __slots__ = ("amount", "claims", "holder", "number")

    def __init__(self, holder: Hashable, number: int) -> None:
        self.holder = holder
        self.number = number
        self.amount = 0
        self.claims: dict[Claim, None] = {}


class FairShares(Generic[Holder]):
    """A budget of bytes, places or calls, shared fairly among holders.

    A holder is whoever is counted as one: an endpoint id, an address, a connection.

    Args:
        total: units for everybody together.
        most: units that one holder may have at a time; `total` if it is left out.
        least_rate: progress, in units of your choice per second, below which a claim is slow. Only
            matters to claims that report `Claim.progress`, and only when the total is reached.
        grace_s: over how many seconds progress is measured; a younger claim is never slow.

    Raises:
        InvalidInput: a limit is negative.
    """

    __slots__ = (
        "_accounts",
        "_grace_s",
        "_least_rate",
        "_most",
        "_numbers",
        "_order",
        "_total",
        "_used",
    )

    def __init__(
        self,
        total: int,
        most: int | None = None,
        *,
        least_rate: float = 0.0,
        grace_s: float = 10.0,
    ) -> None:
        if total < 0 or (most is not None and most < 0) or least_rate < 0 or grace_s < 0:
            raise InvalidInput("a budget has no negative limits")
        self._total = total
        self._most = total if most is None else most
        self._least_rate = least_rate
        self._grace_s = grace_s
        self._used = 0
        self._accounts: dict[Hashable, _Account] = {}
        self._numbers = itertools.count()
        # A heap of (-amount, number, account), kept only while there is a shortage. Each growth adds an
        # entry; those that no longer say the truth are dropped when they come to the top.
        self._order: list[tuple[int, int, _Account]] | None = None

    @property
    def total(self) -> int:
        """Units for everybody together."""
        return self._total

    @property
    def most(self) -> int:
        """Units that one holder may have at a time."""
        return self._most

    @property
    def used(self) -> int:
        """Units that are taken."""
        return self._used

    @property
    def holders(self) -> int:
        """How many holders have open claims."""
        return len(self._accounts)

    def held_by(self, holder: Holder) -> int:
        """Return the units that one holder has."""
        account = self._accounts.get(holder)
        return 0 if account is None else account.amount

    def claim(self, holder: Holder, give_way: Callable[[], object], *, now: float = 0.0) -> Claim:
        """Open a claim, which has nothing yet. Release it when it is over.

        Args:
            holder: on whose account.
            give_way: called when the claim has to give way. It has lost its units by then; let go of
                what they stood for. Must not raise, and must not take from this budget.
            now: when progress begins to count, in seconds of any clock that does not go back.
        """
        account = self._accounts.get(holder)
        if account is None:
            account = self._accounts[holder] = _Account(holder, next(self._numbers))
        claim = Claim(self, account, give_way, now)
        account.claims[claim] = None
        return claim

    # --- for claims -----------------------------------------------------------------------------

    def _take(self, account: _Account, amount: int, now: float) -> bool:
        if account.amount + amount > self._most:
            return False
        if self._used + amount > self._total and not self._make_room(account, amount, now):
            return False
        account.amount += amount
        self._used += amount
        self._note(account)
        return True

    def _give(self, account: _Account, amount: int) -> None:
        account.amount -= amount
        self._used -= amount

    def _close(self, account: _Account, claim: Claim, amount: int) -> None:
        self._give(account, amount)
        account.claims.pop(claim, None)
        if not account.claims:
            self._accounts.pop(account.holder, None)

    # --- shortage -------------------------------------------------------------------------------

    def _make_room(self, taker: _Account, amount: int, now: float) -> bool:
        """Let others give way until `amount` fits; if it cannot, leave all as it is."""
        missing = self._used + amount - self._total
        if amount > self._total:
            return False
        wanted = taker.amount + amount
        losers: list[Claim] = []
        left: dict[_Account, int] = {}  # what accounts will have without the losers

        def plan(account: _Account, claim: Claim) -> None:
            nonlocal missing
            losers.append(claim)
            left[account] = left.get(account, account.amount) - claim.amount
            missing -= claim.amount

        for account, claim in self._slow_claims(now) if self._least_rate else ():
            if missing > 0 and account is not taker:
                plan(account, claim)
        planned = set(losers)
        ahead: dict[_Account, Iterator[Claim]] = {}
        while missing > 0:
            fullest = self._fullest(left)
            if fullest is None or left.get(fullest, fullest.amount) <= wanted:
                for account in left:
                    self._note(account)
                return False
            if fullest not in ahead:
                # The largest frees most; of equal ones the youngest has the least work behind it.
                youngest_first = (each for each in reversed(fullest.claims) if each not in planned)
                ahead[fullest] = iter(sorted(youngest_first, key=lambda each: -each.amount))
            plan(fullest, next(ahead[fullest]))
        for loser in losers:
            loser._lose()
        return True

    def _slow_claims(self, now: float) -> list[tuple[_Account, Claim]]:
        """Return the claims below the rate, the slowest first."""
        rated = [
            (rate, account, claim)
            for account in self._accounts.values()
            for claim in account.claims
            if claim.amount and (rate := claim._rate(now)) is not None
        ]
        slow = [each for each in rated if each[0] < self._least_rate]
        return [(account, claim) for _, account, claim in sorted(slow, key=lambda each: each[0])]

    def _fullest(self, left: Mapping[_Account, int]) -> _Account | None:
        """Return the account with most, where some will only have what is `left` to them."""
        order = self._order
        if order is None:
            order = self._order = [(-a.amount, a.number, a) for a in self._accounts.values()]
            heapq.heapify(order)
        while order:
            listed, number, account = order[0]
            amount = left.get(account, account.amount)
            if -listed == amount:
                return account if amount else None
            if -listed > amount > 0:
                heapq.heapreplace(order, (-amount, number, account))
            else:
                heapq.heappop(order)  # it has nothing, or grew and has another entry
        return None

    def _note(self, account: _Account) -> None:
        order = self._order
        if order is None:
            return
        if len(order) > 4 * len(self._accounts) + SPARE_ENTRIES:
            self._order = None
        else:
            heapq.heappush(order, (-account.amount, account.number, account))


class Claim:
    """A part of a budget, taken as what it stands for is delivered. Made by `FairShares.claim`."""

    __slots__ = (
        "_account",
        "_amount",
        "_before",
        "_began",
        "_done",
        "_gave_way",
        "_give_way",
        "_is_open",
        "_shares",
        "_since",
    )

    def __init__(
        self,
        shares: FairShares[Any],
        account: _Account,
        give_way: Callable[[], object],
        now: float,
    ) -> None:
        self._shares = shares
        self._account = account
        self._give_way = give_way
        self._amount = 0
        self._is_open = True
        self._gave_way = False
        self._began = self._since = now
        # Progress in the period before this one, and in this one.
        self._before = self._done = 0.0

    @property
    def amount(self) -> int:
        """The units that it has."""
        return self._amount

    @property
    def gave_way(self) -> bool:
        """Whether it lost its units to somebody who had less. It gets no more."""
        return self._gave_way

    def take(self, amount: int, now: float = 0.0) -> bool:
        """Take units; others may have to give way for them.

        Args:
            amount: how many.
            now: the time; it only matters to a budget with a least rate.

        Returns:
            False if the holder has its share, or nobody has more than it; nothing has changed then.
        """
        if not self._is_open or not self._shares._take(self._account, amount, now):
            return False
        self._amount += amount
        return True

    def give(self, amount: int) -> None:
        """Give units back. After the claim has given way there is nothing to give back."""
        if self._is_open:
            amount = min(amount, self._amount)
            self._amount -= amount
            self._shares._give(self._account, amount)

    def release(self) -> None:
        """Give everything back; the claim is over. Idempotent."""
        if self._is_open:
            self._is_open = False
            amount, self._amount = self._amount, 0
            self._shares._close(self._account, self, amount)

    def progress(self, done: float, now: float) -> None:
        """Report that something was done since the last report."""
        self._turn_over(now)
        self._done += done

    def _turn_over(self, now: float) -> None:
        """Begin a new period when one is over, and forget all but the last: it does not count."""
        grace_s = self._shares._grace_s
        elapsed = now - self._since
        if elapsed >= 2 * grace_s:
            self._before = self._done = 0.0
            self._since = now
        elif elapsed >= grace_s:
            self._before, self._done = self._done, 0.0
            self._since += grace_s

    def _rate(self, now: float) -> float | None:
        """Progress per second in this period and the one before; None for a young claim."""
        age = now - self._began
        if age <= self._shares._grace_s:
            return None
        self._turn_over(now)
        span = min(age, now - self._since + self._shares._grace_s)
        return (self._before + self._done) / span if span else None

    def _lose(self) -> None:
        self.release()
        self._gave_way = True
        self._give_way()


def network_of(address: str) -> str | int:
    """Return what counts as one subscriber: an IPv4 address, or the /64 of an IPv6 one.

    Text that is not an IP address counts as it is.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return int(ip) >> 64
