"""Dial keys, not IP addresses: peer-to-peer connections for Python apps.

The names below are the everyday ones; they are imported when first used, so that importing the package
costs nothing. Errors are in `dialkey.errors`, keys and tickets in `dialkey.identity`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dialkey import errors, presets
    from dialkey.endpoint import (
        AddressLookup,
        Connection,
        ConnectionStats,
        DialLimits,
        Endpoint,
        EndpointInfo,
        Incoming,
        Lagged,
        LookupAnswer,
        LookupReport,
        MemoryDirectory,
        NetworkChanged,
        PathClosed,
        PathDemoted,
        PathEvent,
        PathInfo,
        PathMoved,
        PathOpened,
        PathReport,
        PathSelected,
        RecvStream,
        SendStream,
    )
    from dialkey.errors import DialkeyError
    from dialkey.hookspecs import Refusal, hookimpl
    from dialkey.identity import EndpointAddr, EndpointId, EndpointTicket, SecretKey
    from dialkey.opening import Opening
    from dialkey.router import ProtocolHandler, Router

__version__ = "0.1.0"

__all__ = [
    "AddressLookup",
    "Connection",
    "ConnectionStats",
    "DialLimits",
    "DialkeyError",
    "Endpoint",
    "EndpointAddr",
    "EndpointId",
    "EndpointInfo",
    "EndpointTicket",
    "Incoming",
    "Lagged",
    "LookupAnswer",
    "LookupReport",
    "MemoryDirectory",
    "NetworkChanged",
    "Opening",
    "PathClosed",
    "PathDemoted",
    "PathEvent",
    "PathInfo",
    "PathMoved",
    "PathOpened",
    "PathReport",
    "PathSelected",
    "ProtocolHandler",
    "RecvStream",
    "Refusal",
    "Router",
    "SecretKey",
    "SendStream",
    "__version__",
    "errors",
    "hookimpl",
    "presets",
]

_HOMES = {
    "dialkey.endpoint": (
        "AddressLookup",
        "Connection",
        "ConnectionStats",
        "DialLimits",
        "Endpoint",
        "EndpointInfo",
        "Incoming",
        "Lagged",
        "LookupAnswer",
        "LookupReport",
        "MemoryDirectory",
        "NetworkChanged",
        "PathClosed",
        "PathDemoted",
        "PathEvent",
        "PathInfo",
        "PathMoved",
        "PathOpened",
        "PathReport",
        "PathSelected",
        "RecvStream",
        "SendStream",
    ),
    "dialkey.errors": ("DialkeyError",),
    "dialkey.hookspecs": ("Refusal", "hookimpl"),
    "dialkey.identity": ("EndpointAddr", "EndpointId", "EndpointTicket", "SecretKey"),
    "dialkey.opening": ("Opening",),
    "dialkey.router": ("ProtocolHandler", "Router"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in ("errors", "presets"):
        return importlib.import_module(f"dialkey.{name}")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'dialkey' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
