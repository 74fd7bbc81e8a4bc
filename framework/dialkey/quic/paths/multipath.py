"""The multipath extension of QUIC as iroh speaks it: many path ids in one connection.

The client opens paths, either side abandons them. A path id is used once; when one is abandoned both
sides raise the highest id that they allow, so that there is always another (docs/wire/quic.md 3.10).
Which path carries application data each side decides alone: `select`.

What a peer can make us keep is bounded: of all ids that it may use, eight are not over at any time,
and of those that are over only ranges are remembered.

Source: docs/wire/quic.md 3, draft-ietf-quic-multipath.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dialkey.quic import codes, events
from dialkey.quic.codes import TransportError
from dialkey.quic.packets.frames import varint
from dialkey.quic.paths.path import Address, Path, PathCids
from dialkey.quic.paths.recovery import Frame

if TYPE_CHECKING:
    from dialkey.quic.connection import Connection

MAX_CONCURRENT_PATHS: Final = 8
"""Paths that may be open at once: iroh's own number; we announce one less as the highest id."""
MAX_PATH_ID: Final = 0xFFFFFFFF
MAX_DRAINING: Final = 8
"""Abandoned paths whose late packets are still read; a peer that opens and abandons many in a moment
makes the oldest go sooner."""
MAX_DRAIN_S: Final = 10.0
"""Late packets are read for three probe timeouts, but no longer: after darkness those grow long."""
UNANSWERED_S: Final = 60.0
"""How long late packets are read of a path that we abandoned, if the peer does not say that it knows.
Were its connection ids forgotten, a peer that still uses them would be told that all is over
(stateless reset)."""
NO_PATH_GRACE_S: Final = 3.0
"""How long a connection lives on when the peer gave up its last path: the client may open another."""
PATHS_AHEAD: Final = 3
"""Path ids for which connection ids are issued before the paths exist: enough for a peer that opens
several at once, and few enough that a handshake is not mostly about ids."""
FRAMES: Final = frozenset(
    {
        codes.PATH_ABANDON,
        codes.PATH_STATUS_AVAILABLE,
        codes.PATH_STATUS_BACKUP,
        codes.MAX_PATH_ID,
        codes.PATHS_BLOCKED,
        codes.PATH_CIDS_BLOCKED,
    }
)


class IdRanges:
    """A set of numbers kept as ranges: ids of closed paths, whose number grows without end."""

    __slots__ = ("_ranges",)

    def __init__(self) -> None:
        # Oldest first, each [first, one past the last].
        self._ranges: list[list[int]] = []

    def __contains__(self, number: int) -> bool:
        return any(low <= number < high for low, high in self._ranges)

    def __len__(self) -> int:
        """Return how many ranges there are."""
        return len(self._ranges)

    @property
    def largest(self) -> int:
        """The largest number, or -1."""
        return self._ranges[-1][1] - 1 if self._ranges else -1

    def add(self, number: int) -> None:
        """Put a number in."""
        if number in self:
            return
        merged: list[list[int]] = []
        for low, high in sorted([*self._ranges, [number, number + 1]]):
            if merged and merged[-1][1] == low:
                merged[-1][1] = high
            else:
                merged.append([low, high])
        self._ranges = merged


class Multipath:
    """What a connection with the extension knows beside its paths.

    Attributes:
        local_max, peer_max: the highest path id that each side allows.
        next_id: the next id to open; only a client opens.
        abandoned: ids that are over, for late frames about them.
        selected_id: the path that carries data, chosen by the owner; None for the default.
        in_use_id: the path that carried data most recently.
        ends_at: when the connection ends, because no path is left; None while there is one.
    """

    __slots__ = (
        "_blocked_at",
        "abandoned",
        "ends_at",
        "in_use_id",
        "local_max",
        "next_id",
        "peer_max",
        "selected_id",
    )

    def __init__(self, local_max: int, peer_max: int) -> None:
        self.local_max = local_max
        self.peer_max = peer_max
        self.next_id = 1
        self.abandoned = IdRanges()
        self.selected_id: int | None = None
        self.in_use_id = 0
        self.ends_at: float | None = None
        self._blocked_at = -1

    def blocked(self, at: int) -> bool:
        """Note what keeps us from opening a path; False if the peer was told already."""
        told, self._blocked_at = self._blocked_at == at, at
        return not told

    @property
    def usable_max(self) -> int:
        return min(self.local_max, self.peer_max)


