"""Which relays we dial because a stranger named them.

Dialling a relay is an HTTP request to a host. Relays that were configured are allowed, whatever they are.
Others must use https and have a public address, or one in a network of ours; otherwise any member could
make us probe the machines around us.

Only the name is judged here. The transport judges where it leads, with `RelayRules.may_reach`, at the
moment when it connects, because the owner of a name can answer differently the next time.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Collection
from typing import Final, TypeAlias

from dialkey.identity import RelayAddr, RelayUrl, TransportAddr
from dialkey.network import is_public, plain_ip

__all__ = ["Ip", "RelayRules"]

Ip: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_NETWORK_BITS: Final = {4: 24, 6: 64}
"""The size of our own network around each of our addresses."""


class RelayRules:
    """Decides about relay URLs from hearsay.

    Args:
        configured: returns the relays that the application chose.
        own_ips: returns our own addresses.
    """

    def __init__(
        self,
        configured: Callable[[], Collection[RelayUrl]],
        own_ips: Callable[[], Collection[Ip]],
    ) -> None:
        self._configured = configured
        self._own_ips = own_ips

    def may_name(self, addr: TransportAddr) -> bool:
        """Return whether an address may be tried, as far as that is known before its name is resolved."""
        if not isinstance(addr, RelayAddr) or addr.url in self._configured():
            return True
        host = addr.url.host
        if addr.url.scheme != "https" or host is None:
            return False
        literal = _literal(host)
        if literal is not None:
            return self.may_reach(literal)
        name = host.rstrip(".").lower()
        return "." in name and not name.endswith((".localhost", ".local", ".internal"))

    def may_reach(self, ip: Ip) -> bool:
        """Return whether a name from hearsay may lead to an IP address."""
        ip = plain_ip(ip)
        if is_public(ip):
            return True
        if ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
            return False
        bits = _NETWORK_BITS[ip.version]
        network = ipaddress.ip_network((ip, bits), strict=False)
        return any(own.version == ip.version and own in network for own in self._own_ips())


def _literal(host: str) -> Ip | None:
    """Parse a host as an address, in any form that a resolver would accept as one."""
    text = host.strip("[]").partition("%")[0]
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(text.rstrip(".")))
    except OSError:
        return None
