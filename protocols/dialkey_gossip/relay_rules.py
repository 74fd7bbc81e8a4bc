"""Which relays we dial because a stranger named them.

Dialling a relay is an HTTP request to a host. Relays that were configured are fine, whatever they are.
Of others, only https is dialled, and no address that is not public, unless we are in that very network:
otherwise any member could have us knock at the machines around us.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeAlias

from dialkey.identity import RelayAddr, RelayUrl, TransportAddr

__all__ = ["RelayRules", "Resolve", "plain_ip", "resolve_host"]

Ip: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve: TypeAlias = Callable[[str], Awaitable[list[Ip]]]

_RESOLVE_TIMEOUT_S: Final = 3.0
_NETWORK_BITS: Final = {4: 24, 6: 64}
"""What counts as our own network around each of our addresses."""

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


async def resolve_host(host: str) -> list[Ip]:
    """Resolve a name as a connection to it would; nothing if it has no address."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_RESOLVE_TIMEOUT_S):
            found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError):
        return []
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


class RelayRules:
    """Decide about relay URLs of hearsay.

    Args:
        configured: gives the relays that the application chose.
        own_ips: gives our own addresses.
        resolve: resolves a name.
    """

    def __init__(
        self,
        configured: Callable[[], Collection[RelayUrl]],
        own_ips: Callable[[], Collection[Ip]],
        resolve: Resolve = resolve_host,
    ) -> None:
        self._configured = configured
        self._own_ips = own_ips
        self._resolve = resolve

    def may_name(self, addr: TransportAddr) -> bool:
        """Say whether an address is plausible, as far as that can be seen without a resolver."""
        if not isinstance(addr, RelayAddr) or addr.url in self._configured():
            return True
        host = addr.url.host
        if addr.url.scheme != "https" or host is None:
            return False
        literal = _literal(host)
        if literal is not None:
            return self._may_dial(literal)
        name = host.rstrip(".").lower()
        return "." in name and not name.endswith((".localhost", ".local", ".internal"))

    async def may_dial(self, addr: TransportAddr) -> bool:
        """Say whether an address may be dialled; names are resolved, and all they lead to must do."""
        if not self.may_name(addr):
            return False
        if not isinstance(addr, RelayAddr) or addr.url in self._configured():
            return True
        host = addr.url.host
        assert host is not None
        if _literal(host) is not None:
            return True
        ips = await self._resolve(host)
        return bool(ips) and all(self._may_dial(ip) for ip in ips)

    def _may_dial(self, ip: Ip) -> bool:
        ip = plain_ip(ip)
        if ip.is_global and not ip.is_multicast:
            return True
        if ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
            return False
        bits = _NETWORK_BITS[ip.version]
        network = ipaddress.ip_network((ip, bits), strict=False)
        return any(own.version == ip.version and own in network for own in self._own_ips())


def _literal(host: str) -> Ip | None:
    """Read a host that is an address, in any form that a resolver would read as one."""
    text = host.strip("[]").partition("%")[0]
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(text.rstrip(".")))
    except OSError:
        return None


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
