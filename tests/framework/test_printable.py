"""What strangers say cannot steer a terminal, forge a line of a log, or look like something else."""

from __future__ import annotations

import io
import json
import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey.cli import Output
from dialkey.cli.exits import explain
from dialkey.cli.running import logging_to_stderr
from dialkey.endpoint.closing import to_error
from dialkey.errors import ConnectionClosedByPeer, DialError, InvalidTicket
from dialkey.printable import printable, printable_bytes, printable_traceback
from dialkey.quic.events import CloseReason

EVIL = "\x1b]0;pwned\x07\x9b2K\r\nroot: all is well\u202egnp.exe\u2066\u2028\ud800\x7f"


def test_what_steers_terminals_and_forges_lines_is_escaped() -> None:
    assert printable(EVIL) == (
        r"\x1b]0;pwned\x07\x9b2K\r\nroot: all is well\u202egnp.exe\u2066\u2028\ud800\x7f"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "naïve 日本.txt",
        "C:\\files\\ü",
        "family: \U0001f468\u200d\U0001f469\u200d\U0001f467, heart \u2764\ufe0f",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "می\u200cخواهم",
        "שלום",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_lines_stay_where_lines_are_wanted() -> None:
    assert printable("one\n\ttwo\x1b\r", keep="\n\t") == "one\n\ttwo\\x1b\\r"


def test_long_text_is_cut_off() -> None:
    assert printable("x" * 100, max_chars=10) == "x" * 9 + "…"
    assert printable("x" * 10, max_chars=10) == "x" * 10


def test_bytes_that_are_not_text() -> None:
    assert printable_bytes(b"disk full\x1b[0m \xff\xc3\xa9") == r"disk full\x1b[0m \xffé"


@given(st.text(st.characters(exclude_categories=())))
def test_nothing_dangerous_comes_through(text: str) -> None:
    shown = printable(text)
    shown.encode()  # every output can take it, if it can take Unicode
    for char in shown:
        assert unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(char) not in (
            *("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"),
        )
    assert printable(shown) == shown
    assert len(shown.splitlines()) <= 1


def test_errors_are_fit_to_be_shown_whoever_they_quote() -> None:
    error = DialError(f"it said {EVIL}", hint=f"ask {EVIL}", attempts=[f"192.0.2.1:1: {EVIL}"])
    closed = ConnectionClosedByPeer(f"closed: {EVIL}", error_code=1, reason=EVIL[:-3].encode())
    for shown in (str(error), error.message, error.hint, *error.attempts, str(closed)):
        assert shown is not None
        assert printable(shown, keep="\n") == shown
    assert len(str(error).splitlines()) == 2, "one line for each attempt, and no more"
    assert closed.reason == EVIL[:-3].encode(), "programs get what came"


def test_close_reasons_are_escaped_at_the_border() -> None:
    reason = CloseReason(
        cause="peer", error_code=7, reason=EVIL.encode("utf-8", "replace"), is_application=True
    )
    text = str(to_error(reason, None))
    assert r"\x1b]0;pwned" in text
    assert printable(text) == text


def test_tracebacks_in_a_log_forge_no_record() -> None:
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        text = printable_traceback(error)
    assert all(line.startswith("    ") for line in text.splitlines())
    assert printable(text, keep="\n") == text


def test_output_of_commands_is_clean_in_every_form() -> None:
    for as_json in (False, True):
        out, err = io.StringIO(), io.StringIO()
        output = Output(json=as_json, stdout=out, stderr=err)
        output.result("received", f"{EVIL}", text=EVIL)
        output.remark(EVIL)
        assert len(err.getvalue().splitlines()) == (0 if as_json else 1)
        for shown in (out.getvalue(), err.getvalue()):
            assert printable(shown, keep="\n") == shown
        if as_json:
            assert json.loads(out.getvalue())["text"] == EVIL, "programs get what came"


def test_every_exception_has_one_clean_line() -> None:
    for error in (ValueError(EVIL), OSError(5, EVIL, EVIL), InvalidTicket(EVIL)):
        _, line = explain(error)
        assert printable(line) == line


@pytest.mark.parametrize("debugging", [False, True])
def test_the_log_of_commands_is_clean(
    debugging: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DIALKEY_DEBUG", raising=False)
    if debugging:
        monkeypatch.setenv("DIALKEY_DEBUG", "1")
    with logging_to_stderr():
        logging.getLogger("dialkey.test").error(
            "it said %s", EVIL.replace("\n", " ").replace("\ud800", "")
        )
    shown = capsys.readouterr().err
    assert r"it said \x1b]0;pwned" in shown
    assert printable(shown, keep="\n\t") == shown


def test_a_logged_traceback_is_one_line_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DIALKEY_DEBUG", raising=False)
    try:
        raise ValueError("the cause")
    except ValueError as error:
        with logging_to_stderr():
            logging.getLogger("dialkey.test").error("it failed\n%s", printable_traceback(error))
    assert capsys.readouterr().err == "dialkey: it failed: ValueError: the cause\n"
