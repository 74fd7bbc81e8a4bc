"""One TCP connection to a relay, as asyncio sees it: bytes between a socket and a `ClientMachine`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from dialkey.errors import DialkeyError
from dialkey_relay.client.machine import ClientMachine, Confirmed, Event
from dialkey_relay.errors import RelayLost
from dialkey_relay.sockets import prepare

__all__ = ["Link"]

RECEIVE_BYTES: Final = 131_072
HIGH_WATER_BYTES: Final = 262_144
"""How much may wait for a slow network; more is dropped, as old datagrams are worse than none."""

UNSENT_BYTES: Final = 65_536
"""How much may wait in the kernel as well, which by default would take megabytes: half a minute on a slow
uplink, during which handshakes and answers to pings would be stuck behind old datagrams."""

STALLED_S: Final = 15.0
"""If no byte leaves for this long while some wait, the connection is lost; the same as in iroh."""


class Link(asyncio.BufferedProtocol):
    """A connection to a relay, from TCP on.

    Args:
        make_machine: called when TCP (and TLS) are ready.
        on_events: gets what the machine reports.

    Attributes:
        confirmed: done when the relay has accepted us; fails if it does not.
        ended: done, with the reason, when the connection is over.
        dropped: datagram batches dropped for lack of room.
    """

    def __init__(
        self,
        make_machine: Callable[[asyncio.BaseTransport], ClientMachine],
        on_events: Callable[[Link, list[Event]], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._make_machine = make_machine
        self._on_events = on_events
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._flush_scheduled = False
        self._paused_at: float | None = None
        self._unsent = 0
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self.machine: ClientMachine | None = None
        self.confirmed: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[DialkeyError] = self._loop.create_future()
        self.connected_at = 0.0
        self.sent_at = 0.0
        self.dropped = 0

    @property
    def is_open(self) -> bool:
        """Whether datagrams can be sent."""
        return (
            self.confirmed.done()
            and not self.confirmed.cancelled()
            and self.confirmed.exception() is None
            and not self.ended.done()
        )

    # --- asyncio --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        prepare(transport.get_extra_info("socket"), UNSENT_BYTES)
        self.machine = self._make_machine(transport)
        self.flush()
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        reason = f"the connection to the relay broke: {exc}" if exc else "the relay hung up"
        self._end(RelayLost(reason))
        self._transport = None

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        machine = self.machine
        if machine is None or self.ended.done():
            return
        try:
            events = machine.receive(self._buffer[:nbytes], self._loop.time())
        except DialkeyError as error:
            self._end(error)
            return
        for event in events:
            if isinstance(event, Confirmed):
                self.connected_at = self._loop.time()
                if not self.confirmed.done():
                    self.confirmed.set_result(None)
        if events:
            self._on_events(self, events)
        self.flush()
        if not self.is_open or self._timer_at > machine.deadline:
            self._set_timer()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._paused_at = self._loop.time()
        self._unsent = self._waiting()

    def resume_writing(self) -> None:
        self._paused_at = None

    def _waiting(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    # --- sending --------------------------------------------------------------------------------

    def send(self, peer: bytes, data: bytes | memoryview, segment_bytes: int) -> bool:
        """Send datagrams at the end of this turn of the loop; tell whether they are on their way."""
        machine = self.machine
        if machine is None or not self.is_open:
            return False
        if self._paused_at is not None:
            self.dropped += 1
            return False
        self.sent_at = self._loop.time()
        machine.send(peer, data, segment_bytes)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self.flush)
        return True

    def flush(self) -> None:
        """Write what waits to the socket."""
        self._flush_scheduled = False
        if self._transport is None or self.machine is None or self._transport.is_closing():
            return
        data = self.machine.take_output()
        if data:
            self._transport.write(data)

    def ping(self) -> None:
        """Find out at once whether the relay still answers."""
        if self.machine is not None and self.is_open:
            self.machine.ping(self._loop.time())
            self.flush()
            self._set_timer()

    def watch_closely(self, is_close: bool) -> None:
        """Change how soon it is noticed that the relay has fallen silent."""
        if self.machine is not None:
            self.machine.watch_closely(is_close)
            self._set_timer()

    # --- time -----------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        if self.machine is None or self.ended.done():
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self.machine.deadline
        self._timer = self._loop.call_at(self._timer_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self.machine is None or self.ended.done():
            return
        now = self._loop.time()
        try:
            self.machine.on_timer(now)
        except DialkeyError as error:
            self._end(error)
            return
        if self._is_stalled(now):
            self._end(RelayLost("the relay takes no more data"))
            return
        self.flush()
        self._set_timer()

    def _is_stalled(self, now: float) -> bool:
        if self._paused_at is None:
            return False
        waiting = self._waiting()
        if waiting < self._unsent:
            self._unsent = waiting
            self._paused_at = now
            return False
        return now - self._paused_at >= STALLED_S

    # --- end ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Send a close frame and hang up. Idempotent."""
        if self.machine is not None and not self.ended.done():
            self.machine.close()
            self.flush()
            if self._transport is not None:
                self._transport.close()
        self._finish(RelayLost("the connection to the relay was closed here"))

    def abort(self, reason: str) -> None:
        """Hang up at once. Idempotent."""
        self._end(RelayLost(reason))

    def _end(self, error: DialkeyError) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._finish(error)

    def _finish(self, error: DialkeyError) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.confirmed.done():
            self.confirmed.set_exception(error)
            # Whoever dialled may have given up already.
            self.confirmed.exception()
        if not self.ended.done():
            self.ended.set_result(error)
