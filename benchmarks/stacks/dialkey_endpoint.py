"""dialkey, as an application uses it: an endpoint, a router, a handler."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import attrs

from dialkey import Connection, Endpoint, RecvStream, Router, SendStream, limits
from dialkey.errors import DialkeyError
from stacks.base import Answer, Session, Stack, Stream

ALPN = "benchmark/1"
DATAGRAM_BYTES = 1000
DATAGRAMS_AT_ONCE = 16
"""So few that none is dropped for want of room."""
MAX_STREAMS = 2000
"""More than the default, for the measurement with 1,000 idle streams."""
MAX_CONNECTIONS = 2048
"""More than one endpoint id or address may have, for the measurement with 1,000 idle connections."""


class _Stream:
    __slots__ = ("read", "write")
    ends = True

    def __init__(self, send: SendStream, recv: RecvStream) -> None:
        self.read = recv.read
        self.write = send.write


class _Session(Session):
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def open(self) -> Stream:
        return _Stream(*await self._connection.open_bi())

    async def datagrams(self, count: int) -> None:
        connection = self._connection
        data = bytes(DATAGRAM_BYTES)
        for at in range(0, count, DATAGRAMS_AT_ONCE):
            together = min(DATAGRAMS_AT_ONCE, count - at)
            for _ in range(together):
                connection.send_datagram(data)
            for _ in range(together):
                await connection.read_datagram()

    async def close(self) -> None:
        self._connection.close()


class _Handler:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def accept(self, connection: Connection) -> None:
        tasks: set[asyncio.Task[None]] = set()
        tasks.add(asyncio.ensure_future(self._return_datagrams(connection)))
        try:
            while True:
                send, recv = await connection.accept_bi()
                task = asyncio.ensure_future(self._one(_Stream(send, recv)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        except DialkeyError:
            return

    async def _return_datagrams(self, connection: Connection) -> None:
        try:
            while True:
                connection.send_datagram(await connection.read_datagram())
        except DialkeyError:
            return

    async def _one(self, stream: Stream) -> None:
        try:
            await self._answer(stream)
        except DialkeyError:
            return


class DialkeyStack(Stack):
    def __init__(self) -> None:
        self._endpoint: Endpoint | None = None
        self._router: Router | None = None
        self._serving: asyncio.Task[None] | None = None

    async def _bind(self) -> Endpoint:
        if self._endpoint is None:
            for name in ("MAX_CONNECTIONS_PER_ID", "MAX_CONNECTIONS_PER_ADDRESS"):
                setattr(limits, name, MAX_CONNECTIONS)
            self._endpoint = await self._open()
            driver = self._endpoint._driver
            driver.config = attrs.evolve(driver.config, max_streams=MAX_STREAMS)
        return self._endpoint

    async def _open(self) -> Endpoint:
        return await Endpoint.bind(bind="127.0.0.1:0", entry_points=False)

    async def serve(self, answer: Answer) -> str:
        endpoint = await self._bind()
        self._router = Router(endpoint)
        self._router.accept(ALPN, _Handler(answer))
        await self._router.__aenter__()
        self._serving = asyncio.ensure_future(self._router.serve())
        return str(endpoint.ticket())

    async def dial(self, address: str) -> Session:
        return _Session(await (await self._bind()).connect(address, ALPN))

    async def close(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
        if self._router is not None:
            await self._router.__aexit__(None, None, None)
        if self._endpoint is not None:
            await self._endpoint.close()


class DialkeyRelayedStack(DialkeyStack):
    """Both endpoints reach each other through a relay alone; it is a third process."""

    def __init__(self) -> None:
        super().__init__()
        self._relay: asyncio.subprocess.Process | None = None
        self._url = ""

    async def _open(self) -> Endpoint:
        endpoint = await Endpoint.bind(relays=[self._url], transports=())
        await endpoint.online()
        return endpoint

    async def serve(self, answer: Answer) -> str:
        pipe = asyncio.subprocess.PIPE
        script = Path(__file__).parents[1] / "measuring" / "relay_process.py"
        self._relay = await asyncio.create_subprocess_exec(
            sys.executable, str(script), stdin=pipe, stdout=pipe
        )
        assert self._relay.stdout is not None
        self._url = (await self._relay.stdout.readline()).decode().strip()
        return f"{self._url} {await super().serve(answer)}"

    async def dial(self, address: str) -> Session:
        self._url, ticket = address.split()
        return await super().dial(ticket)

    async def close(self) -> None:
        await super().close()
        if self._relay is not None and self._relay.stdin is not None:
            self._relay.stdin.close()
            await self._relay.wait()
