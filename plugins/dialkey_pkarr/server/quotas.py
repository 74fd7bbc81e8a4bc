"""Who may do how much: per network, per key, and places for connections. Sans-IO."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from dialkey.allowance import Allowance
from dialkey_pkarr.limits import MAX_NETWORKS

__all__ = ["Places", "Quota"]


class Quota:
    """How often each of many may do something.

    Args:
        burst: how often at once.
        per_s: how often in the long run.
    """

    def __init__(self, burst: float, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._seen: dict[Hashable, Allowance] = {}

    def take(self, who: Hashable, now: float) -> bool:
        """Return whether it is within the limit, and count it if so."""
        allowance = self._seen.pop(who, None)
        if allowance is None:
            allowance = Allowance(self._burst, self._per_s, now)
        self._seen[who] = allowance
        if len(self._seen) > MAX_NETWORKS:
            del self._seen[next(iter(self._seen))]
        return allowance.take(now)


class Places:
    """A number of places for connections. When all are taken, the network with most loses its oldest.

    Args:
        total: how many there are.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._taken = 0
        self._by_network: dict[Hashable, dict[int, Callable[[], object]]] = {}
        self._next = 0

    def __len__(self) -> int:
        return self._taken

    def enter(self, network: Hashable, leave: Callable[[], object]) -> int:
        """Take a place; return its number, for `left`.

        Args:
            leave: ends the connection; called when another one needs the place more.
        """
        if self._taken >= self._total:
            fullest = max(self._by_network, key=lambda each: len(self._by_network[each]))
            number, displaced = next(iter(self._by_network[fullest].items()))
            self.left(fullest, number)
            displaced()
        self._next += 1
        self._by_network.setdefault(network, {})[self._next] = leave
        self._taken += 1
        return self._next

    def left(self, network: Hashable, number: int) -> None:
        """Give a place back; a second time does nothing."""
        places = self._by_network.get(network)
        if places is None or places.pop(number, None) is None:
            return
        self._taken -= 1
        if not places:
            del self._by_network[network]
