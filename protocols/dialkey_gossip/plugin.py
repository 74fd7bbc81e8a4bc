"""The entry point: adds ``dialkey gossip``. Imports nothing heavy.

It does not serve gossip by itself: an application does that with ``router.add(Gossip())``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey import hookimpl

if TYPE_CHECKING:
    from dialkey.cli import CommandLine


@hookimpl
def dialkey_commands(cli: CommandLine) -> None:
    """Add the command that talks in a topic."""
    from dialkey_gossip.cli import add_commands

    add_commands(cli)
