"""Where records are kept. `RecordStore` is the contract; its methods block, and run in threads."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

from dialkey.identity import EndpointId
from dialkey_pkarr.errors import StoreFailed
from dialkey_pkarr.packets import SignedPacket

__all__ = ["MemoryStore", "RecordStore", "SqliteStore"]

T = TypeVar("T")


class RecordStore(Protocol):
    """Keeps the newest record of each key.

    Every method may be called from any thread, and raises `StoreFailed` where the database does not do
    what it is asked. The next call may succeed: a store looks after its connection itself.
    """

    def get(self, id: EndpointId) -> SignedPacket | None:
        """Return the record of a key."""
        ...

    def put(self, packets: Sequence[SignedPacket]) -> list[bool]:
        """Keep those that are newer than what is there; tell of each whether it was.

        When this returns they survive the end of the process, however it comes.
        """
        ...

    def evict(self, before_us: int) -> int:
        """Forget what was signed before a time; return how many that were."""
        ...

    def count(self) -> int:
        """Return how many records there are."""
        ...

    def close(self) -> None:
        """Let go of the database."""
        ...


class MemoryStore:
    """Keeps records until the process ends; for trying out."""

    def __init__(self) -> None:
        self._packets: dict[EndpointId, SignedPacket] = {}
        self._lock = threading.Lock()

    def get(self, id: EndpointId) -> SignedPacket | None:
        return self._packets.get(id)

    def put(self, packets: Sequence[SignedPacket]) -> list[bool]:
        with self._lock:
            return [self._put(packet) for packet in packets]

    def _put(self, packet: SignedPacket) -> bool:
        known = self._packets.get(packet.id)
        if known is not None and not packet.is_newer_than(known):
            return False
        self._packets[packet.id] = packet
        return True

    def evict(self, before_us: int) -> int:
        with self._lock:
            old = [id for id, each in self._packets.items() if each.timestamp_us < before_us]
            for id in old:
                del self._packets[id]
            return len(old)

    def count(self) -> int:
        return len(self._packets)

    def close(self) -> None:
        """Nothing is held."""


_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS records (
    id BLOB PRIMARY KEY, signed_at BLOB NOT NULL, signature BLOB NOT NULL, message BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_signed_at ON records (signed_at);
"""
_PUT: Final = """
INSERT INTO records VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE
SET signed_at = excluded.signed_at, signature = excluded.signature, message = excluded.message
WHERE (excluded.signed_at, excluded.message) > (records.signed_at, records.message)
"""
_BUSY_S: Final = 5.0


def _stamp(timestamp_us: int) -> bytes:
    # Integers of SQLite have a sign; bytes in this order compare as numbers without one.
    return timestamp_us.to_bytes(8, "big")


class SqliteStore:
    """Keeps records in a file of SQLite.

    A file that somebody has moved away is noticed: what would be written to it could not be found again.

    Args:
        path: the file; it and its folder are made when they are missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None

    def get(self, id: EndpointId) -> SignedPacket | None:
        with self._lock:
            rows = self._run(
                lambda db: db.execute(
                    "SELECT signature, signed_at, message FROM records WHERE id = ?", (bytes(id),)
                ).fetchall()
            )
        for signature, signed_at, message in rows:
            return SignedPacket(id, signature, int.from_bytes(signed_at, "big"), message)
        return None

    def put(self, packets: Sequence[SignedPacket]) -> list[bool]:
        def work(db: sqlite3.Connection) -> list[bool]:
            return [
                db.execute(
                    _PUT, (bytes(each.id), _stamp(each.timestamp_us), each.signature, each.message)
                ).rowcount
                > 0
                for each in packets
            ]

        with self._lock:
            return self._run(work, writes=True)

    def evict(self, before_us: int) -> int:
        with self._lock:
            return self._run(
                lambda db: (
                    db.execute(
                        "DELETE FROM records WHERE signed_at < ?", (_stamp(max(0, before_us)),)
                    ).rowcount
                ),
                writes=True,
            )

    def count(self) -> int:
        with self._lock:
            return int(
                self._run(lambda db: db.execute("SELECT count(*) FROM records").fetchall())[0][0]
            )

    def close(self) -> None:
        with self._lock:
            self._let_go()

    def _run(self, work: Callable[[sqlite3.Connection], T], *, writes: bool = False) -> T:
        try:
            connection = self._open()
            if not writes:
                return work(connection)
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result
        except (sqlite3.Error, OSError) as error:
            self._let_go()
            raise StoreFailed(f"the database {self._path} failed: {error}") from None

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            stat = self._path.stat()
            if (stat.st_dev, stat.st_ino) != self._inode:
                raise OSError("the file was replaced")
            return self._connection
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            # A commit waits for the disk: what was accepted survives a loss of power, too.
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_SCHEMA)
            stat = self._path.stat()
        except BaseException:
            connection.close()
            raise
        self._inode = stat.st_dev, stat.st_ino
        self._connection = connection
        return connection

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
