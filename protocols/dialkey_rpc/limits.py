"""Limits on what a stranger may call us with, with their reasons."""

from __future__ import annotations

from typing import Final

MAX_RPC_ENVELOPE_BYTES: Final = 1 << 20
"""The msgpack of one message; a hostile one unpacks to about 70 times its size. Large bytes travel
beside it."""

MAX_RPC_MESSAGE_BYTES: Final = 16 << 20
"""One message, envelope and parts; stream whatever is larger."""

MAX_RPC_BUFFERED_BYTES: Final = 64 << 20
"""Messages that one endpoint may have in our memory at once: four of the largest. Counted as they
arrive and as they unfold; what is only announced takes nothing."""

MAX_RPC_TOTAL_BUFFERED_BYTES: Final = 256 << 20
"""The same for one service: four endpoints with all they may have. Beyond it the fullest gives way."""

MAX_RPC_PARTS: Final = 4096
"""Byte strings sent outside the envelope of one message: 16 MiB in pieces of 4 KiB."""

MAX_RPC_DEPTH: Final = 64
"""Nested containers; nobody designs a message deeper than ten."""

MAX_RPC_METADATA_ENTRIES: Final = 64
"""Pairs of text sent with a call: a trace id, a token, a tenant."""

MAX_RPC_CALLS: Final = 1024
"""Calls in progress on one service; each costs a task and its arguments. One endpoint may have a quarter
of them, and when they are all taken the one with most gives way."""

RPC_CALL_ARRIVAL_TIMEOUT_S: Final = 120.0
"""A call whose arguments have not arrived by then is dropped: 16 MiB at 1.1 Mbit/s."""

MAX_RPC_ERROR_CHARS: Final = 8192
"""Message or traceback of one error; the rest is cut off."""
