"""A connection, as an application sees it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import TYPE_CHECKING, Final

from dialkey import limits
from dialkey.endpoint.paths import (
    MAX_PENDING_PATH_EVENTS,
    ConnectionStats,
    PathEvent,
    PathInfo,
    PathOpened,
)
from dialkey.endpoint.streams import Data, RecvStream, SendStream
from dialkey.errors import DialkeyError, LocalError
from dialkey.event_queue import EventQueue
from dialkey.identity import EndpointId
from dialkey.opening import AsyncOnly

if TYPE_CHECKING:
    from dialkey.endpoint._connection_driver import ConnectionDriver
    from dialkey.endpoint.endpoint import Endpoint

MAX_REASON_BYTES: Final = 1000


class Connection(AsyncOnly):
    """An authenticated, encrypted connection to one endpoint.

    Made by `Endpoint.connect` and `Endpoint.accept`. As an asynchronous context manager it closes
    itself with code 0: at once if the block raises, otherwise after `delivered`, so that nothing that
    was written is lost. It lives until either side closes it or the network between them is gone.
    """

    def __init__(self, endpoint: Endpoint, driver: ConnectionDriver) -> None:
        self._endpoint = endpoint
        self._driver = driver

    def __repr__(self) -> str:
        peer = self._driver.peer_id
        state = "open" if self._driver.error is None else "closed"
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

        This includes the ends of finished streams, but not streams that were reset; datagrams only have
        to be sent. Gives up early when the connection ends, or the peer takes nothing for
        `limits.DELIVERY_SILENCE_S`, whether it is gone or does not read.

        Args:
            timeout: seconds in all.

        Returns:
            Whether the peer has everything.
        """
        return await self._driver.delivered(timeout)

    # --- who and how ----------------------------------------------------------------------------

    @property
    def remote_id(self) -> EndpointId:
        """The key that the peer has proved."""
        return self._driver.remote_id

    @property
    def alpn(self) -> bytes:
        """The protocol that both sides agreed on."""
        return self._driver.core.alpn

    @property
    def is_client(self) -> bool:
        """Whether this side dialled."""
        return self._driver.core.is_client

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint that the connection belongs to."""
        return self._endpoint

    # --- streams --------------------------------------------------------------------------------

    async def open_bi(self) -> tuple[SendStream, RecvStream]:
        """Open a bidirectional stream; wait while the peer allows no more.

        The peer sees it when the first byte is written.

        Raises:
            ConnectionClosed, ConnectionClosedByPeer, ConnectionLost: the connection is over.
        """
        send, recv = await self._driver.open_stream(unidirectional=False)
        assert recv is not None
        return SendStream(self._driver, send), RecvStream(self._driver, recv)

    async def open_uni(self) -> SendStream:
        """Open a stream for sending only; otherwise like `open_bi`."""
        send, _ = await self._driver.open_stream(unidirectional=True)
        return SendStream(self._driver, send)

    async def accept_bi(self) -> tuple[SendStream, RecvStream]:
        """Wait for a bidirectional stream that the peer opened.

        Cancellation loses no stream.

        Raises:
            ConnectionClosed, ConnectionClosedByPeer, ConnectionLost: the connection is over and no
                stream is left.
        """
        send, recv = await self._driver.accept_bi()
        return SendStream(self._driver, send), RecvStream(self._driver, recv)

    async def accept_uni(self) -> RecvStream:
        """Wait for a stream on which only the peer sends; otherwise like `accept_bi`."""
        return RecvStream(self._driver, await self._driver.accept_uni())

    # --- datagrams ------------------------------------------------------------------------------

    @property
    def max_datagram_size(self) -> int | None:
        """The largest datagram that can be sent now, bytes; None if the peer takes none."""
        return self._driver.core.max_datagram_payload

    def send_datagram(self, data: Data) -> None:
        """Send a message that may be lost, duplicated or reordered. Never waits.

        Raises:
            LocalError: it is larger than `max_datagram_size`, or the peer takes none.
            ConnectionClosed, ConnectionClosedByPeer, ConnectionLost: the connection is over.
        """
        self._driver.check_open()
        largest = self.max_datagram_size
        if largest is None:
            raise LocalError("the peer does not accept datagrams", endpoint_id=self.remote_id)
        if len(data) > largest:
            raise LocalError(
                f"a datagram of {len(data)} bytes does not fit; {largest} do now",
                endpoint_id=self.remote_id,
                hint="send it on a stream",
            )
        self._driver.send_datagram(bytes(data))

    async def read_datagram(self) -> bytes:
        """Wait for a datagram. When nobody reads, the oldest are dropped and counted.

        Raises:
            Busy: another task is reading them.
            ConnectionClosed, ConnectionClosedByPeer, ConnectionLost: the connection is over and no
                datagram is left.
        """
        return await self._driver.read_datagram()

    # --- state ----------------------------------------------------------------------------------

    def paths(self) -> list[PathInfo]:
        """Return a snapshot of all paths, the selected one first."""
        paths = [
            self._driver.path_info(path)
            for path in self._driver.core.paths.values()
            if not path.abandoned and not path.parked
        ]
        return sorted(paths, key=lambda path: not path.is_selected)

    async def path_events(self) -> AsyncGenerator[PathEvent, None]:
        """Yield what happens to the paths, starting with those that exist.

        A reader that falls behind gets `Lagged`. The iteration ends with the connection; to leave
        earlier, close it (`contextlib.aclosing`).
        """
        reader: EventQueue[PathEvent] = EventQueue(MAX_PENDING_PATH_EVENTS)
        for path in self.paths():
            if path.state != "validating":
                reader.put(PathOpened(path))
        self._driver.add_path_reader(reader)
        try:
            async for event in reader:
                yield event
        finally:
            self._driver.remove_path_reader(reader)

    def stats(self) -> ConnectionStats:
        """Return the current counters."""
        core = self._driver.core
        paths = list(core.paths.values())
        selected = core.paths.selected
        lost = sum(path.recovery.lost_packets for path in paths)
        sent = sum(path.recovery.sent_packets for path in paths)
        return ConnectionStats(
            sent_bytes=core.bytes_sent,
            received_bytes=core.bytes_received,
            received_packets=core.packets_received,
            undecryptable_packets=core.packets_undecryptable,
            duplicate_packets=core.packets_duplicate,
            lost_packets=core.paths.lost_packets_before + lost,
            sent_packets=core.paths.sent_packets_before + sent,
            dropped_datagrams=core.datagrams.dropped + self._driver.datagrams_dropped,
            key_updates=core.protection.updates if core.protection is not None else 0,
            rtt_s=selected.recovery.srtt if selected is not None else 0.0,
        )

    @property
    def is_closed(self) -> bool:
        """Whether the connection is over."""
        return self._driver.error is not None

    async def closed(self) -> DialkeyError:
        """Wait until the connection is over; return the error that says why."""
        return await self._driver.closed()

    def close(self, code: int = 0, reason: bytes = b"") -> None:
        """Close at once; the peer sees `code` and `reason`. Idempotent.

        What was written and not yet acknowledged may be lost: await `delivered` first if that matters.
        Leaving ``async with connection`` does so.

        Args:
            code: chosen by the application, 0 to 2^62-1.
            reason: at most 1,000 bytes.
        """
        if not 0 <= code < 1 << 62:
            raise LocalError(f"a close code is a number from 0 to 2^62-1, not {code}")
        self._driver.close(code, reason[:MAX_REASON_BYTES])

    def request_key_update(self) -> bool:
        """Change the keys; False if a change is still in progress. Happens by itself when due."""
        return self._driver.update_keys()
