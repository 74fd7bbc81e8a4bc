"""Codes instead of tickets, as commands see them: a plugin brings them with `CommandLine.add_codes`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Final, Protocol

import typer

if TYPE_CHECKING:
    from dialkey.cli.options import Options
    from dialkey.cli.output import Output
    from dialkey.endpoint import Endpoint

__all__ = ["NEEDS_RENDEZVOUS", "RENDEZVOUS_VARIABLE", "Ask", "RendezvousOption", "TicketCodes"]

RENDEZVOUS_VARIABLE: Final = "DIALKEY_RENDEZVOUS"
NEEDS_RENDEZVOUS: Final = (
    f"give --rendezvous, or set {RENDEZVOUS_VARIABLE}; 'dialkey rendezvous serve' runs a server"
)
"""The hint where a code has no server."""

RendezvousOption = Annotated[
    str | None,
    typer.Option(
        "--rendezvous",
        metavar="TICKET|ID",
        envvar=RENDEZVOUS_VARIABLE,
        show_envvar=False,
        help="The server where codes meet ('dialkey rendezvous serve' runs one); "
        f"{RENDEZVOUS_VARIABLE} may name it instead.",
    ),
]

Ask = Callable[[str], Awaitable[bool]]
"""Asks whoever sits at the terminal a question, and returns whether they say yes."""


class TicketCodes(Protocol):
    """Lets two people hand over a ticket by saying a number and a few words."""

    def looks_like_code(self, text: str) -> bool:
        """Say whether an argument is meant as a code, and not as a ticket."""

    def complete(self, before: Sequence[str], text: str) -> list[str]:
        """Complete an argument of which `text` has been typed, after the arguments `before` it."""

    def draw(self, output: Output, ticket: str) -> None:
        """Show a ticket as a QR code where a terminal is attached, and if it fits."""

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
        """Offer a ticket by a code, and say what becomes of it; return when somebody has it.

        Args:
            output: where to report.
            options: of the command.
            endpoint: what meets the other side.
            server: what ``--rendezvous`` gave.
            ticket: the ticket.
            command: what is typed on the other machine before the code, such as ``dialkey receive``.
            ask: asks whether the words on both sides are the same; None to hand over without.
        """

    async def take(
        self,
        output: Output,
        options: Options,
        server: str | None,
        code: str,
        *,
        ask: Ask | None,
    ) -> str:
        """Return the text of the ticket to which a code leads; arguments as for `offer`."""
