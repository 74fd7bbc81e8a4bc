"""Two QUIC connections behind NATs, with a relay between them, in virtual time.

Path 0 goes over the relay, which is a channel of the pair and always there. Whatever goes to an IP
address goes through both NATs.
"""

from __future__ import annotations

import heapq
from ipaddress import IPv4Address
from typing import Any

from quic_pair import Datagram, Pair, Side

from dialkey.identity import IpAddr
from dialkey.quic import events
from dialkey.quic.paths.path import Address, Path
from dialkey.testing import Conditions, Nat, NatKind

OBSERVER = IpAddr(IPv4Address("192.0.2.53"), 7842)
"""Who tells a host which address the outside sees."""


class NattedPair(Pair):
    """A pair whose sides have an inner address each, behind a NAT each.

    Attributes:
        direct: what was sent to IP addresses, as it left the sender.
        lost: what of it reached nobody.
    """

    def __init__(
        self, client_nat: NatKind, server_nat: NatKind, *, relay_s: float = 0.02, **kwargs: Any
    ) -> None:
        self.nats = {
            "client": Nat("203.0.113.1", client_nat),
            "server": Nat("203.0.113.2", server_nat),
        }
        self.inner = {
            "client": _inner(client_nat, "192.168.1.10", "198.51.100.1"),
            "server": _inner(server_nat, "10.0.0.10", "198.51.100.2"),
        }
        self.direct: list[Datagram] = []
        self.lost: list[Datagram] = []
        super().__init__(conditions=Conditions(delay_s=relay_s), **kwargs)

    def outer(self, side: Side, remote: IpAddr = OBSERVER) -> IpAddr:
        """Return the address that somebody outside sees a side send from."""
        return self.nats[side.name].out(self.inner[side.name], remote, self.now)

    def candidates(self, side: Side) -> list[IpAddr]:
        """Return what a side knows of itself."""
        return list(dict.fromkeys([self.outer(side), self.inner[side.name]]))

    def announce(self, *sides: Side) -> None:
        """Let sides, or both, tell their candidates."""
        for side in sides or self.sides:
            side.c.paths.traversal.set_candidates(self.candidates(side), self.now)
            self.wants_flush(side)

    def _carry(self, side: Side, remote: Address, data: bytes) -> None:
        if not isinstance(remote, IpAddr):
            super()._carry(side, remote, data)
            return
        datagram = Datagram(self.now, side.name, remote, data)
        self.direct.append(datagram)
        other = self.other(side)
        source = self.outer(side, remote)
        if self._inside(other, remote, source) != self.inner[other.name]:
            self.lost.append(datagram)
            return
        channel = self.to_server if side is self.client else self.to_client
        for at in channel.arrivals(len(data), self.now):
            heapq.heappush(
                self._arriving, (at, next(self._order), other.name, source, other.address, data)
            )

    def _inside(self, other: Side, remote: IpAddr, source: IpAddr) -> IpAddr | None:
        nat = self.nats[other.name]
        if nat.kind == "none":
            return remote
        return nat.inwards(source, remote.port, self.now) if remote.ip == nat.ip else None

    def punched(self) -> list[Path]:
        """Open paths where candidates answered; return those that work by now."""
        client = self.client.c
        for each in self.client.seen(events.AddressAnswered):
            if all(path.remote != each.remote for path in client.paths.values()):
                client.open_path(each.remote, self.now)
                self.wants_flush(self.client)
        return [p for p in client.paths.values() if isinstance(p.remote, IpAddr) and p.validated]


def _inner(kind: NatKind, private: str, public: str) -> IpAddr:
    return IpAddr(IPv4Address(public if kind == "none" else private), 4433)
