"""Where received content goes, as given on a command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import attrs

from dialkey.errors import InvalidInput
from dialkey_blobs.names import show_name

__all__ = ["Target"]


@attrs.frozen
class Target:
    """Where received content goes.

    Attributes:
        path: as it was given.
        kind: a folder that things go into; a name for a single file, or for a folder if there are
            several; or standard output.
    """

    path: Path
    kind: Literal["folder", "name", "stdout"]

    @classmethod
    def parse(cls, text: str) -> Target:
        """Parse the argument: ``-``, a folder that exists or ends in a slash, or else a name."""
        if text == "-":
            return cls(Path(), "stdout")
        path = Path(text)
        ends = (os.sep, os.altsep or os.sep, f"{os.sep}.", f"{os.sep}..")
        if text in ("", ".", "..") or text.endswith(ends) or path.is_dir():
            return cls.folder(path)
        return cls(path, "name")

    @classmethod
    def folder(cls, path: Path) -> Target:
        """Treat a path as a folder, which need not exist yet."""
        return cls(path, "folder")

    @property
    def state_folder(self) -> Path:
        """Where partial content is kept: in the same folder as the result, or above it."""
        return self.path.parent if self.kind == "name" else self.path

    def is_for_one(self, names: Sequence[str]) -> bool:
        """Whether the path is the name of the file itself.

        Raises:
            InvalidInput: there are several files, but only one can go there.
        """
        is_single = len(names) == 1 and "/" not in names[0]
        if self.kind == "stdout" and len(names) != 1:
            raise InvalidInput(
                f"there are {len(names)} files, and standard output takes one",
                hint="give a folder: -o DIR/",
            )
        if self.kind == "name" and not is_single and self._is_file():
            raise InvalidInput(
                f"{show_name(str(self.path))} is a file, and a folder is needed for"
                f" {show_name(names[0])}"
                if names
                else f"{show_name(str(self.path))} is a file, and a folder is needed",
                hint="give a folder: -o DIR/",
            )
        return self.kind == "name" and is_single

    def _is_file(self) -> bool:
        return os.path.lexists(self.path) and not self.path.is_dir()

    def paths(self, names: Sequence[str]) -> list[Path]:
        """Return where files go, by their local names; nothing for standard output.

        Raises:
            InvalidInput: as `is_for_one`.
        """
        if self.is_for_one(names):
            return [self.path]
        if self.kind == "stdout":
            return []
        return [self.path.joinpath(*name.split("/")) for name in names]
