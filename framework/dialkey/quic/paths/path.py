"""One path of a connection: its addresses, packet numbers, connection ids, recovery and size.

A path id names a path (docs/wire/quic.md 3.3); the address it leads to may change (migration). A
connection without the multipath extension has exactly the path with id 0. What an address *is* is not
known here: any hashable value will do.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Hashable
from functools import partial
from typing import Final

import attrs

from dialkey.quic import codes
from dialkey.quic.codes import TransportError
from dialkey.quic.paths.amplification import Room
from dialkey.quic.paths.congestion import MakeController
from dialkey.quic.paths.mtu import MtuDiscovery
from dialkey.quic.paths.received import ReceivedPackets
from dialkey.quic.paths.recovery import Recovery, Sent
from dialkey.quic.paths.skipped_numbers import Draw, Skips

Address = Hashable

MAX_PEER_CIDS: Final = 8
"""Connection ids of the peer that we hold for one path; announced as active_connection_id_limit."""
MAX_LOCAL_CIDS: Final = 5
"""Connection ids of ours that we issue for one path, if the peer's limit allows: iroh holds five."""
MAX_PENDING_RESPONSES: Final = 32
MAX_PENDING_RETIREMENTS: Final = 100
ACK_EVERY: Final = 2
"""Ack-eliciting packets after which an acknowledgement goes out with the next flush (RFC 9000
section 13.2.2); a flush follows each batch that was read, so under load one covers the batch."""
MAX_OLD_TOKENS: Final = 8
"""Answers to earlier PATH_CHALLENGEs that count, too, after a validation began anew."""

CHALLENGE_STEP_S: Final = 2.0
SUSPECT_AFTER_S: Final = 0.5
"""A path that answers nothing for three round trips, and at least this long, is left for another."""
HUSH_S: Final = 0.5
"""Silence after stream data arrived that makes a client ask whether the path still works."""
PATH_IDLE_TIMEOUT_S: Final = 15.0
"""A silent path is abandoned after this long while there are others; iroh's own number."""


@attrs.frozen
class PeerCid:
    """A connection id that the peer gave us to address it with."""

    sequence: int
    cid: bytes
    reset_token: bytes | None = attrs.field(default=None, repr=False)


class PeerCids:
    """The peer's connection ids for one path: one in use, the others spare."""

    __slots__ = ("_retire_prior_to", "_seen", "active", "retirements", "spare")

    def __init__(self, active: PeerCid | None) -> None:
        self.active = active
        self.spare: list[PeerCid] = []
        self.retirements: deque[int] = deque()
        self._retire_prior_to = 0
        self._seen = {active.sequence} if active is not None else set()

    def add(self, new: PeerCid, retire_prior_to: int) -> bool:
        """Take a NEW_CONNECTION_ID in; return whether the active one changed.

        Raises:
            TransportError: more ids than we allow, or a contradiction.
        """
        if retire_prior_to > new.sequence:
            raise TransportError(codes.PROTOCOL_VIOLATION, "retire_prior_to beyond the sequence")
        held = [self.active, *self.spare] if self.active is not None else self.spare
        for other in held:
            if other.sequence == new.sequence and other.cid != new.cid:
                raise TransportError(codes.PROTOCOL_VIOLATION, "one sequence, two ids")
            if other.cid == new.cid and other.sequence != new.sequence:
                raise TransportError(codes.PROTOCOL_VIOLATION, "one id, two sequences")
        if new.sequence not in self._seen:
            self._seen.add(new.sequence)
            if new.sequence < self._retire_prior_to:
                self._retire(new.sequence)
            elif self.active is None:
                self.active = new
            else:
                self.spare.append(new)
        changed = False
        if retire_prior_to > self._retire_prior_to:
            self._retire_prior_to = retire_prior_to
            self._seen = {s for s in self._seen if s >= retire_prior_to}
            gone = [c for c in self.spare if c.sequence < retire_prior_to]
            self.spare = [c for c in self.spare if c.sequence >= retire_prior_to]
            for cid in gone:
                self._retire(cid.sequence)
            if self.active is not None and self.active.sequence < retire_prior_to:
                changed = self.rotate()
        if len(self.spare) + (self.active is not None) > MAX_PEER_CIDS:
            raise TransportError(codes.CONNECTION_ID_LIMIT_ERROR, "too many connection ids")
        return changed

    def rotate(self) -> bool:
        """Use another id from now on and retire the one in use; False if there is no spare."""
        if not self.spare:
            return False
        if self.active is not None:
            self._retire(self.active.sequence)
        self.active = self.spare.pop(0)
        return True

    def _retire(self, sequence: int) -> None:
        if len(self.retirements) >= MAX_PENDING_RETIREMENTS:
            raise TransportError(codes.CONNECTION_ID_LIMIT_ERROR, "too many retired ids")
        self.retirements.append(sequence)


@attrs.define
class LocalCid:
    """A connection id that we gave the peer."""

    sequence: int
    cid: bytes
    reset_token: bytes = attrs.field(repr=False)


