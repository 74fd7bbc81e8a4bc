"""The hook specifications: what a plugin may implement, and the contract of each.

Read `dialkey.hooks` for how implementations are found, ordered, awaited and isolated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import attrs
import pluggy

if TYPE_CHECKING:
    from typer import Typer

    from dialkey.endpoint import Connection, Endpoint, Incoming
    from dialkey.identity import EndpointAddr
    from dialkey.router import ProtocolHandler

__all__ = ["HookSpecs", "Refusal", "hookimpl", "hookspec"]

PROJECT: Final = "dialkey"
PREFIX: Final = "dialkey_"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


def _as_bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


@attrs.frozen
class Refusal:
    """Say no to a connection; a filter hook returns it.

    Attributes:
        code: the application close code that the peer sees, below 2**62.
        reason: for people and logs at the other end; keep secrets out of it.
    """

    code: int = attrs.field(
        default=1, validator=[attrs.validators.ge(0), attrs.validators.lt(2**62)]
    )
    reason: bytes = attrs.field(default=b"", converter=_as_bytes)


class HookSpecs:
    """The contract of every hook. Returning None always means "nothing from me"."""

    # --- what an endpoint is made of ------------------------------------------------------------

    @hookspec
    def dialkey_transports(self, endpoint: Endpoint) -> object:
        """Add carriers besides UDP: relay, in-memory, Tor, BLE.

        Called once while the endpoint binds, before its sockets are open. Return a transport or an
        iterable of them. The endpoint owns what it is given and closes it.
        """

    @hookspec(firstresult=True)
    def dialkey_relays(self, endpoint: Endpoint, relays: tuple[object, ...]) -> object:
        """Carry datagrams through relays.

        Called once while an endpoint binds that was given ``relays=``, with what it was given: each a
        `RelayUrl`, a `RelayAccess`, or what else the plugin itself takes. Empty means to dial through
        the relays that addresses name, and to be reached through none. Return a transport; the
        first plugin to do so wins, and the endpoint closes it.
        """

    @hookspec
    def dialkey_address_lookups(self, endpoint: Endpoint) -> object:
        """Add ways to publish this endpoint's addresses and to find those of others.

        Called once while the endpoint binds. Return an address lookup or an iterable of them. All
        are asked at once for each dial; one that fails or is slow holds up nobody.
        """

    @hookspec
    def dialkey_discovery(self, endpoint: Endpoint, service: object) -> object:
        """Make address lookups of what a preset says of discovery.

        Called while an endpoint binds, for each member of its preset's ``discovery``: a
        `presets.DiscoveryServer`, a `presets.LocalDiscovery`, or what else the plugin itself takes.
        Return an address lookup or an iterable of them, or None for a service that is not yours.
        """

    @hookspec
    def dialkey_protocols(self, endpoint: Endpoint) -> Mapping[str | bytes, ProtocolHandler] | None:
        """Serve protocols: return a mapping from ALPN to handler.

        Called once by the router that serves the endpoint, when the router is entered or when the
        plugin is added to it. An ALPN that is already served is an error naming both plugins. A plugin
        that is there because its distribution is installed is asked only in `Router.add_installed`.
        """

    @hookspec(firstresult=True)
    def dialkey_path_selector(self, endpoint: Endpoint) -> object:
        """Choose which path of a connection carries application data.

        Called once while the endpoint binds. The first plugin to return a selector wins; without
        one the built-in choice stands (direct before relay, then the lower round-trip time).
        """

    # --- filters and middleware -----------------------------------------------------------------

    @hookspec
    def dialkey_before_connect(
        self, endpoint: Endpoint, remote: EndpointAddr, alpn: bytes
    ) -> Refusal | None:
        """Look at a dial before a packet is sent; return a `Refusal` to forbid it.

        The first refusal ends it: the caller of `connect` gets `Refused`.
        """

    @hookspec
    def dialkey_before_accept(self, incoming: Incoming) -> Refusal | None:
        """Look at an incoming connection before the cost of its handshake is paid.

        Only the sender's address is known, and it may be forged: the place for rate limits and
        block lists of networks. Return a `Refusal` to turn it away.
        """

    @hookspec
    def dialkey_after_handshake(self, connection: Connection) -> Refusal | None:
        """Look at a connection, dialled or accepted, before anyone else gets it.

        The peer's key is proven and the ALPN agreed: the place for access lists by endpoint id.
        Return a `Refusal` to close it with that code and reason.
        """

    # --- life cycle -----------------------------------------------------------------------------

    @hookspec
    def dialkey_endpoint_started(self, endpoint: Endpoint) -> object:
        """Begin work: the endpoint is bound and can dial and accept.

        An exception here fails `Endpoint.bind` and names the plugin. A plugin that a router adds
        later is called when the router starts to serve. The result is ignored.
        """

    @hookspec
    def dialkey_endpoint_closing(self, endpoint: Endpoint) -> object:
        """End work: the endpoint will close its connections when this returns.

        Called once, in reverse order of registration, with a deadline of ten seconds for each
        plugin. Also called when the start failed half-way. The result is ignored.
        """

    @hookspec
    def dialkey_events(self, event: object) -> object:
        """Observe: a path opened, a path was demoted, a relay was lost …

        Each event is a frozen value. Called in the order in which things happen, from the middle of
        other work: return at once, and do not raise. A returned awaitable runs beside that work;
        when too many are pending, events are dropped for that plugin and counted.
        """

    # --- beside the endpoint --------------------------------------------------------------------

    @hookspec
    def dialkey_commands(self, cli: Typer) -> object:
        """Add subcommands to the command line with ``@cli.command()`` or ``cli.add_typer``.

        Called on every start of the program, also for ``--help``: import nothing heavy here, but
        inside the commands. Must not return an awaitable.
        """

    @hookspec
    def dialkey_relay_admit(self, request: object) -> Refusal | None:
        """On a relay server: decide who may use it; return a `Refusal` to turn a client away.

        Called once for each client that has proven its key, before it may send.
        """


HOOK_NAMES: Final = tuple(name for name in vars(HookSpecs) if name.startswith(PREFIX))

BIND_ONLY: Final = frozenset(
    {
        "dialkey_transports",
        "dialkey_relays",
        "dialkey_address_lookups",
        "dialkey_discovery",
        "dialkey_path_selector",
    }
)
"""Asked only while an endpoint binds; a plugin that comes later has missed them."""

BACKWARDS: Final = frozenset({"dialkey_endpoint_closing"})
"""Called in reverse order of registration, so that what was begun last ends first."""

FIRST_RESULT: Final = frozenset({"dialkey_path_selector", "dialkey_relays"})
