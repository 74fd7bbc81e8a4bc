"""What a provider grants, refuses, limits and tells."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import pytest
from blob_peers import Pair, bind, p, pair, serving

from dialkey import Connection, Endpoint, Refusal
from dialkey.errors import ConnectionClosedByPeer, DialkeyError, StreamReset, StreamStopped
from dialkey.event_queue import Lagged
from dialkey.identity import EndpointId
from dialkey.limits import MAX_LARGE_BLOB_REQUESTS_PER_PEER
from dialkey_blobs import (
    ALPN,
    Bitfield,
    Blobs,
    BlobServed,
    ChunkRanges,
    ChunkRangesSeq,
    GetManyRequest,
    GetRequest,
    Hash,
    HashAndFormat,
    HashSeq,
    ObserveRequest,
    ProviderFailed,
    ProviderLimits,
    PushRequest,
    Request,
    RequestEnded,
    RequestStarted,
)
from dialkey_blobs.protocol import encode_request
from dialkey_blobs.provider_events import MAX_PENDING_EVENTS, ProviderEvents
from dialkey_blobs.store import BlobMissing, BlobState, DiskFull, ImportMode, files

UNKNOWN = Hash.of(b"nobody has this")
BIG = os.urandom(5_000_000)
"""More than fits into buffers: whoever sends it waits for the one who reads."""


@asynccontextmanager
async def peers_with(
    limits: ProviderLimits | None = None, **options: object
) -> AsyncIterator[Pair]:
    sharing = Blobs.memory(limits=limits, **options)  # type: ignore[arg-type]
    async with pair(sharing, Blobs.memory()) as peers:
        yield peers


async def ask(connection: Connection, request: Request | bytes):  # type: ignore[no-untyped-def]
    """Open a stream with a request; return its receiving end."""
    send, recv = await connection.open_bi()
    await send.write(
        request if isinstance(request, bytes) else encode_request(request), finish=True
    )
    return recv


async def still_serves(peers: Pair, connection: Connection) -> None:
    """Check that a connection is of use."""
    data = os.urandom(1000)
    tag = await peers.sharing.add_bytes(data)
    await peers.fetching.get(connection, GetRequest.blob(tag.hash))
    assert await peers.fetching.read_bytes(tag.hash) == data


# --- what cannot be served ----------------------------------------------------------------------


async def test_an_unknown_hash_is_a_clear_error_and_the_connection_goes_on(peers: Pair) -> None:
    connection = await peers.connect()
    for request in (
        GetRequest.blob(UNKNOWN),
        GetRequest(UNKNOWN, ChunkRangesSeq.all()),
        GetManyRequest.whole((UNKNOWN,)),
    ):
        with pytest.raises(StreamReset, match="does not have") as caught:
            await peers.fetching.get(connection, request)
        assert caught.value.error_code == 3
        assert caught.value.endpoint_id == peers.provider.id
    with pytest.raises(StreamReset, match="does not have"):
        await peers.fetching.download(HashAndFormat(UNKNOWN), connection=connection)
    await still_serves(peers, connection)
    # Nothing was left behind by asking.
    assert len(await peers.fetching.store.blobs()) == 1


async def test_what_comes_before_a_gap_arrives(memory_peers: Pair) -> None:
    peers = memory_peers
    tags = await peers.sharing.store.add_many([p(30_000), p(5)])
    hashes = tags[0].hash, UNKNOWN, tags[1].hash
    connection = await peers.connect()
    with pytest.raises(StreamReset):
        await peers.fetching.get(connection, GetManyRequest.whole(hashes))
    assert await peers.fetching.read_bytes(hashes[0]) == p(30_000)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"\x02" + bytes(32) + b"\x01\x00\x01\x00",
        b"\x07",
        b"\x0a" + bytes(32),
        b"\xff",
        b"\x00",
        b"\x00" + bytes(31),
        b"\x00" + bytes(32),
        b"\x00" + bytes(32) + b"\xff",
        b"\x00" + bytes(32) + b"\xff" * 10,
        b"\x00" + bytes(32) + b"\x02\x00\x01\x00\x01",
        b"\x09\xff\xff\x03" + bytes(64),
        b"\x08\xff\xff\xff\xff\x0f",
        b"\x08\x05ab",
        b"\x01" + bytes(32) + b"\x01",
        b"\x00" + bytes((1 << 20) + 1),
        b"\x00" + bytes(5 << 20),
    ],
    ids=lambda data: f"{data[:3].hex()}-{len(data)}",
)
async def test_malformed_requests_end_only_their_stream(
    memory_peers: Pair, request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    peers = memory_peers
    connection = await peers.connect()
    send, recv = await connection.open_bi()
    try:
        await send.write(request_bytes, finish=True)
    except StreamStopped:
        assert len(request_bytes) > 1 << 20
    with pytest.raises(StreamReset) as caught:
        await recv.read_to_end(1000)
    assert caught.value.error_code == 3
    await still_serves(peers, connection)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_junk_after_a_request_is_ignored(memory_peers: Pair) -> None:
    tag = await memory_peers.sharing.add_bytes(b"hello")
    connection = await memory_peers.connect()
    request = encode_request(GetRequest.blob(tag.hash)) + b"junk"
    assert (await memory_peers.exchange(connection, request))[8:] == b"hello"


async def test_requests_for_nothing(memory_peers: Pair) -> None:
    connection = await memory_peers.connect()
    for request in (
        GetRequest(UNKNOWN, ChunkRangesSeq.empty()),
        GetManyRequest((), ChunkRangesSeq.all()),
    ):
        assert await memory_peers.exchange(connection, encode_request(request)) == b""


async def test_huge_indices_cost_nothing(memory_peers: Pair) -> None:
    peers = memory_peers
    child = await peers.sharing.add_bytes(b"child")
    tag = await peers.sharing.store.add_bytes(HashSeq.of([child.hash] * 3).data)
    entries = ((1 << 62, ChunkRanges.all()), ((1 << 64) - 1, ChunkRanges.empty()))
    request = GetRequest(tag.hash, ChunkRangesSeq(entries))
    connection = await peers.connect()
    async with asyncio.timeout(10):
        assert await peers.exchange(connection, encode_request(request)) == b""


async def test_a_request_that_does_not_end_in_time_is_ended() -> None:
    async with peers_with(ProviderLimits(request_timeout_s=0.1)) as peers:
        connection = await peers.connect()
        send, recv = await connection.open_bi()
        await send.write(encode_request(GetRequest.blob(UNKNOWN)))
        with pytest.raises(StreamReset):
            await recv.read()
        # The provider also says that it wants no more of the request.
        assert await send.stopped() == 3
        await still_serves(peers, connection)


async def test_a_getter_that_takes_nothing_is_let_go() -> None:
    async with peers_with(ProviderLimits(stall_timeout_s=0.2)) as peers:
        tag = await peers.sharing.add_bytes(BIG)
        events = peers.sharing.provider_events()
        connection = await peers.connect()
        recv = await ask(connection, GetRequest.blob(tag.hash))
        ended = await until_ended(events)
        assert ended.error is not None
        assert "stopped reading" in ended.error
        with pytest.raises(StreamReset):
            await recv.read_to_end(1 << 30)


@pytest.mark.parametrize("size", [0, 1000, 3_000_000])
async def test_a_getter_that_has_all_and_stops_before_the_end_is_content(size: int) -> None:
    async with peers_with() as peers:
        tag = await peers.sharing.add_bytes(os.urandom(size))
        events = peers.sharing.provider_events()
        connection = await peers.connect()
        length = len(await (await ask(connection, GetRequest.blob(tag.hash))).read_to_end(1 << 30))
        assert (await until_ended(events)).error is None
        # Rust getters know from the size what comes, and let go of the stream there.
        recv = await ask(connection, GetRequest.blob(tag.hash))
        await recv.read_exactly(length)
        recv.stop(0)
        ended = await until_ended(events)
        assert ended.error is None
        assert ended.payload_bytes == size


async def until_ended(events: ProviderEvents) -> RequestEnded:
    async for event in events:
        if isinstance(event, RequestEnded):
            return event
    raise AssertionError


# --- who gets what ------------------------------------------------------------------------------


async def test_authorize_decides_about_each_request() -> None:
    asked: list[tuple[EndpointId, Request]] = []

    def authorize(remote_id: EndpointId, request: Request) -> Refusal | None:
        asked.append((remote_id, request))
        return Refusal() if isinstance(request, GetRequest) and request.hash == secret else None

    async with peers_with(authorize=authorize) as peers:
        secret = (tag := await peers.sharing.add_bytes(b"secret")).hash
        connection = await peers.connect()
        request = GetRequest.blob(secret)
        with pytest.raises(StreamReset, match="does not give") as caught:
            await peers.fetching.get(connection, request)
        assert caught.value.error_code == 1
        assert asked == [(peers.getter.id, request)]
        await still_serves(peers, connection)
        tag.release()


async def test_authorize_may_be_a_coroutine_and_choose_the_code() -> None:
    async def authorize(remote_id: EndpointId, request: Request) -> Refusal | None:
        await asyncio.sleep(0)
        return Refusal(2, "come back later")

    async with peers_with(authorize=authorize) as peers:
        with pytest.raises(StreamReset, match="busy") as caught:
            await peers.fetching.get(await peers.connect(), GetRequest.blob(UNKNOWN))
        assert caught.value.error_code == 2


async def test_an_authorize_that_fails_refuses(caplog: pytest.LogCaptureFixture) -> None:
    def authorize(remote_id: EndpointId, request: Request) -> Refusal | None:
        if isinstance(request, ObserveRequest):
            return True  # type: ignore[return-value]
        raise RuntimeError("the list is gone")

    async with peers_with(authorize=authorize) as peers:
        connection = await peers.connect()
        for request in (GetRequest.blob(UNKNOWN), ObserveRequest(UNKNOWN)):
            recv = await ask(connection, request)
            with pytest.raises(StreamReset) as caught:
                await recv.read()
            assert caught.value.error_code == 3
    assert "the list is gone" in caplog.text
    assert "authorize returned bool" in caplog.text


# --- how much at a time -------------------------------------------------------------------------


async def started(events: ProviderEvents, count: int) -> None:
    """Wait until so many more requests have been started."""
    async for event in events:
        count -= isinstance(event, RequestStarted)
        if not count:
            return


def active(peers: Pair) -> Callable[[], int]:
    """Return a function that counts the requests that are answered now."""
    counts = {"now": 0}
    tell = peers.sharing._provider._tell

    def count(event: object) -> None:
        counts["now"] += isinstance(event, RequestStarted) - isinstance(event, RequestEnded)
        tell(event)  # type: ignore[arg-type]

    peers.sharing._provider._tell = count  # type: ignore[method-assign,assignment]
    return lambda: counts["now"]


async def test_requests_of_one_endpoint_wait_for_each_other() -> None:
    async with peers_with(ProviderLimits(requests_per_peer=2)) as peers:
        tag = await peers.sharing.add_bytes(BIG)
        count = active(peers)
        events = peers.sharing.provider_events()
        connections = [await peers.connect(), await peers.connect()]
        streams = [
            await ask(connection, GetRequest.blob(tag.hash))
            for connection in connections
            for _ in range(2)
        ]
        await started(events, 2)
        observing = [await ask(connection, ObserveRequest(UNKNOWN)) for connection in connections]
        for each in observing:
            # By the time that something later on the connection is answered the others wait.
            await each.read()
        assert count() == 2 + 2
        # In whatever order they are read, each gets its turn.
        contents = await asyncio.gather(*(recv.read_to_end(1 << 30) for recv in streams))
        assert {content[:8] for content in contents} == {len(BIG).to_bytes(8, "little")}


async def test_requests_of_all_endpoints_wait_for_each_other() -> None:
    limits = ProviderLimits(requests=2, requests_per_peer=1)
    async with peers_with(limits) as peers, AsyncExitStack() as stack:
        tag = await peers.sharing.add_bytes(BIG)
        count = active(peers)
        events = peers.sharing.provider_events()
        streams = []
        observers = []  # a stream that nobody holds is stopped
        for _ in range(3):
            endpoint = await stack.enter_async_context(bind())
            connection = await endpoint.connect(peers.provider.addr(), ALPN)
            streams.append(await ask(connection, GetRequest.blob(tag.hash)))
            observers.append(await ask(connection, ObserveRequest(UNKNOWN)))
            await observers[-1].read()
        await started(events, 2 + 3)
        assert count() == 2 + 3
        contents = await asyncio.gather(*(recv.read_to_end(1 << 30) for recv in streams))
        assert len({Hash.of(content) for content in contents}) == 1


async def test_a_request_that_waits_too_long_is_turned_away() -> None:
    limits = ProviderLimits(requests_per_peer=1, queue_timeout_s=0.1)
    async with peers_with(limits) as peers:
        tag = await peers.sharing.add_bytes(BIG)
        connection = await peers.connect()
        events = peers.sharing.provider_events()
        first = await ask(connection, GetRequest.blob(tag.hash))
        await started(events, 1)
        with pytest.raises(StreamReset, match="busy") as caught:
            await peers.fetching.get(connection, GetRequest.blob(tag.hash))
        assert caught.value.error_code == 2
        assert (await first.read_to_end(1 << 30))[-100:] == BIG[-100:]
        await until_ended(events)
        await still_serves(peers, connection)


async def test_a_download_tries_a_busy_provider_again() -> None:
    limits = ProviderLimits(requests_per_peer=1, queue_timeout_s=0.05)
    async with peers_with(limits) as peers:
        tag = await peers.sharing.add_bytes(BIG)
        connection = await peers.connect()
        events = peers.sharing.provider_events()
        first = await ask(connection, GetRequest.blob(tag.hash))
        await started(events, 1)
        failures = 0
        async for event in peers.fetching.download(peers.sharing.ticket(tag)):
            if isinstance(event, ProviderFailed):
                failures += 1
                assert event.retry_in_s is not None
                if failures == 2:
                    await first.read_to_end(1 << 30)
        assert failures >= 2
        assert await peers.fetching.store.has(tag.hash)


async def _to_end(download) -> int:  # type: ignore[no-untyped-def]
    return (await download).payload_bytes


async def test_large_requests_of_one_endpoint_are_few_at_a_time() -> None:
    async with peers_with(ProviderLimits(queue_timeout_s=0.05)) as peers:
        tag = await peers.sharing.add_bytes(BIG)
        events = peers.sharing.provider_events()
        connection = await peers.connect()
        large = GetManyRequest.whole((tag.hash,) * 2100)
        assert len(encode_request(large)) > 1 << 16
        held = [await ask(connection, large) for _ in range(MAX_LARGE_BLOB_REQUESTS_PER_PEER)]
        await started(events, len(held))
        refused = await ask(connection, large)
        with pytest.raises(StreamReset) as caught:
            await refused.read_to_end(1 << 30)
        assert caught.value.error_code == 2
        # Those of usual size have places of their own.
        await still_serves(peers, connection)


async def test_waiting_requests_end_with_their_connection() -> None:
    async with peers_with(ProviderLimits(requests_per_peer=1)) as peers:
        tag = await peers.sharing.add_bytes(BIG)
        events = peers.sharing.provider_events()
        first, second = await peers.connect(), await peers.connect()
        recv = await ask(first, GetRequest.blob(tag.hash))
        await started(events, 1)
        for _ in range(3):
            await ask(second, GetRequest.blob(tag.hash))
        await (await ask(second, ObserveRequest(UNKNOWN))).read()
        handlers = peers.router._handling
        assert len(handlers) == 2
        second.close()
        await asyncio.wait(handlers, return_when=asyncio.FIRST_COMPLETED)
        assert len(await recv.read_to_end(1 << 30)) > len(BIG)


async def test_too_many_observers_are_turned_away() -> None:
    async with peers_with(ProviderLimits(observers=2)) as peers:
        connection = await peers.connect()
        kept = [await ask(connection, ObserveRequest(UNKNOWN)) for _ in range(2)]
        for recv in kept:
            await recv.read()
        with pytest.raises(StreamReset) as caught:
            await (await ask(connection, ObserveRequest(UNKNOWN))).read()
        assert caught.value.error_code == 2
        events = peers.sharing.provider_events()
        kept[0].stop()
        await until_ended(events)
        assert await (await ask(connection, ObserveRequest(UNKNOWN))).read() == b"\x02\0\0"


@asynccontextmanager
async def another_connects(peers: Pair) -> AsyncIterator[Connection]:
    """Yield a connection of a third endpoint to the provider."""
    async with Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as endpoint:
        connection = await endpoint.connect(peers.provider.addr(), ALPN)
        yield connection
        connection.close()


async def test_one_endpoint_does_not_take_all_places_to_observe() -> None:
    async with peers_with(ProviderLimits(observers=4)) as peers, another_connects(peers) as other:
        connection = await peers.connect()
        greedy = [await ask(connection, ObserveRequest(UNKNOWN)) for _ in range(4)]
        for recv in greedy:
            await recv.read()
        assert await (await ask(other, ObserveRequest(UNKNOWN))).read() == b"\x02\0\0"
        with pytest.raises(StreamReset) as caught:
            await greedy[3].read()
        assert caught.value.error_code == 2


async def test_getters_that_take_nothing_do_not_keep_others_out() -> None:
    async with peers_with(ProviderLimits(requests=2)) as peers, another_connects(peers) as other:
        tag = await peers.sharing.add_bytes(BIG)
        small = await peers.sharing.add_bytes(b"small")
        connection = await peers.connect()
        stuck = [await ask(connection, GetRequest.blob(tag.hash)) for _ in range(2)]
        for recv in stuck:
            await recv.read_exactly(8)
        async with asyncio.timeout(20):  # they would be let go after two minutes
            recv = await ask(other, GetRequest.blob(small.hash))
            assert await recv.read_to_end(limit=100) == (5).to_bytes(8, "little") + b"small"


# --- what is told -------------------------------------------------------------------------------


async def test_events_of_requests(memory_peers: Pair) -> None:
    peers = memory_peers
    events = peers.sharing.provider_events()
    tags = await peers.sharing.store.add_many([p(20_000), p(3)])
    sequence = HashSeq.of(tag.hash for tag in tags)
    root = await peers.sharing.store.add_bytes(sequence.data)
    connection = await peers.connect()
    request = GetRequest(root.hash, ChunkRangesSeq.all())
    await peers.fetching.get(connection, request)

    seen = [await anext(events) for _ in range(5)]
    number = seen[0].request_id  # type: ignore[union-attr]
    assert seen == [
        RequestStarted(number, peers.getter.id, request),
        BlobServed(number, 0, root.hash, 64),
        BlobServed(number, 1, tags[0].hash, 20_000),
        BlobServed(number, 2, tags[1].hash, 3),
        RequestEnded(number, peers.getter.id, 20_067, 3 * 8 + 64, None),
    ]

    with pytest.raises(StreamReset):
        await peers.fetching.get(connection, GetRequest.blob(UNKNOWN))
    assert isinstance(await anext(events), RequestStarted)
    ended = await anext(events)
    assert isinstance(ended, RequestEnded)
    assert ended.request_id == number + 1
    assert ended.error is not None
    assert UNKNOWN.short() in ended.error
    events.close()
    assert [event async for event in events] == []


async def test_a_complete_transfer_is_told_as_such_though_the_getter_leaves_at_once(
    memory_peers: Pair,
) -> None:
    peers = memory_peers
    events = peers.sharing.provider_events()
    for size in (1, 100_000, 2_500_000):
        tag = await peers.sharing.add_bytes(p(size))
        await peers.fetching.download(peers.sharing.ticket(tag))
        assert (await until_ended(events)).error is None


async def test_a_getter_that_stops_early_is_told(memory_peers: Pair) -> None:
    peers = memory_peers
    events = peers.sharing.provider_events()
    tag = await peers.sharing.add_bytes(BIG)
    recv = await ask(await peers.connect(), GetRequest.blob(tag.hash))
    await recv.read()
    recv.stop(0)
    ended = await until_ended(events)
    assert ended.error is not None
    assert ended.payload_bytes < len(BIG)


async def test_a_reader_of_events_that_is_too_slow_learns_how_many_it_missed(
    memory_peers: Pair,
) -> None:
    peers = memory_peers
    events = peers.sharing.provider_events()
    for number in range(MAX_PENDING_EVENTS + 5):
        peers.sharing._provider._tell(BlobServed(number, 0, UNKNOWN, 0))
    assert await anext(events) == Lagged(5)
    assert await anext(events) == BlobServed(5, 0, UNKNOWN, 0)


# --- shutting down ------------------------------------------------------------------------------


async def test_a_router_that_shuts_down_lets_a_transfer_finish(memory_peers: Pair) -> None:
    peers = memory_peers
    peers.router._grace_s = 30.0
    tag = await peers.sharing.add_bytes(BIG)
    events = peers.sharing.provider_events()
    connection = await peers.connect()
    observing = await ask(connection, ObserveRequest(UNKNOWN))
    await observing.read()
    recv = await ask(connection, GetRequest.blob(tag.hash))
    await started(events, 2)
    shutdown = asyncio.create_task(peers.router.shutdown())
    await asyncio.sleep(0)
    assert (await recv.read_to_end(1 << 30)).endswith(BIG[-1000:])
    async with asyncio.timeout(10):
        await shutdown
        error = await connection.closed()
    assert isinstance(error, ConnectionClosedByPeer)
    assert error.error_code == 0


async def test_a_store_that_closes_ends_requests(
    memory_peers: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    peers = memory_peers
    connection = await peers.connect()
    observing = await ask(connection, ObserveRequest(UNKNOWN))
    await observing.read()
    await peers.sharing.close()
    # Whoever sees that may come back; a reset would mean that we do not have the content.
    with pytest.raises(ConnectionClosedByPeer) as caught:
        await observing.read()
    assert caught.value.error_code == 0
    another = await peers.connect()
    with pytest.raises(ConnectionClosedByPeer):
        await peers.fetching.get(another, GetRequest.blob(UNKNOWN))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# --- observe ------------------------------------------------------------------------------------


async def test_observe(peers: Pair) -> None:
    data = p(100_000)
    connection = await peers.connect()
    blobs = peers.sharing
    recv = await ask(connection, ObserveRequest(Hash.of(data)))
    assert await recv.read() == bytes.fromhex("020000")

    # The provider comes to hold it bit by bit, from a third endpoint.
    async with bind() as third, serving(third) as router:
        source = router.add(Blobs.memory())
        await source.add_bytes(data)
        there = await peers.provider.connect(third.addr(), ALPN)
        await blobs.get(there, GetRequest.blob(Hash.of(data), ChunkRanges.between(0, 16)))
        assert await recv.read() == bytes.fromhex("06a08d06020010")
        await blobs.get(there, GetRequest.blob(Hash.of(data), ChunkRanges.between(16)))
        assert await recv.read() == bytes.fromhex("05a08d060110")
        recv.stop()
        there.close()

    # Who asks later gets the state at once.
    async with aclosing(peers.fetching.observe(connection, Hash.of(data))) as states:
        assert await anext(states) == Bitfield.complete(100_000)
    async with aclosing(peers.fetching.observe(peers.provider.addr(), UNKNOWN)) as states:
        assert await anext(states) == Bitfield()


async def test_observing_a_download_adds_up_to_a_complete_blob(peers: Pair) -> None:
    data = os.urandom(6_000_000)
    hash = Hash.of(data)
    async with bind() as third, serving(third) as router:
        source = router.add(Blobs.memory())
        tag = await source.add_bytes(data)
        async with aclosing(peers.fetching.observe(peers.provider.addr(), hash)) as states:
            assert await anext(states) == Bitfield()
            download = asyncio.create_task(_to_end(peers.sharing.download(source.ticket(tag))))
            held = [state async for state in _until_complete(states)]
            await download
    assert held[-1] == Bitfield.complete(len(data))
    assert [state.present_bytes for state in held] == sorted(s.present_bytes for s in held)


async def _until_complete(states: AsyncIterator[Bitfield]) -> AsyncIterator[Bitfield]:
    async for state in states:
        yield state
        if state.is_complete:
            return


# --- push ---------------------------------------------------------------------------------------


async def test_push_is_refused_unless_it_is_allowed(peers: Pair) -> None:
    tag = await peers.fetching.add_bytes(p(5_000_000))
    connection = await peers.connect()
    with pytest.raises(StreamStopped) as caught:
        await peers.fetching.push(connection, tag)
    assert caught.value.error_code == 1
    assert not await peers.sharing.store.has(tag.hash)
    await still_serves(peers, connection)


async def test_push_of_blobs_and_sequences_when_allowed() -> None:
    async with peers_with(allow_push=True) as peers:
        events = peers.sharing.provider_events()
        contents = [p(size) for size in (0, 5, 16_385, 3_000_000)]
        tags = await peers.fetching.store.add_many(contents)
        sequence = HashSeq.of(tag.hash for tag in tags)
        root = await peers.fetching.store.add_bytes(sequence.data, 1)  # type: ignore[arg-type]
        single = await peers.fetching.add_bytes(p(70_000))

        await peers.fetching.push(peers.provider.addr(), single)
        assert (await until_ended(events)).error is None
        await peers.fetching.push(peers.provider.addr(), root)
        ended = await until_ended(events)

        assert ended.error is None
        assert ended.payload_bytes == sum(map(len, contents)) + 32 * len(contents)
        for data in (*contents, p(70_000), sequence.data):
            assert await peers.sharing.read_bytes(Hash.of(data)) == data


async def test_authorize_is_asked_about_pushes_too() -> None:
    async with peers_with(allow_push=True, authorize=lambda *_: Refusal()) as peers:
        tag = await peers.fetching.add_bytes(b"hello")
        with pytest.raises(StreamStopped) as caught:
            await peers.fetching.push(peers.provider.addr(), tag)
        assert caught.value.error_code == 1


async def test_a_push_that_lies_is_cut_off() -> None:
    async with peers_with(allow_push=True) as peers:
        connection = await peers.connect()
        send, recv = await connection.open_bi()
        recv.stop()
        request = PushRequest(Hash.of(b"hello"), ChunkRangesSeq.single())
        await send.write(encode_request(request) + b"\5\0\0\0\0\0\0\0hellO")
        assert await send.stopped() == 3
        assert (await peers.sharing.store.status(Hash.of(b"hello"))).state is BlobState.MISSING
        await still_serves(peers, connection)


async def test_pushing_what_is_not_held(memory_peers: Pair) -> None:
    connection = await memory_peers.connect()
    with pytest.raises(BlobMissing):
        await memory_peers.fetching.push(connection, HashAndFormat(UNKNOWN))
    assert issubclass(BlobMissing, DialkeyError)
    await still_serves(memory_peers, connection)


# --- files that are offered before their outboards are made ---------------------------------------


async def test_a_ticket_that_comes_at_once_is_good(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(BIG)
    sharing = Blobs.persistent(tmp_path / "store")
    async with pair(sharing, Blobs.memory()) as peers:
        tag = await sharing.add_path(path, ImportMode.DEFERRED)
        await peers.fetching.download(sharing.ticket(tag))
        assert await peers.fetching.read_bytes(tag.hash) == BIG


async def test_a_file_that_changed_since_it_was_offered_is_an_error_at_both_ends(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(BIG)
    sharing = Blobs.persistent(tmp_path / "store")
    async with pair(sharing, Blobs.memory()) as peers:
        tag = await sharing.add_path(path, ImportMode.DEFERRED)
        path.write_bytes(BIG[::-1])
        os.utime(path, ns=(1, 1))
        events = sharing.provider_events()
        connection = await peers.connect()
        with pytest.raises(StreamReset) as caught:
            await peers.fetching.get(connection, GetRequest.blob(tag.hash))
        assert caught.value.error_code == 3
        async for event in events:
            if isinstance(event, RequestEnded):
                assert str(path) in (event.error or "")
                break
        await still_serves(peers, connection)


async def test_space_is_looked_for_before_content_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetching = Blobs.persistent(tmp_path / "store")
    async with pair(Blobs.memory(), fetching) as peers:
        tag = await peers.sharing.add_bytes(BIG)
        collection = await peers.sharing.add_collection([("big", tag.hash)])
        fields = list(os.statvfs(tmp_path))
        fields[4] = 10  # blocks that are free
        monkeypatch.setattr(files.os, "statvfs", lambda path: os.statvfs_result(fields))
        with pytest.raises(DiskFull, match="are free there"):
            await fetching.download(peers.sharing.ticket(collection))
        held = (await fetching.store.status(tag.hash)).bitfield.present_bytes
        assert held <= 16_384
        monkeypatch.undo()
        await fetching.download(peers.sharing.ticket(collection))
        assert await fetching.read_bytes(tag.hash) == BIG
