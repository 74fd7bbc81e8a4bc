"""The two ends of a stream, for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from dialkey.errors import (
    EndOfStream,
    LimitExceeded,
    LocalError,
    StreamClosed,
    StreamReset,
    StreamStopped,
)
from dialkey.limits import SEND_HIGH_WATER_BYTES
from dialkey.quic.streams.halves import RecvHalf, SendHalf

if TYPE_CHECKING:
    from dialkey.endpoint._connection_driver import ConnectionDriver
    from dialkey.endpoint.connection import Connection

Data = bytes | bytearray | memoryview

DEFAULT_READ_BYTES: Final = 65_536
MAX_CODE: Final = (1 << 62) - 1


class SendStream:
    """The sending end of a stream.

    Use it from one task at a time. A stream that is dropped without `finish` or `reset` ends where it is,
    as in iroh: the peer reads what was written, and then the end. Only if a `write` was interrupted in
    the middle is the stream reset, so that half a message is never taken for a whole one.
    """

    __slots__ = ("__weakref__", "_driver", "_half", "_is_torn")

    def __init__(self, driver: ConnectionDriver, half: SendHalf) -> None:
        self._driver = driver
        self._half = half
        self._is_torn = False

    def __del__(self) -> None:
        half = self._half
        if not half.fin and half.reset_code is None:
            self._driver.dropped_send(half, is_torn=self._is_torn)

    def __repr__(self) -> str:
        return f"<SendStream {self._half.id} of {self._driver!r}>"

    @property
    def stream_id(self) -> int:
        """The stream's QUIC id."""
        return self._half.id

    @property
    def connection(self) -> Connection:
        """The connection that the stream belongs to."""
        return self._driver.connection

    def _check(self) -> None:
        half = self._half
        if half.stopped_code is not None:
            raise StreamStopped(
                f"the peer wants no more of this stream (code {half.stopped_code})",
                error_code=half.stopped_code,
                endpoint_id=self._driver.remote_id,
            )
        if half.reset_code is not None or half.fin:
            what = "reset" if half.reset_code is not None else "finished"
            raise StreamClosed(f"this stream was {what} here and takes no more data")
        self._driver.check_open()

    def _check_taking(self) -> None:
        """Raise if the peer will not accept what was written; the stream may already be finished."""
        half = self._half
        if half.stopped_code is not None or half.reset_code is not None:
            self._check()
        self._driver.check_open()

    async def write(self, data: Data, *, finish: bool = False) -> None:
        """Queue all of `data` for sending; wait while the peer or the network is slower than we are.

        Returns when at most `limits.SEND_HIGH_WATER_BYTES` of the stream wait to be sent, and
        `limits.MAX_SEND_QUEUES_BYTES` of all streams of the connection (a stream with little queued does
        not wait for others). That does not mean that the peer has it; see `stopped`. `bytes` are kept
        by reference, other buffers are copied. When cancelled, a first part of `data` may have been
        queued.

        Args:
            finish: end the stream after `data`, in the same packet if it fits.

        Raises:
            StreamStopped: the peer called `stop`.
            StreamClosed: the stream was finished or reset here.
            Busy: another task is writing.
            ConnectionClosed, ConnectionClosedByPeer, ConnectionLost: the connection is over.
        """
        self._check()
        half = self._half
        driver = self._driver
        if type(data) is not bytes:
            data = bytes(data)
        size = len(data)
        if size <= SEND_HIGH_WATER_BYTES:
            half.write(data)
        else:
            view = memoryview(data)
            self._is_torn = True
            for at in range(0, size, SEND_HIGH_WATER_BYTES):
                half.write(view[at : at + SEND_HIGH_WATER_BYTES])
                driver.wake(half)
                while not driver.has_room(half):
                    await driver.wait_room(half)
                    self._check_taking()
            self._is_torn = False
        if finish:
            half.finish()
        driver.wake(half)
        while not driver.has_room(half):
            await driver.wait_room(half)
            self._check_taking()

    async def finish(self) -> None:
        """End the stream: the peer reads up to here. Returns at once; see `stopped`.

        Raises:
            StreamStopped, StreamClosed: as for `write`.
        """
        self._check()
        self._half.finish()
        self._driver.wake(self._half)

    def reset(self, code: int = 0) -> None:
        """Abandon the stream: the peer's reads raise `StreamReset` with `code`. Idempotent."""
        _check_code(code)
        self._driver.reset(self._half, code)

    async def stopped(self) -> int | None:
        """Wait until the peer has everything or wants no more.

        Returns:
            None if the peer has acknowledged all data and the end; otherwise the code of its `stop`.

        Raises:
            ConnectionClosed, ConnectionClosedByPeer, ConnectionLost: the connection ended first.
        """
        half = self._half
        while True:
            if half.stopped_code is not None:
                return half.stopped_code
            if half.closed:
                return None
            self._driver.check_open()
            await self._driver.wait_writable(half)

    async def delivered(self) -> None:
        """Wait until the peer's transport has acknowledged everything that was written so far.

        A peer that knows the length may have everything and stop the stream before it sees the end; this
        also returns then, although nothing more can be written.

        Raises:
            StreamStopped: the peer wants no more, and has not acknowledged everything.
            StreamClosed: the stream was reset here.
            ConnectionClosed, ConnectionClosedByPeer, ConnectionLost: the connection is over.
        """
        half = self._half
        while not half.all_delivered:
            if not half.may_be_delivered:
                self._check_taking()
            self._driver.check_open()
            await self._driver.wait_writable(half)

    @property
    def priority(self) -> int:
        """Streams of a higher priority are sent first; those of equal priority take turns."""
        return self._half.priority

    def set_priority(self, priority: int) -> None:
        """Change the priority; 0 at first, may be negative."""
        self._driver.set_priority(self._half, priority)


