"""The plugin that gives an endpoint its relays."""

from __future__ import annotations

import ssl
import weakref
from typing import TYPE_CHECKING

from dialkey.errors import LocalError
from dialkey.hooks import hookimpl
from dialkey.identity import RelayUrl
from dialkey_relay.client.dial import Dialer
from dialkey_relay.client.status import Token
from dialkey_relay.client.transport import RelayConfig, RelayTransport

if TYPE_CHECKING:
    from dialkey import Endpoint

__all__ = ["Relay"]


class Relay:
    """Make an endpoint reachable through relays.

    ::

        relay = Relay("https://relay.example")
        async with Endpoint.bind(plugins=[relay]) as endpoint:
            await relay.of(endpoint).online()
            print(endpoint.ticket())

    Without any URL it still dials those whose addresses name a relay. One object can serve several
    endpoints.

    Args:
        relays: URLs, or configurations with a token for each; the nearest becomes home.
        token: for those relays that come without one.
        tls: a context with other roots than the system's; see `default_tls`.
        proxy: the URL of an HTTP proxy, "" for none, None for what the environment says.

    Raises:
        InvalidAddress: a URL is no URL.
    """

    def __init__(
        self,
        *relays: RelayConfig | RelayUrl | str,
        token: Token = None,
        tls: ssl.SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        self._configs = [
            relay if isinstance(relay, RelayConfig) else RelayConfig(relay, token)
            for relay in relays
        ]
        self._dialer = Dialer(tls=tls, proxy=proxy)
        self._transports: weakref.WeakKeyDictionary[Endpoint, RelayTransport] = (
            weakref.WeakKeyDictionary()
        )

    @hookimpl
    def dialkey_transports(self, endpoint: Endpoint) -> RelayTransport:
        """Carry the endpoint's datagrams."""
        transport = RelayTransport(
            endpoint.secret_key,
            self._configs,
            dialer=self._dialer,
            emit=endpoint.plugins.emit,
        )
        self._transports[endpoint] = transport
        return transport

    def of(self, endpoint: Endpoint) -> RelayTransport:
        """Return the transport of an endpoint: its home relay, `online`, and relays at run time.

        Raises:
            LocalError: the endpoint was bound without this plugin.
        """
        try:
            return self._transports[endpoint]
        except KeyError:
            raise LocalError(
                "this endpoint has no relays", hint="pass this plugin to Endpoint.bind(plugins=[…])"
            ) from None