class PathCids:
    """Connection ids of both sides for one path id; they exist before the path does.

    Attributes:
        id: the path id.
        local: ids of ours that the peer may use, oldest first.
        next_sequence: sequence number of the next id of ours.
        peer: ids that the peer gave us.
        published_token: the reset token that the connection's owner was told of.
        peer_available, peer_status_sequence: whether the peer means to send data on the path, as it
            last told us.
    """

    __slots__ = (
        "id",
        "local",
        "next_sequence",
        "peer",
        "peer_available",
        "peer_status_sequence",
        "published_token",
    )

    def __init__(self, path_id: int, peer_cid: PeerCid | None = None) -> None:
        self.id = path_id
        self.local: list[LocalCid] = []
        self.next_sequence = 0
        self.peer = PeerCids(peer_cid)
        self.published_token: bytes | None = None
        self.peer_available = True
        self.peer_status_sequence = 0


@attrs.define
class Challenge:
    """PATH_CHALLENGEs sent to one address and not yet answered."""

    tokens: list[bytes]
    started_at: float
    next_at: float
    deadline: float
    tries: int = 0

    def restart(self, now: float) -> None:
        """Ask again at once, and for as long as at first."""
        self.deadline += now - self.started_at
        self.started_at = self.next_at = now
        self.tries = 0
        del self.tokens[:-MAX_OLD_TOKENS]


