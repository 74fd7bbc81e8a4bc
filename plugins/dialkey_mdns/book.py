"""Who was heard of in the local network. Sans-IO."""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs

from dialkey.endpoint import EndpointInfo
from dialkey.identity import EndpointId
from dialkey_mdns.limits import (
    GOODBYE_S,
    MAX_PEERS,
    MAX_PEERS_PER_SOURCE,
    MAX_SOURCES_PER_PEER,
    PEER_LIFETIME_S,
)

__all__ = ["Book", "Entry"]


@attrs.define
class Entry:
    """What one source says of one endpoint.

    Attributes:
        info: as it was said last.
        source: the IP address it was heard from.
        heard_at: when that was.
        ends_at: when it is forgotten, unless it is heard again.
    """

    info: EndpointInfo
    source: str
    heard_at: float
    ends_at: float


class Book:
    """Entries by endpoint and source, within limits.

    Nothing is signed, so nobody can take back or replace what another source has said.
    """

    def __init__(self) -> None:
        # In the order in which they were heard last, the oldest first.
        self._entries: dict[tuple[EndpointId, str], Entry] = {}
        self._by_id: dict[EndpointId, dict[str, Entry]] = {}
        self._by_source: dict[str, dict[EndpointId, Entry]] = {}
        self._ends_at = math.inf  # nothing ends before that

    def __len__(self) -> int:
        """How many endpoints are known."""
        return len(self._by_id)

    def of(self, id: EndpointId) -> list[Entry]:
        """Return what is said of an endpoint, by each source."""
        return list(self._by_id.get(id, {}).values())

    def hear(self, info: EndpointInfo, source: str, now: float, wanted: Iterable[object]) -> bool:
        """Note what a source says; return whether that is new.

        Args:
            wanted: ids that somebody is looking for; they never give way.
        """
        key = (info.id, source)
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._entries[key] = entry
            is_news = entry.info != info
            entry.info, entry.heard_at, entry.ends_at = info, now, now + PEER_LIFETIME_S
            return is_news
        if not self._make_room(info.id, source, wanted):
            return False
        entry = Entry(info, source, now, now + PEER_LIFETIME_S)
        self._ends_at = min(self._ends_at, entry.ends_at)
        self._entries[key] = entry
        self._by_id.setdefault(info.id, {})[source] = entry
        self._by_source.setdefault(source, {})[info.id] = entry
        return True

    def _make_room(self, id: EndpointId, source: str, wanted: Iterable[object]) -> bool:
        if len(self._by_id.get(id, ())) >= MAX_SOURCES_PER_PEER:
            return False
        if len(self._by_source.get(source, ())) >= MAX_PEERS_PER_SOURCE and id not in wanted:
            return False
        if len(self._entries) >= MAX_PEERS:
            # Of sources that have equally many, that of the oldest entry.
            fullest = max(self._by_source.values(), key=len)
            victims = (each for each in fullest.values() if each.info.id not in wanted)
            oldest = min(victims, key=lambda each: each.heard_at, default=None)
            if oldest is None:
                return False
            self._drop(oldest)
        return True

    def goes(self, id: EndpointId, source: str, now: float) -> None:
        """Note that a source says goodbye for an endpoint that it told of."""
        entry = self._entries.get((id, source))
        if entry is not None:
            entry.ends_at = min(entry.ends_at, now + GOODBYE_S)
            self._ends_at = min(self._ends_at, entry.ends_at)

    def expire(self, now: float) -> list[EndpointId]:
        """Forget what was not heard for too long; return of whom."""
        if now < self._ends_at:
            return []
        gone = [each for each in self._entries.values() if each.ends_at <= now]
        for entry in gone:
            self._drop(entry)
        self._ends_at = min((each.ends_at for each in self._entries.values()), default=math.inf)
        return [each.info.id for each in gone]

    def timer(self) -> float:
        """Return when something may end; infinity for never."""
        return self._ends_at

    def _drop(self, entry: Entry) -> None:
        id, source = entry.info.id, entry.source
        del self._entries[id, source]
        self._by_id[id].pop(source)
        if not self._by_id[id]:
            del self._by_id[id]
        self._by_source[source].pop(id)
        if not self._by_source[source]:
            del self._by_source[source]
