"""The end of a connection: CLOSING and DRAINING last three probe timeouts, then all is freed.

Source: RFC 9000 section 10, wire/quic.md 3.15.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey.printable import printable_bytes
from dialkey.quic import events
from dialkey.quic.config import Send, State
from dialkey.quic.events import CloseReason
from dialkey.quic.packets import builder

if TYPE_CHECKING:
    from dialkey.quic.connection import Connection


def end(c: Connection, reason: CloseReason, state: State, now: float) -> None:
    """Leave OPEN or HANDSHAKE: tell the peer if there is something to tell, and the owner."""
    if c.close_reason is not None:
        return
    c.close_reason = reason
    handshake = c.handshake
    if c.qlog is not None:
        c.qlog.now = now
        c.qlog.connection_closed(reason)
    if state is State.CLOSING:
        if handshake is not None and not c.confirmed and handshake.failure is None:
            text = printable_bytes(reason.reason)
            handshake.close(reason.error_code, text, is_application=reason.is_application)
        if handshake is not None:
            rooms = {c.remote: c.doubtful_room} if c.routes is None else c.routes.rooms()
            for datagram in handshake.transmit(now):
                for remote, room in rooms.items():
                    c.farewell.add(remote, datagram, room)
    if state is not State.GONE and c.protection is not None:
        # Entering the draining state answers once, so that the peer need not ask again.
        answer = reason if state is State.CLOSING else CloseReason("local")
        path = c.selected_path
        if path is not None:
            packet = builder.build_close(c, path, answer)
            c.farewell.add(path.remote, packet, None if path.validated else path.room)
    # A path that was never answered knows no round trip, only a cautious guess at one.
    pto = max((path.recovery.pto for path in c.paths.values() if path.validated), default=0.0)
    pto = pto or 3 * c.config.initial_rtt_s
    c.events.append(events.Closed(reason))
    c.release_memory()
    c.handshake = None
    c.state = state
    if state is State.GONE:
        c.state = State.CLOSING
        gone(c)
    else:
        c.gone_at = now + 3 * pto


def flush(c: Connection, now: float, send: Send) -> None:
    """Send the close, at first and again for packets that still arrive."""
    said = c.farewell.send(lambda remote, datagram: send(remote, datagram, len(datagram)))
    if said and c.state is State.DRAINING:
        c.farewell.forget()


def gone(c: Connection) -> None:
    """Free everything: nothing is answered any more."""
    if c.state is not State.GONE:
        c.state = State.GONE
        c.gone_at = None
        c.deadline = None
        c.farewell.forget()
        c.control.clear()
        c.ready.clear()
        c.datagrams.clear()
        c.send_halves.clear()
        c.recv_halves.clear()
        for path in c.paths.values():
            path.recovery.forget()
        if c.qlog is not None:
            c.qlog.close()
        c.events.append(events.Drained())
