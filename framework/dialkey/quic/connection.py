"""A QUIC connection, sans-IO: datagrams and `now` in, datagrams and events out.

Who does what: `handshake` runs Initial and Handshake packets on aioquic and then disappears. This
class owns everything after it. What is done with its state is told by topic: `handshake.driver` and
`close` for its beginning and end, `packets.reader` opens packets and applies their frames,
`packets.builder` builds packets, `paths.multipath` keeps the paths, `streams.table` the streams, `timers`
says when what is due.

The life of a connection is the table `TRANSITIONS`::

    HANDSHAKE ──keys──► OPEN ──close()──► CLOSING ──3 PTO──► GONE
        │                 ├──peer's close──► DRAINING ──3 PTO──► GONE
        └──failure────────┴──idle, reset───────────────────────► GONE

Sources: RFC 9000, RFC 9001, RFC 9002, RFC 9221, docs/wire/quic.md.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping
from typing import Final

from dialkey import limits
from dialkey.identity import EndpointId
from dialkey.printable import printable_bytes
from dialkey.quic import codes, events, fate
from dialkey.quic.close import Closing
from dialkey.quic.codes import TransportError
from dialkey.quic.config import Config, Send, State
from dialkey.quic.events import CloseReason, Event
from dialkey.quic.handshake.driver import Handshake
from dialkey.quic.packets import builder, reader
from dialkey.quic.packets.protection import PacketProtection
from dialkey.quic.paths import multipath
from dialkey.quic.paths.amplification import Room
from dialkey.quic.paths.path import (
    ACK_EVERY,
    MAX_LOCAL_CIDS,
    Address,
    LocalCid,
    Path,
    PathCids,
    PeerCid,
)
from dialkey.quic.paths.recovery import Frame, Sent
from dialkey.quic.streams.table import StreamTable
from dialkey.quic.timers import IdleTimer

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


class Happening(enum.Enum):
    """What moves a connection from one state to the next."""

    KEYS = "the keys of 1-RTT are there"
    CLOSED_HERE = "it is closed here, or the peer broke a rule"
    CLOSED_BY_PEER = "the peer closed it"
    LOST = "nothing can be said to the peer any more"
    LINGERED = "late packets need no answer any more"


TRANSITIONS: Final[Mapping[State, Mapping[Happening, State]]] = {
    State.HANDSHAKE: {
        Happening.KEYS: State.OPEN,
        Happening.CLOSED_HERE: State.CLOSING,
        Happening.CLOSED_BY_PEER: State.DRAINING,
        Happening.LOST: State.GONE,
    },
    State.OPEN: {
        Happening.CLOSED_HERE: State.CLOSING,
        Happening.CLOSED_BY_PEER: State.DRAINING,
        Happening.LOST: State.GONE,
    },
    State.CLOSING: {Happening.LINGERED: State.GONE, Happening.LOST: State.GONE},
    State.DRAINING: {Happening.LINGERED: State.GONE, Happening.LOST: State.GONE},
    State.GONE: {},
}
"""What may happen in each state, and where it leads; anything else is a fault of ours."""


class IllegalTransition(Exception):
    """Something happened to a connection that its state does not allow: a fault of ours."""


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
        deadline: float,
    ) -> None:
        super().__init__(config, is_client=is_client)
        self.handshake: Handshake | None = handshake
        self.state = State.HANDSHAKE
        self._remote = handshake.remote
        self.events: deque[Event] = deque()
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
        self.qlog = handshake.trace

        self.ack_only_packets = 0

        # counters
        self.packet_bytes_sent = 0
        self.bytes_received = 0
        self.packets_received = 0
        self.packets_undecryptable = 0
        self.packets_duplicate = 0
        # Of paths that are over.
        self.sent_packets_before = 0
        self.lost_packets_before = 0

        # timers and closing
        self.idle = IdleTimer(deadline)
        self.pacing_at: float | None = None
        self.closing = Closing()
        self._handshake_bytes_sent = 0

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
            remote=remote,
            initial_rtt_s=config.initial_rtt_s,
            qlog=config.qlog,
            secrets_log_file=config.secrets_log_file,
        )
        connection = cls(
            config, handshake, is_client=True, host_cid=host_cid, deadline=now + timeout_s
        )
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
            remote=remote,
            original_destination_cid=original_destination_cid,
            retry_source_cid=retry_source_cid,
            initial_rtt_s=config.initial_rtt_s,
            qlog=config.qlog,
            secrets_log_file=config.secrets_log_file,
        )
        begin = now if began_at is None else began_at
        deadline = begin + config.handshake_timeout_s
        return cls(config, handshake, is_client=False, host_cid=host_cid, deadline=deadline)

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
            self.closing.farewell.heard(remote, len(data))
            return
        try:
            if data[0] & 0x80:
                self._receive_long(bytes(data), remote, now)
            else:
                self._receive_short(data, segment, remote, now)
        except TransportError as exc:
            self._fail(exc, now)
            return
        if not self.memory_suffices:
            self.give_way(now)

    def _receive_long(self, datagram: bytes, remote: Address, now: float) -> None:
        handshake = self.handshake
        if handshake is None:
            return
        received = handshake.receive(datagram, remote, now)
        failure = handshake.failure
        if failure is not None:
            reason = failure.reason.encode("utf-8", "replace")
            self._end(
                Happening.CLOSED_BY_PEER if failure.by_peer else Happening.CLOSED_HERE,
                CloseReason(
                    "peer" if failure.by_peer else "protocol",
                    failure.error_code,
                    reason,
                    during_handshake=True,
                ),
                now,
            )
            return
        if received.is_authentic:
            self.heard(now)
        if self.protection is None and handshake.complete:
            self._install_keys(handshake, now)
        if received.short_packet:
            short = memoryview(received.short_packet)
            self._receive_short(short, len(short), remote, now)

    def _receive_short(self, data: memoryview, segment: int, remote: Address, now: float) -> None:
        if self.protection is not None:
            reader.receive_packets(self, data, segment, remote, now)
        elif self.handshake is not None:
            self.handshake.hold_early(data, segment, remote)

    def _install_keys(self, handshake: Handshake, now: float) -> None:
        """Begin the life after the handshake: keys, limits, path 0."""
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
        first = PeerCid(0, handshake.peer_cid, peer.stateless_reset_token)
        cids = self.cid_sets[0] = PathCids(0, first)
        cids.local.append(LocalCid(0, self.host_cid, self.config.reset_token(self.host_cid)))
        cids.next_sequence = 1
        path = self.new_path(
            cids, handshake.remote, validated=True, initial_rtt=handshake.rtt_sample_s
        )
        if handshake.doubtful_room is not None:
            path.doubt(handshake.doubtful_room, now)
        path.last_received = path.last_activity = now
        self.paths[0] = path
        if self.config.multipath and peer.initial_max_path_id is not None:
            local_max = multipath.MAX_CONCURRENT_PATHS - 1
            self.multipath = multipath.Multipath(local_max, peer.initial_max_path_id)
        self._go(Happening.KEYS)
        self.idle.deadline = now + self.idle_timeout_s
        self.events.append(events.HandshakeCompleted())
        self.publish_reset_token(cids)
        self.issue_cids(cids)
        if self.multipath is not None:
            multipath.issue_cids(self)
        if not self.is_client:
            self.confirmed = True
            self.control.append((codes.HANDSHAKE_DONE,))
        for packet, remote in handshake.take_early():
            reader.receive_packets(self, memoryview(packet), len(packet), remote, now)

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
            self._drop_handshake()

    def receive_stateless_reset(self, now: float) -> None:
        """Note that the peer has forgotten this connection."""
        if self.state is State.OPEN:
            self._end(Happening.LOST, CloseReason("reset"), now)

    def turn_away(self, reason: bytes, now: float) -> None:
        """Refuse a client whose handshake is not complete, and free what it holds."""
        if self.state is State.HANDSHAKE:
            refusal = CloseReason("local", codes.CONNECTION_REFUSED, reason, during_handshake=True)
            self._end(Happening.CLOSED_HERE, refusal, now)

    # --- datagrams out --------------------------------------------------------------------------

    def flush(self, now: float, send: Send) -> None:
        """Hand everything that may leave now to `send`."""
        if self.state is State.GONE:
            return
        if self.qlog is not None:
            self.qlog.now = now
        if self.state in (State.CLOSING, State.DRAINING):
            self._say_farewell(send)
            return
        handshake = self.handshake
        if handshake is not None:
            handshake.send(now, send)
            if self.confirmed and not self.is_client:
                self._drop_handshake()
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
        if self.idle.is_first_question:
            self.idle.asked(now, self._idle_period())

    # --- timers ---------------------------------------------------------------------------------

    def timer(self) -> float | None:
        """Return when `on_timer` is due, or None when the connection is gone."""
        if self.state is State.GONE:
            return None
        if self.closing.gone_at is not None:
            return self.closing.gone_at
        at = self.idle.deadline
        if self.pacing_at is not None and self.pacing_at < at:
            at = self.pacing_at
        if self.credit_at is not None and self.credit_at < at:
            at = self.credit_at
        if self.handshake is not None:
            other = self.handshake.timer()
            if other is not None and other < at:
                at = other
        return min(at, multipath.next_timer(self))

    def on_timer(self, now: float) -> None:
        """Do what is due; call `flush` afterwards."""
        if self.qlog is not None:
            self.qlog.now = now
        if self.closing.gone_at is not None:
            if now >= self.closing.gone_at:
                self._be_gone(Happening.LINGERED)
            return
        if now >= self.idle.deadline:
            cause = "idle" if self.state is State.OPEN else "handshake"
            during = self.state is State.HANDSHAKE
            self._end(Happening.LOST, CloseReason(cause, during_handshake=during), now)
            return
        if self.handshake is not None:
            at = self.handshake.timer()
            if at is not None and now >= at:
                self.handshake.handle_timer(now)
        multipath.on_timers(self, now)
        if self.multipath is not None and multipath.is_stranded(self, now):
            self._end(Happening.LOST, CloseReason("no path", codes.NO_VIABLE_PATH), now)

    def heard(self, now: float) -> None:
        """Note that something authentic arrived."""
        if self.state is State.OPEN:
            self.idle.heard(now, self._idle_period())
        else:
            self.idle.heard_in_handshake()

    def _idle_period(self) -> float:
        period = self.idle_timeout_s
        for path in self.paths.values():
            # Asked for each packet: three probe timeouts matter only on very slow paths.
            if 20 * path.recovery.srtt > period:
                period = max(period, 3 * path.recovery.pto)
        return period

    # --- closing --------------------------------------------------------------------------------

    @property
    def close_reason(self) -> CloseReason | None:
        """Why the connection is over; None while it is not."""
        return self.closing.reason

    def close(self, error_code: int, reason: bytes, now: float) -> None:
        """Close at once, with the application's code and reason. What was not sent is lost."""
        self._end(
            Happening.CLOSED_HERE,
            CloseReason("local", error_code, reason, is_application=True),
            now,
        )

    def _fail(self, exc: TransportError, now: float) -> None:
        during = self.state is State.HANDSHAKE
        reason = exc.reason.encode("utf-8", "replace")
        self._end(
            Happening.CLOSED_HERE,
            CloseReason("protocol", exc.error_code, reason, during_handshake=during),
            now,
        )

    def fail_internally(self, now: float) -> None:
        """Close because our own code failed; the peer is told INTERNAL_ERROR."""
        reason = CloseReason("internal", codes.INTERNAL_ERROR, b"internal error")
        self._end(Happening.CLOSED_HERE, reason, now)

    def give_way(self, now: float) -> None:
        """Close because what is held unread here is more than there is room for, and drop it."""
        self.drop_unread()
        reason = CloseReason("overfull", codes.INTERNAL_ERROR, b"too much unread data")
        self._end(Happening.CLOSED_HERE, reason, now)

    def peer_closed(
        self, error_code: int, reason: bytes, *, is_application: bool, now: float
    ) -> None:
        """Note the peer's CONNECTION_CLOSE."""
        self._end(
            Happening.CLOSED_BY_PEER,
            CloseReason("peer", error_code, reason, is_application=is_application),
            now,
        )

    def discard(self) -> None:
        """Forget everything at once, without a word to the peer."""
        self._drop_handshake()
        if self.closing.reason is None:
            reason = CloseReason("local")
            self.closing.begin(reason)
            self.events.append(events.Closed(reason))
        self._be_gone(Happening.LOST)

    def _go(self, happening: Happening) -> None:
        state = TRANSITIONS[self.state].get(happening)
        if state is None:
            raise IllegalTransition(f"{self.state.name}: {happening.value}")
        self.state = state

    def _end(self, happening: Happening, reason: CloseReason, now: float) -> None:
        """Leave HANDSHAKE or OPEN: tell the peer if there is something to tell, and the owner."""
        if self.closing.reason is not None:
            return
        self.closing.begin(reason)
        if self.qlog is not None:
            self.qlog.now = now
            self.qlog.connection_closed(reason)
        handshake = self.handshake
        if happening is Happening.CLOSED_HERE and handshake is not None:
            if not self.confirmed and handshake.failure is None:
                text = printable_bytes(reason.reason)
                handshake.close(reason.error_code, text, is_application=reason.is_application)
            for remote, datagram, room in handshake.last_words(now):
                self.closing.farewell.add(remote, datagram, room)
        if happening is not Happening.LOST and self.protection is not None:
            # Entering the draining state answers once, so that the peer need not ask again.
            answer = reason if happening is Happening.CLOSED_HERE else CloseReason("local")
            for path in self._ways_of_the_close():
                packet = builder.build_close(self, path, answer)
                room = None if path.validated else path.room
                self.closing.farewell.add(path.remote, packet, room)
        self.events.append(events.Closed(reason))
        self.end_of_data()
        self._drop_handshake()
        if happening is Happening.LOST:
            self._be_gone(happening)
        else:
            self._go(happening)
            # A path that was never answered knows no round trip, only a cautious guess at one.
            ptos = (path.recovery.pto for path in self.paths.values() if path.validated)
            self.closing.linger(now, max(ptos, default=0.0) or 3 * self.config.initial_rtt_s)

    def _ways_of_the_close(self) -> list[Path]:
        """Return the selected path, and all others that have been proven.

        The one that carried data may have died a moment ago, and nothing is repeated by itself.
        """
        selected = self.selected_path
        return [
            path
            for path in self.paths.values()
            if path is selected
            or (path.validated and not path.abandoned and path.cids.peer.active is not None)
        ]

    def _say_farewell(self, send: Send) -> None:
        """Send the close, at first and again for packets that still arrive."""
        farewell = self.closing.farewell
        said = farewell.send(lambda remote, datagram: send(remote, datagram, len(datagram)))
        if said and self.state is State.DRAINING:
            farewell.forget()

    def _drop_handshake(self) -> None:
        if self.handshake is not None:
            self._handshake_bytes_sent = self.handshake.bytes_sent
            self._remote = self.handshake.remote
            self.handshake = None

    def _be_gone(self, happening: Happening) -> None:
        """Free everything: nothing is answered any more."""
        if self.state is State.GONE:
            return
        self._go(happening)
        self.closing.over()
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

    @property
    def bytes_sent(self) -> int:
        """Whole datagrams so far, the handshake's included; the farewell is not counted."""
        handshake = self.handshake
        in_handshake = self._handshake_bytes_sent if handshake is None else handshake.bytes_sent
        return in_handshake + self.packet_bytes_sent

    # --- addresses and keys ---------------------------------------------------------------------

    @property
    def remote(self) -> Address:
        """Where most of what we send goes."""
        path = self.selected_path
        if path is not None:
            return path.remote
        return self._remote if self.handshake is None else self.handshake.remote

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

    def on_too_large(self, remote: Address, max_datagram_bytes: int) -> None:
        """Note that this machine sends no larger datagrams to an address."""
        for path in self.paths.values():
            if path.remote == remote:
                path.mtu.on_too_large(max_datagram_bytes + 1)

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
        return max(path.last_received for path in self.paths.values())

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
