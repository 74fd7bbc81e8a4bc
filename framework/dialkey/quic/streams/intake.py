"""What is received on all streams of a connection together: the limit, and how much of it is held.

Sources: RFC 9000 section 4, `windows`, `memory`.
"""

from __future__ import annotations

from dialkey.quic import codes
from dialkey.quic.codes import TransportError
from dialkey.quic.config import Config
from dialkey.quic.streams.halves import RecvHalf
from dialkey.quic.streams.memory import MemoryClaim
from dialkey.quic.streams.windows import ReceiveWindow


class Intake(ReceiveWindow):
    """The limit on the data of all streams together, and the halves whose own limits are to rise.

    Attributes:
        received: the sum of the highest offsets of all streams.
        held: bytes that were received and not yet read.
        update_pending: whether the peer is to be told the limit.
    """

    __slots__ = (
        "_is_over",
        "_memory",
        "_most_unread",
        "_stream_window",
        "_updates",
        "held",
        "received",
        "update_pending",
    )

    def __init__(self, config: Config) -> None:
        super().__init__(config.first_window, config.most_connection_window)
        self.received = 0
        self.held = 0
        self.update_pending = False
        self._most_unread = config.connection_window
        self._stream_window = config.stream_window
        self._memory: MemoryClaim | None = None
        self._is_over = False
        self._updates: list[RecvHalf] = []

    def count(self, gained: int) -> None:
        """Note that the highest offset of a stream rose.

        Raises:
            TransportError: beyond the limit.
        """
        self.received += gained
        if self.received > self.limit:
            raise TransportError(
                codes.FLOW_CONTROL_ERROR, "over the connection's limit", codes.STREAM
            )

    def credit(self, length: int) -> None:
        """Note that this many bytes were read or dropped."""
        self.consumed += length
        if self.is_low:
            self.update_pending = True

    def renew_early(self) -> None:
        """Tell the peer what it may send, however little that is, because it asked."""
        if self.owed > 0:
            self.update_pending = True

    def queue_update(self, half: RecvHalf) -> None:
        """Tell the peer the limit of a stream, soon."""
        if half.queue_update():
            self._updates.append(half)

    @property
    def has_updates(self) -> bool:
        """Whether there is any limit to tell the peer."""
        return self.update_pending or bool(self._updates)

    def take_updates(self) -> tuple[bool, list[RecvHalf]]:
        """Return whether to announce the limit on all data, and the streams whose limits to announce."""
        pending, self.update_pending = self.update_pending, False
        updates, self._updates = self._updates, []
        for half in updates:
            half.on_update_queued()
        return pending, updates

    # --- memory ---------------------------------------------------------------------------------

    def share_memory(self, claim: MemoryClaim) -> None:
        """Count what is held against budgets that the connection shares with others."""
        self._memory = claim

    @property
    def memory_suffices(self) -> bool:
        """Report what is held to the shared budgets; whether there is room for it."""
        return self._memory is None or self._memory.holds(self.held)

    def hold(self, length: int) -> None:
        """Note that this many more bytes are held."""
        self.held += length

    def let_go(self, length: int) -> None:
        """Note that this many bytes are no longer held."""
        self.held -= length
        if self._memory is not None:
            self._memory.holds(self.held)
            if self._is_over and not self.held:
                self.release_memory()

    def end_of_data(self) -> None:
        """Note that nothing more will arrive; what is held counts until it is read or dropped."""
        self._is_over = True
        self.let_go(0)

    def release_memory(self) -> None:
        """Stop counting what is held. Idempotent."""
        if self._memory is not None:
            self._memory.release()
            self._memory = None

    def holds_up(self, half: RecvHalf) -> bool:
        """Whether somebody waits on a stream that only the limit on all data holds up."""
        return (
            self.received >= self.limit
            and half.watched
            and not half.readable
            and half.final_size is None
            and half.received < half.limit
        )

    def make_way(self) -> None:
        """Widen the window for a reader that would wait forever, as unread data of others fills it."""
        wanted = min(self.window + self._stream_window, self.most_window)
        more = wanted - self.window
        if more and (
            self._memory is None or self._memory.grow(wanted) or self._memory.insist(more)
        ):
            self.widen(wanted)
            self.update_pending = True

    @property
    def wants_sizing(self) -> bool:
        """Whether windows may have to grow: some are about to be renewed, or this one is half full."""
        return self.update_pending or bool(self._updates) or 2 * self.held > self.window

    def size_windows(self, now: float, rtt_s: float) -> None:
        """Let windows grow that are about to be renewed, or are half full and still small."""
        wanted = self.window
        if self.update_pending:
            wanted = self.wanted(now, rtt_s)
        if 2 * self.held > self.window:
            # Streams that wait must not hold up the others.
            wanted = max(wanted, min(2 * self.window, self._most_unread))
        if wanted > self.window and (self._memory is None or self._memory.grow(wanted)):
            self.widen(wanted)
            self.update_pending = True
        for half in self._updates:
            # The connection's own window is what counts; this only shares it out.
            half.widen(min(half.wanted(now, rtt_s), max(half.window, self.window)))
