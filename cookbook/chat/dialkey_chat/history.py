"""``dialkey-chat/history/1``: what was written before you came, from somebody who was there.

The asking side opens a stream and sends a msgpack map ``{v, room, known}``: the 32 bytes of the
topic, which only members know, and the ids of the letters that it has. The answer is ``{v,
letters}`` with letters that it lacks, the oldest first, bounded in number and bytes. Letters are
signed by their authors, so the answering side has to be believed in nothing.
"""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, Final

import msgpack  # type: ignore[import-untyped]

from dialkey.errors import ProtocolViolation, WireError
from dialkey_chat.messages import MAX_LETTER_BYTES

if TYPE_CHECKING:
    from dialkey import Connection, DialLimits, Endpoint
    from dialkey.identity import Remote
    from dialkey_chat.room import Room

__all__ = ["ALPN", "History", "ask_history"]

ALPN: Final = "dialkey-chat/history/1"

VERSION: Final = 1
ID_BYTES: Final = 16
MAX_KNOWN: Final = 1_000
MAX_REQUEST_BYTES: Final = 100 + MAX_KNOWN * (ID_BYTES + 2)
MAX_LETTERS: Final = 200
MAX_LETTERS_BYTES: Final = 256 << 10
MAX_ANSWER_BYTES: Final = MAX_LETTERS_BYTES + 100 + MAX_LETTERS * 3
MAX_AT_A_TIME: Final = 16
PATIENCE_S: Final = 10.0
"""For one who asks, until they have read the answer."""


class Code(enum.IntEnum):
    """What the code of a close says."""

    DONE = 0
    BUSY = 0x800
    TOO_SLOW = 0x801
    OTHER_ROOM = 0x802


class History:
    """Answer from a room's memory."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._active = 0

    async def accept(self, connection: Connection) -> None:
        """Serve one connection: one question, one answer."""
        if self._active >= MAX_AT_A_TIME:
            connection.close(Code.BUSY, b"ask somebody else")
            return
        self._active += 1
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._answer(connection)
        except TimeoutError:
            connection.close(Code.TOO_SLOW, b"that took too long")
        finally:
            self._active -= 1

    async def _answer(self, connection: Connection) -> None:
        send, recv = await connection.accept_bi()
        room, known = _read_request(await recv.read_to_end(limit=MAX_REQUEST_BYTES))
        if room != bytes(self._room.topic):
            connection.close(Code.OTHER_ROOM, b"this is another room")
            return
        letters = self._room.recent(known, MAX_LETTERS, MAX_LETTERS_BYTES)
        await send.write(msgpack.packb({"v": VERSION, "letters": letters}), finish=True)
        await connection.closed()


async def ask_history(
    endpoint: Endpoint, remote: Remote, room: Room, limits: DialLimits | None = None
) -> list[bytes]:
    """Ask a peer for letters that `room` does not hold; give them to `Room.merge`.

    It may take as long as the peer likes; set a deadline with `asyncio.timeout`. Where the peer's address
    is hearsay, give the dial `limits`.

    Raises:
        DialError, ConnectionClosedByPeer, ConnectionLost, StreamReset: the peer gives no answer.
        LimitExceeded, WireError: it gives a wrong one.
    """
    known = sorted(room.letter_ids())[:MAX_KNOWN]
    request = {"v": VERSION, "room": bytes(room.topic), "known": known}
    async with await endpoint.connect(remote, ALPN, limits=limits) as connection:
        send, recv = await connection.open_bi()
        await send.write(msgpack.packb(request), finish=True)
        return _read_answer(await recv.read_to_end(limit=MAX_ANSWER_BYTES))


def _read_request(data: bytes) -> tuple[bytes, frozenset[bytes]]:
    plain = _unpacked(data)
    room, known = plain.get("room"), plain.get("known")
    if not isinstance(room, bytes) or len(room) != 32:
        raise ProtocolViolation("the question does not name a room")
    return room, frozenset(_byte_strings(known, MAX_KNOWN, ID_BYTES))


def _read_answer(data: bytes) -> list[bytes]:
    return _byte_strings(_unpacked(data).get("letters"), MAX_LETTERS, MAX_LETTER_BYTES)


def _byte_strings(value: object, max_count: int, max_bytes: int) -> list[bytes]:
    if not isinstance(value, list) or len(value) > max_count:
        raise ProtocolViolation(f"this is not a list of at most {max_count}")
    for each in value:
        if not isinstance(each, bytes) or len(each) > max_bytes:
            raise ProtocolViolation(f"the list holds something other than up to {max_bytes} bytes")
    return value


def _unpacked(data: bytes) -> dict[object, object]:
    try:
        plain = msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError(f"this is not msgpack: {type(error).__name__}") from None
    if not isinstance(plain, dict) or plain.get("v") != VERSION:
        raise ProtocolViolation("this is not a map of a known version")
    return plain
