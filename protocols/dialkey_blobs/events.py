"""What a decoder returns: verified parts of blobs, and its position in a response."""

from __future__ import annotations

from typing import NamedTuple

import attrs

from dialkey_blobs.hash import Hash
from dialkey_blobs.tree import CHUNK_BYTES, SUBTREE_BYTES, Leaf, Parent, Subtree

__all__ = [
    "BlobEvent",
    "BlobFinished",
    "BlobStarted",
    "VerifiedContent",
    "VerifiedLeaf",
    "VerifiedParent",
    "VerifiedSubtree",
]


class VerifiedParent(NamedTuple):
    """A pair of chaining values that matches the hash.

    Attributes:
        node: its place in the tree.
        pair: the left and the right child's chaining value, 64 bytes.
    """

    node: Parent
    pair: bytes


class VerifiedLeaf(NamedTuple):
    """Content that matches the hash.

    Attributes:
        leaf: its place in the tree.
        data: its bytes.
    """

    leaf: Leaf
    data: bytes

    @property
    def start_chunk(self) -> int:
        """The first chunk of the content."""
        return self.leaf.start_chunk

    @property
    def offset(self) -> int:
        """Where the content begins in the blob, in bytes."""
        return self.leaf.offset

    @property
    def end(self) -> int:
        """Where the content ends in the blob, in bytes."""
        return self.leaf.offset + self.leaf.length


class VerifiedSubtree(NamedTuple):
    """All pairs and all content of a complete subtree, which match the hash.

    Attributes:
        node: its place in the tree.
        pairs: its pairs in pre-order, as an outboard has them.
        data: its content.
    """

    node: Subtree
    pairs: bytes
    data: bytes

    @property
    def start_chunk(self) -> int:
        """The first chunk of the content."""
        return self.node.start_chunk

    @property
    def offset(self) -> int:
        """Where the content begins in the blob, in bytes."""
        return self.node.start_chunk * CHUNK_BYTES

    @property
    def end(self) -> int:
        """Where the content ends in the blob, in bytes."""
        return self.offset + SUBTREE_BYTES


VerifiedContent = VerifiedLeaf | VerifiedSubtree


@attrs.frozen
class BlobStarted:
    """A blob's size header arrived; what follows belongs to this blob.

    Attributes:
        index: 0 for the blob that was asked for, i + 1 for its child i; in an answer to GetMany,
            the place in the list of hashes.
        hash: which blob.
        size: the provider's claim in bytes. It is proven once a leaf that ends there was verified;
            until then it must not decide how much is allocated.
    """

    index: int
    hash: Hash
    size: int


@attrs.frozen
class BlobFinished:
    """All that was asked of a blob has arrived and was verified.

    Attributes:
        index: as in `BlobStarted`.
        hash: which blob.
        size: as claimed, in bytes.
        size_is_proven: whether what was asked for included the last chunk.
    """

    index: int
    hash: Hash
    size: int
    size_is_proven: bool


BlobEvent = VerifiedParent | VerifiedContent | BlobStarted | BlobFinished
