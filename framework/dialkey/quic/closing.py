"""The end of a connection: CLOSING and DRAINING last three probe timeouts, then all is freed.

Source: RFC 9000 section 10, wire/quic.md 3.15.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey.quic import events, outbound
from dialkey.quic.config import Send, State
from dialkey.quic.events import CloseReason

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
            text = reason.reason.decode("utf-8", "replace")
            handshake.close(reason.error_code, text, is_application=reason.is_application)
        if handshake is not None:
            remotes = [c.remote] if c.routes is None else c.routes.remotes()
            for datagram in handshake.transmit(now):
                c.close_datagrams.extend((remote, datagram) for remote in remotes)
    if state is not State.GONE and c.protection is not None:
        # Entering the draining state answers once, so that the peer need not ask again.
        answer = reason if state is State.CLOSING else CloseReason("local")
        path = c.selected_path
        if path is not None:
            packet = outbound.build_close(c, path, answer)
            c.close_datagrams.append((path.remote, packet))
    # A path that was never answered knows no round trip, only a cautious guess at one.
    pto = max((path.recovery.pto for path in c.paths.values() if path.validated), default=0.0)
    pto = pto or 3 * c.config.initial_rtt_s
    c.events.append(events.Closed(reason))
    c.handshake = None
    c.state = state
    if state is State.GONE:
        c.state = State.CLOSING
        gone(c)
    else:
        c.gone_at = now + 3 * pto
        c.close_answers = 1


def flush(c: Connection, now: float, send: Send) -> None:
    """Send the close, at first and again for packets that still arrive."""
    # The first time at once; then for the 1st, 2nd, 4th, 8th … packet that still arrives.
    if c.close_answers >= c.close_answer_at:
        c.close_answer_at *= 2
        for remote, datagram in c.close_datagrams:
            send(remote, datagram, len(datagram))
        if c.state is State.DRAINING:
            c.close_datagrams = []


def gone(c: Connection) -> None:
    """Free everything: nothing is answered any more."""
    if c.state is not State.GONE:
        c.state = State.GONE
        c.gone_at = None
        c.deadline = None
        c.close_datagrams = []
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
