"""The entry point: adds ``dialkey pipe listen`` and ``dialkey pipe connect``.

It serves nothing by itself: only a command, or an application, says what may be reached.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dialkey import hookimpl
from dialkey.cli import (
    CommandLine,
    Options,
    Output,
    endpoint_options,
    guard,
    run,
)

if TYPE_CHECKING:
    from dialkey import Endpoint, EndpointId
    from dialkey_pipe.addresses import Local

TcpOption = Annotated[
    str | None, typer.Option("--tcp", metavar="[HOST:]PORT", help="A TCP port, not stdin/stdout.")
]
UnixOption = Annotated[
    Path | None, typer.Option("--unix", metavar="PATH", help="A Unix socket, not stdin/stdout.")
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="ID", help="Let in only this endpoint id; may be repeated."),
]


@hookimpl
def dialkey_commands(cli: CommandLine) -> None:
    """Add the group ``pipe``."""
    group = typer.Typer(
        name="pipe",
        help="Forward standard streams, TCP ports and Unix sockets by key.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command()(listen)
    group.command()(connect)
    cli.add_typer(group, name="pipe")


@endpoint_options
def listen(
    tcp: TcpOption = None,
    unix: UnixOption = None,
    allow: AllowOption = None,
    *,
    options: Options,
) -> None:
    """Print a ticket; forward who connects with it to stdin/stdout, or to a port or socket here."""
    output = Output(json=options.json)
    local = _local(output, tcp, unix, json=options.json)
    run(output, lambda: _listen(output, options, local, allow or []))


@endpoint_options
def connect(
    ticket: Annotated[str, typer.Argument(help="The ticket that 'listen' printed.")],
    tcp: TcpOption = None,
    unix: UnixOption = None,
    *,
    options: Options,
) -> None:
    """Join stdin/stdout with a listening side, or offer it as a port or socket here."""
    output = Output(json=options.json)
    local = _local(output, tcp, unix, json=options.json)
    run(output, lambda: _connect(output, options, local, ticket))


def _local(output: Output, tcp: str | None, unix: Path | None, *, json: bool) -> Local | None:
    from dialkey_pipe.addresses import TcpAddress, UnixPath

    if tcp is not None and unix is not None:
        raise typer.BadParameter("give --tcp or --unix, not both")
    if json and tcp is None and unix is None:
        raise typer.BadParameter("--json needs --tcp or --unix: stdout is the pipe otherwise")
    if unix is not None:
        return UnixPath(unix)
    if tcp is None:
        return None
    with guard(output):
        return TcpAddress.parse(tcp)


async def _listen(output: Output, options: Options, local: Local | None, allow: list[str]) -> None:
    from dialkey import EndpointId, EndpointTicket

    allowed = [EndpointId.parse(text) for text in allow]
    async with options.open_endpoint() as endpoint:
        await options.until_online(endpoint, output)
        ticket = str(EndpointTicket(await options.own_addr(endpoint)))
        if local is None:
            await _listen_once(output, endpoint, ticket, allowed)
        else:
            await _listen_for(output, endpoint, ticket, local, allowed)


async def _listen_for(
    output: Output, endpoint: Endpoint, ticket: str, local: Local, allowed: list[EndpointId]
) -> None:
    from dialkey import Router
    from dialkey_pipe.protocol import ALPN
    from dialkey_pipe.serving import Forwarder

    async with Router(endpoint) as router:
        router.accept(ALPN, Forwarder(local, allowed))
        router.add_installed("ping")
        output.result("ready", ticket, ticket=ticket, endpoint_id=str(endpoint.id))
        output.remark(f"Forwarding to {local}. Elsewhere: dialkey pipe connect <the line above>")
        await router.serve()


async def _listen_once(
    output: Output, endpoint: Endpoint, ticket: str, allowed: list[EndpointId]
) -> None:

    from dialkey import Router
    from dialkey_pipe.addresses import StdioNear
    from dialkey_pipe.protocol import ALPN
    from dialkey_pipe.serving import OnePipe

    # When the one pipe is over, whoever else is connected has nothing to wait for.
    async with Router(endpoint, grace_s=0.0) as router:
        pipe = OnePipe(StdioNear(), allowed)
        router.accept(ALPN, pipe)
        output.remark(ticket)
        await pipe.over


async def _connect(output: Output, options: Options, local: Local | None, ticket: str) -> None:
    import asyncio

    from dialkey.identity import parse_remote
    from dialkey_pipe.addresses import StdioNear
    from dialkey_pipe.forwarding import Dialer, forward_all, forward_one

    async with options.open_endpoint() as endpoint:
        dialer = Dialer(endpoint, parse_remote(ticket))
        if local is None:
            await forward_one(dialer, StdioNear())
            return
        # A wrong ticket or a dead listener shows now, not at the first connection.
        await dialer.dial()
        async with forward_all(dialer, local, output.remark) as where:
            output.result("ready", where, address=where)
            output.remark("Forwarding from the address above.")
            await asyncio.get_running_loop().create_future()
