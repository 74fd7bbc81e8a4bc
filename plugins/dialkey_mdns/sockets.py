"""Sockets for multicast DNS: one for each link, so that it is known where a datagram arrived.

Each is bound to the group's own address where the system allows for that (Linux, macOS), so that the
kernel keeps away whatever was sent to this machine in particular, from wherever. The port is shared
with other programs that speak multicast DNS (avahi, iroh), which get the same datagrams.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import struct
import sys
from collections.abc import Iterable
from typing import Final

import ifaddr

from dialkey_mdns.limits import MAX_READ_BYTES
from dialkey_mdns.machine import Link, Network

__all__ = ["PORT", "LinkSocket", "links_here"]

logger = logging.getLogger("dialkey.mdns")

PORT: Final = 5353
GROUP_4: Final = "224.0.0.251"
GROUP_6: Final = "ff02::fb"

_HOPS: Final = 255
"""RFC 6762 section 11; routers forward neither group in any case."""

_IP_MULTICAST_ALL: Final = 49
_IPV6_MULTICAST_ALL: Final = 29
"""Linux: whether a socket gets what others have joined, on interfaces that are not its own."""

READS_PER_TURN: Final = 64


def links_here() -> list[Link]:
    """Return the links of this machine; the loopback interface only if there is nothing else."""
    found = []
    for adapter in ifaddr.get_adapters():
        networks: dict[int, dict[Network, str]] = {4: {}, 6: {}}
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            network = ipaddress.ip_network(f"{text}/{entry.network_prefix}", strict=False)
            networks[network.version].setdefault(network, text)
        index = adapter.index
        if not index:
            # Where ifaddr does not know it.
            with contextlib.suppress(OSError):
                index = socket.if_nametoindex(str(adapter.name))
        for family, those in networks.items():
            if those and index:
                is_loopback = all(each.is_loopback for each in those)
                # In the same order each time, or it would be another link.
                ordered = tuple(sorted(those, key=str))
                own = those[ordered[0]]
                found.append(Link(str(adapter.name), index, family, ordered, is_loopback, own))
    others = [each for each in found if not each.is_loopback]
    return others or found


class LinkSocket:
    """A socket on one link.

    Raises:
        OSError: this link carries no multicast, or another program keeps the port for itself.
    """

    def __init__(self, link: Link, port: int = PORT) -> None:
        self.link = link
        family = socket.AF_INET if link.family == 4 else socket.AF_INET6
        self._sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._sock.setblocking(False)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "SO_REUSEPORT"):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if link.family == 4:
                self._to: tuple[object, ...] = (GROUP_4, port)
                self._open_4(link, port)
            else:
                self._to = (GROUP_6, port, 0, link.index)
                self._open_6(link, port)
        except BaseException:
            self._sock.close()
            raise

    def _open_4(self, link: Link, port: int) -> None:
        sock = self._sock
        # On Linux and macOS the index of the interface stands beside its address.
        own = socket.inet_aton(link.address or "0.0.0.0")
        request = struct.pack("@4s4si", socket.inet_aton(GROUP_4), own, link.index)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, _HOPS)
        if sys.platform == "linux":
            sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        sock.bind((GROUP_4, port))

    def _open_6(self, link: Link, port: int) -> None:
        sock = self._sock
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        request = struct.pack("@16sI", socket.inet_pton(socket.AF_INET6, GROUP_6), link.index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, link.index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOPS)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # since Linux 4.20
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
        sock.bind((GROUP_6, port, 0, link.index))

    def fileno(self) -> int:
        """Return the descriptor, to wait for what arrives."""
        return self._sock.fileno()

    def receive(self) -> Iterable[tuple[bytes, str]]:
        """Yield what has arrived and from which IP address; some of it, others want their turn."""
        for _ in range(READS_PER_TURN):
            try:
                data, address = self._sock.recvfrom(MAX_READ_BYTES + 1)
            except BlockingIOError:
                return
            except OSError as error:
                # Such as an interface that is gone; the next list of interfaces will say so.
                logger.debug("%s: %s", self.link.name, error.strerror)
                return
            yield data, address[0]

    def send(self, data: bytes) -> bool:
        """Send to all; return whether it left."""
        try:
            self._sock.sendto(data, self._to)
        except OSError as error:
            logger.debug("%s: %s", self.link.name, error.strerror)
            return False
        return True

    def close(self) -> None:
        """Close it. Idempotent."""
        self._sock.close()
