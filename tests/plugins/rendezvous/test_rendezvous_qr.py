"""QR codes of tickets, for terminals."""

from __future__ import annotations

import importlib.util
import io

import pytest

from dialkey.cli import Output
from dialkey_rendezvous.cli import Codes
from dialkey_rendezvous.qr import qr_code


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, *, json: bool = False) -> str:
    Codes().draw(Output(json=json, stderr=stream), "blobabc")
    return stream.getvalue()


def test_only_a_terminal_that_can_shows_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "40")
    assert "█" in shown(Terminal())
    assert shown(io.StringIO()) == shown(Terminal(), json=True) == ""
    monkeypatch.setenv("COLUMNS", "20")
    assert shown(Terminal()) == "The ticket is too long for a QR code in this window.\n"


def test_without_the_extra_there_is_none_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asked for it: ``dialkey send`` works at a terminal as before."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "segno" else find(name)
    )
    assert shown(Terminal()) == ""


def test_a_ticket_fits_a_usual_terminal() -> None:
    drawn = qr_code("BLOB" + "A2C4" * 50, columns=80, lines=40)
    assert drawn is not None
    lines = drawn.splitlines()
    assert {len(line) for line in lines} == {len(lines[0])}
    assert set(drawn) <= set(" █▀▄\n")
    # Where the three squares are is how cameras find one: a light line around a dark border.
    assert lines[1].strip("█").startswith(" ▄▄▄▄▄ ")


def test_what_does_not_fit_is_not_drawn() -> None:
    text = "BLOB" + "A2C4" * 50
    assert qr_code(text, columns=40, lines=40) is None
    assert qr_code(text, columns=80, lines=10) is None
    assert qr_code("A" * 8192, columns=10_000, lines=10_000) is None
