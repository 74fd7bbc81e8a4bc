"""``dialkey key``: make key files and see which endpoint they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dialkey.cli.options import JsonOption
from dialkey.cli.output import Output
from dialkey.cli.running import guard

if TYPE_CHECKING:
    from dialkey.cli.app import CommandLine
    from dialkey.identity import EndpointId

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The key file.")]


def new(file: FileArgument, json: JsonOption = False) -> None:
    """Make a new key and show its endpoint id.

    The file can be read by you alone; an existing file is left as it is.
    """
    output = Output(json=json)
    with guard(output):
        from dialkey.identity import SecretKey

        key = SecretKey.generate()
        key.save(file)
        _show(output, key.id, file)


def show(file: FileArgument, json: JsonOption = False) -> None:
    """Show the endpoint id of a key file.

    The secret itself is never shown.
    """
    output = Output(json=json)
    with guard(output):
        from dialkey.identity import SecretKey

        _show(output, SecretKey.load(file).id, file)


def _show(output: Output, endpoint_id: EndpointId, file: Path) -> None:
    output.result(
        "key",
        str(endpoint_id),
        endpoint_id=str(endpoint_id),
        base32=endpoint_id.to_base32(),
        z32=endpoint_id.to_z32(),
        file=str(file),
    )
    output.remark(f"base32:      {endpoint_id.to_base32()}")
    output.remark(f"z-base-32:   {endpoint_id.to_z32()}")
    output.remark(f"secret key:  {file}")


def add_commands(cli: CommandLine) -> None:
    """Add the group ``key``."""
    group = typer.Typer(
        name="key",
        help="Make key files and see which endpoint they name.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command()(new)
    group.command()(show)
    cli.add_typer(group, name="key")
