"""Hash sequences: blobs that list the hashes of other blobs.

Source: docs/wire/blobs.md 6.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from dialkey.errors import WireError
from dialkey.limits import MAX_HASH_SEQ_BYTES
from dialkey_blobs.hash import Hash

__all__ = ["HashSeq"]


@attrs.frozen(repr=False)
class HashSeq:
    """A sequence of hashes, as stored: 32 bytes each, nothing else; it may be empty.

    Supports `len`, indexing by number and iteration. The hashes stay packed, so a million of them
    take 32 MB.

    Args:
        data: the packed hashes.

    Raises:
        WireError: the length is not a multiple of 32, or above `MAX_HASH_SEQ_BYTES`.
    """

    data: bytes = b""

    def __attrs_post_init__(self) -> None:
        if len(self.data) % 32:
            raise WireError(
                f"{len(self.data)} bytes cannot be a hash sequence: not a multiple of 32"
            )
        if len(self.data) > MAX_HASH_SEQ_BYTES:
            raise WireError(
                f"a hash sequence of {len(self.data)} bytes is larger than {MAX_HASH_SEQ_BYTES}"
            )

    @classmethod
    def of(cls, hashes: Iterable[Hash]) -> HashSeq:
        """Return the sequence of these hashes."""
        return cls(b"".join(hash.digest for hash in hashes))

    def __len__(self) -> int:
        return len(self.data) // 32

    def __getitem__(self, index: int) -> Hash:
        if not -len(self) <= index < len(self):
            raise IndexError("hash sequence index out of range")
        start = 32 * (index % len(self))
        return Hash(self.data[start : start + 32])

    def __iter__(self) -> Iterator[Hash]:
        for start in range(0, len(self.data), 32):
            yield Hash(self.data[start : start + 32])

    def __repr__(self) -> str:
        return f"HashSeq({len(self)} hashes)"

    def hash(self) -> Hash:
        """Return the hash of the sequence itself."""
        return Hash.of(self.data)
