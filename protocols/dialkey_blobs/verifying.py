"""A queue in which received items wait until a batch of them is verified.

Hashing one group at a time is forty times slower than hashing 256 at once, so items are not checked as
they arrive. An item's expected hash is in a pair that came before it and may wait here as well. That is
sound, since nothing leaves the queue unless everything before it has matched: the first item that does
not match got its expected hash from pairs that do.

Complete subtrees are compared as a whole. If one in a batch does not match, all of them are taken apart,
and the batch is checked item by item.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from blake3 import blake3

from dialkey import native
from dialkey_blobs import subtrees
from dialkey_blobs.errors import LeafMismatch, ParentMismatch, VerificationError
from dialkey_blobs.events import (
    BlobEvent,
    VerifiedContent,
    VerifiedLeaf,
    VerifiedParent,
    VerifiedSubtree,
)
from dialkey_blobs.hash import Hash
from dialkey_blobs.hashing import BATCH_BYTES, blocks_cvs, parent_cv, parent_cvs, subtree_cvs
from dialkey_blobs.tree import CHUNK_BYTES, PAIR_BYTES

__all__ = ["VerifyQueue"]

# Bounds memory where items are much smaller than groups: a pair in the queue takes some 400 bytes.
_MAX_ENTRIES: Final = 8192


class _Entry(NamedTuple):
    event: BlobEvent
    expected: bytes
    hash: Hash
    stream_offset: int


class _Block(NamedTuple):
    """A complete subtree: its chunks, its chaining value and, if it has children, theirs."""

    start: int
    end: int
    cv: bytes
    pair: bytes | None


class _Prefix:
    """A blob that arrives completely: what the hash of its content so far must be, and what it is."""

    def __init__(self, size: int) -> None:
        self.numbers: list[int] = []
        self._size = size
        self._bytes = 0
        self._hasher = blake3()
        # Nodes whose pair came and whose content is not complete yet, innermost last.
        self._open: list[_Block] = []
        # The subtrees that make up the prefix, largest first.
        self._blocks: list[_Block] = []

    def check(self, entries: list[_Entry | BlobEvent]) -> list[int]:
        """Return the numbers of this blob's leaves in a batch if the prefix up to them matches."""
        known = []
        hash: Hash | None = None
        for number in self.numbers:
            entry = entries[number]
            assert isinstance(entry, _Entry)
            hash = entry.hash
            if isinstance(entry.event, VerifiedParent):
                node = entry.event.node
                end = node.start_chunk + -(-node.length // CHUNK_BYTES)
                self._open.append(_Block(node.start_chunk, end, entry.expected, entry.event.pair))
            elif isinstance(entry.event, (VerifiedLeaf, VerifiedSubtree)):
                self._add_content(entry.event, entry.expected)
                known.append(number)
        self.numbers = []
        if hash is None or not known:
            return []
        return known if self._hasher.digest() == self._expected(hash) else []

    def hash(self, data: bytes) -> None:
        """Hash the content of the entry that was added last."""
        self._hasher.update(data)
        self._bytes += len(data)

    def _add_content(self, event: VerifiedContent, expected: bytes) -> None:
        start = event.start_chunk
        end = start + -(-len(event.data) // CHUNK_BYTES)
        pair = event.pairs[:PAIR_BYTES] if isinstance(event, VerifiedSubtree) else None
        blocks = self._blocks
        blocks.append(_Block(start, end, expected, pair))
        while self._open and self._open[-1].end == end:
            node = self._open.pop()
            while blocks and blocks[-1].start >= node.start:
                blocks.pop()
            blocks.append(node)

    def _expected(self, hash: Hash) -> bytes | None:
        """Return the hash that the prefix must have; None if that is not known."""
        if self._bytes == self._size:
            return hash.digest
        *rest, last = self._blocks
        if not rest:
            # One subtree: as a blob of its own, only the flag of its top differs.
            return None if last.pair is None else parent_cv(last.pair[:32], last.pair[32:], True)
        value = last.cv
        for block in reversed(rest):
            value = parent_cv(block.cv, value, is_root=block is rest[0])
        return value


class VerifyQueue:
    """Items in order of arrival, verified in batches.

    Args:
        batch_bytes: leaf bytes at which a batch is verified without being asked to.
    """

    def __init__(self, batch_bytes: int = BATCH_BYTES) -> None:
        self.batch_bytes = batch_bytes
        self._entries: list[_Entry | BlobEvent] = []
        self._waiting_bytes = 0
        # (first entry, end, hash): runs that hold all items of a whole blob.
        self._whole_blobs: list[tuple[int, int, Hash]] = []
        self._ready: list[BlobEvent] = []
        self._batch_number = 0
        # The blob that is coming whole, and that one or an earlier one with entries in this batch.
        self._prefix: _Prefix | None = None
        self._prefixes: list[_Prefix] = []

    def take(self) -> list[BlobEvent]:
        """Return the events that are verified, each once."""
        ready, self._ready = self._ready, []
        return ready

    def add_note(self, event: BlobEvent) -> None:
        """Add an event that needs no verification, to be returned in its turn."""
        self._entries.append(event)

    def add(
        self,
        event: VerifiedParent | VerifiedContent,
        expected: bytes,
        hash: Hash,
        stream_offset: int,
    ) -> None:
        """Add an item that is still to be verified.

        Args:
            event: what to return if it matches.
            expected: its chaining value, or the blob's hash if it is the root.
            hash: the blob, for messages.
            stream_offset: where the item begins in the blob's response.

        Raises:
            VerificationError: a batch was full, and an item in it does not match.
        """
        if not isinstance(event, VerifiedParent):
            if self._waiting_bytes + len(event.data) > self.batch_bytes:
                self.verify()
            self._waiting_bytes += len(event.data)
        if len(self._entries) >= _MAX_ENTRIES:
            self.verify()
        if self._prefix is not None:
            if not self._prefix.numbers:
                self._prefixes.append(self._prefix)
            self._prefix.numbers.append(len(self._entries))
            if not isinstance(event, VerifiedParent):
                # At once, while it is in the processor's cache.
                self._prefix.hash(event.data)
        self._entries.append(_Entry(event, expected, hash, stream_offset))

    def begin_blob(self, size: int) -> tuple[int, int]:
        """Make room so that a blob of `size` bytes may be verified in one piece.

        Returns:
            A mark for `end_whole_blob`.
        """
        if size <= self.batch_bytes < self._waiting_bytes + size:
            self.verify()
        # A blob that fits into a batch is verified by its own hash in any case, and the native part
        # needs no such help.
        is_helped = size > self.batch_bytes and native.part() is None
        self._prefix = _Prefix(size) if is_helped else None
        return self._batch_number, len(self._entries)

    def end_whole_blob(self, mark: tuple[int, int], hash: Hash) -> None:
        """Declare that all entries since `mark` are one whole blob.

        If all of them still wait, its leaves are verified by one hash over the whole content, which
        is twenty times as fast as chaining values.
        """
        self._prefix = None
        batch_number, first = mark
        if batch_number == self._batch_number:
            self._whole_blobs.append((first, len(self._entries), hash))

    def verify(self) -> None:
        """Verify what waits; what matches can then be fetched.

        Raises:
            VerificationError: the first item, in order, that does not match. Its `verified` are
                the events before it. The queue cannot be used afterwards.
        """
        entries, self._entries = self._entries, []
        whole_blobs, self._whole_blobs = self._whole_blobs, []
        prefixes, self._prefixes = self._prefixes, []
        self._waiting_bytes = 0
        self._batch_number += 1
        known = _known_leaves(entries, whole_blobs)
        for prefix in prefixes:
            known.update(prefix.check(entries))
        if not _subtrees_match(entries, known):
            entries, known = _taken_apart(entries), set()
        bad = _first_mismatch(entries, known)
        for entry in entries[:bad]:
            self._ready.append(entry.event if isinstance(entry, _Entry) else entry)
        if bad is not None:
            culprit = entries[bad]
            assert isinstance(culprit, _Entry)
            raise _mismatch(culprit, tuple(self.take()))


def _known_leaves(
    entries: list[_Entry | BlobEvent], whole_blobs: list[tuple[int, int, Hash]]
) -> set[int]:
    """Return the entries of leaves that need no chaining value: their whole blob matches."""
    known: set[int] = set()
    for first, end, hash in whole_blobs:
        hasher = blake3()
        leaves = []
        for number in range(first, end):
            entry = entries[number]
            if isinstance(entry, _Entry) and isinstance(
                entry.event, (VerifiedLeaf, VerifiedSubtree)
            ):
                hasher.update(entry.event.data)
                leaves.append(number)
        if hasher.digest() == hash.digest:
            known.update(leaves)
    return known


def _subtrees_match(entries: list[_Entry | BlobEvent], known: set[int]) -> bool:
    found: list[VerifiedSubtree] = []
    tops: list[bytes] = []
    unknown: list[VerifiedSubtree] = []
    for number, entry in enumerate(entries):
        if isinstance(entry, _Entry) and isinstance(entry.event, VerifiedSubtree):
            found.append(entry.event)
            tops.append(entry.expected)
            if number not in known:
                unknown.append(entry.event)
    if not found:
        return True
    if not subtrees.pairs_match(found, tops):
        return False
    values = blocks_cvs([(subtree.data, subtree.start_chunk) for subtree in unknown])
    return all(
        value.tobytes() == subtrees.slots(subtree).tobytes()
        for value, subtree in zip(values, unknown, strict=True)
    )


def _taken_apart(entries: list[_Entry | BlobEvent]) -> list[_Entry | BlobEvent]:
    apart: list[_Entry | BlobEvent] = []
    for entry in entries:
        if not isinstance(entry, _Entry) or not isinstance(entry.event, VerifiedSubtree):
            apart.append(entry)
            continue
        pairs = entry.event.pairs
        for item, at, place in subtrees.items(entry.event):
            expected = entry.expected if place < 0 else pairs[32 * place : 32 * place + 32]
            apart.append(_Entry(item, expected, entry.hash, entry.stream_offset + at))
    return apart


def _first_mismatch(entries: list[_Entry | BlobEvent], known: set[int]) -> int | None:
    parents: list[tuple[int, VerifiedParent]] = []
    leaves: list[tuple[int, VerifiedLeaf]] = []
    bad: list[int] = []
    expected: dict[int, bytes] = {}
    for number, entry in enumerate(entries):
        if number in known or not isinstance(entry, _Entry):
            continue
        event = entry.event
        if isinstance(event, VerifiedSubtree):
            continue
        expected[number] = entry.expected
        if isinstance(event, VerifiedParent):
            parents.append((number, event))
        elif isinstance(event, VerifiedLeaf):
            if not event.leaf.is_root:
                leaves.append((number, event))
            elif blake3(event.data).digest() != entry.expected:
                bad.append(number)
    values = parent_cvs(
        [event.pair for _, event in parents], [event.node.is_root for _, event in parents]
    )
    bad += [n for (n, _), value in zip(parents, values, strict=True) if value != expected[n]]
    values = subtree_cvs([(event.data, event.leaf.start_chunk) for _, event in leaves])
    bad += [n for (n, _), value in zip(leaves, values, strict=True) if value != expected[n]]
    return min(bad, default=None)


def _mismatch(entry: _Entry, verified: tuple[BlobEvent, ...]) -> VerificationError:
    event, blob = entry.event, entry.hash
    place = f"of blob {blob.short()}, at byte {entry.stream_offset} of the response"
    if isinstance(event, VerifiedParent):
        node = event.node
        return ParentMismatch(
            f"the pair of node {node.node} (chunk {node.start_chunk}, {node.length} bytes below it)"
            f" does not match its hash, {place}",
            hash=blob,
            item=node,
            stream_offset=entry.stream_offset,
            verified=verified,
        )
    assert isinstance(event, VerifiedLeaf)
    leaf = event.leaf
    return LeafMismatch(
        f"chunk {leaf.start_chunk} ({leaf.length} bytes from {leaf.offset}) does not match its"
        f" hash, {place}",
        hash=blob,
        item=leaf,
        stream_offset=entry.stream_offset,
        verified=verified,
    )
