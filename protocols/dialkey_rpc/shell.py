"""What both sides of a call do with a QUIC stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from dialkey.errors import DialkeyError
from dialkey_rpc.budget import UNWEIGHED_BYTES, Account, weight_of
from dialkey_rpc.frames import (
    READ_BYTES,
    Frame,
    FrameReader,
    RpcLimits,
    whole_frame,
)
from dialkey_rpc.order import Order
from dialkey_rpc.packing import unpack_frame

if TYPE_CHECKING:
    from dialkey import RecvStream, SendStream

__all__ = ["ITEMS_BETWEEN_TURNS", "FrameSource", "StopWatch", "write_frame"]


ITEMS_BETWEEN_TURNS: Final = 64
"""After this many items an iterator that never waits yields to other tasks; otherwise it would go on
until a megabyte is queued."""


async def write_frame(
    send: SendStream, head: bytes, parts: Sequence[bytes], *, finish: bool = False
) -> None:
    """Write a frame; `parts` are handed on as they are. Waits while the peer is slow."""
    if not parts:
        await send.write(head, finish=finish)
        return
    await send.write(head)
    last = len(parts) - 1
    for number, part in enumerate(parts):
        await send.write(part, finish=finish and number == last)


class FrameSource:
    """Frames from a stream, one by one, in a legal order.

    Args:
        recv: the stream.
        limits: what may come.
        account: charged for what comes.
        order: what may follow what.

    Attributes:
        order: the owner may replace it between frames.
    """

    __slots__ = ("_account", "_frames", "_limits", "_reader", "_recv", "order")

    def __init__(self, recv: RecvStream, limits: RpcLimits, account: Account, order: Order) -> None:
        self._recv = recv
        self._limits = limits
        self._account = account
        # Most calls come in one piece; only for others is a reader made.
        self._reader: FrameReader | None = None
        self._frames: deque[Frame] | None = None
        self.order = order

    async def next(self) -> Frame | None:
        """Return the next frame; None at the end of the stream. Cancellation loses nothing.

        Raises:
            MalformedMessage, MessageTooLarge: what came is not allowed.
            StreamReset: the peer abandoned the stream.
            ConnectionClosed, ConnectionClosedByPeer, ConnectionLost: the connection is over.
        """
        reader, frames = self._reader, self._frames
        if reader is None or frames is None:
            self._account.release()
            data = await self._recv.read(READ_BYTES)
            if not data:
                self.order.end()
                return None
            frame = whole_frame(data, self._limits)
            if frame is not None:
                self.order.frame(frame.kind)
                return frame
            reader = self._reader = FrameReader(self._limits, self._account)
            frames = self._frames = deque(reader.feed(data))
        while not frames:
            # The previous frame has been dealt with.
            self._account.release()
            data = await self._recv.read(reader.read_bytes)
            if not data:
                reader.finish()
                self.order.end()
                return None
            frames.extend(reader.feed(data))
        frame = frames.popleft()
        self.order.frame(frame.kind)
        return frame

    def unpack(self, frame: Frame) -> object:
        """Return what a frame says, and charge for what it unfolded to.

        Raises:
            MalformedMessage: as `packing.unpack`.
            MessageTooLarge: there is no room for it.
        """
        plain = unpack_frame(frame, self._limits.depth)
        size = len(frame.envelope)
        if size > UNWEIGHED_BYTES:
            # Parts are charged as bytes, and stand in the value as they came.
            unfolded = weight_of(plain) - sum(map(len, frame.parts))
            if unfolded > size:
                self._account.charge(unfolded)
                self._account.hand_on(unfolded)
        return plain

    def close(self, code: int) -> None:
        """Stop reading, and tell the peer unless everything has arrived. Idempotent."""
        self._account.close()
        if self._reader is not None:
            self._frames = deque()
        self._recv.stop(code)


class StopWatch:
    """Cancels a task when the peer stops a stream, or is gone.

    It waits for `SendStream.stopped` without a task of its own, which would cost more than a short
    call. The stream cannot be written meanwhile: `pause` first.

    Attributes:
        fired: whether it has cancelled the task.
    """

    __slots__ = ("_send", "_task", "_waiting", "fired")

    def __init__(self, send: SendStream, task: asyncio.Task[Any]) -> None:
        self._send = send
        self._task = task
        self._waiting: Coroutine[Any, Any, int | None] | None = None
        self.fired = False

    def start(self) -> None:
        """Start or resume watching."""
        if not self.fired:
            self._waiting = waiting = self._send.stopped()
            self._step(waiting, None)

    def pause(self) -> None:
        """Do not watch for a while. Idempotent."""
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None

    def _step(self, waiting: Coroutine[Any, Any, int | None], _: object) -> None:
        """Run the coroutine to its next wait, as a task would."""
        if waiting is not self._waiting:
            return  # paused since
        try:
            future = waiting.send(None)
        except StopIteration as stopped:
            self._waiting = None
            if stopped.value is not None:
                self._fire()
        except DialkeyError:
            self._waiting = None
            self._fire()
        else:
            future.add_done_callback(partial(self._step, waiting))

    def _fire(self) -> None:
        self.fired = True
        self._task.cancel()
