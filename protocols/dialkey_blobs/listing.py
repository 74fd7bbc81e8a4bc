"""Lists of files as the commands show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dialkey import PathInfo
from dialkey.cli import Output, format_bytes
from dialkey.printable import printable
from dialkey_blobs.blobs import Entry
from dialkey_blobs.names import Renamed, show_name

__all__ = [
    "LISTED_NAMES",
    "files_in_words",
    "path_in_words",
    "renamed_fields",
    "show_entries",
    "show_renamed",
    "show_some",
]

LISTED_NAMES: Final = 20
"""How many names of a collection are shown; a screen has a few more lines than that."""


def files_in_words(entries: Sequence[Entry]) -> str:
    """Return how many files there are and how large: ``3 files, 1.5 MB``."""
    total = format_bytes(sum(entry.size for entry in entries))
    return f"{'1 file' if len(entries) == 1 else f'{len(entries)} files'}, {total}"


def path_in_words(path: PathInfo) -> str:
    """Report over which path bytes travel."""
    return f"{path.kind} {path.remote}"


def show_entries(output: Output, verb: str, entries: Sequence[Entry]) -> None:
    """Show names and sizes; names are strangers' text."""
    output.remark(f"{verb} {files_in_words(entries)}:")
    show_some(
        output, [f"  {format_bytes(each.size):>9}  {printable(each.name)}" for each in entries]
    )


def show_some(output: Output, lines: Sequence[str]) -> None:
    """Show the first lines, and how many there are besides."""
    for line in lines[:LISTED_NAMES]:
        output.remark(line)
    if len(lines) > LISTED_NAMES:
        output.remark(f"  … and {len(lines) - LISTED_NAMES} more")


def show_renamed(output: Output, verb: str, renamed: Sequence[Renamed]) -> None:
    """Show how names are changed that a system cannot hold."""
    show_some(
        output,
        [
            f"{show_name(each.name)} {verb} {show_name(each.local_name)}: {printable(each.reason)}"
            for each in renamed
        ],
    )


def renamed_fields(renamed: Sequence[Renamed]) -> list[dict[str, str]]:
    """Return the same for programs."""
    return [
        {"name": each.name, "becomes": each.local_name, "reason": each.reason} for each in renamed
    ]
