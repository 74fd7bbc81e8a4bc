"""How a connection ends: why it is over, what the peer is told, and when its state is freed.

CLOSING and DRAINING last three probe timeouts (RFC 9000 section 10, docs/wire/quic.md 3.15).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dialkey.quic.events import CloseReason
from dialkey.quic.paths.amplification import Room
from dialkey.quic.paths.path import Address

LINGER_PTOS: Final = 3


class ClosedByPeer(Exception):
    """The peer's CONNECTION_CLOSE was read; nothing behind it is."""

    def __init__(self, reason: CloseReason) -> None:
        super().__init__(reason)
        self.reason = reason


class Closing:
    """Why a connection ended, and until when late packets are answered.

    Attributes:
        reason: why it is over; None while it is not.
        gone_at: when late packets no longer need an answer.
    """

    __slots__ = ("farewell", "gone_at", "reason")

    def __init__(self) -> None:
        self.reason: CloseReason | None = None
        self.gone_at: float | None = None
        self.farewell = Farewell()

    def begin(self, reason: CloseReason) -> None:
        """Note why the connection is over."""
        self.reason = reason

    def linger(self, now: float, pto: float) -> None:
        """Answer late packets for a while, from `now` on."""
        self.gone_at = now + LINGER_PTOS * pto

    def over(self) -> None:
        """Stop answering late packets."""
        self.gone_at = None
        self.farewell.forget()


class Farewell:
    """Datagrams with CONNECTION_CLOSE, each for one address, sent at growing distances.

    Source: RFC 9000 section 10.2.1.
    """

    __slots__ = ("_asked", "_datagrams", "_next_at")

    def __init__(self) -> None:
        self._datagrams: list[tuple[Address, bytes, Room | None]] = []
        self._asked = 1
        self._next_at = 1

    def add(self, remote: Address, datagram: bytes, room: Room | None) -> None:
        """Prepare a datagram.

        Args:
            room: how much may go to `remote`; None if it has proved that it receives.
        """
        self._datagrams.append((remote, datagram, room))

    def heard(self, remote: Address, size: int) -> None:
        """Note that the peer still sends."""
        self._asked += 1
        for room in {id(r): r for other, _, r in self._datagrams if r and other == remote}.values():
            room.heard(size)

    def send(self, emit: Callable[[Address, bytes], None]) -> bool:
        """Say it at first, then for the 1st, 2nd, 4th, 8th … packet that still arrives.

        Returns:
            Whether it was time to.
        """
        if self._asked < self._next_at:
            return False
        self._next_at *= 2
        for remote, datagram, room in self._datagrams:
            if room is None or room.take(len(datagram)):
                emit(remote, datagram)
        return True

    def forget(self) -> None:
        """Say nothing any more."""
        self._datagrams.clear()
