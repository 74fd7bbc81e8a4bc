"""Both sides of ``dialkey/ping/1``."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Final

import attrs

from dialkey.errors import ProtocolViolation, WireError

if TYPE_CHECKING:
    from dialkey import Connection, Endpoint, RecvStream, SendStream

__all__ = ["ALPN", "NONCE_BYTES", "Ping", "PingHandler", "Pong", "ping"]

ALPN: Final = b"dialkey/ping/1"

NONCE_BYTES: Final = 8
"""Nobody guesses 64 random bits, so an echo proves that the nonce arrived."""

ECHO_CHUNK_BYTES: Final = 4096
"""What is held of one stream; a caller that sends more without reading is held back by QUIC."""


@attrs.frozen
class Pong:
    """One answer.

    Attributes:
        sequence: 1 for the first.
        round_trip_s: from writing the nonce to having read its echo.
        path: the path in use when it came, as text, such as ``direct 192.0.2.1:4433``.
    """

    sequence: int
    round_trip_s: float
    path: str


class PingHandler:
    """Answer pings: write back what comes in."""

    async def accept(self, connection: Connection) -> None:
        """Serve every stream of a connection until the peer closes it."""
        async with asyncio.TaskGroup() as streams:
            while True:
                send, recv = await connection.accept_bi()
                streams.create_task(self._echo(send, recv))

    async def _echo(self, send: SendStream, recv: RecvStream) -> None:
        while data := await recv.read(ECHO_CHUNK_BYTES):
            await send.write(data)
        await send.finish()


class Ping:
    """The plugin that answers pings on an endpoint's router."""

    def dialkey_protocols(self, endpoint: Endpoint) -> Mapping[str | bytes, PingHandler]:
        """Serve ``dialkey/ping/1``."""
        return {ALPN: PingHandler()}


async def ping(
    connection: Connection,
    *,
    count: int | None = 4,
    interval_s: float = 1.0,
    timeout_s: float = 5.0,
    nonce: Callable[[], bytes] = lambda: secrets.token_bytes(NONCE_BYTES),
) -> AsyncIterator[Pong]:
    """Ping over one stream of a connection that was made with `ALPN`.

    Args:
        connection: stays open afterwards.
        count: how many pings, or None for no end.
        interval_s: the pause after an answer.
        timeout_s: how long to wait for one answer.
        nonce: gives 8 bytes that the peer cannot guess.

    Yields:
        Each answer as it comes.

    Raises:
        TimeoutError: no answer in time.
        ProtocolViolation: the answer is not an echo.
        WireError: the peer ended the stream early.
        ConnectionLost, ConnectionClosedByPeer: the connection ended.
    """
    now = asyncio.get_running_loop().time
    async with asyncio.timeout(timeout_s):
        send, recv = await connection.open_bi()
    sequence = 0
    try:
        while count is None or sequence < count:
            if sequence:
                await asyncio.sleep(interval_s)
            sequence += 1
            sent_nonce, began = nonce(), now()
            async with asyncio.timeout(timeout_s):
                await send.write(sent_nonce)
                echo = await recv.read_exactly(NONCE_BYTES)
            elapsed_s = now() - began
            if echo != sent_nonce:
                raise ProtocolViolation(
                    "the answer to a ping was not its echo", endpoint_id=connection.remote_id
                )
            yield Pong(sequence, elapsed_s, path_in_use(connection))
        await send.finish()
        try:
            async with asyncio.timeout(timeout_s):
                surplus = await recv.read()
        except TimeoutError:
            # Every ping was answered; that the peer keeps the stream open is its own affair.
            surplus = b""
            recv.stop()
        if surplus:
            raise WireError("more was echoed than had been sent", endpoint_id=connection.remote_id)
    except BaseException:
        send.reset()
        recv.stop()
        raise


def path_in_use(connection: Connection) -> str:
    """Return which path carries application data, such as ``direct 192.0.2.1:4433``."""
    for path in connection.paths():
        if path.is_selected:
            return f"{path.kind} {path.remote}"
    return "no path"
