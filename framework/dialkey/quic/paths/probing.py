"""Which of the addresses that a peer has named are probed, and how often.

A candidate is hearsay. Whoever named it has a key, but keys are free; so probes are limited per target
address and in all, across all connections. What one connection may send in all is limited by what its
peer has sent (see `traversal`).

Source: docs/wire/quic.md 5.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Hashable, Iterable
from typing import Final

from dialkey import limits
from dialkey.allowance import Allowance
from dialkey.identity import IpAddr

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_PRIVATE: Final = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
_NOWHERE: Final = tuple(ipaddress.ip_network(text) for text in ("0.0.0.0/8", "240.0.0.0/4"))


class Worth(enum.Enum):
    """What to do with a candidate."""

    NOTHING = "it is not the address of a machine, or only that machine reaches it"
    LITTLE = "it is private, of a range in which we have no address"
    ALL = "it may well be the peer's"


def canonical(address: IpAddr) -> IpAddr:
    """Return the address in canonical form, in which it is compared and sent."""
    ip = address.ip
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return IpAddr(ip.ipv4_mapped, address.port)
    return IpAddr(ip, address.port) if address.scope_id else address


def worth_of(address: IpAddr, own: Iterable[IpAddr]) -> Worth:
    """Return what to do with a candidate of the peer.

    Args:
        address: in canonical form.
        own: our own candidates.
    """
    ip = address.ip
    if not address.port or ip.is_unspecified or ip.is_multicast or _is_in(ip, _NOWHERE):
        return Worth.NOTHING
    if ip.version == 6 and ip.is_link_local:
        # The wire does not carry its interface.
        return Worth.NOTHING
    ours = list(own)
    if address in ours:
        return Worth.NOTHING
    if ip.is_loopback:
        return Worth.ALL if any(each.ip.is_loopback for each in ours) else Worth.NOTHING
    if ip.is_link_local:
        return Worth.ALL if any(each.ip.is_link_local for each in ours) else Worth.NOTHING
    for network in _PRIVATE:
        if ip.version == network.version and ip in network:
            has_one = any(each.ip.version == ip.version and each.ip in network for each in ours)
            return Worth.ALL if has_one else Worth.LITTLE
    return Worth.ALL


def _is_in(
    ip: IpAddress, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]
) -> bool:
    return any(ip.version == network.version and ip in network for network in networks)


def _target(ip: IpAddress) -> Hashable:
    """Return whom a probe would bother: an IPv4 address, or the IPv6 network of one site."""
    return int(ip) >> 64 if ip.version == 6 else ip


class ProbeAllowance:
    """How many probes may go to addresses that peers have named, over all connections of an endpoint.

    Attributes:
        refused: probes that were not sent, because there had been too many.
    """

    def __init__(self) -> None:
        self._in_all = Allowance(limits.PROBES_IN_ALL, limits.PROBES_IN_ALL_PER_S)
        # Least recently probed first.
        self._targets: dict[Hashable, Allowance] = {}
        self.refused = 0

    def take(self, ip: IpAddress, now: float) -> bool:
        """Return whether a probe may go to an address now, and count it if so."""
        target = _target(ip)
        allowance = self._targets.pop(target, None)
        if allowance is None:
            if len(self._targets) >= limits.MAX_PROBE_TARGETS:
                del self._targets[next(iter(self._targets))]
            allowance = Allowance(limits.PROBES_PER_TARGET, limits.PROBES_PER_TARGET_PER_S, now)
        self._targets[target] = allowance
        if allowance.left(now) < 1 or not self._in_all.take(now):
            self.refused += 1
            return False
        return allowance.take(now)

    def answered(self, ip: IpAddress) -> None:
        """Note that a peer is really there: the probes it got no longer count."""
        self._targets.pop(_target(ip), None)
