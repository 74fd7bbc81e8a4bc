"""Whose turn it is to send: streams of one priority take turns, higher priorities go first."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from dialkey.quic import events
from dialkey.quic.streams.halves import Bytes, SendHalf

if TYPE_CHECKING:
    from dialkey.quic.connection import Connection


def next_half(c: Connection) -> SendHalf | None:
    """Return the half whose turn it is and that can send, without removing it from its queue."""
    for priority, queue in c.ready.items():
        while queue:
            half = queue[0]
            if half.wants_to_send and half.priority == priority:
                if (
                    half.reset_pending
                    or half.retransmit
                    or not half.queued
                    or c.data_sent < c.peer_max_data
                ):
                    return half
                queue.popleft()
                half.in_queue = False
                c.waiting_for_data_limit.append(half)
                c.ask_for_data()
                continue
            queue.popleft()
            half.in_queue = False
            c.wake(half)
    if c.ready and not any(c.ready.values()):
        c.ready.clear()
    return None


def rotate(c: Connection, half: SendHalf) -> None:
    """Let the next stream of the same priority have its turn."""
    queue: deque[SendHalf] = c.ready[half.priority]
    if queue and queue[0] is half:
        queue.popleft()
        if half.wants_to_send:
            queue.append(half)
        else:
            half.in_queue = False
            if half.queued and half.reset_code is None:
                c.ask_for_stream_data(half)


def take(c: Connection, half: SendHalf, want: int) -> tuple[int, Bytes, bool]:
    """Take the next piece of a stream: (offset, data, whether it is the last)."""
    if half.retransmit:
        offset, data, fin = half.retransmit.popleft()
        if len(data) > want:
            rest = memoryview(data)[want:]
            half.retransmit.appendleft((offset + want, rest, fin))
            data, fin = memoryview(data)[:want], False
        half.retransmit_bytes -= len(data)
        return offset, data, fin
    offset = half.offset
    data = b""
    if half.queued:
        allowed = min(want, half.limit - offset, c.peer_max_data - c.data_sent)
        data = half.take(allowed)
        half.offset = offset + len(data)
        c.data_sent += len(data)
    fin = half.fin and not half.queued
    if fin:
        half.fin_sent = True
    if half.watched and half.queued <= half.low_water:
        half.watched = False
        c.events.append(events.Writable(half))
    return offset, data, fin