def _state(c: Connection, frame: int) -> Multipath:
    if c.multipath is None:
        raise TransportError(codes.PROTOCOL_VIOLATION, "multipath was not negotiated", frame)
    return c.multipath


# --- opening and abandoning ---------------------------------------------------------------------


def issue_cids(c: Connection) -> None:
    """Give the peer connection ids for every path id that both sides allow."""
    state = c.multipath
    assert state is not None
    newest = max(state.abandoned.largest, *c.paths, 0)
    for path_id in range(1, min(state.usable_max, newest + PATHS_AHEAD) + 1):
        if path_id not in c.paths and path_id not in state.abandoned:
            cids = c.cid_sets.get(path_id)
            if cids is None:
                cids = c.cid_sets[path_id] = PathCids(path_id)
            c.issue_cids(cids, 1)


def open_path(c: Connection, remote: Address, now: float) -> Path | None:
    """Open another path to `remote` as the client; None while there are no ids.

    The path is validated by a challenge; `PathValidated` tells when it can carry data. The id of an
    attempt that was given up is used before a new one.
    """
    state = c.multipath
    if state is None or not c.is_client or not c.confirmed:
        return None
    for path in c.paths.values():
        if path.parked:
            path.unpark(remote, now)
            c.events.append(events.PathAdded(path.id, remote))
            return path
    path_id = state.next_id
    if path_id > state.usable_max:
        if state.blocked(state.peer_max):
            c.control.append((codes.PATHS_BLOCKED, state.peer_max))
        return None
    cids = c.cid_sets.get(path_id)
    if cids is None or cids.peer.active is None:
        if state.blocked(path_id):
            c.control.append((codes.PATH_CIDS_BLOCKED, path_id))
        return None
    state.next_id = path_id + 1
    path = c.new_path(cids, remote, validated=False)
    add_path(c, path, now)
    return path


def give_up(c: Connection, path: Path, now: float) -> None:
    """Abandon a path that answers nothing; if it never did, its id stays for the next one.

    iroh does not replace the id of a path that it never heard of (docs/wire/quic.md 3.10): an attempt
    that used one up would be one of seven.
    """
    if path.validated or path.received.largest >= 0:
        abandon(c, path, codes.PATH_UNSTABLE_OR_POOR, now)
    elif not path.abandoned:
        path.park()


def add_path(c: Connection, path: Path, now: float) -> None:
    """Take a path that was opened, by us or by the peer, into the connection."""
    path.available = False
    path.last_received = now
    path.last_activity = now
    path.start_challenge(now, deadline=float("inf"))
    c.paths[path.id] = path
    c.issue_cids(path.cids)
    issue_cids(c)
    c.events.append(events.PathAdded(path.id, path.remote))
    c.publish_reset_token(path.cids)


def abandon(c: Connection, path: Path, error_code: int, now: float) -> bool:
    """Stop using a path; False if no other is left, or it is the last one that works."""
    others = [p for p in c.paths.values() if p is not path and not p.abandoned and not p.parked]
    if path.abandoned or not others:
        return False
    if path.validated and not any(p.validated and not p.suspect for p in others):
        return False
    # The peer answers with an abandon of its own; if that is lost the path goes all the same.
    drain_s = 3 * max(path.recovery.pto, c.config.initial_rtt_s)
    _retire(c, path, now + min(drain_s, MAX_DRAIN_S))
    c.control.append((codes.PATH_ABANDON, path.id, error_code))
    return True


