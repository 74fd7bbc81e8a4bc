"""A QUIC connection, sans-IO: datagrams and `now` in, datagrams and events out.

Who does what: `handshake` runs Initial and Handshake packets on aioquic and then disappears. This
class owns everything after it. What is done with its state is told by topic: `handshake.driver` and
`close` for its beginning and end, `packets.reader` opens packets and applies their frames,
`packets.builder` builds packets, `paths.multipath` keeps the paths, `streams.table` the streams, `timers`
says when what is due.

The life of a connection::

    HANDSHAKE ──keys──► OPEN ──close()──► CLOSING ──3 PTO──► GONE
        │                 ├──peer's close──► DRAINING ──3 PTO──► GONE
        └──failure────────┴──idle, reset───────────────────────► GONE

Sources: RFC 9000, RFC 9001, RFC 9002, RFC 9221, wire/quic.md.
"""

from __future__ import annotations

from collections import deque

from dialkey import limits
from dialkey.identity import EndpointId
from dialkey.quic import close, codes, events, fate, timers
from dialkey.quic.codes import TransportError
from dialkey.quic.config import Config, Send, State
from dialkey.quic.events import CloseReason, Event
from dialkey.quic.farewell import Farewell
from dialkey.quic.handshake import driver
from dialkey.quic.handshake.machine import Handshake
from dialkey.quic.handshake.routes import Routes
from dialkey.quic.packets import builder, reader
from dialkey.quic.packets.protection import PacketProtection
from dialkey.quic.paths import multipath
from dialkey.quic.paths.amplification import Room
from dialkey.quic.paths.path import ACK_EVERY, MAX_LOCAL_CIDS, Address, LocalCid, Path, PathCids
from dialkey.quic.paths.recovery import Frame, Sent
from dialkey.quic.streams.table import StreamTable

__all__ = ["Config", "Connection", "Send", "State"]

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


