"""What can go wrong with a relay, in the tree of `dialkey.errors`::

WireError             ─ RelayWireError          bytes that are not a frame, message or request
ProtocolViolation     ─ RelayViolation          a well-formed frame at the wrong time or place
Refused               ─ RelayDenied             the relay's access rules turned us away
HandshakeError        ─ RelayUpgradeError       the server did not answer as a relay does
DialError             ─ RelayUnreachable        no connection to the relay could be made
                        └─ RelayUntrusted       its certificate is not one that we trust
ConnectionLost        ─ RelayLost               an established connection to the relay ended
                        └─ RelaySilent          because it no longer answered
InvalidInput          ─ RelayConfigError        a configuration that cannot be used
WireError             ─ InvalidGrant            a signed grant that is broken or expired
"""

from __future__ import annotations

import errno
import os

from dialkey.errors import (
    BindError,
    ConnectionLost,
    DialError,
    DialkeyError,
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
    "RelaySilent",
    "RelayUnreachable",
    "RelayUntrusted",
    "RelayUpgradeError",
    "RelayViolation",
    "RelayWireError",
    "cannot_listen",
    "is_final",
]


class RelayWireError(WireError):
    code = "remote.wire.relay"


class InvalidGrant(WireError):
    code = "remote.wire.relay_grant"


class RelayViolation(ProtocolViolation):
    code = "remote.protocol.relay"


class RelayDenied(Refused):
    """The relay knows who we are and refuses us.

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


class RelayUntrusted(RelayUnreachable):
    code = "network.dial.relay_untrusted"


class RelayLost(ConnectionLost):
    code = "network.lost.relay"


class RelaySilent(RelayLost):
    code = "network.lost.relay_silent"


class RelayConfigError(InvalidInput):
    code = "local.input.relay_config"


def is_final(error: DialkeyError | None) -> bool:
    """Return whether an attempt that ended so would end so again: somebody has to change something."""
    return isinstance(error, RelayDenied | RelayUpgradeError | RelayUntrusted | InvalidInput)


def cannot_listen(what: str, address: tuple[str, int], error: OSError) -> BindError:
    """Return why an address cannot be had, and what may help."""
    # asyncio puts more words into the error than people need.
    known = error.errno is not None and error.errno > 0
    reason = os.strerror(error.errno) if known and error.errno is not None else error.strerror
    hints = {
        errno.EADDRINUSE: "another program listens there, perhaps another relay",
        errno.EACCES: "ports below 1024 are for root, or for CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "this machine does not have that address",
    }
    return BindError(
        f"{what} cannot listen on {address[0]} port {address[1]}: {reason}",
        hint=hints.get(error.errno or 0),
    )
