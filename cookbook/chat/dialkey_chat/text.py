"""Strangers' text, made fit for a terminal.

A terminal obeys what it is shown: an escape sequence in a nickname could move the cursor, forge the
line of somebody else, or write into the clipboard. So text is cleaned where it is decoded, and the
values that the rest of the app works with hold clean text only.
"""

from __future__ import annotations

import unicodedata
from typing import Final

__all__ = ["MAX_NAME_CHARS", "clean_name", "clean_text"]

MAX_NAME_CHARS: Final = 24
MAX_MARKS: Final = 4
"""Combining marks on one character; more of them paint over the lines above and below."""

_JOINERS: Final = frozenset("\u200c\u200d")
"""Of the invisible characters, these are needed: by Persian, by Indic scripts, and within emoji."""

_SPACES: Final = frozenset({"Zs", "Zl", "Zp"})
_REMOVED: Final = frozenset({"Cc", "Cf", "Cs", "Co"})


def clean_text(text: str, max_chars: int) -> str:
    """Return `text` as one line without control, direction-changing and invisible characters.

    All white space becomes a single space. Takes linear time.

    Args:
        text: whatever came.
        max_chars: what is longer is cut off, and ends in an ellipsis.
    """
    kept: list[str] = []
    marks = 0
    for character in text:
        category = unicodedata.category(character)
        if category in _SPACES or character in "\t\n\r\v\f\x85":
            character = " "
        elif category in _REMOVED and character not in _JOINERS:
            continue
        is_mark = category in ("Mn", "Me")
        marks = marks + 1 if is_mark else 0
        if marks <= MAX_MARKS and not (character == " " and kept[-1:] == [" "]):
            kept.append(character)
    line = "".join(kept).strip()
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"


def clean_name(text: str) -> str:
    """Return a nickname fit to be shown; a nickname of nothing becomes ``guest``."""
    name = clean_text(text, MAX_NAME_CHARS)
    has_letter = any(unicodedata.category(character)[0] in "LNSP" for character in name)
    return name if has_letter else "guest"
