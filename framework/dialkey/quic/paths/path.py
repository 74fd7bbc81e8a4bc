"""One path of a connection: its addresses, packet numbers, connection ids, recovery and size.

A path id names a path (docs/wire/quic.md 3.3); the address it leads to may change (migration). A
connection without the multipath extension has exactly the path with id 0. What an address *is* is not
known here: any hashable value will do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from functools import partial
from typing import Final

import attrs

from dialkey.quic.paths.amplification import Room
from dialkey.quic.paths.cids import PathCids
from dialkey.quic.paths.congestion import MakeController
from dialkey.quic.paths.mtu import MtuDiscovery
from dialkey.quic.paths.received import ReceivedPackets
from dialkey.quic.paths.recovery import Recovery, Sent
from dialkey.quic.paths.skipped_numbers import Draw, Skips

Address = Hashable
NEVER: Final = float("inf")
MAX_ACK_DELAY_S: Final = 0.025

MAX_PENDING_RESPONSES: Final = 32
ACK_EVERY: Final = 2
"""Ack-eliciting packets after which an acknowledgement goes out with the next flush (RFC 9000
section 13.2.2); a flush follows each batch that was read, so under load one covers the batch."""
MAX_OLD_TOKENS: Final = 8
"""How many earlier PATH_CHALLENGEs may still be answered after a validation was restarted."""

CHALLENGE_STEP_S: Final = 2.0
SUSPECT_AFTER_S: Final = 0.5
"""A path that is silent for three round trips, and at least this long, is left for another."""
HUSH_S: Final = 0.5
"""Silence after stream data arrived that makes a client ask whether the path still works."""
PATH_IDLE_TIMEOUT_S: Final = 15.0
"""A silent path is abandoned after this long while there are others; the same as in iroh."""


@attrs.define
class Challenge:
    """PATH_CHALLENGEs sent to one address and not yet answered."""

    tokens: list[bytes]
    started_at: float
    next_at: float
    deadline: float
    tries: int = 0

    def restart(self, now: float) -> None:
        """Ask again at once, and for as long as the first time."""
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
        skips: packet numbers that are left out on purpose.
        room: how much may be sent to `remote` until it is validated; None for a client, which chose it.
        provisional: whether it carries data before that: the first path of a client that was heard on
            several routes, one of which has worked in both directions.
        abandoned: whether nothing more is sent on the path; what is on its way still arrives.
        forget_at: when an abandoned path may be forgotten.
        parked: whether this is the id of an attempt that was given up, and nothing is sent on it.
        peer_abandoned: whether the peer has told us that it gave the path up.
        replaced: whether the peer may use another path id for this one, which is over.
        waiting_since: when the oldest packet was sent that still waits for any acknowledgement.
        is_receiving: whether this is a client and the most recent thing that happened was that it
            received stream data.
        doubted: whether the wait has lasted half as long, and a probe was sent to make sure.
        suspect: whether the wait has lasted so long that the path is probably dead.
        idle_timeout_s: how long the path may be silent while there are others.
        available, status_sequence: what we last told the peer about our use of it.
        bytes_sent, bytes_received: what this path carried so far, in whole datagrams.
    """

    __slots__ = (
        "_random_bytes",
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
        random_bytes: Callable[[int], bytes],
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
        self._random_bytes = random_bytes
        # Tokens to return, where to, and the size of the payload that asked for it.
        self.responses: deque[tuple[bytes, Address, int]] = deque()
        self.challenge: Challenge | None = None
        self.probes_pending = 0
        self.ping_pending = False
        self.bytes_received = 0
        self.bytes_sent = 0
        self.last_activity = 0.0

    # --- packets in -----------------------------------------------------------------------------

    def on_packet(self, number: int, remote: Address, size: int, now: float) -> bool:
        """Note that a packet arrived; return whether it is the newest."""
        is_newest = number > self.received.largest
        self.received.add(number)
        if is_newest:
            self.largest_received_time = now
        self.count_received(remote, size)
        if self.parked:
            # It answers, after all.
            self.unpark(self.remote, now)
        self.last_received = now
        return is_newest

    def on_run(self, number: int, packets: int, size: int, now: float) -> None:
        """Note that a run arrived; all of it is newer than what had arrived before."""
        self.received.add_run(number, number + packets)
        self.largest_received_time = now
        self.count_received(self.remote, size)
        self.last_received = now

    def owe_acknowledgement(self, packets: int, now: float, *, has_awaited_data: bool) -> None:
        """Note that packets must be acknowledged, soon.

        Args:
            has_awaited_data: whether a client received stream data.
        """
        self.last_activity = now
        if has_awaited_data:
            self.is_receiving = True
        self.ack_pending += packets
        if self.ack_at is None:
            self.ack_at = now + min(MAX_ACK_DELAY_S, max(0.001, self.recovery.srtt / 4))

    def acknowledged(self) -> None:
        """Note that an acknowledgement of everything that arrived goes out."""
        self.ack_pending = 0
        self.ack_at = None

    def postpone_acknowledgement(self) -> None:
        """Wait until more arrives: that makes room for the acknowledgement."""
        self.ack_at = None
        self.ack_pending = 1

    def never_acknowledge(self) -> None:
        """Note that no path is left on which to acknowledge what arrived."""
        self.ack_at = None

    def on_challenge(self, token: bytes, remote: Address, size: int) -> None:
        """Note a PATH_CHALLENGE that is to be answered."""
        if remote != self.remote:
            # Answers to other addresses are outside congestion control: one at a time, or a peer that
            # forges its address could have us flood whoever has it.
            for index, (_, other, _) in enumerate(self.responses):
                if other == remote:
                    self.responses[index] = (token, remote, size)
                    return
        if len(self.responses) < MAX_PENDING_RESPONSES:
            self.responses.append((token, remote, size))

    def on_challenge_answered(self) -> None:
        """Note that the oldest PATH_CHALLENGE was answered."""
        self.responses.popleft()

    def answer_none(self) -> None:
        """Drop the PATH_CHALLENGEs that wait for an answer."""
        self.responses.clear()

    def on_response(self, token: bytes, now: float) -> bool:
        """Note a PATH_RESPONSE; return whether it proves that `remote` receives."""
        if self.challenge is None or token not in self.challenge.tokens:
            return False
        self.prove()
        if self.waiting_since is not None:
            self.waiting_since = now
        return True

    # --- packets out ----------------------------------------------------------------------------

    @property
    def cid(self) -> bytes | None:
        """The connection id by which the peer is addressed; None while it has not issued any."""
        active = self.cids.peer.active
        return active.cid if active is not None else None

    def take_numbers(self, count: int) -> None:
        """Note that this many numbers, from `begin_run` on, are used."""
        self.next_number += count

    def on_sent(self, record: Sent, now: float) -> None:
        """Count a packet that must be acknowledged as in flight."""
        self.recovery.on_sent(record, now)
        if record.probe_size:
            return
        self.last_activity = now
        if self.waiting_since is None:
            self.waiting_since = now

    def on_probe_written(self) -> None:
        """Note that a packet that must be acknowledged is about to leave: it also serves as a probe."""
        self.ping_pending = False
        if self.probes_pending:
            self.probes_pending -= 1

    def on_answered(self, now: float) -> bool:
        """Note that what was sent was acknowledged: only that proves that the path carries.

        iroh acknowledges on another path, so nothing else may ever arrive on this one.

        Returns:
            Whether it had been suspect.
        """
        self.waiting_since = now if self.recovery.eliciting_in_flight else None
        self.doubted = False
        self.last_received = now
        was_suspect, self.suspect = self.suspect, False
        return was_suspect

    def ask(self) -> None:
        """Send something that must be acknowledged, soon."""
        self.ping_pending = True

    # --- timers ---------------------------------------------------------------------------------

    def next_timer(self, keep_alive_s: float) -> float:
        """Return when `on_timer` is due."""
        at = self.recovery.timer() or NEVER
        if self.ack_at is not None and self.ack_at < at:
            at = self.ack_at
        if not self.abandoned:
            at = min(at, self.ping_at(keep_alive_s))
        challenge = self.challenge
        if challenge is not None:
            at = min(at, challenge.deadline)
            if self.cids.peer.active is not None:
                at = min(at, challenge.next_at)
        return at

    def on_timer(self, now: float, keep_alive_s: float, expects_data: Callable[[], bool]) -> bool:
        """Do what is due on this path alone; return whether a loss timer fired."""
        at = self.recovery.timer()
        has_fired = at is not None and now >= at
        if has_fired:
            probes = self.recovery.on_timeout(now)
            # Where nobody has answered yet, the challenge is repeated in its own time; that is enough.
            is_asking = self.challenge is not None and self.previous_remote is None
            if self.validated or not is_asking:
                self.probes_pending = max(self.probes_pending, probes)
        if not self.abandoned and now >= self.ping_at(keep_alive_s):
            asks = now >= self.last_activity + keep_alive_s or expects_data()
            self.is_receiving = False
            if asks:
                self.ask()
                self.last_activity = now
        challenge = self.challenge
        if challenge is not None and now >= challenge.deadline:
            self.challenge = None
            if self.previous_remote is not None:
                # Nobody answers at the new address: go back to the one that was good.
                self.return_to_previous()
        return has_fired

    def silence_timer(self) -> float:
        """Return when `on_silence` is due, while there are other paths."""
        if self.forget_at is not None:
            return self.forget_at
        if self.parked:
            return NEVER
        at = self.last_received + self.idle_period_s
        suspect_at = self.suspect_at
        if suspect_at is None:
            return at
        return min(at, suspect_at if self.doubted else self.doubt_at)

    def on_silence(self, now: float) -> bool:
        """Ask again, then suspect a path whose answer is overdue; return whether it became suspect."""
        at = self.suspect_at
        if at is None:
            return False
        if not self.doubted and now >= self.doubt_at:
            self.doubted = True
            if not self.recovery.pto_count:
                # One lost packet must not cost us the path.
                self.probes_pending = max(self.probes_pending, 1)
        if now < at:
            return False
        self.suspect = True
        return True

    @property
    def idle_period_s(self) -> float:
        """How long it may be silent while there are others."""
        return max(self.idle_timeout_s, 3 * self.recovery.pto)

    def was_idle(self, now: float) -> None:
        """Note that the owner was told; it is told again after another period."""
        self.last_received = now

    # --- the end --------------------------------------------------------------------------------

    def retire(self, forget_at: float) -> None:
        """Stop sending on it; late packets are still read until `forget_at`."""
        self.abandoned = True
        self.parked = False
        self.forget_at = forget_at
        self._silence()
        self.recovery.discard()

    def forget_later(self, at: float) -> None:
        """Read late packets until then."""
        self.forget_at = at

    def replace(self) -> bool:
        """Note that the peer may use another path id instead of this one; False if it already may."""
        replaced, self.replaced = self.replaced, True
        return not replaced

    def on_peer_abandoned(self) -> bool:
        """Note that the peer gave it up; False if it had already said so."""
        known, self.peer_abandoned = self.peer_abandoned, True
        return not known

    def _silence(self) -> None:
        self.challenge = None
        self.probes_pending = 0
        self.ping_pending = False

    # --- the rest -------------------------------------------------------------------------------

    def on_opened(self, now: float) -> None:
        """Begin to validate a path that one side has opened."""
        self.available = False
        self.on_established(now)
        self.start_challenge(now, deadline=NEVER)

    def on_established(self, now: float) -> None:
        """Count silence from now on."""
        self.last_received = self.last_activity = now

    def set_available(self, available: bool) -> int | None:
        """Note how we use it; return the sequence number of the status if the peer is to be told."""
        if self.abandoned or (self.available == available and self.status_sequence):
            return None
        self.available = available
        self.status_sequence += 1
        return self.status_sequence

    def on_network_changed(self, now: float) -> None:
        """Check it again: this machine's addresses or routes may have changed."""
        self.recovery.reset_pto()
        self.ask()
        if self.challenge is not None:
            self.challenge.restart(now)

    def on_too_large(self, size: int) -> None:
        """Note that this machine does not send datagrams of `size` bytes."""
        self.mtu.on_too_large(size)

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
        token = self._random_bytes(8)
        challenge.tokens.append(token)
        step = min(self.recovery.pto * (1 << challenge.tries), CHALLENGE_STEP_S)
        challenge.tries += 1
        challenge.next_at = now + step
        return token

    @property
    def suspect_at(self) -> float | None:
        """When the path becomes suspect if nothing arrives; None while nothing is awaited."""
        if self.waiting_since is None or self.suspect or self.abandoned:
            return None
        if not self.may_carry_data:
            # It never worked, so there is nothing to leave.
            return None
        return self.waiting_since + self._patience_s

    @property
    def doubt_at(self) -> float:
        """When to ask again on a path on which an acknowledgement is awaited."""
        assert self.waiting_since is not None
        return self.waiting_since + self._patience_s / 2

    @property
    def _patience_s(self) -> float:
        return max(SUSPECT_AFTER_S, 3 * (self.recovery.srtt + self.recovery.max_ack_delay))

    def ping_at(self, keep_alive_s: float) -> float:
        """Return when to ask whether the path still works.

        A receiver sends nothing that is answered, so it would notice only late that data stopped because
        the path died; and only a client can open another.
        """
        if self.parked:
            return NEVER
        hush_s = HUSH_S if self.is_receiving and keep_alive_s > HUSH_S else keep_alive_s
        return self.last_activity + hush_s

    @property
    def may_carry_data(self) -> bool:
        """Whether `remote`, or where the path led before, has proved that it receives, or will soon."""
        return self.validated or self.previous_remote is not None or self.provisional

    def park(self) -> None:
        """Send nothing until the path is given another address. Packet numbers go on, with the keys."""
        self.parked = True
        self._silence()
        self.waiting_since = None
        self.recovery.discard()

    def unpark(self, remote: Address, now: float) -> None:
        """Give a parked path another address."""
        self.parked = False
        self.remote = remote
        self.recovery.reset_pto()
        self.on_established(now)
        self.start_challenge(now, deadline=NEVER)

    @property
    def works(self) -> bool:
        """Whether `remote` has answered, and still does."""
        return self.validated and not (self.suspect or self.abandoned)

    @property
    def has_urgent_work(self) -> bool:
        """Whether a flush would send something on it now."""
        return self.ack_pending >= ACK_EVERY or bool(self.responses) or self.challenge is not None

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
        """Ask `remote` to prove that it receives; until then send little more than data."""
        self.room = room
        self.validated = False
        self.provisional = True
        self.start_challenge(now, NEVER)

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
        # There is at most one answer to an address that is not the path's, see `on_challenge`.
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
            # Another network: nothing learnt about the old one applies.
            self.mtu = MtuDiscovery(self.mtu.maximum)
            self.recovery.start_over(self.mtu.current, initial_rtt)
