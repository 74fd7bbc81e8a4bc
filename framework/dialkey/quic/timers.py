"""When a connection has to do something, and what is done then: one clock for all its timers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey.quic import close, codes
from dialkey.quic.config import State
from dialkey.quic.events import CloseReason
from dialkey.quic.paths import multipath

if TYPE_CHECKING:
    from dialkey.quic.connection import Connection
    from dialkey.quic.paths.path import Path


def next_timer(c: Connection) -> float | None:
    """Return when `on_timer` is due, or None when the connection is gone."""
    if c.state is State.GONE:
        return None
    if c.gone_at is not None:
        return c.gone_at
    at = c.deadline
    assert at is not None
    if c.multipath is not None and c.multipath.ends_at is not None:
        at = min(at, c.multipath.ends_at)
    if c.pacing_at is not None and c.pacing_at < at:
        at = c.pacing_at
    if c.credit_at is not None and c.credit_at < at:
        at = c.credit_at
    if c.handshake is not None:
        other = c.handshake.timer()
        if other is not None and other < at:
            at = other
    for path in c.paths.values():
        if path.ack_at is not None and path.ack_at < at:
            at = path.ack_at
        other = path.recovery.timer()
        if other is not None and other < at:
            at = other
        if not path.abandoned:
            other = path.ping_at(c.config.keep_alive_s)
            if other < at:
                at = other
        if path.challenge is not None:
            at = min(at, path.challenge.deadline)
            if path.cids.peer.active is not None:
                at = min(at, path.challenge.next_at)
        if c.multipath is not None:
            at = min(at, multipath.timer(path))
    return at


def on_timer(c: Connection, now: float) -> None:
    """Do what is due; call `flush` afterwards."""
    if c.qlog is not None:
        c.qlog.now = now
    if c.gone_at is not None:
        if now >= c.gone_at:
            close.gone(c)
        return
    if c.deadline is not None and now >= c.deadline:
        cause = "idle" if c.state is State.OPEN else "handshake"
        reason = CloseReason(cause, during_handshake=c.state is State.HANDSHAKE)
        close.end(c, reason, State.GONE, now)
        return
    if c.handshake is not None:
        at = c.handshake.timer()
        if at is not None and now >= at:
            c.handshake.handle_timer(now)
    for path in list(c.paths.values()):
        _on_path_timer(c, path, now)
        if c.multipath is not None:
            multipath.on_timer(c, path, now)
    if c.multipath is not None and multipath.is_stranded(c, now):
        close.end(c, CloseReason("no path", codes.NO_VIABLE_PATH), State.GONE, now)


def _on_path_timer(c: Connection, path: Path, now: float) -> None:
    at = path.recovery.timer()
    if at is not None and now >= at:
        probes = path.recovery.on_timeout(now)
        if c.qlog is not None:
            c.qlog.metrics(path)
        path.probes_pending = max(path.probes_pending, probes)
    if not path.abandoned and now >= path.ping_at(c.config.keep_alive_s):
        asks = now >= path.last_activity + c.config.keep_alive_s or _expects_data(c)
        path.is_receiving = False
        if asks:
            path.ping_pending = True
            path.last_activity = now
    if path.abandoned and path.ack_at is not None and not multipath.has_open_path(c):
        # Nothing is left on which to acknowledge it.
        path.ack_at = None
    challenge = path.challenge
    if challenge is not None and now >= challenge.deadline:
        path.challenge = None
        if path.previous_remote is not None:
            # Nobody answers at the new address: go back to the one that was good.
            path.return_to_previous()
            c.remote = path.remote


def _expects_data(c: Connection) -> bool:
    """Whether a stream is open on which the peer may send."""
    return any(half.final_size is None for half in c.recv_halves.values())
