"""What peers may make us send to third parties: a few times what they sent us, and no more.

Members tell each other where members are, and nobody can check that before dialling. So a dial to
hearsay is charged to the peer that told us, which earns credit with its own bytes. A dial that reaches
the right key was not abuse, and is refunded: in an honest swarm nearly all are.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from dialkey.limits import (
    GOSSIP_DIAL_ALLOWANCE_BYTES,
    GOSSIP_DIAL_BYTES_PER_BYTE,
    MAX_GOSSIP_DIAL_CREDIT_BYTES,
    MAX_GOSSIP_HEARSAY_DATAGRAMS,
)
from dialkey_gossip.ids import PeerId

__all__ = ["ADDRESS_BYTES", "DialCredit"]

ADDRESS_BYTES: Final = 1_200 * MAX_GOSSIP_HEARSAY_DATAGRAMS
"""What dialling one address costs: first flights are padded to 1,200 bytes."""

_MAX_PEERS: Final = 4096
"""Peers whose credit is kept; one that is forgotten starts with the allowance, as a new key would."""


class DialCredit:
    """Credit by peer, in bytes."""

    def __init__(self) -> None:
        self._credit: OrderedDict[PeerId, int] = OrderedDict()

    def earn(self, peer: PeerId, received_bytes: int) -> None:
        """Count bytes that a peer sent us."""
        self._add(peer, received_bytes * GOSSIP_DIAL_BYTES_PER_BYTE)

    def take(self, peer: PeerId, addresses: int) -> int:
        """Charge for a dial to this many addresses; return how many the credit covers, perhaps 0."""
        affordable = min(
            addresses, self._credit.get(peer, GOSSIP_DIAL_ALLOWANCE_BYTES) // ADDRESS_BYTES
        )
        self._add(peer, -affordable * ADDRESS_BYTES)
        return affordable

    def give_back(self, peer: PeerId, addresses: int) -> None:
        """Refund a dial that reached the right peer."""
        self._add(peer, addresses * ADDRESS_BYTES)

    def _add(self, peer: PeerId, amount: int) -> None:
        credit = self._credit.pop(peer, GOSSIP_DIAL_ALLOWANCE_BYTES) + amount
        self._credit[peer] = min(credit, MAX_GOSSIP_DIAL_CREDIT_BYTES)
        if len(self._credit) > _MAX_PEERS:
            self._credit.popitem(last=False)
