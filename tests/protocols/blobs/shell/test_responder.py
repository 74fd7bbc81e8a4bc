"""Producing responses: in steps, and with the work for many small blobs done at once."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from blob_peers import response

from dialkey_blobs import encoder
from dialkey_blobs.hash import BlobFormat, Hash
from dialkey_blobs.hash_seq import HashSeq
from dialkey_blobs.protocol import GetManyRequest, GetRequest
from dialkey_blobs.ranges import ChunkRanges, ChunkRangesSeq
from dialkey_blobs.responder import CannotServe, Responder, ResponderCaches
from dialkey_blobs.store.memory_core import MemoryCore

LAST = ChunkRanges.last_chunk()
SIZES = [0, 1, 1024, 1025, 5000, 16_384, 16_385, 17_500, 100_000]


@pytest.fixture
def contents() -> dict[Hash, bytes]:
    rng = random.Random(0)
    blobs = [rng.randbytes(rng.choice(SIZES)) for _ in range(150)]
    return {Hash.of(data): data for data in blobs}


@pytest.fixture
def core(contents: dict[Hash, bytes]) -> Iterator[MemoryCore]:
    core = MemoryCore()
    tags = core.add_many(list(contents.values()), BlobFormat.RAW)
    yield core
    assert tags


def produce(responder: Responder, core: MemoryCore) -> tuple[bytes, Exception | None]:
    pieces: list[bytes] = []
    over = False
    error: Exception | None = None
    while not over:
        new, _, error, over = responder.step(core)
        pieces += new
    return b"".join(pieces), error


@pytest.mark.parametrize(
    "ranges",
    [
        LAST,
        ChunkRanges.between(0, 1),
        ChunkRanges.between(0, 1) | LAST,
        ChunkRanges.between(2, 40),
        ChunkRanges.between(1) - ChunkRanges.between(5, 7) - ChunkRanges.between(33, 35),
        ChunkRanges.all(),
    ],
    ids=str,
)
def test_looking_ahead_changes_nothing(
    contents: dict[Hash, bytes], core: MemoryCore, ranges: ChunkRanges
) -> None:
    hashes = tuple(contents)
    rng = random.Random(1)
    sets = [rng.choice([ranges, ranges, ranges, ChunkRanges.all()]) for _ in hashes]
    request = GetManyRequest(hashes, ChunkRangesSeq.finite(sets))
    responder = Responder(request)
    made, error = produce(responder, core)
    assert error is None
    assert made == response(contents, request)
    assert responder.payload_bytes + responder.overhead_bytes == len(made)


def test_proofs_of_many_sizes_are_computed_in_batches(
    contents: dict[Hash, bytes], core: MemoryCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = HashSeq.of(contents)
    root = core.add_many([sequence.data], BlobFormat.HASH_SEQ)[0]
    request = GetRequest(root.hash, ChunkRangesSeq.endless([ChunkRanges.all(), LAST]))
    expected = response({**contents, root.hash: sequence.data}, request)
    calls: list[int] = []
    original = encoder.subtree_levels

    def counted(groups):  # type: ignore[no-untyped-def]
        calls.append(len(groups))
        return original(groups)

    monkeypatch.setattr(encoder, "subtree_levels", counted)
    caches = ResponderCaches()
    made, error = produce(Responder(request, caches), core)
    assert error is None
    assert made == expected
    assert len([count for count in calls if count]) <= 4
    # And the next time not at all.
    calls.clear()
    produce(Responder(request, caches), core)
    assert sum(calls) == 0


def test_what_is_missing_is_noticed_in_its_turn(
    contents: dict[Hash, bytes], core: MemoryCore
) -> None:
    hashes = list(contents)
    unknown = Hash.of(b"unknown")
    asked = (*hashes[:5], unknown, *hashes[5:9])
    request = GetManyRequest(asked, ChunkRangesSeq.finite([LAST] * len(asked)))
    made, error = produce(Responder(request), core)
    before = GetManyRequest(asked[:5], ChunkRangesSeq.finite([LAST] * 5))
    assert made == response(contents, before)
    assert isinstance(error, CannotServe)
    assert unknown.short() in str(error)


def test_requests_for_one_sequence_share_it(contents: dict[Hash, bytes], core: MemoryCore) -> None:
    root = core.add_many([HashSeq.of(contents).data], BlobFormat.HASH_SEQ)[0]
    caches = ResponderCaches()
    first = caches.hash_seq(core, root.hash)
    assert caches.hash_seq(core, root.hash) is first
