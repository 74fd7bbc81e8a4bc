"""Several relay processes behind one port: who is connected where, and datagrams between them. No I/O.

The kernel spreads connections over the processes. Each tells the others, for every endpoint id, when
its newest connection was made; so all agree which connection of an id receives (the newest of all),
and where to pass a datagram on.

Between each two processes runs one stream of messages: type, length (u32, big endian), body.

====  ========  ====================================================================================
type  name      body
====  ========  ====================================================================================
1     NEWEST    endpoint id 32, time of its newest connection there u64 (0: none left)
2     FORWARD   source 32, then a datagram frame as its client sent it
3     GONE      endpoint id that left 32, endpoint id to be told 32
4     ASK       u32 that comes back with the answer
5     TELL      the u32, then whatever was asked for
====  ========  ====================================================================================

All processes are children of one parent and read the same clock; nobody else can reach the streams.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, Protocol

from dialkey.limits import MAX_RELAY_CORRESPONDENTS
from dialkey_relay.errors import RelayWireError
from dialkey_relay.frames import EndpointGone, FrameType, encode_server_frame
from dialkey_relay.hub import Entry, Hub, Peer

__all__ = ["MeshStream", "ProcessMesh", "Sibling"]

NEWEST: Final = 1
FORWARD: Final = 2
GONE: Final = 3
ASK: Final = 4
TELL: Final = 5

HEAD: Final = struct.Struct(">BI")
KEY_BYTES: Final = 32
MAX_MESSAGE: Final = 1 << 20


class Sibling(Protocol):
    """The stream to another process."""

    def send(self, data: bytes) -> bool:
        """Send; return whether there was room. There is always room for small messages."""


def encode(kind: int, body: bytes) -> bytes:
    """Encode one message."""
    return HEAD.pack(kind, len(body)) + body


class MeshStream:
    """Cuts the stream from a sibling into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> list[tuple[int, bytes]]:
        """Take the next bytes; return the messages that are complete.

        Raises:
            RelayWireError: a length is impossible; the processes are of different versions.
        """
        self._buffer += data
        messages: list[tuple[int, bytes]] = []
        at = 0
        while len(self._buffer) - at >= HEAD.size:
            kind, length = HEAD.unpack_from(self._buffer, at)
            if length > MAX_MESSAGE:
                raise RelayWireError(f"a message between processes has {length} bytes")
            end = at + HEAD.size + length
            if end > len(self._buffer):
                break
            messages.append((kind, bytes(self._buffer[at + HEAD.size : end])))
            at = end
        del self._buffer[:at]
        return messages


