"""The complete exchanges of docs/wire/blobs.md 9, through a real provider and a real getter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blob_peers import Pair, handmade, make_blobs, pair, saying
from blob_vectors import (
    CONTENTS,
    EXCHANGES,
    OBSERVE_HELLO,
    OBSERVE_UNKNOWN,
    PUSH_HELLO,
    REFUSED,
)

from dialkey.errors import StreamReset
from dialkey_blobs import ALPN, GetManyRequest, GetRequest, Hash
from dialkey_blobs.protocol import decode_request


@pytest.fixture(params=["memory", "files"])
async def peers(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    sharing = make_blobs(request.param, tmp_path, "sharing-store", allow_push=True)
    fetching = make_blobs(request.param, tmp_path, "fetching-store")
    async with pair(sharing, fetching) as peers:
        yield peers


async def test_a_provider_answers_with_the_bytes_of_the_reference(peers: Pair) -> None:
    for tag in await peers.sharing.store.add_many(CONTENTS):
        tag.leak()
    connection = await peers.connect()
    for exchange in EXCHANGES:
        exchange.check(await peers.exchange(connection, exchange.request))
    for request in REFUSED.values():
        with pytest.raises(StreamReset) as caught:
            await peers.exchange(connection, request)
        assert caught.value.error_code == 3


async def test_a_getter_understands_the_bytes_of_the_reference(peers: Pair) -> None:
    contents = {Hash.of(data): data for data in (*CONTENTS, b"")}
    for exchange in EXCHANGES:
        request = decode_request(exchange.request)
        assert isinstance(request, GetRequest | GetManyRequest)
        if exchange.response is None:
            continue
        async with handmade(saying(exchange.response)) as (provider, endpoint):
            connection = await peers.getter.connect(endpoint.addr(), ALPN)
            await peers.fetching.get(connection, request)
            connection.close()
            # What it sends is the request of the reference, too.
            assert provider.requests == [request]
    store = peers.fetching.store
    for info in await store.blobs():
        held = (await store.status(info.hash)).bitfield
        for start, end in held.ranges.limited_to(held.size).runs():
            assert end is not None
            offset, stop = start * 1024, min(end * 1024, held.size)
            data = await store.read(info.hash, offset, stop - offset)
            assert data == contents[info.hash][offset:stop]


async def test_push_and_observe(peers: Pair) -> None:
    connection = await peers.connect()
    for request, frame in (OBSERVE_UNKNOWN, (OBSERVE_HELLO[0], bytes.fromhex("020000"))):
        send, recv = await connection.open_bi()
        await send.write(request, finish=True)
        assert await recv.read_exactly(len(frame)) == frame

    send, pushed = await connection.open_bi()
    pushed.stop()
    await send.write(PUSH_HELLO, finish=True)
    # The observer learns that it has come.
    assert await recv.read_exactly(4) == OBSERVE_HELLO[1]
    assert await peers.sharing.read_bytes(Hash.of(b"hello")) == b"hello"
