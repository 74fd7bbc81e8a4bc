"""What both ends of a relay connection ask of the kernel."""

from __future__ import annotations

import socket
from typing import Final

__all__ = ["prepare"]

_TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)


def prepare(sock: socket.socket | None, max_unsent_bytes: int) -> None:
    """Send at once what is written, and let the kernel hold only so much that has not been sent yet.

    Without the first a small frame waits until the one before it is acknowledged, for up to 40 ms;
    asyncio asks for it only where the socket was made with TCP's number as its protocol. What the second
    leaves over waits in our queues, where it can be dropped when it is old. What is on its way does
    not count, so that a long way loses no throughput.
    """
    if sock is not None:
        _try_option(sock, socket.TCP_NODELAY, 1)
        # Not known to every system: the kernel's own buffers are the limit then.
        _try_option(sock, _TCP_NOTSENT_LOWAT, max_unsent_bytes)


def _try_option(sock: socket.socket, option: int, value: int) -> None:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError:
        return
