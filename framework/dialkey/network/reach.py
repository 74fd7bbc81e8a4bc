"""What an IP address is, for those who connect to where strangers said."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Final, TypeAlias

__all__ = ["Ip", "MayReach", "is_public", "plain_ip"]

Ip: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

MayReach: TypeAlias = Callable[[Ip], bool]
"""Says whether one may connect to an IP address that a stranger's name led to."""

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def plain_ip(ip: Ip) -> Ip:
    """Take the IPv4 address out of an IPv6 address that carries one."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip.sixtofour is not None:
        return ip.sixtofour
    if ip.teredo is not None:
        return ip.teredo[1]
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip


def is_public(ip: Ip) -> bool:
    """Say whether an address is one machine's on the public internet."""
    ip = plain_ip(ip)
    return ip.is_global and not ip.is_multicast
