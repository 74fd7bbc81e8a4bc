"""Limits on what servers and publishers may send, with their reasons."""

from __future__ import annotations

from typing import Final

MAX_DNS_BYTES: Final = 1000
"""The DNS message inside a signed packet, as BEP 44 allows for a value."""

HEAD_BYTES: Final = 32 + 64 + 8
"""Key, signature and timestamp before the DNS message."""

MAX_PACKET_BYTES: Final = HEAD_BYTES + MAX_DNS_BYTES
MAX_PAYLOAD_BYTES: Final = MAX_PACKET_BYTES - 32
"""The body of an HTTP request or response: without the key, which the path names."""

MAX_TXT_BYTES: Final = 255
"""One character-string: a length byte comes before it."""

MAX_ATTRIBUTES: Final = 256
"""TXT strings that are read of one endpoint; 1,000 bytes hold fewer than 80, an answer over TCP more."""

RECORD_TTL_S: Final = 30
"""Of the records that we publish; iroh's own."""
