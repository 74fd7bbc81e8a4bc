"""Endpoints found by their keys in the local network, without any server, over multicast DNS.

They find iroh's endpoints, and iroh finds them; `avahi-browse` and the like show them. Names are
imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dialkey_mdns.errors import InvalidMessage, NoMulticast
    from dialkey_mdns.lookup import MdnsLookup

_HOMES = {
    "dialkey_mdns.errors": ("InvalidMessage", "NoMulticast"),
    "dialkey_mdns.lookup": ("MdnsLookup",),
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["InvalidMessage", "MdnsLookup", "NoMulticast"]


def __getattr__(name: str) -> object:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
