"""``dialkey dns``: run a discovery server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dialkey.cli import JsonOption, Output, guard, run

if TYPE_CHECKING:
    from dialkey.cli import CommandLine
    from dialkey_pkarr.server.config import ServerConfig
    from dialkey_pkarr.server.server import DiscoveryServer

__all__ = ["add_commands"]


def dns(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="The TOML configuration.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Say whether the configuration is good, and end.")
    ] = False,
    dev: Annotated[
        bool,
        typer.Option(
            "--dev", help="For trying out: HTTP on 127.0.0.1:8080, DNS on 5300, nothing is kept."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Run a discovery server: endpoints publish there where they are, and are found by their keys.

    It ends on Ctrl-C or SIGTERM; on SIGHUP it reads its files again.
    """
    output = Output(json=json)
    if (config is None) != dev:
        raise typer.BadParameter("give --config FILE, or --dev to try it out")

    def read() -> ServerConfig:
        from dialkey_pkarr.server import config as configuration

        if config is None:
            return configuration.parse(configuration.DEV)
        return configuration.load(config)

    if check:
        with guard(output):
            read()
            output.result("checked", f"{config or 'the built-in configuration'} is good")
        return

    async def work() -> None:
        from dialkey_pkarr.server.running import serve

        await serve(read, lambda server: _announce(output, server))

    run(output, work)


def _announce(output: Output, server: DiscoveryServer) -> None:
    places = [
        f"{name} {f'[{host}]' if ':' in host else host}:{port}"
        for name, (host, port) in server.addresses.items()
    ]
    output.result("listening", f"listening on {', '.join(places)}", addresses=server.addresses)


def add_commands(cli: CommandLine) -> None:
    """Add the command ``dns``."""
    cli.command()(dns)
