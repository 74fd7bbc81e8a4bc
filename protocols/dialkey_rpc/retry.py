"""When to call again, and after which pause. Sans-IO."""

from __future__ import annotations

import random

import attrs

from dialkey.errors import (
    AlpnMismatch,
    ConnectionClosedByPeer,
    ConnectionLost,
    NetworkError,
    Refused,
    ResolveError,
)
from dialkey_rpc.errors import Unavailable

__all__ = ["Reconnect"]


@attrs.frozen
class Reconnect:
    """What a client does when its connection is gone, or the service is not ready.

    A call is repeated where it certainly did not run: nothing was sent yet, or the service said so
    (`Unavailable`). A call of an idempotent method is repeated also where nobody knows. A stream is
    repeated only until its first item, and one that streams up never: its items are spent.

    Attributes:
        attempts: how often a call is tried in all; 1 means never again.
        first_pause_s: before the second attempt, seconds. It doubles from one to the next.
        max_pause_s: the longest pause.
        jitter: the part of a pause that is left to chance, 0 to 1, so that a thousand clients do
            not come back at once.
    """

    attempts: int = attrs.field(default=4, validator=attrs.validators.ge(1))
    first_pause_s: float = attrs.field(default=0.05, validator=attrs.validators.ge(0))
    max_pause_s: float = attrs.field(default=2.0, validator=attrs.validators.ge(0))
    jitter: float = attrs.field(
        default=0.5, validator=[attrs.validators.ge(0), attrs.validators.le(1)]
    )

    def pause_s(self, attempt: int, chance: random.Random) -> float:
        """Return how long to wait after the failure of an attempt, the first being 1."""
        pause = min(self.max_pause_s, self.first_pause_s * 2.0 ** min(attempt - 1, 64))
        return pause * (1 - self.jitter * chance.random())

    def may_repeat(
        self, error: BaseException, attempt: int, *, sent: bool, idempotent: bool
    ) -> bool:
        """Return whether to try again.

        Args:
            error: how the attempt ended.
            attempt: its number, the first being 1.
            sent: whether anything of the call had been sent.
            idempotent: whether the method may run twice.
        """
        if attempt >= self.attempts or isinstance(error, ResolveError):
            return False
        if isinstance(error, Unavailable):
            return True
        if isinstance(error, (ConnectionLost, ConnectionClosedByPeer)):
            return idempotent or not sent
        # An endpoint that is being restarted refuses for a moment, or does not serve us yet.
        return isinstance(error, (NetworkError, Refused, AlpnMismatch)) and not sent
