"""Collections: blobs with names, such as the files of a directory.

A collection is a hash sequence whose first child lists the names of the others.

Source: docs/wire/blobs.md 6.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs

from dialkey.errors import InvalidInput, WireError
from dialkey.identity import postcard
from dialkey.limits import (
    MAX_COLLECTION_ENTRIES,
    MAX_COLLECTION_METADATA_BYTES,
    MAX_COLLECTION_NAME_BYTES,
)
from dialkey_blobs.hash import Hash
from dialkey_blobs.hash_seq import HashSeq

__all__ = ["COLLECTION_HEADER", "Collection"]

COLLECTION_HEADER: Final = b"CollectionV0."


@attrs.frozen
class Collection:
    """Names and the blobs that they name, in order.

    Names may be any text here, as strangers may send any; before one becomes a path it goes through
    `safe_paths`.

    Args:
        entries: (name, hash).

    Raises:
        InvalidInput: more or longer names than a collection may have.
    """

    entries: tuple[tuple[str, Hash], ...] = ()

    def __attrs_post_init__(self) -> None:
        if len(self.entries) > MAX_COLLECTION_ENTRIES:
            raise InvalidInput(f"a collection has at most {MAX_COLLECTION_ENTRIES} entries")

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[tuple[str, Hash]]:
        return iter(self.entries)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(name for name, _ in self.entries)

    def to_blobs(self) -> tuple[bytes, HashSeq]:
        """Return the blob that lists the names, and the hash sequence that is the collection.

        Raises:
            InvalidInput: a name is not encodable, or the list of names is too long.
        """
        writer = postcard.Writer().raw(COLLECTION_HEADER).varint(len(self.entries))
        for name, _ in self.entries:
            try:
                encoded = name.encode("utf-8")
            except UnicodeEncodeError:
                raise InvalidInput(f"the name {name!r} cannot be written as UTF-8") from None
            if len(encoded) > MAX_COLLECTION_NAME_BYTES:
                raise InvalidInput(
                    f"the name {name[:60]!r}… is longer than {MAX_COLLECTION_NAME_BYTES} bytes"
                )
            writer.byte_string(encoded)
        if len(writer) > MAX_COLLECTION_METADATA_BYTES:
            raise InvalidInput(
                f"the names of a collection take at most {MAX_COLLECTION_METADATA_BYTES} bytes"
            )
        metadata = bytes(writer)
        children = HashSeq.of((Hash.of(metadata), *(hash for _, hash in self.entries)))
        return metadata, children

    @classmethod
    def from_blobs(cls, metadata: bytes, children: HashSeq) -> Collection:
        """Load a collection from its hash sequence and the blob that the first child names.

        Raises:
            WireError: the bytes are not a list of names, or not as many names as there are children.
        """
        if len(metadata) > MAX_COLLECTION_METADATA_BYTES:
            raise WireError(
                f"the names of a collection take {len(metadata)} bytes, more than"
                f" {MAX_COLLECTION_METADATA_BYTES}"
            )
        reader = postcard.Reader(metadata)
        if metadata[: len(COLLECTION_HEADER)] != COLLECTION_HEADER:
            raise WireError("this is not a collection: its first child does not list names")
        reader.take(len(COLLECTION_HEADER))
        count = reader.count(MAX_COLLECTION_ENTRIES)
        if count + 1 != len(children):
            raise WireError(
                f"a collection lists {count} names for {max(0, len(children) - 1)} blobs"
            )
        names = [reader.string(MAX_COLLECTION_NAME_BYTES) for _ in range(count)]
        if not reader.finished:
            raise WireError(f"{reader.remaining} bytes follow the names of a collection")
        hashes = iter(children)
        next(hashes)
        return cls(tuple(zip(names, hashes, strict=True)))
