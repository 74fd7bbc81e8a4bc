"""The paths of a connection: opening, choosing, leaving and forgetting them, and their timers.

The client opens paths, either side abandons them; without the multipath extension there is only path 0.
The rules are in `multipath`, one path is in `path`, connection ids are in `cids`, frames in `frames`.

Source: docs/wire/quic.md 3, draft-ietf-quic-multipath.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView

from dialkey.quic import codes, events
from dialkey.quic.codes import TransportError
from dialkey.quic.config import Config
from dialkey.quic.events import Event
from dialkey.quic.handshake.parameters import TransportParameters
from dialkey.quic.packets.control import ControlFrames
from dialkey.quic.paths.amplification import Room
from dialkey.quic.paths.cids import ConnectionIds, PathCids, PeerCid
from dialkey.quic.paths.frames import PathFrames
from dialkey.quic.paths.mtu import BASE_BYTES
from dialkey.quic.paths.multipath import (
    MAX_CONCURRENT_PATHS,
    MAX_DRAIN_S,
    MAX_DRAINING,
    NO_PATH_GRACE_S,
    PATHS_AHEAD,
    UNANSWERED_S,
    Multipath,
)
from dialkey.quic.paths.observed import ObservedAddresses
from dialkey.quic.paths.path import NEVER, Address, Path
from dialkey.quic.paths.recovery import Frame, Sent
from dialkey.quic.paths.traversal import Traversal
from dialkey.quic.qlog import Trace


class Paths(Mapping[int, Path]):
    """See the module. A mapping from path ids to paths.

    Attributes:
        multipath: what is known beside the paths; None without the extension.
        ids: connection ids of all paths.
        frames: reads and writes frames about paths.
        traversal: finds further addresses of the peer.
        observed: tells each side what the other sees it come from.
        sent_packets_before, lost_packets_before: totals of the paths that are over.
    """

    def __init__(
        self,
        config: Config,
        *,
        is_client: bool,
        host_cid: bytes,
        control: ControlFrames,
        emit: Callable[[Event], None],
        qlog: Trace | None,
    ) -> None:
        self._config = config
        self._is_client = is_client
        self._control = control
        self._emit = emit
        self._qlog = qlog
        self._peer = TransportParameters()
        self._paths: dict[int, Path] = {}
        self.multipath: Multipath | None = None
        self.observed = ObservedAddresses(emit)
        self.traversal = Traversal(
            config.probes,
            is_client=is_client,
            initial_rtt_s=config.initial_rtt_s,
            random_bytes=config.random_bytes,
            control=control,
            emit=emit,
        )
        self.frames = PathFrames(self, emit)
        self.ids = ConnectionIds(
            new_cid=config.new_cid,
            reset_token=config.reset_token,
            host_cid=host_cid,
            owe=self._owe,
            emit=emit,
        )
        self.sent_packets_before = 0
        self.lost_packets_before = 0

    def queue(self, frame: Frame) -> None:
        """Queue a frame of `frames`."""
        self._control.append(frame)

    def _owe(self, kind: int, fields: tuple[object, ...] = ()) -> None:
        self._control.owe((self.frames, kind, *fields))

    # --- the mapping ----------------------------------------------------------------------------

    def __getitem__(self, path_id: int) -> Path:
        return self._paths[path_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, path_id: object) -> bool:
        return path_id in self._paths

    def get(self, path_id: int) -> Path | None:  # type: ignore[override]
        return self._paths.get(path_id)

    def values(self) -> ValuesView[Path]:
        return self._paths.values()

    def items(self) -> ItemsView[int, Path]:
        return self._paths.items()

    # --- the first one --------------------------------------------------------------------------

    def start(
        self,
        peer: TransportParameters,
        peer_cid: bytes,
        remote: Address,
        *,
        initial_rtt: float | None,
        doubtful_room: Room | None,
        now: float,
    ) -> None:
        """Start with path 0, on which the handshake took place.

        Args:
            doubtful_room: how much may be sent to `remote` while it is not fully validated.
        """
        self._peer = peer
        first = PeerCid(0, peer_cid, peer.stateless_reset_token)
        cids = self.ids.start(first, peer.active_connection_id_limit)
        path = self._paths[0] = self.make(cids, remote, validated=True, initial_rtt=initial_rtt)
        if doubtful_room is not None:
            path.doubt(doubtful_room, now)
        path.on_established(now)
        if self._config.multipath and peer.initial_max_path_id is not None:
            self.multipath = Multipath(MAX_CONCURRENT_PATHS - 1, peer.initial_max_path_id)
        if self._config.traversal and self.multipath is not None:
            self.observed.start(peer.address_discovery)
            self._control.append((self.observed, codes.OBSERVED_ADDRESS_V4, remote))
        if self._config.traversal:
            is_multipath = self.multipath is not None
            self.traversal.start(peer.traversal_addresses, is_multipath=is_multipath)

    def issue_ids(self) -> None:
        """Issue connection ids to the peer for path 0, and for the paths that it may open."""
        cids = self.ids.sets[0]
        self.ids.publish_reset_token(cids)
        self.ids.issue(cids)
        if self.multipath is not None:
            self._issue_ahead(self.multipath)

    def make(
        self,
        cids: PathCids,
        remote: Address,
        *,
        validated: bool,
        initial_rtt: float | None = None,
    ) -> Path:
        """Make the state of a path, without adding it."""
        config, peer = self._config, self._peer
        path = Path(
            cids,
            remote,
            validated=validated,
            room=None if self._is_client or validated else Room(),
            initial_rtt=initial_rtt or config.initial_rtt_s,
            max_datagram=min(config.max_datagram, peer.max_udp_payload_size),
            draw=config.draw,
            random_bytes=config.random_bytes,
            make_controller=config.make_controller,
            on_acked=self._on_acked,
            on_lost=self._on_lost,
        )
        path.recovery.max_ack_delay = peer.max_ack_delay_ms / 1000
        return path

    def known(self, cid: bytes) -> Path | None:
        """Return the path of a packet, if there is one already."""
        place = self.ids.by_cid.get(cid)
        return self._paths.get(place[0]) if place is not None else None

    def find(self, cid: bytes, remote: Address) -> Path | None:
        """Return the path of a packet; a client's first one on a new path makes it, see `add`."""
        place = self.ids.by_cid.get(cid)
        if place is None:
            return None
        path = self._paths.get(place[0])
        if path is None and not self._is_client:
            path = self.make(self.ids.sets[place[0]], remote, validated=False)
        return path

    # --- opening and abandoning -----------------------------------------------------------------

    def _issue_ahead(self, state: Multipath) -> None:
        """Issue connection ids to the peer for the path ids that both sides allow."""
        newest = max(state.abandoned.largest, *self._paths, 0)
        for path_id in range(1, min(state.usable_max, newest + PATHS_AHEAD) + 1):
            if path_id not in self._paths and path_id not in state.abandoned:
                self.ids.issue(self.ids.of(path_id), 1)

    def open(self, remote: Address, now: float) -> Path | None:
        """Open another path to `remote` as the client; None while there are no ids.

        The path is validated by a challenge; `PathValidated` reports when it can carry data. The id of
        an attempt that was given up is reused before a new one.
        """
        state = self.multipath
        if state is None or not self._is_client:
            return None
        for path in self._paths.values():
            if path.parked:
                path.unpark(remote, now)
                self._emit(events.PathAdded(path.id, remote))
                return path
        path_id = state.next_id
        if path_id > state.usable_max:
            if state.blocked(state.peer_max):
                self._control.append((self.frames, codes.PATHS_BLOCKED, state.peer_max))
            return None
        cids = self.ids.sets.get(path_id)
        if cids is None or cids.peer.active is None:
            if state.blocked(path_id):
                self._control.append((self.frames, codes.PATH_CIDS_BLOCKED, path_id))
            return None
        state.take_next_id()
        path = self.make(cids, remote, validated=False)
        self.add(path, now)
        return path

    def add(self, path: Path, now: float) -> None:
        """Add a path that was opened, by us or by the peer."""
        assert self.multipath is not None
        path.on_opened(now)
        self._paths[path.id] = path
        self.ids.issue(path.cids)
        self._issue_ahead(self.multipath)
        self._emit(events.PathAdded(path.id, path.remote))
        self.ids.publish_reset_token(path.cids)

    def give_up(self, path: Path, now: float) -> None:
        """Abandon a path that does not answer; if it never did, its id is kept for the next one.

        iroh does not replace the id of a path that it never heard of (docs/wire/quic.md 3.10), so
        each failed attempt would use up one of seven.
        """
        if path.validated or path.received.largest >= 0:
            self.abandon(path, codes.PATH_UNSTABLE_OR_POOR, now)
        elif not path.abandoned:
            path.park()

    def abandon(self, path: Path, error_code: int, now: float) -> bool:
        """Stop using a path; False if no other is left, or it is the last one that works."""
        others = [
            p for p in self._paths.values() if p is not path and not p.abandoned and not p.parked
        ]
        if path.abandoned or not others:
            return False
        if path.validated and not any(p.validated and not p.suspect for p in others):
            return False
        # The peer answers with an abandon of its own; if that is lost, the path goes anyway.
        drain_s = 3 * max(path.recovery.pto, self._config.initial_rtt_s)
        self._retire(path, now + min(drain_s, MAX_DRAIN_S))
        self._control.append((self.frames, codes.PATH_ABANDON, path.id, error_code))
        return True

    def _retire(self, path: Path, forget_at: float) -> None:
        assert self.multipath is not None
        path.retire(forget_at)
        self.multipath.over(path.id)
        self._emit(events.PathAbandoned(path.id, path.remote))
        draining = [p for p in self._paths.values() if p.abandoned]
        while len(draining) > MAX_DRAINING:
            oldest = min(draining, key=lambda p: p.forget_at or 0.0)
            draining.remove(oldest)
            self._forget(oldest)

    def _forget(self, path: Path) -> None:
        """Drop what is left of an abandoned path."""
        if self._paths.pop(path.id, None) is None:
            return
        self.lost_packets_before += path.recovery.lost_packets
        self.sent_packets_before += path.recovery.sent_packets
        self.ids.forget(path.id)
        self._replace(path)

    def _replace(self, path: Path) -> None:
        """Allow the peer another path in place of one that is over, once."""
        if path.replace():
            self._raise_max()

    def _raise_max(self) -> None:
        state = self.multipath
        assert state is not None
        if state.raise_local_max():
            self._owe(codes.MAX_PATH_ID)
            self._issue_ahead(state)

    def clear(self) -> None:
        """Drop everything in flight: the connection is over."""
        for path in self._paths.values():
            path.recovery.forget()
        self.traversal.clear()

    # --- choosing -------------------------------------------------------------------------------

    @property
    def selected(self) -> Path | None:
        """The path that carries application data: the owner's choice, else the best there is."""
        chosen = suspect = unproven = None
        if self.multipath is not None and self.multipath.selected_id is not None:
            chosen = self._paths.get(self.multipath.selected_id)
            if chosen is not None and chosen.validated and not chosen.abandoned:
                return chosen
        for path in self._paths.values():
            if not path.abandoned and not path.parked:
                if not path.validated:
                    # The owner's choice, even while it moves to another address, before any new path.
                    unproven = path if path is chosen else unproven or path
                elif path.suspect:
                    suspect = suspect or path
                else:
                    return path
        return suspect or unproven

    def select(self, path_id: int) -> None:
        """Send application data on this path from now on, and tell the peer."""
        state = self.multipath
        if state is None or path_id not in self._paths:
            return
        state.select(path_id)
        for path in self._paths.values():
            available = path.id == path_id
            sequence = path.set_available(available)
            if sequence is not None:
                kind = codes.PATH_STATUS_AVAILABLE if available else codes.PATH_STATUS_BACKUP
                self._control.append((self.frames, kind, path, sequence))

    def use(self) -> Path | None:
        """Return the path that carries data from now on, whoever chose it."""
        path = self.selected
        if path is None or not path.may_carry_data:
            return None
        if self.multipath is not None and self.multipath.use(path.id):
            self._leave_suspects()
        return path

    def _leave_suspects(self) -> None:
        """Resend what is in flight on a suspect path on the one in use; keep probing the suspect."""
        selected = self.selected
        for path in self._paths.values():
            if path.suspect and path is not selected and not path.abandoned:
                path.recovery.discard()
                path.ask()

    @property
    def for_the_close(self) -> list[Path]:
        """The selected path, and all others that are validated.

        The one that carried data may have just died, and a close is not repeated by itself.
        """
        selected = self.selected
        return [
            path
            for path in self._paths.values()
            if path is selected or (path.validated and not path.abandoned and path.cid is not None)
        ]

    @property
    def for_probes(self) -> Path | None:
        """The path whose packet numbers are used for probes: the first that is validated."""
        proved = (p for p in self._paths.values() if p.validated and not p.abandoned and p.cid)
        return min(proved, key=lambda path: path.id, default=None)

    def has_proved(self, remote: Address) -> bool:
        """Whether a path leads to an address and has been answered from there."""
        return any(p.remote == remote and p.validated for p in self._paths.values())

    @property
    def has_open(self) -> bool:
        """Whether data can be sent anywhere."""
        return any(p.validated and not p.abandoned for p in self._paths.values())

    # --- what the network does ------------------------------------------------------------------

    def network_changed(self, now: float) -> None:
        """Check every path again: this machine's addresses or routes may have changed."""
        for path in self._paths.values():
            if not path.parked and not path.abandoned:
                path.on_network_changed(now)
                # A new connection id, so that observers cannot link the new address with the old one.
                self.ids.rotate(path.cids)

    def on_too_large(self, remote: Address, max_datagram_bytes: int) -> None:
        """Note that this machine cannot send larger datagrams to an address."""
        for path in self._paths.values():
            if path.remote == remote:
                path.on_too_large(max_datagram_bytes + 1)

    def nudge(self, remote: Address, now: float) -> None:
        """Ask anew at once where a path leads that has not answered: now the way is open."""
        for path in self._paths.values():
            if path.remote == remote and path.challenge is not None and not path.abandoned:
                path.challenge.restart(now)

    def follow(self, path: Path, remote: Address, size: int, now: float) -> None:
        """Follow a client that sends from another address (RFC 9000 section 9.3)."""
        previous = path.remote
        host = getattr(previous, "ip", None)
        same_host = host is not None and host == getattr(remote, "ip", None)
        path.migrate(remote, size, same_host=same_host, initial_rtt=self._config.initial_rtt_s)
        self._emit(events.PathMigrated(path.id, previous, remote))
        if path.validated:
            # A forged packet, or a network that was there only briefly, had moved it away.
            self._emit(events.PathValidated(path.id, remote))
        else:
            # A path that was never proved is asked until it is idle for too long; nothing to go back
            # to.
            path.start_challenge(now, None if path.previous_remote is not None else NEVER)
        self.ids.rotate(path.cids)

    # --- acknowledgements -----------------------------------------------------------------------

    def for_ack(self, path_id: int, ranges: list[tuple[int, int]]) -> Path | None:
        """Return the path of which packets are acknowledged; None if it is over.

        Raises:
            TransportError: the peer cannot have got them.
        """
        path = self._paths.get(path_id)
        if path is None:
            if path_id not in self.state_for(codes.PATH_ACK).abandoned:
                raise TransportError(
                    codes.PROTOCOL_VIOLATION, "a path never used was acknowledged", codes.PATH_ACK
                )
            return None
        if ranges[0][1] > path.next_number:
            raise TransportError(codes.PROTOCOL_VIOLATION, "an unsent packet was acknowledged")
        if path.skips.claimed(ranges):
            raise TransportError(
                codes.PROTOCOL_VIOLATION, "a packet was acknowledged whose number was left out"
            )
        return path

    def on_ack(self, path: Path, ranges: list[tuple[int, int]], delay_us: int, now: float) -> None:
        """Process an acknowledgement, see `for_ack`."""
        delay_s = (delay_us >> 3 << self._peer.ack_delay_exponent) / 1e6
        if path.recovery.on_ack(ranges, delay_s, now):
            if path.on_answered(now):
                self._emit(events.PathRecovered(path.id))
            if self._qlog is not None:
                self._qlog.metrics(path)

    def _on_acked(self, path: Path, record: Sent) -> None:
        """Note that a record has arrived."""
        if record.size > BASE_BYTES:
            path.mtu.on_large_acked(record.time)
        if record.owner is not None:
            record.owner.on_run_acked(record)
        elif record.probe_size:
            if path.mtu.on_probe_acked(record.probe_size):
                path.recovery.cc.set_max_datagram(path.mtu.current)
        else:
            for frame in record.frames or ():
                frame[0].on_frame_acked(frame)

    def _on_lost(self, path: Path, record: Sent) -> None:
        """Queue again what a lost record carried, as far as it still matters."""
        if self._qlog is not None:
            self._qlog.packets_lost(path, record)
        if record.probe_size:
            path.mtu.on_probe_lost(record.probe_size)
            return
        if record.size > BASE_BYTES and path.mtu.on_large_lost(record.time):
            path.recovery.cc.set_max_datagram(path.mtu.current)
        if record.owner is not None:
            record.owner.on_run_lost(record)
        else:
            for frame in record.frames or ():
                frame[0].on_frame_lost(frame)

    # --- what the peer says ---------------------------------------------------------------------

    def state_for(self, frame: int) -> Multipath:
        """Return the state of the extension, which a frame is about.

        Raises:
            TransportError: it was not negotiated.
        """
        if self.multipath is None:
            raise TransportError(codes.PROTOCOL_VIOLATION, "multipath was not negotiated", frame)
        return self.multipath

    def cids_for(self, path_id: int, frame: int) -> PathCids | None:
        """Return the connection ids of a path id that a frame names; None if the path is over.

        Raises:
            TransportError: there can be no such path.
        """
        state = self.multipath
        if state is None and path_id in self.ids.sets:
            return self.ids.sets[path_id]
        state = self.state_for(frame)
        if path_id not in self.ids.sets and path_id > state.local_max:
            raise TransportError(codes.PROTOCOL_VIOLATION, "a path id beyond the limit", frame)
        return None if path_id in state.abandoned else self.ids.of(path_id)

    def on_abandon(self, path_id: int, error_code: int, now: float) -> None:
        """Process the peer's PATH_ABANDON: echo it, allow another path, let the path drain."""
        state = self.state_for(codes.PATH_ABANDON)
        if path_id > state.local_max:
            raise TransportError(
                codes.PROTOCOL_VIOLATION, "a path id beyond the limit", codes.PATH_ABANDON
            )
        path = self._paths.get(path_id)
        if path is None:
            if path_id in state.abandoned:
                return
            # Its challenge never got here. The id is used up anyway, so allow another.
            state.over(path_id)
            self.ids.forget(path_id)
            self._owe(codes.PATH_ABANDON, (path_id, error_code))
            self._raise_max()
            return
        if not path.on_peer_abandoned():
            return
        drained_at = now + min(3 * path.recovery.pto, MAX_DRAIN_S)
        if path.abandoned:
            path.forget_later(drained_at)
        else:
            self._retire(path, drained_at)
            self._owe(codes.PATH_ABANDON, (path_id, error_code))
            if not self.has_open:
                state.end_at(now + NO_PATH_GRACE_S)
        self._replace(path)

    def on_max_path_id(self, value: int) -> None:
        """Process MAX_PATH_ID."""
        state = self.state_for(codes.MAX_PATH_ID)
        if state.raise_peer_max(value):
            self._issue_ahead(state)
            self._emit(events.PathsAvailable())

    # --- timers ---------------------------------------------------------------------------------

    def next_timer(self) -> float:
        """Return when `on_timer` is due."""
        at = self.traversal.timer()
        state = self.multipath
        if state is not None and state.ends_at is not None:
            at = state.ends_at
        for path in self._paths.values():
            at = min(at, path.next_timer(self._config.keep_alive_s))
            if state is not None:
                at = min(at, path.silence_timer())
        return at

    def on_timer(self, now: float, expects_data: Callable[[], bool]) -> None:
        """Do what is due.

        Args:
            expects_data: tells whether the peer may send data on a stream.
        """
        self.traversal.on_timer(now)
        for path in list(self._paths.values()):
            has_fired = path.on_timer(now, self._config.keep_alive_s, expects_data)
            if has_fired and self._qlog is not None:
                self._qlog.metrics(path)
            if path.abandoned and path.ack_at is not None and not self.has_open:
                path.never_acknowledge()
            if self.multipath is not None:
                self._on_silence_timer(path, now)

    def _on_silence_timer(self, path: Path, now: float) -> None:
        """Forget a path that has drained; suspect, then abandon one that is silent."""
        if path.on_silence(now):
            self._emit(events.PathSuspected(path.id))
            self._leave_suspects()
        if path.forget_at is not None:
            if now < path.forget_at:
                return
            if path.replaced:
                self._forget(path)
            else:
                # The peer's own abandon is late or was lost. Allow another path now.
                self._replace(path)
                path.forget_later(now + UNANSWERED_S)
        elif not path.parked and now >= path.last_received + path.idle_period_s:
            self.give_up(path, now)
            path.was_idle(now)

    def is_stranded(self, now: float) -> bool:
        """Whether the peer gave up the last path and no other was opened in time."""
        state = self.multipath
        return state is not None and state.is_stranded(now) and not self.has_open

    # --- for the connection ---------------------------------------------------------------------

    def idle_period(self, least_s: float) -> float:
        """Return how long the connection may be silent: at least `least_s`."""
        period = least_s
        for path in self._paths.values():
            # Called for each packet: three probe timeouts matter only on very slow paths.
            if 20 * path.recovery.srtt > period:
                period = max(period, 3 * path.recovery.pto)
        return period

    @property
    def proved_pto_s(self) -> float:
        """The longest probe timeout of a path that was ever answered; otherwise a cautious guess."""
        ptos = (path.recovery.pto for path in self._paths.values() if path.validated)
        return max(ptos, default=0.0) or 3 * self._config.initial_rtt_s

    @property
    def next_numbers(self) -> dict[int, int]:
        """The next packet number of each path."""
        return {path.id: path.next_number for path in self._paths.values()}

    @property
    def key_keep_s(self) -> float:
        """How long keys of an earlier phase stay usable: three times the slowest path's PTO."""
        return 3 * max((p.recovery.pto for p in self._paths.values()), default=1.0)
