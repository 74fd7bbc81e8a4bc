"""Every section of docs/ that a comment or a docstring names exists.

A citation is the path of a page below docs/ and numbers of its sections, such as "docs/wire/quic.md 3.4
and 3.13" or "docs/wire/blobs.md 1.1 to 1.4", or titles in quotation marks: 'docs/rpc-wire.md, "Calls"'.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
FOLDERS: Final = (
    "benchmarks",
    "cookbook",
    "framework",
    "native/src",
    "plugins",
    "protocols",
    "tests",
)
NUMBER: Final = r"\d+(?:\.\d+)*"
CITATION: Final = re.compile(
    rf"docs/(?P<page>[\w/-]+\.md)"
    rf"(?: (?P<numbers>{NUMBER}(?:(?:,? (?:and|to) |, ){NUMBER}(?![\w.]*/))*)"
    rf'|, (?P<titles>"[^"]+"(?:(?:,? and |, )"[^"]+")*))?'
)
WRAPPED: Final = re.compile(r"\n[ \t]*(?:#|//[/!]?)?[ \t]*")
HEADING: Final = re.compile(rf"^#+ (?:(?P<number>{NUMBER})\.? )?(?P<title>.*)$", re.MULTILINE)
ELSEWHERE: Final = re.compile(
    r"wire " + r"reference|(?<!docs/)\bwire/(?:quic|relay|discovery|blobs|gossip)\.md"
)


def sources() -> Iterator[tuple[Path, str]]:
    for folder in FOLDERS:
        for suffix in ("py", "rs"):
            for file in sorted((ROOT / folder).rglob(f"*.{suffix}")):
                if file != Path(__file__):
                    yield file, WRAPPED.sub(" ", file.read_text(encoding="utf-8"))


def unresolved(text: str) -> list[str]:
    """Return what of a text's citations names nothing."""
    found = []
    for citation in CITATION.finditer(text):
        page = ROOT / "docs" / citation["page"]
        if not page.is_file():
            found.append(citation[0])
            continue
        headings = list(HEADING.finditer(page.read_text(encoding="utf-8")))
        numbers = {heading["number"] for heading in headings}
        titles = {heading["title"] for heading in headings}
        missing = [n for n in re.findall(NUMBER, citation["numbers"] or "") if n not in numbers]
        missing += [t for t in re.findall('"([^"]+)"', citation["titles"] or "") if t not in titles]
        found += [f"docs/{citation['page']}: {what}" for what in missing]
    return found


def test_what_the_code_cites_is_there() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {what}" for file, text in sources() for what in unresolved(text)
    ]
    assert not found, "\n".join(found)


def test_the_references_are_cited_by_the_name_of_a_page() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file, text in sources()
        for match in ELSEWHERE.finditer(text)
    ]
    assert not found, "cite docs/wire/NAME.md and a section\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("docs/wire/quic.md 3.4 and 3.13.", []),
        ("docs/wire/quic.md 3.4, 99.1; RFC 9000", ["docs/wire/quic.md: 99.1"]),
        ("docs/wire/blobs.md 1.1 to 1.99", ["docs/wire/blobs.md: 1.99"]),
        ("docs/wire/nothing.md 1", ["docs/wire/nothing.md 1"]),
        ('docs/rpc-wire.md, "Calls" and "Nothing"', ["docs/rpc-wire.md: Nothing"]),
        ("docs/wire/quic.md, RFC 9002", []),
    ],
)
def test_a_citation_of_nothing_is_found(text: str, missing: list[str]) -> None:
    assert unresolved(text) == missing
