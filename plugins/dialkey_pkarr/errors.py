"""What can go wrong with signed packets and the servers that keep them, in the tree of `dialkey.errors`::

WireError     ─ InvalidPacket     not a signed packet, or not the records of an endpoint
InvalidInput  ─ RecordTooLarge    what is to be published does not fit
              ├ ServerConfigError a server's configuration cannot be used
ResolveError  ─ ServerFailed      a server cannot be reached, or answers with an error
LocalError    ─ StoreFailed       a server's database cannot be read or written
"""

from __future__ import annotations

from dialkey.errors import InvalidInput, LocalError, ResolveError, WireError

__all__ = [
    "InvalidPacket",
    "RecordTooLarge",
    "ServerConfigError",
    "ServerFailed",
    "StoreFailed",
]


class InvalidPacket(WireError):
    code = "remote.wire.pkarr"


class RecordTooLarge(InvalidInput):
    code = "local.input.record_size"


class ServerFailed(ResolveError):
    code = "network.resolve.server"


class ServerConfigError(InvalidInput):
    code = "local.input.dns_config"


class StoreFailed(LocalError):
    code = "local.store.records"
