"""What can go wrong with a relay, in the tree of `dialkey.errors`::

WireError             ─ RelayWireError          bytes that are no frame, message or request
ProtocolViolation     ─ RelayViolation          a well-formed frame at the wrong time or place
Refused               ─ RelayDenied             the relay's access rules turned us away
HandshakeError        ─ RelayUpgradeError       the server did not answer as a relay does
DialError             ─ RelayUnreachable        no connection to the relay could be made
ConnectionLost        ─ RelayLost               an established connection to the relay ended
InvalidInput          ─ RelayConfigError        a configuration that cannot be used
WireError             ─ InvalidGrant            a signed grant that is broken or expired
"""

from __future__ import annotations

from dialkey.errors import (
    ConnectionLost,
    DialError,
    HandshakeError,
    InvalidInput,
    ProtocolViolation,
    Refused,
    WireError,
)

__all__ = [
    "InvalidGrant",
    "RelayConfigError",
    "RelayDenied",
    "RelayLost",
    "RelayUnreachable",
    "RelayUpgradeError",
    "RelayViolation",
    "RelayWireError",
]


class RelayWireError(WireError):
    code = "remote.wire.relay"


class InvalidGrant(WireError):
    code = "remote.wire.relay_grant"


class RelayViolation(ProtocolViolation):
    code = "remote.protocol.relay"


class RelayDenied(Refused):
    """The relay knows who we are and does not let us in.

    Attributes:
        reason: the relay's own words.
    """

    code = "remote.handshake.refused.relay"

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class RelayUpgradeError(HandshakeError):
    code = "remote.handshake.relay_upgrade"


class RelayUnreachable(DialError):
    code = "network.dial.relay"


class RelayLost(ConnectionLost):
    code = "network.lost.relay"


class RelayConfigError(InvalidInput):
    code = "local.input.relay_config"
