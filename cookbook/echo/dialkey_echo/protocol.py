"""Both sides of ``echo/1``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dialkey import Connection, RecvStream, SendStream

__all__ = ["ALPN", "Echo", "echo"]

ALPN: Final = "echo/1"


class Echo:
    """Answer: write back what arrives."""

    async def accept(self, connection: Connection) -> None:
        """Serve every stream of a connection until the peer closes it."""
        async with asyncio.TaskGroup() as streams:
            while True:
                send, recv = await connection.accept_bi()
                streams.create_task(self._answer(send, recv))

    async def _answer(self, send: SendStream, recv: RecvStream) -> None:
        # Nothing is collected: `write` waits while the peer does not read.
        async for chunk in recv:
            await send.write(chunk)
        await send.finish()


async def echo(connection: Connection, data: bytes) -> bytes:
    """Send `data` over a stream of its own and return what comes back.

    Sends and receives at once, so `data` may be larger than all buffers on the way. When cancelled,
    the stream is abandoned; the connection can be used on.

    Raises:
        LimitExceeded: more came back than was sent.
        ConnectionClosedByPeer, ConnectionLost, StreamReset, StreamStopped: it was cut off.
    """
    send, recv = await connection.open_bi()
    asking = asyncio.create_task(send.write(data, finish=True))
    try:
        answer = await recv.read_to_end(limit=len(data))
        await asking
    except BaseException:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        send.reset()
        recv.stop()
        raise
    return answer
