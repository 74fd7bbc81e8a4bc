"""The entry point: ``dialkey rendezvous``, and codes for commands. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey import hookimpl

if TYPE_CHECKING:
    from dialkey.cli import CommandLine


@hookimpl
def dialkey_commands(cli: CommandLine) -> None:
    """Add ``dialkey rendezvous``."""
    from dialkey_rendezvous.cli import add_commands

    add_commands(cli)
