"""Endpoints found by their keys over the internet: signed packets, HTTP and DNS.

An endpoint signs where it can be reached and publishes that on a server over HTTP; others ask the same
server over HTTP, or any DNS resolver. Only the holder of the key can change the record; not even the
server can. Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dialkey_pkarr.dns_client import NameServer
    from dialkey_pkarr.errors import InvalidPacket, RecordTooLarge, ServerFailed
    from dialkey_pkarr.lookups import DnsLookup, PkarrLookup
    from dialkey_pkarr.packets import SignedPacket, Timestamps

_HOMES = {
    "dialkey_pkarr.errors": ("InvalidPacket", "RecordTooLarge", "ServerFailed"),
    "dialkey_pkarr.dns_client": ("NameServer",),
    "dialkey_pkarr.lookups": ("DnsLookup", "PkarrLookup"),
    "dialkey_pkarr.packets": ("SignedPacket", "Timestamps"),
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "DnsLookup",
    "InvalidPacket",
    "NameServer",
    "PkarrLookup",
    "RecordTooLarge",
    "ServerFailed",
    "SignedPacket",
    "Timestamps",
]


def __getattr__(name: str) -> object:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
