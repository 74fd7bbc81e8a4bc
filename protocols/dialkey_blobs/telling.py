"""How a ticket gets to the other side: as a command to paste, a QR code, or a code to say aloud."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dialkey import presets
from dialkey.cli import NEEDS_RENDEZVOUS, Ask, Options, Output, TicketCodes, read_ticket
from dialkey.errors import InvalidInput, InvalidTicket
from dialkey_blobs.stdin import can_ask, confirm
from dialkey_blobs.ticket import BlobTicket

if TYPE_CHECKING:
    from dialkey import Endpoint

__all__ = ["Heard", "Telling"]


class Telling:
    """How ``dialkey send`` tells its ticket.

    Args:
        codes: what hands over tickets by codes, if a plugin brings it.
        by_code: whether to do so.
        server: where codes meet.
        verify: whether words are compared first.
        draws: whether the ticket is shown as a QR code, too.
    """

    def __init__(
        self,
        codes: TicketCodes | None,
        *,
        by_code: bool = False,
        server: str | None = None,
        verify: bool = False,
        draws: bool = False,
    ) -> None:
        self._codes = codes
        self._by_code = by_code
        self._server = server
        self._verify = verify
        self._draws = draws

    def check(self, output: Output) -> None:
        """Say early what cannot be done.

        Raises:
            InvalidInput: options contradict each other, or something is missing.
        """
        if not self._by_code:
            if self._verify:
                raise InvalidInput("--verify was given without --code")
            return
        _need(self._codes)
        if not self._server:
            raise InvalidInput(
                "--code needs a rendezvous server",
                hint=NEEDS_RENDEZVOUS,
            )
        _question(output, self._verify)

    def show(self, output: Output, options: Options, ticket: str) -> None:
        """Show the command to paste on the other machine, and the ticket as a QR code."""
        output.remark(f"On the other machine: {_command(options)} {ticket}")
        if self._draws and self._codes is not None:
            self._codes.draw(output, ticket)

    async def offer_code(
        self, output: Output, options: Options, endpoint: Endpoint, ticket: str
    ) -> None:
        """Offer the ticket by a code, if that is wanted, until somebody has it."""
        if not self._by_code:
            return
        await _need(self._codes).offer(
            output,
            options,
            endpoint,
            self._server,
            ticket,
            _command(options),
            ask=_question(output, self._verify),
        )


class Heard:
    """How ``dialkey receive`` gets its ticket.

    Args:
        codes: what takes tickets by codes, if a plugin brings it.
        server: where codes meet.
        verify: whether words are compared first.
    """

    def __init__(self, codes: TicketCodes | None, *, server: str | None, verify: bool) -> None:
        self._codes = codes
        self._server = server
        self._verify = verify

    @asynccontextmanager
    async def ticket(
        self, output: Output, options: Options, words: Sequence[str], folder: Path
    ) -> AsyncIterator[BlobTicket]:
        """Get the ticket that was given, or to which a code leads.

        A code is good once, and a transfer may be interrupted. So the ticket is kept in `folder` until
        the block ends without an exception, and the same command goes on from there.

        Raises:
            InvalidTicket: it is neither, or what the code led to is not a ticket.
            InvalidInput: something is missing.
            DialkeyError: what `TicketCodes.take` raises.
        """
        code, ticket = self._read(words)
        if code is None:
            if self._verify:
                raise InvalidInput("--verify compares words of a code, and this is a ticket")
            assert ticket is not None
            yield ticket
            return
        codes = _need(self._codes)
        ask = _question(output, self._verify)
        kept = folder / f".dialkey-code-{_name_of(code)}"
        text = _read_kept(kept)
        if text is None:
            text = await codes.take(output, options, self._server, code, ask=ask)
        try:
            ticket = BlobTicket.parse(text)
        except InvalidTicket as error:
            raise InvalidTicket(
                f"the other side handed over something else than files: {error.message}"
            ) from error
        is_kept = _keep(kept, text)
        if not is_kept:
            output.remark(f"After an interruption, go on with: {_command(options)} {text}")
        yield ticket
        if is_kept:
            kept.unlink(missing_ok=True)

    def _read(self, words: Sequence[str]) -> tuple[str | None, BlobTicket | None]:
        """Return the code that was given, or else the ticket."""
        # A ticket in pieces is joined without spaces, and the words of a code with them.
        if self._is_code(text := " ".join(words)):
            return text, None
        return read_ticket(
            words,
            lambda text: (text, None) if self._is_code(text) else (None, BlobTicket.parse(text)),
        )

    def _is_code(self, text: str) -> bool:
        return self._codes is not None and self._codes.looks_like_code(text)


def _need(codes: TicketCodes | None) -> TicketCodes:
    if codes is None:
        raise InvalidInput("codes need the plugin 'rendezvous', which is not installed")
    return codes


def _question(output: Output, verify: bool) -> Ask | None:
    if not verify:
        return None
    if not can_ask(output):
        raise InvalidInput("--verify asks somebody at a terminal, and there is none")

    async def ask(text: str) -> bool:
        return await confirm(output, text)

    return ask


def _command(options: Options) -> str:
    """Return what is typed on the other machine before a ticket or code."""
    if options.preset is not None:
        return f"dialkey receive --preset {options.preset}"
    # The environment of this machine says nothing on the other one.
    services = options.services or os.environ.get("DIALKEY_SERVICES")
    if services:
        return f"dialkey receive --services {shlex.quote(services)}"
    if options.chosen_preset() is presets.local:
        # The ticket names no address, and nobody else knows one.
        return "dialkey receive --preset local"
    return "dialkey receive"


def _name_of(code: str) -> str:
    """Return a name for a code that does not say it, whatever way it is typed."""
    plain = "".join(each if each.isalnum() else " " for each in code.lower())
    return hashlib.sha256(" ".join(plain.split()).encode()).hexdigest()[:16]


def _read_kept(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None


def _keep(path: Path, text: str) -> bool:
    """Write a ticket where only its owner can read it; say whether that could be done."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        early = path.with_name(f"{path.name}.new")
        early.unlink(missing_ok=True)
        descriptor = os.open(early, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
        early.rename(path)
        return True
    return False
