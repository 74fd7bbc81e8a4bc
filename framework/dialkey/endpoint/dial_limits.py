"""What a dial may cost others when its addresses are hearsay.

A dial sends to every known address, repeatedly, until somebody answers. That is right for a ticket. Where
strangers can make us dial, and say where, it is a weapon: a few bytes to us become megabytes to somebody
else, and a relay URL becomes an HTTP request to a host of their choice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs

from dialkey.errors import InvalidInput
from dialkey.identity import IpAddr, TransportAddr
from dialkey.network.reach import Ip, MayReach, is_public, plain_ip

__all__ = ["DialLimits"]


def _every(addr: TransportAddr) -> bool:
    return True


async def _anything(addr: TransportAddr) -> bool:
    return True


@attrs.frozen
class DialLimits:
    """Limits on one dial, for addresses that were not named by the application itself.

    Attributes:
        max_addresses: how many to try at most, both of those passed in and those found. Only one port
            is tried per IP address.
        max_datagrams: how many are sent to each address before it answers.
        applies_to: says which addresses the limits are for; all of them by default.
        accepts: says whether one of those may be tried at all.
        may_reach: says to which IP addresses a name among those may lead; public ones by default. It is
            asked about the very address that is connected to, since a name may resolve differently the
            next time.

    After the handshake only the address that answered is kept: the others were never proven.
    """

    max_addresses: int = 3
    max_datagrams: int = 2
    applies_to: Callable[[TransportAddr], bool] = _every
    accepts: Callable[[TransportAddr], Awaitable[bool]] = _anything
    may_reach: MayReach = is_public

    def __attrs_post_init__(self) -> None:
        if self.max_addresses < 1 or self.max_datagrams < 1:
            raise InvalidInput("a dial needs at least one datagram to one address")


class LimitedAddresses:
    """Counts which addresses of one dial were let through.

    Args:
        limits: without any, everything passes.
    """

    def __init__(self, limits: DialLimits | None) -> None:
        self._limits = limits
        self._count = 0
        self._ips: set[Ip] = set()

    @property
    def is_limited(self) -> bool:
        """Whether strangers have named addresses; if so, no others are looked for later."""
        return self._limits is not None

    @property
    def may_reach(self) -> MayReach | None:
        """Says to which IP addresses names among those may lead; None: any."""
        return self._limits.may_reach if self._limits is not None else None

    async def admit(self, addr: TransportAddr) -> tuple[bool, int | None]:
        """Return whether an address may be tried, and how many datagrams it may get; None: any number."""
        limits = self._limits
        if limits is None or not limits.applies_to(addr):
            return True, None
        ip = _plain_ip(addr)
        if self._count >= limits.max_addresses or ip in self._ips:
            return False, 0
        if not await limits.accepts(addr) or self._count >= limits.max_addresses:
            return False, 0
        self._count += 1
        if ip is not None:
            self._ips.add(ip)
        return True, limits.max_datagrams


def _plain_ip(addr: TransportAddr) -> Ip | None:
    return plain_ip(addr.ip) if isinstance(addr, IpAddr) else None
