"""The arguments of ``dialkey gossip``; `dialkey_gossip.commands` has the rest."""

from __future__ import annotations

from typing import Annotated

import typer

from dialkey.cli import (
    CommandLine,
    Options,
    Output,
    endpoint_options,
    run,
)


def add_commands(cli: CommandLine) -> None:
    """Add the command ``gossip``."""
    cli.command()(gossip)


@endpoint_options
def gossip(
    topic: Annotated[
        str,
        typer.Argument(
            metavar="TOPIC", help="A topic ticket, 64 hex digits, or any name that all agree on."
        ),
    ],
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", metavar="TICKET|ID", help="A member; may be given several times."),
    ] = None,
    send: Annotated[
        str | None, typer.Option("--send", metavar="TEXT", help="Publish this, and end.")
    ] = None,
    signed: Annotated[
        bool, typer.Option("--signed", help="In a topic where messages are signed.")
    ] = False,
    *,
    options: Options,
) -> None:
    """Join a topic: print a ticket, then what others publish; publish the lines of standard input."""
    output = Output(json=options.json)

    async def work() -> None:
        from dialkey_gossip import commands

        await commands.talk(output, options, topic, peer or [], text=send, is_signed=signed)

    run(output, work)
