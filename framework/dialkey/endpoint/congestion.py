"""Which congestion control the paths of an endpoint get: by name, by a function, or from a plugin."""

from __future__ import annotations

import random
from typing import Literal

from dialkey.errors import InvalidInput
from dialkey.quic.paths.bbr import Bbr
from dialkey.quic.paths.congestion import (
    AckSummary,
    Controller,
    Cubic,
    LossSummary,
    MakeController,
)
from dialkey.quic.paths.delivery import RateSample

__all__ = [
    "AckSummary",
    "Congestion",
    "Controller",
    "LossSummary",
    "MakeController",
    "RateSample",
    "maker_of",
]

Congestion = Literal["bbr", "cubic"] | MakeController
"""BBR, the default, keeps its rate when packets are lost or late for reasons other than congestion, and
keeps queues short; CUBIC is what TCP mostly uses. Or a function that makes your own controller."""


def _bbr(max_datagram: int) -> Controller:
    return Bbr(max_datagram, random.random)


def maker_of(congestion: Congestion) -> MakeController:
    """Return what makes the controller of a new path.

    Raises:
        InvalidInput: there is no controller of that name.
    """
    if callable(congestion):
        return congestion
    makers: dict[str, MakeController] = {"bbr": _bbr, "cubic": Cubic}
    try:
        return makers[congestion]
    except (KeyError, TypeError):
        raise InvalidInput(
            f"{congestion!r} is not a congestion control",
            hint=f"name one of {', '.join(makers)}, or give a function that makes a controller",
        ) from None
