"""Codes such as ``7-amber-violin``: a number that a server gives out, and words that only people know.

Source: docs/wire/rendezvous.md 2.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Final

import attrs

from dialkey_rendezvous.errors import InvalidCode
from dialkey_rendezvous.limits import (
    MAX_CODE_CHARS,
    MAX_NAMEPLATE,
    MAX_WORDS_PER_CODE,
    WORDS_PER_CODE,
)
from dialkey_rendezvous.words import WORDS, sound

__all__ = ["Code", "choose_words", "complete", "looks_like_code"]

_KNOWN: Final = frozenset(WORDS)
_BETWEEN: Final = re.compile(r"[\s.,;:_/+\u00ad\u200b\u2010-\u2015\ufeff-]+")
_BEGINNING: Final = re.compile(r"\s*\d{1,6}(?:$|[\s.,;:_/+\u2010-\u2015-])")
EXAMPLE: Final = "a code is a number and words, such as 7-amber-violin"


@attrs.frozen
class Code:
    """A number that leads to the sender, and words that prove who may have the ticket.

    Attributes:
        nameplate: the number, which the server knows.
        words: the words, which it never hears.
    """

    nameplate: int
    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Code:
        """Read a code as people type it: in capitals or not, with spaces, dots or hyphens between.

        A word that is not in the list cannot be right, so it is found before it burns the code.

        Raises:
            InvalidCode: the text is not a code; the hint says what may be meant.
        """
        if len(text) > MAX_CODE_CHARS:
            raise InvalidCode("this is too long for a code", hint=EXAMPLE)
        number, *words = [part for part in _BETWEEN.split(text.lower()) if part] or [""]
        if not re.fullmatch(r"[0-9]{1,6}", number):
            raise InvalidCode("this is not a code", hint=EXAMPLE)
        nameplate = int(number)
        if not 1 <= nameplate <= MAX_NAMEPLATE:
            raise InvalidCode(f"the number of a code is 1 to {MAX_NAMEPLATE}", hint=EXAMPLE)
        for word in words:
            if word not in _KNOWN:
                raise InvalidCode(f"{word!r} is not a word of codes", hint=_suggest(word))
        if not WORDS_PER_CODE <= len(words) <= MAX_WORDS_PER_CODE:
            raise InvalidCode(f"the code has {_count(len(words))}", hint=EXAMPLE)
        return cls(nameplate, tuple(words))

    def __str__(self) -> str:
        return "-".join([str(self.nameplate), *self.words])


def choose_words(choose: Callable[[int], int], count: int = WORDS_PER_CODE) -> tuple[str, ...]:
    """Choose the words of a new code.

    Args:
        choose: gives a number below its argument that nobody can guess, as `secrets.randbelow`.
        count: how many words.
    """
    return tuple(WORDS[choose(len(WORDS))] for _ in range(count))


def looks_like_code(text: str) -> bool:
    """Say whether a text is meant as a code; no ticket begins with a digit."""
    return _BEGINNING.match(text) is not None


def complete(text: str) -> list[str]:
    """Return the codes to which the beginning of one can be completed by a word.

    The number and the words before the last one stay as they were typed.
    """
    head, hyphen, beginning = text.rpartition("-")
    if not hyphen or not looks_like_code(head):
        return []
    beginning = beginning.lower()
    return [f"{head}-{word}" for word in WORDS if word.startswith(beginning)]


def complete_word(text: str, before: Sequence[str]) -> list[str]:
    """Complete a word of a code that is typed with spaces, after the arguments `before` it."""
    if not before or not looks_like_code(before[0]):
        return []
    return [word for word in WORDS if word.startswith(text.lower())]


def _suggest(word: str) -> str:
    heard = sound(word) if word.isascii() else ""
    alike = [each for each in WORDS if sound(each) == heard]
    alike += [each for each in difflib.get_close_matches(word, WORDS, 2) if each not in alike]
    return f"did you mean {' or '.join(alike[:2])}?" if alike else EXAMPLE


def _count(words: int) -> str:
    return {0: "no words", 1: "only one word"}.get(words, f"{words} words")