class ProcessMesh:
    """One process's view of the others.

    Args:
        hub: the registry of this process.
        clock: nanoseconds, the same in all processes; never twice the same here.
    """

    def __init__(self, hub: Hub, clock: Callable[[], int]) -> None:
        self._hub = hub
        self._clock = clock
        self._last = 0
        self._siblings: dict[int, Sibling] = {}
        self._elsewhere: dict[bytes, dict[int, int]] = {}
        self._heads: dict[bytes, tuple[bytes, bytes]] = {}
        self.on_ask: Callable[[], bytes] = bytes
        self.on_tell: Callable[[int, int, bytes], None] | None = None
        hub.mesh = self

    def add(self, number: int, sibling: Sibling) -> None:
        """Start talking to another process."""
        self._siblings[number] = sibling
        for peer in self._hub.peers():
            if peer.active:
                sibling.send(encode(NEWEST, _newest(peer.key, peer.joined_at)))

    def remove(self, number: int) -> None:
        """Forget another process and all its clients."""
        self._siblings.pop(number, None)
        for key, where in list(self._elsewhere.items()):
            if where.pop(number, None) is not None:
                if not where:
                    del self._elsewhere[key]
                self._hub.reconsider(key)

    @property
    def siblings(self) -> list[int]:
        """The other processes."""
        return sorted(self._siblings)

    # --- what the hub asks and tells ------------------------------------------------------------

    def changed(self, entry: Entry | None, key: bytes) -> None:
        """Tell the others when our newest connection of an id was made."""
        joined_at = 0
        if entry is not None:
            peer = entry.active
            if peer.joined_at == 0:
                # Never twice the same number, so that two connections are never equally new.
                self._last = max(self._clock(), self._last + 1)
                peer.joined_at = self._last
            joined_at = peer.joined_at
        message = encode(NEWEST, _newest(key, joined_at))
        for sibling in self._siblings.values():
            sibling.send(message)

    def is_newer(self, key: bytes, joined_at: int) -> bool:
        """Return whether another process has a newer connection of this id."""
        where = self._elsewhere.get(key)
        return where is not None and max(where.values()) > joined_at

    def is_elsewhere(self, key: bytes) -> bool:
        """Return whether another process has any connection of this id."""
        return key in self._elsewhere

    def _sibling_of(self, key: bytes) -> Sibling | None:
        where = self._elsewhere.get(key)
        if where is None:
            return None
        return self._siblings.get(max(where, key=lambda number: where[number]))

    def forward(self, sender: Peer, message: bytes) -> bool:
        """Pass on a datagram frame for somebody elsewhere; say whether somebody is there."""
        key = message[1 : 1 + KEY_BYTES]
        sibling = self._sibling_of(key)
        if sibling is None:
            return False
        head = HEAD.pack(FORWARD, KEY_BYTES + len(message)) + sender.key
        if not sibling.send(head + message):
            self._hub.drop("dropped_queue_full")
        elif sender.entry is not None:
            self._remember(sender.entry, key)
        return True

    def _remember(self, entry: Entry, key: bytes) -> None:
        sent = entry.sent_elsewhere
        if sent is None:
            sent = entry.sent_elsewhere = {}
        sent[key] = None
        if len(sent) > MAX_RELAY_CORRESPONDENTS:
            del sent[next(iter(sent))]

    def farewell(self, entry: Entry) -> None:
        """Tell those elsewhere to whom this endpoint has written that it is gone."""
        for key in entry.sent_elsewhere or ():
            sibling = self._sibling_of(key)
            if sibling is not None:
                sibling.send(encode(GONE, entry.key + key))

    # --- what other processes say ---------------------------------------------------------------

    def receive(self, number: int, kind: int, body: bytes) -> None:
        """Take a message from another process.

        Raises:
            RelayWireError: it is malformed.
        """
        if kind == FORWARD and len(body) > KEY_BYTES + 1 + KEY_BYTES:
            self._deliver(body)
        elif kind == NEWEST and len(body) == KEY_BYTES + 8:
            self._note(number, body[:KEY_BYTES], int.from_bytes(body[KEY_BYTES:], "big"))
        elif kind == GONE and len(body) == 2 * KEY_BYTES:
            entry = self._hub.entry_of(body[KEY_BYTES:])
            if entry is not None:
                gone = encode_server_frame(EndpointGone(body[:KEY_BYTES]))
                self._hub.send_control(entry.active, gone)
        elif kind == ASK and len(body) == 4:
            self._siblings[number].send(encode(TELL, body + self.on_ask()))
        elif kind == TELL and len(body) >= 4:
            if self.on_tell is not None:
                self.on_tell(number, int.from_bytes(body[:4], "big"), body[4:])
        else:
            raise RelayWireError(f"a message between processes has type {kind}")

    def ask(self, number: int, question: int) -> None:
        """Ask another process; `on_tell` gets the answer with the question's number."""
        self._siblings[number].send(encode(ASK, question.to_bytes(4, "big")))

    def _note(self, number: int, key: bytes, joined_at: int) -> None:
        where = self._elsewhere.get(key)
        if joined_at:
            if where is None:
                where = self._elsewhere[key] = {}
            where[number] = joined_at
        elif where is not None:
            where.pop(number, None)
            if not where:
                del self._elsewhere[key]
                self._heads.pop(key, None)
        self._hub.reconsider(key)

    def _deliver(self, body: bytes) -> None:
        source, message = body[:KEY_BYTES], body[KEY_BYTES:]
        entry = self._hub.entry_of(message[1 : 1 + KEY_BYTES])
        if entry is None:
            self._hub.drop("dropped_unknown_destination")
            return
        heads = self._heads.get(source)
        if heads is None:
            heads = (
                bytes((FrameType.RELAY_TO_CLIENT_DATAGRAM,)) + source,
                bytes((FrameType.RELAY_TO_CLIENT_BATCH,)) + source,
            )
            if source in self._elsewhere:
                self._heads[source] = heads
        self._hub.deliver(source, *heads, entry.active, message)


def _newest(key: bytes, joined_at: int) -> bytes:
    return key + joined_at.to_bytes(8, "big")
