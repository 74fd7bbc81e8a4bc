"""``dialkey rendezvous serve``, and codes for all commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from dialkey.cli import (
    RENDEZVOUS_VARIABLE,
    Ask,
    CommandLine,
    Options,
    Output,
    endpoint_options,
    run,
)

if TYPE_CHECKING:
    from dialkey import Endpoint


def add_commands(cli: CommandLine) -> None:
    """Add the group ``rendezvous``, and codes."""
    cli.add_codes(Codes())
    group = typer.Typer(
        name="rendezvous",
        help="Where codes such as 7-amber-violin meet.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command()(serve)
    cli.add_typer(group, name="rendezvous")


class Codes:
    """Hands over tickets by codes; see `dialkey.cli.TicketCodes`. Imports when it is used."""

    def looks_like_code(self, text: str) -> bool:
        from dialkey_rendezvous.codes import looks_like_code

        return looks_like_code(text)

    def complete(self, before: Sequence[str], text: str) -> list[str]:
        from dialkey_rendezvous.codes import complete, complete_word

        return complete(text) or complete_word(text, before)

    def draw(self, output: Output, ticket: str) -> None:
        from dialkey_rendezvous.qr import draw

        draw(output, ticket)

    async def offer(
        self,
        output: Output,
        options: Options,
        endpoint: Endpoint,
        server: str | None,
        ticket: str,
        command: str,
        *,
        ask: Ask | None,
    ) -> None:
        from dialkey_rendezvous.commands import offer

        await offer(output, endpoint, server, ticket, command, ask=ask)

    async def take(
        self,
        output: Output,
        options: Options,
        server: str | None,
        code: str,
        *,
        ask: Ask | None,
    ) -> str:
        from dialkey_rendezvous.commands import take

        return await take(output, options, server, code, ask=ask)


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
            f"Codes can meet here. Elsewhere: --rendezvous or {RENDEZVOUS_VARIABLE}=<the line above>"
        )
        if options.secret_key is None:
            output.remark("It is another server after a restart; --secret-key FILE keeps its key.")
        try:
            await router.serve()
        finally:
            # The command line cancels this on Ctrl-C and SIGTERM, which is how a server ends.
            stats = rendezvous.stats()
            output.remark(
                f"{stats.given} codes given, {stats.delivered} tickets handed over,"
                f" {stats.burnt} burnt by wrong words, {stats.expired} expired"
            )
