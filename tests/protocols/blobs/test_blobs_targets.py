"""Where ``dialkey receive --output`` puts things, and when ``dialkey send --once`` has been taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from dialkey import Endpoint, SecretKey
from dialkey.cli import Output
from dialkey.errors import ConnectionClosedByPeer, ConnectionLost, DialkeyError, InvalidInput
from dialkey_blobs import (
    BlobFormat,
    GetRequest,
    Hash,
    HashAndFormat,
    RequestEnded,
    RequestStarted,
)
from dialkey_blobs.protocol import COMPLETE_REASON, FAILED_REASON, CloseCode
from dialkey_blobs.provider import ProviderEvents
from dialkey_blobs.ranges import ChunkRanges, ChunkRangesSeq
from dialkey_blobs.taken import Taken
from dialkey_blobs.targets import Target

ONE, TREE, MANY = ["film.mp4"], ["album/film.mp4"], ["a", "b"]


@pytest.mark.parametrize(
    ("given", "names", "paths"),
    [
        (".", ONE, ["film.mp4"]),
        ("there", ONE, ["there/film.mp4"]),
        ("there", TREE, ["there/album/film.mp4"]),
        ("there/", MANY, ["there/a", "there/b"]),
        ("new/", ONE, ["new/film.mp4"]),
        ("new/.", ONE, ["new/film.mp4"]),
        ("..", ONE, ["../film.mp4"]),
        ("new", ONE, ["new"]),
        ("new.mp4", ONE, ["new.mp4"]),
        ("there/new.mp4", ONE, ["there/new.mp4"]),
        ("new", TREE, ["new/album/film.mp4"]),
        ("new", MANY, ["new/a", "new/b"]),
        ("file", ONE, ["file"]),
        ("link", ONE, ["link/film.mp4"]),
        ("~", ONE, ["~"]),
        ("~/new", ONE, ["~/new"]),
        ("./-", ONE, ["-"]),
        ("-", ONE, []),
        ("-", TREE, []),
    ],
)
def test_where_things_go(
    given: str,
    names: list[str],
    paths: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("there")
    target = Target.parse(given)
    assert target.paths(names) == [Path(path) for path in paths]
    # What has come so far is kept on the same file system, so that it can move into place.
    assert all(path.is_relative_to(target.state_folder) for path in target.paths(names))


@pytest.mark.parametrize(
    ("given", "names"), [("file", MANY), ("file", TREE), ("-", MANY), ("-", [])]
)
def test_what_cannot_go_there(
    given: str, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="-o DIR/"):
        Target.parse(given).paths(names)


# --- when it has been taken -----------------------------------------------------------------------

GETTER = SecretKey(bytes(32)).id
NAMES = GetRequest(Hash.of(b"list"), ChunkRangesSeq.finite([ChunkRanges.all(), ChunkRanges.all()]))
SIZES = GetRequest(
    Hash.of(b"list"),
    ChunkRangesSeq.finite([ChunkRanges.empty(), ChunkRanges.empty(), ChunkRanges.last_chunk()]),
)
CONTENT = GetRequest(
    Hash.of(b"list"),
    ChunkRangesSeq.finite([ChunkRanges.empty(), ChunkRanges.empty(), ChunkRanges.all()]),
)
EVERYTHING = GetRequest.all(HashAndFormat(Hash.of(b"list"), BlobFormat.HASH_SEQ))


class FakeConnection:
    remote_id = GETTER

    def __init__(self, error: DialkeyError) -> None:
        self._error = error

    async def closed(self) -> DialkeyError:
        return self._error


class FakeEndpoint:
    def __init__(self, error: DialkeyError) -> None:
        self.connections = [FakeConnection(error)]


def closed(code: int, reason: bytes = b"") -> DialkeyError:
    return ConnectionClosedByPeer("closed", error_code=code, reason=reason)


COMPLETE = closed(CloseCode.COMPLETE, COMPLETE_REASON)
FAILED = closed(CloseCode.FAILED, FAILED_REASON)
FOREIGN = closed(0)
LOST = ConnectionLost("lost")


async def is_taken(
    requests: list[GetRequest], end: DialkeyError, size: int, error: str | None = None
) -> bool:
    taken = Taken(Output(json=True), cast("Endpoint", FakeEndpoint(end)), [size])

    async def events() -> AsyncIterator[object]:
        for number, request in enumerate(requests):
            yield RequestStarted(number, GETTER, request)
            yield RequestEnded(number, GETTER, 0, 0, error if request is requests[-1] else None)
        await asyncio.Event().wait()

    following = asyncio.create_task(taken.follow(cast("ProviderEvents", events())))
    done = asyncio.create_task(taken.once())
    # Nothing here waits for time or the network, so all that can happen happens in a few turns.
    for _ in range(50):
        await asyncio.sleep(0)
    is_done = done.done()
    done.cancel()
    following.cancel()
    await asyncio.wait([done, following])
    return is_done


@pytest.mark.parametrize(
    ("requests", "end", "size", "expected"),
    [
        ([NAMES, SIZES, CONTENT], COMPLETE, 100_000, True),
        ([NAMES, SIZES, CONTENT], FOREIGN, 100_000, True),
        ([EVERYTHING], FOREIGN, 100_000, True),
        # The receiver could not write it, or did not want it.
        ([NAMES, SIZES, CONTENT], FAILED, 100_000, False),
        ([NAMES, SIZES], FAILED, 100_000, False),
        ([NAMES, SIZES], FAILED, 10, False),
        # Nobody knows what became of it.
        ([NAMES, SIZES, CONTENT], LOST, 100_000, False),
        # Names and sizes alone are not the files, unless the receiver had the rest.
        ([NAMES, SIZES], FOREIGN, 100_000, False),
        ([NAMES], FOREIGN, 100_000, False),
        ([NAMES, SIZES], COMPLETE, 100_000, True),
        # The last chunk of a small file is all of it, and of an empty one there is none.
        ([NAMES, SIZES], FOREIGN, 1024, True),
        ([NAMES], COMPLETE, 0, True),
        ([NAMES], FOREIGN, 0, True),
        ([NAMES], FAILED, 0, False),
    ],
)
async def test_when_it_was_taken(
    requests: list[GetRequest],
    end: DialkeyError,
    size: int,
    expected: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert await is_taken(requests, end, size) is expected
    assert ("not_received" in capsys.readouterr().out) == (end is FAILED)


async def test_a_request_that_ends_early_is_not_the_end_unless_the_getter_says_so() -> None:
    """A dialkey that finds everything in place already breaks off, and says that it is complete."""
    for end in (FOREIGN, FAILED, LOST):
        assert not await is_taken([NAMES, CONTENT], end, 100_000, error="stopped")
    assert await is_taken([NAMES, CONTENT], COMPLETE, 100_000, error="stopped")
