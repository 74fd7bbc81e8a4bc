"""Every limit on what strangers may send or make us hold, with its reason.

One module, so that a reviewer sees all of them at once. Units are in the names. A protocol's own
limits (how large a blob request is, say) stand here too when a stranger's bytes meet them.
"""

from __future__ import annotations

from typing import Final

# --- identity -----------------------------------------------------------------------------------

MAX_TICKET_CHARS: Final = 8192
"""A ticket is typed, scanned or pasted; 32 addresses and 8 relays fit in 3,000 characters."""

MAX_TICKET_ADDRESSES: Final = 256
"""Far above the 32 that anyone dials; bounds what a hostile ticket makes us allocate."""

# --- dialling -----------------------------------------------------------------------------------

MAX_DIAL_ADDRESSES: Final = 32
"""First-flight copies sent for one dial; iroh keeps 30 addresses of a remote."""

# --- handshakes ---------------------------------------------------------------------------------

MAX_HALF_OPEN_HANDSHAKES: Final = 256
"""Handshakes in progress on one endpoint; each costs some 100 KiB and 2 ms until it ends."""

MAX_HALF_OPEN_PER_ADDRESS: Final = 16
"""Of those, from one IP address: a household behind one NAT, not a flood."""

HANDSHAKE_TIMEOUT_S: Final = 10.0
"""An accepted handshake that has not completed by then is dropped."""

MAX_POST_HANDSHAKE_CRYPTO_BYTES: Final = 65_536
"""TLS messages after the handshake: session tickets of some hundred bytes each, which we ignore."""

# --- streams and datagrams ----------------------------------------------------------------------

MAX_INCOMING_STREAMS: Final = 100
"""Concurrent streams of each direction that a peer may open; iroh's own number."""

STREAM_RECEIVE_WINDOW_BYTES: Final = 1_250_000
"""Unread bytes held for one stream; iroh's own number (100 Mbit/s at 100 ms)."""

CONNECTION_RECEIVE_WINDOW_BYTES: Final = 8 * STREAM_RECEIVE_WINDOW_BYTES
"""Unread bytes held for one connection, whatever its number of streams."""

SEND_HIGH_WATER_BYTES: Final = 1_000_000
"""`SendStream.write` waits while more than this is queued and not yet sent on that stream."""

MAX_DATAGRAM_QUEUE_BYTES: Final = 1_250_000
"""Received datagrams not yet read; beyond it the oldest is dropped and counted."""

# --- blobs --------------------------------------------------------------------------------------

MAX_BLOB_REQUEST_BYTES: Final = 1 << 20
"""The body of a blob request after its type byte; iroh's own number."""

MAX_BLOB_RANGE_BOUNDARIES: Final = 1 << 18
"""Boundaries in one request, over all its blobs: 131,072 holes, about 10 MiB once decoded."""

MAX_BLOB_RANGE_ENTRIES: Final = 1 << 17
"""Blobs with ranges of their own in one request: a directory of 100,000 half-received files."""

MAX_OBSERVE_ITEM_BYTES: Final = 1 << 20
"""One frame of an answer to Observe; iroh's own number."""

MAX_HASH_SEQ_BYTES: Final = 32 << 20
"""A hash sequence that we load whole: a million children; sendme's own number."""

MAX_COLLECTION_ENTRIES: Final = MAX_HASH_SEQ_BYTES // 32 - 1
"""Names in a collection; its first child is the list of names."""

MAX_COLLECTION_METADATA_BYTES: Final = 64 << 20
"""The list of names of a collection, which we hold in memory: 64 bytes each for a million."""

MAX_COLLECTION_NAME_BYTES: Final = 4096
"""A relative path of a received file; PATH_MAX of Linux."""

MAX_COLLECTION_NAME_COMPONENTS: Final = 64
"""Directories that one received name may create."""

# --- addresses ----------------------------------------------------------------------------------

MAX_RELAY_URL_BYTES: Final = 2048
"""As long as browsers and proxies let a URL be; n0's own have 36 bytes."""

MAX_CUSTOM_ADDRESS_BYTES: Final = 1024
"""Registered custom transports use 6 and 32 bytes; iroh sets no limit."""

MAX_SOCKET_ADDRESS_CHARS: Final = 128
"""The longest sensible text, IPv6 with scope and port, has 58 characters."""
