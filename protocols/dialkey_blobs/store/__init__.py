"""Where blobs are kept: in a directory (`FsStore`) or in memory (`MemoryStore`).

Both offer the same: adding from memory, streams and files; reading; exporting; storing what a
download has verified, so that it can resume; tags, garbage collection and checks.
"""

from __future__ import annotations

from dialkey_blobs.store.core import OpenBlob, StoreCore, StoreReader
from dialkey_blobs.store.errors import (
    BlobDamaged,
    BlobIncomplete,
    BlobInUse,
    BlobMissing,
    DiskFull,
    FileFailed,
    ReferenceChanged,
    SizeConflict,
    StoreClosed,
    StoreDamaged,
    StoreLocked,
    TagExists,
    TagMissing,
)
from dialkey_blobs.store.handles import StoredBlob
from dialkey_blobs.store.observing import Observation
from dialkey_blobs.store.pins import Batch, TempTag
from dialkey_blobs.store.store import FsStore, MemoryStore, Store
from dialkey_blobs.store.tags import Tags
from dialkey_blobs.store.values import (
    BlobInfo,
    BlobState,
    BlobStatus,
    CheckOutcome,
    CheckReport,
    GcReport,
    ImportMode,
    StoreStats,
    Tag,
)

__all__ = [
    "Batch",
    "BlobDamaged",
    "BlobInUse",
    "BlobIncomplete",
    "BlobInfo",
    "BlobMissing",
    "BlobState",
    "BlobStatus",
    "CheckOutcome",
    "CheckReport",
    "DiskFull",
    "FileFailed",
    "FsStore",
    "GcReport",
    "ImportMode",
    "MemoryStore",
    "Observation",
    "OpenBlob",
    "ReferenceChanged",
    "SizeConflict",
    "Store",
    "StoreClosed",
    "StoreCore",
    "StoreDamaged",
    "StoreLocked",
    "StoreReader",
    "StoreStats",
    "StoredBlob",
    "Tag",
    "TagExists",
    "TagMissing",
    "Tags",
    "TempTag",
]
