"""A QUIC connection, sans-IO: datagrams and `now` in, datagrams and events out.

Who does what: `handshake` runs Initial and Handshake packets and then disappears. After it `streams`
and `datagrams` hold what the connection carries, `paths` over what; the `reader` opens packets and hands
each frame to the component that it is about, the `builder` lets each write what it has to say. Each owns
its state and its timers. Here they are put together, and here the connection begins and ends.

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
from typing import ClassVar, Final

from dialkey import limits
from dialkey.identity import EndpointId
from dialkey.printable import printable_bytes
from dialkey.quic import codes, events
from dialkey.quic.close import ClosedByPeer, Closing
from dialkey.quic.codes import TransportError
from dialkey.quic.config import Config, Send, State
from dialkey.quic.events import CloseReason, Event
from dialkey.quic.handshake.driver import Handshake
from dialkey.quic.handshake.parameters import TransportParameters
from dialkey.quic.packets.builder import PACKET_OVERHEAD, Builder
from dialkey.quic.packets.control import ControlFrames
from dialkey.quic.packets.frames import read_bytes, read_varint
from dialkey.quic.packets.protection import PacketProtection
from dialkey.quic.packets.reader import Arrival, Handler, Reader
from dialkey.quic.paths.mtu import BASE_BYTES
from dialkey.quic.paths.path import Address, Path
from dialkey.quic.paths.recovery import Frame
from dialkey.quic.paths.table import Paths
from dialkey.quic.streams.datagrams import Datagrams
from dialkey.quic.streams.table import Streams
from dialkey.quic.timers import IdleTimer

__all__ = ["Config", "Connection", "Send", "State"]


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
"""What may happen in each state, and where it leads; anything else is a bug in this package."""


class IllegalTransition(Exception):
    """Something happened that the state of the connection does not allow: a bug in this package."""


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
        deadline: float,
    ) -> None:
        self.config = config
        self.is_client = is_client
        self.handshake: Handshake | None = handshake
        self.state = State.HANDSHAKE
        self.events: deque[Event] = deque()
        self.peer_id: EndpointId | None = None
        self.alpn = b""
        self.peer_parameters = TransportParameters()
        self.protection: PacketProtection | None = None
        self.confirmed = False
        self.host_cid = host_cid
        self.qlog = handshake.trace
        self.idle = IdleTimer(deadline)
        self.closing = Closing()
        self.bytes_received = 0
        self.control = ControlFrames()
        emit = self.events.append
        self.streams = Streams(config, is_client=is_client, control=self.control, emit=emit)
        self.datagrams = Datagrams(emit)
        self.paths = Paths(
            config,
            is_client=is_client,
            host_cid=host_cid,
            control=self.control,
            emit=emit,
            qlog=self.qlog,
        )
        self.reader: Reader | None = None
        self.builder: Builder | None = None
        self._remote = handshake.remote
        self._idle_timeout_s = config.idle_timeout_s
        self._handshake_bytes_sent = 0
        # Whether a Delivered event is wanted.
        self._watches_delivery = False

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
            expected_id: the only key that is accepted.
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
            data: one or more datagrams in a row, each of `segment` bytes (the last may be shorter).
                If there is more than one, all begin with a short header.
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
        except ClosedByPeer as exc:
            self._end(Happening.CLOSED_BY_PEER, exc.reason, now)
            return
        if not self.streams.intake.memory_suffices:
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
            self._heard(now)
        if self.protection is None and handshake.complete:
            self._install_keys(handshake, now)
        if received.short_packet:
            short = memoryview(received.short_packet)
            self._receive_short(short, len(short), remote, now)

    def _receive_short(self, data: memoryview, segment: int, remote: Address, now: float) -> None:
        if self.reader is not None:
            self.reader.receive(data, segment, remote, now)
        elif self.handshake is not None:
            self.handshake.hold_early(data, segment, remote)

    def _install_keys(self, handshake: Handshake, now: float) -> None:
        """Set up what follows the handshake: keys, limits, path 0."""
        send, recv = handshake.send_secret, handshake.recv_secret
        assert send is not None
        assert recv is not None
        if len(handshake.peer_cid) != codes.CID_LENGTH:
            raise TransportError(codes.PROTOCOL_VIOLATION, "connection ids must have 8 bytes")
        protection = self.protection = PacketProtection(send, recv)
        self.peer_id = handshake.peer_id
        self.alpn = handshake.alpn
        peer = self.peer_parameters = handshake.peer_parameters
        if peer.max_idle_timeout_ms:
            self._idle_timeout_s = min(self._idle_timeout_s, peer.max_idle_timeout_ms / 1000)
        self.streams.start(peer)
        self.paths.start(
            peer,
            handshake.peer_cid,
            handshake.remote,
            initial_rtt=handshake.rtt_sample_s,
            doubtful_room=handshake.doubtful_room,
            now=now,
        )
        reader = self.reader = Reader(
            protection,
            self.paths,
            self.streams,
            (
                self.streams,
                self.paths.frames,
                self.datagrams,
                self.paths.traversal,
                self.paths.observed,
                self,
            ),
            is_client=self.is_client,
            heard=self._heard,
            confirm=self._confirm,
            qlog=self.qlog,
        )
        self.builder = Builder(
            protection,
            self.paths,
            self.streams,
            self.datagrams,
            self.control,
            asked=self._asked,
            update_keys=self.update_keys,
            qlog=self.qlog,
        )
        self._go(Happening.KEYS)
        self.idle.restart(now + self._idle_timeout_s)
        self.events.append(events.HandshakeCompleted())
        self.paths.issue_ids()
        if not self.is_client:
            self.confirmed = True
            self.control.append((self, codes.HANDSHAKE_DONE))
        for packet, remote in handshake.take_early():
            reader.receive(memoryview(packet), len(packet), remote, now)

    def _confirm(self) -> None:
        """Note that the server has confirmed the handshake."""
        if not self.confirmed:
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
        if self.builder is not None:
            self.streams.grant(now)
            if self.streams.intake.wants_sizing:
                path = self.paths.selected
                rtt_s = path.recovery.srtt if path is not None else self.config.initial_rtt_s
                self.streams.size_windows(now, rtt_s)
            if self.paths.traversal.has_probes and self.confirmed:
                self.builder.probe(self.bytes_received, now, send)
            self.builder.flush(now, send, may_probe_mtu=self.confirmed)
            if self._watches_delivery and self.is_delivered:
                self._watches_delivery = False
                self.events.append(events.Delivered())

    @property
    def has_urgent_work(self) -> bool:
        """Whether a flush would send something now even if the application adds nothing."""
        if self.handshake is not None or self.streams.scheduler or self.state is not State.OPEN:
            return True
        if self.control or self.paths.traversal.has_probes:
            return True
        return any(path.has_urgent_work for path in self.paths.values())

    @property
    def has_work(self) -> bool:
        """Whether a flush would send something beside what the application writes."""
        return bool(self.control) or self.streams.intake.has_updates

    def _asked(self, now: float) -> None:
        """Note that something was sent that the peer must answer."""
        if self.idle.is_first_question:
            self.idle.asked(now, self.paths.idle_period(self._idle_timeout_s))

    # --- timers ---------------------------------------------------------------------------------

    def timer(self) -> float | None:
        """Return when `on_timer` is due, or None when the connection is gone."""
        if self.state is State.GONE:
            return None
        if self.closing.gone_at is not None:
            return self.closing.gone_at
        at = self.idle.deadline
        builder = self.builder
        if builder is not None and builder.pacing_at is not None and builder.pacing_at < at:
            at = builder.pacing_at
        credit_at = self.streams.credit_at
        if credit_at is not None and credit_at < at:
            at = credit_at
        if self.handshake is not None:
            other = self.handshake.timer()
            if other is not None and other < at:
                at = other
        return min(at, self.paths.next_timer())

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
        self.paths.on_timer(now, lambda: self.streams.expect_data)
        if self.paths.is_stranded(now):
            self._end(Happening.LOST, CloseReason("no path", codes.NO_VIABLE_PATH), now)

    def _heard(self, now: float) -> None:
        """Note that something authentic arrived."""
        if self.state is State.OPEN:
            self.idle.heard(now, self.paths.idle_period(self._idle_timeout_s))
        else:
            self.idle.heard_in_handshake()

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
        """Close because more is held unread here than there is room for, and drop it."""
        self.streams.drop_unread()
        reason = CloseReason("overfull", codes.INTERNAL_ERROR, b"too much unread data")
        self._end(Happening.CLOSED_HERE, reason, now)

    def discard(self) -> None:
        """Forget everything at once, without telling the peer."""
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
        if happening is not Happening.LOST and self.builder is not None:
            # Entering the draining state answers once, so that the peer need not ask again.
            answer = reason if happening is Happening.CLOSED_HERE else CloseReason("local")
            for path in self.paths.for_the_close:
                packet = self.builder.close(path, answer)
                room = None if path.validated else path.room
                self.closing.farewell.add(path.remote, packet, room)
        self.events.append(events.Closed(reason))
        self.streams.intake.end_of_data()
        self._drop_handshake()
        if happening is Happening.LOST:
            self._be_gone(happening)
        else:
            self._go(happening)
            self.closing.linger(now, self.paths.proved_pto_s)

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
            self.handshake.dismantle()
            self.handshake = None

    def _be_gone(self, happening: Happening) -> None:
        """Free everything: nothing is answered from now on."""
        if self.state is State.GONE:
            return
        self._go(happening)
        self.closing.over()
        self.control.clear()
        self.datagrams.clear()
        self.streams.clear()
        self.paths.clear()
        if self.qlog is not None:
            self.qlog.close()
        self.events.append(events.Drained())

    # --- datagrams of the application -----------------------------------------------------------

    @property
    def max_datagram_payload(self) -> int | None:
        """Return the largest application datagram that fits now; None if the peer takes none."""
        if not self.peer_parameters.max_datagram_frame_size:
            return None
        path = self.paths.selected
        size = path.mtu.current if path is not None else BASE_BYTES
        room = size - PACKET_OVERHEAD - 3
        return min(room, self.peer_parameters.max_datagram_frame_size - 3)

    @property
    def packets_received(self) -> int:
        """1-RTT packets that were opened."""
        return self.reader.packets if self.reader is not None else 0

    @property
    def packets_undecryptable(self) -> int:
        """1-RTT packets that were not authentic."""
        return self.reader.undecryptable if self.reader is not None else 0

    @property
    def packets_duplicate(self) -> int:
        """1-RTT packets that had arrived before."""
        return self.reader.duplicate if self.reader is not None else 0

    @property
    def bytes_sent(self) -> int:
        """Whole datagrams so far, the handshake's included; the farewell is not counted."""
        handshake = self.handshake
        in_handshake = self._handshake_bytes_sent if handshake is None else handshake.bytes_sent
        return in_handshake + (self.builder.bytes_sent if self.builder is not None else 0)

    # --- addresses and keys ---------------------------------------------------------------------

    @property
    def remote(self) -> Address:
        """Where most of what we send goes."""
        path = self.paths.selected
        if path is not None:
            return path.remote
        return self._remote if self.handshake is None else self.handshake.remote

    def network_changed(self, now: float) -> None:
        """Check every path again: this machine's addresses or routes may have changed."""
        self.paths.network_changed(now)

    def on_too_large(self, remote: Address, max_datagram_bytes: int) -> None:
        """Note that this machine cannot send larger datagrams to an address."""
        self.paths.on_too_large(remote, max_datagram_bytes)

    def open_path(self, remote: Address, now: float) -> Path | None:
        """Open another path to `remote` as the client; None while there are no ids."""
        return self.paths.open(remote, now) if self.confirmed else None

    @property
    def has_heard_peer(self) -> bool:
        """Whether anything authentic has arrived."""
        return self.handshake is None or self.handshake.heard_peer

    def update_keys(self, now: float) -> bool:
        """Start a key update; False when one is under way or the handshake is not confirmed."""
        if self.protection is None or not self.confirmed:
            return False
        started = self.protection.initiate_update(
            now, self.paths.key_keep_s, self.paths.next_numbers
        )
        if started and self.qlog is not None:
            self.qlog.now = now
            self.qlog.keys_updated(self.protection.updates)
        return started

    # --- the application's side -----------------------------------------------------------------

    @property
    def is_delivered(self) -> bool:
        """Whether the peer has all that was written, and no message waits to be sent."""
        return not self.datagrams and self.streams.are_delivered

    @property
    def delivery_progress(self) -> tuple[int, int]:
        """What changes while the peer takes what was written: see `is_delivered`."""
        return self.streams.acked_count, len(self.datagrams)

    def watch_delivery(self) -> None:
        """Ask for one Delivered event: at the next flush after which `is_delivered` holds."""
        self._watches_delivery = True

    # --- frames about the connection itself -----------------------------------------------------

    def encode(self, frame: Frame) -> bytes | None:
        """Write HANDSHAKE_DONE, the only one of these that may have to be sent again."""
        return bytes((frame[1],))

    def on_frame_acked(self, frame: Frame) -> None:
        """Nothing to do."""

    def on_frame_lost(self, frame: Frame) -> None:
        """Send it again."""
        self.control.append(frame)

    def _on_crypto(self, data: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        """Read past a CRYPTO frame: session tickets, which we never asked for (docs/wire/quic.md 1.8)."""
        offset, pos = read_varint(data, pos)
        length, pos = read_varint(data, pos)
        if offset + length > limits.MAX_POST_HANDSHAKE_CRYPTO_BYTES:
            raise TransportError(
                codes.CRYPTO_BUFFER_EXCEEDED, "too much after the handshake", frame
            )
        _, pos = read_bytes(data, pos, length)
        return pos

    def _on_new_token(self, data: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        length, pos = read_varint(data, pos)
        if not self.is_client or not length:
            raise TransportError(codes.PROTOCOL_VIOLATION, "a token out of place", frame)
        _, pos = read_bytes(data, pos, length)
        return pos

    def _on_handshake_done(self, data: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        if not self.is_client:
            raise TransportError(codes.PROTOCOL_VIOLATION, "HANDSHAKE_DONE from a client", frame)
        self._confirm()
        return pos

    def _on_close(self, data: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        code, pos = read_varint(data, pos)
        if frame == codes.CONNECTION_CLOSE:
            _, pos = read_varint(data, pos)
        length, pos = read_varint(data, pos)
        reason, pos = read_bytes(data, pos, length)
        is_application = frame == codes.APPLICATION_CLOSE
        raise ClosedByPeer(CloseReason("peer", code, reason, is_application=is_application))

    HANDLERS: ClassVar[Mapping[int, Handler]] = {
        codes.CRYPTO: _on_crypto,
        codes.NEW_TOKEN: _on_new_token,
        codes.HANDSHAKE_DONE: _on_handshake_done,
        codes.CONNECTION_CLOSE: _on_close,
        codes.APPLICATION_CLOSE: _on_close,
    }
