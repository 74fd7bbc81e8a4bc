"""The listening side: handlers of ``pipe/2``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from dialkey.errors import (
    ConnectionClosedByPeer,
    DialkeyError,
    ProtocolViolation,
    StreamStopped,
    WireError,
)
from dialkey.printable import printable
from dialkey_pipe.protocol import Code, Near, greet, splice, take

if TYPE_CHECKING:
    from dialkey import Connection, EndpointId, RecvStream, SendStream
    from dialkey_pipe.addresses import Local

__all__ = ["Forwarder", "OnePipe", "finish"]

logger = logging.getLogger("dialkey_pipe")


class _Guarded:
    """Lets in only those on the list, if there is one."""

    def __init__(self, allowed: Collection[EndpointId] = ()) -> None:
        self._allowed = frozenset(allowed)

    def admit(self, connection: Connection) -> bool:
        """Return whether a peer may come in; close its connection if not."""
        if not self._allowed or connection.remote_id in self._allowed:
            return True
        connection.close(Code.NOT_ALLOWED, Code.NOT_ALLOWED.meaning.encode())
        return False


class Forwarder(_Guarded):
    """Forward every stream of every peer to a TCP address or a Unix socket.

    Args:
        target: where to.
        allowed: the peers that may; empty for all who know the ticket.
    """

    def __init__(self, target: Local, allowed: Collection[EndpointId] = ()) -> None:
        super().__init__(allowed)
        self._target = target
        self._accepting: set[asyncio.Task[None]] = set()

    async def accept(self, connection: Connection) -> None:
        """Serve one connection until the peer closes it."""
        if not self.admit(connection):
            return
        async with asyncio.TaskGroup() as pipes:
            accepting = pipes.create_task(self._accept_all(connection, pipes))
            self._accepting.add(accepting)
            accepting.add_done_callback(self._accepting.discard)

    async def shutdown(self) -> None:
        """Take no more pipes; those that run have the router's grace period to end."""
        for accepting in self._accepting:
            accepting.cancel()

    async def _accept_all(self, connection: Connection, pipes: asyncio.TaskGroup) -> None:
        while True:
            send, recv = await connection.accept_bi()
            pipes.create_task(self._forward(send, recv))

    async def _forward(self, send: SendStream, recv: RecvStream) -> None:
        """Forward one stream. What breaks it is told to the peer, and ends no other stream."""
        try:
            await greet(recv)
            await take(send)
        except (ProtocolViolation, WireError):
            raise
        except DialkeyError:
            send.reset(Code.CUT)
            return
        try:
            near = await self._target.open()
        except OSError as error:
            logger.warning("cannot reach %s: %s", self._target, printable(str(error)))
            send.reset(Code.UNREACHABLE)
            recv.stop(Code.UNREACHABLE)
            return
        try:
            await splice(near, send, recv)
            await near.close()
        except (OSError, DialkeyError) as error:
            logger.info("a pipe to %s broke: %s", self._target, printable(str(error)))
            near.abort()
        except BaseException:
            near.abort()
            raise


class OnePipe(_Guarded):
    """Join the first stream that comes with a near side; turn away all that come later.

    Args:
        near: what to join it with.
        allowed: the peers that may; empty for all who know the ticket.
    """

    def __init__(self, near: Near, allowed: Collection[EndpointId] = ()) -> None:
        super().__init__(allowed)
        self._near = near
        self._taken = False
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when everything was forwarded; raises what broke the pipe."""

    async def accept(self, connection: Connection) -> None:
        """Serve one connection."""
        if not self.admit(connection):
            return
        send, recv = await connection.accept_bi()
        await greet(recv)
        if self._taken:
            connection.close(Code.BUSY, Code.BUSY.meaning.encode())
            return
        self._taken = True
        try:
            await take(send)
            await splice(self._near, send, recv)
            await finish(send)
        except (OSError, DialkeyError) as error:
            connection.close(Code.CUT, Code.CUT.meaning.encode())
            self.over.set_exception(error)
        else:
            self.over.set_result(None)


async def finish(send: SendStream) -> None:
    """Wait until the peer has all, when both directions have ended, and close with `Code.DONE`.

    Both sides do so, and the first to be sure closes: its `Code.DONE` says that it had read
    everything of the other side, too.

    Raises:
        DialkeyError: the connection ended in another way, so the peer may miss something.
    """
    try:
        code = await send.stopped()
    except ConnectionClosedByPeer as error:
        if error.error_code != Code.DONE:
            raise
    else:
        if code is not None:
            raise StreamStopped(
                "the other side broke off",
                error_code=code,
                endpoint_id=send.connection.remote_id,
            )
    send.connection.close(Code.DONE, Code.DONE.meaning.encode())
