"""Two endpoints in memory with two ways between them; one of them may pass for a relay."""

from __future__ import annotations

from typing import Any

import attrs

from dialkey import Endpoint
from dialkey.identity import EndpointId, IpAddr, RelayAddr, RelayUrl, TransportAddr
from dialkey.network.transport import PathAddress
from dialkey.testing import Conditions, Link, MemoryNetwork
from dialkey.testing.network import MemoryTransport, address_of

HERE, THERE = IpAddr.parse("10.0.0.1:1"), IpAddr.parse("10.0.0.2:1")


@attrs.frozen
class ViaRelay:
    """What a relay transport sends to."""

    path_kind = "relay"
    name: str


class RelayLike(MemoryTransport):
    """A transport whose paths are relayed, as far as the choice of paths goes."""

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        super().__init__(network, ViaRelay(name))  # type: ignore[arg-type]
        self._name = name

    def path_addresses(self, id: EndpointId, addr: TransportAddr) -> list[PathAddress]:
        return [ViaRelay(str(addr.url).split("/")[-1])] if isinstance(addr, RelayAddr) else []

    def owns(self, remote: PathAddress) -> bool:
        return isinstance(remote, ViaRelay)

    def local_addrs(self) -> list[TransportAddr]:
        return [RelayAddr(RelayUrl(f"https://relay.example/{self._name}"))]


class World:
    """Two endpoints with a direct way and a second one, relayed or direct too."""

    def __init__(self, seed: int, *, relayed: bool, delay_s: float = 0.01) -> None:
        self.net = MemoryNetwork(seed=seed)
        self.first = self.net.link(HERE, THERE)
        self.first.set(Conditions(delay_s=delay_s))
        names = [ViaRelay("alice"), ViaRelay("bob")] if relayed else ["alice", "bob"]
        self.second = Link(
            *(self.net.channel(*map(_address, pair)) for pair in (names, names[::-1]))
        )
        self.second.set(Conditions(delay_s=delay_s * 1.5 + 0.005))
        self.relayed = relayed

    def bind(self, ip: IpAddr, name: str, **options: Any) -> Any:
        other = RelayLike(self.net, name) if self.relayed else self.net.transport(name)
        transports = [self.net.transport(ip), other]
        return Endpoint.bind(transports=transports, entry_points=False, **options)


def _address(name: object) -> TransportAddr:
    return address_of(name) if isinstance(name, str) else name  # type: ignore[return-value]
