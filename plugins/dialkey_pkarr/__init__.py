"""Endpoints found by their keys over the internet: signed packets, HTTP and DNS.

An endpoint signs where it can be reached and publishes that on a server over HTTP; others ask the same
server over HTTP, or any DNS resolver. Only the holder of the key can change the record; not even the
server can. Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey.lazy import lazy_names

if TYPE_CHECKING:
    from dialkey_pkarr.dns_client import NameServer
    from dialkey_pkarr.errors import InvalidPacket, RecordTooLarge, ServerFailed
    from dialkey_pkarr.lookups import DnsLookup, PkarrLookup
    from dialkey_pkarr.packets import SignedPacket, Timestamps

_HOMES = {
    "errors": ("InvalidPacket", "RecordTooLarge", "ServerFailed"),
    "dns_client": ("NameServer",),
    "lookups": ("DnsLookup", "PkarrLookup"),
    "packets": ("SignedPacket", "Timestamps"),
}

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

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
