"""What a carrier of datagrams is to an endpoint.

An endpoint has several: UDP, a relay, an in-memory network in tests. Each owns the path addresses of
its kind; a path address is a frozen, hashable value that means nothing to anybody else. QUIC never
sees a socket, and a transport never sees a stream.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol, runtime_checkable

from dialkey.identity import EndpointId, TransportAddr
from dialkey.network.reach import MayReach

PathAddress = Hashable
"""Where datagrams go and come from. For UDP an `IpAddr`."""


class Receiver(Protocol):
    """What a transport tells its endpoint. All calls are made in the event loop of the endpoint."""

    def on_datagrams(self, data: memoryview, segment_bytes: int, remote: PathAddress) -> None:
        """Take datagrams in.

        Args:
            data: datagrams behind each other; only valid during the call.
            segment_bytes: the size of each; the last may be shorter.
            remote: where all of them came from.
        """

    def on_batch_end(self) -> None:
        """Note that nothing more is at hand now: time to answer everything at once."""

    def on_unreachable(self, remote: PathAddress, reason: str) -> None:
        """Note that the network said that `remote` cannot be reached."""

    def on_too_large(self, remote: PathAddress, max_datagram_bytes: int) -> None:
        """Note that datagrams above this size do not get to `remote`."""

    def on_writable(self) -> None:
        """Note that `is_blocked` has become false."""

    def on_addresses_changed(self) -> None:
        """Note that `local_addrs` has changed, because the network has: all paths are checked."""

    def on_candidates_changed(self) -> None:
        """Note that more, or less, is known of where we may be reached; the network is the same."""


class Transport(Protocol):
    """A carrier of datagrams.

    Attributes:
        name: short, for messages and metrics, such as "udp".
    """

    name: str

    async def start(self, receiver: Receiver) -> None:
        """Start carrying.

        Raises:
            BindError: it cannot.
        """

    async def close(self) -> None:
        """Stop and free everything. Idempotent."""

    def path_addresses(self, id: EndpointId, addr: TransportAddr) -> list[PathAddress]:
        """Return the path addresses of this transport that lead to an address of an endpoint.

        Empty when the address is of another kind, or of a family that this transport does not have.
        """

    def owns(self, remote: PathAddress) -> bool:
        """Return whether a path address is of this transport's kind."""

    def send(self, remote: PathAddress, data: bytes | memoryview, segment_bytes: int) -> None:
        """Send datagrams at once, or queue a bounded number; never wait, never raise.

        Args:
            data: one or more datagrams behind each other; only valid during the call.
            segment_bytes: the size of each; the last may be shorter.
        """

    @property
    def is_blocked(self) -> bool:
        """Whether sending should pause until `on_writable`."""
        ...

    def local_addrs(self) -> list[TransportAddr]:
        """Return where others may reach this endpoint by this transport, as known now."""
        ...

    def network_changed(self) -> None:
        """Look at addresses and connections again: the machine's network may have changed."""


@runtime_checkable
class ExplainingTransport(Protocol):
    """A transport that can say more about an address than that it does not answer."""

    def owns(self, remote: PathAddress) -> bool: ...

    def trouble_with(self, remote: PathAddress) -> str | None:
        """Return what keeps datagrams from `remote` now; None where nothing is known to."""


@runtime_checkable
class HearsayTransport(Protocol):
    """A transport that resolves names, some of which strangers have made up.

    Whoever owns a name chooses where it leads each time it is asked, so a check before the transport
    resolves it is worth nothing. The transport checks the addresses that it really connects to.
    """

    def paths_of_hearsay(
        self, id: EndpointId, addr: TransportAddr, may_reach: MayReach
    ) -> list[PathAddress]:
        """Return path addresses as `path_addresses` does, of an address that strangers named.

        Until `path_addresses` is called for it, which says that it can be trusted, nothing is sent to
        an IP address for which `may_reach` is false, whatever its name leads to.
        """


@runtime_checkable
class RendezvousTransport(Protocol):
    """A transport by which others reach us from anywhere once a server has let us in: a relay.

    Attributes:
        has_rendezvous: whether any such server is configured.
    """

    @property
    def has_rendezvous(self) -> bool: ...

    def offline_reasons(self) -> list[str]:
        """Say for each server what keeps us from it now."""

    async def online(self) -> object:
        """Wait until others can reach us by it.

        Raises:
            Offline: every server refuses us, and waiting does not change that.
            DialkeyError: that will never be: it is closed, or has nothing to be reached through.
        """
