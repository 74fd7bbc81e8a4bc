"""The entry point: answers pings where it is asked to, adds ``dialkey ping``. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dialkey import hookimpl

if TYPE_CHECKING:
    from dialkey import Endpoint
    from dialkey.cli import CommandLine
    from dialkey.router import ProtocolHandler


@hookimpl
def dialkey_protocols(endpoint: Endpoint) -> Mapping[str | bytes, ProtocolHandler]:
    """Serve ``dialkey/ping/1`` on an endpoint whose router adds this plugin."""
    from dialkey_ping.protocol import Ping

    return Ping().dialkey_protocols(endpoint)


@hookimpl
def dialkey_commands(cli: CommandLine) -> None:
    """Add ``dialkey ping``."""
    from dialkey_ping.cli import add_commands

    add_commands(cli)
