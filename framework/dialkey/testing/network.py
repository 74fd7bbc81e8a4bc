"""A network in memory: transports between endpoints of one event loop, with faults on demand."""

from __future__ import annotations

import asyncio
import heapq
import ipaddress
import itertools
import random
from collections.abc import Iterator
from typing import Final

from dialkey.endpoint import MemoryDirectory, MemoryLookup
from dialkey.errors import BindError, InvalidInput
from dialkey.identity import CustomAddr, EndpointId, IpAddr, TransportAddr
from dialkey.network import PathAddress, Receiver
from dialkey.testing.conditions import Channel, Conditions
from dialkey.testing.nat import Nat

MEMORY_ADDRESS_ID: Final = 0x6D656D
"""The kind of our custom addresses ("mem"); nothing on a real network uses it."""

Name = str | TransportAddr
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def address_of(name: Name) -> TransportAddr:
    """Return the address that a name in a `MemoryNetwork` stands for."""
    return CustomAddr(MEMORY_ADDRESS_ID, name.encode()) if isinstance(name, str) else name


class MemoryNetwork:
    """Carries datagrams between its transports, within one event loop.

    Deterministic: the same seed and the same calls give the same faults. A sender to an address without
    a transport hears nothing, unless `refuse` said otherwise.

    Args:
        seed: of all faults.
        conditions: of links that were not given their own.

    Attributes:
        directory: what endpoints that were given a `lookup` have published.
    """

    def __init__(self, *, seed: int = 0, conditions: Conditions | None = None) -> None:
        self._rng = random.Random(seed)
        self.conditions = conditions if conditions is not None else Conditions()
        # By the NAT that they are behind, and their address there.
        self._attached: dict[tuple[Nat | None, PathAddress], MemoryTransport] = {}
        self._nats: dict[IpAddress, Nat] = {}
        self._channels: dict[tuple[PathAddress, PathAddress], Channel] = {}
        self._refused: dict[PathAddress, str] = {}
        self.directory = MemoryDirectory()

    def lookup(self) -> MemoryLookup:
        """Make a lookup for one endpoint, by which those of this network find each other by their ids."""
        return self.directory.lookup()

    def transport(
        self, name: Name, *, nat: Nat | None = None, observer: IpAddr | None = None
    ) -> MemoryTransport:
        """Make a transport for one endpoint: pass it to `Endpoint.bind(transports=[…])`.

        An endpoint can have one of each kind of address, to be reached in two ways: one by name, one
        by an `IpAddr`. Of two of one kind only the first would send.

        Args:
            name: where it is reached: a name of your choice, or an address, such as an `IpAddr`.
            nat: what stands between it and the rest of the network. Then `name` is an `IpAddr`, which
                only those behind the same NAT reach.
            observer: somebody who tells it which address the outside sees; it advertises that, too.

        Raises:
            InvalidInput: a name is behind a NAT, or two NATs have one outer address.
        """
        address = address_of(name)
        if nat is not None:
            if not isinstance(address, IpAddr):
                raise InvalidInput("what is behind a NAT has an IP address")
            if nat.kind != "none" and self._nats.setdefault(nat.ip, nat) is not nat:
                raise InvalidInput(f"another NAT has the outer address {nat.ip}")
        return MemoryTransport(self, address, nat, observer)

    def link(self, one: Name, other: Name) -> Link:
        """Return the link between two names, to change what it does in both directions."""
        a, b = address_of(one), address_of(other)
        return Link(self.channel(a, b), self.channel(b, a))

    def one_way(self, sender: Name, receiver: Name) -> Link:
        """Return one direction of the link between two names."""
        return Link(self.channel(address_of(sender), address_of(receiver)))

    def refuse(self, name: Name, reason: str = "connection refused") -> None:
        """Let senders to a name hear that it cannot be reached, as ICMP tells them."""
        self._refused[address_of(name)] = reason

    def channel(self, sender: PathAddress, receiver: PathAddress) -> Channel:
        """Return the state of one direction between two addresses."""
        key = (sender, receiver)
        found = self._channels.get(key)
        if found is None:
            found = self._channels[key] = Channel(self.conditions, self._rng)
        return found

    # --- for the transports ---------------------------------------------------------------------

    def attach(self, transport: MemoryTransport, address: PathAddress) -> None:
        """Let datagrams to `address` reach `transport`.

        Raises:
            BindError: another transport has the address.
        """
        place = (transport.nat, address)
        if self._attached.get(place, transport) is not transport:
            raise BindError(f"{address} is taken in this network")
        self._attached[place] = transport

    def detach(self, transport: MemoryTransport, address: PathAddress) -> None:
        """Let datagrams to `address` reach nobody."""
        self._attached.pop((transport.nat, address), None)

    def carry(self, source: MemoryTransport, remote: PathAddress, data: bytes) -> None:
        """Take one datagram on its way."""
        now = source.loop.time()
        sender, target = self._route(source, remote, now)
        reason = self._refused.get(remote)
        if reason is not None:
            delay_s = self.channel(sender, remote).conditions.delay_s
            source.expect_refusal(now + 2 * delay_s, remote, reason)
            return
        for at in self.channel(sender, remote).arrivals(len(data), now):
            if target is not None:
                target.expect(at, sender, target.address, data)

    def _route(
        self, source: MemoryTransport, remote: PathAddress, now: float
    ) -> tuple[PathAddress, MemoryTransport | None]:
        """Return the address that a datagram seems to come from, and who gets it, if anybody."""
        neighbour = self._attached.get((source.nat, remote))
        if neighbour is not None:
            return source.address, neighbour
        sender: PathAddress = source.address
        if not isinstance(remote, IpAddr):
            return sender, self._attached.get((None, remote))
        if source.nat is not None:
            assert isinstance(sender, IpAddr)
            sender = source.nat.out(sender, remote, now)
        nat = self._nats.get(remote.ip)
        if nat is None:
            return sender, self._attached.get((None, remote))
        if nat is source.nat and not nat.hairpin:
            return sender, None
        assert isinstance(sender, IpAddr)
        inner = nat.inwards(sender, remote.port, now)
        return sender, None if inner is None else self._attached.get((nat, inner))