def _retire(c: Connection, path: Path, forget_at: float) -> None:
    state = c.multipath
    assert state is not None
    path.abandoned = True
    path.parked = False
    path.forget_at = forget_at
    state.abandoned.add(path.id)
    path.challenge = None
    path.probes_pending = 0
    path.ping_pending = False
    path.recovery.discard()
    if state.selected_id == path.id:
        state.selected_id = None
    c.events.append(events.PathAbandoned(path.id, path.remote))
    draining = [p for p in c.paths.values() if p.abandoned]
    while len(draining) > MAX_DRAINING:
        oldest = min(draining, key=lambda p: p.forget_at or 0.0)
        draining.remove(oldest)
        forget(c, oldest)


def _raise_max(c: Connection) -> None:
    state = c.multipath
    assert state is not None
    if state.local_max < MAX_PATH_ID:
        state.local_max += 1
        c.owe((codes.MAX_PATH_ID,))
        issue_cids(c)


def forget(c: Connection, path: Path) -> None:
    """Drop what is left of an abandoned path."""
    if c.paths.pop(path.id, None) is None:
        return
    c.lost_packets_before += path.recovery.lost_packets
    c.sent_packets_before += path.recovery.sent_packets
    _forget_cids(c, path.id)
    _replace(c, path)


def _replace(c: Connection, path: Path) -> None:
    """Allow the peer another path for one that is over, once."""
    if not path.replaced:
        path.replaced = True
        _raise_max(c)


def _forget_cids(c: Connection, path_id: int) -> None:
    cids = c.cid_sets.pop(path_id, None)
    if cids is not None:
        cids.peer.active = None
        c.publish_reset_token(cids)
        for local in cids.local:
            c.cids.pop(local.cid, None)
            c.events.append(events.CidRetired(local.cid))


def on_timer(c: Connection, path: Path, now: float) -> None:
    """Forget a path that has drained; suspect, then abandon one that is silent."""
    at = path.suspect_at
    if at is not None and not path.doubted and now >= path.doubt_at:
        path.doubted = True
        if not path.recovery.pto_count:
            # One lost packet must not cost a path.
            path.probes_pending = max(path.probes_pending, 1)
    if at is not None and now >= at:
        path.suspect = True
        c.events.append(events.PathSuspected(path.id))
        _leave_suspects(c)
    if path.forget_at is not None:
        if now >= path.forget_at:
            if path.replaced:
                forget(c, path)
            else:
                # The peer's own abandon is late, or was lost. There is to be another path already.
                _replace(c, path)
                path.forget_at = now + UNANSWERED_S
        return
    if path.parked:
        return
    if now >= path.last_received + _idle_period(path):
        give_up(c, path, now)
        path.last_received = now


def timer(path: Path) -> float:
    """Return when `on_timer` is due for a path."""
    if path.forget_at is not None:
        return path.forget_at
    if path.parked:
        return float("inf")
    at = path.last_received + _idle_period(path)
    suspect_at = path.suspect_at
    if suspect_at is None:
        return at
    return min(at, suspect_at if path.doubted else path.doubt_at)


def answered(c: Connection, path: Path, now: float) -> None:
    """Note that what was sent on a path was acknowledged: only that proves that it carries.

    iroh acknowledges on another path, so nothing else may ever arrive on this one.
    """
    path.waiting_since = None
    path.doubted = False
    path.last_received = now
    if path.suspect:
        path.suspect = False
        c.events.append(events.PathRecovered(path.id))


def _idle_period(path: Path) -> float:
    return max(path.idle_timeout_s, 3 * path.recovery.pto)


# --- choosing ------------------------------------------------------------------------------------


def select(c: Connection, path_id: int) -> None:
    """Send application data on this path from now on, and tell the peer."""
    state = c.multipath
    if state is None or path_id not in c.paths:
        return
    state.selected_id = path_id
    for path in c.paths.values():
        available = path.id == path_id
        if path.abandoned or (path.available == available and path.status_sequence):
            continue
        path.available = available
        path.status_sequence += 1
        kind = codes.PATH_STATUS_AVAILABLE if available else codes.PATH_STATUS_BACKUP
        c.control.append((kind, path, path.status_sequence))


