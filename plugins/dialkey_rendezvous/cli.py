"""``dialkey rendezvous serve``."""

from __future__ import annotations

from typing import Final

import typer

from dialkey.cli import CommandLine, Options, Output, endpoint_options, run

VARIABLE: Final = "DIALKEY_RENDEZVOUS"


def add_commands(cli: CommandLine) -> None:
    """Add the group ``rendezvous``."""
    group = typer.Typer(
        name="rendezvous",
        help="Where codes such as 7-amber-violin meet.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command()(serve)
    cli.add_typer(group, name="rendezvous")


@endpoint_options
def serve(*, options: Options) -> None:
    """Run a rendezvous server, and print what others give to --rendezvous.

    It hands out numbers and brings two sides together once for each; it learns neither words nor
    tickets. With --secret-key FILE it is the same server after a restart.
    """
    output = Output(json=options.json)
    run(output, lambda: _serve(output, options))


async def _serve(output: Output, options: Options) -> None:
    from dialkey import EndpointTicket, Router
    from dialkey_rendezvous.handler import Rendezvous

    async with options.open_endpoint() as endpoint, Router(endpoint) as router:
        rendezvous = router.add(Rendezvous())
        await options.until_online(endpoint, output)
        ticket = str(EndpointTicket(await options.own_addr(endpoint)))
        output.result("ready", ticket, ticket=ticket, endpoint_id=str(endpoint.id))
        output.remark(
            f"Codes can meet here. Elsewhere: --rendezvous or {VARIABLE}=<the line above>"
        )
        if options.secret_key is None:
            output.remark("It is another server after a restart; --secret-key FILE keeps its key.")
        await router.serve()
        stats = rendezvous.stats()
        output.remark(
            f"{stats.given} codes given, {stats.delivered} tickets handed over,"
            f" {stats.burnt} burnt by wrong words, {stats.expired} expired"
        )