class Path:
    """State of one path id.

    Attributes:
        remote: where datagrams of this path go.
        validated: whether `remote` has proved that it receives (RFC 9000 section 8).
        previous_remote: where the path led before a migration, until the new address is validated.
        skips: packet numbers that were left out on purpose.
        room: how much may be sent to `remote` until it is validated; None for a client, which chose it.
        provisional: whether it carries data before that: the first path of a client that was heard
            by several ways, of which one has worked in both directions.
        abandoned: whether nothing is sent on the path any more; what is on its way still arrives.
        forget_at: when an abandoned path may be forgotten.
        parked: whether this is the id of an attempt that was given up, and nothing is sent on it.
        peer_abandoned: whether the peer has told us that it gave the path up.
        replaced: whether the peer may use another path id for this one, which is over.
        waiting_since: when something was sent that must be acknowledged, and nothing was since.
        is_receiving: whether the last thing to happen was that a client received stream data.
        doubted: whether that has lasted half as long, and a probe was sent to make sure.
        suspect: whether that has lasted so long that the path is probably dead.
        idle_timeout_s: how long the path may be silent while there are others.
        available, status_sequence: what we last told the peer of our use of it.
        bytes_sent, bytes_received: what this path carried so far, in whole datagrams.
    """

    __slots__ = (
        "abandoned",
        "ack_at",
        "ack_pending",
        "available",
        "bytes_received",
        "bytes_sent",
        "challenge",
        "cids",
        "doubted",
        "forget_at",
        "id",
        "idle_timeout_s",
        "is_receiving",
        "largest_received_time",
        "last_activity",
        "last_received",
        "mtu",
        "next_number",
        "parked",
        "peer_abandoned",
        "ping_pending",
        "previous_remote",
        "probes_pending",
        "provisional",
        "received",
        "recovery",
        "remote",
        "replaced",
        "responses",
        "room",
        "skips",
        "status_sequence",
        "suspect",
        "validated",
        "waiting_since",
    )

    def __init__(
        self,
        cids: PathCids,
        remote: Address,
        *,
        validated: bool,
        room: Room | None,
        initial_rtt: float,
        max_datagram: int,
        draw: Draw,
        make_controller: MakeController,
        on_acked: Callable[[Path, Sent], None],
        on_lost: Callable[[Path, Sent], None],
    ) -> None:
        self.id = cids.id
        self.cids = cids
        self.remote = remote
        self.previous_remote: Address | None = None
        self.validated = validated
        self.room = room
        self.provisional = False
        self.abandoned = False
        self.forget_at: float | None = None
        self.idle_timeout_s = PATH_IDLE_TIMEOUT_S
        self.available = True
        self.status_sequence = 0
        self.replaced = False
        self.peer_abandoned = False
        self.parked = False
        self.doubted = False
        self.suspect = False
        self.is_receiving = False
        self.waiting_since: float | None = None
        self.last_received = 0.0
        self.mtu = MtuDiscovery(max_datagram)
        self.recovery = Recovery(
            max_datagram=self.mtu.current,
            initial_rtt=initial_rtt,
            make_controller=make_controller,
            on_acked=partial(on_acked, self),
            on_lost=partial(on_lost, self),
        )
        self.received = ReceivedPackets()
        self.largest_received_time = 0.0
        self.ack_pending = 0
        self.ack_at: float | None = None
        self.next_number = 0
        self.skips = Skips(draw)
        # Tokens to return, where to, and how long the payload was that asked for it.
        self.responses: deque[tuple[bytes, Address, int]] = deque()
        self.challenge: Challenge | None = None
        self.probes_pending = 0
        self.ping_pending = False
        self.bytes_received = 0
        self.bytes_sent = 0
        self.last_activity = 0.0

    def begin_run(self) -> int:
        """Return the number of the next packet, with which a run of consecutive ones may begin."""
        self.next_number = self.skips.first_free(self.next_number)
        return self.next_number

    def tolerate_silence(self, period_s: float) -> None:
        """Let the path be silent for this long while there are others."""
        self.idle_timeout_s = period_s

    def start_challenge(self, now: float, deadline: float | None = None) -> None:
        """Begin to validate `remote`, until `deadline` or for three probe timeouts."""
        timeout = 3 * max(self.recovery.pto, 0.3)
        self.challenge = Challenge([], now, now, now + timeout if deadline is None else deadline)

    def new_challenge_token(self, now: float) -> bytes:
        """Return the data of the next PATH_CHALLENGE and schedule the one after it."""
        challenge = self.challenge
        assert challenge is not None
        token = os.urandom(8)
        challenge.tokens.append(token)
        step = min(self.recovery.pto * (1 << challenge.tries), CHALLENGE_STEP_S)
        challenge.tries += 1
        challenge.next_at = now + step
        return token

    @property
    def suspect_at(self) -> float | None:
        """When the path becomes suspect if nothing comes; None while nothing is awaited."""
        if self.waiting_since is None or self.suspect or self.abandoned:
            return None
        if not self.may_carry_data:
            # It never worked: there is nothing to be left.
            return None
        return self.waiting_since + self._patience_s

    @property
    def doubt_at(self) -> float:
        """When to ask again on a path of which an acknowledgement is awaited."""
        assert self.waiting_since is not None
        return self.waiting_since + self._patience_s / 2

    @property
    def _patience_s(self) -> float:
        return max(SUSPECT_AFTER_S, 3 * (self.recovery.srtt + self.recovery.max_ack_delay))

    def ping_at(self, keep_alive_s: float) -> float:
        """Return when to ask whether the path still works.

        A receiver sends nothing that is answered, so it would not notice for long that data stopped
        because the path died; and only a client can open another.
        """
        if self.parked:
            return float("inf")
        hush_s = HUSH_S if self.is_receiving and keep_alive_s > HUSH_S else keep_alive_s
        return self.last_activity + hush_s

    @property
    def may_carry_data(self) -> bool:
        """Whether `remote`, or where the path led before, has proved that it receives, or will soon."""
        return self.validated or self.previous_remote is not None or self.provisional

    def park(self) -> None:
        """Send nothing any more, until the path is led elsewhere. Packet numbers go on, with the keys."""
        self.parked = True
        self.challenge = None
        self.probes_pending = 0
        self.ping_pending = False
        self.waiting_since = None
        self.recovery.discard()

    def unpark(self, remote: Address, now: float) -> None:
        """Lead a parked path to another address."""
        self.parked = False
        self.remote = remote
        self.recovery.pto_count = 0
        self.last_received = self.last_activity = now
        self.start_challenge(now, deadline=float("inf"))

    def ack_is_due(self, now: float) -> bool:
        """Whether what arrived should be acknowledged now."""
        return self.ack_pending >= ACK_EVERY or (self.ack_at is not None and now >= self.ack_at)

    def amplification_room(self) -> int:
        """Return how many bytes may go to an address that is not validated (RFC 9000 section 8.1)."""
        return 1 << 30 if self.room is None else self.room.left

    def count_received(self, remote: Address, size: int) -> None:
        """Count a packet that came from `remote`, which need not be the address in use."""
        self.bytes_received += size
        if self.room is not None and not self.validated and remote == self.remote:
            self.room.heard(size)

    def count_sent(self, size: int) -> None:
        """Count what was sent to the address in use."""
        self.bytes_sent += size
        if self.room is not None and not self.validated:
            self.room.spend(size)

    def doubt(self, room: Room, now: float) -> None:
        """Ask `remote` to prove that it receives, and send little more than data until then."""
        self.room = room
        self.validated = False
        self.provisional = True
        self.start_challenge(now, float("inf"))

    def prove(self) -> None:
        """Note that `remote` receives what is sent there."""
        self.validated = True
        self.provisional = False
        self.previous_remote = None
        self.challenge = None

    def return_to_previous(self) -> None:
        """Go back to the address that was good before a migration."""
        assert self.previous_remote is not None
        self.remote = self.previous_remote
        self.prove()

    def migrate(self, remote: Address, size: int, *, same_host: bool, initial_rtt: float) -> None:
        """Follow the peer to `remote`; it is to be validated before much is sent there.

        Args:
            size: of the packet that came from there.
        """
        # Of answers to an address that is not the path's there is one at most, see `packets.reader`.
        self.responses = deque({each[1]: each for each in self.responses}.values())
        if remote == self.previous_remote:
            self.return_to_previous()
            return
        if self.validated:
            self.previous_remote = self.remote
        self.remote = remote
        self.validated = False
        self.provisional = False
        self.room = Room()
        self.room.heard(size)
        if not same_host:
            # Another network: nothing learnt about the old one holds.
            self.mtu = MtuDiscovery(self.mtu.maximum)
            self.recovery.start_over(self.mtu.current, initial_rtt)
