"""Pings that tell a silent connection from a dead one; both sides of a relay use it. No I/O.

After some seconds without a frame a ping with eight random bytes goes out. The pong gives the
round-trip time, and three of these, between 0.5 and 5 s, are the time that the next pong may take.
Only the most recent ping counts.

Source: docs/wire/relay.md 4.5 and 5.3.
"""

from __future__ import annotations

import random
from typing import Final

__all__ = ["PING_INTERVAL_S", "KeepAlive"]

PING_INTERVAL_S: Final = 15
PING_JITTER_S: Final = 5
CLOSE_INTERVAL_S: Final = 2.5
CLOSE_TIMEOUT_S: Final = 1.5
CLOSE_FIRST_TIMEOUT_S: Final = 3.0
"""For a connection that is watched closely: silence is noticed within 4 s, or within 3 s where no ping
was answered yet, so that within 6 s another relay has let us in. A client does so only with its home
relay, and only where it knows another one to go to: it costs six times the pings."""

PING_BYTES: Final = 8
MIN_TIMEOUT_S: Final = 0.5
MAX_TIMEOUT_S: Final = 5.0
TIMEOUT_RTTS: Final = 3


class KeepAlive:
    """When to ping, and when to give up.

    Args:
        random: for payloads and for the jitter.
        now: monotonic seconds.
        jitter: add 1 to 5 whole seconds to each interval, as relays do so that their many clients
            are not pinged at once.
        is_close: notice silence within some 4 s, where a fifth of a minute would be too long.

    Attributes:
        last_frame_at: when the last frame came; the owner writes it.
        rtt_s: the round-trip time of the last ping that was answered, or None.
        timed_out: whether a ping was not answered in time.
    """

    __slots__ = (
        "_interval",
        "_is_close",
        "_jitter",
        "_payload",
        "_random",
        "_sent_at",
        "last_frame_at",
        "rtt_s",
        "timed_out",
    )

    def __init__(
        self, random: random.Random, now: float, *, jitter: bool = True, is_close: bool = False
    ) -> None:
        self._random = random
        self._jitter = jitter
        self._is_close = is_close
        self._interval = self._draw()
        self._payload: bytes | None = None
        self._sent_at = now
        self.last_frame_at = now
        self.rtt_s: float | None = None
        self.timed_out = False

    def watch_closely(self, is_close: bool) -> None:
        """Change how soon silence is noticed."""
        self._is_close = is_close
        self._interval = self._draw()

    def _draw(self) -> float:
        if self._is_close:
            return CLOSE_INTERVAL_S
        if not self._jitter:
            return PING_INTERVAL_S
        return PING_INTERVAL_S + self._random.randint(1, PING_JITTER_S)

    @property
    def timeout_s(self) -> float:
        """How long a pong may take."""
        if self.rtt_s is None:
            return CLOSE_FIRST_TIMEOUT_S if self._is_close else MAX_TIMEOUT_S
        timeout = min(max(TIMEOUT_RTTS * self.rtt_s, MIN_TIMEOUT_S), MAX_TIMEOUT_S)
        if self._is_close:
            # A path with a long round trip must not look like silence.
            return min(timeout, max(CLOSE_TIMEOUT_S, 2 * self.rtt_s))
        return timeout

    @property
    def deadline(self) -> float:
        """When to call `on_timer`."""
        if self._payload is not None:
            return self._sent_at + self.timeout_s
        return self.last_frame_at + self._interval

    def ping(self, now: float) -> bytes:
        """Send a ping now, whatever the interval says; return its payload."""
        self._payload = self._random.randbytes(PING_BYTES)
        self._sent_at = now
        return self._payload

    def on_timer(self, now: float) -> bytes | None:
        """Return the payload of a ping to send, if one is due; or set `timed_out`."""
        if now < self.deadline:
            return None
        if self._payload is not None:
            self.timed_out = True
            return None
        self._interval = self._draw()
        return self.ping(now)

    def pong(self, payload: bytes, now: float) -> bool:
        """Take a pong; tell whether it answers the last ping. Others are ignored."""
        if payload != self._payload:
            return False
        self.rtt_s = now - self._sent_at
        self._payload = None
        return True

    def resume(self, now: float) -> None:
        """Forget an outstanding ping and restart the interval: we did not listen meanwhile."""
        self._payload = None
        self.last_frame_at = now
