"""Where a server answers before it knows which way to the client works both ways.

A client sends its first flight over every address that it knows (docs/wire/quic.md 6.2). The copy
that arrives first need not have come by a way that also leads back: a firewall on the client's side may
let UDP out and nothing in. So the server answers over every way by which the client was heard, within
the limit against amplification of each, until a Handshake packet shows which of them carried the answer.
(iroh answers only over the first one, and such a client never gets through to it directly.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from dialkey.quic.paths.amplification import Room
from dialkey.quic.paths.path import Address

MAX_ROUTES: Final = 4
"""Ways of one client that are answered: some addresses and a relay."""
MAX_FLIGHT_DATAGRAMS: Final = 8
"""What is kept of the server's first flight, for a way that turns up later; it has two or three."""


class Routes:
    """The ways by which a client was heard during its handshake."""

    __slots__ = ("_flight", "_fresh", "_room")

    def __init__(self, first: Address) -> None:
        self._room: dict[Address, Room] = {first: Room()}
        self._fresh: list[Address] = []
        self._flight: list[bytes] = []

    def heard(self, remote: Address, size: int) -> bool:
        """Note a datagram of the client; False if its way is one too many."""
        if remote not in self._room:
            if len(self._room) >= MAX_ROUTES:
                return False
            self._room[remote] = Room()
            self._fresh.append(remote)
        self._room[remote].heard(size)
        return True

    def rooms(self) -> Mapping[Address, Room]:
        """Return all ways, the oldest first, and how much may go by each."""
        return self._room

    def send(self, datagrams: list[bytes], emit: Callable[[Address, bytes], None]) -> None:
        """Send new datagrams over all ways, and earlier ones over those that are new."""
        for remote in self._fresh:
            for datagram in self._flight:
                self._send_one(remote, datagram, emit)
        self._fresh.clear()
        for datagram in datagrams:
            if len(self._flight) < MAX_FLIGHT_DATAGRAMS:
                self._flight.append(datagram)
            for remote in self._room:
                self._send_one(remote, datagram, emit)

    def _send_one(
        self, remote: Address, datagram: bytes, emit: Callable[[Address, bytes], None]
    ) -> None:
        if self._room[remote].take(len(datagram)):
            emit(remote, datagram)
