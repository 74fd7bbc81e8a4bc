"""Transfers that are cut off, at either side and in every way, go on where they stopped."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from blob_agent import line_of, running
from blob_peers import Pair, bind, handmade, pair, response, serving, ticket

from dialkey import RecvStream, SendStream
from dialkey.errors import (
    ConnectionClosedByPeer,
    ConnectionLost,
    DialError,
    DialkeyError,
    StorageError,
)
from dialkey_blobs import (
    BlobFormat,
    BlobNotFound,
    Blobs,
    BlobTicket,
    BlobTruncated,
    ChunkRanges,
    ChunkRangesSeq,
    Collection,
    Downloaded,
    FsStore,
    GetManyRequest,
    GetRequest,
    Hash,
    HashAndFormat,
    ItemNotFound,
    Progress,
    ProviderFailed,
    RequestStarted,
    Store,
    download,
)
from dialkey_blobs.store import DiskFull

SIZE = 16_000_000


@pytest.fixture(scope="module")
def big() -> bytes:
    return random.Random("resuming").randbytes(SIZE)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRY_FIRST_S", 0.01)


async def held_of(store: Store, hash: Hash) -> int:
    return (await store.status(hash)).bitfield.present_bytes


# --- the getter stops ---------------------------------------------------------------------------


async def test_a_cancelled_download_goes_on_later(peers: Pair, big: bytes) -> None:
    tag = await peers.sharing.add_bytes(big)
    source = peers.sharing.ticket(tag)
    enough = asyncio.Event()

    async def fetch() -> None:
        async for event in peers.fetching.download(source):
            if isinstance(event, Progress) and event.held_bytes > SIZE // 3:
                enough.set()

    task = asyncio.create_task(fetch())
    await enough.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    held = await held_of(peers.fetching.store, tag.hash)
    assert SIZE // 3 < held < SIZE

    done = await peers.fetching.download(source)
    assert done.payload_bytes == SIZE - held
    assert await peers.fetching.read_bytes(tag.hash) == big


async def test_leaving_the_iteration_stops_a_download(peers: Pair, big: bytes) -> None:
    tag = await peers.sharing.add_bytes(big)
    source = peers.sharing.ticket(tag)
    events = peers.sharing.provider_events()
    async for event in peers.fetching.download(source):
        if isinstance(event, Progress) and event.held_bytes:
            break
    # The provider learns it: the connection is closed.
    async for served in events:
        if (error := getattr(served, "error", None)) is not None:
            assert "closed" in error or "stopped" in error or "no more" in error
            break
    held = await held_of(peers.fetching.store, tag.hash)
    assert 0 < held < SIZE
    assert (await peers.fetching.download(source)).payload_bytes == SIZE - held


@pytest.mark.slow
def test_a_killed_getter_loses_nothing_that_it_had_reported(tmp_path: Path, big: bytes) -> None:
    file = tmp_path / "big.bin"
    file.write_bytes(big)
    _kill_getter_again_and_again(tmp_path, file, SIZE, random.Random(1), kills=3)
    assert (tmp_path / "out").read_bytes() == big


@pytest.mark.slow
def test_a_killed_getter_of_a_folder(tmp_path: Path) -> None:
    rng = random.Random(2)
    folder = tmp_path / "folder"
    folder.mkdir()
    total = 0
    for number in range(60):
        size = rng.choice([0, 1, 1024, 5000, 16_384, 16_385, 200_000, 2_000_000])
        (folder / f"{number}").write_bytes(rng.randbytes(size))
    total = sum(path.stat().st_size for path in folder.iterdir())
    _kill_getter_again_and_again(tmp_path, folder, total, rng, kills=3)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "out/folder").iterdir()
    }


def _kill_getter_again_and_again(
    tmp_path: Path, source: Path, total: int, rng: random.Random, *, kills: int
) -> None:
    """Fetch into a store by a process that is killed at random offsets; export to "out"."""
    store = tmp_path / "fetched"
    with running(
        "serve", tmp_path / "served", "127.0.0.1:0", os.urandom(32).hex(), source
    ) as server:
        text = line_of(server)
        content = BlobTicket.parse(text).content
        offsets = sorted(rng.randrange(total) for _ in range(kills))
        held = 0
        for offset in offsets:
            reported = held
            with running("fetch", store, text) as getter:
                while reported < offset and (line := line_of(getter)).isdigit():
                    assert int(line) >= held
                    reported = int(line)
                getter.kill()
            before, held = held, asyncio.run(_held_in(store, content))
            assert held >= max(before, reported)
        with running("fetch", store, text) as getter:
            lines = iter(lambda: line_of(getter), "")
            word, payload, whole = list(lines)[-1].split()
    assert word == "done"
    assert int(whole) >= total
    # What was there was not fetched again.
    assert int(payload) == int(whole) - held
    asyncio.run(_export(store, content, tmp_path / "out"))


async def _held_in(path: Path, content: HashAndFormat) -> int:
    from dialkey_blobs.local import look

    async with FsStore(path) as store:
        return (await store.run(lambda core: look(core, content))).held_bytes


async def _export(path: Path, content: HashAndFormat, target: Path) -> None:
    async with Blobs.persistent(path) as blobs:
        async for _ in blobs.export(content, target):
            pass


# --- the provider stops -------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
async def test_a_killed_provider_that_comes_back(tmp_path: Path, big: bytes) -> None:
    # More than can be on its way or held back unverified when the provider is killed.
    content = big * 4
    file = tmp_path / "big.bin"
    file.write_bytes(content)
    rng = random.Random(3)
    serve = (
        "serve",
        tmp_path / "served",
        f"127.0.0.1:{free_port()}",
        os.urandom(32).hex(),
        file,
    )
    with ExitStack() as stack:
        server = stack.enter_context(running(*serve))
        source = BlobTicket.parse(await asyncio.to_thread(line_of, server))
        offsets = sorted(rng.randrange(SIZE) for _ in range(2))
        failures = []
        async with bind() as endpoint, Blobs.persistent(tmp_path / "fetched") as blobs:
            blobs.attach(endpoint)
            async for event in blobs.download(source, stall_timeout_s=1.0):
                if isinstance(event, Progress) and offsets and event.held_bytes >= offsets[0]:
                    offsets.pop(0)
                    server.kill()
                    server = stack.enter_context(running(*serve))
                    await asyncio.to_thread(line_of, server)
                elif isinstance(event, ProviderFailed):
                    failures.append(event.error)
                    assert event.retry_in_s is not None
            assert isinstance(event, Downloaded)
            # Everything came once: nothing that was verified before was asked for again.
            assert event.payload_bytes == len(content)
            assert await blobs.store.read(source.hash, len(content) - 100) == big[-100:]
            assert await blobs.store.has(source.hash)
    assert failures
    assert all(isinstance(error, (ConnectionLost, DialError)) for error in failures)


@pytest.mark.slow
async def test_a_killed_provider_is_replaced_by_another(
    peers: Pair, big: bytes, tmp_path: Path
) -> None:
    # More than can be on its way or held back unverified when the provider is killed.
    content = big * 4
    file = tmp_path / "big.bin"
    file.write_bytes(content)
    tag = await peers.sharing.add_bytes(content)
    with running("serve", tmp_path / "served", "127.0.0.1:0", os.urandom(32).hex(), file) as server:
        source = BlobTicket.parse(await asyncio.to_thread(line_of, server))
        async for event in peers.fetching.download(
            source, providers=[peers.provider.addr()], stall_timeout_s=0.5
        ):
            if isinstance(event, Progress) and event.held_bytes > SIZE // 4:
                server.kill()
    assert isinstance(event, Downloaded)
    assert event.remote_id == peers.provider.id
    assert event.payload_bytes == len(content)
    assert await peers.fetching.store.has(tag.hash)


async def test_an_endpoint_that_closes_is_replaced_by_another(peers: Pair, big: bytes) -> None:
    tag = await peers.sharing.add_bytes(big)
    failures = []
    async with bind() as leaving, serving(leaving) as router:
        first = router.add(Blobs.memory())
        (await first.add_bytes(big)).leak()
        async for event in peers.fetching.download(
            first.ticket(tag), providers=[peers.provider.addr()]
        ):
            if isinstance(event, Progress) and event.held_bytes > SIZE // 4:
                await leaving.close()
            if isinstance(event, ProviderFailed):
                failures.append(event)
    assert isinstance(event, Downloaded)
    assert event.remote_id == peers.provider.id
    assert event.payload_bytes == SIZE
    assert isinstance(failures[0].error, ConnectionClosedByPeer)


async def test_if_nobody_is_left_the_error_says_so_and_what_came_stays(
    memory_peers: Pair, big: bytes
) -> None:
    async with bind() as leaving, serving(leaving) as router:
        first = router.add(Blobs.memory())
        tag = await first.add_bytes(big)
        error = None
        try:
            async for event in memory_peers.fetching.download(first.ticket(tag), patience_s=1):
                if isinstance(event, Progress) and event.held_bytes > SIZE // 4:
                    await leaving.close()
        except DialkeyError as raised:
            error = raised
    assert isinstance(error, (DialError, ConnectionClosedByPeer))
    held = await held_of(memory_peers.fetching.store, tag.hash)
    (await memory_peers.sharing.add_bytes(big)).leak()
    done = await memory_peers.fetching.download(ticket(memory_peers.provider, tag.hash))
    assert done.payload_bytes == SIZE - held < SIZE


async def test_a_collection_goes_on_at_the_blob_where_it_stopped(peers: Pair) -> None:
    rng = random.Random(4)
    contents = [rng.randbytes(rng.choice([10, 3000, 50_000])) for _ in range(30)]
    entries = tuple((f"{i}", Hash.of(data)) for i, data in enumerate(contents))
    metadata, children = Collection(entries).to_blobs()
    have = {Hash.of(data): data for data in (*contents, metadata, children.data)}
    content = HashAndFormat(children.hash(), BlobFormat.HASH_SEQ)
    cut = [20_000, 150_000, 10**9]

    async def answer(
        request: GetRequest | GetManyRequest, send: SendStream, recv: RecvStream
    ) -> None:
        stream = response(have, request)
        if len(stream) > 15_000:
            stream = stream[: cut.pop(0)]
        await send.write(stream)
        await send.finish()

    async with handmade(answer) as (provider, endpoint):
        received = 0
        for _ in range(2):
            try:
                async for event in peers.fetching.download(ticket(endpoint, content)):
                    if isinstance(event, Progress):
                        received = event.held_bytes
            except (BlobNotFound, BlobTruncated, ItemNotFound):
                continue
            raise AssertionError("it was cut off")
        done = await peers.fetching.download(ticket(endpoint, content))
    assert done.total_bytes == sum(map(len, have.values()))
    assert done.payload_bytes == done.total_bytes - received
    # The last request leaves out what had come, blob by blob.
    ranges = provider.requests[-1].ranges
    assert isinstance(ranges, ChunkRangesSeq)
    assert not ranges[0]
    assert not ranges[1]
    assert not ranges[2]
    assert ranges[30]


# --- the store does not play along --------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """Return a mount point with room for less than `SIZE`; only root can make one."""
    if os.geteuid():
        pytest.skip("only root can mount a small file system")
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    return path


async def test_a_full_disk_is_an_error_and_the_download_goes_on_when_there_is_room(
    small_disk: Path, big: bytes
) -> None:
    try:
        async with pair(Blobs.memory(), Blobs.persistent(small_disk / "store")) as peers:
            tag = await peers.sharing.add_bytes(big)
            source = peers.sharing.ticket(tag)
            with pytest.raises(DiskFull, match="No space left") as caught:
                await peers.fetching.download(source)
            assert isinstance(caught.value, StorageError)
            assert caught.value.hint is not None
            held = await held_of(peers.fetching.store, tag.hash)
            assert 0 < held < 8 << 20
            # It stays full: the error comes again, and nothing is lost.
            with pytest.raises(DiskFull):
                await peers.fetching.download(source)
            assert await held_of(peers.fetching.store, tag.hash) >= held

            held = await held_of(peers.fetching.store, tag.hash)
            remount = ["mount", "-o", "remount,size=100m", str(small_disk)]
            await asyncio.to_thread(subprocess.run, remount, check=True)
            done = await peers.fetching.download(source)
            assert done.payload_bytes == SIZE - held
            assert (await peers.fetching.store.check(tag.hash)).after.is_complete
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", small_disk], check=True)


async def test_garbage_collection_spares_what_is_being_fetched(peers: Pair, big: bytes) -> None:
    rng = random.Random(5)
    contents = [rng.randbytes(200_000) for _ in range(10)]
    tags = await peers.sharing.store.add_many(contents)
    collection = await peers.sharing.add_collection(
        [(f"{number}", tag.hash) for number, tag in enumerate(tags)]
    )
    single = await peers.sharing.add_bytes(big)
    for tag, blobs in ((collection, 12), (single, 1)):
        deleted: list[Hash] = []
        async for event in peers.fetching.download(peers.sharing.ticket(tag)):
            if isinstance(event, (Progress, Downloaded)):
                deleted += (await peers.fetching.store.collect_garbage()).deleted
        assert isinstance(event, Downloaded)
        assert deleted == []
        assert event.payload_bytes == event.total_bytes
        # Afterwards nothing protects it.
        assert len((await peers.fetching.store.collect_garbage()).deleted) == blobs


async def test_ranges_that_were_held_are_left_out(peers: Pair, big: bytes) -> None:
    tag = await peers.sharing.add_bytes(big)
    connection = await peers.connect()
    held = ChunkRanges.empty()
    rng = random.Random(6)
    for _ in range(5):
        start = rng.randrange(SIZE // 1024)
        ranges = ChunkRanges.between(start, start + rng.randrange(1, 3000))
        await peers.fetching.get(connection, GetRequest.blob(tag.hash, ranges))
        held |= ranges
    done = await peers.fetching.download(tag.content, connection=connection)
    assert done.payload_bytes == SIZE - held.byte_count(SIZE)
    assert (await peers.fetching.store.check(tag.hash)).after.is_complete


async def test_more_holes_than_one_request_should_name(
    peers: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_REQUEST_BOUNDARIES", 8)
    monkeypatch.setattr(download, "MAX_REQUEST_ENTRIES", 4)
    rng = random.Random(7)
    contents = [rng.randbytes(rng.randrange(5, 60) * 1024) for _ in range(12)]
    tags = await peers.sharing.store.add_many(contents)
    collection = await peers.sharing.add_collection([(f"{i}", t.hash) for i, t in enumerate(tags)])
    connection = await peers.connect()
    every_other = ChunkRanges(tuple(range(60)))
    hashes = tuple(tag.hash for tag in tags[2:])
    request = GetManyRequest(hashes, ChunkRangesSeq.finite([every_other] * len(hashes)))
    held = (await peers.fetching.get(connection, request)).payload_bytes
    requests = peers.sharing.provider_events()

    done = await peers.fetching.download(collection.content, connection=connection)

    assert done.payload_bytes == done.total_bytes - held
    for data in contents:
        assert await peers.fetching.read_bytes(Hash.of(data)) == data
    told = [await requests.get() for _ in range(len(requests))]
    requests.close()
    asked = [event.request for event in told if isinstance(event, RequestStarted)]
    assert len(asked) > 12 * 3
