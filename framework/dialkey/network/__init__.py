"""Carriers of datagrams: the `Transport` interface, UDP, and this machine's own addresses."""

from __future__ import annotations

from dialkey.network import proxies
from dialkey.network.proxies import HttpProxy
from dialkey.network.reach import MayReach, is_public, plain_ip
from dialkey.network.transport import (
    ExplainingTransport,
    HearsayTransport,
    PathAddress,
    Receiver,
    RendezvousTransport,
    Transport,
)

__all__ = [
    "ExplainingTransport",
    "HearsayTransport",
    "HttpProxy",
    "MayReach",
    "PathAddress",
    "Receiver",
    "RendezvousTransport",
    "Transport",
    "is_public",
    "plain_ip",
    "proxies",
]
