"""Configuration files in TOML: every key is understood, or named in an error."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from dialkey.errors import InvalidInput, InvalidKey
from dialkey.identity import EndpointId

__all__ = ["Table", "read", "root_of"]

T = TypeVar("T")

Address = tuple[str, int]
"""Where to listen: host and port."""

_KINDS: Final = {
    dict: "a table",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number with a fraction",
    bool: "true or false",
}


def _words(kind: type) -> str:
    return _KINDS.get(kind, "a date or time")


class Table:
    """A TOML table that keys are taken from; those left at the end are unknown.

    Each method that takes a key raises the error of the table, which names the key, if its value cannot
    be used, and returns None where there is none.

    Args:
        values: what the table holds.
        error: what is raised.
        name: of the table, for messages; "" for the root.
    """

    def __init__(
        self, values: Mapping[str, object], error: type[InvalidInput], name: str = ""
    ) -> None:
        self._values = dict(values)
        self._error = error
        self._known: list[str] = []
        self._name = name

    def path(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def error(self, key: str, message: str, hint: str | None = None) -> InvalidInput:
        return self._error(f"{self.path(key)}: {message}", hint=hint)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def peek(self, key: str) -> object:
        """Look at a value without taking it."""
        return self._values.get(key)

    def take(self, key: str, kind: type[T]) -> T | None:
        """Take a value of a type, None where it is missing."""
        self._known.append(key)
        value = self._values.pop(key, None)
        if value is None:
            return None
        # TOML's true is not a number, although Python's is.
        wrong_bool = isinstance(value, bool) and kind is not bool
        if wrong_bool or not isinstance(value, kind):
            raise self.error(key, f"is {_words(type(value))}, not {_words(kind)}")
        return value

    def table(self, key: str) -> Table | None:
        """Take a table."""
        values = self.take(key, dict)
        return Table(values, self._error, self.path(key)) if values is not None else None

    def strings(self, key: str) -> list[str] | None:
        """Take a list of texts."""
        values = self.take(key, list)
        if values is not None and not all(isinstance(each, str) for each in values):
            raise self.error(key, "is not a list of texts")
        return values

    def positive(self, key: str) -> int | None:
        """Take a number above 0."""
        value = self.take(key, int)
        if value is not None and value < 1:
            raise self.error(key, "has to be above 0")
        return value

    def number(self, key: str) -> float | None:
        """Take a number with or without fraction."""
        if isinstance(self.peek(key), float):
            return self.take(key, float)
        return self.take(key, int)

    def ids(self, key: str) -> list[EndpointId] | None:
        """Take a list of endpoint ids."""
        texts = self.strings(key)
        if texts is None:
            return None
        try:
            return [EndpointId.parse(text) for text in texts]
        except InvalidKey as error:
            raise self.error(key, error.message, error.hint) from None

    def address(self, key: str, default: Address, hint: str = "write it like [::]:443") -> Address:
        """Take ``host:port``; IPv6 addresses stand in brackets."""
        text = self.take(key, str)
        if text is None:
            return default
        host, colon, port = text.rpartition(":")
        digits = port.isascii() and port.isdigit() and len(port) <= 5
        if not colon or not host or not digits or int(port) > 65_535:
            raise self.error(key, f"{text!r} is not an address", hint)
        return host.strip("[]"), int(port)

    def done(self) -> None:
        """Fail if any keys are left."""
        for key in self._values:
            near = difflib.get_close_matches(key, self._known, n=1)
            raise self.error(
                key, "is unknown", f"did you mean {self.path(near[0])}?" if near else None
            )


def read(path: Path, parse: Callable[[str], T], error: type[InvalidInput]) -> T:
    """Read a file and parse its text; what is raised names the file.

    Raises:
        InvalidInput: of the type given: the file cannot be read, or `parse` raised it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as failure:
        raise error(f"{path} cannot be read: {failure.strerror}") from None
    except UnicodeDecodeError:
        raise error(f"{path} is not UTF-8") from None
    try:
        return parse(text)
    except error as refused:
        raise error(f"{path}: {refused.message}", hint=refused.hint) from None


def root_of(text: str, error: type[InvalidInput]) -> Table:
    """Return the root of a TOML document.

    Raises:
        InvalidInput: of the type given: it is not TOML.
    """
    try:
        return Table(tomllib.loads(text), error)
    except tomllib.TOMLDecodeError as failure:
        raise error(f"the configuration is not TOML: {failure}") from None