class RecvStream:
    """The receiving end of a stream. Use it from one task at a time.

    ``async for chunk in stream`` yields what arrives until the end. A stream that is dropped before its
    end was read is stopped with code 0, as in iroh: the peer need not send what nobody reads.
    """

    __slots__ = ("__weakref__", "_driver", "_half")

    def __init__(self, driver: ConnectionDriver, half: RecvHalf) -> None:
        self._driver = driver
        self._half = half

    def __del__(self) -> None:
        if not self._half.finished:
            self._driver.dropped_recv(self._half)

    def __repr__(self) -> str:
        return f"<RecvStream {self._half.id} of {self._driver!r}>"

    @property
    def stream_id(self) -> int:
        """The stream's QUIC id."""
        return self._half.id

    @property
    def connection(self) -> Connection:
        """The connection that the stream belongs to."""
        return self._driver.connection

    @property
    def buffered_bytes(self) -> int:
        """Bytes that can be read without waiting."""
        return self._half.buffered

    async def read(self, limit: int = DEFAULT_READ_BYTES) -> bytes:
        """Return up to `limit` bytes as soon as there are any; empty at the end of the stream.

        Cancellation loses nothing.

        Raises:
            StreamReset: the peer abandoned the stream.
            StreamClosed: `stop` was called here.
            Busy: another task is reading.
            ConnectionClosed, ConnectionClosedByPeer, ConnectionLost: the connection ended before
                the stream did. What had arrived by then is returned first.
        """
        if limit <= 0:
            raise ValueError("limit must be positive")
        half = self._half
        while True:
            data = half.read(limit)
            if data:
                self._driver.consumed(half, len(data))
                return data
            if half.reset_code is not None:
                raise StreamReset(
                    f"the peer abandoned this stream (code {half.reset_code})",
                    error_code=half.reset_code,
                    endpoint_id=self._driver.remote_id,
                )
            if half.stop_code is not None:
                raise StreamClosed("this stream was stopped here")
            if half.at_end:
                self._driver.consumed(half, 0)
                return b""
            self._driver.check_open()
            await self._driver.wait_readable(half)

    async def read_exactly(self, length: int) -> bytes:
        """Return exactly `length` bytes.

        When cancelled, the bytes that this call has taken are lost: stop the stream then.

        Raises:
            EndOfStream: the stream ended before (a `WireError`); it holds what did arrive.
        """
        if length <= 0:
            return b""
        data = await self.read(length)
        if len(data) == length:
            return data
        parts = [data]
        missing = length - len(data)
        while missing:
            data = await self.read(missing)
            if not data:
                partial = b"".join(parts)
                raise EndOfStream(
                    f"the stream ended after {len(partial)} of {length} bytes",
                    partial=partial,
                    endpoint_id=self._driver.remote_id,
                )
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    async def read_to_end(self, limit: int) -> bytes:
        """Return everything that follows, at most `limit` bytes.

        Raises:
            LimitExceeded: there is more; the stream is stopped with code 0.
        """
        parts: list[bytes] = []
        room = limit
        while data := await self.read(max(room + 1, 1)):
            room -= len(data)
            if room < 0:
                self.stop(0)
                raise LimitExceeded(
                    f"the peer sent more than {limit} bytes",
                    endpoint_id=self._driver.remote_id,
                )
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def stop(self, code: int = 0) -> None:
        """Tell the peer to stop sending; unread data is dropped. Idempotent."""
        _check_code(code)
        self._driver.stop(self._half, code)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while data := await self.read():
            yield data


def _check_code(code: int) -> None:
    if not 0 <= code <= MAX_CODE:
        raise LocalError(f"a code is a number from 0 to 2^62-1, not {code}")
