"""Follows a peer that moved: asks lookups while no path of a connection works."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dialkey.endpoint.lookup import AddressLookup, LookupAnswer
from dialkey.endpoint.searching import Search
from dialkey.identity import EndpointId

__all__ = ["Follower"]


class Follower:
    """Searches for the peer of one connection while it is stranded, and only then.

    A peer whose relay is gone, or that moved while it could not be reached, publishes its new home; the
    connection needs only that address to go on.

    Args:
        id: the peer.
        lookups: whom to ask.
        on_found: called with each answer.
    """

    def __init__(
        self,
        id: EndpointId,
        lookups: Iterable[AddressLookup],
        on_found: Callable[[LookupAnswer], None],
    ) -> None:
        self._id = id
        self._lookups = tuple(lookups)
        self._on_found = on_found
        self._search: Search | None = None

    def update(self, *, is_stranded: bool) -> None:
        """Start or stop searching, as needed now."""
        if is_stranded and self._search is None:
            self._search = Search(self._id, self._lookups, on_answer=self._on_answer)
        elif not is_stranded:
            self.close()

    def close(self) -> None:
        """Stop searching. Idempotent."""
        search, self._search = self._search, None
        if search is not None:
            search.close()

    async def _on_answer(self, answer: LookupAnswer) -> None:
        self._on_found(answer)
