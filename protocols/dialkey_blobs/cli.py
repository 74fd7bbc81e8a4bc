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
    RendezvousOption,
    endpoint_options,
    run,
)

VerifyOption = Annotated[
    bool,
    typer.Option("--verify", help="Compare words with the other side before the ticket passes."),
]

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
    code: Annotated[
        bool,
        typer.Option("--code", help="Print a code to say aloud, too, such as 7-amber-violin."),
    ] = False,
    rendezvous: RendezvousOption = None,
    verify: VerifyOption = False,
    qr: Annotated[
        bool, typer.Option("--qr/--no-qr", help="Show the ticket as a QR code on a terminal.")
    ] = True,
    *,
    context: typer.Context,
    options: Options,
) -> None:
    """Offer files and folders, and print a ticket to fetch them.

    Files are read in place, so leave them unchanged until you end the command with Ctrl-C. Links and
    special files below a folder are left out, and so are modes and times.
    """
    output = Output(json=options.json)

    async def work() -> None:
        from dialkey_blobs import commands
        from dialkey_blobs.telling import Telling

        telling = Telling(
            CommandLine.of(context).codes,
            by_code=code,
            server=rendezvous,
            verify=verify,
            draws=qr,
        )
        await commands.send(
            output, options, paths or [], once=once, text=text, name=name, telling=telling
        )

    run(output, work)


def _complete_code(context: typer.Context, args: list[str], incomplete: str) -> list[str]:
    codes = CommandLine.of(context).codes
    before = context.params.get("ticket") or []
    return codes.complete(before, incomplete) if codes is not None else []


@endpoint_options
def receive(
    ticket: Annotated[
        list[str],
        typer.Argument(
            metavar="TICKET|CODE",
            help="What 'dialkey send' printed; - reads it from standard input.",
            autocompletion=_complete_code,
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
    rendezvous: RendezvousOption = None,
    verify: VerifyOption = False,
    *,
    context: typer.Context,
    options: Options,
) -> None:
    """Fetch what a ticket names, or a code leads to, verified against its hash.

    Nothing is overwritten unless you ask for it. After an interruption, run the same command again to
    continue.
    """
    output = Output(json=options.json)

    if options.json and target == "-":
        raise typer.BadParameter("--json and --output - both want standard output")

    async def work() -> None:
        from dialkey_blobs import fetching
        from dialkey_blobs.targets import Target
        from dialkey_blobs.telling import Heard

        where = Target.parse(target)
        heard = Heard(CommandLine.of(context).codes, server=rendezvous, verify=verify)
        async with heard.ticket(output, options, ticket, where.state_folder) as found:
            await fetching.receive(
                output,
                options,
                found,
                where,
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
