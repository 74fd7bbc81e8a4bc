"""``dialkey send``, ``dialkey receive`` and ``dialkey demo``: their arguments.

What they do is in `dialkey_blobs.commands`, which is imported when one of them runs: this module is
imported on every start of the program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, cast

import typer

from dialkey.cli import (
    CommandLine,
    JsonOption,
    Options,
    Output,
    endpoint_options,
    read_ticket,
    run,
)

if TYPE_CHECKING:
    from dialkey.identity import HasAddr
    from dialkey_blobs.ticket import BlobTicket


def add_commands(cli: CommandLine) -> None:
    """Add the commands, and blob tickets to all commands that take tickets."""
    cli.add_ticket_kind("blob", _parse_ticket, _describe_ticket)
    cli.command()(send)
    cli.command()(receive)
    cli.command()(demo)


@endpoint_options
def send(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH", help="Files and folders to offer; - is standard input."),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="TEXT", help="Offer this text instead.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="What standard input or the text is called."),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="End after the first complete transfer.")
    ] = False,
    *,
    options: Options,
) -> None:
    """Offer files and folders, and print a ticket to fetch them.

    Files are read in place, so leave them unchanged until you end the command with Ctrl-C. Links and
    special files below a folder are left out, and so are modes and times.
    """
    output = Output(json=options.json)

    async def work() -> None:
        from dialkey_blobs import commands

        await commands.send(output, options, paths or [], once=once, text=text, name=name)

    run(output, work)


@endpoint_options
def receive(
    ticket: Annotated[
        list[str],
        typer.Argument(
            metavar="TICKET", help="What 'dialkey send' printed; - reads it from standard input."
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The folder to put things into, if it exists or ends in a slash; else the name of "
            "the file, or of a new folder for several. - is standard output.",
        ),
    ] = ".",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist already.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask at a terminal before receiving.")
    ] = False,
    *,
    options: Options,
) -> None:
    """Fetch what a ticket names, verified against its hash.

    Nothing is overwritten unless you ask for it. After an interruption, run the same command again to
    continue.
    """
    output = Output(json=options.json)

    if options.json and target == "-":
        raise typer.BadParameter("--json and --output - both want standard output")

    async def work() -> None:
        from dialkey_blobs import fetching
        from dialkey_blobs.targets import Target
        from dialkey_blobs.ticket import BlobTicket

        await fetching.receive(
            output,
            options,
            read_ticket(ticket, BlobTicket.parse),
            Target.parse(target),
            overwrite=overwrite,
            ask=not yes and ticket != ["-"],
        )

    run(output, work)


def demo(
    size: Annotated[
        float, typer.Option("--size", metavar="MB", min=0.0, help="The size of the file in MB.")
    ] = 100.0,
    json: JsonOption = False,
) -> None:
    """Send a file between two endpoints on this machine.

    Two keys in two processes, and a relay in a third: the transfer starts over the relay, moves to a
    direct path when there is one, and back when that is cut.
    """
    output = Output(json=json)

    async def work() -> None:
        from dialkey_blobs.demo import demo

        await demo(output, size_bytes=round(size * 1_000_000))

    run(output, work)


def _parse_ticket(text: str) -> HasAddr:
    from dialkey_blobs.ticket import BlobTicket

    return BlobTicket.parse(text)


def _describe_ticket(ticket: HasAddr) -> Mapping[str, object]:
    blob = cast("BlobTicket", ticket)
    return {"hash": str(blob.hash), "format": blob.format.name.lower().replace("_", " ")}
