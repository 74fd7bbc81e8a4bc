"""``dialkey relay``: run a relay, check its configuration, sign grants."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dialkey.cli import JsonOption, Output, guard, run

if TYPE_CHECKING:
    from dialkey.cli import CommandLine
    from dialkey_relay.server.config import ServerConfig

__all__ = ["add_commands"]

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="The TOML configuration.")
]
CheckOption = Annotated[
    bool, typer.Option("--check", help="Say whether the configuration is good, and end.")
]
DevOption = Annotated[
    bool,
    typer.Option(
        "--dev", help="For trying out: plain HTTP on 127.0.0.1:3340, open to everyone there."
    ),
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Log who is turned away, and what is reloaded.")
]


def relay(
    context: typer.Context,
    config: ConfigOption = None,
    check: CheckOption = False,
    dev: DevOption = False,
    verbose: VerboseOption = False,
    json: JsonOption = False,
) -> None:
    """Run a relay: endpoints that cannot reach each other directly meet there.

    It ends on Ctrl-C or SIGTERM, after telling its clients; on SIGHUP it reads its files again.
    """
    if context.invoked_subcommand is not None:
        return
    output = Output(json=json)
    if config is None and not dev:
        raise typer.BadParameter("give --config FILE, or --dev to try it out")

    def read() -> ServerConfig:
        from dialkey_relay.server import config as configuration

        if config is None:
            return configuration.parse('access = "everyone"\nenable_metrics = false', dev=True)
        return configuration.load(config, dev=dev)

    if check:
        with guard(output):
            read()
            output.result("checked", f"{config or 'the built-in configuration'} is good")
        return

    async def work() -> None:
        from dialkey.hooks import Plugins
        from dialkey_relay.hookspecs import RelayHookSpecs
        from dialkey_relay.server.running import serve

        settled = read()
        if settled.workers > 1 and config is not None:
            from dialkey_relay.server.workers import run_workers

            await run_workers(
                config,
                settled,
                lambda found: _announce(output, settled, found),
                dev=dev,
                log_level=log.level,
            )
            return

        plugins = Plugins(RelayHookSpecs)
        # None is skipped: it could be the one that keeps strangers out.
        plugins.load_entry_points()
        await serve(
            read,
            lambda running: _announce(output, running.config, running.relay.addresses),
            plugins=plugins,
        )

    import logging

    # A server has nobody who watches it: what it warns about belongs into its log in any case.
    log = logging.getLogger("dialkey.relay")
    before = log.level
    log.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        run(output, work)
    finally:
        log.setLevel(before)


def _announce(output: Output, config: ServerConfig, addresses: list[tuple[str, int]]) -> None:
    urls = []
    for number, (host, port) in enumerate(addresses):
        # The TLS listener comes first, where there is one.
        scheme = "https" if number == 0 and config.options.https is not None else "http"
        urls.append(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/")
    text = f"listening on {', '.join(urls)}"
    output.result("listening", text, addresses=addresses, urls=urls)


def grant(
    endpoint: Annotated[str, typer.Argument(metavar="ENDPOINT", help="Who may use the relay.")],
    issuer: Annotated[
        Path,
        typer.Option(
            "--issuer", metavar="FILE", help="The key file of the issuer ('dialkey key new FILE')."
        ),
    ],
    lifetime_s: Annotated[
        int, typer.Option("--lifetime", metavar="SECONDS", help="How long it is good.")
    ] = 3600,
    rate: Annotated[
        int | None, typer.Option("--rate", metavar="BYTES", help="Bytes per second it may send.")
    ] = None,
    burst: Annotated[
        int | None, typer.Option("--burst", metavar="BYTES", help="Bytes it may send at once.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Sign a grant: a token for one endpoint, for some time.

    The relay has to know the issuer's endpoint id: [access.grants] issuers = ["…"].
    """
    output = Output(json=json)
    with guard(output):
        import time

        from dialkey.identity import EndpointId, SecretKey
        from dialkey_relay.grants import Grant

        signed = Grant.issue(
            SecretKey.load(issuer),
            EndpointId.parse(endpoint),
            now=time.time(),
            lifetime_s=lifetime_s,
            bytes_per_second=rate,
            max_burst_bytes=burst,
        )
        _show(output, signed, str(signed))


def inspect(
    token: Annotated[str, typer.Argument(metavar="GRANT", help="What 'dialkey relay grant' made.")],
    json: JsonOption = False,
) -> None:
    """Show what a grant says, without judging its signature."""
    output = Output(json=json)
    with guard(output):
        from dialkey_relay.grants import Grant

        found = Grant.parse(token)
        _show(output, found, None)


def _show(output: Output, grant: object, text: str | None) -> None:
    import datetime

    from dialkey_relay.grants import Grant

    assert isinstance(grant, Grant)
    expires = datetime.datetime.fromtimestamp(grant.expires_at, datetime.UTC).isoformat()
    output.result(
        "grant",
        text,
        grant=str(grant),
        id=grant.id.hex(),
        endpoint_id=str(grant.endpoint_id),
        expires=expires,
        bytes_per_second=grant.bytes_per_second,
        max_burst_bytes=grant.max_burst_bytes,
    )
    lines = [
        f"endpoint:  {grant.endpoint_id}",
        f"expires:   {expires}",
        f"rate:      {grant.bytes_per_second or 'as the relay gives others'}",
        f"id:        {grant.id.hex()} (to revoke it)",
    ]
    for line in lines:
        if text is None and not output.json:
            print(line, file=output.stdout)
        else:
            output.remark(line)


def add_commands(cli: CommandLine) -> None:
    """Add the group ``relay``."""
    group = typer.Typer(name="relay", invoke_without_command=True, rich_markup_mode=None)
    group.callback()(relay)
    group.command()(grant)
    group.command()(inspect)
    cli.add_typer(group, name="relay")
