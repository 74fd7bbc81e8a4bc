"""Token buckets: how much of something may happen in how much time."""

from __future__ import annotations

import math
from typing import Final

import attrs

from dialkey.allowance import Allowance
from dialkey.shares import network_of

__all__ = ["AddressLimiter", "Bucket", "Rate"]

REFILL_PERIOD_S: Final = 0.1
MAX_ADDRESSES: Final = 65_536
"""Addresses remembered by one limiter; the ones least recently seen are forgotten first."""

RARE: Final = 4
"""Events that a network may have outstanding and still count as one that seldom comes: a client tries a
few times."""


@attrs.frozen
class Rate:
    """An average and what may come at once.

    Attributes:
        per_second: units per second.
        burst: units at once.
    """

    per_second: float = attrs.field(validator=attrs.validators.gt(0))
    burst: float = attrs.field(validator=attrs.validators.gt(0))

    @classmethod
    def of_bytes(cls, bytes_per_second: int, max_burst_bytes: int | None = None) -> Rate:
        """Make the rate of a client's bytes; the burst is a tenth of a second if not given.

        Raises:
            ValueError: a rate of less than 10 bytes per second, or no burst at all.
        """
        return cls(bytes_per_second, max_burst_bytes or bytes_per_second // 10)

    def allowance(self, now: float) -> Allowance:
        """Return what counts events at this rate; what it refuses costs nothing."""
        return Allowance(self.burst, self.per_second, now)


class Bucket:
    """A bucket that is debited after the fact and tells how long to pause.

    It is refilled in steps of 100 ms, and may go into debt: what has been read is not unread.

    Source: docs/wire/relay.md 4.6.
    """

    __slots__ = ("_level", "_refill", "_refilled_at", "rate")

    def __init__(self, rate: Rate, now: float) -> None:
        self.rate = rate
        self._refill = rate.per_second * REFILL_PERIOD_S
        self._level = rate.burst
        self._refilled_at = now

    def debit(self, units: float, now: float) -> float:
        """Take `units` out; return for how many seconds to pause, 0 if not at all."""
        periods = math.floor((now - self._refilled_at) / REFILL_PERIOD_S)
        if periods > 0:
            self._level = min(self.rate.burst, self._level + periods * self._refill)
            self._refilled_at += periods * REFILL_PERIOD_S
        self._level -= units
        if self._level > 0:
            return 0.0
        needed = math.floor(-self._level / self._refill) + 1
        return max(0.0, self._refilled_at + needed * REFILL_PERIOD_S - now)


class AddressLimiter:
    """How often one source network may do something: an IPv4 address, or the /64 of an IPv6 one.

    Args:
        rate: events per second and at once, for each address.
    """

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._seen: dict[str | int, Allowance] = {}

    def allow(self, address: str, now: float) -> bool:
        """Return whether one more event of this address is within the limit, and count it if so."""
        network = network_of(address)
        allowance = self._seen.pop(network, None) or self._rate.allowance(now)
        self._seen[network] = allowance
        if len(self._seen) > MAX_ADDRESSES:
            del self._seen[next(iter(self._seen))]
        return allowance.take(now)

    def is_rare(self, address: str, now: float) -> bool:
        """Return whether an address has hardly used what it may lately."""
        allowance = self._seen.get(network_of(address))
        some = min(RARE, self._rate.burst / 2)
        return allowance is None or allowance.left(now) >= self._rate.burst - some
