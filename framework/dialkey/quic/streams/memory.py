"""What all connections of an endpoint may hold of received data that nobody has read yet. Sans-IO.

Two things are counted, and the difference matters:

- *Windows* are promises of ours. Those of one endpoint id share a budget, however many connections it
  has. A promise cannot be taken back, so beyond the budget, or while memory is short, windows no longer
  grow; what is consumed is renewed in any case. An honest peer is thus slowed down by credit and loses
  nothing. There is one exception: when the application waits for a stream while unread data of others
  fills the window, one stream's window is added beyond the share; otherwise the application might wait
  forever. Several unread streams fill that, too, so it is done again, as long as enough is kept for
  every other connection of the id to do it once.
- *Held bytes* are what was delivered: unread, or waiting for a gap before them. What is only announced
  by an offset costs nothing. Each address has its share of the total. When the total is used up, the
  fullest connection of the fullest id gives way. This is the last resort: a thousand ids together can
  fill what no single one can.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Final

from dialkey import limits
from dialkey.identity import EndpointId
from dialkey.shares import FairShares

STEP_BYTES: Final = 16_384
"""Held bytes are counted in steps of this size, rounded down, so that a packet costs one comparison."""


class ReceiveMemory:
    """The budgets of one endpoint.

    Args:
        total: bytes that all connections together may hold.
        per_source: of those, bytes that came from one address.
        windows_per_id: the sum of the windows of one endpoint id.
        kept_per_id: beyond that, for connections on which a reader is stuck.
    """

    def __init__(
        self,
        total: int = limits.MAX_UNREAD_BYTES,
        per_source: int = limits.MAX_UNREAD_BYTES_PER_ADDRESS,
        windows_per_id: int = limits.MAX_RECEIVE_WINDOWS_PER_ID_BYTES,
        kept_per_id: int = limits.KEPT_FOR_WAITING_READERS_BYTES,
    ) -> None:
        self._most_per_id = windows_per_id + kept_per_id
        # An id can hold more than its windows only with very many connections.
        self._by_id: FairShares[EndpointId] = FairShares(total, self._most_per_id)
        # No total: who gives way is decided by id.
        self._by_source: FairShares[Hashable] = FairShares(sys.maxsize, per_source)
        self._windows: Counter[EndpointId] = Counter()
        # Connections by id that have not yet taken anything beyond the share.
        self._modest: Counter[EndpointId] = Counter()
        self._windows_per_id = windows_per_id

    @property
    def held_bytes(self) -> int:
        """How many bytes are held, as far as they are counted."""
        return self._by_id.used

    @property
    def is_short(self) -> bool:
        """Whether half of it is used; no window grows then."""
        return 2 * self._by_id.used > self._by_id.total

    def windows_of(self, id: EndpointId) -> int:
        """Return the sum of the windows of one endpoint."""
        return self._windows[id]

    def open(
        self, id: EndpointId, source: Hashable, window: int, give_way: Callable[[], object]
    ) -> MemoryClaim:
        """Start counting a connection.

        Args:
            id: the peer.
            source: what the peer's address counts as.
            window: what its window is at first.
            give_way: called when the connection has to end because others need the memory. It must
                not keep the connection alive.
        """
        return MemoryClaim(self, id, source, window, give_way)


class MemoryClaim:
    """What one connection holds. Made by `ReceiveMemory.open`; release it at the end."""

    __slots__ = (
        "_by_id",
        "_by_source",
        "_charged",
        "_has_insisted",
        "_id",
        "_is_open",
        "_memory",
        "_window",
    )

    def __init__(
        self,
        memory: ReceiveMemory,
        id: EndpointId,
        source: Hashable,
        window: int,
        give_way: Callable[[], object],
    ) -> None:
        self._memory = memory
        self._id = id
        self._window = window
        self._charged = 0
        self._has_insisted = False
        self._is_open = True
        self._by_id = memory._by_id.claim(id, give_way)
        self._by_source = memory._by_source.claim(source, lambda: None)
        memory._windows[id] += window
        memory._modest[id] += 1

    def grow(self, window: int) -> bool:
        """Ask for a larger window; False when the peer has its share, or memory is short."""
        memory = self._memory
        more = window - self._window
        if memory.is_short or memory._windows[self._id] + more > memory._windows_per_id:
            return False
        memory._windows[self._id] += more
        self._window = window
        return True

    def insist(self, more: int) -> bool:
        """Take a larger window out of what is kept for stuck readers.

        Each connection may do it once while there is any; again only if that leaves as much for all
        those of the same id that have not done it yet.
        """
        memory = self._memory
        others = memory._modest[self._id] if self._has_insisted else 0
        if memory._windows[self._id] + more * (1 + others) > memory._most_per_id:
            return False
        self._insisted()
        memory._windows[self._id] += more
        self._window += more
        return True

    def _insisted(self) -> None:
        if not self._has_insisted:
            self._has_insisted = True
            modest = self._memory._modest
            modest[self._id] -= 1
            if not modest[self._id]:
                del modest[self._id]

    def holds(self, held: int) -> bool:
        """Report how many bytes are held; False if there is no room for them."""
        more = held - self._charged
        if -2 * STEP_BYTES < more < STEP_BYTES or not self._is_open:
            return True
        more -= more % STEP_BYTES
        if more < 0:
            self._by_id.give(-more)
            self._by_source.give(-more)
        elif not self._by_source.take(more):
            return False
        elif not self._by_id.take(more):
            self._by_source.give(more)
            return False
        self._charged += more
        return True

    def __del__(self) -> None:
        # Even if a closed connection is dropped without reading what it still holds.
        self.release()

    def release(self) -> None:
        """Give everything back. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._by_id.release()
            self._by_source.release()
            self._insisted()
            windows = self._memory._windows
            windows[self._id] -= self._window
            if not windows[self._id]:
                del windows[self._id]
