"""Signed packets: a DNS message that only the holder of a key can have made.

Source: docs/wire/discovery.md 6; BEP 44.
"""

from __future__ import annotations

from typing import Final

import attrs
import dns.message

from dialkey.endpoint import EndpointInfo
from dialkey.errors import InvalidKey
from dialkey.identity import EndpointId, InvalidSignature, SecretKey
from dialkey_pkarr.errors import InvalidPacket, RecordTooLarge
from dialkey_pkarr.limits import (
    HEAD_BYTES,
    MAX_DNS_BYTES,
    MAX_PACKET_BYTES,
    MAX_PAYLOAD_BYTES,
    RECORD_TTL_S,
)
from dialkey_pkarr.records import info_of_message, message_of_info, read_message

__all__ = ["SignedPacket", "Timestamps"]

_MAX_TIMESTAMP: Final = 2**64 - 1


def _signable(timestamp_us: int, message: bytes) -> bytes:
    return b"3:seqi%de1:v%d:" % (timestamp_us, len(message)) + message


@attrs.frozen
class SignedPacket:
    """A DNS message with its signature; every instance that `from_bytes` returns was verified.

    Attributes:
        id: who signed.
        signature: 64 bytes.
        timestamp_us: microseconds since 1970 by the signer's clock; not compared with ours.
        message: the DNS message.
    """

    id: EndpointId
    signature: bytes = attrs.field(repr=False)
    timestamp_us: int
    message: bytes = attrs.field(repr=False)

    @classmethod
    def sign(cls, key: SecretKey, message: bytes, timestamp_us: int) -> SignedPacket:
        """Sign a DNS message.

        Raises:
            RecordTooLarge: it has more than `limits.MAX_DNS_BYTES`.
        """
        if len(message) > MAX_DNS_BYTES:
            raise RecordTooLarge(f"a signed DNS message has at most {MAX_DNS_BYTES} bytes")
        if not 0 <= timestamp_us <= _MAX_TIMESTAMP:
            raise ValueError("a timestamp has 64 bits")
        signature = bytes(key.sign(_signable(timestamp_us, message)))
        return cls(key.id, signature, timestamp_us, message)

    @classmethod
    def of_info(
        cls, key: SecretKey, info: EndpointInfo, timestamp_us: int, ttl_s: int = RECORD_TTL_S
    ) -> SignedPacket:
        """Sign what is to be published of an endpoint.

        Raises:
            RecordTooLarge: it does not fit.
        """
        return cls.sign(key, message_of_info(info, ttl_s), timestamp_us)

    @classmethod
    def from_bytes(cls, data: bytes) -> SignedPacket:
        """Read and verify a whole packet: key, signature, timestamp, DNS message.

        Raises:
            InvalidPacket: its size, key, signature or DNS message is not right.
        """
        _check_size(len(data), MAX_PACKET_BYTES, HEAD_BYTES)
        try:
            id = EndpointId(data[:32])
        except InvalidKey as error:
            raise InvalidPacket(f"the packet's key is not one: {error.message}") from None
        return cls.from_payload(id, data[32:])

    @classmethod
    def from_payload(cls, id: EndpointId, data: bytes) -> SignedPacket:
        """Read and verify a packet without its key: the body of an HTTP request or response.

        Raises:
            InvalidPacket: its size, signature or DNS message is not right.
        """
        _check_size(len(data), MAX_PAYLOAD_BYTES, HEAD_BYTES - 32)
        signature = bytes(data[:64])
        timestamp_us = int.from_bytes(data[64:72], "big")
        message = bytes(data[72:])
        try:
            id.verify(signature, _signable(timestamp_us, message))
        except InvalidSignature as error:
            raise InvalidPacket(f"the packet's signature does not hold: {error.message}") from None
        read_message(message)
        return cls(id, signature, timestamp_us, message)

    def to_bytes(self) -> bytes:
        """Return the whole packet."""
        return bytes(self.id) + self.to_payload()

    def to_payload(self) -> bytes:
        """Return the packet without its key."""
        return self.signature + self.timestamp_us.to_bytes(8, "big") + self.message

    def is_newer_than(self, other: SignedPacket) -> bool:
        """Return whether this one replaces another: the later wins; at one time, the larger message."""
        return (self.timestamp_us, self.message) > (other.timestamp_us, other.message)

    def dns_message(self) -> dns.message.Message:
        """Return the DNS message with its answers, one RRset for each record.

        Raises:
            InvalidPacket: it is malformed; never for a packet that was read.
        """
        return read_message(self.message)

    def info(self) -> EndpointInfo:
        """Return what it says of its endpoint.

        Raises:
            InvalidPacket: its records are not those of an endpoint.
        """
        return info_of_message(self.id, self.dns_message())


def _check_size(size: int, most: int, least: int) -> None:
    if not least <= size <= most:
        raise InvalidPacket(f"a signed packet has {least} to {most} bytes, not {size}")


class Timestamps:
    """A signer's clock, which never returns the same time twice and never goes back."""

    def __init__(self) -> None:
        self._last = 0

    def next(self, now_s: float) -> int:
        """Return the microseconds of the next packet.

        Args:
            now_s: seconds since 1970.
        """
        self._last = max(int(now_s * 1_000_000), self._last + 1)
        return self._last
