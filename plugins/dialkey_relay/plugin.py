"""The entry point: adds ``dialkey relay``. Imports nothing heavy.

It gives no endpoint a relay by itself: an application says which with ``plugins=[Relay(…)]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey import hookimpl

if TYPE_CHECKING:
    from dialkey.cli import CommandLine


@hookimpl
def dialkey_commands(cli: CommandLine) -> None:
    """Add the commands around the relay server."""
    from dialkey_relay.commands import add_commands

    add_commands(cli)
