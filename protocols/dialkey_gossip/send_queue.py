"""What one topic sends to one peer: a bounded queue and the stream that empties it.

Topics have queues of their own so that a peer's stream limit, or its refusal to read one topic, stops
nothing else. A queue never blocks who fills it.

Source: docs/wire/gossip.md 1.2, 1.3 and 5.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from dialkey.errors import DialkeyError
from dialkey.limits import MAX_GOSSIP_QUEUE_BYTES
from dialkey_gossip.framing import frame, frame_header
from dialkey_gossip.ids import TopicId
from dialkey_gossip.messages import Disconnect, Gossip, IHave, Message

if TYPE_CHECKING:
    from dialkey import Connection, SendStream

__all__ = ["NoStreamGranted", "SendQueue"]

PACE_BYTES: Final = MAX_GOSSIP_QUEUE_BYTES // 4
"""Above this, publishers and readers wait a moment for the queue."""

STREAM_TIMEOUT_S: Final = 10.0
"""How long a peer may grant no further stream; those with more than a hundred topics run out."""

_BATCH_BYTES: Final = 64 << 10
_UNCONFIRMED_BYTES: Final = 256 << 10
"""Written bytes after which the peer's acknowledgement is awaited: bounds what QUIC holds for us."""


class NoStreamGranted(Exception):
    """The peer allows no further stream now; it may read all others well."""


class SendQueue:
    """A queue of frames for one peer in one topic.

    Args:
        topic: the topic.
        max_message_bytes: the limit on a frame's body.
    """

    def __init__(self, topic: TopicId, max_message_bytes: int) -> None:
        self.topic = topic
        self.task: asyncio.Task[None] | None = None
        self.queued_bytes = 0
        self.dropped = 0
        self.is_slow = False
        self._max_message_bytes = max_message_bytes
        self._frames: deque[tuple[bytes, bool]] = deque()
        self._connection: Connection | None = None
        self._stream: SendStream | None = None
        self._ended: SendStream | None = None
        self._unconfirmed_bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be written."""
        return not self._frames

    @property
    def is_full(self) -> bool:
        """Whether those who produce messages should wait for this queue."""
        return self.queued_bytes > PACE_BYTES and not self.is_slow

    def put(self, message: Message) -> bool:
        """Queue a message.

        Returns:
            False if the queue is so full that the peer should be given up. Content and announcements
            are dropped and counted before that.
        """
        if self.queued_bytes > MAX_GOSSIP_QUEUE_BYTES:
            if isinstance(message, Gossip | IHave):
                self.dropped += 1
                return True
            if self.queued_bytes > 2 * MAX_GOSSIP_QUEUE_BYTES:
                return False
        data = frame(message, self._max_message_bytes)
        self._frames.append((data, isinstance(message, Disconnect)))
        self.queued_bytes += len(data)
        return True

    def clear(self) -> int:
        """Drop what waits, and say how many messages that were."""
        count = len(self._frames)
        self._frames.clear()
        self.queued_bytes = 0
        return count

    async def flush(self, connection: Connection, stall_timeout_s: float) -> None:
        """Write what waits, over a connection, until nothing does.

        Args:
            connection: where to; the stream that is open goes on if it belongs to it.
            stall_timeout_s: how long the peer may take nothing.

        Raises:
            TimeoutError: the peer takes nothing.
            NoStreamGranted: the peer allows no further stream.
            DialkeyError: the connection or the stream ended. What was being written is lost, and
                the next call opens another stream.
        """
        try:
            while self._frames:
                header = await self._open(connection)
                async with asyncio.timeout(stall_timeout_s):
                    await self._write(header)
        except (TimeoutError, DialkeyError):
            self._connection = self._stream = None
            raise

    async def _open(self, connection: Connection) -> bytes:
        """Have a stream, and give what it begins with if it is new."""
        if self._stream is not None and self._connection is connection:
            return b""
        try:
            async with asyncio.timeout(STREAM_TIMEOUT_S):
                self._stream = await connection.open_uni()
        except TimeoutError:
            raise NoStreamGranted from None
        self._connection = connection
        self._unconfirmed_bytes = 0
        return frame_header(self.topic)

    async def _write(self, header: bytes) -> None:
        stream = self._stream
        assert stream is not None
        data, is_last = self._take_batch()
        # Header and first message leave together: iroh waits for a header without reading anything
        # else meanwhile.
        await stream.write(header + data, finish=is_last)
        self._unconfirmed_bytes += len(data)
        if is_last:
            self._ended = stream
            self._connection = self._stream = None
        elif self._unconfirmed_bytes > _UNCONFIRMED_BYTES:
            await stream.delivered()
            self._unconfirmed_bytes = 0

    async def finish(self) -> None:
        """End the stream and wait until the peer has everything.

        Raises:
            DialkeyError: the connection or the stream ended before.
        """
        stream, self._stream, self._connection = self._stream, None, None
        ended, self._ended = self._ended, None
        if stream is not None:
            await stream.finish()
        for each in (ended, stream):
            if each is not None:
                await each.stopped()

    def _take_batch(self) -> tuple[bytes, bool]:
        """Take frames up to a batch; a goodbye ends it, because the stream ends there."""
        frames: list[bytes] = []
        size = 0
        is_last = False
        while self._frames and size < _BATCH_BYTES and not is_last:
            data, is_last = self._frames.popleft()
            frames.append(data)
            size += len(data)
        self.queued_bytes -= size
        if self.queued_bytes <= PACE_BYTES // 2:
            self.is_slow = False
        return b"".join(frames), is_last
