"""Application datagrams (RFC 9221): they may be lost, and are never sent again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from dialkey import limits
from dialkey.quic import codes, events
from dialkey.quic.events import Event
from dialkey.quic.packets.control import Payload
from dialkey.quic.packets.frames import read_bytes, read_varint, varint
from dialkey.quic.paths.recovery import Frame

if TYPE_CHECKING:
    from dialkey.quic.packets.reader import Handler


class Datagrams:
    """The datagrams of one connection that wait to be sent.

    Attributes:
        waiting_bytes: their bytes, overhead included.
        dropped: how many were dropped because too many waited.
    """

    __slots__ = ("_emit", "_waiting", "dropped", "waiting_bytes")

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._waiting: deque[bytes] = deque()
        self.waiting_bytes = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def send(self, data: bytes) -> None:
        """Queue a datagram; the oldest is dropped when too many wait."""
        self._waiting.append(data)
        self.waiting_bytes += len(data) + limits.DATAGRAM_OVERHEAD_BYTES
        while self.waiting_bytes > limits.MAX_DATAGRAM_QUEUE_BYTES:
            self._pop()
            self.dropped += 1

    def clear(self) -> None:
        """Forget all that wait."""
        self._waiting.clear()
        self.waiting_bytes = 0

    def write(self, payload: Payload) -> None:
        """Put as many as fit into a packet."""
        while self._waiting:
            data = self._waiting[0]
            head = bytes((codes.DATAGRAM_WITH_LENGTH,)) + varint(len(data))
            if not payload.add(head + data, (self, codes.DATAGRAM)):
                if payload.used:
                    break
                # It fitted when it was queued; the path's MTU has shrunk since.
                self.dropped += 1
            self._pop()

    def _pop(self) -> None:
        self.waiting_bytes -= len(self._waiting.popleft()) + limits.DATAGRAM_OVERHEAD_BYTES

    def encode(self, frame: Frame) -> bytes | None:
        """Never: a datagram is written once."""
        return None

    def on_frame_acked(self, frame: Frame) -> None:
        """Nobody asks."""

    def on_frame_lost(self, frame: Frame) -> None:
        """It is not sent again."""

    def _on_datagram(self, data: bytes, pos: int, frame: int, arrival: object) -> int:
        length = len(data) - pos
        if frame == codes.DATAGRAM_WITH_LENGTH:
            length, pos = read_varint(data, pos)
        payload, pos = read_bytes(data, pos, length)
        self._emit(events.DatagramReceived(payload))
        return pos

    HANDLERS: ClassVar[Mapping[int, Handler]] = {
        codes.DATAGRAM: _on_datagram,
        codes.DATAGRAM_WITH_LENGTH: _on_datagram,
    }
