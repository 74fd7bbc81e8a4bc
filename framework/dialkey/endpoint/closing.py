"""The one place where the end of a QUIC connection becomes one of our exceptions."""

from __future__ import annotations

from dialkey.errors import (
    AlpnMismatch,
    ConnectionClosed,
    ConnectionClosedByPeer,
    ConnectionLost,
    DialkeyError,
    HandshakeError,
    ProtocolViolation,
    Refused,
    WrongKey,
)
from dialkey.identity import EndpointId
from dialkey.printable import printable_bytes
from dialkey.quic import codes
from dialkey.quic.events import CloseReason

_UNKNOWN_CA = codes.CRYPTO_ERROR + codes.ALERT_UNKNOWN_CA
_NO_ALPN = codes.CRYPTO_ERROR + codes.ALERT_NO_APPLICATION_PROTOCOL


def to_error(reason: CloseReason, endpoint_id: EndpointId | None) -> DialkeyError:
    """Return the exception that tells why a connection ended."""
    text = printable_bytes(reason.reason)
    if reason.during_handshake and reason.cause in ("peer", "protocol"):
        return _handshake_error(reason, text, endpoint_id)
    if reason.cause == "internal":
        return ConnectionClosed(
            "this side failed and closed the connection",
            endpoint_id=endpoint_id,
            hint="please report what the log says",
        )
    if reason.cause == "overfull":
        return ConnectionClosed(
            "this side closed the connection: more unread data is held than there is room for",
            endpoint_id=endpoint_id,
            hint="read streams as they arrive, or stop those that you do not want",
        )
    if reason.cause == "local":
        return ConnectionClosed("this side closed the connection", endpoint_id=endpoint_id)
    if reason.cause == "peer":
        what = "the peer" if reason.is_application else "the peer's transport"
        suffix = f": {text}" if text else ""
        return ConnectionClosedByPeer(
            f"{what} closed the connection with code {_code(reason)}{suffix}",
            error_code=reason.error_code,
            reason=reason.reason,
            is_application=reason.is_application,
            endpoint_id=endpoint_id,
        )
    if reason.cause == "protocol":
        return ProtocolViolation(
            f"the peer broke a rule of QUIC: {text} ({_code(reason)})", endpoint_id=endpoint_id
        )
    if reason.cause == "reset":
        return ConnectionLost(
            "the peer has forgotten this connection; it was restarted", endpoint_id=endpoint_id
        )
    if reason.cause == "handshake":
        return ConnectionLost("the handshake was not answered in time", endpoint_id=endpoint_id)
    return ConnectionLost("nothing was heard from the peer for too long", endpoint_id=endpoint_id)


def _code(reason: CloseReason) -> str:
    return str(reason.error_code) if reason.is_application else f"0x{reason.error_code:x}"


def _handshake_error(
    reason: CloseReason, text: str, endpoint_id: EndpointId | None
) -> HandshakeError:
    code = reason.error_code
    here = reason.cause == "protocol"
    if code == _UNKNOWN_CA:
        message = (
            f"another endpoint answers at this address ({text})"
            if here
            else "the peer says that we dialled it under another key"
        )
        return WrongKey(
            message,
            close_code=code,
            endpoint_id=endpoint_id,
            hint="the address is stale or the ticket belongs to another endpoint",
        )
    if code == _NO_ALPN:
        who = "it and we have" if here else "the peer and we have"
        return AlpnMismatch(
            f"{who} no protocol in common",
            close_code=code,
            endpoint_id=endpoint_id,
            hint="does the other side serve this ALPN?",
        )
    if code == codes.CONNECTION_REFUSED:
        suffix = f": {text}" if text else ""
        return Refused(
            f"the peer refused the connection{suffix}", close_code=code, endpoint_id=endpoint_id
        )
    who = "we" if here else "the peer"
    return HandshakeError(
        f"{who} ended the handshake: {text or 'no reason given'} (0x{code:x})",
        close_code=code,
        endpoint_id=endpoint_id,
    )
