"""A QUIC connection, sans-IO: datagrams and `now` in, datagrams and events out.

Who does what: `handshake` runs Initial and Handshake packets on aioquic and then disappears. This
class owns everything after it: paths, streams, limits, closing, timers. `inbound` opens packets and
applies their frames, `outbound` builds packets; both work on the state kept here.

The life of a connection::

    HANDSHAKE ──keys──► OPEN ──close()──► CLOSING ──3 PTO──► GONE
        │                 ├──peer's close──► DRAINING ──3 PTO──► GONE
        └──failure────────┴──idle, reset───────────────────────► GONE

Sources: RFC 9000, RFC 9001, RFC 9002, RFC 9221, wire/quic.md.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import TextIO

import attrs

from dialkey import limits
from dialkey.identity import EndpointId, SecretKey
from dialkey.quic import codes, events, inbound, multipath, outbound
from dialkey.quic.codes import TransportError
from dialkey.quic.events import CloseReason, Event
from dialkey.quic.handshake import Handshake, split_datagram
from dialkey.quic.keys import PacketProtection
from dialkey.quic.mtu import DEFAULT_MAX_BYTES
from dialkey.quic.parameters import TransportParameters
from dialkey.quic.path import (
    ACK_EVERY,
    MAX_LOCAL_CIDS,
    MAX_PEER_CIDS,
    Address,
    LocalCid,
    Path,
    PathCids,
    PeerCid,
)
from dialkey.quic.qlog import Qlog
from dialkey.quic.recovery import Frame, Sent
from dialkey.quic.routes import Routes
from dialkey.quic.streams import RecvHalf, SendHalf, is_client_initiated, is_unidirectional

Send = Callable[[Address, bytes | memoryview, int], None]
"""Takes datagrams to an address: one buffer of equally large ones (the last may be shorter), and
their size. The buffer is only valid during the call."""

MAX_OWED_FRAMES = 1000
"""Frames that answer the peer's and wait to be sent. Honest ones are some sixty after the handshake."""

_OWED_FRAMES = frozenset(
    {
        codes.NEW_CONNECTION_ID,
        codes.RETIRE_CONNECTION_ID,
        codes.PATH_ABANDON,
        codes.MAX_PATH_ID,
    }
)

