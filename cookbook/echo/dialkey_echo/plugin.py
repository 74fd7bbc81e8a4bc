"""The entry point. Every start of ``dialkey`` imports it, so what is heavy waits in functions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dialkey import hookimpl
from dialkey.cli import (
    CommandLine,
    Options,
    Output,
    endpoint_options,
    run,
)
from dialkey.printable import printable

if TYPE_CHECKING:
    from dialkey import Endpoint
    from dialkey_echo.protocol import Echo

ANSWER_TIMEOUT_S: Final = 10.0
"""A peer that accepts the connection and then says nothing, or too little, is given up."""


@hookimpl
def dialkey_protocols(endpoint: Endpoint) -> Mapping[str, Echo]:
    """Serve ``echo/1`` wherever a router adds this plugin."""
    from dialkey_echo.protocol import ALPN, Echo

    return {ALPN: Echo()}


@hookimpl
def dialkey_commands(cli: CommandLine) -> None:
    """Add ``dialkey echo``."""

    @cli.command()
    @endpoint_options
    def echo(
        ticket: Annotated[str | None, typer.Argument(help="Whom to ask.")] = None,
        text: Annotated[str, typer.Argument(help="What to say.")] = "hello",
        listen: Annotated[
            bool, typer.Option("--listen", help="Answer instead, and print a ticket.")
        ] = False,
        *,
        options: Options,
    ) -> None:
        """Say something to an endpoint and hear it come back."""
        if (ticket is None) != listen:
            raise typer.BadParameter("give a ticket, or --listen")
        output = Output(json=options.json)
        if ticket is None:
            run(output, lambda: _listen(output, options))
        else:
            remote = ticket
            run(output, lambda: _ask(output, options, remote, text))


async def _listen(output: Output, options: Options) -> None:
    from dialkey import Router
    from dialkey_echo.protocol import ALPN, Echo

    async with options.open_endpoint() as endpoint, Router(endpoint) as router:
        router.accept(ALPN, Echo())
        await options.until_online(endpoint, output)
        ticket = str(endpoint.ticket())
        output.result("ready", ticket, ticket=ticket)
        output.remark("Answering. On the other machine: dialkey echo <the line above> hello")
        await router.serve()


async def _ask(output: Output, options: Options, ticket: str, text: str) -> None:
    from dialkey_echo.protocol import ALPN, echo

    async with (
        options.open_endpoint() as endpoint,
        await endpoint.connect(ticket, ALPN) as connection,
    ):
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                answer = (await echo(connection, text.encode())).decode()
        except TimeoutError as error:
            raise TimeoutError(f"no answer within {ANSWER_TIMEOUT_S:g} s") from error
        output.result("echo", printable(answer), text=answer, endpoint_id=str(connection.remote_id))
