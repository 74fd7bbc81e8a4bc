"""The entry point: lookups for presets that name a discovery server, and the command that runs one.

Imports nothing heavy. It does not add a lookup by itself: a preset says which server, and what is
published there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey import hookimpl
from dialkey.presets import DiscoveryServer

if TYPE_CHECKING:
    from dialkey import AddressLookup, Endpoint
    from dialkey.cli import CommandLine


@hookimpl
def dialkey_discovery(endpoint: Endpoint, service: object) -> list[AddressLookup] | None:
    """Publish on a discovery server and look up there, over HTTP and DNS concurrently.

    Raises:
        InvalidInput: its URL or its domain is not one.
    """
    if not isinstance(service, DiscoveryServer):
        return None
    from dialkey_pkarr.filters import everything, public_and_relay, relay_only
    from dialkey_pkarr.lookups import DnsLookup, PkarrLookup

    filters = {"relay": relay_only, "public": public_and_relay, "all": everything}
    keep = filters.get(service.publishes)
    lookups: list[AddressLookup] = []
    if service.url is not None:
        key = endpoint.secret_key if keep is not None else None
        lookups.append(PkarrLookup(service.url, key=key, publish=keep or relay_only))
    if service.dns_origin is not None:
        lookups.append(DnsLookup(service.dns_origin))
    return lookups


@hookimpl
def dialkey_commands(cli: CommandLine) -> None:
    """Add the command that runs a discovery server."""
    from dialkey_pkarr.commands import add_commands

    add_commands(cli)
