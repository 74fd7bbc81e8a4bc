"""Endpoints found by their keys in the local network, without any server, over multicast DNS.

They find iroh's endpoints, and iroh finds them; `avahi-browse` and the like show them. Names are
imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey.lazy import lazy_names

if TYPE_CHECKING:
    from dialkey_mdns.errors import InvalidMessage, NoMulticast
    from dialkey_mdns.lookup import MdnsLookup

_HOMES = {
    "errors": ("InvalidMessage", "NoMulticast"),
    "lookup": ("MdnsLookup",),
}

__all__ = ["InvalidMessage", "MdnsLookup", "NoMulticast"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
