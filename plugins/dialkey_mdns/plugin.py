"""The entry point: a lookup for presets with `LocalDiscovery`. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey import hookimpl
from dialkey.presets import LocalDiscovery

if TYPE_CHECKING:
    from dialkey import AddressLookup, Endpoint


@hookimpl
def dialkey_discovery(endpoint: Endpoint, service: object) -> AddressLookup | None:
    """Find peers in the local network, and be found there."""
    if not isinstance(service, LocalDiscovery):
        return None
    from dialkey_mdns.lookup import MdnsLookup

    lookup = MdnsLookup(
        endpoint.id,
        announce=service.announce,
        quiet=service.quiet,
        on_change=endpoint.network_changed,
    )
    lookup.start()
    return lookup
