"""Where peers may be found, as bootstrap tickets and other members say.

Source: gossip wire reference 4.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from typing import Final

import attrs

from dialkey.identity import EndpointAddr, EndpointId, TransportAddr
from dialkey.limits import MAX_GOSSIP_PEER_ADDRESSES

__all__ = ["AddressBook", "BookLookup"]

RETENTION_S: Final = 300.0
"""How long hearsay is kept after it was last repeated; iroh's own number."""

MAX_PEERS: Final = 1024
"""Of each kind; the one that was repeated least recently goes first."""


@attrs.define
class _Entry:
    addrs: dict[TransportAddr, None]
    expires_at: float


class AddressBook:
    """Addresses by endpoint: pinned ones that the application gave, and hearsay that fades."""

    def __init__(self) -> None:
        self._pinned: dict[EndpointId, EndpointAddr] = {}
        self._heard: dict[EndpointId, _Entry] = {}

    def pin(self, addr: EndpointAddr) -> None:
        """Keep what the application says."""
        known = self._pinned.pop(addr.id, None)
        self._pinned[addr.id] = addr if known is None else known.with_addrs(addr.addrs)
        if len(self._pinned) > MAX_PEERS:
            del self._pinned[next(iter(self._pinned))]

    def hear(self, addr: EndpointAddr, now: float) -> None:
        """Keep what a member says, the latest first, for a while."""
        known = self._heard.pop(addr.id, None)
        addrs = dict.fromkeys(addr.addrs)
        if known is not None and known.expires_at > now:
            addrs.update(known.addrs)
        kept = dict.fromkeys(list(addrs)[: MAX_GOSSIP_PEER_ADDRESSES + 1])
        self._heard[addr.id] = _Entry(kept, now + RETENTION_S)
        while self._heard:
            oldest = next(iter(self._heard))
            if len(self._heard) <= MAX_PEERS and self._heard[oldest].expires_at > now:
                break
            del self._heard[oldest]

    def get(self, peer: EndpointId, now: float) -> EndpointAddr:
        """Give all that is known of a peer; perhaps no address at all."""
        addr = self._pinned.get(peer, EndpointAddr(peer))
        heard = self._heard.get(peer)
        return addr if heard is None or heard.expires_at <= now else addr.with_addrs(heard.addrs)


class BookLookup:
    """An address lookup of the endpoint that asks an address book."""

    name = "gossip"

    def __init__(self, book: AddressBook) -> None:
        self._book = book

    async def resolve(self, id: EndpointId) -> AsyncGenerator[Collection[TransportAddr], None]:
        """Yield what is known, at once."""
        if addrs := self._book.get(id, asyncio.get_running_loop().time()).addrs:
            yield addrs

    async def publish(self, addr: EndpointAddr) -> None:
        """Members are told with the next message to them."""

    async def close(self) -> None:
        """Nothing is open."""
