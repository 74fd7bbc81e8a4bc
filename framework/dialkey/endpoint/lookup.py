"""Address lookups: ways to find where an endpoint can be reached, and to tell where we can."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from typing import Protocol

from dialkey.identity import EndpointAddr, EndpointId, TransportAddr


class AddressLookup(Protocol):
    """One way to publish and find addresses: DNS, mDNS, a DHT, a file.

    Attributes:
        name: short, for messages.
    """

    name: str

    def resolve(self, id: EndpointId) -> AsyncGenerator[Collection[TransportAddr], None]:
        """Yield addresses of an endpoint as they are found; end when there is nothing more to ask.

        The iterator is closed when the dial is over. An exception ends this lookup only.
        """

    async def publish(self, addr: EndpointAddr) -> None:
        """Tell others where this endpoint is; called again whenever that changes."""

    async def close(self) -> None:
        """Stop. Idempotent."""


class StaticLookup:
    """Addresses that the application knows from somewhere else."""

    name = "static"

    def __init__(self) -> None:
        self._known: dict[EndpointId, dict[TransportAddr, None]] = {}

    def add(self, addr: EndpointAddr) -> None:
        """Remember addresses of an endpoint, beside those already known."""
        self._known.setdefault(addr.id, {}).update(dict.fromkeys(addr.addrs))

    def forget(self, id: EndpointId) -> None:
        """Forget what is known of an endpoint."""
        self._known.pop(id, None)

    async def resolve(self, id: EndpointId) -> AsyncGenerator[Collection[TransportAddr], None]:
        if id in self._known:
            yield list(self._known[id])

    async def publish(self, addr: EndpointAddr) -> None:
        """Nobody to tell."""

    async def close(self) -> None:
        """Nothing to stop."""
