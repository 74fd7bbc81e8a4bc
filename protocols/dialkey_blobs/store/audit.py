"""Find which parts of a blob are sound, when some of its content or outboard is damaged.

Every pair and every chunk group is compared with the chaining value that the pair above it names.
A pair that does not match invalidates everything below it, since nothing proves that any more.
"""

from __future__ import annotations

from dialkey_blobs.encoder import ReadAt
from dialkey_blobs.hash import Hash
from dialkey_blobs.hashing import parent_cvs, subtree_cv, subtree_cvs
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.store.values import Steps
from dialkey_blobs.tree import PAIR_BYTES, Leaf, Parent, chunk_count, plan

__all__ = ["sound_groups"]

_BATCH_ITEMS = 512


def sound_groups(
    hash: Hash, size: int, held: ChunkRanges, read_data: ReadAt, read_outboard: ReadAt
) -> Steps[ChunkRanges]:
    """Return the chunk groups that match the hash, of those that are held whole.

    Args:
        hash: the blob.
        size: its bytes, proven or claimed.
        held: the chunks to look at; groups that are held only in part are left out, as the pairs
            within groups are not stored.
        read_data: may return fewer bytes than asked for, where the file ends.
        read_outboard: likewise.
    """
    expected = [hash.digest]
    batch: list[tuple[Parent | Leaf, bytes, bytes]] = []
    sound: list[int] = []
    bad_until = done = 0
    for item in plan(size, held.shrunk_to_groups(size)):
        if isinstance(item, Parent):
            pair = bytes(read_outboard(item.outboard_index * PAIR_BYTES, PAIR_BYTES))
            pair = pair.ljust(PAIR_BYTES, b"\0")
            batch.append((item, pair, expected.pop()))
            if item.visits_right:
                expected.append(pair[32:])
            if item.visits_left:
                expected.append(pair[:32])
        else:
            data = bytes(read_data(item.offset, item.length)).ljust(item.length, b"\0")
            batch.append((item, data, expected.pop()))
            done += item.length
        if len(batch) == _BATCH_ITEMS:
            bad_until = _compare(batch, bad_until, sound)
            batch.clear()
            yield done
    _compare(batch, bad_until, sound)
    return ChunkRanges(tuple(sound))


def _compare(
    batch: list[tuple[Parent | Leaf, bytes, bytes]], bad_until: int, sound: list[int]
) -> int:
    """Append the boundaries of sound leaves; return the chunk before which nothing is proven."""
    pairs = [(data, item.is_root) for item, data, _ in batch if isinstance(item, Parent)]
    leaves = [
        (data, item.start_chunk)
        for item, data, _ in batch
        if isinstance(item, Leaf) and not item.is_root
    ]
    pair_values = iter(parent_cvs([pair for pair, _ in pairs], [root for _, root in pairs]))
    leaf_values = iter(subtree_cvs(leaves))
    for item, data, expected in batch:
        end = item.start_chunk + chunk_count(item.length)
        if isinstance(item, Parent):
            value = next(pair_values)
        else:
            value = subtree_cv(data, 0, True) if item.is_root else next(leaf_values)
        if item.start_chunk < bad_until:
            continue
        if value != expected:
            bad_until = end
        elif isinstance(item, Leaf):
            if sound and sound[-1] == item.start_chunk:
                sound[-1] = end
            else:
                sound += (item.start_chunk, end)
    return bad_until
