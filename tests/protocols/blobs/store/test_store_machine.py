"""Both stores against a model: adding, partial writes, exports, tags, collections, reopening."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.decoder import Decoder
from dialkey_blobs.encoder import Encoder
from dialkey_blobs.events import VerifiedLeaf, VerifiedParent
from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat
from dialkey_blobs.outboard import outboard
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.safe_paths import TargetExists
from dialkey_blobs.store import (
    BlobIncomplete,
    BlobMissing,
    BlobState,
    CheckOutcome,
    ImportMode,
    TagExists,
    TagMissing,
    TempTag,
)
from dialkey_blobs.store.core import StoreCore
from dialkey_blobs.store.exporting import begin_export
from dialkey_blobs.store.fs_core import FsCore
from dialkey_blobs.store.gc import collect
from dialkey_blobs.store.memory_core import MemoryCore
from dialkey_blobs.store.values import finish

SMALL = [random.Random(size).randbytes(size) for size in (1, 700, 3000, 16_384)]
LARGE = [random.Random(size).randbytes(size) for size in (16_385, 50_000, 131_072)]
SEQUENCES = [
    b"".join(Hash.of(blob).digest for blob in group)
    for group in (SMALL, LARGE, [SMALL[0], LARGE[0]], [LARGE[2]] * 600)
]
BLOBS = SMALL + LARGE + SEQUENCES
BY_HASH = {Hash.of(blob): blob for blob in BLOBS}
NAMES = [b"a", b"b", b"ba", b"\xff"]

blobs = st.sampled_from(BLOBS)
formats = st.sampled_from(list(BlobFormat))
names = st.sampled_from(NAMES)
starts = st.integers(0, 140)


def items_of(
    data: bytes, ranges: ChunkRanges
) -> tuple[int, list[VerifiedParent], list[VerifiedLeaf]]:
    built = outboard(data)
    encoder = Encoder(
        built.hash,
        len(data),
        ranges,
        lambda offset, length: data[offset : offset + length],
        lambda offset, length: built.data[offset : offset + length],
    )
    decoder = Decoder(built.hash, ranges)
    events = decoder.feed(b"".join(encoder))
    return (
        len(data),
        [event for event in events if isinstance(event, VerifiedParent)],
        [event for event in events if isinstance(event, VerifiedLeaf)],
    )


class StoreMachine(RuleBasedStateMachine):
    """Both stores and a model go through the same."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.cores: list[StoreCore] = [FsCore(self.folder / "store"), MemoryCore()]
        self.held: dict[Hash, Bitfield] = {}
        self.tags: dict[bytes, HashAndFormat] = {}
        self.pins: list[tuple[HashAndFormat, list[TempTag]]] = []
        self.exports = 0

    @initialize()
    def make_sources(self) -> None:
        for number, blob in enumerate(BLOBS):
            (self.folder / f"{number}").write_bytes(blob)

    def teardown(self) -> None:
        for core in self.cores:
            core.close()
        shutil.rmtree(self.folder)

    def commit(self) -> None:
        for core in self.cores:
            core.commit()

    def pin(self, content: HashAndFormat, tags: list[TempTag]) -> None:
        self.held[content.hash] = Bitfield.complete(len(BY_HASH[content.hash]))
        self.pins.append((content, tags))
        assert {tag.content for tag in tags} == {content}

    # --- adding ---------------------------------------------------------------------------------

    @rule(blob=blobs, format=formats)
    def add_bytes(self, blob: bytes, format: BlobFormat) -> None:
        tags = [core.add_many([blob], format)[0] for core in self.cores]
        self.pin(HashAndFormat(Hash.of(blob), format), tags)

    @rule(blob=blobs, format=formats, mode=st.sampled_from(ImportMode))
    def add_path(self, blob: bytes, format: BlobFormat, mode: ImportMode) -> None:
        path = self.folder / f"{BLOBS.index(blob)}"
        tags = [finish(core.add_path(path, mode, format)) for core in self.cores]
        self.pin(HashAndFormat(Hash.of(blob), format), tags)

    @rule(blob=blobs, format=formats, cut=st.integers(0, 140_000), drop=st.booleans())
    def add_pieces(self, blob: bytes, format: BlobFormat, cut: int, drop: bool) -> None:
        tags = []
        for core in self.cores:
            arriving = core.begin_import(format)
            arriving.write(blob[:cut])
            arriving.write(blob[cut:])
            if drop:
                arriving.discard()
            else:
                tags.append(finish(arriving.finish()))
        if not drop:
            self.pin(HashAndFormat(Hash.of(blob), format), tags)

    @rule(blob=blobs, start=starts, length=st.integers(1, 60), to_end=st.booleans())
    def write_part(self, blob: bytes, start: int, length: int, to_end: bool) -> None:
        ranges = ChunkRanges.between(start, None if to_end else start + length)
        size, parents, leaves = items_of(blob, ranges)
        for core in self.cores:
            core.write_items(Hash.of(blob), size, parents, leaves)
        got = Bitfield.of(size, ranges.selected(size).limited_to(size))
        hash = Hash.of(blob)
        self.held[hash] = self.held.get(hash, Bitfield()).combine(got)

    # --- taking out -----------------------------------------------------------------------------

    @rule(blob=blobs, overwrite=st.booleans(), again=st.booleans())
    def export(self, blob: bytes, overwrite: bool, again: bool) -> None:
        hash = Hash.of(blob)
        held = self.held.get(hash)
        for number, core in enumerate(self.cores):
            self.exports += not again
            target = self.folder / f"out{number}-{self.exports}"
            before = target.read_bytes() if target.exists() else None
            try:
                file = begin_export(core, hash, target, overwrite=overwrite)
                finish(core.export(hash, file, durable=False))
            except BlobMissing:
                assert held is None
            except BlobIncomplete:
                assert held is not None
                assert not held.is_complete
            except TargetExists:
                assert before is not None
                assert not overwrite
            else:
                assert before is None or overwrite
                before = blob
            assert (target.read_bytes() if target.exists() else None) == before

    @rule(blob=blobs)
    def delete(self, blob: bytes) -> None:
        hash = Hash.of(blob)
        for core in self.cores:
            assert core.remove(hash) == (hash in self.held)
        self.held.pop(hash, None)

    # --- tags -----------------------------------------------------------------------------------

    @rule(name=names, blob=blobs, format=formats)
    def set_tag(self, name: bytes, blob: bytes, format: BlobFormat) -> None:
        self.tags[name] = HashAndFormat(Hash.of(blob), format)
        for core in self.cores:
            core.set_tag(name, self.tags[name])

    @rule(old=names, new=names)
    def rename_tag(self, old: bytes, new: bytes) -> None:
        expected: type[Exception] | None = None
        if old not in self.tags:
            expected = TagMissing
        elif new in self.tags and new != old:
            expected = TagExists
        for core in self.cores:
            with pytest.raises(expected) if expected else contextlib.nullcontext():
                core.rename_tag(old, new)
        if expected is None:
            self.tags[new] = self.tags.pop(old)

    @rule(first=names, end=st.none() | names)
    def delete_tags(self, first: bytes, end: bytes | None) -> None:
        gone = {name for name in self.tags if name >= first and (end is None or name < end)}
        for core in self.cores:
            assert core.delete_tags(first, end) == len(gone)
        for name in gone:
            del self.tags[name]

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.pins:
            number = data.draw(st.integers(0, len(self.pins) - 1))
            for tag in self.pins.pop(number)[1]:
                tag.release()

    # --- maintenance ----------------------------------------------------------------------------

    @rule()
    def collect_garbage(self) -> None:
        roots = {*self.tags.values(), *(content for content, _ in self.pins)}
        live = {root.hash for root in roots}
        for root in roots:
            if root.format is BlobFormat.HASH_SEQ and root.hash in self.held:
                data = BY_HASH[root.hash]
                held = self.held[root.hash].ranges
                live |= {
                    Hash(data[at : at + 32])
                    for at in range(0, len(data) - 31, 32)
                    if at // 1024 in held
                }
        gone = set(self.held) - live
        for core in self.cores:
            assert set(finish(collect(core)).deleted) == gone
        for hash in gone:
            del self.held[hash]

    @rule(blob=blobs)
    def check(self, blob: bytes) -> None:
        if Hash.of(blob) in self.held:
            for core in self.cores:
                assert finish(core.check(Hash.of(blob))).outcome is CheckOutcome.GOOD

    @rule()
    def reopen(self) -> None:
        for _, tags in self.pins:
            # Of the store in memory, which stays open.
            tags[1].release()
        self.pins.clear()
        self.cores[0].close()
        self.cores[0] = FsCore(self.folder / "store")

    @rule()
    def commit_now(self) -> None:
        self.commit()

    # --- what always holds ----------------------------------------------------------------------

    @invariant()
    def all_agree(self) -> None:
        tags = [(name, self.tags[name]) for name in sorted(self.tags)]
        for core in self.cores:
            assert {info.hash: info.state is BlobState.COMPLETE for info in core.blobs()} == {
                hash: held.is_complete for hash, held in self.held.items()
            }
            assert [(tag.name, tag.content) for tag in core.tags(b"", None)] == tags

    @rule(blob=blobs)
    def content_is_right(self, blob: bytes) -> None:
        hash = Hash.of(blob)
        for core in self.cores:
            status = core.status(hash)
            assert status.bitfield == self.held.get(hash, Bitfield())
            if hash not in self.held:
                continue
            held = status.bitfield.ranges
            with core.open(hash) as opened:
                for first, end in held.limited_to(len(blob)).runs():
                    assert end is not None
                    start, stop = first * 1024, min(len(blob), end * 1024)
                    assert opened.read_data(start, stop - start) == blob[start:stop]
                groups = held.shrunk_to_groups(len(blob)).limited_to(len(blob))
                stream = b"".join(
                    Encoder(
                        hash,
                        opened.size,
                        groups,
                        opened.read_data,
                        opened.read_outboard,
                        available=held,
                    )
                )
                decoder = Decoder(hash, groups)
                decoder.feed(stream)
                assert decoder.done


StoreMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestStoreMachine = StoreMachine.TestCase
