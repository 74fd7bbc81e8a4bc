"""Files that are offered as soon as their hash is known, before their outboards are made."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dialkey.errors import StorageError
from dialkey_blobs import hashing
from dialkey_blobs import outboard as outboard_module
from dialkey_blobs.encoder import Encoder
from dialkey_blobs.hash import BlobFormat, Hash
from dialkey_blobs.outboard import outboard
from dialkey_blobs.protocol import GetManyRequest
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.responder import Responder
from dialkey_blobs.store import (
    BlobMissing,
    BlobState,
    CheckOutcome,
    FileFailed,
    FsStore,
    ImportMode,
    ReferenceChanged,
    TempTag,
    deferred,
)
from dialkey_blobs.store.files import FileOps
from dialkey_blobs.store.fs_core import FsCore
from dialkey_blobs.store.gc import collect
from dialkey_blobs.store.values import finish

Content = Callable[..., bytes]
LARGE = 9_000_000


class Ops(FileOps):
    """Lets commits or the creation of files fail while it is told to."""

    commits_fail = False
    creating_fails = False

    def commit(self, connection: sqlite3.Connection) -> None:
        if self.commits_fail:
            raise sqlite3.OperationalError("database or disk is full")
        super().commit(connection)

    def open(self, path: str | Path, flags: int, mode: int = 0o666) -> int:
        if self.creating_fails and flags & os.O_CREAT:
            raise OSError(28, os.strerror(28))
        return super().open(path, flags, mode)


@pytest.fixture
def ops() -> Ops:
    return Ops()


@pytest.fixture
def core(tmp_path: Path, ops: Ops) -> Iterator[FsCore]:
    core = FsCore(tmp_path / "store", ops=ops)
    yield core
    core.close()


def defer(core: FsCore, path: Path, data: bytes) -> TempTag:
    path.write_bytes(data)
    [tag] = finish(core.add_paths([path], ImportMode.DEFERRED, BlobFormat.RAW))
    core.commit()
    return tag


def stream_of(data: bytes) -> bytes:
    """Return what a getter of the whole blob receives."""
    built = outboard(data)
    return b"".join(
        Encoder(
            built.hash,
            len(data),
            ChunkRanges.all(),
            lambda offset, length: data[offset : offset + length],
            lambda offset, length: built.data[offset : offset + length],
        )
    )


def serve(core: FsCore, *hashes: Hash) -> tuple[bytes, Exception | None]:
    """Answer a request as a provider does: a step at a time, each followed by a commit."""
    responder = Responder(GetManyRequest.whole(hashes))
    sent: list[bytes] = []
    over = False
    error: Exception | None = None
    while not over:
        pieces, _, error, over = responder.step(core)
        core.commit()
        sent += pieces
    responder.close()
    return b"".join(sent), error


def test_the_hash_is_known_without_any_chaining_value(
    core: FsCore, tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("this takes ten times as long as the hash")

    for module in (hashing, outboard_module):
        monkeypatch.setattr(module, "group_cvs", refuse)
        monkeypatch.setattr(module, "subtree_cvs", refuse)
    folder = tmp_path / "files"
    folder.mkdir()
    files = {folder / str(size): content(size) for size in (0, 3, 16_384, 16_385, 900_000, LARGE)}
    for path, data in files.items():
        path.write_bytes(data)

    tags = finish(core.add_paths(list(files), ImportMode.DEFERRED, BlobFormat.RAW))
    core.commit()

    assert [tag.hash for tag in tags] == [Hash.of(data) for data in files.values()]
    for data in files.values():
        status = core.status(Hash.of(data))
        assert (status.state, status.size) == (BlobState.COMPLETE, len(data))
        with core.open(Hash.of(data)) as blob:
            assert blob.read_data(0, len(data)) == data
    assert {info.hash for info in core.blobs()} == {Hash.of(d) for d in files.values() if d}
    assert core.stats().complete == 5


@pytest.mark.parametrize("size", [3, 16_385, 900_000, LARGE])
def test_a_request_that_comes_first_waits_for_its_own_blob_only(
    core: FsCore, tmp_path: Path, content: Content, size: int
) -> None:
    other, wanted = content(LARGE, 1), content(size, 2)
    tags = [defer(core, tmp_path / "other", other), defer(core, tmp_path / "wanted", wanted)]
    assert serve(core, tags[1].hash) == (stream_of(wanted), None)
    assert [core.entry(tag.hash) is not None for tag in tags] == [False, True]
    assert serve(core, *[tag.hash for tag in tags])[0] == stream_of(other) + stream_of(wanted)


def test_two_requests_share_the_work(core: FsCore, tmp_path: Path, content: Content) -> None:
    data = content(LARGE)
    tag = defer(core, tmp_path / "file", data)
    responders = [Responder(GetManyRequest.whole((tag.hash,))) for _ in range(2)]
    sent: list[list[bytes]] = [[], []]
    open_ones = [0, 1]
    while open_ones:
        for number in list(open_ones):
            pieces, _, error, over = responders[number].step(core)
            assert error is None
            sent[number] += pieces
            if over:
                open_ones.remove(number)
        core.commit()
    assert [b"".join(pieces) for pieces in sent] == [stream_of(data)] * 2


def test_small_files_are_hashed_together_also_on_demand(
    core: FsCore, tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = [content(20_000, number) for number in range(100)]
    tags = [defer(core, tmp_path / str(n), data) for n, data in enumerate(blobs)]
    calls: list[int] = []
    original = deferred.outboards
    monkeypatch.setattr(
        deferred, "outboards", lambda contents: calls.append(len(contents)) or original(contents)
    )
    assert serve(core, tags[50].hash) == (stream_of(blobs[50]), None)
    assert calls == [100]


@pytest.mark.parametrize("size", [100, 50_000, LARGE])
@pytest.mark.parametrize("change", ["append", "cut", "same size", "delete"])
def test_a_file_that_changes_before_its_outboard_is_made_is_noticed(
    core: FsCore, tmp_path: Path, content: Content, size: int, change: str
) -> None:
    path, good = tmp_path / "file", content(size, 1)
    tag, untouched = defer(core, path, content(size)), defer(core, tmp_path / "good", good)
    if change == "append":
        path.write_bytes(content(size) + b"more")
    elif change == "cut":
        os.truncate(path, size // 2)
    elif change == "same size":
        path.write_bytes(content(size, 7))
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
    for _ in range(2):
        sent, error = serve(core, tag.hash)
        assert sent == b""
        assert isinstance(error, ReferenceChanged)
        assert str(path) in str(error)
    assert serve(core, untouched.hash) == (stream_of(good), None)
    assert finish(core.check(tag.hash)).outcome is CheckOutcome.LOST
    assert core.status(tag.hash).state is BlobState.MISSING


@pytest.mark.parametrize("size", [100, 50_000, LARGE])
def test_a_change_that_leaves_no_trace_but_in_the_content_is_noticed(
    core: FsCore, tmp_path: Path, content: Content, size: int
) -> None:
    path = tmp_path / "file"
    tag = defer(core, path, content(size))
    before = path.stat()
    path.write_bytes(content(size, 7))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    sent, error = serve(core, tag.hash)
    assert sent == b""
    assert isinstance(error, ReferenceChanged)


def test_a_change_in_the_middle_of_the_work_is_noticed(
    core: FsCore, tmp_path: Path, content: Content
) -> None:
    path = tmp_path / "file"
    tag = defer(core, path, content(LARGE))
    responder = Responder(GetManyRequest.whole((tag.hash,)))
    with core.open(tag.hash) as blob:
        assert not blob.prepare()
        with path.open("r+b") as file:
            file.write(b"changed")
        os.utime(path, ns=(5, 5))
        with pytest.raises(ReferenceChanged):
            blob.read_outboard(0, 64)
    _, _, error, over = responder.step(core)
    assert over
    assert isinstance(error, ReferenceChanged)
    assert list((tmp_path / "store" / "temp").iterdir()) == []


def test_what_is_made_in_the_background_outlives_the_process(
    core: FsCore, tmp_path: Path, content: Content
) -> None:
    blobs = [content(size) for size in (20_000, LARGE, 300_000)]
    tags = [defer(core, tmp_path / str(n), data) for n, data in enumerate(blobs)]
    done = list(core.make_outboards())
    assert done == sorted(done)
    assert done[-1] == sum(map(len, blobs))
    core.commit()
    core.close()
    again = FsCore(tmp_path / "store")
    for tag, data in zip(tags, blobs, strict=True):
        assert serve(again, tag.hash) == (stream_of(data), None)
    again.close()


def test_one_that_fails_does_not_keep_others_from_being_made(
    core: FsCore, tmp_path: Path, content: Content, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = defer(core, tmp_path / "a", content(LARGE)), content(40_000)
    (tmp_path / "a").unlink()
    tag = defer(core, tmp_path / "b", good)
    finish(core.make_outboards())
    core.commit()
    assert core.entry(tag.hash) is not None
    assert str(tmp_path / "a") in caplog.text
    with pytest.raises(ReferenceChanged):
        core.open(bad.hash)


@pytest.mark.parametrize("size", [100, 50_000, LARGE])
def test_an_entry_that_could_not_be_committed_is_made_again(
    core: FsCore, ops: Ops, tmp_path: Path, content: Content, size: int
) -> None:
    data = content(size)
    tag = defer(core, tmp_path / "file", data)
    ops.commits_fail = True
    finish(core.make_outboards())
    with pytest.raises(StorageError):
        core.commit()
    assert core.status(tag.hash).state is BlobState.COMPLETE
    ops.commits_fail = False
    assert serve(core, tag.hash) == (stream_of(data), None)


def test_a_full_disk_fails_the_request_and_no_later_one(
    core: FsCore, ops: Ops, tmp_path: Path, content: Content
) -> None:
    data = content(LARGE)
    tag = defer(core, tmp_path / "file", data)
    ops.creating_fails = True
    sent, error = serve(core, tag.hash)
    assert (sent, type(error).__name__) == (b"", "DiskFull")
    ops.creating_fails = False
    assert serve(core, tag.hash) == (stream_of(data), None)


def test_garbage_collection_treats_it_as_any_blob(
    core: FsCore, tmp_path: Path, content: Content
) -> None:
    kept = defer(core, tmp_path / "kept", content(LARGE, 1))
    dropped = defer(core, tmp_path / "dropped", content(LARGE, 2))
    hash = dropped.hash
    with core.open(hash) as reader:
        dropped.release()
        assert finish(collect(core)).deleted == (hash,)
        with pytest.raises(BlobMissing):
            reader.prepare()
    assert core.status(kept.hash).state is BlobState.COMPLETE
    assert core.status(hash).state is BlobState.MISSING
    assert core.delete([kept.hash], force=True) == 1
    assert core.blobs() == []


def test_the_same_content_by_another_way_takes_its_place(
    core: FsCore, tmp_path: Path, content: Content
) -> None:
    data = content(200_000)
    tag = defer(core, tmp_path / "file", data)
    core.add_many([data], BlobFormat.RAW)
    core.commit()
    (tmp_path / "file").unlink()
    assert serve(core, tag.hash) == (stream_of(data), None)
    assert len(core.blobs()) == 1
    # The other way round, what is stored already stays.
    assert defer(core, tmp_path / "again", data).hash == tag.hash
    assert not any(info.is_reference for info in core.blobs())


def test_many_small_files_cost_no_write_before_their_outboards_are_made(
    core: FsCore, tmp_path: Path, content: Content
) -> None:
    """A transaction with their content took half of the time to a ticket."""
    blobs = [content(size, size) for size in range(0, 40_000, 400)]
    paths = [tmp_path / str(len(data)) for data in blobs]
    for path, data in zip(paths, blobs, strict=True):
        path.write_bytes(data)
    writes = core.writes
    tags = finish(core.add_paths([*paths, *paths], ImportMode.DEFERRED, BlobFormat.RAW))
    core.commit()
    assert core.writes == writes
    assert [tag.hash for tag in tags] == 2 * [Hash.of(data) for data in blobs]
    finish(core.make_outboards())
    core.commit()
    # Now the small ones are the store's own, and need their files no more.
    small = [data for data in blobs if len(data) <= 16_384]
    for data in small:
        (tmp_path / str(len(data))).unlink()
        assert serve(core, Hash.of(data)) == (stream_of(data), None)
    references = {info.hash for info in core.blobs() if info.is_reference}
    assert references == {Hash.of(data) for data in blobs[len(small) :]}


def test_a_link_is_followed_once(core: FsCore, tmp_path: Path, content: Content) -> None:
    data = content(30_000)
    (tmp_path / "file").write_bytes(data)
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "circle").symlink_to("circle")
    [tag] = finish(core.add_paths([tmp_path / "link"], ImportMode.DEFERRED, BlobFormat.RAW))
    core.commit()
    (tmp_path / "link").unlink()
    assert serve(core, tag.hash) == (stream_of(data), None)
    with pytest.raises(FileFailed, match="circle"):
        finish(core.add_paths([tmp_path / "circle"], ImportMode.DEFERRED, BlobFormat.RAW))


def test_very_large_files_are_not_deferred(
    core: FsCore, tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A getter would leave before their outboards are made."""
    monkeypatch.setattr(deferred, "MAX_DEFERRED_BYTES", 2_000_000)
    tags = [defer(core, tmp_path / str(n), content(n)) for n in (2_000_000, 2_000_001)]
    assert [core.entry(tag.hash) is not None for tag in tags] == [False, True]


async def test_a_store_in_an_event_loop(tmp_path: Path, content: Content) -> None:
    data = content(LARGE)
    (tmp_path / "file").write_bytes(data)
    done: list[int] = []
    async with FsStore(tmp_path / "store") as store:
        tag = await store.add_path(tmp_path / "file", ImportMode.DEFERRED)
        async with await store.blob(tag.hash) as blob:
            # Whoever cannot wait step by step waits here.
            assert await blob.read_outboard(0, 1 << 20) == outboard(data).data
        await store.make_outboards(progress=done.append)
        assert (await store.check(tag.hash)).outcome is CheckOutcome.GOOD
