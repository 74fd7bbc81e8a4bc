"""Check stored blobs against their hashes, and drop what is damaged."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.hash import Hash
from dialkey_blobs.hashing import BATCH_BYTES
from dialkey_blobs.outboard import OutboardBuilder
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.store.audit import sound_groups
from dialkey_blobs.store.database import Place, Reference, Row
from dialkey_blobs.store.errors import BlobMissing, FileFailed
from dialkey_blobs.store.file_blob import FileBlob
from dialkey_blobs.store.values import CheckOutcome, CheckReport, Steps

if TYPE_CHECKING:
    from dialkey_blobs.store.fs_core import FsCore

__all__ = ["check_blob"]

_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})


@attrs.frozen
class _Finding:
    """What hashing a complete blob has shown.

    Attributes:
        content_matches: whether the content is what it should be.
        outboard_matches: the same for the outboard.
    """

    content_matches: bool
    outboard_matches: bool


def check_blob(core: FsCore, hash: Hash) -> Steps[CheckReport]:
    """Check one blob; see `StoreCore.check`."""
    row = core.entry(hash)
    if row is None:
        raise BlobMissing(hash)
    before = core.status(hash).bitfield
    # Opening a partial blob may have completed it.
    row = core.entry(hash) or row
    check: Callable[[FsCore, Hash, Row], Steps[CheckOutcome]]
    if row.place == Place.PARTIAL:
        check = _check_partial
    elif row.place == Place.INLINE:
        check = _check_inline
    elif row.place == Place.FILE:
        check = _check_file
    else:
        check = _check_reference
    try:
        outcome = yield from check(core, hash, row)
    except FileFailed:
        return CheckReport(hash, CheckOutcome.UNREADABLE, before, before)
    return CheckReport(hash, outcome, before, core.status(hash).bitfield)


def _check_partial(core: FsCore, hash: Hash, row: Row) -> Steps[CheckOutcome]:
    # A handle of its own: the entry may be written to, completed or deleted meanwhile.
    with core.open(hash) as blob:
        assert isinstance(blob, FileBlob)
        held = blob.bitfield
        sound = yield from sound_groups(
            hash, held.size, held.ranges, blob.read_raw, blob.read_outboard
        )
    lost = held.ranges.shrunk_to_groups(held.size) - sound
    lost = lost.limited_to(held.size)
    if not lost or core.entry(hash) != row:
        return CheckOutcome.GOOD
    core.strike(hash, lost)
    return CheckOutcome.DEMOTED


def _check_inline(core: FsCore, hash: Hash, row: Row) -> Steps[CheckOutcome]:
    yield 0
    if core.entry(hash) != row or Hash.of(core.inline_content(row)) == hash:
        return CheckOutcome.GOOD
    core.remove(hash)
    return CheckOutcome.LOST


def _check_file(core: FsCore, hash: Hash, row: Row) -> Steps[CheckOutcome]:
    outboard = core.stored_outboard(hash, row)
    if isinstance(outboard, Path) and not outboard.exists():
        outboard = b""
    try:
        blob = core.open_files(hash, row, outboard)
    except FileFailed as error:
        if error.errno not in _GONE:
            raise
        return _lose(core, hash, row)
    with blob:
        finding = yield from _compare(blob)
        if finding.content_matches and finding.outboard_matches:
            return CheckOutcome.GOOD
        if finding.content_matches:
            yield from _rebuild_outboard(core, hash, row)
            return CheckOutcome.REPAIRED
        sound = yield from sound_groups(
            hash, blob.size, ChunkRanges.all(), blob.read_raw, blob.read_outboard
        )
        if not sound:
            return _lose(core, hash, row)
        if core.entry(hash) == row:
            core.demote(hash, Bitfield.of(blob.size, sound), outboard)
        return CheckOutcome.DEMOTED


def _check_reference(core: FsCore, hash: Hash, row: Row) -> Steps[CheckOutcome]:
    reference = core.reference(row)
    try:
        source, status = core.open_source(reference.path)
    except FileFailed as error:
        if error.errno not in _GONE:
            raise
        return _lose(core, hash, row)
    if status.st_size != row.size:
        os.close(source)
        return _lose(core, hash, row)
    now = Reference(reference.path, status.st_mtime_ns)
    os.close(source)
    with core.open_files(hash, row, core.stored_outboard(hash, row), now) as blob:
        finding = yield from _compare(blob)
    if not finding.content_matches:
        return _lose(core, hash, row)
    if core.entry(hash) != row:
        return CheckOutcome.GOOD
    if now != reference:
        core.renew_reference(row, now)
    if finding.outboard_matches:
        return CheckOutcome.GOOD
    yield from _rebuild_outboard(core, hash, row)
    return CheckOutcome.REPAIRED


def _lose(core: FsCore, hash: Hash, row: Row) -> CheckOutcome:
    if core.entry(hash) == row:
        core.remove(hash)
    return CheckOutcome.LOST


def _compare(blob: FileBlob) -> Steps[_Finding]:
    """Hash the content, and compare the outboard that it should have with the one it has."""
    differences = 0

    def compare(offset: int, pairs: bytes) -> None:
        nonlocal differences
        differences += blob.read_outboard(offset, len(pairs)) != pairs

    if blob.data_length < blob.size:
        return _Finding(False, False)
    builder = OutboardBuilder(blob.size, compare)
    for offset in range(0, blob.size, BATCH_BYTES):
        data = blob.read_raw(offset, min(BATCH_BYTES, blob.size - offset))
        if len(data) != min(BATCH_BYTES, blob.size - offset):
            return _Finding(False, False)
        builder.update(data)
        yield offset
    return _Finding(builder.finish().hash == blob.hash, differences == 0)


def _rebuild_outboard(core: FsCore, hash: Hash, row: Row) -> Steps[None]:
    path = core.content_path(hash, row)
    source, _ = core.open_source(path)
    try:
        hashed = yield from core.hash_source(source, path, row.size or 0)
    finally:
        os.close(source)
    if hashed.built.hash == hash and core.entry(hash) == row:
        core.replace_outboard(hash, row, hashed)
    elif hashed.outboard_file is not None:
        hashed.outboard_file.discard()
