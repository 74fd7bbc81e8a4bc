"""Address discovery between endpoints: each tells the other which address its packets come from.

A report goes out with the first data after the handshake, and with challenges and their answers. Whoever
sends it may lie, or be in the same network; what becomes of it is for the owner to decide.

Source: docs/wire/quic.md 4.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from dialkey.identity import IpAddr
from dialkey.quic import codes, events
from dialkey.quic.codes import TransportError
from dialkey.quic.events import Event
from dialkey.quic.packets.frames import read_bytes, read_varint, varint
from dialkey.quic.paths.path import Address
from dialkey.quic.paths.probing import canonical

if TYPE_CHECKING:
    from dialkey.quic.packets.reader import Arrival, Handler
    from dialkey.quic.paths.recovery import Frame

SENDS: Final = 0
RECEIVES: Final = 1
BOTH: Final = 2


class ObservedAddresses:
    """See the module. One for each connection; it does nothing until `start`.

    Attributes:
        address: what the peer said most recently of where we come from; None before it has.
    """

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._reports = False
        self._listens = False
        self._next_sequence = 0
        self._newest = -1
        self.address: IpAddr | None = None

    def start(self, peer_role: int | None) -> None:
        """Note what the peer has announced; this side does both."""
        self._reports = peer_role in (RECEIVES, BOTH)
        self._listens = peer_role in (SENDS, BOTH)

    def report(self, remote: Address) -> bytes:
        """Return a frame that says where the peer's packets come from; empty if it wants none."""
        if not self._reports or not isinstance(remote, IpAddr):
            return b""
        address = canonical(remote)
        v6 = address.ip.version == 6
        kind = codes.OBSERVED_ADDRESS_V6 if v6 else codes.OBSERVED_ADDRESS_V4
        sequence = varint(self._next_sequence)
        self._next_sequence += 1
        return varint(kind) + sequence + address.ip.packed + address.port.to_bytes(2, "big")

    # --- as a frame of the connection -----------------------------------------------------------

    def encode(self, frame: Frame) -> bytes | None:
        """Write a report that waits for a packet."""
        return self.report(frame[2]) or None

    def on_frame_acked(self, frame: Frame) -> None:
        """Nothing follows from it."""

    def on_frame_lost(self, frame: Frame) -> None:
        """Nothing follows from it: another goes out with the next challenge."""

    def _on_observed(self, data: bytes, pos: int, frame: int, arrival: Arrival) -> int:
        if not self._listens:
            raise TransportError(
                codes.PROTOCOL_VIOLATION, "address discovery was not negotiated", frame
            )
        sequence, pos = read_varint(data, pos)
        packed, pos = read_bytes(data, pos, 4 if frame == codes.OBSERVED_ADDRESS_V4 else 16)
        port, pos = read_bytes(data, pos, 2)
        if sequence <= self._newest:
            return pos
        self._newest = sequence
        address = canonical(IpAddr(ipaddress.ip_address(packed), int.from_bytes(port, "big")))
        if isinstance(arrival.remote, IpAddr) and address != self.address:
            self.address = address
            self._emit(events.AddressObserved(address))
        return pos

    HANDLERS: ClassVar[Mapping[int, Handler]] = {
        codes.OBSERVED_ADDRESS_V4: _on_observed,
        codes.OBSERVED_ADDRESS_V6: _on_observed,
    }
