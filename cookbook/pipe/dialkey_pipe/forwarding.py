"""The connecting side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final

from dialkey.errors import (
    ConnectionClosedByPeer,
    ConnectionLost,
    DialkeyError,
    LocalError,
    StreamReset,
    StreamStopped,
)
from dialkey_pipe.protocol import ALPN, Code, Near, open_pipe, splice
from dialkey_pipe.serving import finish

if TYPE_CHECKING:
    from dialkey import Connection, Endpoint, EndpointAddr, RecvStream, SendStream
    from dialkey_pipe.addresses import Local, SocketNear

__all__ = ["Dialer", "forward_all", "forward_one"]


PIPES_PER_CONNECTION: Final = 90
"""A peer takes 100 streams of a connection at a time, and streams that have ended need a moment."""

MAX_CONNECTIONS: Final = 8
"""What many programs at once may need; one that is here 720 times has forgotten to close something."""

PATIENCE_S: Final = 3.0
"""A far side that is there answers within a round trip; even over a bad relay that is shorter."""

FRESH_PATIENCE_S: Final = 15.0
"""On a connection that has just been made the far side is there, and may be busy."""


class _Line:
    """One connection to the listening side, and how many pipes are on it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.pipes = 0
        self.is_silent = False
        """Whether a pipe was not taken. Those that run may only be slow, but no more are put there."""

    @property
    def has_room(self) -> bool:
        return not self.is_silent and self.pipes < PIPES_PER_CONNECTION


class Dialer:
    """Keep a connection to the listening side; dial again when it is needed and gone, or full.

    A pipe begins when the far side has said that it has it. So what was dialled before the far side was
    restarted is noticed before any byte is lost on it, and a new connection takes its place.

    Args:
        endpoint: stays the caller's.
        remote: whom to dial.
    """

    def __init__(self, endpoint: Endpoint, remote: EndpointAddr) -> None:
        self._endpoint = endpoint
        self._remote = remote
        self._lines: list[_Line] = []
        self._dialing = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def pipe(self) -> AsyncIterator[tuple[SendStream, RecvStream]]:
        """Have a pipe within the context, over a connection that has room for it.

        Raises:
            LocalError: as many pipes as there may be are open.
            DialkeyError: the remote cannot be reached, or does not want us.
        """
        line, streams = await self._open()
        try:
            yield streams
        finally:
            self._leave(line)

    async def dial(self) -> None:
        """See that there is a connection.

        Raises:
            DialkeyError: the remote cannot be reached, or does not want us.
        """
        line, _ = await self._enter()
        self._leave(line)

    async def _open(self) -> tuple[_Line, tuple[SendStream, RecvStream]]:
        line, is_fresh = await self._enter()
        if not is_fresh:
            try:
                return line, await self._open_on(line, PATIENCE_S)
            except DialkeyError:
                line = await self._enter_fresh()
        return line, await self._open_on(line, FRESH_PATIENCE_S)

    async def _open_on(self, line: _Line, patience_s: float) -> tuple[SendStream, RecvStream]:
        try:
            async with asyncio.timeout(patience_s):
                return await open_pipe(line.connection)
        except TimeoutError as error:
            line.is_silent = True
            self._leave(line)
            raise ConnectionLost(
                "the other side does not accept the connection",
                endpoint_id=self._remote.id,
                hint="it may have reached its limit, or hang",
            ) from error
        except BaseException as error:
            line.is_silent |= isinstance(error, DialkeyError)
            self._leave(line)
            raise

    async def _enter(self) -> tuple[_Line, bool]:
        """Return a connection that has room, and whether it is new."""
        async with self._dialing:
            for line in self._lines:
                if line.has_room:
                    line.pipes += 1
                    return line, False
            return await self._dial(), True

    async def _enter_fresh(self) -> _Line:
        async with self._dialing:
            return await self._dial()

    async def _dial(self) -> _Line:
        if len(self._lines) >= MAX_CONNECTIONS:
            raise LocalError(
                f"{sum(each.pipes for each in self._lines)} connections are forwarded already, "
                "which is the limit",
                hint="close some that are idle",
            )
        line = _Line(await self._endpoint.connect(self._remote, ALPN))
        line.pipes = 1
        self._lines.append(line)
        return line

    def _leave(self, line: _Line) -> None:
        line.pipes -= 1
        # One is kept, so that the next pipe need not wait for a dial.
        if line.pipes == 0 and (line.is_silent or len(self._lines) > 1):
            self._lines.remove(line)
            line.connection.close()


@contextlib.asynccontextmanager
async def forward_all(
    dialer: Dialer, local: Local, tell: Callable[[str], None]
) -> AsyncIterator[str]:
    """Listen locally while in the context, and forward every connection through a pipe.

    Args:
        dialer: the way to the listening side.
        local: where to listen.
        tell: is told in a sentence why a connection was cut off; the others go on.

    Yields:
        The address that local programs can connect to.
    """

    async def serve(near: SocketNear) -> None:
        try:
            async with dialer.pipe() as (send, recv):
                await splice(near, send, recv)
        except (OSError, DialkeyError) as error:
            near.abort()
            tell(why(error))
        else:
            await near.close()

    async with local.listen(serve) as where:
        yield where


async def forward_one(dialer: Dialer, near: Near) -> None:
    """Join `near` with one pipe until both directions have ended and the peer has everything.

    Raises:
        OSError: the near side broke.
        DialkeyError: the far side, or what lies between, did.
    """
    async with dialer.pipe() as (send, recv):
        await splice(near, send, recv)
        await finish(send)


def why(error: OSError | DialkeyError) -> str:
    """Say in a sentence what cut a pipe off."""
    if isinstance(error, StreamReset | StreamStopped | ConnectionClosedByPeer):
        for code in Code:
            if error.error_code == code:
                return f"the other side says: {code.meaning}"
    return str(error)
