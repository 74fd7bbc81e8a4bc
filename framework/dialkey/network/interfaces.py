"""This machine's own addresses."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

import ifaddr

from dialkey.identity import IpAddr

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def local_ips() -> list[IpAddress]:
    """Return the addresses of all interfaces, loopback only if there is nothing else.

    Link-local addresses are left out: without its interface such an address leads nowhere.
    """
    found: set[IpAddress] = set()
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            address = ipaddress.ip_address(text)
            if not (address.is_link_local or address.is_unspecified or address.is_multicast):
                found.add(address)
    routable = {ip for ip in found if not ip.is_loopback}
    return sorted(routable or found, key=lambda ip: (ip.version, ip.packed))


def has_way_out() -> bool:
    """Say whether this machine knows a route to the internet; nothing is sent."""
    # Addresses of documentation: no network has a route of its own to them.
    for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))
        except OSError:
            continue
        return True
    return False


def candidates(bound: Iterable[tuple[IpAddress, int]]) -> list[IpAddr]:
    """Return where sockets bound to these addresses can be reached from other machines.

    Args:
        bound: (address, port) of each socket; an unspecified address stands for all of its family.
    """
    result: dict[IpAddr, None] = {}
    for ip, port in bound:
        if ip.is_unspecified:
            for local in local_ips():
                if local.version == ip.version:
                    result[IpAddr(local, port)] = None
        else:
            result[IpAddr(ip, port)] = None
    if any(not addr.ip.is_loopback for addr in result):
        return [addr for addr in result if not addr.ip.is_loopback]
    return list(result)
