"""What a peer sends in one connection: streams, each with the messages of one topic.

Streams are read concurrently, so that none holds up the others. One that makes no sense is read to its
end and ignored: stopping it would make an iroh peer stop sending altogether.

Source: docs/wire/gossip.md 1.2 and 1.3.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Protocol

from dialkey.errors import DialkeyError, WireError
from dialkey.limits import MAX_GOSSIP_BAD_STREAMS
from dialkey_gossip.framing import FrameReader, read_header
from dialkey_gossip.ids import TopicId
from dialkey_gossip.messages import Message, decode

if TYPE_CHECKING:
    from dialkey import Connection, RecvStream

__all__ = ["CLOSE_MALFORMED", "HEADER_TIMEOUT_S", "Incoming", "Listener"]

CLOSE_MALFORMED: Final = 2

HEADER_TIMEOUT_S: Final = 10.0

_READ_BYTES: Final = 16 << 10
"""Read at once; small, so that a busy peer takes turns with the others."""

_MAX_DISCARDED_BYTES: Final = 1 << 20

logger = logging.getLogger("dialkey.gossip")


class Listener(Protocol):
    """Receives what arrives."""

    def wants(self, topic: TopicId) -> bool:
        """Note that something came for a topic; return whether it is of interest."""

    def take(self, topic: TopicId, message: Message) -> None:
        """Take a message of a topic that is of interest."""

    def note_malformed(self) -> None:
        """Count a frame or a stream that cannot be read."""

    def count(self, received_bytes: int) -> None:
        """Count what was read, before it is handled."""

    async def room(self) -> None:
        """Wait while there is no room for what messages make us send."""


class Incoming:
    """The streams of one connection.

    Args:
        connection: closed if too much of what it brings makes no sense.
        max_message_bytes: the limit on a frame's body.
        listener: receives what arrives.
    """

    def __init__(self, connection: Connection, max_message_bytes: int, listener: Listener) -> None:
        self._connection = connection
        self._max_message_bytes = max_message_bytes
        self._listener = listener
        self._bad = 0

    async def read(self) -> None:
        """Read until the connection ends, for whatever reason."""
        name = f"dialkey-gossip-read-{self._connection.remote_id.short()}"
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    stream = await self._connection.accept_uni()
                    group.create_task(self._read(stream), name=name)
        except* DialkeyError as errors:
            # The connection itself knows better why it ended.
            logger.debug("%s ends: %s", name, errors.exceptions[0])

    async def _read(self, stream: RecvStream) -> None:
        frames = FrameReader(self._max_message_bytes)
        try:
            bodies: list[bytes] = []
            async with asyncio.timeout(HEADER_TIMEOUT_S):
                while not bodies:
                    data = await stream.read(_READ_BYTES)
                    if not data:
                        return
                    self._listener.count(len(data))
                    bodies = frames.feed(data)
            topic = read_header(bodies[0])
            del bodies[0]
            while True:
                self._handle(topic, bodies)
                # Let other peers have a turn, and what this one made us send leave first.
                await asyncio.sleep(0)
                await self._listener.room()
                data = await stream.read(_READ_BYTES)
                if not data:
                    frames.end()
                    return
                self._listener.count(len(data))
                bodies = frames.feed(data)
        except TimeoutError:
            self._note_bad("no header came")
        except WireError as error:
            self._note_bad(error)
        except DialkeyError as error:
            logger.debug("a stream ended: %s", error)
            return
        await self._discard(stream)

    def _handle(self, topic: TopicId, bodies: Iterable[bytes]) -> None:
        if not self._listener.wants(topic):
            return
        for body in bodies:
            try:
                message = decode(body)
            except WireError as error:
                # The frames after it are sound; a later release may have more kinds of messages.
                self._note_bad(error)
                continue
            self._listener.take(topic, message)

    def _note_bad(self, reason: object) -> None:
        self._bad += 1
        self._listener.note_malformed()
        logger.debug("malformed data from %s: %s", self._connection.remote_id.short(), reason)
        if self._bad > MAX_GOSSIP_BAD_STREAMS:
            self._close()

    async def _discard(self, stream: RecvStream) -> None:
        discarded = 0
        try:
            while data := await stream.read():
                discarded += len(data)
                if discarded > _MAX_DISCARDED_BYTES:
                    self._close()
                await asyncio.sleep(0)
        except DialkeyError as error:
            logger.debug("a discarded stream ended: %s", error)

    def _close(self) -> None:
        self._connection.close(CLOSE_MALFORMED, b"malformed messages")
