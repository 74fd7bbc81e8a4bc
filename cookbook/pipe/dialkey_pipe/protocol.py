"""``pipe/2``: the greeting, the codes, and two byte streams joined into one."""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, Final, Protocol

from dialkey.errors import ProtocolViolation

if TYPE_CHECKING:
    from dialkey import Connection, RecvStream, SendStream

__all__ = ["ALPN", "CHUNK_BYTES", "Code", "Near", "greet", "open_pipe", "splice", "take"]

ALPN: Final = "pipe/2"

GREETING: Final = b"pipe"

CHUNK_BYTES: Final = 65_536
"""What is held of one direction beside the buffers below; also what a Linux pipe holds."""


class Code(enum.IntEnum):
    """What the code of a reset, a stop or a close says."""

    DONE = 0x700, "everything was forwarded"
    CUT = 0x701, "the near side broke off"
    UNREACHABLE = 0x702, "the target could not be reached"
    BUSY = 0x703, "somebody else is using this pipe"
    NOT_ALLOWED = 0x704, "this key is not on the list"

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Code:
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


class Near(Protocol):
    """The near side of a pipe: a local socket, or the standard streams."""

    async def read(self, limit: int) -> bytes:
        """Return what is there, up to `limit` bytes; empty at the end."""

    async def write(self, data: bytes) -> None:
        """Write all of `data`; wait while the reader is slow."""

    async def write_end(self) -> None:
        """End this direction; the other one continues."""


async def open_pipe(connection: Connection) -> tuple[SendStream, RecvStream]:
    """Open a stream, greet, and wait until the greeting is returned.

    Cancelling it gives the stream up.

    Raises:
        ProtocolViolation: something else comes back.
        DialkeyError: the connection is gone, or the far side does not take the pipe.
    """
    send, recv = await connection.open_bi()
    try:
        await send.write(GREETING)
        await greet(recv)
    except BaseException:
        send.reset(Code.CUT)
        recv.stop(Code.CUT)
        raise
    return send, recv


async def greet(recv: RecvStream) -> None:
    """Read the greeting of a stream that was accepted.

    Raises:
        ProtocolViolation: it is something else.
        WireError: the stream ended before.
    """
    if await recv.read_exactly(len(GREETING)) != GREETING:
        raise ProtocolViolation("the stream does not begin with the greeting of a pipe")


async def take(send: SendStream) -> None:
    """Tell the far side that its pipe is taken."""
    await send.write(GREETING)


async def splice(near: Near, send: SendStream, recv: RecvStream) -> None:
    """Forward both directions until both have ended.

    When one breaks, or this is cancelled, the stream is reset and stopped, so that the far side
    never takes half of something for the whole; closing the near side is up to the caller.

    Raises:
        OSError: the near side broke.
        DialkeyError: the far side, or what lies between, did.
    """
    try:
        async with asyncio.TaskGroup() as directions:
            directions.create_task(_outward(near, send))
            directions.create_task(_inward(recv, near))
    except BaseException as error:
        send.reset(Code.CUT)
        recv.stop(Code.CUT)
        if isinstance(error, BaseExceptionGroup):
            raise _first(error) from None
        raise


async def _outward(near: Near, send: SendStream) -> None:
    while data := await near.read(CHUNK_BYTES):
        await send.write(data)
    await send.finish()


async def _inward(recv: RecvStream, near: Near) -> None:
    while data := await recv.read(CHUNK_BYTES):
        await near.write(data)
    await near.write_end()


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