def use(c: Connection, path: Path) -> None:
    """Note which path carries data from now on, no matter who decided it."""
    state = c.multipath
    assert state is not None
    if state.in_use_id != path.id:
        state.in_use_id = path.id
        _leave_suspects(c)


def _leave_suspects(c: Connection) -> None:
    """Send what is on its way on a suspect path again on the one in use, and keep asking there."""
    selected = c.selected_path
    for path in c.paths.values():
        if path.suspect and path is not selected and not path.abandoned:
            path.recovery.discard()
            path.ping_pending = True


# --- frames --------------------------------------------------------------------------------------


def encode(c: Connection, frame: Frame) -> bytes | None:
    """Write a frame of the extension; None when it has no use any more."""
    kind = frame[0]
    head = varint(kind)
    state = c.multipath
    if state is None:
        return None
    if kind == codes.PATH_ABANDON:
        return head + varint(frame[1]) + varint(frame[2])
    if kind == codes.MAX_PATH_ID:
        return head + varint(state.local_max)
    if kind == codes.PATHS_BLOCKED:
        return head + varint(frame[1])
    if kind == codes.PATH_CIDS_BLOCKED:
        return head + varint(frame[1]) + varint(0)
    path, sequence = frame[1], frame[2]
    if path.abandoned or sequence != path.status_sequence:
        return None
    return head + varint(path.id) + varint(sequence)


def find_cids(c: Connection, path_id: int, frame: int) -> PathCids | None:
    """Return the connection ids of a path id that a frame names; None if the path is over."""
    state = _state(c, frame)
    if path_id > state.local_max:
        raise TransportError(codes.PROTOCOL_VIOLATION, "a path id beyond the limit", frame)
    if path_id in state.abandoned:
        return None
    cids = c.cid_sets.get(path_id)
    if cids is None:
        cids = c.cid_sets[path_id] = PathCids(path_id)
    return cids


def path_for_ack(c: Connection, path_id: int, frame: int) -> Path | None:
    """Return the path that an acknowledgement names; None if it is over."""
    state = _state(c, frame)
    path = c.paths.get(path_id)
    if path is None and path_id not in state.abandoned:
        raise TransportError(codes.PROTOCOL_VIOLATION, "a path never used was acknowledged", frame)
    return path


def on_abandon(c: Connection, path_id: int, error_code: int, now: float) -> None:
    """Take the peer's PATH_ABANDON in: echo it, allow another path, let the path drain."""
    state = _state(c, codes.PATH_ABANDON)
    if path_id > state.local_max:
        raise TransportError(
            codes.PROTOCOL_VIOLATION, "a path id beyond the limit", codes.PATH_ABANDON
        )
    path = c.paths.get(path_id)
    if path is None:
        if path_id in state.abandoned:
            return
        # Its challenge never got here. The id is used up all the same: let there be another.
        state.abandoned.add(path_id)
        state.next_id = max(state.next_id, path_id + 1)
        _forget_cids(c, path_id)
        c.owe((codes.PATH_ABANDON, path_id, error_code))
        _raise_max(c)
        return
    if path.peer_abandoned:
        return
    path.peer_abandoned = True
    drained_at = now + min(3 * path.recovery.pto, MAX_DRAIN_S)
    if path.abandoned:
        path.forget_at = drained_at
    else:
        _retire(c, path, drained_at)
        c.owe((codes.PATH_ABANDON, path_id, error_code))
        if state.ends_at is None and not has_open_path(c):
            state.ends_at = now + NO_PATH_GRACE_S
    _replace(c, path)


def has_open_path(c: Connection) -> bool:
    """Whether data can be sent anywhere."""
    return any(p.validated and not p.abandoned for p in c.paths.values())


