"""QR codes of tickets, for terminals."""

from __future__ import annotations

from dialkey_rendezvous.qr import qr_code


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
