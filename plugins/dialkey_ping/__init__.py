"""Is it there, how far away, and by which path: ``dialkey/ping/1``.

The protocol: the caller opens a bidirectional stream and writes any number of 8-byte nonces; the
other side writes each back as it arrives, and finishes when the caller has finished. Many streams
may be open at once. The round-trip time includes both applications, unlike the one of QUIC.

`Ping` is the plugin that answers; `ping` asks. As an entry point it brings the command ``dialkey ping``,
and answers where an application says ``router.add_installed("ping")``, as ``dialkey send`` does.
"""

from __future__ import annotations

from dialkey_ping.protocol import ALPN, NONCE_BYTES, Ping, PingHandler, Pong, ping

__all__ = ["ALPN", "NONCE_BYTES", "Ping", "PingHandler", "Pong", "ping"]
