"""``dialkey ping``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from dialkey.cli import (
    CommandLine,
    Options,
    Output,
    endpoint_options,
    run,
)

if TYPE_CHECKING:
    from dialkey.identity import EndpointAddr


def add_commands(cli: CommandLine) -> None:
    """Add the command ``ping``."""

    @cli.command()
    @endpoint_options
    def ping(
        target: Annotated[
            str | None, typer.Argument(metavar="TICKET|ID", help="Whom to ping.")
        ] = None,
        listen: Annotated[
            bool, typer.Option("--listen", help="Answer pings instead, and print a ticket.")
        ] = False,
        count: Annotated[
            int,
            typer.Option("--count", "-c", metavar="N", min=0, help="How many pings; 0 for no end."),
        ] = 4,
        interval: Annotated[
            float,
            typer.Option(
                "--interval", "-i", metavar="SECONDS", min=0.0, help="Seconds between pings."
            ),
        ] = 1.0,
        timeout: Annotated[
            float,
            typer.Option(
                "--timeout", metavar="SECONDS", min=0.01, help="Seconds to wait for one answer."
            ),
        ] = 5.0,
        *,
        options: Options,
    ) -> None:
        """See whether an endpoint answers, how fast, and by which path."""
        if (target is None) != listen:
            raise typer.BadParameter("give a ticket or an endpoint id, or else --listen")
        output = Output(json=options.json)
        if target is None:
            run(output, lambda: _listen(output, options))
        else:
            text = target
            run(
                output,
                lambda: _ping(
                    output,
                    options,
                    _parse(cli, text),
                    count=count or None,
                    interval_s=interval,
                    timeout_s=timeout,
                ),
            )


def _parse(cli: CommandLine, text: str) -> EndpointAddr:
    """Take an endpoint id, or a ticket of any kind: every ticket names an endpoint."""
    from dialkey.errors import InvalidTicket
    from dialkey.identity import parse_remote

    try:
        return cli.parse_ticket(text)[1].addr
    except InvalidTicket:
        return parse_remote(text)


async def _listen(output: Output, options: Options) -> None:
    from dialkey import EndpointTicket, Router
    from dialkey_ping.protocol import ALPN, PingHandler

    async with options.open_endpoint() as endpoint, Router(endpoint) as router:
        if ALPN not in router.alpns():
            router.accept(ALPN, PingHandler())
        await options.until_online(endpoint, output)
        ticket = str(EndpointTicket(await options.own_addr(endpoint)))
        output.result("ready", ticket, ticket=ticket, endpoint_id=str(endpoint.id))
        output.remark("Answering pings. On the other machine: dialkey ping <the line above>")
        await router.serve()


async def _ping(
    output: Output,
    options: Options,
    remote: EndpointAddr,
    *,
    count: int | None,
    interval_s: float,
    timeout_s: float,
) -> None:
    from dialkey.errors import AlpnMismatch
    from dialkey_ping.protocol import ALPN, ping

    times_s: list[float] = []
    async with options.open_endpoint() as endpoint:
        try:
            connection = await endpoint.connect(remote, ALPN)
        except AlpnMismatch as error:
            error.hint = "an endpoint answers there, but not to pings"
            raise
        async with connection:
            async for pong in ping(
                connection, count=count, interval_s=interval_s, timeout_s=timeout_s
            ):
                times_s.append(pong.round_trip_s)
                output.result(
                    "pong",
                    f"{pong.sequence}: {pong.round_trip_s * 1000:.2f} ms, {pong.path}",
                    sequence=pong.sequence,
                    round_trip_ms=round(pong.round_trip_s * 1000, 3),
                    path=pong.path,
                )
                if output.has_lost_reader:
                    break
    mean_s = math.fsum(times_s) / len(times_s)
    output.remark(
        f"{len(times_s)} answers from {remote.id.short()}: least {min(times_s) * 1000:.2f} ms, "
        f"mean {mean_s * 1000:.2f} ms, most {max(times_s) * 1000:.2f} ms"
    )
