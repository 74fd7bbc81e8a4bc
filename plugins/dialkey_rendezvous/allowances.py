"""How often each caller may ask, in bounded memory. Sans-IO."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Final

from dialkey.allowance import Allowance
from dialkey_rendezvous.limits import MAX_CALLERS

__all__ = ["Allowances"]

OTHERS: Final = object()
"""Stands for everybody when there are too many to tell apart."""


class Allowances:
    """An allowance for each caller, of whom there may be any number."""

    def __init__(self, most: int = MAX_CALLERS) -> None:
        self._most = most
        self._of: dict[Hashable, tuple[Allowance, float, float]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def missing_s(self, caller: Hashable, rate: tuple[float, float], now: float) -> float:
        """Return after how many seconds the caller may ask again; 0 for now."""
        left = self._find(caller, rate, now).left(now)
        return 0.0 if left >= 1 else (1 - left) / rate[1]

    def take(self, caller: Hashable, rate: tuple[float, float], now: float) -> None:
        """Count that the caller asked."""
        self._find(caller, rate, now).take(now)

    def give_back(self, caller: Hashable, rate: tuple[float, float], now: float) -> None:
        """Take it for not having asked."""
        self._find(caller, rate, now).give_back()

    def _find(self, caller: Hashable, rate: tuple[float, float], now: float) -> Allowance:
        found = self._of.get(caller)
        if found is None:
            if len(self._of) >= self._most:
                self._forget(now)
            if len(self._of) >= self._most:
                # Never empty, because the first to come made it; and as strict as for one.
                caller = OTHERS
                found = self._of.get(caller)
            if found is None:
                found = Allowance(*rate, now), *rate
                self._of[caller] = found
        return found[0]

    def _forget(self, now: float) -> None:
        """Forget those whose allowance is full: they are as if they had never asked."""
        full = [
            caller
            for caller, (allowance, burst, _) in self._of.items()
            if math.isclose(allowance.left(now), burst)
        ]
        for caller in full:
            del self._of[caller]
