"""Files that are removed when a transaction is committed, or when it is undone.

A file must not be removed before the entry that no longer refers to it is committed; and what was put in
place for an entry that could not be committed must be removed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dialkey_blobs.hash import Hash
from dialkey_blobs.store.errors import FileFailed
from dialkey_blobs.store.files import FileOps, discard

__all__ = ["Leftovers"]

_log: Final = logging.getLogger("dialkey.blobs.store")


class Leftovers:
    """See the module.

    Attributes:
        is_tidy: whether everything that should be gone is. If not, the next opening cleans up.
    """

    def __init__(self, ops: FileOps) -> None:
        self.is_tidy = True
        self._ops = ops
        self._doomed: dict[Hash, frozenset[Path]] = {}
        self._created: list[Path] = []

    def doom(self, hash: Hash, paths: Iterable[Path]) -> None:
        """Remove files of a blob at the commit; replaces earlier orders for that blob."""
        self._doomed[hash] = frozenset(paths)

    def is_doomed(self, hash: Hash) -> bool:
        """Return whether files of a blob are to be removed at the commit."""
        return hash in self._doomed

    def created(self, paths: Iterable[Path]) -> None:
        """Remove files if the transaction is undone."""
        self._created += paths

    def committed(self) -> None:
        """Remove what was to go with the transaction."""
        self._created.clear()
        doomed, self._doomed = self._doomed, {}
        for paths in doomed.values():
            self.discard(sorted(paths))

    def undone(self) -> None:
        """Remove what was made for the transaction."""
        self._doomed.clear()
        created, self._created = self._created, []
        self.discard(created)

    def discard(self, paths: Iterable[Path]) -> None:
        """Remove files now, as far as the system lets us."""
        for path in paths:
            try:
                discard(self._ops, path)
            except FileFailed as error:
                # It takes up space and does no other harm.
                self.is_tidy = False
                _log.warning("%s", error)
