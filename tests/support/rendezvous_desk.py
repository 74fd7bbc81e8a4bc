"""A rendezvous desk with callers in one process, without a network."""

from __future__ import annotations

import random

from dialkey_rendezvous.desk import Caller, Desk, Seat
from dialkey_rendezvous.exchange import Event, Offering, Taking

TICKET = "blobticketofsomebody"


class Table:
    """A desk, and what each seat was sent."""

    def __init__(self, *, seed: int = 1, max_offers: int = 2048) -> None:
        self.rng = random.Random(seed)
        self.desk = Desk(self.rng.randrange, max_offers=max_offers)
        self.now = 0.0
        self.inbox: dict[Seat, bytearray] = {}
        self.left: set[Seat] = set()

    def sit(self, who: int = 0, source: str | None = None, kind: str = "address") -> Seat:
        """Sit down as endpoint number `who`."""
        caller = Caller(
            who.to_bytes(32, "big"),
            f"192.0.2.{who}" if source is None else source,
            kind,  # type: ignore[arg-type]
        )
        seat = self.desk.sit(caller, self.now)
        self.inbox[seat] = bytearray()
        return seat

    def send(self, seat: Seat, data: bytes) -> None:
        try:
            self.desk.receive(seat, data, self.now)
        finally:
            self.settle()

    def wait(self, seconds: float) -> None:
        """Let time pass, deadline by deadline."""
        end = self.now + seconds
        while (due := self.desk.next_time()) is not None and due <= end:
            self.now = max(self.now, due)
            self.desk.tick(self.now)
            self.settle()
        self.now = end

    def leave(self, seat: Seat) -> None:
        self.desk.leave(seat, self.now)
        self.settle()

    def settle(self) -> None:
        while (output := self.desk.poll()) is not None:
            self.inbox[output.seat] += output.data
            if output.is_last:
                self.left.add(output.seat)

    def take_inbox(self, seat: Seat) -> bytes:
        data = bytes(self.inbox[seat])
        self.inbox[seat].clear()
        return data


class Person:
    """One side of an exchange at a table."""

    def __init__(self, table: Table, side: Offering | Taking, seat: Seat) -> None:
        self.table = table
        self.side = side
        self.seat = seat

    def step(self) -> list[Event]:
        """Send what is to be sent, then take in what has come."""
        if data := self.side.bytes_to_send():
            self.table.send(self.seat, data)
        data = self.table.take_inbox(self.seat)
        try:
            return self.side.receive(data) if data else []
        finally:
            if data := self.side.bytes_to_send():
                self.table.send(self.seat, data)


def offerer(
    table: Table,
    who: int = 1,
    *,
    words: tuple[str, ...] = ("amber", "violin"),
    compares: bool = False,
    lifetime_s: int = 600,
    source: str | None = None,
    kind: str = "address",
) -> Person:
    side = Offering(words, lifetime_s=lifetime_s, compares=compares, entropy=table.rng.randbytes)
    return Person(table, side, table.sit(who, source, kind))
