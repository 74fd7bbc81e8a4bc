"""NAT traversal: both sides probe each other's addresses at the same time, so that NATs let them through.

Each side tells the other where it may be reached: its candidates. Then both send small probes to all of
the other's. The first one to leave a NAT makes it expect answers, and the next one that arrives from
there is let in. All this is arranged over a path that already works, usually through a relay::

    server ── ADD_ADDRESS, REMOVE_ADDRESS ──►  client        its candidates, whenever they change
    client ── REACH_OUT (round n) ──────────►  server        its candidates: a new round begins
    client ── PATH_CHALLENGE ──► each candidate ◄── PATH_CHALLENGE ── server
    client ◄── PATH_RESPONSE                      the client opens a path to where that came from

Only the client begins rounds: when it or the server has a new candidate, and when its owner asks. A round
that begins ends the one before. The server does not open paths; it answers.

A probe is a packet that holds nothing but a PATH_CHALLENGE, sealed with the keys and the next number of
a path that works; nobody but the peer can answer it. To a candidate that is not the peer's it is 36 bytes
of noise.

What strangers can make us do is bounded: the number of candidates, and the probes by what the peer itself
has sent (`limits.PROBE_ROOM_FACTOR`), per target address, and in all (`probing`).

Sources: docs/wire/quic.md 5; n0's protocol, derived from draft-seemann-quic-nat-traversal.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from dialkey import limits
from dialkey.identity import IpAddr
from dialkey.quic import codes, events
from dialkey.quic.codes import TransportError
from dialkey.quic.events import Event
from dialkey.quic.packets.frames import read_bytes, read_varint, varint
from dialkey.quic.paths.path import NEVER, Address
from dialkey.quic.paths.probing import ProbeAllowance, Worth, canonical, worth_of

if TYPE_CHECKING:
    from dialkey.quic.packets.control import ControlFrames
    from dialkey.quic.packets.reader import Arrival, Handler
    from dialkey.quic.paths.recovery import Frame

ATTEMPTS: Final = 9
RETRY_MOST_S: Final = 2.0
"""Probes to one candidate in one round, and the longest time between two: iroh's numbers. The first
gap is a tenth of a path's initial RTT, and from the second on it doubles."""
ROUND_INTERVAL_S: Final = 5.0
"""Between two rounds when neither side has a new candidate: iroh's number."""
NEWS_INTERVAL_S: Final = 0.1
"""Between two rounds in any case: a server that announces its candidates one by one would otherwise end
each round before an answer arrives."""
PROBE_BYTES: Final = 36
"""A probe as UDP payload: header with an 8-byte connection id, 2-byte number, challenge, tag."""
MAX_TOKENS: Final = 2 * limits.MAX_TRAVERSAL_ADDRESSES * ATTEMPTS
"""Probes whose answers still count: those of this round and of the one before, which may be late."""

_V4: Final = frozenset({codes.ADD_ADDRESS_V4, codes.REACH_OUT_V4})


