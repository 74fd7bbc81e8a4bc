"""Endpoints, connections and streams for asyncio."""

from __future__ import annotations

from dialkey.endpoint.connection import Connection
from dialkey.endpoint.demux import Incoming
from dialkey.endpoint.endpoint import Endpoint
from dialkey.endpoint.lookup import AddressLookup, StaticLookup
from dialkey.endpoint.paths import (
    ConnectionStats,
    PathClosed,
    PathEvent,
    PathInfo,
    PathMoved,
    PathOpened,
    PathsLagged,
)
from dialkey.endpoint.streams import EndOfStream, RecvStream, SendStream

__all__ = [
    "AddressLookup",
    "Connection",
    "ConnectionStats",
    "EndOfStream",
    "Endpoint",
    "Incoming",
    "PathClosed",
    "PathEvent",
    "PathInfo",
    "PathMoved",
    "PathOpened",
    "PathsLagged",
    "RecvStream",
    "SendStream",
    "StaticLookup",
]
