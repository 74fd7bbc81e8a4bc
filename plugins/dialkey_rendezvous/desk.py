"""The server's side: gives out numbers, and brings two callers together once for each. Sans-IO.

A *seat* is one stream: somebody who offers, or somebody who claims. Bytes come in with
`Desk.receive`, and `Desk.poll` returns what is to be sent and who is to leave. Between two seats only the
five frames of an exchange pass, each once and in order, so a desk cannot be used to carry anything else.

A number is burnt when it is claimed. What became of it is remembered for some time, in which it is not
given out again.

Source: docs/wire/rendezvous.md 5.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, Literal

import attrs

from dialkey.errors import LimitExceeded, ProtocolViolation, WireError
from dialkey.shares import Claim as Share
from dialkey.shares import FairShares
from dialkey_rendezvous import frames, limits
from dialkey_rendezvous.allowances import Allowances
from dialkey_rendezvous.frames import Failure, Frame, FrameReader, Reason, encode

__all__ = ["Caller", "Desk", "DeskStats", "Output", "Seat"]

SourceKind = Literal["address", "relay"]


@attrs.frozen
class Caller:
    """Who is counted as one.

    Attributes:
        id: the endpoint id.
        source: the IPv4 address, the IPv6 /64, or the relay that a caller comes through.
        kind: which of them.
    """

    id: bytes
    source: str
    kind: SourceKind = "address"


@attrs.frozen
class Output:
    """What is to be done for a seat.

    Attributes:
        seat: whose.
        data: what is to be sent.
        is_last: whether the seat is to be left then.
    """

    seat: Seat
    data: bytes
    is_last: bool


@attrs.frozen
class DeskStats:
    """What a desk has done.

    Attributes:
        waiting: codes that wait now.
        given: codes that were given out.
        claimed: codes that were claimed.
        delivered: tickets that were handed over.
        burnt: codes that were claimed with wrong words.
        expired: codes for which nobody came in time.
        refused: how often a caller was refused, for each reason.
    """

    waiting: int
    given: int
    claimed: int
    delivered: int
    burnt: int
    expired: int
    refused: dict[str, int]


class Seat:
    """One stream at a desk. Made by `Desk.sit`; shows nothing but what it is."""

    __slots__ = (
        "_caller",
        "_deadline",
        "_is_open",
        "_nameplate",
        "_partner",
        "_reader",
        "_shares",
        "_stage",
    )

    def __init__(self, caller: Caller, deadline: float) -> None:
        self._caller = caller
        self._reader = FrameReader()
        self._deadline = deadline
        self._is_open = True
        self._stage: _Stage = "new"
        self._nameplate = 0
        self._partner: Seat | None = None
        self._shares: tuple[Share, ...] = ()

    def __repr__(self) -> str:
        return f"<Seat {self._stage} {self._nameplate or ''} {self._caller.source}>"


_Stage = Literal["new", "waiting", "offering", "claiming"]

_ORDER: Final[tuple[tuple[_Stage, type[Frame]], ...]] = (
    ("offering", frames.Answer),
    ("claiming", frames.TakerConfirms),
    ("offering", frames.OffererConfirms),
    ("offering", frames.SealedTicket),
    ("claiming", frames.Taken),
)
"""Who says what in an exchange."""

SPARE_TIMERS: Final = 64
"""Outdated timers that are kept, beside four for each seat, before they are thrown away."""

_DIGITS: Final = ((1, 10), (10, 100), (100, 1000), (1000, 10_000), (10_000, 100_000))


class Desk:
    """A rendezvous server without its network.

    Args:
        choose: gives a number below its argument, as `secrets.randbelow`.
        max_offers: codes that wait at a time.
    """

    def __init__(
        self, choose: Callable[[int], int], *, max_offers: int = limits.MAX_OFFERS
    ) -> None:
        self._choose = choose
        self._waiting: dict[int, Seat] = {}
        self._steps: dict[Seat, int] = {}
        # In the order in which they are forgotten.
        self._over: dict[int, tuple[Reason, float]] = {}
        self._outputs: deque[Output] = deque()
        self._timers: list[tuple[float, int, Seat]] = []
        self._numbers = itertools.count()
        self._counts: Counter[str] = Counter()
        self._open = 0
        self._now = 0.0
        self._by_id: FairShares[bytes] = FairShares(max_offers, limits.MAX_OFFERS_PER_ID)
        self._by_source: FairShares[str] = FairShares(max_offers)
        self._offers = Allowances()
        self._claims = Allowances()

    # --- the interface of the shell ---------------------------------------------------------------

    def sit(self, caller: Caller, now: float) -> Seat:
        """Take in a stream that somebody opened."""
        self._now = now
        self._open += 1
        seat = Seat(caller, now)
        self._set_deadline(seat, now + limits.FIRST_FRAME_S)
        return seat

    def receive(self, seat: Seat, data: bytes, now: float) -> None:
        """Take in bytes that came from a seat.

        Raises:
            WireError, LimitExceeded, ProtocolViolation: they break the rules; the seat is left.
        """
        self._now = now
        if not seat._is_open:
            return
        try:
            for frame in seat._reader.feed(data):
                if seat._is_open:
                    self._on_frame(seat, frame)
        except (WireError, LimitExceeded, ProtocolViolation):
            self.leave(seat, now)
            raise

    def leave(self, seat: Seat, now: float) -> None:
        """A seat's stream is over. Idempotent."""
        self._now = now
        if seat._is_open:
            self._part(seat, Reason.WITHDRAWN)

    def tick(self, now: float) -> None:
        """End what is over time."""
        self._now = now
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)
            if not _is_due(timer):
                continue
            seat = timer[2]
            if seat._stage == "waiting":
                self._counts["expired"] += 1
                self._refuse(seat, Reason.EXPIRED)
            elif seat._stage == "new":
                self._end(seat, b"")
            else:
                self._end(seat, encode(frames.Gone()))

    def next_time(self) -> float | None:
        """Return when `tick` is due, or None."""
        while self._timers:
            if _is_due(self._timers[0]):
                return self._timers[0][0]
            heapq.heappop(self._timers)
        return None

    def poll(self) -> Output | None:
        """Return what is to be done next, or None."""
        return self._outputs.popleft() if self._outputs else None

    def stats(self) -> DeskStats:
        """Return what happened so far."""
        refused = {
            reason.name.lower(): self._counts[f"refused {reason.name}"]
            for reason in Reason
            if self._counts[f"refused {reason.name}"]
        }
        counts = self._counts
        return DeskStats(
            waiting=len(self._waiting),
            given=counts["given"],
            claimed=counts["claimed"],
            delivered=counts["delivered"],
            burnt=counts["burnt"],
            expired=counts["expired"],
            refused=refused,
        )

    # --- frames -----------------------------------------------------------------------------------

    def _on_frame(self, seat: Seat, frame: Frame) -> None:
        match seat._stage, frame:
            case "new", frames.Offer(lifetime_s):
                self._offer(seat, lifetime_s)
            case "new", frames.Claim(nameplate, message):
                self._claim(seat, nameplate, message)
            case (("offering" | "claiming"), _):
                self._exchange(seat, frame)
            case _:
                raise _unexpected(frame)

    def _offer(self, seat: Seat, lifetime_s: int) -> None:
        caller = seat._caller
        missing_s = self._ask(self._offers, caller, _OFFER_RATES)
        if missing_s:
            self._refuse(seat, Reason.TOO_OFTEN, missing_s)
            return
        most = (
            limits.MAX_OFFERS_PER_ADDRESS
            if caller.kind == "address"
            else limits.MAX_OFFERS_PER_RELAY
        )

        def give_way() -> None:
            self._refuse(seat, Reason.BUSY)

        by_id = self._by_id.claim(caller.id, give_way)
        by_source = self._by_source.claim(caller.source, give_way)
        seat._shares = by_id, by_source
        # First the source: of all ids together there are never more, so that nobody gives way by id.
        if (
            self._by_source.held_by(caller.source) >= most
            or self._by_id.held_by(caller.id) >= limits.MAX_OFFERS_PER_ID
            or not by_source.take(1)
            or not by_id.take(1)
        ):
            self._refuse(seat, Reason.BUSY)
            return
        lifetime_s = max(1, min(lifetime_s, limits.LIFETIME_S))
        seat._nameplate = self._choose_nameplate()
        seat._stage = "waiting"
        self._waiting[seat._nameplate] = seat
        self._counts["given"] += 1
        self._set_deadline(seat, self._now + lifetime_s)
        self._send(seat, frames.Allocated(seat._nameplate, lifetime_s))

    def _claim(self, seat: Seat, nameplate: int, message: bytes) -> None:
        # Even a claim that leads to nothing tells something of what is there.
        missing_s = self._ask(self._claims, seat._caller, _CLAIM_RATES)
        if missing_s:
            self._refuse(seat, Reason.TOO_OFTEN, missing_s)
            return
        offerer = self._waiting.pop(nameplate, None)
        if offerer is None:
            self._forget_old()
            reason, _ = self._over.get(nameplate, (Reason.UNKNOWN, 0.0))
            self._refuse(seat, reason)
            return
        # From here on the code is burnt, whatever happens.
        self._remember(nameplate, Reason.USED)
        self._counts["claimed"] += 1
        offerer._stage, seat._stage = "offering", "claiming"
        seat._nameplate = nameplate
        offerer._partner, seat._partner = seat, offerer
        self._steps[offerer] = 0
        for each in (offerer, seat):
            self._set_deadline(each, self._now + limits.EXCHANGE_S)
        self._send(offerer, frames.Claimed(message))

    def _exchange(self, seat: Seat, frame: Frame) -> None:
        partner = seat._partner
        assert partner is not None
        if isinstance(frame, frames.Failed):
            if frame.failure is Failure.WRONG_CODE:
                self._counts["burnt"] += 1
                self._remember(seat._nameplate, Reason.BURNT)
            self._end_both(seat, partner, frame)
            return
        offerer = seat if seat._stage == "offering" else partner
        step = self._steps[offerer]
        if step >= len(_ORDER) or _ORDER[step] != (seat._stage, type(frame)):
            raise _unexpected(frame)
        self._steps[offerer] = step + 1
        if step + 1 < len(_ORDER):
            self._send(partner, frame)
            return
        self._counts["delivered"] += 1
        # Somebody who had the right code was not guessing.
        claimer = seat if seat._stage == "claiming" else partner
        for holder, rate in _rates(claimer._caller, _CLAIM_RATES):
            self._claims.give_back(holder, rate, self._now)
        self._end_both(seat, partner, frame)

    def _end_both(self, seat: Seat, partner: Seat, frame: Frame) -> None:
        seat._partner = partner._partner = None
        self._end(partner, encode(frame))
        self._end(seat, b"")

    # --- numbers ----------------------------------------------------------------------------------

    def _choose_nameplate(self) -> int:
        """Choose one with as few digits as possible, as long as half of those are free."""
        self._forget_old()
        taken = Counter(len(str(each)) for each in (*self._waiting, *self._over))
        for low, high in _DIGITS[:-1]:
            if 2 * (taken[len(str(low))] + 1) <= high - low:
                break
        else:
            low, high = _DIGITS[-1]
        while True:
            nameplate = low + self._choose(high - low)
            if nameplate not in self._waiting and nameplate not in self._over:
                return nameplate

    def _remember(self, nameplate: int, reason: Reason) -> None:
        self._over.pop(nameplate, None)
        self._over[nameplate] = reason, self._now + limits.REMEMBERED_S
        if len(self._over) > limits.MAX_REMEMBERED:
            del self._over[next(iter(self._over))]

    def _forget_old(self) -> None:
        while self._over:
            nameplate = next(iter(self._over))
            if self._over[nameplate][1] > self._now:
                return
            del self._over[nameplate]

    # --- seats ------------------------------------------------------------------------------------

    def _ask(self, allowances: Allowances, caller: Caller, rates: _Rates) -> float:
        """Count a request; return after how many seconds it would be allowed, if it is not."""
        asked = _rates(caller, rates)
        missing_s = max(allowances.missing_s(holder, rate, self._now) for holder, rate in asked)
        if not missing_s:
            for holder, rate in asked:
                allowances.take(holder, rate, self._now)
        return missing_s

    def _set_deadline(self, seat: Seat, deadline: float) -> None:
        seat._deadline = deadline
        if len(self._timers) > 4 * self._open + SPARE_TIMERS:
            self._timers = [each for each in self._timers if _is_due(each)]
            heapq.heapify(self._timers)
        heapq.heappush(self._timers, (deadline, next(self._numbers), seat))

    def _send(self, seat: Seat, frame: Frame) -> None:
        self._outputs.append(Output(seat, encode(frame), is_last=False))

    def _refuse(self, seat: Seat, reason: Reason, wait_s: float = 0.0) -> None:
        self._counts[f"refused {reason.name}"] += 1
        self._end(seat, encode(frames.Refused(reason, min(math.ceil(wait_s), 65_535))), reason)

    def _end(self, seat: Seat, data: bytes, reason: Reason = Reason.EXPIRED) -> None:
        if seat._is_open:
            self._outputs.append(Output(seat, data, is_last=True))
            self._part(seat, reason)

    def _part(self, seat: Seat, reason: Reason) -> None:
        """Give back what a seat has, and tell its partner."""
        seat._is_open = False
        self._open -= 1
        for share in seat._shares:
            share.release()
        if self._waiting.get(seat._nameplate) is seat:
            del self._waiting[seat._nameplate]
            self._remember(seat._nameplate, reason)
        self._steps.pop(seat, None)
        partner, seat._partner = seat._partner, None
        if partner is not None and partner._is_open:
            partner._partner = None
            self._end(partner, encode(frames.Gone()))


_Rates = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]

_OFFER_RATES: Final[_Rates] = (
    limits.OFFERS_PER_ID,
    limits.OFFERS_PER_ADDRESS,
    limits.OFFERS_PER_RELAY,
)
_CLAIM_RATES: Final[_Rates] = (
    limits.CLAIMS_PER_ID,
    limits.CLAIMS_PER_ADDRESS,
    limits.CLAIMS_PER_RELAY,
)


def _rates(caller: Caller, rates: _Rates) -> tuple[tuple[bytes | str, tuple[float, float]], ...]:
    of_id, of_address, of_relay = rates
    of_source = of_address if caller.kind == "address" else of_relay
    return (caller.id, of_id), (caller.source, of_source)


def _is_due(timer: tuple[float, int, Seat]) -> bool:
    deadline, _, seat = timer
    return seat._is_open and seat._deadline == deadline


def _unexpected(frame: Frame) -> ProtocolViolation:
    return ProtocolViolation(f"a frame {type(frame).__name__} was not expected now")
