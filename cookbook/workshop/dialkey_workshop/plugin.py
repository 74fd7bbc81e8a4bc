"""The entry point: adds ``dialkey workshop`` with ``open``, ``work``, ``run``, ``workers``, ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dialkey import hookimpl
from dialkey.cli import (
    CommandLine,
    JsonOption,
    Options,
    Output,
    endpoint_options,
    run,
)

TicketOption = Annotated[
    str,
    typer.Option(
        "--ticket",
        "-t",
        metavar="TICKET",
        help="What 'open' or 'work' printed.",
        show_default=False,
    ),
]
AllowClientOption = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="ID", help="Work only for this endpoint id; may be repeated."),
]
AllowWorkerOption = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="ID", help="Use only this worker; may be repeated."),
]
SlotsOption = Annotated[int, typer.Option(min=1, max=1024, help="Jobs at a time.")]
MaxBytesOption = Annotated[int, typer.Option(min=0, metavar="BYTES", help="The longest input.")]
JobsOption = Annotated[
    Path | None,
    typer.Option(
        "--jobs",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        resolve_path=True,
        help="A Python file with further jobs.",
    ),
]
GraceOption = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="For jobs to end after Ctrl-C or SIGTERM.")
]


@hookimpl
def dialkey_commands(cli: CommandLine) -> None:
    """Add the group ``workshop``."""
    group = typer.Typer(
        name="workshop",
        help="Workers that find each other, take jobs, and give files back.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("open")(open_workshop)
    group.command()(work)
    group.command("run")(run_jobs)
    group.command()(workers)
    group.command()(demo)
    cli.add_typer(group, name="workshop")


@endpoint_options
def open_workshop(
    slots: SlotsOption = 2,
    max_bytes: MaxBytesOption = 1 << 30,
    jobs: JobsOption = None,
    allow: AllowClientOption = None,
    grace: GraceOption = 10.0,
    *,
    options: Options,
) -> None:
    """Open a workshop, be its first worker, and print its ticket."""
    _work(options, None, slots, max_bytes, jobs, allow, grace)


@endpoint_options
def work(
    ticket: TicketOption,
    slots: SlotsOption = 2,
    max_bytes: MaxBytesOption = 1 << 30,
    jobs: JobsOption = None,
    allow: AllowClientOption = None,
    grace: GraceOption = 10.0,
    *,
    options: Options,
) -> None:
    """Work in a workshop until Ctrl-C; print a ticket of it that names this worker."""
    _work(options, ticket, slots, max_bytes, jobs, allow, grace)


def _work(
    options: Options,
    ticket: str | None,
    slots: int,
    max_bytes: int,
    jobs: Path | None,
    allow: list[str] | None,
    grace: float,
) -> None:
    output = Output(json=options.json)

    async def main() -> None:
        from dialkey_workshop.commands import work
        from dialkey_workshop.worker import Terms

        terms = Terms(slots, max_bytes, jobs)
        await work(output, options, ticket, terms, allow, grace)

    run(output, main)


@endpoint_options
def run_jobs(
    job: Annotated[str, typer.Argument(help="What to do, such as xz; 'workers' lists the jobs.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", exists=True, dir_okay=False, help="Inputs.")
    ],
    ticket: TicketOption,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where results go.")
    ] = Path(),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files there.")] = False,
    allow: AllowWorkerOption = None,
    patience: Annotated[
        float,
        typer.Option(
            min=1.5, metavar="SECONDS", help="Silence after which a worker counts as dead."
        ),
    ] = 10.0,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long nobody may work for us.")
    ] = 30.0,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="How long a worker may take for a job.")
    ] = 3600.0,
    *,
    options: Options,
) -> None:
    """Have a job done for each file; print the paths of the results as they come."""
    out = Output(json=options.json)

    async def main() -> None:
        from dialkey_workshop.client import Limits
        from dialkey_workshop.commands import run_jobs

        limits = Limits(patience_s=patience, wait_s=wait, attempt_s=timeout)
        await run_jobs(
            out, options, ticket, job, files, output, allow, overwrite=overwrite, limits=limits
        )

    run(out, main)


@endpoint_options
def workers(
    ticket: TicketOption,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long to listen.")
    ] = 2.0,
    expect: Annotated[
        int, typer.Option(min=1, metavar="N", help="Listen no longer than until N are known.")
    ] = 512,
    *,
    options: Options,
) -> None:
    """List who is there: endpoint id, jobs in progress of how many at a time, kinds of jobs."""
    output = Output(json=options.json)

    async def main() -> None:
        from dialkey_workshop.commands import list_workers

        await list_workers(output, options, ticket, wait, expect)

    run(output, main)


def demo(
    files: Annotated[int, typer.Option(min=1, metavar="N", help="How many.")] = 12,
    size: Annotated[int, typer.Option(min=1, metavar="MB", help="Of each.")] = 4,
    json: JsonOption = False,
) -> None:
    """Three workers and a client on this machine; one worker is killed; all results arrive."""
    output = Output(json=json)

    async def main() -> None:
        from dialkey_workshop.demo import demo

        await demo(output, files=files, size_bytes=size * 1_000_000)

    run(output, main)
