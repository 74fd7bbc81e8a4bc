"""A connection's paths and traffic, as an application sees them."""

from __future__ import annotations

from typing import Final, Literal

import attrs

from dialkey.event_queue import Lagged
from dialkey.identity import EndpointId, IpAddr
from dialkey.network.transport import PathAddress

MAX_PENDING_PATH_EVENTS: Final = 64
"""Path events kept for one slow reader; older ones are dropped and reported as `Lagged`."""


PathKind = Literal["direct", "relay", "custom"]
PathState = Literal["validating", "usable", "suspect"]


@attrs.frozen
class PathInfo:
    """A snapshot of one path.

    Attributes:
        id: the path's number within its connection.
        remote: where it leads.
        kind: "direct", "relay" or "custom".
        is_selected: whether application data takes this path.
        state: "validating" until the peer has answered there, "usable", or "suspect" while it
            no longer answers.
        rtt_s: smoothed round-trip time, seconds.
        lost_packets: packets declared lost so far.
        sent_packets: packets sent so far.
        sent_bytes, received_bytes: whole datagrams so far.
        mtu_bytes: the datagram size in use, bytes of UDP payload.
        congestion_window_bytes: bytes that may be in flight.
    """

    id: int
    remote: PathAddress
    kind: PathKind
    is_selected: bool
    state: PathState
    rtt_s: float
    lost_packets: int
    sent_packets: int
    sent_bytes: int
    received_bytes: int
    mtu_bytes: int
    congestion_window_bytes: int

    def __str__(self) -> str:
        return f"{self.kind} {self.remote} ({self.rtt_s * 1000:.1f} ms)"


@attrs.frozen
class ConnectionStats:
    """Counters of a connection since it started.

    Attributes:
        sent_bytes, received_bytes: whole datagrams, handshake included.
        received_packets: packets that were opened.
        undecryptable_packets, duplicate_packets: packets that were discarded.
        lost_packets, sent_packets: over all paths.
        dropped_datagrams: application datagrams dropped here for lack of room, in either direction.
        key_updates: how often the keys were changed.
        rtt_s: of the selected path.
    """

    sent_bytes: int
    received_bytes: int
    received_packets: int
    undecryptable_packets: int
    duplicate_packets: int
    lost_packets: int
    sent_packets: int
    dropped_datagrams: int
    key_updates: int
    rtt_s: float


@attrs.frozen
class PathOpened:
    """A path became usable."""

    path: PathInfo


@attrs.frozen
class PathMoved:
    """The peer moved a path to another address."""

    path: PathInfo
    previous: PathAddress


@attrs.frozen
class PathClosed:
    """A path is gone."""

    path: PathInfo


@attrs.frozen
class PathSelected:
    """Application data now takes another path."""

    path: PathInfo
    previous: PathAddress | None


@attrs.frozen
class PathDemoted:
    """A path no longer answers; it is left if there is another."""

    path: PathInfo


PathEvent = PathOpened | PathSelected | PathMoved | PathDemoted | PathClosed | Lagged


@attrs.frozen
class PathReport:
    """A path event as plugins get it (hook `dialkey_events`).

    Attributes:
        remote_id: whose connection it is about.
        alpn: what the connection is for.
        event: what happened.
    """

    remote_id: EndpointId
    alpn: bytes
    event: PathEvent


def kind_of(remote: PathAddress) -> PathKind:
    """Return "direct" for IP addresses, "relay" if the address says that of itself, else "custom"."""
    if isinstance(remote, IpAddr):
        return "direct"
    return "relay" if getattr(remote, "path_kind", None) == "relay" else "custom"


@attrs.frozen
class NetworkChanged:
    """This machine's network may have changed: check what depends on it.

    Plugins get it through the hook `dialkey_events`.
    """
