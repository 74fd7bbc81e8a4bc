"""What the tests of stores share."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dialkey_blobs.decoder import Decoder
from dialkey_blobs.encoder import Encoder
from dialkey_blobs.events import VerifiedLeaf, VerifiedParent
from dialkey_blobs.outboard import outboard
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.store import FsStore, MemoryStore, Store

Items = tuple[int, list[VerifiedParent], list[VerifiedLeaf]]
ItemsOf = Callable[..., Items]
Content = Callable[..., bytes]


def _content(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{seed} {size}").randbytes(size)


def _items_of(data: bytes, ranges: ChunkRanges | None = None, *, size: int | None = None) -> Items:
    """Return (claimed size, parents, leaves) as a getter receives them for `ranges`."""
    wanted = ChunkRanges.all() if ranges is None else ranges
    built = outboard(data)
    encoder = Encoder(
        built.hash,
        len(data),
        wanted,
        lambda offset, length: data[offset : offset + length],
        lambda offset, length: built.data[offset : offset + length],
    )
    stream = b"".join(encoder)
    if size is not None:
        stream = size.to_bytes(8, "little") + stream[8:]
    decoder = Decoder(built.hash, wanted)
    events = decoder.feed(stream) + decoder.flush()
    assert decoder.size is not None
    return (
        decoder.size,
        [event for event in events if isinstance(event, VerifiedParent)],
        [event for event in events if isinstance(event, VerifiedLeaf)],
    )


@pytest.fixture
def content() -> Content:
    """Return a function that makes (size, seed) into bytes, always the same."""
    return _content


@pytest.fixture
def items_of() -> ItemsOf:
    """Return a function that makes content and ranges into verified items."""
    return _items_of


@pytest.fixture(params=["fs", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """One store of each kind."""
    made: Store = FsStore(tmp_path / "store") if request.param == "fs" else MemoryStore()
    async with made:
        yield made
