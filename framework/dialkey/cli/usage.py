"""Pages of help for people: what an argument is called, without the Python type behind it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["without_types"]

_TYPE: Final = re.compile(r" <[^<>]*>$")


def without_types(command: object) -> None:
    """Take the types, such as ``<list[Path]>``, out of the help of a command and all below it.

    Some releases of typer print them beside the name that we gave an argument, and have no setting
    for that.
    """
    for each in _all_below(command):
        for parameter in getattr(each, "params", ()):
            if getattr(parameter, "metavar", None) and parameter.param_type_name == "argument":
                parameter.get_help_record = _plain(parameter.get_help_record)


def _all_below(command: object) -> Iterator[object]:
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from _all_below(below)


_Record = tuple[str, str] | None


def _plain(record_of: Callable[..., _Record]) -> Callable[..., _Record]:
    def record(*args: object, **kwargs: object) -> _Record:
        found = record_of(*args, **kwargs)
        return found and (_TYPE.sub("", found[0]), found[1])

    return record
