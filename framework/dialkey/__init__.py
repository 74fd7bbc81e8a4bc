"""Dial keys, not IP addresses: peer-to-peer connections for Python apps.

The names below are the everyday ones; they are imported when first used, so that importing the package
costs nothing. Errors are in `dialkey.errors`, keys and tickets in `dialkey.identity`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey.lazy import lazy_names

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
    "endpoint": (
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
    "errors": ("DialkeyError",),
    "hookspecs": ("Refusal", "hookimpl"),
    "identity": ("EndpointAddr", "EndpointId", "EndpointTicket", "SecretKey"),
    "opening": ("Opening",),
    "router": ("ProtocolHandler", "Router"),
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES, ("errors", "presets"))
