"""Who may start a handshake now: places, proof of addresses, and a rate for each source. Sans-IO.

A first datagram costs its sender nothing and us about two milliseconds once it is answered, and its
source address may be forged. So three things are counted for each *source* (an IPv4 address, an IPv6
/64 and the /48 around it, an endpoint id and the relay that it comes through) and in all:

- *handshakes in progress*, from the first datagram on, including those that wait for a filter;
- *failures* of the last seconds. They count like handshakes in progress, so that clients that only
  cause work also bring on Retry;
- *starts* that have not succeeded: each source has an allowance that refills with time, and with each
  handshake that succeeds. Beyond it a datagram is silently dropped; a serious client tries again after a
  second or two.

While few are in progress, everybody is let in. Beyond that, a client first proves its address by
returning a token (Retry). A client that has proved it is never turned away because all places are taken:
the oldest unfinished handshake of the source that holds most makes room.
"""

from __future__ import annotations

import enum
import ipaddress
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable
from typing import Final

from dialkey import limits
from dialkey.allowance import Allowance
from dialkey.identity import IpAddr
from dialkey.network.transport import PathAddress

Sources = tuple[str, ...]
"""What a path address counts as, the narrowest first."""

_MAX_FAILURES: Final = 4096
"""How many failures are remembered; long before this, everybody has to prove an address."""
_MAX_ALLOWANCES: Final = 8192
"""How many sources without a full allowance are remembered; the least recent one is forgotten first."""
_WIDER: Final = 2
"""How many more handshakes a wider source may start: a relay or a /48 stands for several clients."""


class Verdict(enum.Enum):
    """What to do with a client that wants to connect."""

    ADMIT = enum.auto()
    PROVE = enum.auto()
    LATER = enum.auto()


def sources_of(remote: PathAddress) -> Sources:
    """Return what an address counts as.

    A path address of a transport other than UDP may define this itself: `counts_as`, a tuple of text.
    """
    if not isinstance(remote, IpAddr):
        counts_as: Sources | None = getattr(remote, "counts_as", None)
        return counts_as if counts_as else (repr(remote),)
    ip = remote.ip
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            number = int(ip)
            return f"{number >> 64:x}/64", f"{number >> 80:x}/48"
        ip = ip.ipv4_mapped
    return (str(ip),)


class Door:
    """The places for handshakes of one endpoint, and how they were used recently.

    The caller names a handshake by any hashable value.
    """

    def __init__(self) -> None:
        # Oldest first.
        self._places: dict[Hashable, Sources] = {}
        self._failures: deque[tuple[float, Sources]] = deque()
        self._held: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._allowances: OrderedDict[str, Allowance] = OrderedDict()

    def __len__(self) -> int:
        """Return how many handshakes are in progress."""
        return len(self._places)

    def __contains__(self, who: Hashable) -> bool:
        return who in self._places

    def held_by(self, source: str) -> int:
        """Return how many places a source holds."""
        return self._held[source]

    def recent_failures(self, now: float) -> int:
        """Return how many handshakes failed within the last seconds."""
        self._forget_failures(now)
        return len(self._failures)

    def ask(self, sources: Sources, now: float, *, proved: bool) -> Verdict:
        """Return what to do with a client about which nothing is known; changes no state.

        Args:
            proved: whether it has proved that it receives at its address.
        """
        self._forget_failures(now)
        if not proved:
            source = sources[0]
            if (
                len(self._places) + len(self._failures) >= limits.RETRY_ABOVE_HALF_OPEN
                or self._held[source] + self._failed[source] >= limits.MAX_HALF_OPEN_PER_ADDRESS
            ):
                return Verdict.PROVE
        for source in sources:
            allowance = self._allowances.get(source)
            if allowance is not None and allowance.left(now) < 1:
                return Verdict.LATER
        return Verdict.ADMIT

    def enter(self, who: Hashable, sources: Sources, now: float) -> Hashable | None:
        """Give a handshake a place; return whose place it took, if all were taken."""
        for wide, source in enumerate(sources):
            allowance = self._allowances.pop(source, None)
            if allowance is None:
                factor = _WIDER if wide else 1
                allowance = Allowance(
                    factor * limits.HANDSHAKE_BURST_PER_ADDRESS,
                    factor * limits.HANDSHAKES_PER_ADDRESS_PER_S,
                    now,
                )
            allowance.take(now)
            self._allowances[source] = allowance
        while len(self._allowances) > _MAX_ALLOWANCES:
            self._allowances.popitem(last=False)
        evicted = None
        if len(self._places) >= limits.MAX_HALF_OPEN_HANDSHAKES:
            evicted = self._whose_place()
            self.leave(evicted, now, failed=True)
        self._places[who] = sources
        self._held.update(sources)
        return evicted

    def leave(self, who: Hashable, now: float, *, failed: bool) -> None:
        """Free the place of a handshake, if it has one."""
        sources = self._places.pop(who, None)
        if sources is None:
            return
        _subtract(self._held, sources)
        if failed:
            self.failed(sources, now)
            return
        for source in sources:
            allowance = self._allowances.get(source)
            if allowance is not None:
                allowance.give_back()

    def failed(self, sources: Sources, now: float) -> None:
        """Count work that was in vain."""
        self._forget_failures(now)
        if len(self._failures) < _MAX_FAILURES:
            self._failures.append((now + limits.FAILED_HANDSHAKE_COUNTS_S, sources))
            self._failed.update(sources)

    def _whose_place(self) -> Hashable:
        """Choose the oldest of a source that holds more than its share, otherwise the oldest of all."""
        for width, share in (
            (0, limits.MAX_HALF_OPEN_PER_ADDRESS),
            (1, limits.MAX_HALF_OPEN_HANDSHAKES // 2),
        ):
            held = Counter(each[width] for each in self._places.values() if len(each) > width)
            source, most = max(held.items(), key=lambda item: item[1], default=("", 0))
            if most > share:
                return next(who for who, each in self._places.items() if source in each)
        return next(iter(self._places))

    def _forget_failures(self, now: float) -> None:
        failures = self._failures
        while failures and failures[0][0] <= now:
            _subtract(self._failed, failures.popleft()[1])


def _subtract(counter: Counter[str], sources: Sources) -> None:
    for source in sources:
        counter[source] -= 1
        if not counter[source]:
            del counter[source]
