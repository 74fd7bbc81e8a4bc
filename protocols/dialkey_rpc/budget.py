"""What messages take while they are in memory, charged as they arrive and as they unfold. Sans-IO.

A head may announce 16 MiB in eight bytes, so nothing is set aside for an announcement: bytes count when
they have come. And 64 KiB of msgpack may unfold to seventy times as much, so the values made of an
envelope count, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from typing import Any, Final

from dialkey.shares import Claim, FairShares
from dialkey_rpc.errors import MessageTooLarge

__all__ = ["UNWEIGHED_BYTES", "Account", "weight_of"]

UNWEIGHED_BYTES: Final = 1024
"""Smaller envelopes are not weighed: what they unfold to, some 70 KiB, is no more than the bytes that
may wait unread on a stream anyway."""

_LEAVES: Final = frozenset({type(None), bool, int, float, str, bytes})


def weight_of(value: object) -> int:
    """Return about how many bytes of memory a plain value takes; a small integer counts as any other."""
    total = sys.getsizeof(value)
    pending = [value]
    while pending:
        container = pending.pop()
        if type(container) is list:
            items = container
        elif type(container) is dict:
            items = [*container, *container.values()]
        else:
            continue
        total += sum(map(sys.getsizeof, items))
        if not _LEAVES.issuperset(map(type, items)):
            pending += [each for each in items if type(each) is list or type(each) is dict]
    return total


def _nothing() -> None:
    pass


class Account:
    """The charges of one stream: for the message that arrives, and for those in somebody's hands.

    Args:
        shares: the budget in bytes, shared with other streams and perhaps with other endpoints.
        holder: who sends.
        give_way: called when the messages of this stream have to make room for somebody with less.
    """

    __slots__ = ("_claim", "_give_way", "_handed_on", "_holder", "_shares")

    def __init__(
        self, shares: FairShares[Any], holder: Hashable, give_way: Callable[[], object]
    ) -> None:
        self._shares = shares
        self._holder = holder
        self._give_way = give_way
        self._claim: Claim | None = None
        self._handed_on = 0

    def charge(self, size: int) -> None:
        """Count bytes that have come.

        Raises:
            MessageTooLarge: there is no room for them.
        """
        claim = self._claim
        if claim is None:
            claim = self._claim = self._shares.claim(self._holder, self._give_way)
        if not claim.take(size):
            raise MessageTooLarge(
                "a message does not fit beside those that are under way",
                hint="send fewer large messages at once, or stream them",
            )

    def hand_on(self, size: int) -> None:
        """Note that charged bytes are part of a message that is complete."""
        self._handed_on += size

    def release(self) -> None:
        """Give back what complete messages took: they have been dealt with."""
        if self._handed_on and self._claim is not None:
            self._claim.give(self._handed_on)
            self._handed_on = 0

    def close(self) -> None:
        """Give everything back, also for a message that will stay unfinished. Idempotent."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None
        self._handed_on = 0
        # It refers back to the owner: without the cycle a call is freed at once.
        self._give_way = _nothing
