"""Where peers may be found: what the application said, what connections proved, what members say.

Source: docs/wire/gossip.md 4.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable
from typing import Final

import attrs

from dialkey.endpoint import EndpointInfo, LookupAnswer
from dialkey.identity import EndpointAddr, EndpointId, IpAddr, RelayAddr, TransportAddr
from dialkey.limits import MAX_GOSSIP_HEARSAY_ADDRESSES, MAX_GOSSIP_PEER_ADDRESSES
from dialkey.network import plain_ip
from dialkey_gossip.relay_rules import RelayRules

__all__ = ["AddressBook", "BookLookup"]

RETENTION_S: Final = 300.0
"""How long hearsay is kept after it was last repeated; the same as in iroh."""

MAX_PEERS: Final = 1024
"""Limit for each kind; the entry that was repeated least recently goes first."""

_MAX_PROVEN: Final = 2


@attrs.define
class _Entry:
    addrs: dict[TransportAddr, None]
    expires_at: float
    source: EndpointId | None


class AddressBook:
    """Addresses by endpoint.

    *Pinned* addresses came from the application. *Proven* ones are those at which a peer has shown its
    key. Both are *trusted*. Everything else is *hearsay*, which expires: some member said it, perhaps
    the peer itself, and only a little of it is used at a time (see `heard`).
    """

    def __init__(self) -> None:
        self._pinned: OrderedDict[EndpointId, EndpointAddr] = OrderedDict()
        self._proven: OrderedDict[EndpointId, dict[TransportAddr, None]] = OrderedDict()
        self._heard: OrderedDict[EndpointId, _Entry] = OrderedDict()

    def pin(self, addr: EndpointAddr) -> None:
        """Keep what the application says; a bare id also says that it wants this peer."""
        known = self._pinned.pop(addr.id, None)
        self._pinned[addr.id] = addr if known is None else known.with_addrs(addr.addrs)
        if len(self._pinned) > MAX_PEERS:
            self._pinned.popitem(last=False)

    def prove(self, peer: EndpointId, addr: TransportAddr) -> None:
        """Keep where a peer was reached."""
        known = self._proven.pop(peer, {})
        self._proven[peer] = dict.fromkeys([addr, *known][:_MAX_PROVEN])
        if len(self._proven) > MAX_PEERS:
            self._proven.popitem(last=False)

    def hear(self, addr: EndpointAddr, now: float, source: EndpointId | None = None) -> None:
        """Keep what a member says for a while, the latest first.

        Args:
            addr: which peer is said to be where; without addresses, the peer was only named.
            now: the time.
            source: who said so.
        """
        known = self._heard.pop(addr.id, None)
        addrs = dict.fromkeys(addr.addrs)
        if known is not None and known.expires_at > now:
            if known.source == addr.id != source:
                # The peer itself knows best.
                addrs, source = known.addrs | addrs, known.source
            elif not addrs:
                addrs, source = known.addrs, known.source
            else:
                addrs |= known.addrs
        kept = dict.fromkeys(list(addrs)[: MAX_GOSSIP_PEER_ADDRESSES + 1])
        self._heard[addr.id] = _Entry(kept, now + RETENTION_S, source)
        if len(self._heard) > MAX_PEERS:
            self._heard.popitem(last=False)

    def failed(self, peer: EndpointId) -> None:
        """Forget hearsay that led nowhere, but not who said it."""
        entry = self._heard.get(peer)
        if entry is not None:
            entry.addrs = {}

    def is_pinned(self, peer: EndpointId) -> bool:
        """Return whether the application named a peer."""
        return peer in self._pinned

    def source(self, peer: EndpointId) -> EndpointId:
        """Return who told us about a peer; if nobody else did, the peer itself."""
        entry = self._heard.get(peer)
        return peer if entry is None or entry.source is None else entry.source

    def trusted(self, peer: EndpointId) -> tuple[TransportAddr, ...]:
        """Return the addresses of a peer that are not hearsay."""
        pinned = self._pinned.get(peer)
        addrs = dict.fromkeys(() if pinned is None else pinned.addrs)
        return tuple(addrs | self._proven.get(peer, {}))

    def heard(self, peer: EndpointId, now: float, rules: RelayRules) -> tuple[TransportAddr, ...]:
        """Choose which hearsay about a peer to try: a few addresses of different kinds."""
        entry = self._heard.get(peer)
        if entry is None or entry.expires_at <= now:
            return ()
        trusted = self.trusted(peer)
        return _choice(a for a in entry.addrs if a not in trusted and rules.may_name(a))

    def get(self, peer: EndpointId, now: float, rules: RelayRules) -> EndpointAddr:
        """Return everything that may be tried to reach a peer; perhaps no address at all."""
        return EndpointAddr(peer, [*self.trusted(peer), *self.heard(peer, now, rules)])


def _choice(addrs: Iterable[TransportAddr]) -> tuple[TransportAddr, ...]:
    """Choose one address of each kind in turn, and one port per IP address."""
    kinds: dict[object, list[TransportAddr]] = {"relay": []}
    ips: set[object] = set()
    for addr in addrs:
        if isinstance(addr, RelayAddr):
            kinds["relay"].append(addr)
        elif isinstance(addr, IpAddr):
            ip = plain_ip(addr.ip)
            if ip not in ips and not (ip.is_multicast or ip.is_unspecified):
                ips.add(ip)
                kinds.setdefault((ip.version, ip.is_global), []).append(addr)
    del kinds["relay"][1:]
    chosen: list[TransportAddr] = []
    while len(chosen) < MAX_GOSSIP_HEARSAY_ADDRESSES and any(kinds.values()):
        chosen += [found.pop(0) for found in kinds.values() if found]
    return tuple(chosen[:MAX_GOSSIP_HEARSAY_ADDRESSES])


class BookLookup:
    """An address lookup of the endpoint that asks an address book."""

    name = "gossip"

    def __init__(self, book: AddressBook, rules: RelayRules) -> None:
        self._book = book
        self._rules = rules

    async def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        """Yield what is known, at once; hearsay is marked as such."""
        if trusted := self._book.trusted(id):
            yield LookupAnswer(EndpointInfo(EndpointAddr(id, trusted)))
        if heard := self._book.heard(id, asyncio.get_running_loop().time(), self._rules):
            info = EndpointInfo(EndpointAddr(id, heard))
            yield LookupAnswer(info, may_reach=self._rules.may_reach)

    async def publish(self, info: EndpointInfo) -> None:
        """Members learn it with the next message to them."""

    async def close(self) -> None:
        """Nothing to close."""
