"""The entry point: relays for endpoints, and ``dialkey relay``. Imports nothing heavy.

It gives no endpoint a relay unasked: an application says which with ``relays=[…]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey import hookimpl
from dialkey_relay.hookspecs import RelayHookSpecs

if TYPE_CHECKING:
    from dialkey import Endpoint
    from dialkey.cli import CommandLine
    from dialkey.hooks import RelayChoice
    from dialkey_relay.client.transport import RelayTransport


dialkey_hookspecs = RelayHookSpecs


@hookimpl
def dialkey_relays(endpoint: Endpoint, relays: tuple[RelayChoice, ...]) -> RelayTransport | None:
    """Carry the endpoint's datagrams through relays.

    Raises:
        LocalError: a plugin `Relay` does so already, or a value names no relay.
    """
    from dialkey.errors import LocalError
    from dialkey_relay.client.plugin import Relay
    from dialkey_relay.client.transport import RelayTransport

    if any(isinstance(each, RelayTransport) for each in endpoint.transports):
        if not relays:
            return None
        # Both would connect with one key, and take each other's datagrams away.
        raise LocalError(
            "relays were given twice", hint="pass relays=[…] or plugins=[Relay(…)], not both"
        )
    return Relay.of_values(relays).dialkey_transports(endpoint)


@hookimpl
def dialkey_commands(cli: CommandLine) -> None:
    """Add the commands around the relay server."""
    from dialkey_relay.commands import add_commands

    add_commands(cli)
