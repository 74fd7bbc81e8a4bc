"""What all connections of one endpoint share, and the states that a connection goes through."""

from __future__ import annotations

import enum
import secrets
from collections.abc import Callable
from typing import TextIO

import attrs

from dialkey import limits
from dialkey.identity import SecretKey
from dialkey.quic.handshake.parameters import TransportParameters
from dialkey.quic.paths import multipath
from dialkey.quic.paths.bbr import bbr
from dialkey.quic.paths.cids import MAX_PEER_CIDS
from dialkey.quic.paths.congestion import MakeController
from dialkey.quic.paths.mtu import DEFAULT_MAX_BYTES
from dialkey.quic.paths.observed import BOTH
from dialkey.quic.paths.path import Address
from dialkey.quic.paths.probing import ProbeAllowance
from dialkey.quic.paths.skipped_numbers import Draw
from dialkey.quic.qlog import Qlog

Send = Callable[[Address, bytes | memoryview, int], None]
"""Sends datagrams to an address: one buffer of datagrams of equal size (the last may be shorter), and
that size. The buffer is only valid during the call."""


class State(enum.Enum):
    HANDSHAKE = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    DRAINING = enum.auto()
    GONE = enum.auto()


@attrs.frozen
class Config:
    """What all connections of one endpoint share.

    Attributes:
        multipath: offer the multipath extension.
        traversal: also offer NAT traversal, which needs multipath.
        probes: how many probes may go to addresses that peers have named; shared by all connections.
        new_cid: makes a fresh connection id.
        reset_token: derives the stateless-reset token of a connection id.
        draw: returns an unpredictable number below its argument.
        random_bytes: returns that many unpredictable bytes.
        make_controller: makes the congestion controller of a new path.
        max_datagram: the largest UDP payload that path MTU discovery tries, in bytes.
        stream_window: how many unread bytes a stream may hold at first.
        connection_window: the same for a connection; it begins with what a stream may.
        most_stream_window: how far a stream's window may grow while the application keeps up.
        most_connection_window: the same for a connection.
    """

    secret_key: SecretKey
    new_cid: Callable[[], bytes]
    reset_token: Callable[[bytes], bytes]
    draw: Draw = secrets.randbelow
    random_bytes: Callable[[int], bytes] = secrets.token_bytes
    multipath: bool = True
    traversal: bool = True
    probes: ProbeAllowance = attrs.field(factory=ProbeAllowance)
    idle_timeout_s: float = 30.0
    keep_alive_s: float = 5.0
    handshake_timeout_s: float = limits.HANDSHAKE_TIMEOUT_S
    initial_rtt_s: float = 0.333
    max_datagram: int = DEFAULT_MAX_BYTES
    make_controller: MakeController = bbr
    stream_window: int = limits.STREAM_RECEIVE_WINDOW_BYTES
    connection_window: int = limits.CONNECTION_RECEIVE_WINDOW_BYTES
    most_stream_window: int = limits.MAX_STREAM_RECEIVE_WINDOW_BYTES
    most_connection_window: int = limits.MAX_CONNECTION_RECEIVE_WINDOW_BYTES
    max_streams: int = limits.MAX_INCOMING_STREAMS
    qlog: Qlog | None = None
    secrets_log_file: TextIO | None = None

    @property
    def first_window(self) -> int:
        """What a connection may hold before it shows that it needs more."""
        return min(self.stream_window, self.connection_window)

    def parameters(self) -> TransportParameters:
        """Return the transport parameters that we announce."""
        holds = limits.MAX_TRAVERSAL_ADDRESSES if self.multipath and self.traversal else None
        return TransportParameters(
            traversal_addresses=holds,
            address_discovery=BOTH if holds is not None else None,
            max_idle_timeout_ms=int(self.idle_timeout_s * 1000),
            max_udp_payload_size=1472,
            initial_max_data=self.first_window,
            initial_max_stream_data_bidi_local=self.stream_window,
            initial_max_stream_data_bidi_remote=self.stream_window,
            initial_max_stream_data_uni=self.stream_window,
            initial_max_streams_bidi=self.max_streams,
            initial_max_streams_uni=self.max_streams,
            active_connection_id_limit=MAX_PEER_CIDS,
            max_datagram_frame_size=65535,
            initial_max_path_id=multipath.MAX_CONCURRENT_PATHS - 1 if self.multipath else None,
        )
