"""Who is connected to a relay, and the forwarding between them. No I/O.

`Hub` maps endpoint ids to `Peer`s. One id may have several connections: the newest is *active* and
receives; older ones are *inactive*, may still send, and come back in reverse order when newer ones
end. `forward` moves a datagram frame to the queue of the active peer of its destination and marks
that peer as having output; whoever owns the sockets then empties `take_ready`.

Forwarding never decodes: the payload is copied once out of the WebSocket mask and once into the
buffer that is sent. Only what a strict decoder at the other end would choke on is looked at.

Source: docs/wire/relay.md 4.3 and 4.4.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator
from typing import Final, Protocol

from dialkey.limits import (
    MAX_RELAY_CONNECTIONS_PER_ID,
    MAX_RELAY_CONTROL_FRAMES,
    MAX_RELAY_CORRESPONDENTS,
    MAX_RELAY_PAYLOAD_BYTES,
    MAX_RELAY_QUEUES_BYTES,
)
from dialkey.shares import Claim, FairShares
from dialkey_relay.counters import Counters
from dialkey_relay.errors import RelayWireError
from dialkey_relay.frames import (
    HEALTH_TEXTS,
    EndpointGone,
    FrameType,
    Health,
    RelayVersion,
    Status,
    StatusCode,
    encode_server_frame,
)
from dialkey_relay.queues import FairQueue
from dialkey_relay.websocket import binary_header

__all__ = ["Entry", "Hub", "Mesh", "Outlet", "Peer"]

_PLAIN: Final = int(FrameType.CLIENT_TO_RELAY_DATAGRAM)
_BATCH: Final = int(FrameType.CLIENT_TO_RELAY_BATCH)
_PLAIN_HEAD: Final = 34
_BATCH_HEAD: Final = 36
_FORWARD_FROM: Final = 33
"""Behind the type and the destination; type and source replace them."""

FLUSH_FRAMES: Final = 128
"""So many frames for one peer are sent at once, rather than at the end of the read."""

FREE_PART: Final = 1 << 17
"""Of all memory for queues, this part of it (4 KiB) each peer has without an account."""

MAX_SEEN_KEYS: Final = 16_384
"""Endpoint ids remembered to count distinct ones."""


class Outlet(Protocol):
    """What owns the socket of a peer."""

    def flush(self) -> None:
        """Send what the peer has, as far as the socket takes it."""

    def end(self, reason: str) -> None:
        """End the connection once its output has been sent."""


class Mesh(Protocol):
    """Other processes that share our port, and know other clients."""

    def changed(self, entry: Entry | None, key: bytes) -> None:
        """Note that an id has another newest connection now, or none."""

    def is_newer(self, key: bytes, joined_at: int) -> bool:
        """Return whether another process has a newer connection of this id."""

    def forward(self, sender: Peer, message: bytes) -> bool:
        """Pass on a datagram frame for somebody elsewhere; say whether somebody is there."""

    def farewell(self, entry: Entry) -> None:
        """Tell those elsewhere to whom this endpoint has written that it is gone."""

    def is_elsewhere(self, key: bytes) -> bool:
        """Return whether another process has any connection of this id."""


class Peer:
    """One client connection that has proven its key and been admitted.

    Args:
        key: its endpoint id, raw.
        version: the protocol version it speaks.
        outlet: who sends.
        network: where it comes from, to share memory fairly; by itself if None.
    """

    __slots__ = (
        "_claim",
        "_control",
        "_control_count",
        "_ready",
        "active",
        "batch_head",
        "connection_id",
        "entry",
        "joined_at",
        "key",
        "network",
        "outlet",
        "plain_head",
        "queue",
        "version",
    )

    def __init__(
        self,
        key: bytes,
        version: RelayVersion,
        outlet: Outlet,
        connection_id: int = 0,
        network: Hashable = None,
    ) -> None:
        self.key = key
        self.version = version
        self.outlet = outlet
        self.connection_id = connection_id
        self.network = network if network is not None else key
        self.plain_head = bytes((FrameType.RELAY_TO_CLIENT_DATAGRAM,)) + key
        self.batch_head = bytes((FrameType.RELAY_TO_CLIENT_BATCH,)) + key
        self.entry: Entry | None = None
        self.active = False
        self.joined_at = 0
        # Made when first needed: an idle connection should cost little.
        self.queue: FairQueue | None = None
        self._claim: Claim | None = None
        self._control: list[bytes] | None = None
        self._ready = False

    @property
    def has_output(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self._control) or bool(self.queue)


class Entry:
    """All connections of one endpoint id in this process, and with whom it exchanged datagrams.

    Attributes:
        is_overruled: whether another process has a newer connection, which receives instead.
        sent_elsewhere: endpoint ids in other processes that it has written to.
    """

    __slots__ = (
        "active",
        "inactive",
        "is_overruled",
        "key",
        "sent_elsewhere",
        "sent_to",
        "wrote_to_us",
    )

    def __init__(self, key: bytes, active: Peer) -> None:
        self.key = key
        self.active = active
        self.inactive: list[Peer] = []
        self.is_overruled = False
        # Dictionaries for their order: the oldest correspondents are forgotten first.
        self.sent_to: dict[Entry, None] | None = None
        self.wrote_to_us: dict[Entry, None] | None = None
        self.sent_elsewhere: dict[bytes, None] | None = None


class Hub:
    """The registry of one relay process.

    Args:
        max_queued_bytes: bytes waiting for all peers together, shared fairly among the networks that
            they come from: the one for which most waits gives way.

    Attributes:
        mesh: the other processes that share our port, or None.
    """

    def __init__(self, max_queued_bytes: int = MAX_RELAY_QUEUES_BYTES) -> None:
        self.counters = Counters()
        self._entries: dict[bytes, Entry] = {}
        self._ready: list[Peer] = []
        self._seen: dict[bytes, None] = {}
        self._shares: FairShares[Hashable] = FairShares(max_queued_bytes)
        # The queue of a client that keeps up is usually too small to be worth an account.
        self._free_bytes = max_queued_bytes // FREE_PART
        self.queued_bytes = 0
        self.mesh: Mesh | None = None

    # --- registry -------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of endpoint ids that are connected."""
        return len(self._entries)

    def peers(self) -> Iterator[Peer]:
        """Go through all connections, active ones first for each id."""
        for entry in list(self._entries.values()):
            yield entry.active
            yield from list(entry.inactive)

    def peers_of(self, key: bytes) -> list[Peer]:
        """Return the connections of one endpoint id, the active one first."""
        entry = self._entries.get(key)
        return [entry.active, *reversed(entry.inactive)] if entry is not None else []

    def entry_of(self, key: bytes) -> Entry | None:
        """Return what is known of an endpoint id that is connected here."""
        return self._entries.get(key)

    def register(self, peer: Peer) -> None:
        """Let a connection in; it becomes the active one of its id."""
        self.counters.accepts += 1
        self._count_key(peer.key)
        entry = self._entries.get(peer.key)
        peer.active = True
        if entry is None:
            entry = peer.entry = self._entries[peer.key] = Entry(peer.key, peer)
        else:
            self._succeed(entry, peer)
        if self.mesh is not None:
            self.mesh.changed(entry, peer.key)

    def _succeed(self, entry: Entry, peer: Peer) -> None:
        peer.entry = entry
        previous = entry.active
        previous.active = False
        entry.inactive.append(previous)
        entry.active = peer
        self.counters.clients_inactive_added += 1
        if not entry.is_overruled:
            self.tell(previous, StatusCode.SAME_ENDPOINT_ID_CONNECTED)
        entry.is_overruled = False
        if len(entry.inactive) >= MAX_RELAY_CONNECTIONS_PER_ID:
            entry.inactive[0].outlet.end("too many connections with this endpoint id")

    def unregister(self, peer: Peer) -> None:
        """Forget a connection. Idempotent."""
        entry = peer.entry
        if entry is None:
            return
        peer.entry = None
        self.counters.disconnects += 1
        self._discard_queue(peer)
        if peer is not entry.active:
            entry.inactive.remove(peer)
            self.counters.clients_inactive_removed += 1
            return
        if entry.inactive:
            entry.active = entry.inactive.pop()
            entry.active.active = True
            self.counters.clients_inactive_removed += 1
            newest = entry.active.joined_at
            entry.is_overruled = self.mesh is not None and self.mesh.is_newer(peer.key, newest)
            if not entry.is_overruled:
                self.tell(entry.active, StatusCode.HEALTHY)
        else:
            del self._entries[peer.key]
            self._farewell(entry)
        if self.mesh is not None:
            self.mesh.changed(self._entries.get(peer.key), peer.key)

    def reconsider(self, key: bytes) -> None:
        """Check again whether a connection elsewhere is newer than ours."""
        entry = self._entries.get(key)
        if entry is None or self.mesh is None:
            return
        overruled = self.mesh.is_newer(key, entry.active.joined_at)
        if overruled == entry.is_overruled:
            return
        entry.is_overruled = overruled
        self.tell(
            entry.active,
            StatusCode.SAME_ENDPOINT_ID_CONNECTED if overruled else StatusCode.HEALTHY,
        )

    def _discard_queue(self, peer: Peer) -> None:
        if peer.queue is not None:
            self.queued_bytes -= peer.queue.size
            dropped = peer.queue.clear()
            self.counters.send_packets_dropped += dropped
            self.counters.dropped_disconnected += dropped
        if peer._claim is not None:
            peer._claim.release()
            peer._claim = None

    def _farewell(self, entry: Entry) -> None:
        stays = self.mesh is not None and self.mesh.is_elsewhere(entry.key)
        if self.mesh is not None and not stays:
            self.mesh.farewell(entry)
        if entry.sent_to is not None:
            gone = encode_server_frame(EndpointGone(entry.key))
            for other in entry.sent_to:
                if not stays:
                    self.send_control(other.active, gone)
                assert other.wrote_to_us is not None
                del other.wrote_to_us[entry]
        for other in entry.wrote_to_us or ():
            assert other.sent_to is not None
            del other.sent_to[entry]

    def _count_key(self, key: bytes) -> None:
        if key not in self._seen:
            self.counters.unique_client_keys += 1
            self._seen[key] = None
            if len(self._seen) > MAX_SEEN_KEYS:
                del self._seen[next(iter(self._seen))]

    # --- forwarding -----------------------------------------------------------------------------

    def forward(self, sender: Peer, message: bytes) -> None:
        """Pass on a datagram frame (type 4 or 5, written in one byte).

        Raises:
            RelayWireError: the frame is too short for what it should hold, or too long.
        """
        counters = self.counters
        counters.send_packets_recv += 1
        head = _PLAIN_HEAD if message[0] == _PLAIN else _BATCH_HEAD
        content = len(message) - head
        if content < 0:
            raise RelayWireError("a datagram frame ends inside its head")
        counters.bytes_recv += content
        if content == 0 or len(message) > MAX_RELAY_PAYLOAD_BYTES:
            if len(message) > MAX_RELAY_PAYLOAD_BYTES + 1:
                raise RelayWireError("a datagram frame is too long")
            # A strict decoder at the other end would drop its connection because of such a frame.
            self.drop("dropped_unsendable")
            return
        entry = self._entries.get(message[1:_FORWARD_FROM])
        if entry is None or entry.is_overruled:
            if self.mesh is None or not self.mesh.forward(sender, message):
                self.drop("dropped_unknown_destination")
            return
        self._remember(sender, entry)
        self.deliver(sender.key, sender.plain_head, sender.batch_head, entry.active, message)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count dropped frames under the name of a counter, and in all."""
        self.counters.send_packets_dropped += count
        setattr(self.counters, reason, getattr(self.counters, reason) + count)

    def deliver(
        self, source: bytes, plain_head: bytes, batch_head: bytes, peer: Peer, message: bytes
    ) -> None:
        """Queue a datagram frame for `peer`; its length and type have been checked."""
        start = _FORWARD_FROM
        content = len(message) - (_PLAIN_HEAD if message[0] == _PLAIN else _BATCH_HEAD)
        if message[start] > 3:
            message = message[:start] + bytes((message[start] & 3,)) + message[start + 1 :]
        if message[0] == _PLAIN:
            header = binary_header(len(message)) + plain_head
        elif message[start + 1] or message[start + 2]:
            header = binary_header(len(message)) + batch_head
        else:
            # Segments of size 0: not a batch, and no other decoder needs to know that oddity.
            header = binary_header(len(message) - 2) + plain_head + message[start : start + 1]
            start = _BATCH_HEAD
        queue = peer.queue
        if queue is None:
            queue = peer.queue = FairQueue()
        before = queue.size
        if before + content > self._free_bytes and not self._charge(peer, before + content):
            self.drop("dropped_queues_full")
            return
        dropped = queue.push(source, header, message, start, content)
        self.queued_bytes += queue.size - before
        if dropped:
            self.drop("dropped_queue_full", dropped)
        if not peer._ready:
            peer._ready = True
            self._ready.append(peer)
        if queue.frames >= FLUSH_FRAMES:
            # One read can bring thousands of small frames, more than a queue holds.
            peer.outlet.flush()

    def _charge(self, peer: Peer, size: int) -> bool:
        """Take memory for a queue of this size; tell whether there was some."""
        claim = peer._claim
        if claim is None:
            claim = self._shares.claim(peer.network, functools.partial(self._give_way, peer))
            peer._claim = claim
        return size <= claim.amount or claim.take(size - claim.amount)

    def _give_way(self, peer: Peer) -> None:
        """Drop what waits for a peer, because its network holds most while memory is short."""
        peer._claim = None
        if peer.queue is not None:
            self.queued_bytes -= peer.queue.size
            self.drop("dropped_queues_full", peer.queue.clear())

    def _remember(self, sender: Peer, destination: Entry) -> None:
        """Note who must be told when the sender's last connection ends."""
        source = sender.entry
        if source is None:
            return
        sent_to = source.sent_to
        if sent_to is None:
            sent_to = source.sent_to = {}
        elif destination in sent_to:
            return
        wrote = destination.wrote_to_us
        if wrote is None:
            wrote = destination.wrote_to_us = {}
        sent_to[destination] = None
        wrote[source] = None
        if len(sent_to) > MAX_RELAY_CORRESPONDENTS:
            oldest = next(iter(sent_to))
            del sent_to[oldest]
            assert oldest.wrote_to_us is not None
            del oldest.wrote_to_us[source]

    # --- control frames -------------------------------------------------------------------------

    def send_control(self, peer: Peer, message: bytes) -> None:
        """Queue a control frame; it goes out before datagrams."""
        control = peer._control
        if control is None:
            control = peer._control = []
        if len(control) >= MAX_RELAY_CONTROL_FRAMES:
            self.counters.dropped_control += 1
            return
        control.append(binary_header(len(message)) + message)
        if not peer._ready:
            peer._ready = True
            self._ready.append(peer)

    def send_raw(self, peer: Peer, data: bytes) -> None:
        """Queue bytes that are not a relay frame, such as a WebSocket pong; as `send_control`."""
        control = peer._control
        if control is None:
            control = peer._control = []
        if len(control) >= MAX_RELAY_CONTROL_FRAMES:
            self.counters.dropped_control += 1
            return
        control.append(data)
        if not peer._ready:
            peer._ready = True
            self._ready.append(peer)

    def tell(self, peer: Peer, code: StatusCode) -> None:
        """Send a status, in the words of the peer's version."""
        if peer.version is RelayVersion.V2:
            self.send_control(peer, encode_server_frame(Status(code)))
        elif code in HEALTH_TEXTS:
            self.send_control(peer, encode_server_frame(Health(HEALTH_TEXTS[code])))

    # --- output ---------------------------------------------------------------------------------

    def take_ready(self) -> list[Peer]:
        """Return the peers that got output since the last call, each once."""
        ready, self._ready = self._ready, []
        for peer in ready:
            peer._ready = False
        return ready

    def take_output(self, peer: Peer, budget: int, out: list[bytes | memoryview]) -> None:
        """Move what waits for a peer to `out`: control frames, then datagrams up to `budget` bytes.

        More than the budget is moved only by the size of one frame.
        """
        if peer._control:
            out += peer._control
            peer._control = None
        queue = peer.queue
        if queue is None:
            return
        before = queue.size
        moved = queue.pop(budget, out)
        sent = before - queue.size
        self.queued_bytes -= sent
        counters = self.counters
        counters.send_packets_sent += moved
        counters.bytes_sent += sent
        claim = peer._claim
        if claim is not None:
            # It is kept, empty: making one for each burst would cost more than everything else.
            claim.give(claim.amount - queue.size)
        if not queue:
            peer.queue = None
