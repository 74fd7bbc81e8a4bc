"""What can go wrong with blobs, and where each error belongs in the tree of `dialkey.errors`.

The classes mirror the getter-side classes of docs/wire/blobs.md 1.6::

    RemoteError
    ├── BlobNotFound                 the provider finished before it sent anything of the blob
    ├── ItemNotFound                 it finished between two items: it holds only a part
    ├── WireError
    │   └── BlobTruncated            it finished in the middle of an item
    ├── ProtocolViolation
    │   └── VerificationError        bytes that do not match the hash
    │       ├── ParentMismatch       ... in a pair of hashes
    │       └── LeafMismatch         ... in the content
    └── LimitExceeded
        └── BlobTooLarge             it claims a size above the caller's limit
    LocalError
    └── RangeMissing                 we were asked for chunks that we do not hold
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey.errors import LimitExceeded, LocalError, ProtocolViolation, RemoteError, WireError

if TYPE_CHECKING:
    from dialkey_blobs.events import BlobEvent
    from dialkey_blobs.hash import Hash
    from dialkey_blobs.tree import Leaf, Parent

__all__ = [
    "BlobNotFound",
    "BlobTooLarge",
    "BlobTruncated",
    "ItemNotFound",
    "LeafMismatch",
    "ParentMismatch",
    "RangeMissing",
    "VerificationError",
]


class BlobNotFound(RemoteError):
    """The provider ended its response before the first byte of a blob's size header.

    Attributes:
        verified: events that were verified before the end and not yet handed out.
    """

    code = "remote.blobs.not_found"

    def __init__(self, message: str, *, verified: tuple[BlobEvent, ...] = ()) -> None:
        super().__init__(message)
        self.verified = verified


class ItemNotFound(RemoteError):
    """The provider ended its response between two items: it holds only a part of the blob.

    Attributes:
        item: the parent or leaf that should have come next.
        verified: events that were verified before the end and not yet handed out.
    """

    code = "remote.blobs.item_not_found"

    def __init__(
        self, message: str, *, item: Parent | Leaf, verified: tuple[BlobEvent, ...] = ()
    ) -> None:
        super().__init__(message)
        self.item = item
        self.verified = verified


class BlobTruncated(WireError):
    """The provider ended its response in the middle of a header, pair or leaf.

    Attributes:
        verified: events that were verified before the end and not yet handed out.
    """

    code = "remote.wire.blobs_truncated"

    def __init__(self, message: str, *, verified: tuple[BlobEvent, ...] = ()) -> None:
        super().__init__(message)
        self.verified = verified


class VerificationError(ProtocolViolation):
    """Bytes that do not match the hash: the provider is broken or lying.

    Attributes:
        hash: the blob that was asked for.
        item: the first parent or leaf that does not match.
        stream_offset: where that item starts in the blob's response, counted from its size header.
        verified: events before the mismatch that were verified and not yet handed out.
    """

    code = "remote.protocol.blobs_mismatch"

    def __init__(
        self,
        message: str,
        *,
        hash: Hash,
        item: Parent | Leaf,
        stream_offset: int,
        verified: tuple[BlobEvent, ...] = (),
    ) -> None:
        super().__init__(message)
        self.hash = hash
        self.item = item
        self.stream_offset = stream_offset
        self.verified = verified


class ParentMismatch(VerificationError):
    code = "remote.protocol.blobs_mismatch.parent"


class LeafMismatch(VerificationError):
    code = "remote.protocol.blobs_mismatch.leaf"


class BlobTooLarge(LimitExceeded):
    """The provider claims a size above the caller's limit.

    Attributes:
        size_bytes: the claim, which nothing has verified.
        verified: as with `VerificationError`.
    """

    code = "remote.limit.blobs_size"

    def __init__(
        self, message: str, *, size_bytes: int, verified: tuple[BlobEvent, ...] = ()
    ) -> None:
        super().__init__(message)
        self.size_bytes = size_bytes
        self.verified = verified


class RangeMissing(LocalError):
    """A request reaches chunks that the store does not hold, or not as whole groups.

    Attributes:
        start_chunk: the first chunk of the item that cannot be produced.
    """

    code = "local.blobs.range_missing"

    def __init__(self, message: str, *, start_chunk: int) -> None:
        super().__init__(message)
        self.start_chunk = start_chunk
