"""Relays, for endpoints that cannot reach each other directly: client and server.

`Relay` is the plugin for endpoints; `dialkey_relay.server` and the command ``dialkey relay`` are the
server; `Grant` is what an application's own server signs for its users. Names are imported when they
are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

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
    "dialkey_relay.access": (
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
    "dialkey_relay.client.client": ("RelayClient",),
    "dialkey_relay.client.status": ("ClientState", "ClientStatus"),
    "dialkey_relay.client.dial": ("Dialer", "default_tls"),
    "dialkey_relay.client.plugin": ("Relay", "relay_of"),
    "dialkey_relay.client.transport": (
        "HomeRelay",
        "HomeRelayChanged",
        "RelayConfig",
        "RelayConnected",
        "RelayDisconnected",
        "RelayPath",
        "RelayTransport",
    ),
    "dialkey_relay.grants": ("Grant", "GrantVerifier", "Revocations"),
    "dialkey_relay.hookspecs": ("RelayHookSpecs",),
    "dialkey_relay.rates": ("Rate",),
    "dialkey_relay.server.server": ("RelayOptions", "RelayServer"),
    "dialkey_relay.server.tls": ("TlsFiles",),
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names}

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


def __getattr__(name: str) -> object:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
