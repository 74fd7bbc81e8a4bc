"""What one handshake may cost us before its peer has proved anything: packets, frames, TLS bytes.

Everybody knows the Initial keys, so a stranger decides how much work this is. Work is counted in units of
about equal cost, not measured by a clock: the same datagrams always end the same way.
"""

from __future__ import annotations

from typing import Final

from aioquic.quic.connection import QuicConnectionError

from dialkey import limits
from dialkey.quic import codes
from dialkey.quic.codes import TransportError
from dialkey.quic.packets.frames import read_varint

UNITS_PER_PACKET: Final = 8
"""Opening and inspecting a packet costs about as much as eight small frames."""


class HandshakeWork:
    """Counts the packets and frames of one handshake against a limit."""

    __slots__ = ("_left",)

    def __init__(self, *, is_client: bool) -> None:
        self._left = (
            limits.MAX_DIAL_HANDSHAKE_WORK if is_client else limits.MAX_INCOMING_HANDSHAKE_WORK
        )

    def charge(self, payload: bytes) -> None:
        """Count a packet that was opened, before its frames are looked at.

        Raises:
            QuicConnectionError: the handshake has cost too much.
        """
        self._left -= UNITS_PER_PACKET
        if self._left >= 0:
            self._left -= _count_frames(payload, self._left)
        if self._left < 0:
            raise QuicConnectionError(
                codes.PROTOCOL_VIOLATION, codes.PADDING, "the handshake takes too many packets"
            )


def check_crypto(offset: int, length: int) -> None:
    """Check where a CRYPTO frame ends, whether what lies before it has arrived or not.

    Raises:
        QuicConnectionError: it lies beyond what is buffered for one encryption level.
    """
    if offset + length > limits.MAX_HANDSHAKE_CRYPTO_BYTES:
        raise QuicConnectionError(
            codes.CRYPTO_BUFFER_EXCEEDED, codes.CRYPTO, "too many bytes of TLS"
        )


def check_gaps(pieces: int) -> None:
    """Check in how many pieces TLS bytes wait for what lies before them.

    Raises:
        QuicConnectionError: nobody sends them in so many.
    """
    if pieces > limits.MAX_HANDSHAKE_CRYPTO_PIECES:
        raise QuicConnectionError(
            codes.CRYPTO_BUFFER_EXCEEDED, codes.CRYPTO, "too many pieces of TLS"
        )


def check_message(announced_bytes: int) -> None:
    """Check the length in the head of a TLS message.

    Raises:
        QuicConnectionError: no message of a peer is that long.
    """
    if announced_bytes > limits.MAX_TLS_MESSAGE_BYTES:
        raise QuicConnectionError(
            codes.CRYPTO_BUFFER_EXCEEDED, codes.CRYPTO, "a TLS message is too long"
        )


def _count_frames(payload: bytes, most: int) -> int:
    """Return how many frames, and ranges in ACK frames, a payload holds; stops beyond `most`.

    Malformed input ends the count: whoever reads the frames next refuses it.
    """
    count = pos = 0
    end = len(payload)
    try:
        while pos < end and count <= most:
            frame = payload[pos]
            pos += 1
            if frame == codes.PADDING:
                pos = end - len(payload[pos:].lstrip(b"\0"))
            elif frame == codes.CRYPTO:
                _, pos = read_varint(payload, pos)
                length, pos = read_varint(payload, pos)
                pos += length
            elif frame in (codes.ACK, codes.ACK_ECN):
                for _ in range(2):
                    _, pos = read_varint(payload, pos)
                ranges, pos = read_varint(payload, pos)
                count += ranges
                if count > most:
                    break
                for _ in range(1 + 2 * ranges + (3 if frame == codes.ACK_ECN else 0)):
                    _, pos = read_varint(payload, pos)
            elif frame != codes.PING:
                # A CONNECTION_CLOSE, or a frame that does not belong here: nothing after it is read.
                count += 1
                break
            count += 1
    except TransportError:
        pass
    return count
