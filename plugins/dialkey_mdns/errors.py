"""What can go wrong in the local network, in the tree of `dialkey.errors`::

WireError     ─ InvalidMessage    bytes that are not a DNS message
ResolveError  ─ NoMulticast       no network here carries multicast
"""

from __future__ import annotations

from dialkey.errors import ResolveError, WireError

__all__ = ["InvalidMessage", "NoMulticast"]


class InvalidMessage(WireError):
    code = "remote.wire.mdns"


class NoMulticast(ResolveError):
    code = "network.resolve.multicast"
