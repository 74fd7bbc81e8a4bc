"""The entry point: adds ``dialkey chat create`` and ``dialkey chat join``."""

from __future__ import annotations

import contextlib
import signal
import sys
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
    from dialkey_chat.ticket import RoomTicket

NameOption = Annotated[str, typer.Option("--name", help="What to be called.")]
PlainOption = Annotated[
    bool,
    typer.Option(
        "--plain", help="Use lines on stdin and stdout, as when these are not a terminal."
    ),
]
DownloadsOption = Annotated[
    Path, typer.Option("--downloads", metavar="FOLDER", help="Where files go by default.")
]
HeartbeatOption = Annotated[
    float,
    typer.Option(
        "--heartbeat",
        metavar="SECONDS",
        min=0.1,
        max=30.0,
        help="How often to say that we are here; others believe it three times as long.",
    ),
]


@hookimpl
def dialkey_commands(cli: CommandLine) -> None:
    """Add the group ``chat``."""
    group = typer.Typer(
        name="chat", help="A room in the terminal.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command()(create)
    group.command()(join)
    cli.add_typer(group, name="chat")


@endpoint_options(json=False)
def create(
    room: Annotated[str, typer.Option("--room", help="What to call the room.")] = "room",
    name: NameOption = "guest",
    plain: PlainOption = False,
    downloads: DownloadsOption = Path("chat-downloads"),
    heartbeat: HeartbeatOption = 10.0,
    *,
    options: Options,
) -> None:
    """Open a new room and print a ticket to it."""
    from dialkey_chat.ticket import RoomTicket

    place = RoomTicket.create(room)
    output = Output()
    run(output, lambda: _chat(output, options, place, name, downloads, heartbeat, plain))


@endpoint_options(json=False)
def join(
    ticket: Annotated[str, typer.Argument(help="The ticket that 'create', or /ticket, shows.")],
    name: NameOption = "guest",
    plain: PlainOption = False,
    downloads: DownloadsOption = Path("chat-downloads"),
    heartbeat: HeartbeatOption = 10.0,
    *,
    options: Options,
) -> None:
    """Join a room."""
    from dialkey_chat.ticket import RoomTicket

    output = Output()
    with guard(output):
        place = RoomTicket.parse(ticket)
    run(output, lambda: _chat(output, options, place, name, downloads, heartbeat, plain))


async def _chat(
    output: Output,
    options: Options,
    place: RoomTicket,
    name: str,
    downloads: Path,
    heartbeat_s: float,
    is_plain: bool,
) -> None:
    from dialkey_chat.commands import label
    from dialkey_chat.session import Settings, open_chat

    _leave_with_the_terminal()
    settings = Settings(name=name, downloads=downloads, heartbeat_s=heartbeat_s)
    async with options.open_endpoint() as endpoint:
        await options.until_online(endpoint, output)
        async with open_chat(endpoint, place, settings) as chat:
            if not place.peers:
                # Stays on the terminal, above the screen of the room.
                output.result("ready", str(chat.ticket()))
            chat.remark(f"you are {label(chat.name, chat.id)} in {chat.room.name}; /help helps")
            if not place.peers:
                chat.remark("others come in with: dialkey chat join TICKET")
                chat.remark("/ticket shows the ticket and copies it, if the terminal allows")
            if is_plain or not (sys.stdin.isatty() and sys.stdout.isatty()):
                from dialkey_chat.plain import run_plain

                await run_plain(chat)
            else:
                from dialkey_chat.ui import run_ui

                await run_ui(chat)


def _leave_with_the_terminal() -> None:
    """Say goodbye also when the window is closed."""
    import asyncio

    with contextlib.suppress(NotImplementedError):  # event loops of Windows
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGHUP, signal.raise_signal, signal.SIGTERM
        )
