"""How many connections an endpoint has at a time, from whom, and what they may hold. Sans-IO.

Keys are free, so connections are counted per endpoint id, per source (an IPv4 address, an IPv6 /64, an
id behind a relay) and in all. When all places are taken, the youngest connection of the source that has
most makes room, so that sources with few are let in. Connections that we dialled take no place: the
application decides about those. Their received data is counted nevertheless.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dialkey import limits
from dialkey.endpoint.door import sources_of
from dialkey.identity import EndpointId
from dialkey.quic.streams.memory import ReceiveMemory
from dialkey.shares import Claim, FairShares

if TYPE_CHECKING:
    from dialkey.endpoint._connection_driver import ConnectionDriver

_CODE: Final = 0
_FULL: Final = b"busy: too many connections"


class Capacity:
    """The places of one endpoint, and the memory that its connections share."""

    def __init__(self) -> None:
        # No total: who makes room is decided by source.
        self._of_ids: FairShares[EndpointId] = FairShares(
            sys.maxsize, limits.MAX_CONNECTIONS_PER_ID
        )
        self._of_sources: FairShares[str] = FairShares(
            limits.MAX_CONNECTIONS, limits.MAX_CONNECTIONS_PER_ADDRESS
        )
        self._places: dict[ConnectionDriver, tuple[Claim, Claim]] = {}
        self.memory = ReceiveMemory(
            limits.MAX_UNREAD_BYTES,
            limits.MAX_UNREAD_BYTES_PER_ADDRESS,
            limits.MAX_RECEIVE_WINDOWS_PER_ID_BYTES,
        )

    def enter(self, connection: ConnectionDriver) -> bool:
        """Start counting a connection; False if it has to be turned away."""
        core = connection.core
        source = sources_of(core.remote)[0]
        if not core.is_client and not self._take_place(connection, source):
            return False
        give_way = _weakly(connection, lambda each: each.give_way())
        id = connection.remote_id
        core.streams.intake.share_memory(
            self.memory.open(id, source, core.streams.intake.window, give_way)
        )
        return True

    def _take_place(self, connection: ConnectionDriver, source: str) -> bool:
        give_way = _weakly(connection, lambda each: each.close(_CODE, _FULL))
        by_id = self._of_ids.claim(connection.remote_id, give_way)
        by_source = self._of_sources.claim(source, give_way)
        if by_id.take(1) and by_source.take(1):
            self._places[connection] = by_id, by_source
            return True
        by_id.release()
        by_source.release()
        connection.close(_CODE, _FULL)
        return False

    def leave(self, connection: ConnectionDriver) -> None:
        """Give back the place of a connection. Idempotent."""
        for claim in self._places.pop(connection, ()):
            claim.release()

    @property
    def connections(self) -> int:
        """How many places are taken."""
        return self._of_sources.used


def _weakly(
    connection: ConnectionDriver, action: Callable[[ConnectionDriver], None]
) -> Callable[[], None]:
    """Return a callback that acts on a connection without keeping it alive."""
    found = weakref.ref(connection)

    def act() -> None:
        alive = found()
        if alive is not None:
            action(alive)

    return act
