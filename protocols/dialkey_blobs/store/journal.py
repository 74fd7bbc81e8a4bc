"""The journal of a partial blob: which chunks have been written, recorded after they were.

Theory of operation. A journal is a file of records, each ``length (4, little-endian) ‖ payload ‖
check (8)``, where the check is a BLAKE3 hash over the previous check and the payload. The first
check is keyed by the blob's hash. A process that is killed in the middle of an append leaves a last
record that does not check, and reading stops before it; bytes that an earlier, longer append left
behind do not check either, as they do not follow from the record before them.

A record says one of three things:

- *epoch*: the records that follow are written while the operating system with this id runs;
- *chunks*: content of these chunks, and the pairs above them, were written before this record;
- *sealed*: everything so far was written to the disk itself, not only to its cache.

The kernel keeps what a killed process wrote. So records count if the same system still runs, or if a seal
follows them; after a power failure, others only hint where to look, and the store hashes those chunks
before it trusts them.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs
from blake3 import blake3

from dialkey.errors import InvalidInput, WireError
from dialkey.identity import postcard
from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.hash import Hash

__all__ = ["Journal", "JournalWriter"]

_LENGTH_BYTES: Final = 4
_CHECK_BYTES: Final = 8
# Even, so that a cut never falls into a run of chunks.
_MAX_BOUNDARIES: Final = 1 << 16
_MAX_RECORD_BYTES: Final = 10 * (_MAX_BOUNDARIES + 2) + 1
_CONTEXT: Final = b"dialkey blobs journal 1"


class _Kind(enum.IntEnum):
    EPOCH = 0
    CHUNKS = 1
    SEALED = 2


def _first_check(hash: Hash) -> bytes:
    return blake3(_CONTEXT + hash.digest).digest(_CHECK_BYTES)


@attrs.frozen
class Journal:
    """What a journal file says.

    Attributes:
        bitfield: the chunks of all its records.
        epochs: ids of the systems under which chunks were recorded since the last seal.
        length: bytes of the file that are good; the rest should be cut off.
        check: the check of the last record.
    """

    bitfield: Bitfield
    epochs: frozenset[bytes]
    length: int
    check: bytes

    @classmethod
    def read(cls, hash: Hash, data: bytes) -> Journal:
        """Read the records from the front of `data`, up to the first that fails its check."""
        added: list[Bitfield] = []
        epochs: set[bytes] = set()
        epoch = b""
        check = _first_check(hash)
        position = 0
        while (record := _record(data, position, check)) is not None:
            payload, following, next_check = record
            try:
                reader = postcard.Reader(payload)
                kind = _Kind(reader.u8())
                if kind is _Kind.EPOCH:
                    epoch = reader.byte_string(64)
                elif kind is _Kind.SEALED:
                    epochs.clear()
                else:
                    added.append(Bitfield.from_item(reader.take(reader.remaining)))
                    epochs.add(epoch)
            except (WireError, InvalidInput, ValueError):
                break  # its check passes, but we do not know it: from a later version
            position, check = following, next_check
        return cls(_combined(added), frozenset(epochs), position, check)

    def is_trusted(self, epoch: bytes) -> bool:
        """Return whether all recorded chunks are known to be there.

        Args:
            epoch: the id of the running system; empty if it tells none.
        """
        return not self.epochs or (epoch != b"" and self.epochs == {epoch})


def _combined(parts: list[Bitfield]) -> Bitfield:
    # Merge neighbours first: one after the other would take quadratic time.
    while len(parts) > 1:
        odd = parts[len(parts) & ~1 :]
        parts = [
            left.combine(right) for left, right in zip(parts[::2], parts[1::2], strict=False)
        ] + odd
    return parts[0] if parts else Bitfield()


def _record(data: bytes, position: int, check: bytes) -> tuple[bytes, int, bytes] | None:
    start = position + _LENGTH_BYTES
    length = int.from_bytes(data[position:start], "little")
    end = start + length
    if not 0 < length <= _MAX_RECORD_BYTES or end + _CHECK_BYTES > len(data):
        return None
    payload = data[start:end]
    following = end + _CHECK_BYTES
    expected = blake3(check + payload).digest(_CHECK_BYTES)
    return (payload, following, expected) if data[end:following] == expected else None


class JournalWriter:
    """Make the bytes to append to a journal.

    The position moves on only with `appended`: a record whose write failed is overwritten by the
    next one.

    Args:
        hash: the blob.
        journal: what is in the file; None to begin a new one.
    """

    def __init__(self, hash: Hash, journal: Journal | None = None) -> None:
        self.length = 0 if journal is None else journal.length
        self._check = _first_check(hash) if journal is None else journal.check
        self._pending = self._check
        self._pending_length = 0

    def epoch(self, epoch: bytes) -> bytes:
        """Return the record that names the running system."""
        return self._record(bytes(postcard.Writer().u8(_Kind.EPOCH).byte_string(epoch)))

    def chunks(self, bitfield: Bitfield) -> bytes:
        """Return the records that add chunks; one, unless the chunks have very many holes."""
        bounds = bitfield.ranges.boundaries
        records = b""
        for start in range(0, len(bounds), _MAX_BOUNDARIES):
            part = bounds[start : start + _MAX_BOUNDARIES]
            writer = postcard.Writer().u8(_Kind.CHUNKS).varint(bitfield.size).varint(len(part))
            for bound in part:
                writer.varint(bound)
            records += self._record(bytes(writer))
        return records

    def sealed(self) -> bytes:
        """Return the record that says that everything before it is on the disk."""
        return self._record(bytes(postcard.Writer().u8(_Kind.SEALED)))

    def _record(self, payload: bytes) -> bytes:
        self._pending = blake3(self._pending + payload).digest(_CHECK_BYTES)
        record = len(payload).to_bytes(_LENGTH_BYTES, "little") + payload + self._pending
        self._pending_length += len(record)
        return record

    def appended(self) -> None:
        """Note that all records made so far are in the file, which has `length` bytes."""
        self._check = self._pending
        self.length += self._pending_length
        self._pending_length = 0

    def failed(self) -> None:
        """Discard the records made since the last `appended`."""
        self._pending = self._check
        self._pending_length = 0
