"""What an application learns from a topic."""

from __future__ import annotations

from typing import TypeAlias

import attrs

from dialkey.event_queue import Lagged
from dialkey.identity import EndpointId

__all__ = ["Event", "Joined", "Lagged", "NeighborDown", "NeighborUp", "Received"]


@attrs.frozen
class Received:
    """A message arrived.

    Attributes:
        content: what was published.
        delivered_from: the neighbour that passed it on. Unless `hops` is 0 it is not the author, and it
            may have made the message up; see `author`.
        hops: how many times it was passed on before `delivered_from` sent it; a hint that others can
            falsify.
        is_direct: it was sent to neighbours only.
        author: who signed it; None in a topic without signatures.
        sequence: the author's number of the message, from 1 on in each of its sessions; None in a
            topic without signatures. A gap means messages that are late or lost.
    """

    content: bytes
    delivered_from: EndpointId
    hops: int
    is_direct: bool = False
    author: EndpointId | None = None
    sequence: int | None = None


@attrs.frozen
class NeighborUp:
    """A member is now connected to us in this topic."""

    peer: EndpointId


@attrs.frozen
class NeighborDown:
    """A member is no longer connected to us in this topic; it may well still be in it."""

    peer: EndpointId


@attrs.frozen
class Joined:
    """We have a neighbour after having none: broadcasts reach somebody from now on."""


Event: TypeAlias = Received | NeighborUp | NeighborDown | Joined | Lagged