MAX_EARLY_SHORT_PACKETS = 16
"""1-RTT packets that overtook the handshake, kept until the keys are there."""


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
        new_cid: makes a fresh connection id.
        reset_token: derives the stateless-reset token of a connection id.
        max_datagram: upper end of path MTU discovery, bytes of UDP payload.
    """

    secret_key: SecretKey
    new_cid: Callable[[], bytes]
    reset_token: Callable[[bytes], bytes]
    multipath: bool = True
    idle_timeout_s: float = 30.0
    keep_alive_s: float = 5.0
    handshake_timeout_s: float = limits.HANDSHAKE_TIMEOUT_S
    initial_rtt_s: float = 0.333
    max_datagram: int = DEFAULT_MAX_BYTES
    stream_window: int = limits.STREAM_RECEIVE_WINDOW_BYTES
    connection_window: int = limits.CONNECTION_RECEIVE_WINDOW_BYTES
    max_streams: int = limits.MAX_INCOMING_STREAMS
    qlog: Qlog | None = None
    secrets_log_file: TextIO | None = None

    def parameters(self) -> TransportParameters:
        """Return the transport parameters that we announce."""
        return TransportParameters(
            max_idle_timeout_ms=int(self.idle_timeout_s * 1000),
            max_udp_payload_size=1472,
            initial_max_data=self.connection_window,
            initial_max_stream_data_bidi_local=self.stream_window,
            initial_max_stream_data_bidi_remote=self.stream_window,
            initial_max_stream_data_uni=self.stream_window,
            initial_max_streams_bidi=self.max_streams,
            initial_max_streams_uni=self.max_streams,
            active_connection_id_limit=MAX_PEER_CIDS,
            max_datagram_frame_size=65535,
            initial_max_path_id=multipath.MAX_CONCURRENT_PATHS - 1 if self.multipath else None,
        )


class StreamLimits:
    """How many streams of one direction each side may open, and has opened."""

    __slots__ = ("accepted", "allowed", "finished", "next_local", "peer_allows", "update_pending")

    def __init__(self, next_local: int, allowed: int) -> None:
        self.next_local = next_local
        self.peer_allows = 0
        self.accepted = 0
        self.finished = 0
        self.allowed = allowed
        self.update_pending = False


class Connection:
    """One connection. Use `client` or `server` to make it.

    Call `receive` for each datagram, `flush` after calls that may have queued something, and
    `on_timer` when `timer()` is due; then drain `events`.
    """

    def __init__(
        self,
        config: Config,
        handshake: Handshake,
        *,
        is_client: bool,
        host_cid: bytes,
        remote: Address,
        now: float,
    ) -> None:
        self.config = config
        self.handshake: Handshake | None = handshake
        self.is_client = is_client
        self.state = State.HANDSHAKE
        self.events: deque[Event] = deque()
        self.remote = remote
        self.peer_id: EndpointId | None = None
        self.alpn = b""
        self.protection: PacketProtection | None = None
        self.peer_parameters = TransportParameters()
        self.confirmed = False
        self.paths: dict[int, Path] = {}
        self.multipath: multipath.Multipath | None = None
        self.cid_sets: dict[int, PathCids] = {}
        self.cids: dict[bytes, tuple[int, int]] = {host_cid: (0, 0)}
        self.host_cid = host_cid
        self.idle_timeout_s = config.idle_timeout_s
        self.created_at = now
        self.close_reason: CloseReason | None = None
        self.qlog = handshake.trace

        # streams
        self.send_halves: dict[int, SendHalf] = {}
        self.recv_halves: dict[int, RecvHalf] = {}
        self.bidi = StreamLimits(0 if is_client else 1, config.max_streams)
        self.uni = StreamLimits(2 if is_client else 3, config.max_streams)
        self.ready: dict[int, deque[SendHalf]] = {}
        self.waiting_for_data_limit: list[SendHalf] = []

        # flow control of the connection
        self.peer_max_data = 0
        self.data_sent = 0
        self.max_data = config.connection_window
        self.data_received = 0
        self.data_consumed = 0
        self.max_data_pending = False
        self.limit_updates: list[RecvHalf] = []
        self.last_max_data_at = now

        # other things to send
        self.control: deque[Frame] = deque()
        self.datagrams: deque[bytes] = deque()
        self.datagram_bytes = 0
        self.datagrams_dropped = 0
        self.ack_only_packets = 0

        # counters
        self.bytes_sent = 0
        self.bytes_received = 0
        self.packets_received = 0
        self.packets_undecryptable = 0
        self.packets_duplicate = 0
        # Of paths that are over.
        self.sent_packets_before = 0
        self.lost_packets_before = 0

        # timers and closing
        self._handshake_timeout_s = config.handshake_timeout_s
        self._deadline: float | None = now + config.handshake_timeout_s
        self._eliciting_sent_since_receipt = False
        self._pacing_at: float | None = None
        self._gone_at: float | None = None
        self._close_datagrams: list[tuple[Address, bytes]] = []
        self._close_answers = 0
        self._close_answer_at = 1
        self._early_short: list[tuple[bytes, Address]] = []
        self._remote_fixed = False
        self._routes = None if is_client else Routes(remote)

    # --- making one -----------------------------------------------------------------------------

    @classmethod
    def client(
        cls,
        config: Config,
        *,
        expected_id: EndpointId,
        alpns: list[str],
        remote: Address,
        now: float,
        timeout_s: float = limits.HANDSHAKE_TIMEOUT_S,
    ) -> Connection:
        """Begin a connection to the holder of a key.

        Args:
            expected_id: the only key that will do.
            remote: where the first flight goes; the owner may send it to several real addresses.
            timeout_s: how long to wait for an answer.
        """
        host_cid = config.new_cid()
        if config.qlog is not None:
            config.qlog.now = now
        handshake = Handshake(
            secret_key=config.secret_key,
            alpns=alpns,
            local_parameters=config.parameters(),
            expected_id=expected_id,
            is_client=True,
            host_cid=host_cid,
            reset_token=b"",
            initial_rtt_s=config.initial_rtt_s,
            qlog=config.qlog,
            secrets_log_file=config.secrets_log_file,
        )
        connection = cls(
            config, handshake, is_client=True, host_cid=host_cid, remote=remote, now=now
        )
        connection._handshake_timeout_s = timeout_s
        connection._deadline = now + timeout_s
        handshake.start(now)
        return connection

    @classmethod
    def server(
        cls,
        config: Config,
        *,
        alpns: list[str],
        remote: Address,
        original_destination_cid: bytes,
        retry_source_cid: bytes | None = None,
        now: float,
    ) -> Connection:
        """Answer a client's first Initial; pass that datagram to `receive` next."""
        host_cid = config.new_cid()
        if config.qlog is not None:
            config.qlog.now = now
        handshake = Handshake(
            secret_key=config.secret_key,
            alpns=alpns,
            local_parameters=config.parameters(),
            is_client=False,
            host_cid=host_cid,
            reset_token=config.reset_token(host_cid),
            original_destination_cid=original_destination_cid,
            retry_source_cid=retry_source_cid,
            initial_rtt_s=config.initial_rtt_s,
            qlog=config.qlog,
            secrets_log_file=config.secrets_log_file,
        )
        return cls(config, handshake, is_client=False, host_cid=host_cid, remote=remote, now=now)

    # --- datagrams in ---------------------------------------------------------------------------

    def receive(self, data: memoryview, segment: int, remote: Address, now: float) -> None:
        """Process datagrams from one address.

        Args:
            data: one or more datagrams behind each other, each `segment` bytes, the last may be
                shorter. All begin with a short header, or there is only one.
            remote: where they came from.
        """
        self.bytes_received += len(data)
        if self.qlog is not None:
            self.qlog.now = now
        if self.state is not State.OPEN and self.state is not State.HANDSHAKE:
            self._close_answers += 1
            return
        try:
            if data[0] & 0x80:
                self._receive_long(bytes(data), remote, now)
            else:
                self._receive_short(data, segment, remote, now)
        except TransportError as exc:
            self._fail(exc, now)

    def _receive_long(self, datagram: bytes, remote: Address, now: float) -> None:
        handshake = self.handshake
        if handshake is None:
            return
        if self.is_client:
            if self._remote_fixed and remote != self.remote:
                return
        elif self._routes is not None:
            if not self._routes.heard(remote, len(datagram)):
                return
        elif remote != self.remote:
            return
        long_part, short_part = split_datagram(datagram)
        if datagram[0] & 0x80:
            authentic = handshake.receive(long_part, now)
            if authentic and self.is_client and not self._remote_fixed:
                # Also when it brings bad news: the owner wants to know who said so.
                self.remote = remote
                self._remote_fixed = handshake.heard_handshake_packet
            failure = handshake.failure
            if failure is not None:
                cause = "peer" if failure.by_peer else "protocol"
                self._end(
                    CloseReason(
                        cause,
                        failure.error_code,
                        failure.reason.encode("utf-8", "replace"),
                        during_handshake=True,
                    ),
                    State.DRAINING if failure.by_peer else State.CLOSING,
                    now,
                )
                return
            if authentic:
                self._heard(now)
                if self._routes is not None and handshake.heard_handshake_packet:
                    # Our answer got there, and by this way the client goes on: it is path 0.
                    self.remote = remote
                    self._routes = None
            if self.protection is None and handshake.complete:
                self._install_keys(handshake, now)
        if short_part:
            self._receive_short(memoryview(short_part), len(short_part), remote, now)

    def _receive_short(self, data: memoryview, segment: int, remote: Address, now: float) -> None:
        if self.protection is None:
            if len(self._early_short) < MAX_EARLY_SHORT_PACKETS:
                for at in range(0, len(data), segment):
                    self._early_short.append((bytes(data[at : at + segment]), remote))
            return
        inbound.receive_packets(self, data, segment, remote, now)

    def _install_keys(self, handshake: Handshake, now: float) -> None:
        send, recv = handshake.send_secret, handshake.recv_secret
        assert send is not None
        assert recv is not None
        self.protection = PacketProtection(send, recv)
        self.peer_id = handshake.peer_id
        self.alpn = handshake.alpn
        if len(handshake.peer_cid) != codes.CID_LENGTH:
            raise TransportError(codes.PROTOCOL_VIOLATION, "connection ids must have 8 bytes")
        peer = self.peer_parameters = handshake.peer_parameters
        if peer.max_idle_timeout_ms:
            self.idle_timeout_s = min(self.idle_timeout_s, peer.max_idle_timeout_ms / 1000)
        self.peer_max_data = peer.initial_max_data
        self.bidi.peer_allows = peer.initial_max_streams_bidi
        self.uni.peer_allows = peer.initial_max_streams_uni
        token = peer.stateless_reset_token
        cids = self.cid_sets[0] = PathCids(0, PeerCid(0, handshake.peer_cid, token))
        cids.local.append(LocalCid(0, self.host_cid, self.config.reset_token(self.host_cid)))
        cids.next_sequence = 1
        path = self.new_path(cids, self.remote, validated=True, initial_rtt=handshake.rtt_sample_s)
        path.last_received = path.last_activity = now
        self.paths[0] = path
        if self.config.multipath and peer.initial_max_path_id is not None:
            local_max = multipath.MAX_CONCURRENT_PATHS - 1
            self.multipath = multipath.Multipath(local_max, peer.initial_max_path_id)
        self.state = State.OPEN
        self._deadline = now + self.idle_timeout_s
        self.events.append(events.HandshakeCompleted())
        self.publish_reset_token(cids)
        self.issue_cids(cids)
        if self.multipath is not None:
            multipath.issue_cids(self)
        if not self.is_client:
            self.confirmed = True
            self.control.append((codes.HANDSHAKE_DONE,))
        early, self._early_short = self._early_short, []
        for datagram, remote in early:
            inbound.receive_packets(self, memoryview(datagram), len(datagram), remote, now)

    def new_path(
        self, cids: PathCids, remote: Address, *, validated: bool, initial_rtt: float | None = None
    ) -> Path:
        """Make the state of a path; the caller adds it to `paths`."""
        peer = self.peer_parameters
        path = Path(
            cids,
            remote,
            validated=validated,
            limited=not self.is_client and not validated,
            initial_rtt=initial_rtt or self.config.initial_rtt_s,
            max_datagram=min(self.config.max_datagram, peer.max_udp_payload_size),
            on_acked=self._on_acked,
            on_lost=self._on_lost,
        )
        path.recovery.max_ack_delay = peer.max_ack_delay_ms / 1000
        return path

    def issue_cids(self, cids: PathCids, most: int = MAX_LOCAL_CIDS) -> None:
        """Give the peer connection ids of ours for a path id, until it holds enough."""
        wanted = min(most, self.peer_parameters.active_connection_id_limit)
        while len(cids.local) < wanted:
            cid = self.config.new_cid()
            local = LocalCid(cids.next_sequence, cid, self.config.reset_token(cid))
            cids.next_sequence += 1
            cids.local.append(local)
            self.cids[cid] = (cids.id, local.sequence)
            self.events.append(events.CidIssued(cid))
            self.owe((codes.NEW_CONNECTION_ID, cids, local))

    def owe(self, frame: Frame) -> None:
        """Queue a frame that the peer made us send.

        Raises:
            TransportError: it makes us send many, and never lets us send them.
        """
        self.control.append(frame)
        if len(self.control) > MAX_OWED_FRAMES:
            owed = sum(1 for each in self.control if each[0] in _OWED_FRAMES)
            if owed > MAX_OWED_FRAMES:
                raise TransportError(codes.PROTOCOL_VIOLATION, "too many frames are owed")

    @property
    def selected_path(self) -> Path | None:
        """The path that carries application data: the owner's choice, else the best there is."""
        chosen = suspect = unproven = None
        if self.multipath is not None and self.multipath.selected_id is not None:
            chosen = self.paths.get(self.multipath.selected_id)
            if chosen is not None and chosen.validated and not chosen.abandoned:
                return chosen
        for path in self.paths.values():
            if not path.abandoned and not path.parked:
                if not path.validated:
                    # The owner's choice, on its way to another address, before any that is new.
                    unproven = path if path is chosen else unproven or path
                elif path.suspect:
                    suspect = suspect or path
                else:
                    return path
        return suspect or unproven

    def handshake_confirmed(self) -> None:
        """Note HANDSHAKE_DONE."""
        self.confirmed = True
        if self.handshake is not None:
            self.handshake.confirm()
            self.handshake = None

    def receive_stateless_reset(self, now: float) -> None:
        """Note that the peer has forgotten this connection."""
        if self.state is State.OPEN:
            self._end(CloseReason("reset"), State.GONE, now)

    def refuse_in_handshake(self, error_code: int, reason: str) -> None:
        """Turn a client away before its handshake is complete."""
        if self.handshake is not None and self.state is State.HANDSHAKE:
            self.handshake.close(error_code, reason, is_application=False)

    # --- datagrams out --------------------------------------------------------------------------

    def flush(self, now: float, send: Send, scratch: outbound.Scratch) -> None:
        """Hand everything that may leave now to `send`."""
        if self.state is State.GONE:
            return
        if self.qlog is not None:
            self.qlog.now = now
        if self.state in (State.CLOSING, State.DRAINING):
            self._flush_close(now, send)
            return
        handshake = self.handshake
        if handshake is not None:
            self._send_handshake(handshake.transmit(now), send)
            if self.confirmed and not self.is_client:
                self.handshake = None
        if self.protection is not None:
            self._pacing_at = None
            selected = self.selected_path
            if selected is not None and not selected.may_carry_data:
                selected = None
            for path in self.paths.values():
                outbound.flush_path(self, path, path is selected, now, send, scratch)

    @property
    def has_urgent_work(self) -> bool:
        """Whether a flush would send something now even if the application adds nothing."""
        if self.handshake is not None or self.ready or self.state is not State.OPEN:
            return True
        for path in self.paths.values():
            if path.ack_pending >= ACK_EVERY or path.responses or path.challenge is not None:
                return True
        return bool(self.control)

    def _send_handshake(self, datagrams: list[bytes], send: Send) -> None:
        def emit(remote: Address, datagram: bytes) -> None:
            self.bytes_sent += len(datagram)
            send(remote, datagram, len(datagram))

        if self._routes is not None:
            self._routes.send(datagrams, emit)
        else:
            for datagram in datagrams:
                emit(self.remote, datagram)

    def pace(self, at: float) -> None:
        """Note that the pacer allows more at `at`."""
        if self._pacing_at is None or at < self._pacing_at:
            self._pacing_at = at

    def sent_eliciting(self, now: float) -> None:
        """Note that something was sent that the peer must answer."""
        if not self._eliciting_sent_since_receipt:
            self._eliciting_sent_since_receipt = True
            self._deadline = now + self._idle_period()

    # --- timers ---------------------------------------------------------------------------------

    def timer(self) -> float | None:
        """Return when `on_timer` is due, or None when the connection is gone."""
        if self.state is State.GONE:
            return None
        if self._gone_at is not None:
            return self._gone_at
        at = self._deadline
        assert at is not None
        if self.multipath is not None and self.multipath.ends_at is not None:
            at = min(at, self.multipath.ends_at)
        if self._pacing_at is not None and self._pacing_at < at:
            at = self._pacing_at
        if self.handshake is not None:
            other = self.handshake.timer()
            if other is not None and other < at:
                at = other
        for path in self.paths.values():
            if path.ack_at is not None and path.ack_at < at:
                at = path.ack_at
            other = path.recovery.timer()
            if other is not None and other < at:
                at = other
            if not path.abandoned:
                other = path.ping_at(self.config.keep_alive_s)
                if other < at:
                    at = other
            if path.challenge is not None:
                at = min(at, path.challenge.deadline)
                if path.cids.peer.active is not None:
                    at = min(at, path.challenge.next_at)
            if self.multipath is not None:
                at = min(at, multipath.timer(path))
        return at

    def on_timer(self, now: float) -> None:
        """Do what is due; call `flush` afterwards."""
        if self.qlog is not None:
            self.qlog.now = now
        if self._gone_at is not None:
            if now >= self._gone_at:
                self._gone()
            return
        if self._deadline is not None and now >= self._deadline:
            cause = "idle" if self.state is State.OPEN else "handshake"
            reason = CloseReason(cause, during_handshake=self.state is State.HANDSHAKE)
            self._end(reason, State.GONE, now)
            return
        if self.handshake is not None:
            at = self.handshake.timer()
            if at is not None and now >= at:
                self.handshake.handle_timer(now)
        for path in list(self.paths.values()):
            self._on_path_timer(path, now)
            if self.multipath is not None:
                multipath.on_timer(self, path, now)
        if self.multipath is not None and multipath.is_stranded(self, now):
            self._end(CloseReason("no path", codes.NO_VIABLE_PATH), State.GONE, now)

    def _on_path_timer(self, path: Path, now: float) -> None:
        at = path.recovery.timer()
        if at is not None and now >= at:
            probes = path.recovery.on_timeout(now)
            if self.qlog is not None:
                self.qlog.metrics(path)
            path.probes_pending = max(path.probes_pending, probes)
        if not path.abandoned and now >= path.ping_at(self.config.keep_alive_s):
            asks = now >= path.last_activity + self.config.keep_alive_s or self._expects_data
            path.is_receiving = False
            if asks:
                path.ping_pending = True
                path.last_activity = now
        if path.abandoned and path.ack_at is not None and not multipath.has_open_path(self):
            # Nothing is left on which to acknowledge it.
            path.ack_at = None
        challenge = path.challenge
        if challenge is not None and now >= challenge.deadline:
            path.challenge = None
            if path.previous_remote is not None:
                # Nobody answers at the new address: go back to the one that was good.
                previous, path.previous_remote = path.previous_remote, None
                path.remote = previous
                path.validated = True
                self.remote = previous

    @property
    def _expects_data(self) -> bool:
        """Whether a stream is open on which the peer may send."""
        return any(half.final_size is None for half in self.recv_halves.values())

    def _heard(self, now: float) -> None:
        self._deadline = now + (
            self._idle_period() if self.state is State.OPEN else self._handshake_timeout_s
        )
        self._eliciting_sent_since_receipt = False

    heard = _heard

    def _idle_period(self) -> float:
        period = self.idle_timeout_s
        for path in self.paths.values():
            # Asked for each packet: three probe timeouts matter only on very slow paths.
            if 20 * path.recovery.srtt > period:
                period = max(period, 3 * path.recovery.pto)
        return period

    # --- closing --------------------------------------------------------------------------------

    def close(self, error_code: int, reason: bytes, now: float) -> None:
        """Close at once, with the application's code and reason. What was not sent is lost."""
        if self.state in (State.OPEN, State.HANDSHAKE):
            self._end(
                CloseReason("local", error_code, reason, is_application=True), State.CLOSING, now
            )

    def _fail(self, exc: TransportError, now: float) -> None:
        during = self.state is State.HANDSHAKE
        reason = exc.reason.encode("utf-8", "replace")
        self._end(
            CloseReason("protocol", exc.error_code, reason, during_handshake=during),
            State.CLOSING,
            now,
        )

    def fail_internally(self, now: float) -> None:
        """Close because our own code failed; the peer is told INTERNAL_ERROR."""
        self._end(
            CloseReason("internal", codes.INTERNAL_ERROR, b"internal error"), State.CLOSING, now
        )

    def peer_closed(
        self, error_code: int, reason: bytes, *, is_application: bool, now: float
    ) -> None:
        """Note the peer's CONNECTION_CLOSE."""
        self._end(
            CloseReason("peer", error_code, reason, is_application=is_application),
            State.DRAINING,
            now,
        )

    def _end(self, reason: CloseReason, state: State, now: float) -> None:
        if self.close_reason is not None:
            return
        self.close_reason = reason
        handshake = self.handshake
        if self.qlog is not None:
            self.qlog.now = now
            self.qlog.connection_closed(reason)
        if state is State.CLOSING:
            if handshake is not None and not self.confirmed and handshake.failure is None:
                text = reason.reason.decode("utf-8", "replace")
                handshake.close(reason.error_code, text, is_application=reason.is_application)
            if handshake is not None:
                remotes = [self.remote] if self._routes is None else self._routes.remotes()
                for datagram in handshake.transmit(now):
                    self._close_datagrams.extend((remote, datagram) for remote in remotes)
        if state is not State.GONE and self.protection is not None:
            # Entering the draining state answers once, so that the peer need not ask again.
            answer = reason if state is State.CLOSING else CloseReason("local")
            path = self.selected_path
            if path is not None:
                packet = outbound.build_close(self, path, answer)
                self._close_datagrams.append((path.remote, packet))
        pto = max((path.recovery.pto for path in self.paths.values()), default=0.0)
        pto = pto or 3 * self.config.initial_rtt_s
        self.events.append(events.Closed(reason))
        self.handshake = None
        self.state = state
        if state is State.GONE:
            self.state = State.CLOSING
            self._gone()
        else:
            self._gone_at = now + 3 * pto
            self._close_answers = 1

    def _flush_close(self, now: float, send: Send) -> None:
        # The first time at once; then for the 1st, 2nd, 4th, 8th … packet that still arrives.
        if self._close_answers >= self._close_answer_at:
            self._close_answer_at *= 2
            for remote, datagram in self._close_datagrams:
                send(remote, datagram, len(datagram))
            if self.state is State.DRAINING:
                self._close_datagrams = []

    def discard(self) -> None:
        """Forget everything at once, without a word to the peer."""
        self.handshake = None
        if self.close_reason is None:
            self.close_reason = CloseReason("local")
            self.events.append(events.Closed(self.close_reason))
        self._gone()

    def _gone(self) -> None:
        if self.state is not State.GONE:
            self.state = State.GONE
            self._gone_at = None
            self._deadline = None
            self._close_datagrams = []
            self.control.clear()
            self.ready.clear()
            self.datagrams.clear()
            self.send_halves.clear()
            self.recv_halves.clear()
            for path in self.paths.values():
                path.recovery.forget()
            if self.qlog is not None:
                self.qlog.close()
            self.events.append(events.Drained())

    # --- streams --------------------------------------------------------------------------------

    def open_stream(self, *, unidirectional: bool) -> tuple[SendHalf, RecvHalf | None] | None:
        """Open a stream; None while the peer allows no more (StreamsAvailable follows)."""
        kind = self.uni if unidirectional else self.bidi
        if kind.next_local >> 2 >= kind.peer_allows:
            return None
        stream_id = kind.next_local
        kind.next_local += 4
        peer = self.peer_parameters
        limit = (
            peer.initial_max_stream_data_uni
            if unidirectional
            else peer.initial_max_stream_data_bidi_remote
        )
        send = self.send_halves[stream_id] = SendHalf(stream_id, limit)
        recv = None
        if not unidirectional:
            recv = self.recv_halves[stream_id] = RecvHalf(stream_id, self.config.stream_window)
        return send, recv

    def wake(self, half: SendHalf) -> None:
        """Put a half that may have something to send into the send queue."""
        if not half.in_queue and half.wants_to_send:
            half.in_queue = True
            queue = self.ready.get(half.priority)
            if queue is None:
                queue = deque()
                # A new mapping: somebody may be iterating over this one.
                ready = {**self.ready, half.priority: queue}
                self.ready = dict(sorted(ready.items(), reverse=True))
            queue.append(half)

    def consumed(self, half: RecvHalf, length: int) -> None:
        """Note that the application took `length` bytes: limits may rise, the half may be over."""
        self.credit(length)
        if half.final_size is None and 2 * (half.limit - half.consumed) < half.window:
            self.queue_limit_update(half)
        if half.finished:
            self.forget_recv(half)

    def credit(self, length: int) -> None:
        """Give `length` bytes back to the connection's window."""
        self.data_consumed += length
        if 2 * (self.max_data - self.data_consumed) < self.config.connection_window:
            self.max_data_pending = True

    def queue_limit_update(self, half: RecvHalf) -> None:
        if not half.update_pending:
            half.update_pending = True
            self.limit_updates.append(half)

    def stop(self, half: RecvHalf, code: int) -> None:
        """Ask the peer to stop sending on a stream; what has arrived unread is dropped."""
        self.credit(half.stop(code))
        if half.stop_pending:
            half.stop_pending = False
            self.control.append((codes.STOP_SENDING, half))
        if half.finished:
            self.forget_recv(half)

    def reset(self, half: SendHalf, code: int) -> None:
        """Abandon what we send on a stream."""
        half.reset(code)
        self.wake(half)

    def forget_recv(self, half: RecvHalf) -> None:
        if self.recv_halves.pop(half.id, None) is not None and half.id not in self.send_halves:
            self._stream_over(half.id)

    def forget_send(self, half: SendHalf) -> None:
        if self.send_halves.pop(half.id, None) is not None and half.id not in self.recv_halves:
            self._stream_over(half.id)

    def _stream_over(self, stream_id: int) -> None:
        if is_client_initiated(stream_id) == self.is_client:
            return
        kind = self.uni if is_unidirectional(stream_id) else self.bidi
        kind.finished += 1
        room = kind.allowed - kind.accepted
        if 2 * room <= self.config.max_streams and not kind.update_pending:
            kind.update_pending = True
            frame = codes.MAX_STREAMS_UNI if kind is self.uni else codes.MAX_STREAMS_BIDI
            self.control.append((frame,))

    # --- datagrams of the application -----------------------------------------------------------

    @property
    def max_datagram_payload(self) -> int | None:
        """Return the largest application datagram that fits now; None if the peer takes none."""
        if not self.peer_parameters.max_datagram_frame_size:
            return None
        path = self.selected_path
        size = path.mtu.current if path is not None else 1200
        room = size - outbound.PACKET_OVERHEAD - 3
        return min(room, self.peer_parameters.max_datagram_frame_size - 3)

    def send_datagram(self, data: bytes) -> None:
        """Queue an application datagram; the oldest is dropped when too many wait."""
        self.datagrams.append(data)
        self.datagram_bytes += len(data)
        while self.datagram_bytes > limits.MAX_DATAGRAM_QUEUE_BYTES:
            self.next_datagram()
            self.datagrams_dropped += 1

    def next_datagram(self) -> bytes:
        """Take the oldest datagram out of the queue."""
        data = self.datagrams.popleft()
        self.datagram_bytes -= len(data)
        return data

    # --- addresses and keys ---------------------------------------------------------------------

    def network_changed(self, now: float) -> None:
        """Look at every path anew: this machine's addresses or routes may have changed."""
        for path in self.paths.values():
            if path.parked or path.abandoned:
                continue
            path.recovery.pto_count = 0
            path.ping_pending = True
            if path.challenge is not None:
                path.challenge.restart(now)
            # A new connection id, so that the new address is not linked with the old one.
            self.rotate_cid(path)

    def rotate_cid(self, path: Path) -> None:
        if path.cids.peer.rotate():
            self.announce_retirements(path.cids)

    def announce_retirements(self, cids: PathCids) -> None:
        """Queue RETIRE_CONNECTION_ID frames and publish the reset token now in force."""
        peer = cids.peer
        while peer.retirements:
            self.owe((codes.RETIRE_CONNECTION_ID, cids, peer.retirements.popleft()))
        self.publish_reset_token(cids)

    def publish_reset_token(self, cids: PathCids) -> None:
        """Tell the owner which reset token is in force for a path, and which is not any more."""
        active = cids.peer.active
        token = active.reset_token if active is not None else None
        if token == cids.published_token:
            return
        if cids.published_token is not None:
            self.events.append(events.PeerResetTokenRetired(cids.published_token))
        if token is not None:
            self.events.append(events.PeerResetToken(token))
        cids.published_token = token

    @property
    def has_heard_peer(self) -> bool:
        """Whether anything authentic has arrived."""
        return self.handshake is None or self.handshake.heard_peer

    def update_keys(self, now: float) -> bool:
        """Start a key update; False when one is under way or the handshake is not confirmed."""
        if self.protection is None or not self.confirmed:
            return False
        started = self.protection.initiate_update(now, self.key_keep_s, self.next_numbers)
        if started and self.qlog is not None:
            self.qlog.now = now
            self.qlog.keys_updated(self.protection.updates)
        return started

    @property
    def next_numbers(self) -> dict[int, int]:
        """The next packet number of each path."""
        return {path.id: path.next_number for path in self.paths.values()}

    @property
    def key_keep_s(self) -> float:
        """How long keys of an earlier phase stay usable: three times the slowest path's PTO."""
        return 3 * max((p.recovery.pto for p in self.paths.values()), default=1.0)

    # --- the fate of what was sent --------------------------------------------------------------

    def _on_acked(self, path: Path, record: Sent) -> None:
        outbound.on_acked(self, path, record)

    def _on_lost(self, path: Path, record: Sent) -> None:
        outbound.on_lost(self, path, record)
