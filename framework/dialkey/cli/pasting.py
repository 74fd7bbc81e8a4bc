"""Tickets as people hand them to a command: in one word, in pieces, or on standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TextIO, TypeVar

from dialkey.errors import InvalidTicket
from dialkey.limits import MAX_PASTED_TICKET_CHARS

__all__ = ["read_ticket"]

T = TypeVar("T")


def read_ticket(
    words: Sequence[str], parse: Callable[[str], T], *, stdin: TextIO | None = None
) -> T:
    """Parse the ticket that a command was given.

    Args:
        words: the arguments. A ticket that was pasted with line breaks or spaces comes in several.
            A single "-" reads standard input: line by line until there is a whole ticket, so that
            whoever writes it need not close the pipe, and a wrapped one can be pasted.
        parse: makes the ticket; what it returns is returned.
        stdin: where to read, if not from the process's standard input.

    Raises:
        InvalidTicket: it is not a ticket. Whatever else `parse` raises passes, too.
    """
    if list(words) != ["-"]:
        return parse("".join(words))
    return _read_lines(stdin or sys.stdin, parse)


def _read_lines(stdin: TextIO, parse: Callable[[str], T]) -> T:
    text = ""
    error = InvalidTicket(
        "standard input has no ticket", hint="pipe or paste a ticket, or give it as an argument"
    )
    while len(text) < MAX_PASTED_TICKET_CHARS:
        line = stdin.readline(MAX_PASTED_TICKET_CHARS - len(text))
        # On a terminal an empty line says that this is all.
        if not line or (text and stdin.isatty() and not line.strip()):
            break
        text += line
        try:
            return parse(text)
        except InvalidTicket as incomplete:
            error = incomplete
    raise error
