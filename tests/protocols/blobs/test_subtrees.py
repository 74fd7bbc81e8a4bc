"""Complete subtrees in one piece: the same verdict and the same stored state as group by group."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dialkey.errors import RemoteError
from dialkey_blobs.encoder import Encoder
from dialkey_blobs.errors import ParentMismatch
from dialkey_blobs.events import BlobEvent, VerifiedLeaf, VerifiedParent, VerifiedSubtree
from dialkey_blobs.hash import Hash
from dialkey_blobs.hashing import Buffer, blocks_cvs, group_cvs
from dialkey_blobs.outboard import Outboard, outboard
from dialkey_blobs.protocol import GetManyRequest
from dialkey_blobs.ranges import ChunkRanges, ChunkRangesSeq
from dialkey_blobs.response import ResponseDecoder
from dialkey_blobs.store.core import OpenBlob, StoreCore
from dialkey_blobs.store.errors import FileFailed
from dialkey_blobs.store.files import FileOps, write_parts_at
from dialkey_blobs.store.fs_core import FsCore
from dialkey_blobs.store.memory_core import MemoryCore
from dialkey_blobs.subtrees import STREAM_BYTES, cut, items
from dialkey_blobs.tree import (
    GROUP_BYTES,
    SUBTREE_BYTES,
    Leaf,
    Parent,
    Subtree,
    plan,
    plan_with_subtrees,
)

pytestmark = pytest.mark.usefixtures("each_hashing")

MIB = SUBTREE_BYTES
GROUP = GROUP_BYTES


class Blob:
    """A blob, and the stream of its `ranges`."""

    def __init__(self, data: bytes, ranges: ChunkRanges) -> None:
        self.data = data
        self.ranges = ranges
        self.made: Outboard = outboard(data)

        def read(source: bytes, offset: int, length: int) -> bytes:
            return source[offset : offset + length]

        encoder = Encoder(
            self.made.hash,
            len(data),
            ranges,
            lambda offset, length: read(data, offset, length),
            lambda offset, length: read(self.made.data, offset, length),
        )
        self.stream = b"".join(encoder)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{size} {seed}").randbytes(size)


WHOLE = Blob(noise(2 * MIB + 5 * GROUP + 100), ChunkRanges.all())
# In the middle of its second MiB it begins, and its last group is wanted only in part.
PARTS = Blob(
    noise(4 * MIB + 3000, 1), ChunkRanges((1024 + 500, 3 * 1024, 3 * 1024 + 7, 4 * 1024 + 1))
)
SMALL = Blob(noise(3 * GROUP + 1), ChunkRanges.all())
JOINED = WHOLE.stream + SMALL.stream + PARTS.stream
REQUEST = GetManyRequest(
    (WHOLE.made.hash, SMALL.made.hash, PARTS.made.hash),
    ChunkRangesSeq.finite([WHOLE.ranges, SMALL.ranges, PARTS.ranges]),
)


def apart(events: Iterable[BlobEvent]) -> list[BlobEvent]:
    """Return events with all subtrees taken apart."""
    found: list[BlobEvent] = []
    for event in events:
        if isinstance(event, VerifiedSubtree):
            found += [item for item, _, _ in items(event)]
        else:
            found.append(event)
    return found


class Outcome:
    """What a decoder hands out of a stream, and how that ends."""

    def __init__(
        self, stream: bytes, steps: list[int], flushes: set[int], batch: int, subtrees: bool
    ) -> None:
        decoder = ResponseDecoder(REQUEST, batch_bytes=batch, subtrees=subtrees)
        self.events: list[BlobEvent] = []
        self.error: RemoteError | None = None
        position = number = 0
        try:
            while position < len(stream):
                step = steps[number % len(steps)]
                self.events += decoder.feed(stream[position : position + step])
                position += step
                if number in flushes:
                    self.events += decoder.flush()
                number += 1
            decoder.finish()
        except RemoteError as error:
            self.error = error
            self.events += getattr(error, "verified", ())
        self.counts = (decoder.payload_bytes, decoder.overhead_bytes, decoder.done)

    @property
    def verdict(self) -> tuple[object, ...]:
        error = self.error
        place = [getattr(error, name, None) for name in ("item", "hash", "stream_offset")]
        return (type(error), str(error), *place)


def mutated(stream: bytes, kind: str, at: int, bit: int) -> bytes:
    if kind == "flip":
        return stream[:at] + bytes([stream[at] ^ 1 << bit]) + stream[at + 1 :]
    if kind == "cut":
        return stream[:at]
    if kind == "drop":
        return stream[:at] + stream[at + 64 :]
    if kind == "double":
        return stream[: at + 64] + stream[at:]
    return stream


# Pairs are a small part of the stream; so some positions are looked for among the first ones.
positions = st.integers(0, len(JOINED) - 65) | st.integers(0, 600)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["none", "flip", "flip", "flip", "cut", "drop", "double"]),
    positions,
    st.integers(0, 7),
    st.lists(st.sampled_from([200_000, 300_000, 1_100_000, 9_000_000]), min_size=1, max_size=5),
    st.sets(st.integers(0, 20)),
    st.sampled_from([GROUP, MIB, 4 * MIB]),
)
def test_any_mutation_has_the_same_verdict(
    kind: str, at: int, bit: int, steps: list[int], flushes: set[int], batch: int
) -> None:
    stream = mutated(JOINED, kind, at, bit)
    one = Outcome(stream, steps, flushes, batch, subtrees=True)
    other = Outcome(stream, steps, flushes, batch, subtrees=False)
    assert one.verdict == other.verdict
    assert apart(one.events) == other.events
    if one.error is None:
        assert one.counts == other.counts
    if kind == "none":
        assert one.error is None
        assert one.counts[2]


def test_subtrees_come_out_whole() -> None:
    outcome = Outcome(JOINED, [len(JOINED)], set(), 4 * MIB, subtrees=True)
    starts = [e.start_chunk for e in outcome.events if isinstance(e, VerifiedSubtree)]
    assert starts == [0, 1024, 2048]


@pytest.mark.parametrize("batch", [MIB, 4 * MIB])
def test_a_changed_bit_of_any_pair_is_found_there(batch: int) -> None:
    chance = random.Random(batch)
    # Two pairs lead to the first subtree.
    position = 8 + 2 * 64
    end = position + STREAM_BYTES
    for item in Subtree(0, 2).items():
        if isinstance(item, Leaf):
            position += item.length
            continue
        stream = mutated(WHOLE.stream, "flip", position + chance.randrange(64), 3)
        outcome = Outcome(stream[:end], [9 * MIB], set(), batch, subtrees=True)
        assert isinstance(outcome.error, ParentMismatch)
        assert outcome.error.item == item
        position += 64


def test_a_subtree_that_has_not_arrived_whole_comes_out_when_it_is_asked_for() -> None:
    decoder = ResponseDecoder(REQUEST, subtrees=True)
    half = 8 + 2 * 64 + STREAM_BYTES // 2
    assert decoder.feed(WHOLE.stream[:half]) == []
    came = b"".join(e.data for e in decoder.flush() if isinstance(e, VerifiedLeaf))
    # The last group has come in part only.
    assert came == WHOLE.data[: MIB // 2 - GROUP]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 6 * MIB) | st.sampled_from([MIB, MIB + 1, 2 * MIB, 4 * MIB]),
    st.lists(st.integers(0, 6 * 1024), unique=True, max_size=6).map(sorted),
)
def test_the_plan_is_the_same(size: int, bounds: list[int]) -> None:
    ranges = ChunkRanges(tuple(bounds))
    found: list[Parent | Leaf] = []
    for item in plan_with_subtrees(size, ranges):
        found += item.items() if isinstance(item, Subtree) else [item]
    assert found == list(plan(size, ranges))


def test_what_is_cut_is_what_was_sent() -> None:
    node = Subtree(1024, 70)
    data = noise(MIB)
    pairs = noise(63 * 64)
    planned = list(node.items())
    stream = bytearray()
    number = 0
    for item in planned:
        if isinstance(item, Parent):
            stream += pairs[64 * number : 64 * number + 64]
            assert item.outboard_index == 70 + number
            number += 1
        else:
            stream += data[item.offset - MIB : item.offset - MIB + item.length]
    subtree = cut(stream, node)
    assert (subtree.pairs, subtree.data) == (pairs, data)
    assert (subtree.offset, subtree.end) == (MIB, 2 * MIB)
    taken = [e.node if isinstance(e, VerifiedParent) else e.leaf for e, _, _ in items(subtree)]
    assert taken == planned


@pytest.mark.parametrize("sizes", [[], [MIB], [MIB, MIB, 5], [4 * MIB, GROUP, MIB, MIB, MIB]])
def test_blocks_share_batches(sizes: list[int]) -> None:
    blocks = [(noise(size, i), 4096 * i) for i, size in enumerate(sizes)]
    values = blocks_cvs(blocks)
    assert [v.tobytes() for v in values] == [group_cvs(*block).tobytes() for block in blocks]


# --- what is stored --------------------------------------------------------------------------------

# Zeros, for which holes stand: a whole MiB, and groups within another.
SPARSE = Blob(
    noise(MIB, 5) + bytes(MIB) + noise(GROUP) + bytes(7 * GROUP) + noise(MIB + 77, 6),
    ChunkRanges.all(),
)


def store_items(core: StoreCore, hash: Hash, size: int, events: list[BlobEvent]) -> None:
    parents = [e for e in events if isinstance(e, VerifiedParent)]
    leaves = [e for e in events if isinstance(e, (VerifiedLeaf, VerifiedSubtree))]
    core.write_items(hash, size, parents, leaves)
    core.commit()


def held(blob: OpenBlob) -> bytes:
    """Return what is held of a blob, without what lies between."""
    parts = []
    for start, end in blob.bitfield.ranges.limited_to(-(-blob.size // 1024)).runs():
        assert end is not None
        parts.append(blob.read_data(start * 1024, min(end * 1024, blob.size) - start * 1024))
    return b"".join(parts)


def received(blob: Blob) -> list[BlobEvent]:
    decoder = ResponseDecoder(
        GetManyRequest((blob.made.hash,), ChunkRangesSeq.finite([blob.ranges])), subtrees=True
    )
    return decoder.feed(blob.stream) + decoder.flush()


@pytest.mark.parametrize("kind", ["files", "memory"])
@pytest.mark.parametrize("blob", [WHOLE, PARTS, SPARSE], ids=["whole", "parts", "sparse"])
@pytest.mark.parametrize("first", [1, 10, 1000])
def test_the_same_is_stored(tmp_path: Path, kind: str, blob: Blob, first: int) -> None:
    events = received(blob)
    assert any(isinstance(event, VerifiedSubtree) for event in events)
    states = []
    for name, given_events in (("one", events), ("other", apart(events))):
        core = MemoryCore() if kind == "memory" else FsCore(tmp_path / name)
        # In two writes, so that the blob is partial in between; pairs go ahead of all content.
        content = [e for e in given_events if not isinstance(e, VerifiedParent)]
        pairs = [e for e in given_events if isinstance(e, VerifiedParent)]
        cut_at = min(first, len(content) - 1) if name == "one" else 0
        if name == "one":
            store_items(core, blob.made.hash, len(blob.data), [*pairs, *content[:cut_at]])
        store_items(core, blob.made.hash, len(blob.data), [*pairs, *content[cut_at:]])
        with core.open(blob.made.hash) as opened:
            states.append(
                (opened.bitfield, held(opened), opened.read_outboard(0, len(blob.made.data)))
            )
        core.close()
    assert states[0] == states[1]


def test_groups_of_zeros_stay_holes(tmp_path: Path) -> None:
    core = FsCore(tmp_path / "store")
    for event in received(SPARSE):
        if isinstance(event, VerifiedSubtree):
            core.write_items(SPARSE.made.hash, len(SPARSE.data), [], [event])
    with core.open(SPARSE.made.hash) as blob:
        assert blob.read_data(0, 2 * MIB) == SPARSE.data[: 2 * MIB]
        assert blob.extent(MIB) == (False, 2 * MIB)
    core.close()


# --- vectored writes -------------------------------------------------------------------------------


class Short(FileOps):
    """A system that stops a vectored write after any number of bytes."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def pwritev(self, descriptor: int, parts: Iterable[Buffer], offset: int) -> int:
        data = b"".join(parts)
        return os.pwrite(descriptor, data[: self._chance.randrange(len(data) + 1)], offset)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.binary(max_size=300), max_size=12), st.integers(0, 99), st.integers(0, 500))
def test_a_short_write_is_gone_on_with(
    tmp_path: Path, parts: list[bytes], seed: int, offset: int
) -> None:
    path = tmp_path / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        write_parts_at(Short(random.Random(seed)), descriptor, parts, offset, path)
        assert os.pread(descriptor, 10_000, offset) == b"".join(parts)
    finally:
        os.close(descriptor)


def test_more_parts_than_the_system_takes_in_one_call(tmp_path: Path) -> None:
    path = tmp_path / "file"
    parts = [bytes([number % 256]) for number in range(3000)]
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    write_parts_at(FileOps(), descriptor, parts, 5, path)
    os.close(descriptor)
    assert path.read_bytes() == bytes(5) + b"".join(parts)


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    path = Path("/dev/full")
    descriptor = os.open(path, os.O_WRONLY)
    with pytest.raises(FileFailed):
        write_parts_at(FileOps(), descriptor, [b"a", b"b"], 0, path)
    os.close(descriptor)
