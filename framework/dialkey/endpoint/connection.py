"""A connection, for asyncio: owns the waiting, leaves the protocol to `dialkey.quic`."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import TYPE_CHECKING

from dialkey import limits
from dialkey.endpoint.closing import to_error
from dialkey.endpoint.path_manager import PathManager
from dialkey.endpoint.paths import (
    ConnectionStats,
    PathClosed,
    PathDemoted,
    PathEvent,
    PathEvents,
    PathInfo,
    PathMoved,
    PathOpened,
    PathReport,
    PathSelected,
    PathState,
    kind_of,
)
from dialkey.endpoint.streams import Data, RecvStream, SendStream
from dialkey.errors import DialkeyError, LocalError
from dialkey.identity import EndpointId
from dialkey.network.transport import PathAddress
from dialkey.opening import AsyncOnly
from dialkey.quic import connection as quic
from dialkey.quic import events
from dialkey.quic.paths import multipath
from dialkey.quic.paths.path import Path
from dialkey.quic.streams.halves import RecvHalf, SendHalf

if TYPE_CHECKING:
    from dialkey.endpoint.endpoint import Endpoint

MAX_REASON_BYTES = 1000
_DATAGRAM_OVERHEAD_BYTES = 48
"""What an empty message costs in memory: a flood of them must not cost more than it seems."""


class Connection(AsyncOnly):
    """An authenticated, encrypted connection to one endpoint.

    Made by `Endpoint.connect` and `Endpoint.accept`. As an asynchronous context manager it closes
    itself with code 0: at once when the block raised, else after `delivered`, so that nothing that
    was written is lost. It lives until either side closes it or the network between them is gone.
    """

    def __init__(self, endpoint: Endpoint, core: quic.Connection) -> None:
        self._endpoint = endpoint
        self._core = core
        self._loop = asyncio.get_running_loop()
        self._error: DialkeyError | None = None
        self._expected_id: EndpointId | None = None
        self._handshake: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._delivery: asyncio.Future[None] | None = None
        self._readers: dict[RecvHalf, asyncio.Future[None]] = {}
        self._writers: dict[SendHalf, asyncio.Future[None]] = {}
        self._accepted_bi: deque[tuple[SendHalf, RecvHalf]] = deque()
        self._accepted_uni: deque[RecvHalf] = deque()
        self._bi_waiters: deque[asyncio.Future[None]] = deque()
        self._uni_waiters: deque[asyncio.Future[None]] = deque()
        self._open_waiters: dict[bool, deque[asyncio.Future[None]]] = {
            True: deque(),
            False: deque(),
        }
        self._datagrams: deque[bytes] = deque()
        self._datagram_bytes = 0
        self._datagrams_dropped = 0
        self._datagram_waiter: asyncio.Future[None] | None = None
        self._path_readers: list[PathEvents] = []
        self._announced: tuple[int, PathAddress] | None = None
        self.path_manager: PathManager | None = None
        # Owned by the endpoint: the pending timer and when it fires.
        self.timer: asyncio.TimerHandle | None = None
        self.timer_at = 0.0

    def __repr__(self) -> str:
        peer = self._core.peer_id or self._expected_id
        state = "open" if self._error is None else "closed"
        return f"<Connection {state} to {peer.short() if peer else '?'}>"

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                await self.delivered()
        finally:
            self.close()

    async def delivered(self, timeout: float = limits.DELIVERY_TIMEOUT_S) -> bool:
        """Wait until the peer's transport has everything that was written on all streams.

        The ends of finished streams count, what was reset does not; datagrams are waited for until
        they are sent. Gives up early when the connection ends, or the peer is silent for
        `limits.DELIVERY_SILENCE_S`.

        Args:
            timeout: seconds for all of it.

        Returns:
            Whether the peer has it all.
        """
        until = self._loop.time() + timeout
        begin = self._loop.time()
        while self._error is None and not self._core.is_delivered:
            now = self._loop.time()
            # The silence counts from here at most: before there may have been nothing to answer.
            # A peer that only does not read answers all that it is sent; it is looked at again.
            since = self._core.unanswered_since
            silent_at = max(begin, since if since is not None else now) + limits.DELIVERY_SILENCE_S
            left = min(until, silent_at) - now
            if left <= 0:
                break
            if self._delivery is None:
                self._delivery = self._loop.create_future()
            self._core.watch_delivery()
            self._endpoint.flush_soon(self)
            await asyncio.wait([self._delivery], timeout=left)
        return self._core.is_delivered and self._error is None

    # --- who and how ----------------------------------------------------------------------------

    @property
    def remote_id(self) -> EndpointId:
        """The key that the peer has proved."""
        peer = self._core.peer_id or self._expected_id
        assert peer is not None, "the handshake is not complete"
        return peer

    @property
    def alpn(self) -> bytes:
        """The protocol that both sides agreed on."""
        return self._core.alpn

    @property
    def is_client(self) -> bool:
        """Whether this side dialled."""
        return self._core.is_client

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint that the connection belongs to."""
        return self._endpoint

    # --- streams --------------------------------------------------------------------------------

    async def open_bi(self) -> tuple[SendStream, RecvStream]:
        """Open a stream for both directions; wait while the peer allows no more.

        The peer sees it when the first byte is written.

        Raises:
            ConnectionClosed, ConnectionClosedByPeer, ConnectionLost: the connection is over.
        """
        send, recv = await self._open(unidirectional=False)
        assert recv is not None
        return SendStream(self, send), RecvStream(self, recv)

    async def open_uni(self) -> SendStream:
        """Open a stream for sending only; otherwise as `open_bi`."""
        send, _ = await self._open(unidirectional=True)
        return SendStream(self, send)

    async def _open(self, *, unidirectional: bool) -> tuple[SendHalf, RecvHalf | None]:
        waiters = self._open_waiters[unidirectional]
        while True:
            self.check_open()
            # First come, first served: do not overtake those who wait.
            if not waiters:
                opened = self._core.open_stream(unidirectional=unidirectional)
                if opened is not None:
                    return opened
                self._endpoint.flush_soon(self)
            await self._wait_in(waiters)
            self.check_open()
            opened = self._core.open_stream(unidirectional=unidirectional)
            if opened is not None:
                self._wake_next(waiters)
                return opened
            self._endpoint.flush_soon(self)

    async def accept_bi(self) -> tuple[SendStream, RecvStream]:
        """Wait for a stream that the peer opened for both directions.

        Cancellation loses no stream.

        Raises:
            ConnectionClosed, ConnectionClosedByPeer, ConnectionLost: the connection is over and no
                stream is left.
        """
        while not self._accepted_bi:
            self.check_open()
            await self._wait_in(self._bi_waiters)
        send, recv = self._accepted_bi.popleft()
        if self._accepted_bi:
            self._wake_next(self._bi_waiters)
        self._take(recv)
        return SendStream(self, send), RecvStream(self, recv)

    async def accept_uni(self) -> RecvStream:
        """Wait for a stream on which only the peer sends; otherwise as `accept_bi`."""
        while not self._accepted_uni:
            self.check_open()
            await self._wait_in(self._uni_waiters)
        recv = self._accepted_uni.popleft()
        if self._accepted_uni:
            self._wake_next(self._uni_waiters)
        self._take(recv)
        return RecvStream(self, recv)

    def _take(self, recv: RecvHalf) -> None:
        self._core.taken(recv.id)
        if recv.finished:
            # It was over before it was accepted: its place is free only now.
            self._endpoint.flush_soon(self)

    # --- datagrams ------------------------------------------------------------------------------

    @property
    def max_datagram_size(self) -> int | None:
        """The largest datagram that can be sent now, bytes; None if the peer takes none."""
        return self._core.max_datagram_payload

    def send_datagram(self, data: Data) -> None:
        """Send a message that may be lost, doubled or overtaken. Never waits.

        Raises:
            LocalError: it is larger than `max_datagram_size`, or the peer takes none.
            ConnectionClosed, ConnectionClosedByPeer, ConnectionLost: the connection is over.
        """
        self.check_open()
        largest = self._core.max_datagram_payload
        if largest is None:
            raise LocalError("the peer takes no datagrams", endpoint_id=self.remote_id)
        if len(data) > largest:
            raise LocalError(
                f"a datagram of {len(data)} bytes does not fit; {largest} do now",
                endpoint_id=self.remote_id,
                hint="send it on a stream",
            )
        self._core.send_datagram(bytes(data))
        self._endpoint.flush_soon(self)

    async def read_datagram(self) -> bytes:
        """Wait for a datagram. When nobody reads, the oldest are dropped and counted.

        Raises:
            ConnectionClosed, ConnectionClosedByPeer, ConnectionLost: the connection is over and no
                datagram is left.
        """
        while not self._datagrams:
            self.check_open()
            if self._datagram_waiter is not None:
                raise LocalError("another task is reading datagrams of this connection")
            self._datagram_waiter = self._loop.create_future()
            try:
                await self._datagram_waiter
            finally:
                self._datagram_waiter = None
        return self._take_datagram()

    def _take_datagram(self) -> bytes:
        data = self._datagrams.popleft()
        self._datagram_bytes -= len(data) + _DATAGRAM_OVERHEAD_BYTES
        return data

    # --- state ----------------------------------------------------------------------------------

    def paths(self) -> list[PathInfo]:
        """Return a snapshot of all paths, the selected one first."""
        paths = [
            self.path_info(path)
            for path in self._core.paths.values()
            if not path.abandoned and not path.parked
        ]
        return sorted(paths, key=lambda path: not path.is_selected)

    def path_info(self, path: Path) -> PathInfo:
        """Return a snapshot of one path."""
        state: PathState = "usable" if path.validated else "validating"
        recovery = path.recovery
        return PathInfo(
            id=path.id,
            remote=path.remote,
            kind=kind_of(path.remote),
            is_selected=path is self._core.selected_path,
            state="suspect" if path.suspect else state,
            rtt_s=recovery.srtt,
            lost_packets=recovery.lost_packets,
            sent_packets=recovery.sent_packets,
            sent_bytes=path.bytes_sent,
            received_bytes=path.bytes_received,
            mtu_bytes=path.mtu.current,
            congestion_window_bytes=recovery.cc.window,
        )

    async def path_events(self) -> AsyncGenerator[PathEvent, None]:
        """Yield what happens to the paths, beginning with those that are there.

        A reader that falls behind gets `PathsLagged`. Ends with the connection; who leaves earlier
        closes it (`contextlib.aclosing`).
        """
        reader = PathEvents()
        for path in self.paths():
            if path.state != "validating":
                reader.put(PathOpened(path))
        if self._error is not None:
            reader.end()
        self._path_readers.append(reader)
        try:
            async for event in reader:
                yield event
        finally:
            self._path_readers.remove(reader)

    def stats(self) -> ConnectionStats:
        """Return the counters as they stand."""
        core = self._core
        paths = list(core.paths.values())
        selected = core.selected_path
        lost = sum(path.recovery.lost_packets for path in paths)
        sent = sum(path.recovery.sent_packets for path in paths)
        return ConnectionStats(
            sent_bytes=core.bytes_sent,
            received_bytes=core.bytes_received,
            received_packets=core.packets_received,
            undecryptable_packets=core.packets_undecryptable,
            duplicate_packets=core.packets_duplicate,
            lost_packets=core.lost_packets_before + lost,
            sent_packets=core.sent_packets_before + sent,
            dropped_datagrams=core.datagrams_dropped + self._datagrams_dropped,
            key_updates=core.protection.updates if core.protection is not None else 0,
            rtt_s=selected.recovery.srtt if selected is not None else 0.0,
        )

    @property
    def is_closed(self) -> bool:
        """Whether the connection is over."""
        return self._error is not None

    async def closed(self) -> DialkeyError:
        """Wait until the connection is over; return the error that says why."""
        if self._error is None:
            if self._closed is None:
                self._closed = self._loop.create_future()
            await asyncio.shield(self._closed)
        assert self._error is not None
        return self._error

    def check_open(self) -> None:
        """Raise why the connection is over, if it is.

        Raises:
            ConnectionClosed, ConnectionClosedByPeer, ConnectionLost, ProtocolViolation
        """
        if self._error is not None:
            # A fresh exception each time: a shared one would collect everybody's tracebacks.
            reason = self._core.close_reason
            assert reason is not None
            raise to_error(reason, self._core.peer_id or self._expected_id)

    def close(self, code: int = 0, reason: bytes = b"") -> None:
        """Close at once; the peer sees `code` and `reason`. Idempotent.

        What was written and not yet acknowledged may be lost: await `delivered` first where that
        matters. Leaving ``async with connection`` does.

        Args:
            code: the application's own, 0 to 2^62-1.
            reason: at most 1,000 bytes.
        """
        if not 0 <= code < 1 << 62:
            raise LocalError(f"a close code is a number from 0 to 2^62-1, not {code}")
        self._core.close(code, reason[:MAX_REASON_BYTES], self._loop.time())
        self.process_events()
        self._endpoint.flush_soon(self)

    def request_key_update(self) -> bool:
        """Change the keys; False if a change is still under way. Happens by itself when due."""
        started = self._core.update_keys(self._loop.time())
        self._endpoint.flush_soon(self)
        return started

    # --- for streams ----------------------------------------------------------------------------

    def wake(self, half: SendHalf) -> None:
        """Send what a half has, soon."""
        self._core.wake(half)
        self._endpoint.flush_soon(self)

    def consumed(self, half: RecvHalf, length: int) -> None:
        """Note that the application read; tell the peer when its limits rise."""
        core = self._core
        core.consumed(half, length)
        if core.max_data_pending or core.limit_updates or core.control:
            self._endpoint.flush_soon(self)

    def reset_stream(self, half: SendHalf, code: int) -> None:
        self._core.reset(half, code)
        self._wake_writer(half)
        self._endpoint.flush_soon(self)

    def stop_stream(self, half: RecvHalf, code: int) -> None:
        self._core.stop(half, code)
        self._wake_reader(half)
        self._endpoint.flush_soon(self)

    def dropped_recv(self, half: RecvHalf) -> None:
        """Stop a stream whose receiving end is gone. Called by the collector, in any thread."""
        self._call_from_collector(lambda: self.stop_stream(half, 0))

    def dropped_send(self, half: SendHalf, *, is_torn: bool) -> None:
        """End a stream whose sending end is gone. Called by the collector, in any thread."""

        def end() -> None:
            if is_torn:
                self.reset_stream(half, 0)
            else:
                half.finish()
                self.wake(half)

        self._call_from_collector(end)

    def _call_from_collector(self, action: Callable[[], None]) -> None:
        # The collector may run in the middle of anything, so the machine is left alone until later.
        if self._error is None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # the loop was closed in another thread
                self._loop.call_soon_threadsafe(self._if_open, action)

    def _if_open(self, action: Callable[[], None]) -> None:
        if self._error is None:
            action()

    async def wait_readable(self, half: RecvHalf) -> None:
        """Wait for a Readable event of a half, or the end of the connection."""
        if half in self._readers:
            raise LocalError("another task is reading this stream")
        half.watched = True
        waiter = self._readers[half] = self._loop.create_future()
        try:
            await waiter
        finally:
            half.watched = False
            del self._readers[half]

    async def wait_writable(self, half: SendHalf) -> None:
        """Wait for a Writable event of a half, or the end of the connection."""
        if half in self._writers:
            raise LocalError("another task is writing this stream")
        half.watched = True
        waiter = self._writers[half] = self._loop.create_future()
        try:
            await waiter
        finally:
            half.watched = False
            del self._writers[half]

    async def _wait_in(self, waiters: deque[asyncio.Future[None]]) -> None:
        waiter = self._loop.create_future()
        waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                # The turn was ours already: pass it on.
                self._wake_next(waiters)
            raise
        finally:
            if waiter in waiters:
                waiters.remove(waiter)

    @staticmethod
    def _wake_next(waiters: deque[asyncio.Future[None]]) -> None:
        while waiters:
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _wake_reader(self, half: RecvHalf) -> None:
        waiter = self._readers.get(half)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _wake_writer(self, half: SendHalf) -> None:
        waiter = self._writers.get(half)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- for the endpoint -----------------------------------------------------------------------

    @property
    def core(self) -> quic.Connection:
        """The protocol machine."""
        return self._core

    def expect(self, id: EndpointId) -> None:
        """Note whom a dial is for."""
        self._expected_id = id

    async def handshake_done(self) -> None:
        """Wait until both sides have proved their keys.

        Raises:
            DialkeyError: the handshake failed.
        """
        if self._core.peer_id is None and self._error is None:
            self._handshake = self._loop.create_future()
            await self._handshake
        self.check_open()

    def discard(self) -> None:
        """Forget the connection at once; whoever waits on it is woken."""
        self._core.discard()
        self.process_events()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    async def drained(self) -> None:
        """Wait until late packets need no answer any more."""
        if self._core.state is not quic.State.GONE:
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    def process_events(self) -> None:
        """Hand the machine's events to whoever waits for them."""
        queue = self._core.events
        while queue:
            event = queue.popleft()
            kind = type(event)
            if kind is events.Readable:
                self._wake_reader(event.half)  # type: ignore[attr-defined]
            elif kind is events.Writable:
                self._wake_writer(event.half)  # type: ignore[attr-defined]
            else:
                self._on_event(event)

    def _on_event(self, event: events.Event) -> None:
        match event:
            case events.StreamOpened(send=send, recv=recv):
                if send is not None:
                    self._accepted_bi.append((send, recv))
                    self._wake_next(self._bi_waiters)
                else:
                    self._accepted_uni.append(recv)
                    self._wake_next(self._uni_waiters)
            case events.DatagramReceived(data=data):
                self._on_datagram(data)
            case events.Delivered():
                self._wake_delivery()
            case events.StreamsAvailable(unidirectional=unidirectional):
                self._wake_next(self._open_waiters[unidirectional])
            case events.CidIssued(cid=cid):
                self._endpoint.demux.route(cid, self)
            case events.CidRetired(cid=cid):
                self._endpoint.demux.unroute(cid)
            case events.PeerResetToken(token=token):
                self._endpoint.demux.expect_reset(token, self)
            case events.PeerResetTokenRetired(token=token):
                self._endpoint.demux.expect_no_reset(token)
            case events.HandshakeCompleted():
                self._on_handshake()
            case events.PathValidated(path_id=path_id):
                if path_id in self._core.paths:
                    self._emit_path(PathOpened(self.path_info(self._core.paths[path_id])))
                if self.path_manager is not None:
                    self.path_manager.on_validated(path_id)
            case events.PathSuspected(path_id=path_id):
                if path_id in self._core.paths:
                    self._emit_path(PathDemoted(self.path_info(self._core.paths[path_id])))
                if self.path_manager is not None:
                    self.path_manager.on_suspected(path_id)
            case events.PathAbandoned(path_id=path_id):
                path = self._core.paths.get(path_id)
                if path is not None and path.may_carry_data:
                    self._emit_path(PathClosed(self.path_info(path)))
                self._update_paths()
            case events.PathRecovered() | events.PathsAvailable():
                self._update_paths()
            case events.PathMigrated(path_id=path_id, previous=previous):
                self._emit_path(PathMoved(self.path_info(self._core.paths[path_id]), previous))
            case events.Closed(reason=reason):
                self._on_closed(reason)
            case events.Drained():
                self._endpoint.demux.forget(self)
                if self._drained is not None:
                    self._drained.set_result(None)

    def _update_paths(self) -> None:
        if self.path_manager is not None:
            self.path_manager.update()

    def select_path(self, path_id: int) -> None:
        """Send application data on a path from now on."""
        multipath.select(self._core, path_id)
        self.announce_selection()

    def announce_selection(self) -> None:
        """Say so if data goes another way now, whoever decided it."""
        path = self._core.selected_path
        if path is None:
            return
        announced, self._announced = self._announced, (path.id, path.remote)
        if announced is not None and announced[0] != path.id:
            self._emit_path(PathSelected(self.path_info(path), announced[1]))

    def process_events_later(self) -> None:
        """Have events handled that were made outside the reception of datagrams."""
        self._endpoint.flush_soon(self)

    def _on_handshake(self) -> None:
        if self._core.multipath is not None:
            self.path_manager = PathManager(self)
        for path in self._core.paths.values():
            self._emit_path(PathOpened(self.path_info(path)))
        self.announce_selection()
        if self._handshake is not None and not self._handshake.done():
            self._handshake.set_result(None)
        self._endpoint.on_handshake(self)

    def _emit_path(self, event: PathEvent) -> None:
        for reader in self._path_readers:
            reader.put(event)
        if self._endpoint.plugins.has("dialkey_events"):
            self._endpoint.plugins.emit(PathReport(self.remote_id, self.alpn, event))

    def _on_datagram(self, data: bytes) -> None:
        self._datagrams.append(data)
        self._datagram_bytes += len(data) + _DATAGRAM_OVERHEAD_BYTES
        while self._datagram_bytes > limits.MAX_DATAGRAM_QUEUE_BYTES:
            self._take_datagram()
            self._datagrams_dropped += 1
        if self._datagram_waiter is not None and not self._datagram_waiter.done():
            self._datagram_waiter.set_result(None)

    def _wake_delivery(self) -> None:
        waiter, self._delivery = self._delivery, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _on_closed(self, reason: events.CloseReason) -> None:
        self._error = to_error(reason, self._core.peer_id or self._expected_id)
        if self.path_manager is not None:
            self.path_manager.close()
        for path in self._core.paths.values():
            if path.may_carry_data and not path.abandoned:
                self._emit_path(PathClosed(self.path_info(path)))
        for reader in self._path_readers:
            reader.end()
        waiters = [
            *self._readers.values(),
            *self._writers.values(),
            *self._bi_waiters,
            *self._uni_waiters,
            *self._open_waiters[True],
            *self._open_waiters[False],
        ]
        self._wake_delivery()
        for each in (self._datagram_waiter, self._handshake, self._closed):
            if each is not None:
                waiters.append(each)
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._endpoint.on_closed(self)
