"""qh3: aioquic's API on a native core, used as `stock_aioquic` uses that.

It refuses Ed25519 in certificates, so its key is one on P-256.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack

from qh3.asyncio import connect
from qh3.asyncio.protocol import QuicConnectionProtocol
from qh3.asyncio.server import QuicServer, serve
from qh3.quic.configuration import QuicConfiguration

from stacks.base import Answer, Session, Stack, Stream
from stacks.certificate import certificate

ALPN = "benchmark/1"


class _Stream:
    __slots__ = ("_writer", "read")
    ends = True

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.read = reader.read
        self._writer = writer

    async def write(self, data: bytes, *, finish: bool = False) -> None:
        self._writer.write(data)
        if finish:
            self._writer.write_eof()
        # Its streams have no back-pressure: `drain` is there, and returns at once.
        await asyncio.sleep(0)


class _Session(Session):
    def __init__(self, protocol: QuicConnectionProtocol, owner: AsyncExitStack) -> None:
        self._protocol = protocol
        self._owner = owner

    async def open(self) -> Stream:
        return _Stream(*await self._protocol.create_stream())

    async def close(self) -> None:
        await self._owner.aclose()


class Qh3Stack(Stack):
    def __init__(self) -> None:
        self._server: QuicServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def _configuration(self, *, is_client: bool) -> QuicConfiguration:
        return QuicConfiguration(is_client=is_client, alpn_protocols=[ALPN])

    async def serve(self, answer: Answer) -> str:
        configuration = self._configuration(is_client=False)
        with certificate(p256=True) as (chain, key):
            configuration.load_cert_chain(chain, key)

        async def one(stream: Stream) -> None:
            await answer(stream)

        def on_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(one(_Stream(reader, writer)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._server = await serve(
            "127.0.0.1", 0, configuration=configuration, stream_handler=on_stream
        )
        # Its public API does not tell the port that port 0 became.
        transport = self._server._transport
        assert transport is not None
        return str(transport.get_extra_info("sockname")[1])

    async def dial(self, address: str) -> Session:
        configuration = self._configuration(is_client=True)
        configuration.verify_mode = ssl.CERT_NONE
        owner = AsyncExitStack()
        protocol = await owner.enter_async_context(
            connect("127.0.0.1", int(address), configuration=configuration)
        )
        return _Session(protocol, owner)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
