"""The entry point: adds ``dialkey send``, ``receive`` and ``demo``. Imports nothing heavy.

It does not serve blobs by itself: an application says what it shares with ``router.add(Blobs…)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey import hookimpl

if TYPE_CHECKING:
    from dialkey.cli import CommandLine


@hookimpl
def dialkey_commands(cli: CommandLine) -> None:
    """Add the commands that send and receive files."""
    from dialkey_blobs.cli import add_commands

    add_commands(cli)