def is_stranded(c: Connection, now: float) -> bool:
    """Whether the peer gave up the last path and no other was opened in time."""
    state = c.multipath
    assert state is not None
    if state.ends_at is None or now < state.ends_at:
        return False
    state.ends_at = None
    return not has_open_path(c)


def on_status(c: Connection, path_id: int, sequence: int, available: bool) -> None:
    """Take a PATH_STATUS frame in: whether the peer means to send data on a path. Only a hint."""
    # It may be here before the first packet of its path.
    cids = find_cids(c, path_id, codes.PATH_STATUS_AVAILABLE)
    if cids is not None and sequence > cids.peer_status_sequence:
        cids.peer_status_sequence = sequence
        cids.peer_available = available


def on_max_path_id(c: Connection, value: int) -> None:
    """Take MAX_PATH_ID in."""
    state = _state(c, codes.MAX_PATH_ID)
    if value > state.peer_max:
        state.peer_max = value
        issue_cids(c)
        c.events.append(events.PathsAvailable())


def on_blocked(c: Connection, path_id: int) -> None:
    """Check PATHS_BLOCKED; the limit rises by itself when a path ends."""
    if path_id > _state(c, codes.PATHS_BLOCKED).local_max:
        raise TransportError(
            codes.PROTOCOL_VIOLATION, "a path id beyond the limit", codes.PATHS_BLOCKED
        )


def on_cids_blocked(c: Connection, path_id: int, sequence: int) -> None:
    """Take PATH_CIDS_BLOCKED in: issue a connection id, if none was for this path."""
    frame = codes.PATH_CIDS_BLOCKED
    cids = find_cids(c, path_id, frame)
    if cids is None:
        return
    if sequence > cids.next_sequence:
        raise TransportError(codes.PROTOCOL_VIOLATION, "an id never issued was awaited", frame)
    if not cids.next_sequence and path_id <= _state(c, frame).usable_max:
        c.issue_cids(cids, 1)


# --- timers --------------------------------------------------------------------------------------


def next_timer(c: Connection) -> float:
    """Return when `on_timers` is due."""
    at = float("inf")
    if c.multipath is not None and c.multipath.ends_at is not None:
        at = c.multipath.ends_at
    for path in c.paths.values():
        if path.ack_at is not None and path.ack_at < at:
            at = path.ack_at
        other = path.recovery.timer()
        if other is not None and other < at:
            at = other
        if not path.abandoned:
            other = path.ping_at(c.config.keep_alive_s)
            if other < at:
                at = other
        if path.challenge is not None:
            at = min(at, path.challenge.deadline)
            if path.cids.peer.active is not None:
                at = min(at, path.challenge.next_at)
        if c.multipath is not None:
            at = min(at, timer(path))
    return at


def on_timers(c: Connection, now: float) -> None:
    """Do what is due on all paths."""
    for path in list(c.paths.values()):
        _on_path_timer(c, path, now)
        if c.multipath is not None:
            on_timer(c, path, now)


def _on_path_timer(c: Connection, path: Path, now: float) -> None:
    at = path.recovery.timer()
    if at is not None and now >= at:
        probes = path.recovery.on_timeout(now)
        if c.qlog is not None:
            c.qlog.metrics(path)
        path.probes_pending = max(path.probes_pending, probes)
    if not path.abandoned and now >= path.ping_at(c.config.keep_alive_s):
        asks = now >= path.last_activity + c.config.keep_alive_s or _expects_data(c)
        path.is_receiving = False
        if asks:
            path.ping_pending = True
            path.last_activity = now
    if path.abandoned and path.ack_at is not None and not has_open_path(c):
        # Nothing is left on which to acknowledge it.
        path.ack_at = None
    challenge = path.challenge
    if challenge is not None and now >= challenge.deadline:
        path.challenge = None
        if path.previous_remote is not None:
            # Nobody answers at the new address: go back to the one that was good.
            path.return_to_previous()


def _expects_data(c: Connection) -> bool:
    """Whether a stream is open on which the peer may send."""
    return any(half.final_size is None for half in c.recv_halves.values())
