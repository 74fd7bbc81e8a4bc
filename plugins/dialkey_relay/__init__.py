"""Relays, for endpoints that cannot reach each other directly: client and server.

`Relay` is the plugin for endpoints; `dialkey_relay.server` and the command ``dialkey relay`` are the
server; `Grant` is what an application's own server signs for its users. Names are imported when they
are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey.lazy import lazy_names

if TYPE_CHECKING:
    from dialkey_relay.access import (
        AccessRule,
        Admission,
        AdmitRequest,
        AllowList,
        Denial,
        DenyList,
        Everyone,
        GrantRule,
        SharedTokens,
    )
    from dialkey_relay.client.client import RelayClient
    from dialkey_relay.client.dial import Dialer, default_tls
    from dialkey_relay.client.plugin import Relay, relay_of
    from dialkey_relay.client.status import ClientState, ClientStatus
    from dialkey_relay.client.transport import (
        HomeRelay,
        HomeRelayChanged,
        RelayConfig,
        RelayConnected,
        RelayDisconnected,
        RelayPath,
        RelayTransport,
    )
    from dialkey_relay.grants import Grant, GrantVerifier, Revocations
    from dialkey_relay.hookspecs import RelayHookSpecs
    from dialkey_relay.rates import Rate
    from dialkey_relay.server.server import RelayOptions, RelayServer
    from dialkey_relay.server.tls import TlsFiles

_HOMES = {
    "access": (
        "AccessRule",
        "Admission",
        "AdmitRequest",
        "AllowList",
        "Denial",
        "DenyList",
        "Everyone",
        "GrantRule",
        "SharedTokens",
    ),
    "client.client": ("RelayClient",),
    "client.status": ("ClientState", "ClientStatus"),
    "client.dial": ("Dialer", "default_tls"),
    "client.plugin": ("Relay", "relay_of"),
    "client.transport": (
        "HomeRelay",
        "HomeRelayChanged",
        "RelayConfig",
        "RelayConnected",
        "RelayDisconnected",
        "RelayPath",
        "RelayTransport",
    ),
    "grants": ("Grant", "GrantVerifier", "Revocations"),
    "hookspecs": ("RelayHookSpecs",),
    "rates": ("Rate",),
    "server.server": ("RelayOptions", "RelayServer"),
    "server.tls": ("TlsFiles",),
}

__all__ = [
    "AccessRule",
    "Admission",
    "AdmitRequest",
    "AllowList",
    "ClientState",
    "ClientStatus",
    "Denial",
    "DenyList",
    "Dialer",
    "Everyone",
    "Grant",
    "GrantRule",
    "GrantVerifier",
    "HomeRelay",
    "HomeRelayChanged",
    "Rate",
    "Relay",
    "RelayClient",
    "RelayConfig",
    "RelayConnected",
    "RelayDisconnected",
    "RelayHookSpecs",
    "RelayOptions",
    "RelayPath",
    "RelayServer",
    "RelayTransport",
    "Revocations",
    "SharedTokens",
    "TlsFiles",
    "default_tls",
    "relay_of",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
