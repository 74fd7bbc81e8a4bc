"""iroh through its Python wheel: minimal preset, no relay, loopback.

What is measured is the binding as Python programs meet it, not iroh.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine

import iroh
import iroh.iroh_ffi

from stacks.base import Answer, Session, Stack, Stream

ALPN = b"benchmark/1"


class _Stream:
    ends = True

    def __init__(self, bi: iroh.BiStream) -> None:
        self._send = bi.send()
        self._recv = bi.recv()

    async def read(self, limit: int) -> bytes:
        return bytes(await self._recv.read(limit))

    async def write(self, data: bytes, *, finish: bool = False) -> None:
        await self._send.write_all(data)
        if finish:
            await self._send.finish()


class _Session(Session):
    def __init__(self, connection: iroh.Connection) -> None:
        self._connection = connection

    async def open(self) -> Stream:
        return _Stream(await self._connection.open_bi())

    async def close(self) -> None:
        self._connection.close(0, b"")


class IrohStack(Stack):
    def __init__(self) -> None:
        self._endpoint: iroh.Endpoint | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def _bind(self) -> iroh.Endpoint:
        if self._endpoint is None:
            iroh.iroh_ffi.uniffi_set_event_loop(asyncio.get_running_loop())  # type: ignore[arg-type]
            self._endpoint = await iroh.Endpoint.bind(
                iroh.EndpointOptions(
                    preset=iroh.preset_minimal(),
                    bind_addr="127.0.0.1:0",
                    alpns=[ALPN],
                    relay_mode=iroh.RelayMode.disabled(),
                )
            )
        return self._endpoint

    async def serve(self, answer: Answer) -> str:
        endpoint = await self._bind()
        self._start(self._accept(endpoint, answer))
        return json.dumps([endpoint.id().to_bytes().hex(), endpoint.bound_sockets()])

    def _start(self, coroutine: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, endpoint: iroh.Endpoint, answer: Answer) -> None:
        while (incoming := await endpoint.accept_next()) is not None:
            self._start(self._connection(incoming, answer))

    async def _connection(self, incoming: iroh.Incoming, answer: Answer) -> None:
        connection = await (await incoming.accept()).connect()
        while True:
            try:
                bi = await connection.accept_bi()
            except iroh.IrohError:
                return
            self._start(self._one(_Stream(bi), answer))

    async def _one(self, stream: Stream, answer: Answer) -> None:
        try:
            await answer(stream)
        except iroh.IrohError:
            return

    async def dial(self, address: str) -> Session:
        endpoint = await self._bind()
        id_hex, sockets = json.loads(address)
        remote = iroh.EndpointAddr(
            iroh.EndpointId.from_bytes(bytes.fromhex(id_hex)), None, list(sockets)
        )
        return _Session(await endpoint.connect(remote, ALPN))

    async def close(self) -> None:
        if self._endpoint is not None:
            await self._endpoint.close()
