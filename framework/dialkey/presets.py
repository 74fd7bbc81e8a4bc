"""Bundles of defaults for `Endpoint.bind`: how to be found, and how to find others.

=============  =======================================================================================
`public`       iroh's public relays and discovery; everybody's, free, without a promise
`services`     relay and discovery that you run yourself, all under one URL
`local`        the network at hand only: peers there, and no server
`relay_only`   as `public`, but without UDP: nobody learns our addresses, all goes through a relay
`minimal`      nothing: the addresses that a ticket names, and nothing sent unasked
=============  =======================================================================================

An app makes its own::

    ours = Preset("ours", relays=("https://relay.example",))
    async with Endpoint.bind(preset=ours) as endpoint: ...

Binding waits for no server. Offline, `public` finds nobody, says so at once, and goes on when the
network is there.
"""

from __future__ import annotations

from typing import Final, Literal

import attrs

from dialkey.errors import InvalidInput
from dialkey.hookspecs import Plugin, RelayChoice

__all__ = [
    "BY_NAME",
    "DiscoveryServer",
    "LocalDiscovery",
    "Preset",
    "local",
    "minimal",
    "public",
    "relay_only",
    "services",
]


@attrs.frozen
class DiscoveryServer:
    """A server where endpoints publish signed records, and are looked up by their ids.

    Attributes:
        url: takes and gives records over HTTP; None for none. The id is appended.
        dns_origin: the domain under which they are in DNS; None for none. The machine's own DNS servers
            are asked, and see the ids that are looked up.
        publishes: what is published: which relay leads here; addresses that mean something on the
            internet, too; all, those of the LAN included; or nothing.
    """

    url: str | None = None
    dns_origin: str | None = None
    publishes: Literal["relay", "public", "all", "nothing"] = "relay"


@attrs.frozen
class LocalDiscovery:
    """Peers in the local network, by multicast; nothing happens where no plugin for it is installed.

    Attributes:
        announce: whether others find us, or only we them.
        quiet: save battery, as phones want: ask only when somebody is looked for, and answer questions
            for everybody less often.
    """

    announce: bool = True
    quiet: bool = False


@attrs.frozen
class Preset:
    """Defaults of an endpoint.

    Attributes:
        name: as on the command line.
        plugins: plugins that every endpoint of this kind gets, before its own.
        relays: see `Endpoint.bind`; None for no relays at all.
        discovery: where to publish and to look up; installed plugins make address lookups of it.
        udp: whether datagrams go over UDP; without it only through relays.
    """

    name: str
    plugins: tuple[Plugin, ...] = ()
    relays: tuple[str | RelayChoice, ...] | None = None
    discovery: tuple[object, ...] = ()
    udp: bool = True

    def without_udp(self, name: str = "") -> Preset:
        """Return the same without UDP: all goes through relays, and no address is published."""
        return attrs.evolve(self, udp=False, name=name or f"{self.name}, relays only")


_RELAYS: Final = tuple(
    f"https://{region}.relay.n0.iroh.link./" for region in ("use1-1", "usw1-1", "euc1-1", "aps1-1")
)
"""Source: docs/wire/discovery.md 2.3. The final dot is part of the name."""

public = Preset(
    "public",
    relays=_RELAYS,
    discovery=(DiscoveryServer("https://dns.iroh.link/pkarr", "dns.iroh.link."),),
)
"""iroh's public relays and discovery, run by n0. They see who looks for whom, and carry what
does not go directly, encrypted."""

relay_only = public.without_udp("relay_only")
"""As `public`, without UDP: nobody but the relay sees an address of ours."""

local = Preset("local", discovery=(LocalDiscovery(),))
"""The local network only."""

minimal = Preset("minimal")
"""Direct UDP to addresses that the caller knows: no relay, no discovery, nothing sent unasked."""


def services(url: str, *, dns_origin: str | None = None) -> Preset:
    """Return a preset for a relay and a discovery server of your own, both under one URL.

    Args:
        url: such as ``https://services.example``.
        dns_origin: the domain under which that server answers DNS, if it does.

    Raises:
        InvalidInput: the URL is not one of HTTP.
    """
    # The command line reads the names of presets at each start, which is not worth this import.
    from dialkey.identity import RelayUrl

    found = RelayUrl(url)
    if found.scheme not in ("http", "https"):
        raise InvalidInput("the URL of services begins with https:// or http://")
    base = str(found).partition("?")[0].rstrip("/")
    return Preset(
        "services",
        relays=(str(found),),
        discovery=(DiscoveryServer(f"{base}/pkarr", dns_origin),),
    )


BY_NAME = {preset.name: preset for preset in (public, local, relay_only, minimal)}
"""Presets by the name that the command line uses."""
