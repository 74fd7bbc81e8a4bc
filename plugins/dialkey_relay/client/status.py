"""The state of a relay's client, and what it presents to be admitted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum

import attrs

from dialkey.errors import DialkeyError
from dialkey_relay.frames import RelayVersion

__all__ = ["ClientState", "ClientStatus", "Token"]

Token = str | Callable[[], Awaitable[str]] | None
"""A token, something that fetches one (asked again for each connection), or none."""


class ClientState(Enum):
    """The state of a client."""

    STOPPED = "stopped"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting to try again"


@attrs.frozen
class ClientStatus:
    """A snapshot of a client.

    Attributes:
        state: what it is doing.
        rtt_s: the last round-trip time to the relay, or None.
        version: of the relay protocol, while connected.
        error: why the last attempt or connection ended, or None.
        attempts: since it was last connected.
        connects: how often it got connected.
        watchdog_kills: how often the watchdog had to step in.
        dropped: batches that could not be sent or were not fetched in time.
        notice: what the relay says is wrong with this connection, in English; None when all is well.
    """

    state: ClientState
    rtt_s: float | None = None
    version: RelayVersion | None = None
    error: DialkeyError | None = None
    attempts: int = 0
    connects: int = 0
    watchdog_kills: int = 0
    dropped: int = 0
    notice: str | None = None
