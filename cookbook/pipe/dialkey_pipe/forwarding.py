"""The connecting side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from dialkey.errors import ConnectionClosedByPeer, DialkeyError, StreamReset, StreamStopped
from dialkey_pipe.protocol import ALPN, Code, Near, open_pipe, splice
from dialkey_pipe.serving import finish

if TYPE_CHECKING:
    from dialkey import Connection, Endpoint, EndpointAddr, RecvStream, SendStream
    from dialkey_pipe.addresses import Local, SocketNear

__all__ = ["Dialer", "forward_all", "forward_one"]


class Dialer:
    """Keep one connection to the listening side; dial anew when it is needed and gone.

    Args:
        endpoint: stays the caller's.
        remote: whom to dial.
    """

    def __init__(self, endpoint: Endpoint, remote: EndpointAddr) -> None:
        self._endpoint = endpoint
        self._remote = remote
        self._connection: Connection | None = None
        self._dialing = asyncio.Lock()

    async def open(self) -> tuple[SendStream, RecvStream]:
        """Open a pipe; all pipes share the connection.

        Raises:
            DialkeyError: the remote cannot be reached, or does not want us.
        """
        connection = self._connection
        if connection is not None:
            try:
                return await open_pipe(connection)
            except DialkeyError:
                await self._forget(connection)
        return await open_pipe(await self.dial())

    async def dial(self) -> Connection:
        """Return the connection; dial if there is none.

        Raises:
            DialkeyError: the remote cannot be reached, or does not want us.
        """
        async with self._dialing:
            if self._connection is None:
                self._connection = await self._endpoint.connect(self._remote, ALPN)
            return self._connection

    async def _forget(self, connection: Connection) -> None:
        # Another pipe may have found it gone before, and dialled.
        if self._connection is connection:
            self._connection = None
            connection.close()


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
            await splice(near, *await dialer.open())
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
    send, recv = await open_pipe(await dialer.dial())
    await splice(near, send, recv)
    await finish(send)


def why(error: OSError | DialkeyError) -> str:
    """Say in a sentence what cut a pipe off."""
    if isinstance(error, StreamReset | StreamStopped | ConnectionClosedByPeer):
        for code in Code:
            if error.error_code == code:
                return f"the other side says: {code.meaning}"
    return str(error)
