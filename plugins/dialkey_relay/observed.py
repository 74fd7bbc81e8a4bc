"""QUIC address discovery: telling a client which address its packets come from. The encoding alone.

One transport parameter says who sends and who receives reports, one frame for each family carries
them. A report holds a sequence number, so that one that was overtaken is not believed.

Source: docs/wire/relay.md 4.10; docs/wire/quic.md 4.
"""

from __future__ import annotations

import ipaddress
from enum import IntEnum
from typing import Final

import attrs

from dialkey_relay.errors import RelayWireError

__all__ = [
    "ALPN",
    "CLOSE_CODE",
    "CLOSE_REASON",
    "FRAME_IPV4",
    "FRAME_IPV6",
    "PARAMETER",
    "Observed",
    "Role",
    "decode_role",
    "encode_role_parameter",
    "find_role",
]

ALPN: Final = "/iroh-qad/0"
PARAMETER: Final = 0x9F81A176
FRAME_IPV4: Final = 0x9F81A6
FRAME_IPV6: Final = 0x9F81A7
CLOSE_CODE: Final = 1
CLOSE_REASON: Final = "finished"

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Role(IntEnum):
    """What a side does with reports."""

    SENDS = 0
    RECEIVES = 1
    BOTH = 2


def _varint(value: int) -> bytes:
    for length, prefix in ((1, 0), (2, 1), (4, 2), (8, 3)):
        if value < 1 << (8 * length - 2):
            return (value | prefix << (8 * length - 2)).to_bytes(length, "big")
    raise ValueError("a QUIC varint holds up to 2**62 - 1")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    if at >= len(data):
        raise RelayWireError("the data ends where a number was expected")
    length = 1 << (data[at] >> 6)
    if at + length > len(data):
        raise RelayWireError("the data ends inside a number")
    value = int.from_bytes(data[at : at + length], "big") & ((1 << (8 * length - 2)) - 1)
    return value, at + length


def encode_role_parameter(role: Role) -> bytes:
    """Encode the transport parameter: id, length and value."""
    value = _varint(role)
    return _varint(PARAMETER) + _varint(len(value)) + value


def decode_role(value: bytes) -> Role:
    """Decode the value of the transport parameter.

    Raises:
        RelayWireError: it is not a collection.
    """
    number, end = _read_varint(value, 0)
    if end != len(value) or number > Role.BOTH:
        raise RelayWireError("the address discovery parameter is malformed")
    return Role(number)


def find_role(parameters: bytes) -> Role | None:
    """Find a peer's role in its encoded transport parameters; None where it has none.

    Raises:
        RelayWireError: the parameters are malformed, or this one comes twice.
    """
    role: Role | None = None
    at = 0
    while at < len(parameters):
        parameter, at = _read_varint(parameters, at)
        length, at = _read_varint(parameters, at)
        if at + length > len(parameters):
            raise RelayWireError("the data ends inside a transport parameter")
        if parameter == PARAMETER:
            if role is not None:
                raise RelayWireError("the address discovery parameter comes twice")
            role = decode_role(parameters[at : at + length])
        at += length
    return role


@attrs.frozen
class Observed:
    """A report.

    Attributes:
        sequence: rises from report to report of a connection.
        ip: the address; one of IPv4 written as IPv6 becomes plain IPv4.
        port: the UDP port.
    """

    sequence: int
    ip: IpAddress
    port: int

    @classmethod
    def of(cls, sequence: int, host: str, port: int) -> Observed:
        """Report what a socket says of a datagram's origin."""
        return cls(sequence, _canonical(ipaddress.ip_address(host.partition("%")[0])), port)

    @property
    def frame_type(self) -> int:
        """The type of the frame that carries it."""
        return FRAME_IPV4 if self.ip.version == 4 else FRAME_IPV6

    def encode_body(self) -> bytes:
        """Encode what follows the type."""
        return _varint(self.sequence) + self.ip.packed + self.port.to_bytes(2, "big")

    def encode(self) -> bytes:
        """Encode the frame."""
        return _varint(self.frame_type) + self.encode_body()

    @classmethod
    def decode(cls, frame: bytes) -> Observed:
        """Decode one whole frame.

        Raises:
            RelayWireError: it is not a collection.
        """
        frame_type, at = _read_varint(frame, 0)
        if frame_type not in (FRAME_IPV4, FRAME_IPV6):
            raise RelayWireError(f"frame type {frame_type:#x} reports no address")
        sequence, at = _read_varint(frame, at)
        size = 4 if frame_type == FRAME_IPV4 else 16
        if len(frame) != at + size + 2:
            raise RelayWireError("a report of an address has the wrong length")
        ip: IpAddress
        if size == 4:
            ip = ipaddress.IPv4Address(frame[at : at + 4])
        else:
            ip = ipaddress.IPv6Address(frame[at : at + 16])
        return cls(sequence, _canonical(ip), int.from_bytes(frame[at + size :], "big"))


def _canonical(ip: IpAddress) -> IpAddress:
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip
