"""Two endpoints on loopback with blobs, and providers that do as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs

from dialkey import Connection, Endpoint, RecvStream, Router, SendStream
from dialkey.errors import StreamStopped
from dialkey_blobs import ALPN, Blobs, BlobTicket, Hash, HashAndFormat
from dialkey_blobs.encoder import Encoder
from dialkey_blobs.hash_seq import HashSeq
from dialkey_blobs.outboard import outboard
from dialkey_blobs.protocol import GetManyRequest, GetRequest, decode_request
from dialkey_blobs.response import ChildrenNeeded, ResponseOrder

EDGE_SIZES = [0, 1, 1023, 1024, 1025, 16_383, 16_384, 16_385, 49_153, 65_537, 100_000, 4_210_689]


def p(size: int) -> bytes:
    """Return the input of the BLAKE3 test vectors."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def t(size: int) -> bytes:
    """Return the test data of iroh-blobs."""
    return b"".join(bytes([65 + i % 26]) * 1024 for i in range(-(-size // 1024)))[:size]


def bind() -> Endpoint:
    return Endpoint.bind(bind="127.0.0.1:0", entry_points=False)  # type: ignore[return-value]


@attrs.define
class Pair:
    """A provider that serves `sharing`, and a getter with `fetching`; both in this process."""

    sharing: Blobs
    fetching: Blobs
    router: Router
    _stack: AsyncExitStack

    @property
    def provider(self) -> Endpoint:
        return self.sharing.endpoint

    @property
    def getter(self) -> Endpoint:
        return self.fetching.endpoint

    async def connect(self) -> Connection:
        connection = await self.getter.connect(self.provider.addr(), ALPN)
        self._stack.callback(connection.close)
        return connection

    async def serve_back(self) -> Endpoint:
        """Let the getter serve what it holds, too; return its endpoint."""
        router = await self._stack.enter_async_context(serving(self.getter))
        router.add(self.fetching)
        return self.getter

    async def exchange(self, connection: Connection, request: bytes) -> bytes:
        """Send a request as bytes; return the response as bytes."""
        send, recv = await connection.open_bi()
        await send.write(request, finish=True)
        return await recv.read_to_end(1 << 30)


@asynccontextmanager
async def serving(endpoint: Endpoint) -> AsyncIterator[Router]:
    async with Router(endpoint, grace_s=0.5) as router:
        task = asyncio.create_task(router.serve())
        yield router
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def pair(sharing: Blobs, fetching: Blobs) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(bind())
        getter = await stack.enter_async_context(bind())
        router = await stack.enter_async_context(serving(provider))
        router.add(sharing)
        await stack.enter_async_context(fetching)
        fetching.attach(getter)
        yield Pair(sharing, fetching, router, stack)


def make_blobs(kind: str, folder: Path, name: str, **options: object) -> Blobs:
    """Make blobs on a store of a kind: "memory" or "files"."""
    if kind == "memory":
        return Blobs.memory(**options)  # type: ignore[arg-type]
    return Blobs.persistent(folder / name, **options)  # type: ignore[arg-type]


# --- providers by hand --------------------------------------------------------------------------


def response(blobs: dict[Hash, bytes], request: GetRequest | GetManyRequest) -> bytes:
    """Return what an honest provider answers that has `blobs`."""
    order = ResponseOrder(request)
    pieces: list[bytes] = []
    while (step := order.next()) is not None:
        if isinstance(step, ChildrenNeeded):
            order.provide(HashSeq(blobs[step.hash]))
            continue
        data = blobs[step.hash]
        made = outboard(data)

        def read_data(offset: int, length: int, data: bytes = data) -> bytes:
            return data[offset : offset + length]

        def read_outboard(offset: int, length: int, data: bytes = made.data) -> bytes:
            return data[offset : offset + length]

        pieces += Encoder(step.hash, len(data), step.ranges, read_data, read_outboard)
    return b"".join(pieces)


Answer = Callable[[GetRequest | GetManyRequest, SendStream, RecvStream], Awaitable[None]]


class Handmade:
    """A provider that answers with a function of the test's.

    Attributes:
        requests: what it was asked.
        stops: codes with which getters stopped it.
    """

    def __init__(self, answer: Answer) -> None:
        self.requests: list[GetRequest | GetManyRequest] = []
        self.stops: list[int | None] = []
        self._answer = answer

    async def accept(self, connection: Connection) -> None:
        while True:
            send, recv = await connection.accept_bi()
            request = decode_request(await recv.read_to_end(1 << 21))
            assert isinstance(request, (GetRequest, GetManyRequest))
            self.requests.append(request)
            try:
                await self._answer(request, send, recv)
                self.stops.append(await send.stopped())
            except StreamStopped as error:
                self.stops.append(error.error_code)


def saying(data: bytes, *, finish: bool = True) -> Answer:
    """Return an answer that is always the same bytes."""

    async def answer(
        request: GetRequest | GetManyRequest, send: SendStream, recv: RecvStream
    ) -> None:
        await send.write(data)
        if finish:
            await send.finish()

    return answer


@asynccontextmanager
async def handmade(answer: Answer) -> AsyncIterator[tuple[Handmade, Endpoint]]:
    """Run a provider that answers with a function."""
    async with bind() as endpoint, serving(endpoint) as router:
        provider = Handmade(answer)
        router.accept(ALPN, provider)
        yield provider, endpoint


def ticket(endpoint: Endpoint, content: Hash | HashAndFormat) -> BlobTicket:
    if isinstance(content, Hash):
        content = HashAndFormat(content)
    return BlobTicket(endpoint.addr(), content.hash, content.format)
