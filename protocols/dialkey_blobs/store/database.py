"""The store's database: what is held where, tags, and the content of small blobs.

One connection, used by one thread. Changes collect in a transaction until `commit`. After any SQLite
error in a change the transaction counts as broken: `commit` then rolls back and raises, so that half a
batch never becomes visible.

SQLite runs with a write-ahead log that is synced at checkpoints only. A killed process loses
nothing that was committed; a power failure may lose the last commits, but never leaves a torn
database. With `durable`, every commit is synced.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

from dialkey.errors import StorageError
from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat
from dialkey_blobs.store.errors import StoreDamaged, database_errors, database_failed
from dialkey_blobs.store.files import FileOps
from dialkey_blobs.store.values import BlobInfo, BlobState, StoreStats, Tag

__all__ = ["Database", "Place", "Reference", "Row"]

_VERSION: Final = 1
# "dkbl": distinguishes our databases from others.
_APPLICATION_ID: Final = 0x646B626C
_SCHEMA: Final = """
CREATE TABLE blobs (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    place INTEGER NOT NULL,
    size INTEGER,
    outboard_inline INTEGER NOT NULL
);
CREATE TABLE inline_data (id INTEGER PRIMARY KEY REFERENCES blobs (id), bytes BLOB NOT NULL);
CREATE TABLE inline_outboards (id INTEGER PRIMARY KEY REFERENCES blobs (id), bytes BLOB NOT NULL);
CREATE TABLE reference_files (
    id INTEGER PRIMARY KEY REFERENCES blobs (id),
    path BLOB NOT NULL,
    modified_ns INTEGER NOT NULL
);
CREATE TABLE tags (
    name BLOB PRIMARY KEY,
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    format INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE state (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
"""

Parameter = int | bytes | str | None


class Place:
    """Where the content of a blob is."""

    PARTIAL: Final = 0
    INLINE: Final = 1
    FILE: Final = 2
    REFERENCE: Final = 3


@attrs.frozen
class Row:
    """One entry.

    Attributes:
        id: the key in the other tables.
        place: one of `Place`.
        size: bytes; None for a partial blob.
        outboard_inline: whether the outboard is in the database; if not, it is a file or, for
            blobs of one group, nowhere.
    """

    id: int
    place: int
    size: int | None
    outboard_inline: bool


@attrs.frozen
class Reference:
    """A file outside the store, as it was when it was imported."""

    path: Path
    modified_ns: int


class Database:
    """See the module.

    Args:
        path: the file, created if it is missing.
        ops: the gateway to the file system, asked to commit.
        durable: whether each commit waits for the disk.

    Raises:
        StoreDamaged: it is not one of our databases, or one of a newer version.
        StorageError: it cannot be opened.

    Attributes:
        path: the file.
        writes: how many changes were made so far.
    """

    def __init__(self, path: Path, ops: FileOps, *, durable: bool = False) -> None:
        self.path = path
        self.writes = 0
        self._ops = ops
        self._error: StorageError | None = None
        try:
            self._connection = sqlite3.connect(path, isolation_level=None)
        except sqlite3.Error as error:
            raise database_failed(path, error) from error
        try:
            with self._errors():
                self._set_up(durable)
        except BaseException:
            self._connection.close()
            raise

    def _set_up(self, durable: bool) -> None:
        connection = self._connection
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if (application, version) != (_APPLICATION_ID, _VERSION) and tables:
            raise StoreDamaged(
                f"{self.path} is not a store of blobs that this version knows",
                hint="a newer version may have written it; use that, or another directory",
            )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        connection.execute("PRAGMA busy_timeout = 2000")
        connection.execute("PRAGMA cache_size = -8192")
        # After a large import the log is truncated again.
        connection.execute("PRAGMA journal_size_limit = 16777216")
        if not tables:
            # One transaction, so that a crash leaves either nothing or everything.
            connection.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {_APPLICATION_ID};"
                f" PRAGMA user_version = {_VERSION}; COMMIT;"
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            failure = database_failed(self.path, error)
            self._error = failure
            raise failure from error

    # --- transactions ---------------------------------------------------------------------------

    def _read(self, sql: str, parameters: Sequence[Parameter] = ()) -> sqlite3.Cursor:
        return self._connection.execute(sql, parameters)

    def _write(self, sql: str, parameters: Sequence[Parameter] = ()) -> sqlite3.Cursor:
        self.writes += 1
        if self._error is not None:
            raise self._error
        with self._errors():
            if not self._connection.in_transaction:
                self._connection.execute("BEGIN IMMEDIATE")
            return self._connection.execute(sql, parameters)

    def commit(self) -> None:
        """Make all changes since the last commit visible and safe.

        Raises:
            StorageError: nothing was changed; everything since the last commit is undone.
        """
        try:
            self.flush()
        finally:
            self._error = None

    def flush(self) -> None:
        """Commit in the middle of a batch; if that fails, the whole batch counts as broken.

        Raises:
            StorageError: everything since the last commit is undone.
        """
        if self._error is None and self._connection.in_transaction:
            try:
                with self._errors():
                    self._ops.commit(self._connection)
            except StorageError:
                pass  # kept, and raised below after the transaction has ended
        if self._error is not None:
            if self._connection.in_transaction:
                with database_errors(self.path):
                    self._connection.execute("ROLLBACK")
            raise self._error

    def close(self) -> None:
        """Close the file; what was not committed is lost."""
        with database_errors(self.path):
            self._connection.close()

    # --- entries --------------------------------------------------------------------------------

    def row(self, hash: Hash) -> Row | None:
        """Return the entry of a blob."""
        with database_errors(self.path):
            found = self._read(
                "SELECT id, place, size, outboard_inline FROM blobs WHERE hash = ?", (hash.digest,)
            ).fetchone()
        return None if found is None else Row(found[0], found[1], found[2], bool(found[3]))

    def rows(self, hashes: Sequence[Hash]) -> dict[Hash, Row]:
        """Return the entries of those blobs that have one; of a few hundred at a time."""
        if not hashes:
            return {}
        with database_errors(self.path):
            return {
                Hash(digest): Row(id, place, size, bool(inline))
                for digest, id, place, size, inline in self._read(
                    "SELECT hash, id, place, size, outboard_inline FROM blobs"
                    f" WHERE hash IN ({','.join('?' * len(hashes))})",
                    [hash.digest for hash in hashes],
                )
            }

    def put(
        self,
        hash: Hash,
        place: int,
        size: int | None = None,
        *,
        data: bytes | None = None,
        outboard: bytes | None = None,
        reference: Reference | None = None,
    ) -> Row:
        """Add an entry, or replace it.

        Args:
            hash: the blob.
            place: where its content is.
            size: bytes, unless it is partial.
            data: its content, for `Place.INLINE`.
            outboard: its outboard, if that goes into the database.
            reference: the file, for `Place.REFERENCE`.
        """
        inline = outboard is not None
        old = self.row(hash)
        if old is None:
            id = self._write(
                "INSERT INTO blobs (hash, place, size, outboard_inline) VALUES (?, ?, ?, ?)",
                (hash.digest, place, size, inline),
            ).lastrowid
            assert id is not None
        else:
            id = old.id
            self._delete_parts(id)
            self._write(
                "UPDATE blobs SET place = ?, size = ?, outboard_inline = ? WHERE id = ?",
                (place, size, inline, id),
            )
        if data is not None:
            self._write("INSERT INTO inline_data (id, bytes) VALUES (?, ?)", (id, data))
        if outboard is not None:
            self._write("INSERT INTO inline_outboards (id, bytes) VALUES (?, ?)", (id, outboard))
        if reference is not None:
            self._write(
                "INSERT INTO reference_files (id, path, modified_ns) VALUES (?, ?, ?)",
                (id, os.fsencode(reference.path), reference.modified_ns),
            )
        return Row(id, place, size, inline)

    def _delete_parts(self, id: int) -> None:
        for table in ("inline_data", "inline_outboards", "reference_files"):
            self._write(f"DELETE FROM {table} WHERE id = ?", (id,))

    def delete(self, row: Row) -> None:
        """Remove an entry."""
        self._delete_parts(row.id)
        self._write("DELETE FROM blobs WHERE id = ?", (row.id,))

    def inline_data(self, row: Row) -> bytes:
        """Return the content of a blob that is in the database."""
        return self._bytes("inline_data", row)

    def inline_outboard(self, row: Row) -> bytes:
        """Return an outboard that is in the database."""
        return self._bytes("inline_outboards", row)

    def _bytes(self, table: str, row: Row) -> bytes:
        with database_errors(self.path):
            found = self._read(f"SELECT bytes FROM {table} WHERE id = ?", (row.id,)).fetchone()
        if found is None:
            raise StoreDamaged(f"{self.path} lacks bytes that it should hold")
        return bytes(found[0])

    def reference(self, row: Row) -> Reference:
        """Return the file of a blob outside the store."""
        with database_errors(self.path):
            found = self._read(
                "SELECT path, modified_ns FROM reference_files WHERE id = ?", (row.id,)
            ).fetchone()
        if found is None:
            raise StoreDamaged(f"{self.path} lacks a path that it should hold")
        return Reference(Path(os.fsdecode(found[0])), found[1])

    def blobs(self) -> list[BlobInfo]:
        """Return all entries, by hash."""
        with database_errors(self.path):
            return [
                BlobInfo(
                    Hash(digest),
                    BlobState.PARTIAL if place == Place.PARTIAL else BlobState.COMPLETE,
                    size,
                    place == Place.REFERENCE,
                )
                for digest, place, size in self._read(
                    "SELECT hash, place, size FROM blobs ORDER BY hash"
                )
            ]

    def entries(self, first_byte: int) -> list[tuple[Hash, Row]]:
        """Return the entries that may have files, of hashes that begin with one byte."""
        end = bytes([first_byte + 1]) if first_byte < 255 else bytes([255]) * 33
        with database_errors(self.path):
            return [
                (Hash(digest), Row(id, place, size, bool(inline)))
                for digest, id, place, size, inline in self._read(
                    "SELECT hash, id, place, size, outboard_inline FROM blobs"
                    " WHERE hash >= ? AND hash < ? AND place != ?",
                    (bytes([first_byte]), end, Place.INLINE),
                )
            ]

    def set_reference(self, row: Row, reference: Reference) -> None:
        """Replace what is known of the file of a blob outside the store."""
        self._write(
            "UPDATE reference_files SET path = ?, modified_ns = ? WHERE id = ?",
            (os.fsencode(reference.path), reference.modified_ns, row.id),
        )

    def stats(self, pins: int) -> StoreStats:
        """Return counts and sizes."""
        with database_errors(self.path):
            groups = {
                place: (count, size or 0)
                for place, count, size in self._read(
                    "SELECT place, count(*), sum(size) FROM blobs GROUP BY place"
                )
            }
            tags = self._read("SELECT count(*) FROM tags").fetchone()[0]
        inline, files, references = (
            groups.get(place, (0, 0)) for place in (Place.INLINE, Place.FILE, Place.REFERENCE)
        )
        return StoreStats(
            complete=inline[0] + files[0] + references[0],
            partial=groups.get(Place.PARTIAL, (0, 0))[0],
            references=references[0],
            complete_bytes=inline[1] + files[1],
            reference_bytes=references[1],
            tags=tags,
            pins=pins,
        )

    # --- tags -----------------------------------------------------------------------------------

    def tag(self, name: bytes) -> HashAndFormat | None:
        """Return what a tag names."""
        with database_errors(self.path):
            found = self._read("SELECT hash, format FROM tags WHERE name = ?", (name,)).fetchone()
        return None if found is None else HashAndFormat(Hash(found[0]), BlobFormat(found[1]))

    def set_tag(self, name: bytes, content: HashAndFormat) -> None:
        """Add a tag, or replace it."""
        self._write(
            "INSERT OR REPLACE INTO tags (name, hash, format) VALUES (?, ?, ?)",
            (name, content.hash.digest, int(content.format)),
        )

    def delete_tags(self, first: bytes, end: bytes | None) -> int:
        """Remove the tags from `first` to before `end` (None: no end); return how many."""
        sql, parameters = _range(first, end)
        return self._write(f"DELETE FROM tags {sql}", parameters).rowcount

    def tags(self, first: bytes, end: bytes | None) -> list[Tag]:
        """Return the tags from `first` to before `end` (None: no end), by name."""
        sql, parameters = _range(first, end)
        with database_errors(self.path):
            return [
                Tag(name, HashAndFormat(Hash(digest), BlobFormat(format)))
                for name, digest, format in self._read(
                    f"SELECT name, hash, format FROM tags {sql} ORDER BY name", parameters
                )
            ]

    # --- state ----------------------------------------------------------------------------------

    def state(self, key: str) -> int | bytes | str | None:
        """Return a value that belongs to the store as a whole."""
        with database_errors(self.path):
            found = self._read("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        if found is None:
            return None
        value = found[0]
        assert value is None or isinstance(value, int | bytes | str)
        return value

    def set_state(self, key: str, value: int | bytes | str) -> None:
        """Set a value that belongs to the store as a whole."""
        self._write("INSERT OR REPLACE INTO state (key, value) VALUES (?, ?)", (key, value))


def _range(first: bytes, end: bytes | None) -> tuple[str, tuple[bytes, ...]]:
    if end is None:
        return "WHERE name >= ?", (first,)
    return "WHERE name >= ? AND name < ?", (first, end)
