"""Receive windows: how far a peer may send ahead of the application. Sans-IO.

A window has to hold what travels during a round trip, or the sender waits for credit. How fast the
application reads shows how much that is: when it takes a quarter of the window in less than a round trip,
the window doubles. So the window stays above twice what is in flight, and one that nobody reads from
does not grow.

Credit is given when an eighth is used up, so that nearly all of the window is there for a round trip at
the full rate, and another one in which a lost packet is sent again.

Source: RFC 9000 section 4.
"""

from __future__ import annotations


class ReceiveWindow:
    """The limit on the data of one stream, or of one connection.

    Attributes:
        limit: how many bytes we allow in all.
        consumed: how many bytes the application has taken or dropped in all.
        window: how far `limit` may run ahead of `consumed`.
        most_window: what the window may grow to.
    """

    __slots__ = ("_mark_at", "_mark_consumed", "consumed", "limit", "most_window", "window")

    def __init__(self, window: int, most_window: int) -> None:
        self.window = window
        self.most_window = max(window, most_window)
        self.limit = window
        self.consumed = 0
        self._mark_at: float | None = None
        self._mark_consumed = 0

    @property
    def is_low(self) -> bool:
        """Whether an eighth is used up: time to renew the limit."""
        return 8 * (self.limit - self.consumed) <= 7 * self.window

    @property
    def owed(self) -> int:
        """By how much the limit could be raised."""
        return self.consumed + self.window - self.limit

    def renew(self) -> int:
        """Allow all that is owed; return the limit."""
        self.limit = max(self.limit, self.consumed + self.window)
        return self.limit

    def widen(self, window: int) -> None:
        """Let the limit run further ahead."""
        self.window = max(self.window, window)

    def wanted(self, now: float, rtt_s: float) -> int:
        """Return how large the window should be, by how fast the application has been reading.

        Ask when the limit is about to be renewed.
        """
        read = self.consumed - self._mark_consumed
        if self._mark_at is not None and 4 * read < self.window:
            return self.window
        is_fast = self._mark_at is not None and now - self._mark_at < rtt_s
        self._mark_at = now
        self._mark_consumed = self.consumed
        return min(2 * self.window, self.most_window) if is_fast else self.window
