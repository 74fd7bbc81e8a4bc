"""What strangers say cannot steer a terminal, forge a line of a log, or look like something else."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey.printable import printable, printable_bytes

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
