"""Standard streams, TCP ports and Unix sockets, forwarded to a key: ``pipe/2``.

The protocol: the connecting side opens a bidirectional stream for each thing that it forwards and
writes the 4 bytes ``pipe``, because a stream on which nothing was sent cannot be seen. The listening
side returns them when it has taken the pipe. From there the stream carries bytes both ways. Each
direction ends by itself; a direction that was cut off is reset, never ended.

`Forwarder` is the listening side's handler, `Dialer` and `forward_all` are the connecting side.
"""

from __future__ import annotations

from dialkey_pipe.addresses import Local, TcpAddress, UnixPath
from dialkey_pipe.forwarding import Dialer, forward_all
from dialkey_pipe.protocol import ALPN, Code, splice
from dialkey_pipe.serving import Forwarder, OnePipe

__all__ = [
    "ALPN",
    "Code",
    "Dialer",
    "Forwarder",
    "Local",
    "OnePipe",
    "TcpAddress",
    "UnixPath",
    "forward_all",
    "splice",
]
