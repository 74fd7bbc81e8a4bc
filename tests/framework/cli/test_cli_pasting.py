"""Tickets on the command line as people paste them, and pages of help."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from dialkey.cli import build, read_ticket
from dialkey.cli.app import main
from dialkey.errors import InvalidTicket
from dialkey.identity import EndpointAddr, EndpointTicket, IpAddr, SecretKey
from dialkey.limits import MAX_PASTED_TICKET_CHARS

TICKET = EndpointTicket(EndpointAddr(SecretKey(bytes(32)).id, (IpAddr.parse("127.0.0.1:4433"),)))
TEXT = str(TICKET)


def inspect(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["ticket", "inspect", *argv])
    code = ended.value.code
    assert isinstance(code, int)
    return code


@pytest.mark.parametrize(
    "argv",
    [[TEXT.upper()], [f"{TEXT[:30]}\n  {TEXT[30:]}"], [TEXT[:30], TEXT[30:60], TEXT[60:]]],
    ids=["capitals", "one argument with a line break", "several arguments"],
)
def test_a_pasted_ticket_is_read(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(*argv) == 0
    assert str(TICKET.addr.id) in capsys.readouterr().out


class Slow(io.StringIO):
    """Standard input of which nothing more comes after the text that is there."""

    is_terminal = False

    def isatty(self) -> bool:
        return self.is_terminal

    def readline(self, size: int | None = -1, /) -> str:
        line = super().readline(-1 if size is None else size)
        assert line, "it waits although the ticket is complete"
        return line


@pytest.mark.parametrize(
    "text",
    [f"{TEXT}\n", f"{TEXT[:30]}\n{TEXT[30:70]}\r\n{TEXT[70:]}\n", f"\n\n  {TEXT.upper()}  \n"],
)
def test_standard_input_need_not_end(text: str) -> None:
    assert read_ticket(["-"], EndpointTicket.parse, stdin=Slow(text)) == TICKET


def test_an_empty_line_on_a_terminal_is_the_end() -> None:
    typed = Slow(f"{TEXT[:30]}\n\n")
    typed.is_terminal = True
    with pytest.raises(InvalidTicket):
        read_ticket(["-"], EndpointTicket.parse, stdin=typed)


def test_standard_input_without_a_ticket() -> None:
    with pytest.raises(InvalidTicket, match="no ticket"):
        read_ticket(["-"], EndpointTicket.parse, stdin=io.StringIO())
    with pytest.raises(InvalidTicket):
        read_ticket(["-"], EndpointTicket.parse, stdin=io.StringIO("hello\n"))


def test_a_flood_on_standard_input_ends() -> None:
    class Flood(io.StringIO):
        given = 0

        def readline(self, size: int | None = -1, /) -> str:
            assert size is not None
            line = "endpoint" + "aé" * 2044
            self.given += len(line[:size])
            return line[:size]

    flood = Flood()
    with pytest.raises(InvalidTicket):
        read_ticket(["-"], EndpointTicket.parse, stdin=flood)
    assert flood.given <= MAX_PASTED_TICKET_CHARS


# --- help -----------------------------------------------------------------------------------------


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


ALL = sorted(commands(typer.main.get_command(build())))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_is_for_people(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    pages = []
    for option in ("-h", "--help"):
        with pytest.raises(SystemExit) as ended:
            main([*path, option])
        assert ended.value.code == 0
        pages.append(capsys.readouterr().out)
    assert pages[0] == pages[1]
    assert "<" not in pages[0], "a Python type is not what an argument is called"
