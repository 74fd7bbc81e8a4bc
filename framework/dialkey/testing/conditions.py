"""What a network does to datagrams: a model without I/O, driven by a seed."""

from __future__ import annotations

import random
from typing import Final

import attrs

UNLIMITED_BYTES: Final = 65_535


def _probability(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{attribute.name} is a probability, from 0 to 1, not {value}")


@attrs.frozen(kw_only=True)
class Conditions:
    """How one direction of a link treats datagrams.

    Attributes:
        delay_s: the time each datagram takes.
        jitter_s: up to this much more, drawn for each; datagrams overtake each other by it.
        in_order: with jitter, datagrams wait for those before them instead of overtaking them.
        loss: probability that a datagram vanishes.
        duplicate: probability that it arrives twice.
        reorder: probability that it is held back by `reorder_delay_s`, while others pass.
        reorder_delay_s: see `reorder`; twice `delay_s` if None.
        mtu_bytes: larger datagrams vanish; nobody is told.
        rate_bytes_s: bytes that get through in a second; unlimited if None.
        queue_bytes: what may wait for the rate; what finds no room vanishes.
    """

    delay_s: float = attrs.field(default=0.01, validator=attrs.validators.ge(0))
    jitter_s: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    in_order: bool = False
    loss: float = attrs.field(default=0.0, validator=_probability)
    duplicate: float = attrs.field(default=0.0, validator=_probability)
    reorder: float = attrs.field(default=0.0, validator=_probability)
    reorder_delay_s: float | None = None
    mtu_bytes: int = UNLIMITED_BYTES
    rate_bytes_s: float | None = None
    queue_bytes: int = 256 * 1024


class Channel:
    """One direction of a link: says of each datagram when, and how often, it arrives.

    Attributes:
        conditions: may be replaced at any time.
        is_up: while false, everything vanishes.
        sent, lost: datagrams so far.
        lost_bytes, sent_bytes: likewise.
    """

    def __init__(self, conditions: Conditions, rng: random.Random) -> None:
        self.conditions = conditions
        self.is_up = True
        self.sent = 0
        self.sent_bytes = 0
        self.lost = 0
        self.lost_bytes = 0
        self._rng = rng
        self._busy_until = 0.0
        self._last_arrival = 0.0

    def arrivals(self, size: int, now: float) -> list[float]:
        """Return the times at which a datagram sent now arrives; empty if it never does.

        Args:
            size: its length, bytes of UDP payload.
            now: the time, seconds.
        """
        self.sent += 1
        self.sent_bytes += size
        conditions = self.conditions
        left_at = self._leave(size, now)
        if left_at is None or self._happens(conditions.loss):
            self.lost += 1
            self.lost_bytes += size
            return []
        copies = 2 if self._happens(conditions.duplicate) else 1
        times = [left_at + self._travel() for _ in range(copies)]
        if conditions.in_order:
            times = [max(at, self._last_arrival) for at in times]
            self._last_arrival = max(times)
        return times

    def _leave(self, size: int, now: float) -> float | None:
        conditions = self.conditions
        if not self.is_up or size > conditions.mtu_bytes:
            return None
        rate = conditions.rate_bytes_s
        if rate is None:
            return now
        begin = max(now, self._busy_until)
        if round((begin - now) * rate) + size > conditions.queue_bytes:
            return None
        self._busy_until = begin + size / rate
        return self._busy_until

    def _travel(self) -> float:
        conditions = self.conditions
        time = conditions.delay_s
        if conditions.jitter_s:
            time += self._rng.random() * conditions.jitter_s
        if self._happens(conditions.reorder):
            extra = conditions.reorder_delay_s
            time += 2 * conditions.delay_s if extra is None else extra
        return time

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._rng.random() < probability
