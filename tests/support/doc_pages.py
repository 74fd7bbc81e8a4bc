"""The pages of the documentation, and the examples on them; see `tests/docs/test_examples.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted(
    [*ROOT.glob("README.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("cookbook/**/*.md")]
)
DIRECTIVE: Final = re.compile(r"<!-- example: (run|serve|module|file (\S+)) -->")


@attrs.frozen
class Example:
    how: str
    language: str
    code: str
    line: int


def examples_of(page: Path) -> Iterator[Example]:
    how: str | None = None
    lines = page.read_text(encoding="utf-8").splitlines()
    numbered = iter(enumerate(lines, 1))
    for number, line in numbered:
        if match := DIRECTIVE.fullmatch(line.strip()):
            if match[2]:
                yield Example("file", "", match[2], number)
            else:
                how = match[1]
        elif line.startswith("```"):
            code = []
            for _, inner in numbered:
                if inner.startswith("```"):
                    break
                code.append(inner)
            language = line.removeprefix("```").strip()
            yield Example(how or "", language, "\n".join(code) + "\n", number)
            how = None
