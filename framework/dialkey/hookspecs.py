"""The hook specifications: what a plugin may implement, and the contract of each.

Read `dialkey.hooks` for how implementations are found, ordered, awaited and isolated.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar

import attrs
import pluggy

if TYPE_CHECKING:
    from typer import Typer

    from dialkey.endpoint import AddressLookup, Connection, Endpoint, Incoming, PathSelector
    from dialkey.endpoint.congestion import MakeController
    from dialkey.identity import EndpointAddr, RelayAccess, RelayUrl
    from dialkey.network import Transport
    from dialkey.router import ProtocolHandler

__all__ = [
    "HookRules",
    "HookSpecs",
    "Plugin",
    "Refusal",
    "RelayChoice",
    "RelayWithUrl",
    "hookimpl",
    "hookspec",
    "rules_of",
]

PROJECT: Final = "dialkey"
PREFIX: Final = "dialkey_"

hookimpl = pluggy.HookimplMarker(PROJECT)

Plugin: TypeAlias = object
"""Any object, or module, with functions named after hooks; all of them are optional."""

F = TypeVar("F", bound=Callable[..., object])


@attrs.frozen
class HookRules:
    """How a hook is called.

    Attributes:
        first_result: the first plugin that answers is the last one that is asked.
        while_binding: asked only while an endpoint binds; a plugin that comes later has missed it.
        backwards: called in reverse order of registration, so that what started last ends first.
    """

    first_result: bool = False
    while_binding: bool = False
    backwards: bool = False


def hookspec(
    *, first_result: bool = False, while_binding: bool = False, backwards: bool = False
) -> Callable[[F], F]:
    """Mark a function as the specification of a hook; see `HookRules`.

    A plugin that defines hooks of its own keeps them in a class, which it names in an attribute
    `dialkey_hookspecs`; see `dialkey.hooks`.
    """
    rules = HookRules(first_result, while_binding, backwards)
    mark = pluggy.HookspecMarker(PROJECT)

    def specify(function: F) -> F:
        setattr(function, _RULES, rules)
        return mark(function, firstresult=first_result)

    return specify


_RULES: Final = "dialkey_rules"


def rules_of(specification: object) -> HookRules:
    """Return how a hook is called, from the function that specifies it."""
    rules = getattr(specification, _RULES, None)
    return rules if isinstance(rules, HookRules) else HookRules()


class RelayWithUrl(Protocol):
    """What names a relay and says more of it, such as a token."""

    @property
    def url(self) -> RelayUrl: ...


RelayChoice: TypeAlias = "RelayUrl | RelayAccess | RelayWithUrl"
"""A member of ``relays=``, which the plugin for relays takes."""


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
    """The contract of every hook of the framework. Returning None always means "nothing from me".

    Every result may be an awaitable, unless the hook says otherwise.
    """

    # --- what an endpoint is made of ------------------------------------------------------------

    @hookspec(while_binding=True)
    def dialkey_transports(self, endpoint: Endpoint) -> Transport | Iterable[Transport] | None:
        """Add carriers besides UDP: relay, in-memory, Tor, BLE.

        Called once while the endpoint binds, before its sockets are open. Return a transport or an
        iterable of them. The endpoint owns what it is given and closes it.
        """

    @hookspec(first_result=True, while_binding=True)
    def dialkey_relays(
        self, endpoint: Endpoint, relays: tuple[RelayChoice, ...]
    ) -> Transport | None:
        """Carry datagrams through relays.

        Called once while an endpoint binds that was given ``relays=``, with what it was given: each a
        `RelayUrl`, a `RelayAccess`, or what else the plugin itself takes. Empty means to dial through
        the relays that addresses name, and to be reached through none. Return a transport; the
        first plugin to do so wins, and the endpoint closes it. A `LocalError` about one of the values,
        such as `InvalidAddress`, reaches the caller as it is.
        """

    @hookspec(while_binding=True)
    def dialkey_address_lookups(
        self, endpoint: Endpoint
    ) -> AddressLookup | Iterable[AddressLookup] | None:
        """Add ways to publish this endpoint's addresses and to find those of others.

        Called once while the endpoint binds. Return an address lookup or an iterable of them. All
        are asked at once for each dial; one that fails or is slow holds up nobody.
        """

    @hookspec(while_binding=True)
    def dialkey_discovery(
        self, endpoint: Endpoint, service: object
    ) -> AddressLookup | Iterable[AddressLookup] | None:
        """Make address lookups of what a preset says of discovery.

        Called while an endpoint binds, for each member of its preset's ``discovery``: a
        `presets.DiscoveryServer`, a `presets.LocalDiscovery`, or what else the plugin itself takes.
        Return an address lookup or an iterable of them, or None for a service that is not yours.
        A `LocalError` about the service reaches the caller as it is.
        """

    @hookspec()
    def dialkey_protocols(self, endpoint: Endpoint) -> Mapping[str | bytes, ProtocolHandler] | None:
        """Serve protocols: return a mapping from ALPN to handler.

        Called once by the router that serves the endpoint, when the router is entered or when the
        plugin is added to it. An ALPN that is already served is an error naming both plugins. A plugin
        that is there because its distribution is installed is asked only in `Router.add_installed`.
        """

    @hookspec(first_result=True, while_binding=True)
    def dialkey_path_selector(self, endpoint: Endpoint) -> PathSelector | None:
        """Choose which path of a connection carries application data.

        Called once while the endpoint binds. The first plugin to return a selector wins; without
        one the built-in choice stands (direct before relay, then the lower round-trip time).
        """

    @hookspec(first_result=True, while_binding=True)
    def dialkey_congestion(self, endpoint: Endpoint) -> MakeController | None:
        """Make the congestion controllers of an endpoint's paths.

        Called once while the endpoint binds. The first plugin to return a function wins over what
        ``Endpoint.bind(congestion=…)`` says. The function gets the bytes of a full packet and returns
        a `dialkey.endpoint.Controller`; it is called for each path. A controller that raises ends its
        connection with an internal error.
        """

    # --- filters and middleware -----------------------------------------------------------------

    @hookspec()
    def dialkey_before_connect(
        self, endpoint: Endpoint, remote: EndpointAddr, alpn: bytes
    ) -> Refusal | None:
        """Look at a dial before a packet is sent; return a `Refusal` to forbid it.

        The first refusal ends it: the caller of `connect` gets `Refused`.
        """

    @hookspec()
    def dialkey_before_accept(self, incoming: Incoming) -> Refusal | None:
        """Look at an incoming connection before the cost of its handshake is paid.

        Only the sender's address is known, and it may be forged: the place for rate limits and
        block lists of networks. Return a `Refusal` to turn it away.
        """

    @hookspec()
    def dialkey_after_handshake(self, connection: Connection) -> Refusal | None:
        """Look at a connection, dialled or accepted, before anyone else gets it.

        The peer's key is proven and the ALPN agreed: the place for access lists by endpoint id.
        Return a `Refusal` to close it with that code and reason.
        """

    # --- life cycle -----------------------------------------------------------------------------

    @hookspec()
    def dialkey_endpoint_started(self, endpoint: Endpoint) -> Awaitable[None] | None:
        """Start work: the endpoint is bound and can dial and accept.

        An exception here fails `Endpoint.bind` and names the plugin. A plugin that a router adds
        later is called when the router starts to serve. The result is ignored.
        """

    @hookspec(backwards=True)
    def dialkey_endpoint_closing(self, endpoint: Endpoint) -> Awaitable[None] | None:
        """End work: the endpoint will close its connections when this returns.

        Called once, in reverse order of registration, with a deadline of ten seconds for each
        plugin. Also called when the start failed half-way. The result is ignored.
        """

    @hookspec()
    def dialkey_events(self, event: object) -> Awaitable[None] | None:
        """Observe: a path opened, a path was demoted, a relay was lost …

        Each event is a frozen value. Called in the order in which things happen, from the middle of
        other work: return at once, and do not raise. A returned awaitable runs beside that work;
        when too many are pending, events are dropped for that plugin and counted.
        """

    # --- beside the endpoint --------------------------------------------------------------------

    @hookspec()
    def dialkey_commands(self, cli: Typer) -> None:
        """Add subcommands to the command line with ``@cli.command()`` or ``cli.add_typer``.

        Called on every start of the program, also for ``--help``: import nothing heavy here, but
        inside the commands. Must not return an awaitable.
        """
