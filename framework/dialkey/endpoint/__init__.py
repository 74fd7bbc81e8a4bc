"""Endpoints, connections and streams for asyncio."""

from __future__ import annotations

from dialkey.endpoint.congestion import AckSummary, Controller, LossSummary, RateSample
from dialkey.endpoint.connection import Connection
from dialkey.endpoint.demux import Incoming
from dialkey.endpoint.dial_limits import DialLimits
from dialkey.endpoint.endpoint import Endpoint
from dialkey.endpoint.lookup import (
    AddressLookup,
    EndpointInfo,
    LookupAnswer,
    MemoryDirectory,
    MemoryLookup,
    ReportingLookup,
    StaticLookup,
    WatchingLookup,
)
from dialkey.endpoint.paths import (
    ConnectionStats,
    NetworkChanged,
    PathClosed,
    PathDemoted,
    PathEvent,
    PathInfo,
    PathMoved,
    PathOpened,
    PathReport,
    PathSelected,
)
from dialkey.endpoint.searching import LookupReport
from dialkey.endpoint.selection import DirectFirst, PathSelector
from dialkey.endpoint.side_channel import SideChannel
from dialkey.endpoint.streams import RecvStream, SendStream
from dialkey.errors import EndOfStream
from dialkey.event_queue import Lagged

__all__ = [
    "AckSummary",
    "AddressLookup",
    "Connection",
    "ConnectionStats",
    "Controller",
    "DialLimits",
    "DirectFirst",
    "EndOfStream",
    "Endpoint",
    "EndpointInfo",
    "Incoming",
    "Lagged",
    "LookupAnswer",
    "LookupReport",
    "LossSummary",
    "MemoryDirectory",
    "MemoryLookup",
    "NetworkChanged",
    "PathClosed",
    "PathDemoted",
    "PathEvent",
    "PathInfo",
    "PathMoved",
    "PathOpened",
    "PathReport",
    "PathSelected",
    "PathSelector",
    "RateSample",
    "RecvStream",
    "ReportingLookup",
    "SendStream",
    "SideChannel",
    "StaticLookup",
    "WatchingLookup",
]
