"""What both ends of a relay connection ask of the kernel."""

from __future__ import annotations

import socket
from typing import Final

__all__ = ["limit_unsent"]

_TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)


def limit_unsent(sock: socket.socket | None, max_bytes: int) -> None:
    """Let the kernel hold only so much that has not been sent yet.

    The rest waits in our queues, where it can be dropped when it is old. What is on its way does
    not count, so that a long way loses no throughput.
    """
    if sock is not None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, max_bytes)
        except OSError:
            # Not known to this system: the kernel's own buffers are the limit then.
            return
