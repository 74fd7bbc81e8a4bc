"""QUIC, sans-IO: datagrams and the time go in, datagrams and events come out.

`Connection` is one connection; `Config` is what all connections of an endpoint share; `events` are what
a connection tells its owner. Below them: `handshake` runs Initial and Handshake packets (on aioquic),
`streams` and `paths` hold what a connection carries and over what, `packets` turns frames into datagrams
and back.
"""

from __future__ import annotations

from dialkey.quic import events
from dialkey.quic.connection import Config, Connection, State

__all__ = ["Config", "Connection", "State", "events"]
