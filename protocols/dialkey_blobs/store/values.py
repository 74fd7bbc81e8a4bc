"""The values that a store hands out."""

from __future__ import annotations

import enum
from collections.abc import Generator
from typing import TypeVar

import attrs

from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat

__all__ = [
    "BlobInfo",
    "BlobState",
    "BlobStatus",
    "CheckOutcome",
    "CheckReport",
    "GcReport",
    "ImportMode",
    "Steps",
    "StoreStats",
    "Tag",
    "finish",
]

T = TypeVar("T")

Steps = Generator[int, None, T]
"""Work that is done piece by piece, so that other work can be done in between; yields bytes done so far.

Closing it early leaves the store as if it had not been started.
"""


def finish(steps: Steps[T]) -> T:
    """Do all the steps at once, and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


class ImportMode(enum.Enum):
    """How a file becomes a blob.

    `COPY` takes the bytes into the store. `REFERENCE` leaves the file where it is and remembers its
    path, size and time of modification: no space is used, but the file must not change. Small files
    are copied in any case.

    `DEFERRED` is a reference that exists as soon as the file is hashed, at gigabytes per second. The
    outboard, which is needed to serve it, is made by `Store.make_outboards`, or when somebody asks for
    the blob, who then has to wait; only then does the blob outlive the process, and only then is a
    small file copied. If the file has changed by then, that is noticed and the request fails. For files
    above 2 GiB it is the same as `REFERENCE`, because requests would wait too long. A store in memory
    copies.
    """

    COPY = "copy"
    REFERENCE = "reference"
    DEFERRED = "deferred"


class BlobState(enum.Enum):
    """How much of a blob a store holds."""

    MISSING = "missing"
    PARTIAL = "partial"
    COMPLETE = "complete"


@attrs.frozen
class BlobStatus:
    """What a store holds of a blob.

    Attributes:
        state: nothing, a part, or all.
        size: bytes, if proven; None otherwise.
        bitfield: the chunks, and the size as far as known.

    Source: docs/wire/blobs.md 5.4.
    """

    state: BlobState
    bitfield: Bitfield

    @classmethod
    def of(cls, bitfield: Bitfield | None) -> BlobStatus:
        """Return the status that goes with a bitfield; None for an unknown blob."""
        if bitfield is None:
            return cls(BlobState.MISSING, Bitfield())
        state = BlobState.COMPLETE if bitfield.is_complete else BlobState.PARTIAL
        return cls(state, bitfield)

    @property
    def size(self) -> int | None:
        return self.bitfield.validated_size


@attrs.frozen
class BlobInfo:
    """One entry in the list of blobs.

    Attributes:
        hash: the blob.
        state: a part or all; never missing.
        size: bytes of a complete blob; None for a partial one, whose status says more.
        is_reference: whether the content is a file outside the store.
    """

    hash: Hash
    state: BlobState
    size: int | None
    is_reference: bool


@attrs.frozen
class Tag:
    """A name that keeps a blob, and for a hash sequence its children, from garbage collection."""

    name: bytes
    content: HashAndFormat

    @property
    def hash(self) -> Hash:
        return self.content.hash

    @property
    def format(self) -> BlobFormat:
        return self.content.format


@attrs.frozen
class GcReport:
    """What a garbage collection did.

    Attributes:
        kept: blobs that are protected.
        deleted: blobs that were not, and are gone.
        unreadable: hash sequences whose children could not be read in full, so that only the
            children that could be read are protected.
    """

    kept: int
    deleted: tuple[Hash, ...]
    unreadable: tuple[Hash, ...]


class CheckOutcome(enum.Enum):
    """What a check found, and did about it.

    `GOOD`: everything matches. `REPAIRED`: the content matches; its outboard did not, and was made
    again. `DEMOTED`: damaged parts were dropped; what is left is a partial blob. `LOST`: nothing was
    left, and the entry is gone. `UNREADABLE`: the system could not read it; nothing was changed.
    """

    GOOD = "good"
    REPAIRED = "repaired"
    DEMOTED = "demoted"
    LOST = "lost"
    UNREADABLE = "unreadable"


@attrs.frozen
class CheckReport:
    """The result of checking one blob against its hash.

    Attributes:
        hash: the blob.
        outcome: what was found and done.
        before: what the store believed it held.
        after: what it holds.
    """

    hash: Hash
    outcome: CheckOutcome
    before: Bitfield
    after: Bitfield


@attrs.frozen
class StoreStats:
    """Counts and sizes of a store.

    Attributes:
        complete: complete blobs.
        partial: partial blobs.
        references: of the complete ones, those that are files outside the store.
        complete_bytes: content of the complete blobs that the store itself keeps.
        reference_bytes: content of those outside.
        tags: named tags.
        pins: contents that temp tags protect.
    """

    complete: int
    partial: int
    references: int
    complete_bytes: int
    reference_bytes: int
    tags: int
    pins: int
