"""Chaining values: the hashes of parts of a blob, from which its own hash is made.

The `blake3` package hashes whole inputs at gigabytes per second but exposes no chaining values, so
whatever verifies a *part* comes here. Work goes to NumPy lanes in batches as large as the caller
provides; a handful of blocks goes to plain Python, which is faster then. One group at a time runs at
about 8 MB/s, 64 at 200, 256 at 300: batching is up to the caller, and pays.

This is also the seam to the native part: where it is installed, each of these functions calls it instead,
with the same result. What it refuses, because no tree has such a piece, goes to the lanes.

Source: docs/wire/blobs.md 4.3, 4.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from dialkey import native
from dialkey.native import NativePart
from dialkey_blobs import compress
from dialkey_blobs.compress import CHUNK_WORDS, MAX_LANES
from dialkey_blobs.tree import CHUNK_BYTES, GROUP_BYTES, GROUP_CHUNKS, PAIR_BYTES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dialkey_blobs.lanes import Words, Workspace
else:
    from dialkey_blobs.arrays import np

__all__ = [
    "BATCH_BYTES",
    "Buffer",
    "blocks_cvs",
    "group_cvs",
    "parent_cv",
    "parent_cvs",
    "parent_rows",
    "subtree_cv",
    "subtree_cvs",
    "subtree_levels",
]

Buffer = bytes | bytearray | memoryview

BATCH_BYTES: Final = MAX_LANES * CHUNK_BYTES
"""The batch beyond which hashing gets no faster."""

# Up to here plain Python beats the fixed cost of a NumPy batch (2 ms for chunks, 0.1 for parents).
_FEW: Final = 3

# The native part counts bytes in 64 bits.
_MAX_CHUNKS: Final = (1 << 64) // CHUNK_BYTES - 2


def _workspace() -> Workspace:
    # Whoever hashes nothing in lanes does not wait for them to be imported.
    from dialkey_blobs.lanes import workspace

    return workspace()


def parent_cv(left: bytes, right: bytes, is_root: bool = False) -> bytes:
    """Return the chaining value of a parent; of a root, the hash of the blob.

    Args:
        left: the left child's chaining value, 32 bytes.
        right: the right child's.
        is_root: whether the parent covers its whole blob.
    """
    part = native.part()
    if part is not None:
        return part.parent_cvs(left + right, is_root)
    return compress.parent_cv(left + right, is_root)


def parent_cvs(pairs: Sequence[Buffer], is_root: Sequence[bool]) -> list[bytes]:
    """Return the chaining values of many parents, which may be of different blobs.

    Args:
        pairs: 64 bytes each.
        is_root: for each pair, whether it is the root of its blob.
    """
    part = native.part()
    if part is not None:
        rows_of_32 = part.parent_cvs(b"".join(pairs), False)
        values = [rows_of_32[i : i + 32] for i in range(0, len(rows_of_32), 32)]
        for i, (pair, root) in enumerate(zip(pairs, is_root, strict=True)):
            if root:
                values[i] = part.parent_cvs(bytes(pair), True)
        return values
    if len(pairs) <= _FEW:
        return [compress.parent_cv(pair, root) for pair, root in zip(pairs, is_root, strict=True)]
    values = []
    for start in range(0, len(pairs), MAX_LANES):
        stop = start + MAX_LANES
        rows = np.frombuffer(b"".join(pairs[start:stop]), "<u4").reshape(-1, 16)
        words = np.ascontiguousarray(rows.T, np.uint32)
        roots = np.array(is_root[start:stop], np.bool_)
        values += _split(_workspace().parents(words, roots))
    return values


def parent_rows(pairs: bytes) -> npt.NDArray[np.uint8]:
    """Return the non-root chaining values of parents, as `parent_cvs` without its lists.

    Args:
        pairs: 64 bytes each, in a row.

    Returns:
        An array of shape (pairs, 32).
    """
    part = native.part()
    if part is not None:
        return np.frombuffer(part.parent_cvs(pairs, False), np.uint8).reshape(-1, 32)
    rows = np.frombuffer(pairs, "<u4").reshape(-1, 16)
    found = [
        _to_bytes(_parents(np.ascontiguousarray(rows[start : start + MAX_LANES].T, np.uint32)))
        for start in range(0, len(rows), MAX_LANES)
    ]
    return np.concatenate(found) if found else np.empty((0, 32), np.uint8)


def subtree_cv(data: Buffer, start_chunk: int, is_root: bool = False) -> bytes:
    """Return the chaining value of one subtree within a group; of a whole blob, its hash.

    Args:
        data: the bytes below the subtree: at most 16,384, unless `is_root`.
        start_chunk: the number of its first chunk in the blob.
        is_root: whether it is the whole blob.
    """
    if is_root:
        return blake3(data).digest()
    return subtree_cvs([(data, start_chunk)])[0]


def subtree_cvs(pieces: Sequence[tuple[Buffer, int]]) -> list[bytes]:
    """Return the non-root chaining values of many subtrees, which may be of different blobs.

    Args:
        pieces: (bytes, number of the first chunk in the blob), at most 16,384 bytes each.
    """
    part = native.part()
    if part is not None:
        return [_native_cv(part, data, start_chunk) for data, start_chunk in pieces]
    values: list[bytes] = []
    for batch in _batches(pieces):
        values += _split(_reduce(*_chunk_words(batch)))
    return values


def subtree_levels(pieces: Sequence[tuple[Buffer, int]]) -> list[list[bytes]]:
    """Return the chaining values of all nodes below many subtrees, which may be of any blobs.

    Args:
        pieces: as for `subtree_cvs`.

    Returns:
        For each piece its levels, that of the chunks first, each as values of 32 bytes in a row. A
        node without a sibling appears on every level up to the one where it has one. The level with
        a single value is left out.
    """
    part = native.part()
    if part is not None:
        return [_native_levels(part, data, start_chunk) for data, start_chunk in pieces]
    results: list[list[bytes]] = []
    for batch in _batches(pieces):
        levels: list[list[bytes]] = [[] for _ in batch]
        for words, counts in _levels(*_chunk_words(batch)):
            joined = _to_bytes(words).tobytes()
            end = 0
            for piece_levels, count in zip(levels, counts.tolist(), strict=True):
                start, end = end, end + 32 * count
                if count > 1:
                    piece_levels.append(joined[start:end])
        results += levels
    return results


def group_cvs(data: Buffer, start_chunk: int = 0) -> npt.NDArray[np.uint8]:
    """Return the non-root chaining value of every chunk group of `data`.

    Args:
        data: whole groups, of which the last may be short. Batches of 4 MiB are the fastest.
        start_chunk: the number of the first chunk in the blob, a multiple of 16.

    Returns:
        An array of shape (groups, 32).
    """
    part = native.part()
    if part is not None and start_chunk + -(-len(data) // CHUNK_BYTES) <= _MAX_CHUNKS:
        values = part.group_cvs(data, start_chunk, GROUP_BYTES)
        return np.frombuffer(values, np.uint8).reshape(-1, 32)
    view = memoryview(data)
    parts = []
    for offset in range(0, len(view), BATCH_BYTES):
        batch = view[offset : offset + BATCH_BYTES]
        words, counts = _chunk_words([(batch, start_chunk + offset // CHUNK_BYTES)])
        whole, rest = divmod(int(counts[0]), GROUP_CHUNKS)
        counts = np.array([GROUP_CHUNKS] * whole + [rest] * (rest > 0), np.intp)
        parts.append(_to_bytes(_reduce(words, counts)))
    return np.concatenate(parts) if parts else np.empty((0, 32), np.uint8)


def blocks_cvs(blocks: Sequence[tuple[bytes, int]]) -> list[npt.NDArray[np.uint8]]:
    """Return what `group_cvs` does for each of many blocks, which may be of different blobs.

    Args:
        blocks: (whole groups of at most 4 MiB, number of their first chunk).
    """
    part = native.part()
    if part is not None:
        return [group_cvs(data, start_chunk) for data, start_chunk in blocks]
    # Smaller ones share the lanes.
    pieces = [
        (memoryview(data)[offset : offset + GROUP_BYTES], start_chunk + offset // CHUNK_BYTES)
        for data, start_chunk in blocks
        for offset in range(0, len(data), GROUP_BYTES)
    ]
    joined = np.frombuffer(b"".join(subtree_cvs(pieces)), np.uint8).reshape(-1, 32)
    ends = np.cumsum([-(-len(data) // GROUP_BYTES) for data, _ in blocks])
    return np.split(joined, ends[:-1]) if blocks else []


def _native_cv(part: NativePart, data: Buffer, start_chunk: int) -> bytes:
    _check_piece(data)
    chunks = 1 << (max(len(data) - 1, 0) // CHUNK_BYTES).bit_length()
    if not data or start_chunk % chunks or start_chunk + chunks > _MAX_CHUNKS:
        return _to_bytes(_reduce(*_chunk_words([(memoryview(data), start_chunk)]))).tobytes()
    return part.group_cvs(data, start_chunk, chunks * CHUNK_BYTES)


def _native_levels(part: NativePart, data: Buffer, start_chunk: int) -> list[bytes]:
    _check_piece(data)
    if start_chunk + GROUP_CHUNKS > _MAX_CHUNKS:
        words, counts = _chunk_words([(memoryview(data), start_chunk)])
        return [_to_bytes(row).tobytes() for row, left in _levels(words, counts) if left[0] > 1]
    levels = []
    level = part.group_cvs(data, start_chunk, CHUNK_BYTES)
    while len(level) > 32:
        levels.append(level)
        paired = len(level) // PAIR_BYTES * PAIR_BYTES
        level = part.parent_cvs(level[:paired], False) + level[paired:]
    return levels


def _check_piece(data: Buffer) -> None:
    if len(data) > GROUP_BYTES:
        raise ValueError("a piece is larger than a chunk group")


def _batches(pieces: Sequence[tuple[Buffer, int]]) -> Iterator[list[tuple[memoryview, int]]]:
    batch: list[tuple[memoryview, int]] = []
    room = MAX_LANES
    for data, start_chunk in pieces:
        _check_piece(data)
        lanes = max(1, -(-len(data) // CHUNK_BYTES))
        if lanes > room:
            yield batch
            batch, room = [], MAX_LANES
        batch.append((memoryview(data), start_chunk))
        room -= lanes
    if batch:
        yield batch


def _to_bytes(words: Words) -> npt.NDArray[np.uint8]:
    # Always a copy: `words` may be memory of the workspace.
    return np.array(words.T, "<u4", order="C").view(np.uint8)


def _split(words: Words) -> list[bytes]:
    joined = _to_bytes(words).tobytes()
    return [joined[i : i + 32] for i in range(0, len(joined), 32)]


def _from_bytes(values: Sequence[bytes]) -> Words:
    return np.frombuffer(b"".join(values), "<u4").reshape(-1, 8).T.astype(np.uint32)


def _chunk_words(pieces: Sequence[tuple[memoryview, int]]) -> tuple[Words, npt.NDArray[np.intp]]:
    """Return the chunks' chaining values, 8 rows, and how many chunks each piece has."""
    counts = np.array([max(1, -(-len(data) // CHUNK_BYTES)) for data, _ in pieces], np.intp)
    whole = [len(data) // CHUNK_BYTES for data, _ in pieces]
    short = [position for position, count in enumerate(whole) if count != counts[position]]
    if sum(whole) + len(short) <= _FEW:
        values = [
            compress.chunk_cv(data[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES], start_chunk + i)
            for (data, start_chunk), count in zip(pieces, counts, strict=True)
            for i in range(count)
        ]
        return _from_bytes(values), counts
    if not short:
        return _whole_chunks(pieces, whole), counts
    result: Words = np.empty((8, counts.sum()), np.uint32)
    places = counts.cumsum()[short] - 1
    is_whole = np.ones(result.shape[1], np.bool_)
    is_whole[places] = False
    if is_whole.any():
        result[:, is_whole] = _whole_chunks(pieces, whole)
    result[:, places] = _short_chunks([pieces[position] for position in short])
    return result, counts


def _whole_chunks(pieces: Sequence[tuple[memoryview, int]], counts: Sequence[int]) -> Words:
    space = _workspace()
    words = space.message(sum(counts))
    lane = 0
    for (data, _), count in zip(pieces, counts, strict=True):
        if count:
            chunks = np.frombuffer(data, "<u4", count * CHUNK_WORDS).reshape(count, CHUNK_WORDS)
            space.transpose(chunks, words[:, lane : lane + count])
            lane += count
    lanes = np.array(counts)
    starts = np.array([start for _, start in pieces], np.uint64)
    # A lane's counter is its piece's first chunk, plus its distance from its piece's first lane.
    starts -= (lanes.cumsum() - lanes).astype(np.uint64)
    counters = np.arange(lane, dtype=np.uint64)
    counters += np.repeat(starts, lanes)
    return space.chunks(words, counters).copy()


def _short_chunks(pieces: Sequence[tuple[memoryview, int]]) -> Words:
    tails = [
        (data[len(data) - len(data) % CHUNK_BYTES :], start_chunk + len(data) // CHUNK_BYTES)
        for data, start_chunk in pieces
    ]
    if len(tails) <= _FEW:
        return _from_bytes([compress.chunk_cv(tail, counter) for tail, counter in tails])
    space = _workspace()
    words = space.message(len(tails))
    padded = b"".join(bytes(tail).ljust(CHUNK_BYTES, b"\0") for tail, _ in tails)
    space.transpose(np.frombuffer(padded, "<u4").reshape(len(tails), -1), words)
    counters = np.array([counter for _, counter in tails], np.uint64)
    lengths = np.array([len(tail) for tail, _ in tails], np.int64)
    return space.chunks(words, counters, lengths)


def _reduce(words: Words, counts: npt.NDArray[np.intp]) -> Words:
    """Return the value that each run of `counts` values has as a subtree."""
    for top, _ in _levels(words, counts):
        words = top
    return words


def _levels(
    words: Words, counts: npt.NDArray[np.intp]
) -> Iterator[tuple[Words, npt.NDArray[np.intp]]]:
    """Pair up neighbours, level by level, until one value is left of each run of `counts`.

    An odd one at the end of a run goes up a level unchanged, which builds the same tree as cutting
    from the top: every left subtree is then the largest power of two that fits. What is yielded is
    valid until the next step.
    """
    yield words, counts
    while (largest := int(counts.max())) > 1:
        if largest % 2 == 0 and (counts == largest).all():
            message = np.concatenate((words[:, 0::2], words[:, 1::2]))
            words = _parents(message)
            counts = counts // 2
            yield words, counts
            continue
        pairs, starts = counts // 2, counts.cumsum() - counts
        above = counts - pairs
        starts_above = above.cumsum() - above
        within = np.arange(pairs.sum()) - np.repeat(pairs.cumsum() - pairs, pairs)
        left = np.repeat(starts, pairs) + 2 * within
        odd = counts % 2 == 1
        message = np.concatenate((words[:, left], words[:, left + 1]))
        carried = words[:, (starts + counts - 1)[odd]]
        words = np.empty((8, above.sum()), np.uint32)
        words[:, np.repeat(starts_above, pairs) + within] = _parents(message)
        words[:, (starts_above + above - 1)[odd]] = carried
        counts = above
        yield words, counts


def _parents(message: Words) -> Words:
    if message.shape[1] > _FEW:
        return _workspace().parents(message)
    rows = np.ascontiguousarray(message.T, "<u4").tobytes()
    pairs = [rows[i : i + PAIR_BYTES] for i in range(0, len(rows), PAIR_BYTES)]
    return _from_bytes([compress.parent_cv(pair) for pair in pairs])