class Traversal:
    """See the module. One per connection; it does nothing until `start` finds both sides willing.

    Attributes:
        is_on: whether both sides speak it.
        round: the number of the latest round.
        probes_sent: how many so far.
        surplus: how many candidates of the peer exceeded the limit.
    """

    def __init__(
        self,
        allowance: ProbeAllowance,
        *,
        is_client: bool,
        initial_rtt_s: float,
        random_bytes: Callable[[int], bytes],
        control: ControlFrames,
        emit: Callable[[Event], None],
    ) -> None:
        self._allowance = allowance
        self._is_client = is_client
        self._base_s = initial_rtt_s / 10
        self._random_bytes = random_bytes
        self._control = control
        self._emit = emit
        self.is_on = False
        self.round = 0
        self.probes_sent = 0
        self.surplus = 0
        self._peer_holds = 0
        # Ours, in order of preference.
        self._local: list[IpAddr] = []
        # Ours that we have announced as a server, by number.
        self._announced: dict[int, IpAddr] = {}
        self._next_sequence = 0
        # The peer's: those that a server announced by number, or those of a client's latest round.
        self._remote: dict[int, IpAddr] = {}
        # Candidates of this round that have not answered, and probes left for each.
        self._attempts: dict[IpAddr, int] = {}
        self._due: deque[IpAddr] = deque()
        # Where the probes of this round and the one before went. Oldest first.
        self._tokens: dict[bytes, IpAddr] = {}
        self._retry_at: float | None = None
        self._ticks = 0
        # When a round is to begin; a client's only.
        self._round_at: float | None = None
        self._round_began: float | None = None
        self._round_local: frozenset[IpAddr] = frozenset()
        self._round_remote: frozenset[IpAddr] = frozenset()

    def start(self, peer_holds: int | None, *, is_multipath: bool) -> None:
        """Note what the peer has announced, when this side has offered NAT traversal."""
        if peer_holds is not None and is_multipath:
            self.is_on = True
            self._peer_holds = min(peer_holds, limits.MAX_TRAVERSAL_ADDRESSES)

    def clear(self) -> None:
        """Stop: the connection is over."""
        self.is_on = False
        self._due.clear()
        self._retry_at = self._round_at = None

    # --- our candidates -------------------------------------------------------------------------

    def set_candidates(self, candidates: Iterable[IpAddr], now: float) -> None:
        """Announce where this side may be reached, the likeliest first.

        A server announces its candidates at once, a client in its next round, which this starts. Those
        beyond the peer's limit are left out.
        """
        if not self.is_on:
            return
        local = list(dict.fromkeys(map(canonical, candidates)))[: self._peer_holds]
        if local == self._local:
            return
        self._local = local
        if self._is_client:
            self.punch(now)
            return
        gone = [sequence for sequence, each in self._announced.items() if each not in local]
        for sequence in gone:
            del self._announced[sequence]
            self._control.append((self, codes.REMOVE_ADDRESS, sequence))
        known = set(self._announced.values())
        for each in local:
            if each not in known:
                self._announced[self._next_sequence] = each
                self._control.append((self, _kind(codes.ADD_ADDRESS_V4, each), self._next_sequence))
                self._next_sequence += 1

    # --- rounds ---------------------------------------------------------------------------------

    def punch(self, now: float) -> None:
        """Ask for a round: at once if either side has a new candidate, otherwise after a while."""
        if not self.is_on or not self._is_client or not self._local:
            return
        at = now
        if self._round_began is not None:
            pause_s = NEWS_INTERVAL_S if self._has_news else ROUND_INTERVAL_S
            at = max(now, self._round_began + pause_s)
        if self._round_at is None or at < self._round_at:
            self._round_at = at

    @property
    def _has_news(self) -> bool:
        return not (
            self._round_local.issuperset(self._local)
            and self._round_remote.issuperset(self._remote.values())
        )

    def _begin_round(self, now: float) -> None:
        self.round += 1
        self._round_at = None
        self._round_began = now
        self._round_local = frozenset(self._local)
        self._round_remote = frozenset(self._remote.values())
        for each in self._local:
            self._control.append((self, _kind(codes.REACH_OUT_V4, each), self.round, each))
        self._restart_probes(now)
        for each in self._round_remote:
            self._probe(each)

    def _restart_probes(self, now: float) -> None:
        self._attempts.clear()
        self._due.clear()
        self._ticks = 0
        self._retry_at = now + self._base_s

    def _probe(self, address: IpAddr) -> None:
        """Probe a candidate now, and again with the next ticks."""
        worth = worth_of(address, self._local)
        if address in self._attempts or worth is Worth.NOTHING:
            return
        attempts = ATTEMPTS
        if worth is Worth.LITTLE:
            little = [each for each in self._attempts if worth_of(each, self._local) is worth]
            if len(little) >= limits.MAX_FOREIGN_PRIVATE_ADDRESSES:
                return
            attempts = limits.FOREIGN_PRIVATE_ATTEMPTS
        self._attempts[address] = attempts
        self._due.append(address)

    # --- timers ---------------------------------------------------------------------------------

    def timer(self) -> float:
        """Return when `on_timer` is due."""
        return min(
            NEVER if self._retry_at is None else self._retry_at,
            NEVER if self._round_at is None else self._round_at,
        )

    def on_timer(self, now: float) -> None:
        """Begin a round, or probe again, if it is time."""
        if self._round_at is not None and now >= self._round_at:
            self._begin_round(now)
        if self._retry_at is None or now < self._retry_at:
            return
        left = [each for each, attempts in self._attempts.items() if attempts > 0]
        if not left:
            self._retry_at = None
            return
        self._due.extend(each for each in left if each not in self._due)
        self._ticks += 1
        self._retry_at = now + min(self._base_s * (1 << self._ticks - 1), RETRY_MOST_S)

    # --- probes out, answers in -----------------------------------------------------------------

    @property
    def has_probes(self) -> bool:
        """Whether probes wait to be sent."""
        return bool(self._due)

    def take_probes(
        self, heard_bytes: int, now: float, *, reached: Collection[Address] = ()
    ) -> list[tuple[IpAddr, bytes]]:
        """Return where probes go now, and the token of each.

        Args:
            heard_bytes: what the peer has sent over this connection so far.
            reached: where paths that work lead: nothing is to be found out there.
        """
        found = []
        room = limits.PROBE_ROOM_FACTOR * heard_bytes - PROBE_BYTES * self.probes_sent
        while self._due:
            address = self._due.popleft()
            attempts = self._attempts.get(address, 0)
            if not attempts or address in reached:
                continue
            # A probe that may not be sent now is not sent later either: probes would only pile up.
            self._attempts[address] = attempts - 1
            if room < PROBE_BYTES or not self._allowance.take(address.ip, now):
                continue
            room -= PROBE_BYTES
            self.probes_sent += 1
            found.append((address, self._new_token(address)))
        return found

    def lets_in(self, remote: Address) -> bool:
        """Whether a server may send its client something from an address that is not its path's."""
        return self.is_on and isinstance(remote, IpAddr)

    def token_for_answer(self, remote: Address) -> bytes | None:
        """Return the token of a challenge that goes out with the answer to a probe, if one should.

        A server that probes its client from an address that it has not announced is behind a NAT with
        another port for each destination: it can be reached there, and only there.
        """
        if not self.is_on or not self._is_client or not isinstance(remote, IpAddr):
            return None
        return self._new_token(canonical(remote))

    def _new_token(self, address: IpAddr) -> bytes:
        token = self._random_bytes(8)
        if len(self._tokens) >= MAX_TOKENS:
            del self._tokens[next(iter(self._tokens))]
        self._tokens[token] = address
        return token

    def on_response(self, token: bytes, remote: Address) -> bool:
        """Process a PATH_RESPONSE; return whether it answers a probe.

        It counts only from the very address that was probed.
        """
        if not isinstance(remote, IpAddr):
            return False
        address = canonical(remote)
        if self._tokens.get(token) != address:
            return False
        self._tokens = {each: to for each, to in self._tokens.items() if to != address}
        if address in self._attempts:
            self._attempts[address] = 0
        self._allowance.answered(address.ip)
        if self._is_client:
            self._emit(events.AddressAnswered(remote))
        return True

    # --- frames out -----------------------------------------------------------------------------

    def encode(self, frame: Frame) -> bytes | None:
        """Write a frame; None if it is out of date."""
        kind, number = frame[1], frame[2]
        if kind == codes.REMOVE_ADDRESS:
            return varint(kind) + varint(number)
        if kind in (codes.ADD_ADDRESS_V4, codes.ADD_ADDRESS_V6):
            address = self._announced.get(number)
        else:
            address = frame[3] if number == self.round else None
        if address is None:
            return None
        return varint(kind) + varint(number) + address.ip.packed + address.port.to_bytes(2, "big")

    def on_frame_acked(self, frame: Frame) -> None:
        """Nothing to do."""

    def on_frame_lost(self, frame: Frame) -> None:
        """Send it again, if it still matters."""
        self._control.append(frame)

    # --- frames in ------------------------------------------------------------------------------

    def _check(self, frame: int, *, to_client: bool) -> None:
        if not self.is_on:
            raise TransportError(
                codes.PROTOCOL_VIOLATION, "NAT traversal was not negotiated", frame
            )
        if to_client is not self._is_client:
            raise TransportError(
                codes.PROTOCOL_VIOLATION, "NAT traversal: a frame of the other role", frame
            )

    def _on_add(self, data: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        self._check(frame, to_client=True)
        sequence, address, pos = _read_address(data, pos, frame)
        if worth_of(address, ()) is Worth.NOTHING and not _is_near(address):
            return pos
        if self._remote.get(sequence) == address:
            return pos
        if sequence not in self._remote and len(self._remote) >= limits.MAX_TRAVERSAL_ADDRESSES:
            self.surplus += 1
            return pos
        self._remote[sequence] = address
        self.punch(arrival.now)
        return pos

    def _on_remove(self, data: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        self._check(frame, to_client=True)
        sequence, pos = read_varint(data, pos)
        address = self._remote.pop(sequence, None)
        if address is not None:
            self._attempts.pop(address, None)
        return pos

    def _on_reach_out(self, data: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        self._check(frame, to_client=False)
        number, address, pos = _read_address(data, pos, frame)
        if number > self.round:
            self.round = number
            self._remote.clear()
            self._restart_probes(arrival.now)
        elif number < self.round:
            return pos
        if address in self._remote.values():
            return pos
        if len(self._remote) >= limits.MAX_TRAVERSAL_ADDRESSES:
            raise TransportError(codes.PROTOCOL_VIOLATION, "NAT traversal: too many", frame)
        self._remote[len(self._remote)] = address
        self._probe(address)
        return pos

    HANDLERS: ClassVar[Mapping[int, Handler]] = {
        codes.ADD_ADDRESS_V4: _on_add,
        codes.ADD_ADDRESS_V6: _on_add,
        codes.REMOVE_ADDRESS: _on_remove,
        codes.REACH_OUT_V4: _on_reach_out,
        codes.REACH_OUT_V6: _on_reach_out,
    }


def _kind(v4: int, address: IpAddr) -> int:
    """Return the type of a frame: the one for IPv6 follows the one for IPv4."""
    return v4 if address.ip.version == 4 else v4 + 1


def _is_near(address: IpAddr) -> bool:
    """Whether what to do with it depends on our own current candidates."""
    return bool(address.port) and (address.ip.is_loopback or address.ip.is_link_local)


def _read_address(data: bytes, pos: int, frame: int) -> tuple[int, IpAddr, int]:
    """Read what ADD_ADDRESS and REACH_OUT hold: a number, an IP address and a port."""
    number, pos = read_varint(data, pos)
    packed, pos = read_bytes(data, pos, 4 if frame in _V4 else 16)
    port, pos = read_bytes(data, pos, 2)
    ip = ipaddress.ip_address(packed)
    return number, canonical(IpAddr(ip, int.from_bytes(port, "big"))), pos
