"""How much of some content is already held, and what must still be requested.

Source: docs/wire/blobs.md 8.2.
"""

from __future__ import annotations

import attrs

from dialkey_blobs.hash import BlobFormat, HashAndFormat
from dialkey_blobs.hash_seq import HashSeq
from dialkey_blobs.protocol import GetRequest
from dialkey_blobs.ranges import ChunkRanges, ChunkRangesSeq
from dialkey_blobs.responder import load_hash_seq
from dialkey_blobs.store.core import StoreReader
from dialkey_blobs.store.values import BlobState

__all__ = ["Local", "look"]


@attrs.frozen
class Local:
    """What a store holds of a blob, or of a hash sequence with its children.

    Attributes:
        content: what it is about.
        is_complete: whether nothing is missing.
        held_bytes: content that is held and verified.
        total_bytes: all content, where every size is proven; else None.
        missing: what to ask for; None when complete.
        children: the hash sequence, when it is held.
    """

    content: HashAndFormat
    is_complete: bool
    held_bytes: int
    total_bytes: int | None
    missing: GetRequest | None
    children: HashSeq | None


def look(reader: StoreReader, content: HashAndFormat) -> Local:
    """Compare content with a store."""
    root = reader.status(content.hash)
    root_missing = ChunkRanges.all() - root.bitfield.ranges
    held = root.bitfield.present_bytes
    if content.format is BlobFormat.RAW:
        complete = root.state is BlobState.COMPLETE
        request = None if complete else GetRequest.blob(content.hash, root_missing)
        return Local(content, complete, held, root.size, request, None)
    if root.state is not BlobState.COMPLETE:
        sets = [root_missing, ChunkRanges.all()]
        request = GetRequest(content.hash, ChunkRangesSeq.endless(sets))
        return Local(content, False, held, None, request, None)
    children = load_hash_seq(reader, content.hash)
    sets = [ChunkRanges.empty()]
    total: int | None = root.size
    complete = True
    # The same blob may stand in a collection many times, but is held and sent only once.
    seen: dict[bytes, None] = {}
    for hash in children:
        if hash.digest in seen:
            sets.append(ChunkRanges.empty())
            continue
        seen[hash.digest] = None
        status = reader.status(hash)
        if status.state is BlobState.COMPLETE:
            sets.append(ChunkRanges.empty())
        else:
            complete = False
            sets.append(ChunkRanges.all() - status.bitfield.ranges)
        held += status.bitfield.present_bytes
        total = total + status.size if total is not None and status.size is not None else None
    request = None if complete else GetRequest(content.hash, ChunkRangesSeq.finite(sets))
    return Local(content, complete, held, total, request, children)
