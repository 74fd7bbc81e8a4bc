"""Where a server answers before it knows which route to the client works in both directions.

A client sends its first flight over every address that it knows (docs/wire/quic.md 6.2). The copy
that arrives first may have come over a route that does not lead back: a firewall on the client's side may
let UDP out and nothing in. So the server answers over every route on which it heard the client, within
the amplification limit of each, until a Handshake packet shows which of them carried the answer.
(iroh answers over the first one only, so such a client never reaches it directly.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from dialkey.quic.paths.amplification import Room
from dialkey.quic.paths.path import Address

MAX_ROUTES: Final = 4
"""How many routes of one client are answered: some addresses and a relay."""
MAX_FLIGHT_DATAGRAMS: Final = 8
"""Datagrams of the server's first flight kept for a route that turns up later; it has two or three."""


class Routes:
    """The routes on which a client was heard during its handshake."""

    __slots__ = ("_flight", "_fresh", "_room")

    def __init__(self, first: Address) -> None:
        self._room: dict[Address, Room] = {first: Room()}
        self._fresh: list[Address] = []
        self._flight: list[bytes] = []

    def heard(self, remote: Address, size: int) -> bool:
        """Note a datagram of the client; False if there are too many routes already."""
        if remote not in self._room:
            if len(self._room) >= MAX_ROUTES:
                return False
            self._room[remote] = Room()
            self._fresh.append(remote)
        self._room[remote].heard(size)
        return True

    def rooms(self) -> Mapping[Address, Room]:
        """Return all routes, the oldest first, and how much may be sent over each."""
        return self._room

    def send(self, datagrams: list[bytes], emit: Callable[[Address, bytes], None]) -> None:
        """Send new datagrams over all routes, and earlier ones over those that are new."""
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
