"""The error tree: every exception that dialkey raises on purpose.

Two questions place an error. *Whose fault is it*, because that decides who must act; then *in which
phase* it happened, because that decides what was lost::

    DialkeyError
    ├── LocalError                     this program, its input or its machine
    │   ├── InvalidInput               what we were given cannot be used (also a ValueError)
    │   │   ├── Base32Error            a text is not base-32; `position` says where
    │   │   ├── InvalidKey
    │   │   ├── InvalidAddress
    │   │   └── InvalidTicket
    │   ├── BindError                  a socket could not be opened
    │   ├── EndpointClosed             the endpoint was closed before or during the call
    │   ├── ConnectionClosed           we closed this connection ourselves
    │   ├── StreamClosed               we finished, reset or stopped this stream ourselves
    │   ├── Busy                       another task of this program uses what only one can
    │   ├── MissingExtra               what this part needs is not installed (also an ImportError)
    │   ├── PluginError                a plugin broke the contract of a hook
    │   └── StorageError               a disk or database failed
    │       ├── KeyFileMissing
    │       └── KeyFileExists
    ├── RemoteError                    the other endpoint
    │   ├── WireError                  its bytes do not follow the format
    │   │   ├── EndOfStream            the stream ended before what was asked for; `partial` is there
    │   │   └── InvalidSignature
    │   ├── ProtocolViolation          its bytes are well-formed, its behaviour is not allowed
    │   ├── HandshakeError             it would not, or could not, set up a connection with us
    │   │   ├── WrongKey               it does not hold the key that we dialled
    │   │   ├── AlpnMismatch           it does not speak the protocol that we asked for
    │   │   └── Refused                a policy there turned us away
    │   ├── ConnectionClosedByPeer     it closed the connection, with a code and a reason
    │   ├── StreamReset                it abandoned what it was sending
    │   ├── StreamStopped              it wants no more of what we are sending
    │   └── LimitExceeded              it sent more than the caller allowed
    └── NetworkError                   whatever lies between
        ├── ResolveError               no address is known for this endpoint id
        ├── DialError                  no address answered; `attempts` says what happened at each
        │   └── DialTimeout
        ├── ConnectionLost             an established connection went silent
        └── Offline                    no relay accepts us, so nobody can reach us through one

Each class carries a stable `code` (for programs and logs; it never changes meaning), the endpoint id
that it is about where there is one, and a hint that says what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from dialkey.printable import printable

if TYPE_CHECKING:
    from dialkey.identity import EndpointId

__all__ = [
    "AlpnMismatch",
    "Base32Error",
    "BindError",
    "Busy",
    "ConnectionClosed",
    "ConnectionClosedByPeer",
    "ConnectionLost",
    "DialError",
    "DialTimeout",
    "DialkeyError",
    "EndOfStream",
    "EndpointClosed",
    "HandshakeError",
    "InvalidAddress",
    "InvalidInput",
    "InvalidKey",
    "InvalidSignature",
    "InvalidTicket",
    "KeyFileExists",
    "KeyFileMissing",
    "LimitExceeded",
    "LocalError",
    "MissingExtra",
    "NetworkError",
    "Offline",
    "PluginError",
    "ProtocolViolation",
    "Refused",
    "RemoteError",
    "ResolveError",
    "StorageError",
    "StreamClosed",
    "StreamReset",
    "StreamStopped",
    "WireError",
    "WrongKey",
]


class DialkeyError(Exception):
    """The root: catch this to catch everything that dialkey raises on purpose.

    Messages and hints often repeat what somebody else said, so control characters in them are escaped
    here, once for all: they can be printed and logged as they are.

    Attributes:
        message: what happened, one sentence without the endpoint id.
        endpoint_id: the endpoint that it is about, or None.
        hint: what the reader can do, or None.
    """

    code: ClassVar[str] = "error"

    def __init__(
        self, message: str, *, endpoint_id: EndpointId | None = None, hint: str | None = None
    ) -> None:
        message = printable(message)
        super().__init__(message)
        self.message = message
        self.endpoint_id = endpoint_id
        self.hint = None if hint is None else printable(hint)

    def __str__(self) -> str:
        text = self.message
        if self.endpoint_id is not None:
            text += f" [{self.endpoint_id.short()}]"
        if self.hint:
            text += f" ({self.hint})"
        return text


# --- this program, its input or its machine -----------------------------------------------------


class LocalError(DialkeyError):
    code = "local"


class InvalidInput(LocalError, ValueError):
    code = "local.input"


class Base32Error(InvalidInput):
    """A text is not base-32 of the alphabet asked for.

    Attributes:
        position: 0-based index of the offending character, or None where the length is
            wrong.
    """

    code = "local.input.base32"

    def __init__(
        self, message: str, *, position: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.position = position


class InvalidKey(InvalidInput):
    code = "local.input.key"


class InvalidAddress(InvalidInput):
    code = "local.input.address"


class InvalidTicket(InvalidInput):
    code = "local.input.ticket"


class BindError(LocalError):
    code = "local.bind"


class EndpointClosed(LocalError):
    code = "local.endpoint_closed"


class ConnectionClosed(LocalError):
    code = "local.connection_closed"


class StreamClosed(LocalError):
    code = "local.stream_closed"


class Busy(LocalError):
    """Another task of this program is using something that only one task can use at a time."""

    code = "local.busy"


class MissingExtra(LocalError, ImportError):
    """A part of dialkey was asked for whose dependencies are not installed."""

    code = "local.missing_extra"


class PluginError(LocalError):
    code = "local.plugin"


class StorageError(LocalError):
    code = "local.storage"


class KeyFileMissing(StorageError):
    """There is no such key file."""

    code = "local.storage.key_missing"


class KeyFileExists(StorageError):
    """There is already a file where a new key should be saved."""

    code = "local.storage.key_exists"


# --- the other endpoint -------------------------------------------------------------------------


class RemoteError(DialkeyError):
    code = "remote"


class WireError(RemoteError):
    code = "remote.wire"


class EndOfStream(WireError):
    """The stream ended before the bytes that were asked for.

    Attributes:
        partial: what did arrive.
    """

    code = "remote.wire.end"

    def __init__(
        self,
        message: str,
        *,
        partial: bytes,
        endpoint_id: EndpointId | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, endpoint_id=endpoint_id, hint=hint)
        self.partial = partial


class InvalidSignature(WireError):
    """A signature does not match key and message, or has a form that proves nothing."""

    code = "remote.wire.signature"


class ProtocolViolation(RemoteError):
    code = "remote.protocol"


class HandshakeError(RemoteError):
    """The handshake failed.

    Attributes:
        close_code: the QUIC close code (0x100 + TLS alert where TLS refused), or None.
    """

    code = "remote.handshake"

    def __init__(
        self,
        message: str,
        *,
        close_code: int | None = None,
        endpoint_id: EndpointId | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, endpoint_id=endpoint_id, hint=hint)
        self.close_code = close_code


class WrongKey(HandshakeError):
    code = "remote.handshake.wrong_key"


class AlpnMismatch(HandshakeError):
    code = "remote.handshake.alpn"


class Refused(HandshakeError):
    code = "remote.handshake.refused"


class ConnectionClosedByPeer(RemoteError):
    """The peer closed the connection.

    Attributes:
        error_code: the number in its close frame: the application's own for an application close,
            RFC 9000 section 20.1 for a transport close.
        reason: the bytes in its close frame.
        is_application: whether the application there closed, or its transport.
    """

    code = "remote.closed"

    def __init__(
        self,
        message: str,
        *,
        error_code: int,
        reason: bytes = b"",
        is_application: bool = True,
        endpoint_id: EndpointId | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, endpoint_id=endpoint_id, hint=hint)
        self.error_code = error_code
        self.reason = reason
        self.is_application = is_application


class _StreamEnd(RemoteError):
    def __init__(
        self,
        message: str,
        *,
        error_code: int,
        endpoint_id: EndpointId | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, endpoint_id=endpoint_id, hint=hint)
        self.error_code = error_code


class StreamReset(_StreamEnd):
    """RESET_STREAM arrived; `error_code` is the peer application's number."""

    code = "remote.stream_reset"


class StreamStopped(_StreamEnd):
    """STOP_SENDING arrived; `error_code` is the peer application's number."""

    code = "remote.stream_stopped"


class LimitExceeded(RemoteError):
    code = "remote.limit"


# --- whatever lies between ----------------------------------------------------------------------


class NetworkError(DialkeyError):
    code = "network"


class ResolveError(NetworkError):
    code = "network.resolve"


class DialError(NetworkError):
    """No address answered.

    Attributes:
        attempts: one line for each address that was tried: what it was and what happened there.
    """

    code = "network.dial"

    def __init__(
        self,
        message: str,
        *,
        attempts: Sequence[str] = (),
        endpoint_id: EndpointId | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, endpoint_id=endpoint_id, hint=hint)
        self.attempts = tuple(map(printable, attempts))

    def __str__(self) -> str:
        text = super().__str__()
        return text + "".join(f"\n  {attempt}" for attempt in self.attempts)


class DialTimeout(DialError):
    code = "network.dial.timeout"


class Offline(NetworkError):
    """No relay accepts us, so nobody can reach us through one; the message says why."""

    code = "network.offline"


class ConnectionLost(NetworkError):
    code = "network.lost"
