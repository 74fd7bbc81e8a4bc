"""The plugin that gives an endpoint its relays."""

from __future__ import annotations

import ssl
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dialkey.errors import LocalError
from dialkey.hooks import hookimpl
from dialkey.identity import RelayAccess, RelayUrl
from dialkey_relay.client.dial import Dialer, default_tls
from dialkey_relay.client.status import Token
from dialkey_relay.client.transport import RelayConfig, RelayTransport

if TYPE_CHECKING:
    from dialkey import Endpoint

__all__ = ["Relay", "relay_of"]


def relay_of(endpoint: Endpoint) -> RelayTransport:
    """Return what carries an endpoint's datagrams through relays.

    Use it to watch the home relay and to change relays and tokens at run time.

    Raises:
        LocalError: the endpoint was bound without relays.
    """
    for transport in endpoint.transports:
        if isinstance(transport, RelayTransport):
            return transport
    raise LocalError("this endpoint has no relays", hint="pass Endpoint.bind(relays=[…])")


class Relay:
    """Make an endpoint reachable through relays.

    ::

        relay = Relay("https://relay.example", proxy="http://proxy.example:3128")
        async with Endpoint.bind(plugins=[relay]) as endpoint:
            await endpoint.online()
            print(endpoint.ticket())

    If the defaults suffice, ``Endpoint.bind(relays=["https://relay.example"])`` does the same. Without
    any URL it still dials peers whose addresses name a relay. One object can serve several endpoints.

    Args:
        relays: URLs, or configurations with a token for each; the nearest becomes home.
        token: for those relays that are given without one.
        tls: a context with other roots than the system's; see `default_tls`.
        proxy: the URL of an HTTP proxy, "" for none, None for what the environment says.

    Raises:
        InvalidAddress: a URL is not valid.
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

    @classmethod
    def of_values(cls, relays: Iterable[object]) -> Self:
        """Make one from what ``Endpoint.bind(relays=…)`` was given.

        Raises:
            InvalidAddress: a text is not a URL.
            InvalidInput: a file of authorities cannot be used.
            LocalError: a value is not a URL, text, `RelayConfig` or `RelayAccess`.
        """
        checked: list[RelayConfig | RelayUrl | str] = []
        token: str | None = None
        roots: list[Path] = []
        for relay in relays:
            if isinstance(relay, RelayAccess):
                token = relay.token if relay.token is not None else token
                roots += relay.roots
                continue
            if not isinstance(relay, (RelayConfig, RelayUrl, str)):
                raise LocalError(
                    f"{type(relay).__name__} is not a relay",
                    hint="pass a URL, a RelayConfig or a RelayAccess",
                )
            checked.append(relay)
        return cls(*checked, token=token, tls=default_tls(*roots) if roots else None)

    @hookimpl
    def dialkey_transports(self, endpoint: Endpoint) -> RelayTransport:
        """Carry the endpoint's datagrams."""
        transport = RelayTransport(
            endpoint.secret_key,
            self._configs,
            dialer=self._dialer,
            emit=endpoint.plugins.emit,
            open_channel=endpoint.side_channel,
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
