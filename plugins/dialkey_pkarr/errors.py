"""What can go wrong with signed packets and the servers that keep them, in the tree of `dialkey.errors`::

WireError     ─ InvalidPacket     bytes that are no signed packet, or records that are not an endpoint's
InvalidInput  ─ RecordTooLarge    what is to be published does not fit
ResolveError  ─ ServerFailed      a server cannot be reached, or answers with an error
"""

from __future__ import annotations

from dialkey.errors import InvalidInput, ResolveError, WireError

__all__ = ["InvalidPacket", "RecordTooLarge", "ServerFailed"]


class InvalidPacket(WireError):
    code = "remote.wire.pkarr"


class RecordTooLarge(InvalidInput):
    code = "local.input.record_size"


class ServerFailed(ResolveError):
    code = "network.resolve.server"
