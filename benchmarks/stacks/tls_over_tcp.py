"""asyncio's own TLS 1.3 over TCP, with its streams.

A connection has one stream, so requests follow each other on it: not the same thing as a fresh stream
for each, but the most that this API offers.
"""

from __future__ import annotations

import asyncio
import ssl

from stacks.base import BLOCK_BYTES, Answer, Session, Stack, Stream
from stacks.certificate import certificate


class _Stream:
    __slots__ = ("_writer", "read")
    ends = False

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.read = reader.read
        self._writer = writer

    async def write(self, data: bytes, *, finish: bool = False) -> None:
        self._writer.write(data)
        await self._writer.drain()


class _Session(Session):
    has_streams = False

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._stream = _Stream(reader, writer)
        self._writer = writer

    async def open(self) -> Stream:
        return self._stream

    async def close(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return


class TlsStack(Stack):
    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client.minimum_version = ssl.TLSVersion.TLSv1_3
        self._client.check_hostname = False
        self._client.verify_mode = ssl.CERT_NONE

    async def serve(self, answer: Answer) -> str:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        with certificate() as (chain, key):
            context.load_cert_chain(chain, key)

        async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            stream = _Stream(reader, writer)
            try:
                while await answer(stream):
                    pass
            except OSError:
                return
            finally:
                writer.close()

        self._server = await asyncio.start_server(
            on_connection, "127.0.0.1", 0, ssl=context, limit=BLOCK_BYTES, backlog=600
        )
        return str(self._server.sockets[0].getsockname()[1])

    async def dial(self, address: str) -> Session:
        return _Session(
            *await asyncio.open_connection(
                "127.0.0.1", int(address), ssl=self._client, limit=BLOCK_BYTES
            )
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
