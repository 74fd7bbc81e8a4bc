"""The relay server: sockets, certificates, configuration and metrics around `dialkey_relay.session`."""

from __future__ import annotations

from dialkey.extras import require_extra

require_extra("relay", "a relay server", "aiohttp", "prometheus_client", "OpenSSL")
