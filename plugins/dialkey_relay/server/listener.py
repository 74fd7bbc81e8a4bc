"""The connection of one client, as asyncio sees it: bytes between a socket and a `Session`."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Final

from dialkey.limits import RELAY_WRITE_TIMEOUT_S
from dialkey.printable import printable
from dialkey_relay.access import AdmitRequest
from dialkey_relay.server.tls import TlsError, TlsPipe
from dialkey_relay.session import Session, State
from dialkey_relay.sockets import prepare

if TYPE_CHECKING:
    from dialkey_relay.server.server import Listener

__all__ = ["ClientConnection"]

logger = logging.getLogger("dialkey.relay")

FLUSH_BYTES: Final = 131_072
"""Datagrams that are handed to the socket at a time; large enough that one call sends many."""

HIGH_WATER_BYTES: Final = 65_536
LOW_WATER_BYTES: Final = 16_384
"""What may wait in the transport, where it is neither fair nor dropped; the rest waits in queues."""

UNSENT_BYTES: Final = 262_144
"""What may wait in the kernel, for the same reason."""


class ClientConnection(asyncio.BufferedProtocol):
    """One TCP connection to a listener of a relay.

    All connections of a relay receive into one buffer: asyncio reads and hands over in one step, so
    it is never in use twice, and an idle client holds none.
    """

    __slots__ = (
        "_admission",
        "_hanging_up",
        "_listener",
        "_loop",
        "_paused",
        "_reading",
        "_resume",
        "_timer",
        "_timer_at",
        "_tls",
        "_transport",
        "remote",
        "session",
        "stalled_at",
        "unsent",
    )

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._loop = listener.relay.loop
        self._tls: TlsPipe | None = None
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._reading = True
        self._hanging_up = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._resume: asyncio.TimerHandle | None = None
        self._admission: asyncio.Task[None] | None = None
        self.session: Session | None = None
        self.remote = ""
        self.stalled_at = 0.0
        self.unsent = 0

    # --- asyncio: life --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer = transport.get_extra_info("peername")
        # A socket for both families writes IPv4 addresses in the manner of IPv6.
        self.remote = str(peer[0]).removeprefix("::ffff:") if isinstance(peer, tuple) else ""
        relay = self._listener.relay
        if not relay.may_enter(self):
            self._hanging_up = True
            transport.abort()
            return
        transport.set_write_buffer_limits(HIGH_WATER_BYTES, LOW_WATER_BYTES)
        prepare(transport.get_extra_info("socket"), UNSENT_BYTES)
        if self._listener.tls is not None:
            self._tls = TlsPipe(self._listener.tls)
        self.session = Session(
            relay.hub,
            self,
            self._listener.settings,
            self._loop.time(),
            remote=self.remote,
            connection_id=relay.next_connection_id(),
            exporter=self._tls.export if self._tls is not None else None,
        )
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        session = self.session
        for handle in (self._timer, self._resume):
            if handle is not None:
                handle.cancel()
        self._timer = self._resume = None
        if self._admission is not None:
            self._admission.cancel()
        self._listener.relay.left(self)
        if session is not None:
            session.closed()
            logger.debug("%s left: %s", self, printable(session.closing or ""))
            self._listener.relay.flush_ready()
        # Without its cycles a connection is freed at once, not by the garbage collector.
        self._tls = None
        self._transport = None

    def eof_received(self) -> bool:
        return False

    def __str__(self) -> str:
        session = self.session
        if session is not None and session.endpoint_id is not None:
            return f"client {session.endpoint_id.short()} #{session.connection_id}"
        return f"client at {self.remote}"

    # --- asyncio: reading -----------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._listener.relay.buffer

    def buffer_updated(self, nbytes: int) -> None:
        session = self.session
        if session is None or self._hanging_up:
            return
        relay = self._listener.relay
        now = self._loop.time()
        if self._tls is None:
            pause = session.receive(relay.buffer[:nbytes], now)
        else:
            pause = self._receive_tls(self._tls, session, relay.buffer[:nbytes], now)
        if session.state is not State.OPEN or session.closing is not None:
            self._look_around(session)
        self.flush()
        relay.flush_ready()
        if pause > 0 and self._transport is not None and not self._transport.is_closing():
            self._pause_reading(pause)

    def _receive_tls(self, tls: TlsPipe, session: Session, data: memoryview, now: float) -> float:
        pause = 0.0
        plain = self._listener.relay.plain_buffer
        try:
            tls.feed(data)
            while count := tls.read_into(plain):
                pause = max(pause, session.receive(plain[:count], now))
        except TlsError as error:
            if session.state is State.HTTP:
                self._listener.relay.hub.counters.tls_errors += 1
            session.close(error.message)
        return pause

    def _look_around(self, session: Session) -> None:
        """Do what matters only while a connection starts or ends."""
        if session.request is not None:
            request, session.request = session.request, None
            self._stop_reading()
            self._admission = self._loop.create_task(self._admit(session, request))
        self._set_timer()

    def _pause_reading(self, seconds: float) -> None:
        self._stop_reading()
        if self._resume is None:
            self._resume = self._loop.call_later(seconds, self._resume_reading)

    def _stop_reading(self) -> None:
        if self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        self._resume = None
        if self._transport is None or self._transport.is_closing() or self._reading:
            return
        self._reading = True
        self._transport.resume_reading()
        if self.session is not None:
            self.session.resumed(self._loop.time())

    # --- asyncio: writing -----------------------------------------------------------------------

    def pause_writing(self) -> None:
        self._paused = True
        self._listener.relay.watch_stalled(self)

    def resume_writing(self) -> None:
        self._paused = False
        self._listener.relay.unwatch_stalled(self)
        # Not at once: a write that fails inside this callback ends the transport twice.
        self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what the session has, as far as the socket takes it."""
        session = self.session
        transport = self._transport
        if session is None or transport is None or self._hanging_up or transport.is_closing():
            return
        out: list[bytes | memoryview] = []
        # A write that fails closes the transport; what else there is has nowhere to go.
        while not self._paused and not transport.is_closing():
            session.take_output(FLUSH_BYTES, out)
            if not out:
                break
            self._write(transport, b"".join(out))
            out.clear()
        if transport.is_closing():
            return
        if self._tls is not None and (data := self._tls.take_output()):
            transport.write(data)
        if session.closing is not None:
            self._hang_up(transport)

    def _write(self, transport: asyncio.Transport, data: bytes) -> None:
        if self._tls is None:
            transport.write(data)
            return
        try:
            self._tls.write(data)
        except TlsError as error:
            assert self.session is not None
            self.session.close(error.message)
        transport.write(self._tls.take_output())

    def _hang_up(self, transport: asyncio.Transport) -> None:
        self._hanging_up = True
        if self._tls is not None:
            self._tls.shut_down()
            transport.write(self._tls.take_output())
        transport.close()
        if self._timer is not None:
            self._timer.cancel()
        # A client that reads nothing must not keep the socket.
        self._timer = self._loop.call_later(RELAY_WRITE_TIMEOUT_S, transport.abort)

    def end(self, reason: str) -> None:
        """End the connection once its output has been sent."""
        if self.session is not None:
            self.session.end(reason)
            self.flush()

    def abort(self, reason: str) -> None:
        """End the connection at once."""
        if self.session is not None:
            self.session.close(reason)
        self._hanging_up = True
        if self._transport is not None:
            self._transport.abort()

    def unsent_bytes(self) -> int:
        """Return what the client has not taken yet, in the transport and, where told, the kernel."""
        if self._transport is None:
            return 0
        waiting = self._transport.get_write_buffer_size()
        return waiting + _kernel_unsent(self._transport.get_extra_info("socket"))

    # --- time -----------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        assert self.session is not None
        at = self.session.deadline
        if at is None or self._hanging_up:
            return
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        session = self.session
        if session is None:
            return
        if self._reading or session.state is not State.OPEN:
            session.on_timer(self._loop.time())
        else:
            # We do not listen, by the rate limit: its pong may be waiting for us.
            session.resumed(self._loop.time())
        self.flush()
        self._listener.relay.flush_ready()
        self._set_timer()

    # --- access ---------------------------------------------------------------------------------

    async def _admit(self, session: Session, request: AdmitRequest) -> None:
        relay = self._listener.relay
        answer = await relay.judge(request)
        relay.settle(self, session, answer)
        self._admission = None
        self._set_timer()
        self.flush()
        relay.flush_ready()
        self._resume_reading()


def _kernel_unsent(sock: socket.socket | None) -> int:
    """Return how many bytes the peer has not acknowledged, or 0 where the system does not tell."""
    if sock is None:
        return 0
    try:
        import fcntl
        import termios

        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except (ImportError, OSError):
        return 0
    return int.from_bytes(answer, "little")
