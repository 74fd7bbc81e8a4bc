"""``dialkey lookup``: where an endpoint is, and who says so."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from dialkey.cli.options import Options, endpoint_options
from dialkey.cli.output import Output
from dialkey.cli.running import run

if TYPE_CHECKING:
    from dialkey.cli.app import CommandLine
    from dialkey.endpoint import LookupAnswer, LookupReport
    from dialkey.identity import EndpointAddr


def add_commands(cli: CommandLine) -> None:
    """Add the command ``lookup``."""

    @cli.command()
    @endpoint_options
    def lookup(
        target: Annotated[
            str,
            typer.Argument(metavar="ID|TICKET", help="Whom to look up; a ticket's id is taken."),
        ],
        timeout: Annotated[
            float,
            typer.Option("--timeout", metavar="SECONDS", min=0.01, help="Seconds for all sources."),
        ] = 10.0,
        *,
        options: Options,
    ) -> None:
        """Show what each source says about an endpoint, how old it is, and how long it took."""
        output = Output(json=options.json)
        run(output, lambda: _lookup(output, options, _parse(cli, target), timeout))


def _parse(cli: CommandLine, text: str) -> EndpointAddr:
    from dialkey.errors import InvalidTicket
    from dialkey.identity import parse_remote

    try:
        return cli.parse_ticket(text)[1].addr
    except InvalidTicket:
        return parse_remote(text)


async def _lookup(output: Output, options: Options, target: EndpointAddr, timeout: float) -> None:
    from dialkey.errors import ResolveError

    async with await options.open_endpoint() as endpoint:
        # The endpoint's own book knows what this very process was told: nothing.
        reports = [
            each for each in await endpoint.look_up(target.id, timeout) if each.lookup != "static"
        ]
    if not reports:
        raise ResolveError(
            "there is nobody to ask",
            endpoint_id=target.id,
            hint="choose --preset public, or --services URL",
        )
    now = time.time()
    output.result(
        "lookup",
        "\n".join(line for each in reports for line in _lines(each, now)),
        endpoint_id=str(target.id),
        sources=[_fields(each, now) for each in reports],
    )
    if not any(answer.info.addr.addrs for each in reports for answer in each.answers):
        raise ResolveError("no source knows an address", endpoint_id=target.id)


def _lines(report: LookupReport, now: float) -> list[str]:
    lines = [str(report)]
    for answer in report.answers:
        age_s = answer.age_s(now)
        age = "of unknown age" if age_s is None else f"{age_s:.0f} s old"
        lines.append(f"  {answer.source}, {age}:")
        lines += [f"    {each.labelled()}" for each in answer.info.addr.addrs]
        if answer.info.user_data is not None:
            lines.append(f"    user data: {answer.info.user_data!r}")
    return lines


def _fields(report: LookupReport, now: float) -> dict[str, object]:
    return {
        "lookup": report.lookup,
        "took_s": round(report.took_s, 3),
        "is_done": report.is_done,
        "error": report.error,
        "answers": [_answer_fields(each, now) for each in report.answers],
    }


def _answer_fields(answer: LookupAnswer, now: float) -> dict[str, object]:
    age_s = answer.age_s(now)
    return {
        "source": answer.source,
        "age_s": None if age_s is None else round(age_s, 3),
        "addresses": [
            dict(zip(("kind", "address"), each.labelled().split(":", 1), strict=True))
            for each in answer.info.addr.addrs
        ],
        "user_data": answer.info.user_data,
    }
