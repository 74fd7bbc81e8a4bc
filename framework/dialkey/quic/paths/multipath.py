"""The multipath extension of QUIC as iroh speaks it: many path ids in one connection.

The client opens paths; either side abandons them. A path id is used once; when one is abandoned, both
sides raise the highest id that they allow, so that there is always another (docs/wire/quic.md 3.10).
Each side decides for itself which path carries its application data: `select`.

What a peer can make us keep is bounded: at most eight of the ids that it may use are alive at any time,
and those that are over are remembered as ranges only.

Source: docs/wire/quic.md 3, draft-ietf-quic-multipath.
"""

from __future__ import annotations

from typing import Final

MAX_CONCURRENT_PATHS: Final = 8
"""Paths that may be open at once, as in iroh; we announce one less as the highest id."""
MAX_PATH_ID: Final = 0xFFFFFFFF
MAX_DRAINING: Final = 8
"""Abandoned paths whose late packets are still read; if a peer opens and abandons many in a short time,
the oldest are forgotten sooner."""
MAX_DRAIN_S: Final = 10.0
"""Late packets are read for three probe timeouts, up to this long: timeouts grow while a link is down."""
UNANSWERED_S: Final = 60.0
"""How long late packets are read on a path that we abandoned, if the peer does not confirm it. If its
connection ids were forgotten earlier, a peer that still uses them would get a stateless reset, which ends
the connection."""
NO_PATH_GRACE_S: Final = 3.0
"""How long a connection survives when the peer gives up its last path: the client may open another."""
PATHS_AHEAD: Final = 3
"""Path ids for which connection ids are issued before the paths exist: enough for a peer that opens
several at once, and few enough that a handshake does not consist mostly of ids."""


class IdRanges:
    """A set of numbers kept as ranges: ids of closed paths, of which there may be any number."""

    __slots__ = ("_ranges",)

    def __init__(self) -> None:
        # Oldest first, each [first, one past the last].
        self._ranges: list[list[int]] = []

    def __contains__(self, number: int) -> bool:
        return any(low <= number < high for low, high in self._ranges)

    def __len__(self) -> int:
        """Return how many ranges there are."""
        return len(self._ranges)

    @property
    def largest(self) -> int:
        """The largest number, or -1."""
        return self._ranges[-1][1] - 1 if self._ranges else -1

    def add(self, number: int) -> None:
        """Add a number."""
        if number in self:
            return
        merged: list[list[int]] = []
        for low, high in sorted([*self._ranges, [number, number + 1]]):
            if merged and merged[-1][1] == low:
                merged[-1][1] = high
            else:
                merged.append([low, high])
        self._ranges = merged


class Multipath:
    """What a connection with the extension knows besides its paths.

    Attributes:
        local_max, peer_max: the highest path id that each side allows.
        next_id: the next id to open; only a client opens.
        abandoned: ids that are over, for late frames about them.
        selected_id: the path that carries data, chosen by the owner; None for the default.
        in_use_id: the path that carried data most recently.
        ends_at: when the connection ends, because no path is left; None while there is one.
    """

    __slots__ = (
        "_blocked_at",
        "abandoned",
        "ends_at",
        "in_use_id",
        "local_max",
        "next_id",
        "peer_max",
        "selected_id",
    )

    def __init__(self, local_max: int, peer_max: int) -> None:
        self.local_max = local_max
        self.peer_max = peer_max
        self.next_id = 1
        self.abandoned = IdRanges()
        self.selected_id: int | None = None
        self.in_use_id = 0
        self.ends_at: float | None = None
        self._blocked_at = -1

    def blocked(self, at: int) -> bool:
        """Note what prevents us from opening a path; False if the peer was told already."""
        told, self._blocked_at = self._blocked_at == at, at
        return not told

    @property
    def usable_max(self) -> int:
        return min(self.local_max, self.peer_max)

    def take_next_id(self) -> None:
        """Note that the next id is used."""
        self.next_id += 1

    def over(self, path_id: int) -> None:
        """Note that an id is over."""
        self.abandoned.add(path_id)
        self.next_id = max(self.next_id, path_id + 1)
        if self.selected_id == path_id:
            self.selected_id = None

    def raise_local_max(self) -> bool:
        """Allow the peer one more id; False if there is none left."""
        if self.local_max >= MAX_PATH_ID:
            return False
        self.local_max += 1
        return True

    def raise_peer_max(self, value: int) -> bool:
        """Note what the peer allows; return whether that is more than before."""
        if value <= self.peer_max:
            return False
        self.peer_max = value
        return True

    def select(self, path_id: int) -> None:
        """Note the owner's choice."""
        self.selected_id = path_id

    def use(self, path_id: int) -> bool:
        """Note which path carries data; return whether that changed."""
        before, self.in_use_id = self.in_use_id, path_id
        return before != path_id

    def end_at(self, at: float) -> None:
        """Note that no path is left: the connection ends at `deadline`, if none is opened before."""
        if self.ends_at is None:
            self.ends_at = at

    def is_stranded(self, now: float) -> bool:
        """Whether the time to open another path has run out; true only once."""
        if self.ends_at is None or now < self.ends_at:
            return False
        self.ends_at = None
        return True
