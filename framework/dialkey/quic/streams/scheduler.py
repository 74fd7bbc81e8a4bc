"""Whose turn it is to send: streams of one priority take turns, higher priorities go first."""

from __future__ import annotations

from collections import deque

from dialkey.quic.streams.halves import Bytes, SendHalf


class Scheduler:
    """The sending halves that may have something to send, within the peer's limit on all data.

    Attributes:
        sent: bytes that were sent for the first time, on all streams.
        limit: how many the peer allows.
    """

    __slots__ = ("_asked_at", "_ready", "_waiting", "limit", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.limit = 0
        self._ready: dict[int, deque[SendHalf]] = {}
        # Those that the limit blocks.
        self._waiting: list[SendHalf] = []
        self._asked_at = -1

    def __bool__(self) -> bool:
        return bool(self._ready)

    def add(self, half: SendHalf) -> None:
        """Queue a half that may have something to send."""
        if not half.in_queue and half.wants_to_send:
            half.in_queue = True
            queue = self._ready.get(half.priority)
            if queue is None:
                queue = deque()
                # A new mapping: somebody may be iterating over this one.
                ready = {**self._ready, half.priority: queue}
                self._ready = dict(sorted(ready.items(), reverse=True))
            queue.append(half)

    def next(self) -> SendHalf | None:
        """Return the half whose turn it is, if it can send, without removing it from its queue."""
        for priority, queue in self._ready.items():
            while queue:
                half = queue[0]
                if half.wants_to_send and half.priority == priority:
                    if (
                        half.reset_pending
                        or half.retransmit
                        or not half.queued
                        or self.sent < self.limit
                    ):
                        return half
                    queue.popleft()
                    half.in_queue = False
                    self._waiting.append(half)
                    continue
                queue.popleft()
                half.in_queue = False
                self.add(half)
        if self._ready and not any(self._ready.values()):
            self._ready.clear()
        return None

    def rotate(self, half: SendHalf) -> bool:
        """Let the next stream of this priority have its turn; return whether this one left the queue."""
        queue = self._ready[half.priority]
        if not queue or queue[0] is not half:
            return False
        queue.popleft()
        if half.wants_to_send:
            queue.append(half)
            return False
        half.in_queue = False
        return True

    def waiting_bytes(self, half: SendHalf) -> int:
        """Return how many consecutive bytes of a half could be sent now."""
        if half.retransmit:
            return len(half.retransmit[0][1])
        return min(half.queued, half.limit - half.offset, self.limit - self.sent)

    def take(self, half: SendHalf, want: int) -> tuple[int, Bytes, bool]:
        """Take the next piece of a stream: (offset, data, whether it is the last)."""
        if half.retransmit:
            return half.take_again(want)
        before = half.offset
        piece = half.take_next(min(want, self.limit - self.sent))
        self.sent += half.offset - before
        return piece

    # --- the peer's limit -----------------------------------------------------------------------

    def allow(self, limit: int) -> None:
        """Note the peer's limit on all data."""
        if limit > self.limit:
            self.limit = limit
            waiting, self._waiting = self._waiting, []
            for half in waiting:
                self.add(half)

    def must_ask(self) -> bool:
        """Whether to tell the peer that its limit blocks us: once for each limit."""
        if not self._waiting or self._asked_at == self.limit:
            return False
        self._asked_at = self.limit
        return True

    def clear(self) -> None:
        """Forget all of them: the connection is over."""
        self._ready.clear()
        self._waiting.clear()