class Connection(StreamTable):
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
        super().__init__(config, is_client=is_client)
        self.handshake: Handshake | None = handshake
        self.state = State.HANDSHAKE
        self.events: deque[Event] = deque()
        self.remote = remote
        self.peer_id: EndpointId | None = None
        self.alpn = b""
        self.protection: PacketProtection | None = None
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
        self.deadline: float | None = now + config.handshake_timeout_s
        self._eliciting_sent_since_receipt = False
        self.pacing_at: float | None = None
        self.gone_at: float | None = None
        self.farewell = Farewell()
        self.early_short: list[tuple[bytes, Address]] = []
        self.remote_fixed = False
        self.routes = None if is_client else Routes(remote)
        # Of the address that a client of several ways chose, until path 0 has proved it.
        self.doubtful_room: Room | None = None

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
        connection.deadline = now + timeout_s
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
        began_at: float | None = None,
    ) -> Connection:
        """Answer a client's first Initial; pass that datagram to `receive` next.

        Args:
            retry_source_cid: what a Retry told the client to call us, if there was one.
            began_at: when that datagram arrived, if not just now: the deadline counts from there.
        """
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
        connection = cls(
            config, handshake, is_client=False, host_cid=host_cid, remote=remote, now=now
        )
        if began_at is not None:
            connection.deadline = began_at + config.handshake_timeout_s
        return connection

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
            self.farewell.heard(remote, len(data))
            return
        try:
            if data[0] & 0x80:
                driver.receive_long(self, bytes(data), remote, now)
            elif self.protection is not None:
                reader.receive_packets(self, data, segment, remote, now)
            else:
                driver.receive_short(self, data, segment, remote, now)
        except TransportError as exc:
            self._fail(exc, now)
            return
        if not self.memory_suffices:
            self.give_way(now)

    def new_path(
        self, cids: PathCids, remote: Address, *, validated: bool, initial_rtt: float | None = None
    ) -> Path:
        """Make the state of a path; the caller adds it to `paths`."""
        peer = self.peer_parameters
        path = Path(
            cids,
            remote,
            validated=validated,
            room=None if self.is_client or validated else Room(),
            initial_rtt=initial_rtt or self.config.initial_rtt_s,
            max_datagram=min(self.config.max_datagram, peer.max_udp_payload_size),
            draw=self.config.draw,
            make_controller=self.config.make_controller,
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
            close.end(self, CloseReason("reset"), State.GONE, now)

    def turn_away(self, reason: bytes, now: float) -> None:
        """Refuse a client whose handshake is not complete, and free what it holds."""
        if self.state is State.HANDSHAKE:
            refusal = CloseReason("local", codes.CONNECTION_REFUSED, reason, during_handshake=True)
            close.end(self, refusal, State.CLOSING, now)

    # --- datagrams out --------------------------------------------------------------------------

    def flush(self, now: float, send: Send) -> None:
        """Hand everything that may leave now to `send`."""
        if self.state is State.GONE:
            return
        if self.qlog is not None:
            self.qlog.now = now
        if self.state in (State.CLOSING, State.DRAINING):
            close.flush(self, now, send)
            return
        handshake = self.handshake
        if handshake is not None:
            driver.send_handshake(self, handshake.transmit(now), send)
            if self.confirmed and not self.is_client:
                self.handshake = None
        if self.protection is not None:
            self.pacing_at = None
            self.grant_streams(now)
            if self.max_data_pending or self.limit_updates or 2 * self.held > self.intake.window:
                path = self.selected_path
                rtt_s = path.recovery.srtt if path is not None else self.config.initial_rtt_s
                self.size_windows(now, rtt_s)
            selected = self.selected_path
            if selected is not None and not selected.may_carry_data:
                selected = None
            if selected is not None and self.multipath is not None:
                multipath.use(self, selected)
            for path in self.paths.values():
                builder.flush_path(self, path, path is selected, now, send)
            if self.delivery_event_due():
                self.events.append(events.Delivered())

    @property
    def has_urgent_work(self) -> bool:
        """Whether a flush would send something now even if the application adds nothing."""
        if self.handshake is not None or self.ready or self.state is not State.OPEN:
            return True
        for path in self.paths.values():
            if path.ack_pending >= ACK_EVERY or path.responses or path.challenge is not None:
                return True
        return bool(self.control)

    def pace(self, at: float) -> None:
        """Note that the pacer allows more at `at`."""
        if self.pacing_at is None or at < self.pacing_at:
            self.pacing_at = at

    def sent_eliciting(self, now: float) -> None:
        """Note that something was sent that the peer must answer."""
        if not self._eliciting_sent_since_receipt:
            self._eliciting_sent_since_receipt = True
            self.deadline = now + self._idle_period()

    # --- timers ---------------------------------------------------------------------------------

    def timer(self) -> float | None:
        """Return when `on_timer` is due, or None when the connection is gone."""
        return timers.next_timer(self)

    def on_timer(self, now: float) -> None:
        """Do what is due; call `flush` afterwards."""
        timers.on_timer(self, now)

    def _heard(self, now: float) -> None:
        if self.state is State.OPEN:
            self.deadline = now + self._idle_period()
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
            close.end(
                self,
                CloseReason("local", error_code, reason, is_application=True),
                State.CLOSING,
                now,
            )

    def _fail(self, exc: TransportError, now: float) -> None:
        during = self.state is State.HANDSHAKE
        reason = exc.reason.encode("utf-8", "replace")
        close.end(
            self,
            CloseReason("protocol", exc.error_code, reason, during_handshake=during),
            State.CLOSING,
            now,
        )

    def fail_internally(self, now: float) -> None:
        """Close because our own code failed; the peer is told INTERNAL_ERROR."""
        close.end(
            self,
            CloseReason("internal", codes.INTERNAL_ERROR, b"internal error"),
            State.CLOSING,
            now,
        )

    def give_way(self, now: float) -> None:
        """Close because what is held unread here is more than there is room for."""
        close.end(
            self,
            CloseReason("overfull", codes.INTERNAL_ERROR, b"too much unread data"),
            State.CLOSING,
            now,
        )

    def peer_closed(
        self, error_code: int, reason: bytes, *, is_application: bool, now: float
    ) -> None:
        """Note the peer's CONNECTION_CLOSE."""
        close.end(
            self,
            CloseReason("peer", error_code, reason, is_application=is_application),
            State.DRAINING,
            now,
        )

    def discard(self) -> None:
        """Forget everything at once, without a word to the peer."""
        self.handshake = None
        if self.close_reason is None:
            self.close_reason = CloseReason("local")
            self.events.append(events.Closed(self.close_reason))
        close.gone(self)

    # --- datagrams of the application -----------------------------------------------------------

    @property
    def max_datagram_payload(self) -> int | None:
        """Return the largest application datagram that fits now; None if the peer takes none."""
        if not self.peer_parameters.max_datagram_frame_size:
            return None
        path = self.selected_path
        size = path.mtu.current if path is not None else 1200
        room = size - builder.PACKET_OVERHEAD - 3
        return min(room, self.peer_parameters.max_datagram_frame_size - 3)

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
    def unanswered_since(self) -> float | None:
        """Since when nothing has arrived, though something is in flight that the peer must answer."""
        if not any(path.recovery.eliciting_in_flight for path in self.paths.values()):
            return None
        return max((path.last_received for path in self.paths.values()), default=self.created_at)

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
        fate.on_acked(self, path, record)

    def _on_lost(self, path: Path, record: Sent) -> None:
        fate.on_lost(self, path, record)
