"""``dialkey ticket``: look into tickets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from dialkey.cli.options import JsonOption
from dialkey.cli.output import Output
from dialkey.cli.pasting import read_ticket
from dialkey.cli.running import guard

if TYPE_CHECKING:
    from dialkey.cli.app import CommandLine
    from dialkey.identity import HasAddr


def add_commands(cli: CommandLine) -> None:
    """Add the group ``ticket``."""
    group = typer.Typer(
        name="ticket", help="Look into tickets.", no_args_is_help=True, rich_markup_mode=None
    )

    @group.command()
    def inspect(
        text: Annotated[
            list[str],
            typer.Argument(
                metavar="TICKET",
                help="A ticket, in pieces if it was wrapped; - reads it from stdin.",
            ),
        ],
        json: JsonOption = False,
    ) -> None:
        """Show what a ticket says, without connecting to anyone."""
        output = Output(json=json)
        with guard(output):
            _inspect(output, *read_ticket(text, cli.parse_ticket))

    cli.add_typer(group, name="ticket")


def _inspect(output: Output, kind: str, ticket: HasAddr, details: Mapping[str, object]) -> None:
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
