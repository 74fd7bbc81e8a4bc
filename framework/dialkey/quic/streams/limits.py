"""How many streams each side may open (RFC 9000 section 4.6)."""

from __future__ import annotations


class StreamLimits:
    """How many streams of one direction each side may open, and has opened.

    A stream that the peer opens takes a place, and gives it back when the stream is over *and* the
    application has accepted it: what waits to be accepted never exceeds the limit, however fast the
    peer resets it.

    Attributes:
        next_local: the id of the next stream that we open.
        peer_allows: how many the peer lets us open in all.
        accepted: how many the peer has opened.
        allowed: how many the peer may open, as it was told.
        update_pending: whether a MAX_STREAMS frame is queued.
    """

    __slots__ = (
        "_blocked_at",
        "_most",
        "_over_untaken",
        "_peer_is_blocked",
        "_returned",
        "_untaken",
        "accepted",
        "allowed",
        "next_local",
        "peer_allows",
        "update_pending",
    )

    def __init__(self, next_local: int, most: int) -> None:
        self.next_local = next_local
        self.peer_allows = 0
        self.accepted = 0
        self.allowed = most
        self.update_pending = False
        self._most = most
        self._returned = 0
        self._untaken: set[int] = set()
        self._over_untaken: set[int] = set()
        self._peer_is_blocked = False
        self._blocked_at = -1

    # --- streams of the peer's ------------------------------------------------------------------

    def opened(self, stream_id: int) -> None:
        """Note a stream that the peer opened."""
        self._untaken.add(stream_id)

    def taken(self, stream_id: int) -> None:
        """Note that the application has accepted a stream."""
        self._untaken.discard(stream_id)
        if stream_id in self._over_untaken:
            self._over_untaken.remove(stream_id)
            self._returned += 1

    def over(self, stream_id: int) -> None:
        """Note that nothing more can happen on a stream."""
        if stream_id in self._untaken:
            self._over_untaken.add(stream_id)
        else:
            self._returned += 1

    @property
    def waiting(self) -> int:
        """Streams that the application has not accepted."""
        return len(self._untaken)

    @property
    def owed(self) -> int:
        """How many more streams the peer may open than it was told."""
        return self._returned + self._most - self.allowed

    @property
    def is_urgent(self) -> bool:
        """Whether the peer waits for what it is owed, or may soon have to."""
        room = self.allowed - self.accepted
        return self.owed > 0 and (self._peer_is_blocked or 2 * room <= self._most)

    @property
    def is_worth_a_packet(self) -> bool:
        """Whether what is owed is more than a trifle, or urgent.

        A trifle waits for the next packet: a peer that misses it asks (STREAMS_BLOCKED).
        """
        return 8 * self.owed >= self._most or self.is_urgent

    def peer_is_blocked(self, limit: int) -> None:
        """Note a STREAMS_BLOCKED frame; one about an earlier limit was answered already."""
        self._peer_is_blocked = limit >= self.allowed

    def grant(self) -> int:
        """Allow all that is owed; return the new limit."""
        self.update_pending = False
        if self.owed > 0:
            self._peer_is_blocked = False
            self.allowed += self.owed
        return self.allowed

    # --- streams of ours ------------------------------------------------------------------------

    @property
    def is_blocked(self) -> bool:
        """Whether the peer lets us open no more for now."""
        return self.next_local >> 2 >= self.peer_allows

    def must_ask(self) -> bool:
        """Whether to tell the peer that we are blocked: once for each limit."""
        told, self._blocked_at = self._blocked_at == self.peer_allows, self.peer_allows
        return not told
