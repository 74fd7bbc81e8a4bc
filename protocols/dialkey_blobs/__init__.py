"""Blobs: content by its hash, verified as it arrives; wire-compatible with iroh-blobs.

    async with Endpoint.bind() as endpoint, Router(endpoint) as router:
        blobs = router.add(Blobs.persistent("share"))
        tag, _ = await blobs.add_files(["photos"])
        print(blobs.ticket(tag))
        await router.serve()

The names below are imported when first used, so importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey.lazy import lazy_names

if TYPE_CHECKING:
    from dialkey_blobs.bitfield import Bitfield
    from dialkey_blobs.blobs import Blobs, Entry, Export, Exported
    from dialkey_blobs.collecting import LeftOut
    from dialkey_blobs.collection import Collection
    from dialkey_blobs.download import (
        BlobFetched,
        Connected,
        Download,
        Downloaded,
        DownloadEvent,
        Progress,
        ProviderFailed,
    )
    from dialkey_blobs.errors import (
        BlobNotFound,
        BlobTooLarge,
        BlobTruncated,
        ItemNotFound,
        LeafMismatch,
        ParentMismatch,
        RangeMissing,
        VerificationError,
    )
    from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat
    from dialkey_blobs.hash_seq import HashSeq
    from dialkey_blobs.names import UnsafeName, UnsendableName
    from dialkey_blobs.protocol import (
        ALPN,
        GetManyRequest,
        GetRequest,
        ObserveRequest,
        PushRequest,
        Request,
        StreamCode,
    )
    from dialkey_blobs.provider import Authorize, ProviderLimits
    from dialkey_blobs.provider_events import (
        BlobServed,
        ProviderEvent,
        ProviderEvents,
        RequestEnded,
        RequestStarted,
    )
    from dialkey_blobs.ranges import ChunkRanges, ChunkRangesSeq
    from dialkey_blobs.receiving import Received
    from dialkey_blobs.safe_paths import TargetExists
    from dialkey_blobs.store import FsStore, ImportMode, MemoryStore, Store, TempTag
    from dialkey_blobs.ticket import BlobTicket

__all__ = [
    "ALPN",
    "Authorize",
    "Bitfield",
    "BlobFetched",
    "BlobFormat",
    "BlobNotFound",
    "BlobServed",
    "BlobTicket",
    "BlobTooLarge",
    "BlobTruncated",
    "Blobs",
    "ChunkRanges",
    "ChunkRangesSeq",
    "Collection",
    "Connected",
    "Download",
    "DownloadEvent",
    "Downloaded",
    "Entry",
    "Export",
    "Exported",
    "FsStore",
    "GetManyRequest",
    "GetRequest",
    "Hash",
    "HashAndFormat",
    "HashSeq",
    "ImportMode",
    "ItemNotFound",
    "LeafMismatch",
    "LeftOut",
    "MemoryStore",
    "ObserveRequest",
    "ParentMismatch",
    "Progress",
    "ProviderEvent",
    "ProviderEvents",
    "ProviderFailed",
    "ProviderLimits",
    "PushRequest",
    "RangeMissing",
    "Received",
    "Request",
    "RequestEnded",
    "RequestStarted",
    "Store",
    "StreamCode",
    "TargetExists",
    "TempTag",
    "UnsafeName",
    "UnsendableName",
    "VerificationError",
]

_HOMES = {
    "bitfield": ("Bitfield",),
    "blobs": ("Blobs", "Entry", "Export", "Exported"),
    "collecting": ("LeftOut",),
    "collection": ("Collection",),
    "download": (
        "BlobFetched",
        "Connected",
        "Download",
        "DownloadEvent",
        "Downloaded",
        "Progress",
        "ProviderFailed",
    ),
    "errors": (
        "BlobNotFound",
        "BlobTooLarge",
        "BlobTruncated",
        "ItemNotFound",
        "LeafMismatch",
        "ParentMismatch",
        "RangeMissing",
        "VerificationError",
    ),
    "hash": ("BlobFormat", "Hash", "HashAndFormat"),
    "hash_seq": ("HashSeq",),
    "names": ("UnsafeName", "UnsendableName"),
    "protocol": (
        "ALPN",
        "GetManyRequest",
        "GetRequest",
        "ObserveRequest",
        "PushRequest",
        "Request",
        "StreamCode",
    ),
    "provider": ("Authorize", "ProviderLimits"),
    "provider_events": (
        "BlobServed",
        "ProviderEvent",
        "ProviderEvents",
        "RequestEnded",
        "RequestStarted",
    ),
    "receiving": ("Received",),
    "ranges": ("ChunkRanges", "ChunkRangesSeq"),
    "safe_paths": ("TargetExists",),
    "store": ("FsStore", "ImportMode", "MemoryStore", "Store", "TempTag"),
    "ticket": ("BlobTicket",),
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
