"""Whom to try again: bootstrap peers that have not answered, and neighbours that were lost.

HyParView forgets a peer whose connection fails, so a node that was asleep, or a swarm that was cut in
two, would stay alone although everybody is back. A node therefore keeps a short list of peers that should
be in the topic and retries each with pauses that double up to a limit; each pause is randomised by 25 %
so that a swarm does not retry in step. A peer that answers leaves the list.

Source: docs/wire/gossip.md 3.7 (what the original leaves to the application).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

import attrs

from dialkey_gossip.config import MembershipConfig
from dialkey_gossip.ids import PeerId

__all__ = ["MAX_BOOTSTRAP", "MAX_LOST", "Contacts"]

MAX_BOOTSTRAP: Final = 64
"""Bootstrap peers remembered per topic; the application names them."""

MAX_LOST: Final = 32
"""Lost neighbours remembered per topic: six whole neighbourhoods."""

_JITTER: Final = 0.25
_MAX_DOUBLINGS: Final = 30


@attrs.define
class _Contact:
    is_bootstrap: bool
    next_at: float
    failures: int = 0
    forget_at: float | None = None
    is_settled: bool = False


class Contacts:
    """Decides when to try which peer again.

    Args:
        config: the pauses.
        rng: the source of jitter.
    """

    def __init__(self, config: MembershipConfig, rng: random.Random) -> None:
        self._config = config
        self._rng = rng
        self._contacts: dict[PeerId, _Contact] = {}

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._contacts

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._contacts)

    def __len__(self) -> int:
        return len(self._contacts)

    def add_bootstrap(self, peer: PeerId, now: float) -> None:
        """Remember a peer that the application named and that is now being asked."""
        self._make_room(MAX_BOOTSTRAP, is_bootstrap=True)
        self._contacts[peer] = _Contact(True, now + self._pause(self._config.retry_s))

    def add_lost(self, peer: PeerId, now: float) -> None:
        """Remember a neighbour whose connection failed."""
        contact = self._contacts.get(peer)
        if contact is None:
            self._make_room(MAX_LOST, is_bootstrap=False)
            contact = self._contacts[peer] = _Contact(False, 0.0)
        contact.is_settled = False
        contact.failures = 0
        contact.next_at = now + self._pause(self._config.retry_s)
        contact.forget_at = now + self._config.lost_retention_s

    def heard(self, peer: PeerId) -> None:
        """Note that a peer spoke to us: no more attempts are needed."""
        contact = self._contacts.get(peer)
        if contact is None:
            return
        if contact.is_bootstrap:
            contact.is_settled = True
            contact.failures = 0
        else:
            del self._contacts[peer]

    def isolated(self, now: float) -> None:
        """Note that the last neighbour is gone: try everybody soon."""
        for contact in self._contacts.values():
            if contact.is_settled:
                contact.failures = 0
                contact.next_at = now + self._pause(self._config.retry_s)
            else:
                limit = now + self._config.retry_isolated_max_s
                contact.next_at = min(contact.next_at, limit)

    def hurry(self, now: float) -> None:
        """Try everybody soon: the network has changed, so old failures mean nothing."""
        for contact in self._contacts.values():
            contact.failures = 0
            contact.next_at = min(contact.next_at, now + self._pause(self._config.retry_s))

    def due(self, now: float, count: int, *, is_isolated: bool) -> list[PeerId]:
        """Return up to `count` peers that are due, and set when each is due again."""
        for peer in [p for p, c in self._contacts.items() if c.forget_at and c.forget_at <= now]:
            if not self._contacts[peer].is_bootstrap:
                del self._contacts[peer]
        ready = [
            peer
            for peer, contact in self._contacts.items()
            if contact.next_at <= now and (is_isolated or not contact.is_settled)
        ]
        ready.sort(key=lambda peer: self._contacts[peer].next_at)
        config = self._config
        longest = config.retry_isolated_max_s if is_isolated else config.retry_max_s
        for peer in ready[:count]:
            contact = self._contacts[peer]
            contact.failures = min(contact.failures + 1, _MAX_DOUBLINGS)
            contact.next_at = now + self._pause(min(config.retry_s * 2**contact.failures, longest))
        return ready[:count]

    def next_at(self, *, is_isolated: bool) -> float | None:
        """Return when somebody is due next, or None."""
        waiting = (c.next_at for c in self._contacts.values() if is_isolated or not c.is_settled)
        return min(waiting, default=None)

    def _pause(self, length: float) -> float:
        return length * self._rng.uniform(1 - _JITTER, 1 + _JITTER)

    def _make_room(self, limit: int, *, is_bootstrap: bool) -> None:
        same = [p for p, c in self._contacts.items() if c.is_bootstrap == is_bootstrap]
        for peer in same[: max(0, len(same) - limit + 1)]:
            del self._contacts[peer]
