"""``dialkey ticket``: look into tickets."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from dialkey.cli.options import JsonOption
from dialkey.cli.output import Output
from dialkey.cli.running import guard

if TYPE_CHECKING:
    from dialkey.cli.app import CommandLine


def add_commands(cli: CommandLine) -> None:
    """Add the group ``ticket``."""
    group = typer.Typer(
        name="ticket", help="Look into tickets.", no_args_is_help=True, rich_markup_mode=None
    )

    @group.command()
    def inspect(
        text: Annotated[str, typer.Argument(metavar="TEXT", help="A ticket, or - to read one.")],
        json: JsonOption = False,
    ) -> None:
        """Show what a ticket says, without connecting to anyone."""
        output = Output(json=json)
        with guard(output):
            _inspect(cli, output, sys.stdin.readline() if text == "-" else text)

    cli.add_typer(group, name="ticket")


def _inspect(cli: CommandLine, output: Output, text: str) -> None:
    kind, ticket, details = cli.parse_ticket(text)
    addr = ticket.addr
    rows = [("kind", kind), ("endpoint id", str(addr.id))]
    labels = [label.split(":", 1) for label in (address.labelled() for address in addr.addrs)]
    rows += [(f"{label[0]} address", label[1]) for label in labels]
    if not labels:
        rows.append(("addresses", "none; the endpoint must be looked up by its id"))
    rows += [(name.replace("_", " "), str(value)) for name, value in details.items()]
    width = max(len(name) for name, _ in rows) + 1
    output.result(
        "ticket",
        "\n".join(f"{name + ':':<{width}} {value}" for name, value in rows),
        kind=kind,
        endpoint_id=str(addr.id),
        addresses=[{"kind": label[0], "address": label[1]} for label in labels],
        **details,
    )