class Link:
    """Both directions between two addresses, or one of them."""

    def __init__(self, *channels: Channel) -> None:
        self._channels = channels

    def down(self) -> None:
        """Let everything vanish from now on; what is on its way arrives."""
        for channel in self._channels:
            channel.is_up = False

    def up(self) -> None:
        """Carry again."""
        for channel in self._channels:
            channel.is_up = True

    def set(self, conditions: Conditions) -> None:
        """Behave like this from now on."""
        for channel in self._channels:
            channel.conditions = conditions

    @property
    def sent(self) -> int:
        """Datagrams that were sent over it."""
        return sum(channel.sent for channel in self._channels)

    @property
    def sent_bytes(self) -> int:
        """Bytes of datagrams that were sent over it."""
        return sum(channel.sent_bytes for channel in self._channels)

    @property
    def lost(self) -> int:
        """Datagrams that vanished, for whatever reason."""
        return sum(channel.lost for channel in self._channels)


class MemoryTransport:
    """A `dialkey.network.Transport` into a `MemoryNetwork`. Path addresses are its addresses."""

    name = "memory"

    def __init__(
        self,
        network: MemoryNetwork,
        address: TransportAddr,
        nat: Nat | None = None,
        observer: IpAddr | None = None,
    ) -> None:
        self._network = network
        self._address = address
        self._observer = observer
        self.nat = nat if nat is not None and nat.kind != "none" else None
        self._receiver: Receiver | None = None
        self._arriving: list[tuple[float, int, PathAddress, PathAddress, bytes]] = []
        self._order = itertools.count()
        self._wake: asyncio.TimerHandle | None = None
        self._refusals: list[asyncio.TimerHandle] = []
        self._blocked = False
        self.loop: asyncio.AbstractEventLoop

    def __repr__(self) -> str:
        return f"<MemoryTransport {self._address}>"

    @property
    def address(self) -> TransportAddr:
        """Where it is reached, and where its datagrams come from."""
        return self._address

    # --- the transport --------------------------------------------------------------------------

    async def start(self, receiver: Receiver) -> None:
        self.loop = asyncio.get_running_loop()
        self._network.attach(self, self._address)
        self._receiver = receiver

    async def close(self) -> None:
        self._receiver = None
        self._network.detach(self, self._address)
        self._arriving.clear()
        for refusal in self._refusals:
            refusal.cancel()
        self._refusals.clear()
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None

    def path_addresses(self, id: EndpointId, addr: TransportAddr) -> list[PathAddress]:
        return [addr] if self.owns(addr) else []

    def owns(self, remote: PathAddress) -> bool:
        if isinstance(remote, CustomAddr) and isinstance(self._address, CustomAddr):
            return remote.id == self._address.id
        return isinstance(remote, IpAddr) and isinstance(self._address, IpAddr)

    def send(self, remote: PathAddress, data: bytes | memoryview, segment_bytes: int) -> None:
        if self._receiver is None:
            return
        for at in range(0, len(data), segment_bytes):
            self._network.carry(self, remote, bytes(data[at : at + segment_bytes]))

    @property
    def is_blocked(self) -> bool:
        return self._blocked

    def local_addrs(self) -> list[TransportAddr]:
        if self.nat is None or self._observer is None or self._receiver is None:
            return [self._address]
        assert isinstance(self._address, IpAddr)
        return [self.nat.out(self._address, self._observer, self.loop.time()), self._address]

    def network_changed(self) -> None:
        """Nothing to look at."""

    # --- for tests ------------------------------------------------------------------------------

    def move_to(self, name: Name, *, announce: bool = False) -> None:
        """Be somewhere else from now on, as behind a NAT that forgot us, or in another network.

        Args:
            name: the new address. What is on its way to the old one is lost.
            announce: tell the endpoint, as an operating system does; a NAT tells nobody.
        """
        self._network.detach(self, self._address)
        self._address = address_of(name)
        self._network.attach(self, self._address)
        if announce and self._receiver is not None:
            self._receiver.on_addresses_changed()

    def learn_from(self, observer: IpAddr) -> None:
        """Learn again from somebody outside which address the outside sees, and tell the endpoint."""
        self._observer = observer
        if self._receiver is not None:
            self._receiver.on_candidates_changed()

    def block(self) -> None:
        """Stop taking datagrams, as a socket whose buffer is full."""
        self._blocked = True

    def unblock(self) -> None:
        """Take datagrams again, and tell the endpoint."""
        self._blocked = False
        if self._receiver is not None:
            self._receiver.on_writable()

    def inject(self, source: Name, data: bytes) -> None:
        """Receive a datagram now, as if it came from `source`."""
        if self._receiver is not None:
            self._receiver.on_datagrams(memoryview(data), len(data), address_of(source))
            self._receiver.on_batch_end()

    # --- for the network ------------------------------------------------------------------------

    def expect(self, at: float, sender: PathAddress, receiver: PathAddress, data: bytes) -> None:
        """Receive a datagram at `at`, if we are still at that address."""
        heapq.heappush(self._arriving, (at, next(self._order), sender, receiver, data))
        if self._wake is None or at < self._wake.when():
            if self._wake is not None:
                self._wake.cancel()
            self._wake = self.loop.call_at(at, self._deliver)

    def expect_refusal(self, at: float, remote: PathAddress, reason: str) -> None:
        """Hear at `at` that an address cannot be reached."""
        self._refusals = [each for each in self._refusals if each.when() > self.loop.time()]
        self._refusals.append(self.loop.call_at(at, self._on_refused, remote, reason))

    def _on_refused(self, remote: PathAddress, reason: str) -> None:
        if self._receiver is not None:
            self._receiver.on_unreachable(remote, reason)

    def _deliver(self) -> None:
        receiver = self._receiver
        self._wake = None
        if receiver is None:
            return
        for sender, segment, data in self._batches(self.loop.time()):
            receiver.on_datagrams(memoryview(data), segment, sender)
        receiver.on_batch_end()
        if self._arriving and self._receiver is not None:
            self._wake = self.loop.call_at(self._arriving[0][0], self._deliver)

    def _batches(self, now: float) -> Iterator[tuple[PathAddress, int, bytes]]:
        """Yield what is due, runs of equal size from one sender joined as a kernel does."""
        run: list[bytes] = []
        last: PathAddress = None
        while self._arriving and self._arriving[0][0] <= now:
            _, _, sender, receiver, data = heapq.heappop(self._arriving)
            if receiver != self._address or not data:
                continue
            joins = sender == last and len(data) <= len(run[0]) == len(run[-1]) if run else False
            if run and not (joins and sum(map(len, run)) + len(data) <= 65_535):
                yield last, len(run[0]), b"".join(run)
                run = []
            run.append(data)
            last = sender
        if run:
            yield last, len(run[0]), b"".join(run)
