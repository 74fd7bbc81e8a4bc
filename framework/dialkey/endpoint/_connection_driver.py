"""Drives one connection: hands the events of its machine to the tasks that wait for them.

`Connection` and the streams are what an application sees; everything that they share is kept here. The
machine itself, `dialkey.quic.connection.Connection`, knows nothing about tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from dialkey import limits
from dialkey.endpoint._waiting import Turns, wake
from dialkey.endpoint.closing import to_error
from dialkey.endpoint.path_manager import PathManager
from dialkey.endpoint.paths import (
    PathClosed,
    PathDemoted,
    PathEvent,
    PathInfo,
    PathMoved,
    PathOpened,
    PathReport,
    PathSelected,
    PathState,
    kind_of,
)
from dialkey.errors import Busy, DialkeyError
from dialkey.event_queue import EventQueue
from dialkey.identity import EndpointId
from dialkey.network.transport import PathAddress
from dialkey.quic import connection as quic
from dialkey.quic import events
from dialkey.quic.paths.path import Path
from dialkey.quic.streams.halves import RecvHalf, SendHalf

if TYPE_CHECKING:
    from dialkey.endpoint._driver import Driver


class ConnectionDriver:
    """Connects one machine with its tasks.

    Attributes:
        driver: the endpoint's driver.
        core: the protocol machine.
        connection: the public object.
        path_manager: maintains the paths, once the handshake is done and both sides speak multipath.
        datagrams_dropped: messages that arrived and were not fetched in time.
    """

    def __init__(
        self, driver: Driver, core: quic.Connection, expected_id: EndpointId | None = None
    ) -> None:
        self.driver = driver
        self.core = core
        self.path_manager: PathManager | None = None
        self.datagrams_dropped = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._expected_id = expected_id
        self._loop = asyncio.get_running_loop()
        self._error: DialkeyError | None = None
        self._handshake: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._delivery: asyncio.Future[None] | None = None
        self._readers: dict[RecvHalf, asyncio.Future[None]] = {}
        self._writers: dict[SendHalf, asyncio.Future[None]] = {}
        self._crowded_out: set[SendHalf] = set()
        self._incoming_bi: deque[tuple[SendHalf, RecvHalf]] = deque()
        self._incoming_uni: deque[RecvHalf] = deque()
        self._accepting_bi = Turns()
        self._accepting_uni = Turns()
        self._opening = {True: Turns(), False: Turns()}
        self._datagrams: deque[bytes] = deque()
        self._datagram_bytes = 0
        self._datagram_waiter: asyncio.Future[None] | None = None
        self._path_readers: list[EventQueue[PathEvent]] = []
        self._announced: tuple[int, PathAddress] | None = None
        self.connection = driver.make_connection(self)

    def __repr__(self) -> str:
        return repr(self.connection)

    # --- state ----------------------------------------------------------------------------------

    @property
    def error(self) -> DialkeyError | None:
        """Why the connection is over; None while it is not."""
        return self._error

    @property
    def peer_id(self) -> EndpointId | None:
        """The key that the peer has proved, or the one that was dialled; None while neither is known."""
        return self.core.peer_id or self._expected_id

    @property
    def remote_id(self) -> EndpointId:
        """The key that the peer has proved."""
        peer = self.peer_id
        assert peer is not None, "the handshake is not complete"
        return peer

    def check_open(self) -> None:
        """Raise the reason why the connection is over, if it is.

        Raises:
            ConnectionClosed, ConnectionClosedByPeer, ConnectionLost, ProtocolViolation
        """
        if self._error is not None:
            # A fresh exception each time: a shared one would collect everybody's tracebacks.
            reason = self.core.close_reason
            assert reason is not None
            raise to_error(reason, self.peer_id)

    async def handshake_done(self) -> None:
        """Wait until both sides have proved their keys.

        Raises:
            DialkeyError: the handshake failed.
        """
        if self.core.peer_id is None and self._error is None:
            self._handshake = self._loop.create_future()
            await self._handshake
        self.check_open()

    async def closed(self) -> DialkeyError:
        """Wait until the connection is over; return why."""
        if self._error is None:
            if self._closed is None:
                self._closed = self._loop.create_future()
            await asyncio.shield(self._closed)
        assert self._error is not None
        return self._error

    async def drained(self) -> None:
        """Wait until late packets no longer need an answer."""
        if self.core.state is not quic.State.GONE:
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    async def delivered(self, timeout_s: float) -> bool:
        """Wait until the peer's transport has everything; see `Connection.delivered`."""
        until = self._loop.time() + timeout_s
        progress = self.core.delivery_progress
        ends_at = self._loop.time() + limits.DELIVERY_SILENCE_S
        while self._error is None and not self.core.is_delivered:
            now = self._loop.time()
            if self.core.delivery_progress != progress:
                progress = self.core.delivery_progress
                ends_at = now + limits.DELIVERY_SILENCE_S
            left = min(until, ends_at) - now
            if left <= 0:
                break
            if self._delivery is None:
                self._delivery = self._loop.create_future()
            self.core.watch_delivery()
            self.flush_soon()
            await asyncio.wait([self._delivery], timeout=min(left, limits.DELIVERY_LOOK_S))
        return self.core.is_delivered and self._error is None

    def close(self, code: int, reason: bytes) -> None:
        """Close at once. Idempotent."""
        self.core.close(code, reason, self._loop.time())
        self.process_events()
        self.flush_soon()

    def give_way(self) -> None:
        """Close, because more is held unread than there is room for."""
        self.core.give_way(self._loop.time())
        self.process_events()
        self.flush_soon()

    def discard(self) -> None:
        """Forget the connection at once, and wake everybody who waits for it."""
        self.core.discard()
        self.process_events()
        self.cancel_timer()

    def update_keys(self) -> bool:
        """Change the keys; False if a change is still in progress."""
        started = self.core.update_keys(self._loop.time())
        self.flush_soon()
        return started

    def flush_soon(self) -> None:
        """Send what is queued, when the current callbacks are done."""
        self.driver.flush_soon(self)

    def set_timer(self, at: float, action: Callable[[ConnectionDriver], None]) -> None:
        """Call `action` at `at`, or earlier.

        An earlier timer is kept: it fires without effect and sets the right one, which is cheaper than
        cancelling a timer for each packet.
        """
        timer = self._timer
        if timer is not None:
            if self._timer_at <= at:
                return
            timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, action, self)

    def cancel_timer(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def timer_fired(self) -> None:
        """Note that the timer is gone."""
        self._timer = None

    # --- streams --------------------------------------------------------------------------------

    async def open_stream(self, *, unidirectional: bool) -> tuple[SendHalf, RecvHalf | None]:
        """Open a stream; wait while the peer allows no more."""
        turns = self._opening[unidirectional]
        while True:
            self.check_open()
            # First come, first served: do not overtake those who wait.
            if not turns:
                opened = self.core.streams.open(unidirectional=unidirectional)
                if opened is not None:
                    return opened
                self.flush_soon()
            await turns.wait()
            self.check_open()
            opened = self.core.streams.open(unidirectional=unidirectional)
            if opened is not None:
                turns.next()
                return opened
            self.flush_soon()

    async def accept_bi(self) -> tuple[SendHalf, RecvHalf]:
        """Wait for a bidirectional stream that the peer opened."""
        while not self._incoming_bi:
            self.check_open()
            await self._accepting_bi.wait()
        send, recv = self._incoming_bi.popleft()
        if self._incoming_bi:
            self._accepting_bi.next()
        self._take(recv)
        return send, recv

    async def accept_uni(self) -> RecvHalf:
        """Wait for a stream on which only the peer sends."""
        while not self._incoming_uni:
            self.check_open()
            await self._accepting_uni.wait()
        recv = self._incoming_uni.popleft()
        if self._incoming_uni:
            self._accepting_uni.next()
        self._take(recv)
        return recv

    def _take(self, recv: RecvHalf) -> None:
        self.core.streams.taken(recv.id)
        if recv.finished:
            # It was over before it was accepted: only now is its place free.
            self.flush_soon()

    def wake(self, half: SendHalf) -> None:
        """Schedule sending of what a half has queued."""
        self.core.streams.wake(half)
        self.driver.flush_soon(self)

    def set_priority(self, half: SendHalf, priority: int) -> None:
        """Change the priority of a stream."""
        half.set_priority(priority)
        self.wake(half)

    def consumed(self, half: RecvHalf, length: int) -> None:
        """Note that the application has read; tell the peer when its limits rise."""
        core = self.core
        core.streams.consumed(half, length)
        if core.has_work:
            self.driver.flush_soon(self)

    def reset(self, half: SendHalf, code: int) -> None:
        """Abandon what a half was to send."""
        self.core.streams.reset(half, code)
        wake(self._writers.get(half))
        self.flush_soon()

    def stop(self, half: RecvHalf, code: int) -> None:
        """Ask the peer to stop sending."""
        self.core.streams.stop(half, code)
        wake(self._readers.get(half))
        self.flush_soon()

    def dropped_recv(self, half: RecvHalf) -> None:
        """Stop a stream whose receiving end is gone. Called by the collector, in any thread."""
        self._call_from_collector(lambda: self.stop(half, 0))

    def dropped_send(self, half: SendHalf, *, is_torn: bool) -> None:
        """End a stream whose sending end is gone. Called by the collector, in any thread."""

        def end() -> None:
            if is_torn:
                self.reset(half, 0)
            else:
                half.finish()
                self.wake(half)

        self._call_from_collector(end)

    def _call_from_collector(self, action: Callable[[], None]) -> None:
        # The collector may run in the middle of anything, so the machine is not touched until later.
        if self._error is None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # the loop was closed in another thread
                self._loop.call_soon_threadsafe(self._if_open, action)

    def _if_open(self, action: Callable[[], None]) -> None:
        if self._error is None:
            action()

    async def wait_readable(self, half: RecvHalf) -> None:
        """Wait for a Readable event of a half, or the end of the connection."""
        if half in self._readers:
            raise Busy("another task is reading this stream")
        half.watch()
        if self.core.streams.intake.holds_up(half):
            self.flush_soon()  # which gives way, and tells the peer
        waiter = self._readers[half] = self._loop.create_future()
        try:
            await waiter
        finally:
            half.unwatch()
            del self._readers[half]

    async def wait_writable(self, half: SendHalf) -> None:
        """Wait for a Writable event of a half, or the end of the connection."""
        if half in self._writers:
            raise Busy("another task is writing this stream")
        half.watch()
        waiter = self._writers[half] = self._loop.create_future()
        try:
            await waiter
        finally:
            half.unwatch()
            del self._writers[half]

    def has_room(self, half: SendHalf) -> bool:
        """Whether a writer need not wait, for its own stream or for all streams together."""
        if half.queued <= limits.SEND_QUEUE_SHARE_BYTES:
            return True
        queued_in_all = self.core.streams.queued_bytes
        return (
            half.queued <= limits.SEND_HIGH_WATER_BYTES
            and queued_in_all <= limits.MAX_SEND_QUEUES_BYTES
        )

    async def wait_room(self, half: SendHalf) -> None:
        """Wait until there may be room again, or the end of the connection."""
        if half.queued > limits.SEND_HIGH_WATER_BYTES:
            await self.wait_writable(half)
            return
        self._crowded_out.add(half)
        try:
            await self.wait_writable(half)
        finally:
            self._crowded_out.discard(half)

    # --- datagrams ------------------------------------------------------------------------------

    def send_datagram(self, data: bytes) -> None:
        """Send a message that fits."""
        self.core.datagrams.send(data)
        self.flush_soon()

    async def read_datagram(self) -> bytes:
        """Wait for a message."""
        while not self._datagrams:
            self.check_open()
            if self._datagram_waiter is not None:
                raise Busy("another task is reading datagrams of this connection")
            self._datagram_waiter = self._loop.create_future()
            try:
                await self._datagram_waiter
            finally:
                self._datagram_waiter = None
        return self._take_datagram()

    def _take_datagram(self) -> bytes:
        data = self._datagrams.popleft()
        self._datagram_bytes -= len(data) + limits.DATAGRAM_OVERHEAD_BYTES
        return data

    def _on_datagram(self, data: bytes) -> None:
        self._datagrams.append(data)
        self._datagram_bytes += len(data) + limits.DATAGRAM_OVERHEAD_BYTES
        while self._datagram_bytes > limits.MAX_DATAGRAM_QUEUE_BYTES:
            self._take_datagram()
            self.datagrams_dropped += 1
        wake(self._datagram_waiter)

    # --- paths ----------------------------------------------------------------------------------

    def path_info(self, path: Path) -> PathInfo:
        """Return a snapshot of one path."""
        state: PathState = "usable" if path.validated else "validating"
        recovery = path.recovery
        return PathInfo(
            id=path.id,
            remote=path.remote,
            kind=kind_of(path.remote),
            is_selected=path is self.core.paths.selected,
            state="suspect" if path.suspect else state,
            rtt_s=recovery.srtt,
            lost_packets=recovery.lost_packets,
            sent_packets=recovery.sent_packets,
            sent_bytes=path.bytes_sent,
            received_bytes=path.bytes_received,
            mtu_bytes=path.mtu.current,
            congestion_window_bytes=recovery.cc.window,
        )

    def add_path_reader(self, reader: EventQueue[PathEvent]) -> None:
        """Send events to a reader from now on."""
        if self._error is not None:
            reader.end()
        self._path_readers.append(reader)

    def remove_path_reader(self, reader: EventQueue[PathEvent]) -> None:
        """Send it no more events."""
        self._path_readers.remove(reader)

    def select_path(self, path_id: int) -> None:
        """Send application data on a path from now on."""
        self.core.paths.select(path_id)
        self.announce_selection()

    def announce_selection(self) -> None:
        """Announce it if data now takes another path, whoever decided that."""
        path = self.core.paths.selected
        if path is None:
            return
        announced, self._announced = self._announced, (path.id, path.remote)
        if announced is not None and announced[0] != path.id:
            self._emit_path(PathSelected(self.path_info(path), announced[1]))

    def network_changed(self, now: float) -> None:
        """Check every path again."""
        self.core.network_changed(now)
        if self.path_manager is not None:
            self.path_manager.network_changed()
        self.flush_soon()

    def _update_paths(self) -> None:
        if self.path_manager is not None:
            self.path_manager.update()

    def _emit_path(self, event: PathEvent) -> None:
        for reader in self._path_readers:
            reader.put(event)
        plugins = self.driver.plugins
        if plugins.has("dialkey_events"):
            plugins.emit(PathReport(self.remote_id, self.core.alpn, event))

    # --- events of the machine ------------------------------------------------------------------

    def process_events(self) -> None:
        """Hand the machine's events to those who wait for them."""
        queue = self.core.events
        while queue:
            event = queue.popleft()
            kind = type(event)
            if kind is events.Readable:
                wake(self._readers.get(event.half))  # type: ignore[attr-defined]
            elif kind is events.Writable:
                wake(self._writers.get(event.half))  # type: ignore[attr-defined]
            else:
                self._on_event(event)
        if self._crowded_out and self.core.streams.queued_bytes <= limits.MAX_SEND_QUEUES_BYTES:
            for half in self._crowded_out:
                wake(self._writers.get(half))

    def _on_event(self, event: events.Event) -> None:
        demux = self.driver.demux
        match event:
            case events.StreamOpened(send=send, recv=recv):
                if send is not None:
                    self._incoming_bi.append((send, recv))
                    self._accepting_bi.next()
                else:
                    self._incoming_uni.append(recv)
                    self._accepting_uni.next()
            case events.DatagramReceived(data=data):
                self._on_datagram(data)
            case events.Delivered():
                self._wake_delivery()
            case events.StreamsAvailable(unidirectional=unidirectional):
                self._opening[unidirectional].next()
            case events.CidIssued(cid=cid):
                demux.route(cid, self)
            case events.CidRetired(cid=cid):
                demux.unroute(cid)
            case events.PeerResetToken(token=token):
                demux.expect_reset(token, self)
            case events.PeerResetTokenRetired(token=token):
                demux.expect_no_reset(token)
            case events.HandshakeCompleted():
                self._on_handshake()
            case events.PathValidated(path_id=path_id):
                if path_id in self.core.paths:
                    self._emit_path(PathOpened(self.path_info(self.core.paths[path_id])))
                if self.path_manager is not None:
                    self.path_manager.on_validated(path_id)
            case events.PathSuspected(path_id=path_id):
                if path_id in self.core.paths:
                    self._emit_path(PathDemoted(self.path_info(self.core.paths[path_id])))
                if self.path_manager is not None:
                    self.path_manager.on_suspected(path_id)
            case events.PathAbandoned(path_id=path_id):
                path = self.core.paths.get(path_id)
                if path is not None and path.may_carry_data:
                    self._emit_path(PathClosed(self.path_info(path)))
                self._update_paths()
            case events.AddressObserved(address=address):
                # Only of a peer that we chose: anybody may dial us, and say anything.
                if self.core.is_client:
                    self.driver.observed(address)
            case events.AddressAnswered(remote=remote):
                if self.path_manager is not None:
                    self.path_manager.on_punched(remote)
            case events.PathRecovered() | events.PathsAvailable():
                self._update_paths()
            case events.PathMigrated(path_id=path_id, previous=previous):
                self._emit_path(PathMoved(self.path_info(self.core.paths[path_id]), previous))
            case events.Closed(reason=reason):
                self._on_closed(reason)
            case events.Drained():
                demux.forget(self)
                wake(self._drained)

    def _on_handshake(self) -> None:
        if self.core.paths.multipath is not None:
            self.path_manager = PathManager(self)
            self.path_manager.set_candidates(self.driver.candidates())
        for path in self.core.paths.values():
            self._emit_path(PathOpened(self.path_info(path)))
        self.announce_selection()
        wake(self._handshake)
        self.driver.on_handshake(self)

    def _wake_delivery(self) -> None:
        waiter, self._delivery = self._delivery, None
        wake(waiter)

    def _on_closed(self, reason: events.CloseReason) -> None:
        self._error = to_error(reason, self.peer_id)
        if self.path_manager is not None:
            self.path_manager.close()
        for path in self.core.paths.values():
            if path.may_carry_data and not path.abandoned:
                self._emit_path(PathClosed(self.path_info(path)))
        for reader in self._path_readers:
            reader.end()
        for turns in (self._accepting_bi, self._accepting_uni, *self._opening.values()):
            turns.all()
        for waiter in (
            *self._readers.values(),
            *self._writers.values(),
            self._datagram_waiter,
            self._handshake,
            self._closed,
        ):
            wake(waiter)
        self._wake_delivery()
        self.driver.on_closed(self)
