"""Dialling peers: freely at addresses known from the application or a connection, with care at addresses
known only from other members.

A dial to hearsay tries at most three addresses, twice each, and is charged to the peer that told us
(`dialkey_gossip.dial_credit`). Nobody's hearsay takes more than its share of the dials in progress.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final

from dialkey import DialLimits
from dialkey.errors import DialkeyError, LimitExceeded
from dialkey.identity import EndpointAddr, EndpointId, IpAddr, TransportAddr
from dialkey.limits import (
    MAX_GOSSIP_DIALS,
    MAX_GOSSIP_DIALS_PER_SOURCE,
    MAX_GOSSIP_HEARSAY_DATAGRAMS,
    MAX_GOSSIP_PENDING_PEERS,
)
from dialkey.places import Places
from dialkey_gossip.address_book import AddressBook
from dialkey_gossip.dial_credit import DialCredit
from dialkey_gossip.ids import PeerId
from dialkey_gossip.relay_rules import RelayRules

if TYPE_CHECKING:
    from dialkey import Connection, Endpoint

__all__ = ["Dialler"]

DIAL_TIMEOUT_S: Final = 15.0
HEARSAY_TIMEOUT_S: Final = 5.0
"""For a dial to nothing but hearsay: after two datagrams to each address nothing more is sent."""

PLACE_PATIENCE_S: Final = 60.0
"""How long a dial waits for its turn: four dials to nobody, one after another."""

CREDIT_PATIENCE_S: Final = 5.0
"""How long a dial waits for the peer that caused it to earn what it costs."""


class Dialler:
    """Dials peers by their id.

    Args:
        endpoint: dials.
        alpn: the protocol.
        book: knows where peers are.
        rules: say which relays may be dialled.
    """

    def __init__(
        self, endpoint: Endpoint, alpn: bytes, book: AddressBook, rules: RelayRules
    ) -> None:
        self.dials = 0
        self._endpoint = endpoint
        self._alpn = alpn
        self._book = book
        self._rules = rules
        self._credit = DialCredit()
        # A dial that is under way is never ended for another one.
        self._places = _places(MAX_GOSSIP_DIALS // 4)
        # Those whom the application named do not wait behind a crowd that strangers named.
        self._own_places = _places(MAX_GOSSIP_DIALS)
        self._pending: Counter[PeerId] = Counter()
        self._earned: dict[PeerId, asyncio.Event] = {}

    def earn(self, peer: PeerId, received_bytes: int) -> None:
        """Credit a peer with what it sent us: it may make us send a few times as much."""
        self._credit.earn(peer, received_bytes)
        if (event := self._earned.get(peer)) is not None:
            event.set()

    async def dial(self, peer: PeerId) -> Connection:
        """Dial a peer.

        Raises:
            LimitExceeded: too many dials wait, or whoever named this peer has no credit left.
            DialkeyError: as `Endpoint.connect`.
        """
        id = EndpointId(peer)
        source = PeerId(bytes(self._book.source(id)))
        account = peer if self._book.is_pinned(id) else source
        waiting = self._pending.total()
        # What the application asks for does not depend on what strangers ask for.
        if waiting >= MAX_GOSSIP_PENDING_PEERS and not self._book.is_pinned(id):
            raise LimitExceeded("too many peers wait to be dialled")
        is_crowded = waiting >= MAX_GOSSIP_PENDING_PEERS // 2
        most = MAX_GOSSIP_DIALS_PER_SOURCE // (8 if is_crowded else 1)
        if self._pending[account] >= most:
            raise LimitExceeded("too many peers that one peer told us of wait to be dialled")
        self._pending[account] += 1
        try:
            return await self._dial(id, source, account)
        finally:
            self._pending[account] -= 1
            if not self._pending[account]:
                del self._pending[account]

    async def _dial(self, id: EndpointId, source: PeerId, account: PeerId) -> Connection:
        trusted = self._book.trusted(id)
        heard = self._book.heard(id, asyncio.get_running_loop().time(), self._rules)
        is_pinned = self._book.is_pinned(id)
        # A peer that is only named is looked up, and whoever named it may control the answer as well.
        wanted = len(heard) if heard or trusted or is_pinned else 1
        paid = await self._pay(source, wanted, is_patient=not trusted) if wanted else 0
        if not paid and not trusted and not is_pinned:
            raise LimitExceeded("the peer that told us of this one cannot pay for the dial")

        async def accepts(addr: TransportAddr) -> bool:
            return paid > 0 and self._rules.may_name(addr)

        limits = DialLimits(
            max_addresses=max(paid, 1),
            max_datagrams=MAX_GOSSIP_HEARSAY_DATAGRAMS,
            applies_to=(lambda a: a in heard) if is_pinned else (lambda a: a not in trusted),
            accepts=accepts,
            may_reach=self._rules.may_reach,
        )
        is_hearsay = not trusted and not is_pinned
        places = self._own_places if is_pinned else self._places
        async with places.hold(account):
            self.dials += 1
            try:
                connection = await self._endpoint.connect(
                    EndpointAddr(id, [*trusted, *heard]),
                    self._alpn,
                    timeout=HEARSAY_TIMEOUT_S if is_hearsay else DIAL_TIMEOUT_S,
                    limits=limits,
                )
            except DialkeyError:
                self._book.failed(id)
                raise
        reached = [path.remote for path in connection.paths() if path.state == "usable"]
        if paid and not any(addr in trusted for addr in reached):
            self._credit.give_back(source, 1)
        self.reached(connection)
        return connection

    def reached(self, connection: Connection) -> None:
        """Note where a peer is connected from, after it has proved its key there."""
        for path in connection.paths():
            if isinstance(path.remote, IpAddr) and path.state == "usable":
                self._book.prove(connection.remote_id, path.remote)

    async def _pay(self, source: PeerId, addresses: int, *, is_patient: bool) -> int:
        paid = self._credit.take(source, addresses)
        if paid or not is_patient:
            return paid
        event = self._earned.setdefault(source, asyncio.Event())
        try:
            async with asyncio.timeout(CREDIT_PATIENCE_S):
                while not paid:
                    event.clear()
                    await event.wait()
                    paid = self._credit.take(source, addresses)
        except TimeoutError:
            pass
        finally:
            if self._pending[source] <= 1:
                self._earned.pop(source, None)
        return paid


def _places(most: int) -> Places:
    return Places(
        MAX_GOSSIP_DIALS,
        most,
        wait_s=PLACE_PATIENCE_S,
        parting_s=2 * DIAL_TIMEOUT_S,
        least_rate=0.0,
    )
