"""aioquic as its documentation shows it: `serve`, `connect`, stream readers and writers.

All settings are its own but two: a certificate that the client does not check against authorities
(the handshake still proves the key), and, in one variant, datagrams as large as dialkey's.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer, serve
from aioquic.quic.configuration import QuicConfiguration

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
        await self._writer.drain()


class _Session(Session):
    def __init__(self, protocol: QuicConnectionProtocol, owner: AsyncExitStack) -> None:
        self._protocol = protocol
        self._owner = owner

    async def open(self) -> Stream:
        return _Stream(*await self._protocol.create_stream())

    async def close(self) -> None:
        await self._owner.aclose()


class AioquicStack(Stack):
    max_datagram_size: int | None = None

    def __init__(self) -> None:
        self._server: QuicServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def _configuration(self, *, is_client: bool) -> QuicConfiguration:
        configuration = QuicConfiguration(is_client=is_client, alpn_protocols=[ALPN])
        if self.max_datagram_size is not None:
            configuration.max_datagram_size = self.max_datagram_size
        return configuration

    async def serve(self, answer: Answer) -> str:
        configuration = self._configuration(is_client=False)
        with certificate() as (chain, key):
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


class Aioquic1452Stack(AioquicStack):
    max_datagram_size = 1452
