"""Blobs with a real iroh endpoint as the carrier, on either side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import iroh
import pytest
import wheel_peer as wheel
from blob_peers import bind, p, response, serving
from blob_vectors import CONTENTS, EXCHANGES, OBSERVE_HELLO, OBSERVE_UNKNOWN, PUSH_HELLO, REFUSED

from dialkey.errors import StreamReset
from dialkey.identity import EndpointAddr
from dialkey_blobs import (
    ALPN,
    BlobFormat,
    Blobs,
    BlobTicket,
    ChunkRanges,
    Collection,
    GetManyRequest,
    GetRequest,
    Hash,
    HashAndFormat,
    LeafMismatch,
)
from dialkey_blobs.protocol import decode_request

pytestmark = pytest.mark.interop

TEXT_ALPN = ALPN.decode()


@asynccontextmanager
async def our_provider(**options: bool) -> AsyncIterator[tuple[Blobs, iroh.Connection]]:
    """Serve the contents of the reference to a wheel endpoint that has dialled us."""
    async with bind() as endpoint, serving(endpoint) as router, wheel.bind() as rust:
        blobs = router.add(Blobs.memory(**options))
        for tag in await blobs.store.add_many(CONTENTS):
            tag.leak()
        connection = await rust.connect(wheel.iroh_addr(endpoint.addr()), ALPN)
        yield blobs, connection
        connection.close(0, b"")


async def ask(connection: iroh.Connection, request: bytes) -> iroh.RecvStream:
    stream = await connection.open_bi()
    await stream.send().write_all(request)
    await stream.send().finish()
    return stream.recv()


async def test_it_gets_the_bytes_of_the_reference_from_us() -> None:
    async with our_provider() as (_, connection):
        for exchange in EXCHANGES:
            recv = await ask(connection, exchange.request)
            exchange.check(bytes(await recv.read_to_end(1 << 24)))


async def test_it_is_told_what_we_do_not_have() -> None:
    async with our_provider() as (_, connection):
        for request in (*REFUSED.values(), b"\x02junk", b"\x00"):
            recv = await ask(connection, request)
            assert await recv.received_reset() == 3


async def test_it_observes() -> None:
    async with our_provider() as (_, connection):
        for request, frame in (OBSERVE_UNKNOWN, OBSERVE_HELLO):
            recv = await ask(connection, request)
            assert bytes(await recv.read_exact(len(frame))) == frame
            await recv.stop(0)


async def test_it_asks_sixty_times_at_once() -> None:
    exchange = next(each for each in EXCHANGES if each.length == 100_392)

    async def once(connection: iroh.Connection) -> None:
        recv = await ask(connection, exchange.request)
        exchange.check(bytes(await recv.read_to_end(1 << 20)))

    async with our_provider() as (_, connection):
        await asyncio.gather(*(once(connection) for _ in range(60)))


async def test_its_push_is_refused_unless_allowed() -> None:
    async with our_provider() as (blobs, connection):
        stream = await connection.open_bi()
        await stream.send().write_all(PUSH_HELLO)
        assert await stream.send().stopped() == 1
    async with our_provider(allow_push=True) as (blobs, connection):
        await blobs.store.delete(Hash.of(b"hello"), force=True)
        recv = await ask(connection, OBSERVE_HELLO[0])
        assert bytes(await recv.read_exact(3)) == OBSERVE_UNKNOWN[1]
        await ask(connection, PUSH_HELLO)
        assert bytes(await recv.read_exact(4)) == OBSERVE_HELLO[1]


# --- it provides --------------------------------------------------------------------------------

Answer = Callable[[GetRequest | GetManyRequest, iroh.BiStream], Coroutine[object, object, None]]


@asynccontextmanager
async def their_provider(answer: Answer) -> AsyncIterator[tuple[Blobs, EndpointAddr]]:
    """Fetch from a wheel endpoint that answers requests with a function."""
    async with wheel.bind(TEXT_ALPN) as rust, bind() as endpoint, Blobs.memory() as blobs:
        blobs.attach(endpoint)

        async def serve_one(stream: iroh.BiStream) -> None:
            request = decode_request(bytes(await stream.recv().read_to_end(1 << 21)))
            assert isinstance(request, GetRequest | GetManyRequest)
            await answer(request, stream)

        async def serve() -> None:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    connection = await wheel.accept(rust)
                    tasks.create_task(serve_connection(connection, tasks))

        async def serve_connection(connection: iroh.Connection, tasks: asyncio.TaskGroup) -> None:
            try:
                while True:
                    tasks.create_task(serve_one(await connection.accept_bi()))
            except iroh.IrohError:
                return

        serving = asyncio.create_task(serve())
        try:
            yield blobs, wheel.addr_of(rust)
        finally:
            serving.cancel()
            await asyncio.wait([serving])


def honest(*contents: bytes) -> Answer:
    have = {Hash.of(data): data for data in contents}

    async def answer(request: GetRequest | GetManyRequest, stream: iroh.BiStream) -> None:
        if isinstance(request, GetRequest) and request.hash not in have:
            await stream.send().reset(3)
            return
        await stream.send().write_all(response(have, request))
        await stream.send().finish()

    return answer


async def test_we_get_blobs_ranges_and_collections_from_it() -> None:
    files = [p(n) for n in (0, 1, 1024, 16_385, 3_000_000)]
    entries = tuple((f"file {i}", Hash.of(data)) for i, data in enumerate(files))
    metadata, children = Collection(entries).to_blobs()
    collection = HashAndFormat(children.hash(), BlobFormat.HASH_SEQ)
    big = p(5_000_000)
    async with their_provider(honest(*files, metadata, children.data, big)) as (blobs, addr):
        done = await blobs.download(BlobTicket(addr, collection.hash, collection.format))
        assert done.payload_bytes == done.total_bytes
        for data in files:
            assert await blobs.read_bytes(Hash.of(data)) == data

        request = GetRequest.blob(Hash.of(big), ChunkRanges.between(100, 2000))
        received = await blobs.get(addr, request)
        assert received.payload_bytes == 1900 * 1024
        done = await blobs.download(BlobTicket(addr, Hash.of(big)))
        assert done.payload_bytes == len(big) - received.payload_bytes

        many = GetManyRequest.whole((Hash.of(p(1)), Hash.of(p(16_385))))
        assert (await blobs.get(addr, many)).payload_bytes == 16_386


async def test_we_are_told_what_it_does_not_have() -> None:
    async with their_provider(honest()) as (blobs, addr):
        with pytest.raises(StreamReset) as caught:
            await blobs.download(BlobTicket(addr, Hash.of(b"nobody")))
        assert caught.value.error_code == 3
        assert caught.value.endpoint_id == addr.id


async def test_it_lies() -> None:
    data = p(5_000_000)
    stream = bytearray(response({Hash.of(data): data}, GetRequest.blob(Hash.of(data))))
    stream[3_000_000] ^= 1

    async def lie(request: GetRequest | GetManyRequest, their: iroh.BiStream) -> None:
        await their.send().write_all(bytes(stream))
        await their.send().finish()

    async with their_provider(lie) as (blobs, addr):
        with pytest.raises(LeafMismatch) as caught:
            await blobs.download(BlobTicket(addr, Hash.of(data)))
        held = (await blobs.store.status(Hash.of(data))).bitfield
        assert held.present_bytes == caught.value.item.start_chunk * 1024
