"""How messages are laid out in a stream.

A unidirectional stream carries one topic in one direction: a header frame with the topic id, then
message frames. A frame is its length as 32 bits big-endian and its body. The limit is on bodies:
writers stay strictly below it, readers accept a body of exactly that size.

Source: docs/wire/gossip.md 1.2 and 1.3.
"""

from __future__ import annotations

from typing import Final

from dialkey.errors import WireError
from dialkey_gossip.ids import TopicId
from dialkey_gossip.messages import Message, encode

__all__ = [
    "ALPN",
    "DEFAULT_MAX_MESSAGE_BYTES",
    "FrameReader",
    "frame",
    "frame_body",
    "frame_header",
    "read_header",
]

ALPN: Final = b"/iroh-gossip/1"

DEFAULT_MAX_MESSAGE_BYTES: Final = 4096
"""iroh's default; all members of a swarm should agree."""

_LENGTH_BYTES: Final = 4


def frame_body(body: bytes, max_message_bytes: int) -> bytes:
    """Put the length before a body.

    Raises:
        ValueError: the body is not below the limit. Callers respect it, because an iroh node that
            gets such a frame stops reading.
    """
    if len(body) >= max_message_bytes:
        raise ValueError(f"a frame of {len(body)} bytes is not below {max_message_bytes}")
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def frame_header(topic: TopicId) -> bytes:
    """Return the first frame of a stream."""
    return frame_body(bytes(topic), DEFAULT_MAX_MESSAGE_BYTES)


def frame(message: Message, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> bytes:
    """Return the frame of one message.

    Raises:
        ValueError: the message is not below the limit.
    """
    return frame_body(encode(message), max_message_bytes)


class FrameReader:
    """Cut a stream into the bodies of its frames.

    Holds at most one incomplete frame besides what was just fed. After an error it stays unusable.

    Args:
        max_message_bytes: the longest body accepted.
    """

    def __init__(self, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> None:
        self._limit = max_message_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream and return the bodies that are complete.

        Raises:
            WireError: a frame declares more than the limit. Bodies before it have been returned.
        """
        buffer = self._buffer
        buffer += data
        bodies: list[bytes] = []
        position = 0
        while len(buffer) - position >= _LENGTH_BYTES:
            start = position + _LENGTH_BYTES
            length = int.from_bytes(buffer[position:start], "big")
            if length > self._limit:
                if bodies:
                    break  # the frames before it are good; the next call raises
                raise WireError(f"a frame of {length} bytes is too large: {self._limit} is allowed")
            if len(buffer) - start < length:
                break
            position = start + length
            bodies.append(bytes(buffer[start:position]))
        del buffer[:position]
        return bodies

    def end(self) -> None:
        """Note that the stream has ended.

        An end within the four bytes of a length counts as a clean one, as in iroh.

        Raises:
            WireError: it ends within a body.
        """
        if len(self._buffer) >= _LENGTH_BYTES:
            raise WireError("the stream ends inside a frame")


def read_header(body: bytes) -> TopicId:
    """Read the body of a stream's first frame; bytes after the topic id are ignored.

    Raises:
        WireError: it is shorter than a topic id.
    """
    if len(body) < 32:
        raise WireError(f"a stream begins with a topic id of 32 bytes, not {len(body)}")
    return TopicId(body[:32])
