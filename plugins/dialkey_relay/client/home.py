"""Which relay to call home: the nearest, unless that changes too little to be worth moving. No I/O.

Source: docs/wire/relay.md 6.2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from dialkey.identity import RelayUrl

__all__ = ["HomeSelector", "Report"]

MAX_AGE_S: Final = 300.0
KEEP_ABOVE: Final = 2 / 3
"""How much of the present home's latency a rival may have at most."""


@attrs.frozen
class Report:
    """Latencies measured at about the same time, seconds; relays that did not answer are missing.

    Attributes:
        https: of a request for ``/ping``.
        ipv4, ipv6: of QUIC address discovery.
    """

    https: Mapping[RelayUrl, float] = attrs.field(factory=dict)
    ipv4: Mapping[RelayUrl, float] = attrs.field(factory=dict)
    ipv6: Mapping[RelayUrl, float] = attrs.field(factory=dict)

    def latencies(self) -> Iterator[tuple[RelayUrl, float]]:
        """Yield all of them in the order that decides between equals."""
        for kind in (self.https, self.ipv4, self.ipv6):
            yield from sorted(kind.items())


class HomeSelector:
    """Chooses a relay from report to report.

    Attributes:
        preferred: the choice, None before the first relay answered.
    """

    def __init__(self) -> None:
        self._reports: deque[tuple[float, Report]] = deque()
        self.preferred: RelayUrl | None = None

    @property
    def kept(self) -> int:
        """The number of reports that still count."""
        return len(self._reports)

    def add(self, report: Report, now: float, *, full: bool = False) -> RelayUrl | None:
        """Take a report; return the choice.

        Args:
            now: monotonic seconds.
            full: forget what was preferred, because the network has changed.
        """
        while self._reports and now - self._reports[0][0] > MAX_AGE_S:
            self._reports.popleft()
        self._reports.append((now, report))
        previous = None if full else self.preferred
        choice: RelayUrl | None = None
        choice_best = previous_now = 0.0
        has_previous = False
        best = self._best()
        for url, latency in report.latencies():
            if url == previous:
                has_previous, previous_now = True, latency
            if choice is None or best[url] < choice_best:
                choice, choice_best = url, best[url]
        if choice is None:
            return self.preferred
        if has_previous and choice != previous and choice_best > previous_now * KEEP_ABOVE:
            choice = previous
        self.preferred = choice
        return choice

    def latencies(self) -> dict[RelayUrl, float]:
        """Return the lowest latency of each relay in the reports that still count, seconds."""
        return self._best()

    def _best(self) -> dict[RelayUrl, float]:
        best: dict[RelayUrl, float] = {}
        for _, report in self._reports:
            for url, latency in report.latencies():
                best[url] = min(latency, best.get(url, latency))
        return best

    def stay(self, url: RelayUrl | None) -> None:
        """Note that this relay is home, whatever was chosen, because the chosen one did not accept us."""
        self.preferred = url

    def forget(self, url: RelayUrl) -> None:
        """No longer prefer this relay, because it does not work although it answers, or is gone."""
        if self.preferred == url:
            self.preferred = None
        self._reports = deque(
            (at, Report(*(_without(kind, url) for kind in (each.https, each.ipv4, each.ipv6))))
            for at, each in self._reports
        )


def _without(kind: Mapping[RelayUrl, float], url: RelayUrl) -> dict[RelayUrl, float]:
    return {each: latency for each, latency in kind.items() if each != url}
