"""Carriers of datagrams: the `Transport` interface, UDP, and this machine's own addresses."""

from __future__ import annotations

from dialkey.network import proxies
from dialkey.network.proxies import HttpProxy
from dialkey.network.transport import (
    ExplainingTransport,
    PathAddress,
    Receiver,
    RendezvousTransport,
    Transport,
)

__all__ = [
    "ExplainingTransport",
    "HttpProxy",
    "PathAddress",
    "Receiver",
    "RendezvousTransport",
    "Transport",
    "proxies",
]
