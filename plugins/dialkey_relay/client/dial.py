"""Opening a byte stream to a relay: names, addresses, proxies, TLS.

Source: docs/wire/relay.md 1.1, 1.6 and 5.2.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import itertools
import os
import re
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

from dialkey.errors import InvalidAddress
from dialkey.identity import RelayUrl
from dialkey.network import HttpProxy, MayReach, proxies
from dialkey_relay.errors import (
    RelayConfigError,
    RelayUnreachable,
    RelayUntrusted,
    RelayWireError,
)
from dialkey_relay.http1 import ClientHttp

__all__ = ["Dialer", "Target", "default_tls", "is_exempt", "proxy_from_environment"]

_VISIBLE: Final = re.compile(r"[!-~]+")
HAPPY_EYEBALLS_DELAY_S: Final = 0.25
PROXY_TIMEOUT_S: Final = 10.0

MAX_GUARDED_ADDRESSES: Final = 4
"""How many addresses of a host named by strangers are tried in turn; relays have one of each family."""

GUARDED_ADDRESS_S: Final = 3.0
"""How long each of them may take: the third still gets its turn within the ten seconds of an attempt."""


@functools.lru_cache(maxsize=1)
def _system_tls() -> ssl.SSLContext:
    # Reading the system's roots takes some 20 ms, too long to do it for each attempt.
    return ssl.create_default_context()


def default_tls(*extra_roots: str | Path) -> ssl.SSLContext:
    """Make a TLS context with the system's roots and those in further PEM files.

    Raises:
        RelayConfigError: a file cannot be read, or holds no certificates.
    """
    context = ssl.create_default_context()
    for path in extra_roots:
        try:
            context.load_verify_locations(cafile=path)
        except ssl.SSLError:
            raise RelayConfigError(
                f"{path} does not hold certificates",
                hint="a PEM file of authorities begins with -----BEGIN CERTIFICATE-----",
            ) from None
        except OSError as error:
            raise RelayConfigError(f"{path} cannot be read: {error.strerror}") from None
    return context


@attrs.frozen
class Target:
    """Where a relay URL leads.

    Attributes:
        host: name or address, as the resolver takes it.
        port: TCP port.
        is_tls: whether to speak TLS.
        host_header: for HTTP: as in the URL, with the port unless it is the scheme's own.
        query: of the URL.
    """

    host: str
    port: int
    is_tls: bool
    host_header: str
    # A token may stand there.
    query: str = attrs.field(repr=False)

    @classmethod
    def of(cls, url: RelayUrl) -> Target:
        """Parse a relay URL.

        Raises:
            InvalidAddress: it has no host, or a scheme that no relay speaks.
        """
        if url.scheme not in ("http", "https", "ws", "wss") or url.host is None:
            raise InvalidAddress(
                f"{url.redacted} cannot be dialled",
                hint="a relay URL begins with https:// or http://",
            )
        is_tls = url.scheme in ("https", "wss")
        standard = 443 if is_tls else 80
        port = url.port or standard
        header = url.host if port == standard else f"{url.host}:{port}"
        _, _, query = str(url).partition("#")[0].partition("?")
        found = cls(url.host.strip("[]"), port, is_tls, header, query)
        if not _VISIBLE.fullmatch(found.relay_path + header):
            raise InvalidAddress(
                f"{url.redacted} cannot be dialled: HTTP cannot carry its characters"
            )
        return found

    @property
    def relay_path(self) -> str:
        """Path and query of the upgrade request: the path is replaced, the query kept."""
        return f"/relay?{self.query}" if self.query else "/relay"

    @property
    def server_name(self) -> str:
        """What a certificate must name: a name is written there without its final dot."""
        return self.host.removesuffix(".")


def proxy_from_environment(target: Target) -> str | None:
    """Return the proxy that the environment names for a target (``HTTPS_PROXY`` …), or None."""
    return proxies.from_environment(target.host, target.port, is_tls=target.is_tls)


def is_exempt(target: Target, no_proxy: str) -> bool:
    """Return whether ``NO_PROXY`` names a target; see `dialkey.network.proxies.is_exempt`."""
    return proxies.is_exempt(target.host, target.port, no_proxy)


class _Tunnel(asyncio.Protocol):
    """Speaks CONNECT to a proxy, until the tunnel is open."""

    def __init__(self, proxy: HttpProxy, host: str, port: int) -> None:
        self._proxy = proxy
        self._host = host
        self._port = port
        self._http = ClientHttp()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        host = f"[{self._host}]" if ":" in self._host else self._host
        where = f"{host}:{self._port}"
        headers: tuple[tuple[str, str], ...] = (("Host", where),)
        if self._proxy.authorization is not None:
            headers = (*headers, ("Proxy-Authorization", self._proxy.authorization))
        try:
            transport.write(self._http.request("CONNECT", where, headers))
        except ValueError:
            self.opened.set_exception(
                RelayUnreachable(f"{self._host} cannot be the name of a host")
            )

    def data_received(self, data: bytes) -> None:
        if self.opened.done():
            return
        try:
            self._http.feed(data)
            response = self._http.next_response()
        except RelayWireError as error:
            self.opened.set_exception(RelayUnreachable(f"the proxy: {error.message}"))
            return
        if response is None:
            return
        if 200 <= response.status < 300:
            if self._http.has_more:
                # Neither a relay nor TLS speaks first, so these bytes belong to nobody.
                self.opened.set_exception(RelayUnreachable("the proxy sent more than its answer"))
            else:
                self.opened.set_result(None)
            return
        hint = "it wants credentials" if response.status == 407 else None
        self.opened.set_exception(
            RelayUnreachable(
                f"the proxy answered {response.status} {response.phrase[:80]}", hint=hint
            )
        )

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(RelayUnreachable("the proxy closed the connection"))


def _words(error: OSError) -> str:
    # asyncio puts more words into the error than people need; a resolver's numbers are negative.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(error.strerror or error)


def _race_after(host: str) -> float | None:
    """Return after how many seconds the next address of a host is tried beside the others.

    An address has no others; and a race that is cancelled just when it is won forgets to close the
    socket (seen in CPython 3.11).
    """
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return HAPPY_EYEBALLS_DELAY_S
    return None


def _anywhere() -> MayReach | None:
    return None


async def _resolve(target: Target, may_reach: MayReach) -> list[str]:
    """Resolve a host that strangers named; every address it leads to has to be allowed.

    Raises:
        RelayUnreachable: it leads elsewhere, or nowhere.
        OSError: the resolver says so.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    hosts = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not all(may_reach(ipaddress.ip_address(host.partition("%")[0])) for host in hosts):
        raise RelayUnreachable(
            f"{target.host} leads to a network where strangers must not send us",
            hint="name the relay in relays= to use it all the same",
        )
    # The first of each family come first.
    families = [each for each in hosts if ":" in each], [each for each in hosts if ":" not in each]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*families))
    return [host for host in turns if host is not None][:MAX_GUARDED_ADDRESSES]


@attrs.frozen
class Dialer:
    """How to get to relays.

    Attributes:
        tls: for ``https``, also of the proxy; the system's roots if None.
        proxy: the URL of a proxy, "" for none, None for what the environment says.
        guard: asked before each connection. What it returns says to which IP addresses a host may lead
            that strangers named; None says that the host is trusted.

    Raises:
        InvalidInput: the proxy is not a URL of an HTTP proxy.
    """

    tls: ssl.SSLContext | None = None
    proxy: str | None = attrs.field(default=None, repr=False)
    guard: Callable[[], MayReach | None] = attrs.field(default=_anywhere, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.proxy:
            HttpProxy.parse(self.proxy)

    def guarded(self, guard: Callable[[], MayReach | None]) -> Dialer:
        """Return a dialer like this one that asks `guard`."""
        return attrs.evolve(self, guard=guard)

    async def open(self, target: Target, protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        """Connect; the protocol's `connection_made` gets the transport.

        Cancelling it closes what was opened so far.

        Raises:
            RelayUnreachable: nobody answers there, TLS fails, or the host leads where a stranger may not
                send us; the message tells which.
            InvalidInput: the proxy that the environment names is not a URL of an HTTP proxy.
        """
        found = proxy_from_environment(target) if self.proxy is None else self.proxy or None
        proxy = HttpProxy.parse(found) if found is not None else None
        context = self._context() if target.is_tls else None
        may_reach = self.guard()
        try:
            if may_reach is not None:
                # Resolved here, once: the owner of a name can answer differently the next time.
                hosts = await _resolve(target, may_reach)
                await self._open_any(hosts, target, context, proxy, protocol)
            else:
                await self._open(target.host, target, context, proxy, protocol)
        except ssl.SSLCertVerificationError as error:
            raise RelayUntrusted(
                f"the certificate of {target.host} is not trusted: {error.verify_message}",
                hint="the root of a private authority is given by --relay-ca or RelayAccess",
            ) from error
        except ssl.SSLError as error:
            raise RelayUnreachable(f"TLS with {target.host} failed: {error.reason}") from error
        except UnicodeError:
            # From the resolver: strangers write such names into addresses, too.
            raise RelayUnreachable(f"{target.host} cannot be the name of a host") from None
        except OSError as error:
            where = f"{target.host} port {target.port}"
            if proxy is not None:
                where = f"the proxy {proxy.host} port {proxy.port}"
            raise RelayUnreachable(f"no connection to {where}: {_words(error)}") from error

    async def _open(
        self,
        host: str,
        target: Target,
        context: ssl.SSLContext | None,
        proxy: HttpProxy | None,
        protocol: Callable[[], asyncio.BaseProtocol],
    ) -> None:
        if proxy is not None:
            await self._through(proxy, host, target, context, protocol)
            return
        await asyncio.get_running_loop().create_connection(
            protocol,
            host,
            target.port,
            ssl=context,
            server_hostname=target.server_name if context is not None else None,
            happy_eyeballs_delay=_race_after(host),
        )

    async def _open_any(
        self,
        hosts: list[str],
        target: Target,
        context: ssl.SSLContext | None,
        proxy: HttpProxy | None,
        protocol: Callable[[], asyncio.BaseProtocol],
    ) -> None:
        """Try addresses one after another, since those of strangers are not worth a race."""
        failure: OSError | RelayUnreachable | None = None
        for host in hosts:
            try:
                async with asyncio.timeout(GUARDED_ADDRESS_S):
                    await self._open(host, target, context, proxy, protocol)
                return
            except ssl.SSLError:
                raise
            except TimeoutError:
                failure = RelayUnreachable(f"{target.host} does not answer at {host}")
            except (OSError, RelayUnreachable) as error:
                failure = error
        assert failure is not None
        raise failure

    def _context(self) -> ssl.SSLContext:
        return self.tls if self.tls is not None else _system_tls()

    async def _through(
        self,
        proxy: HttpProxy,
        host: str,
        target: Target,
        context: ssl.SSLContext | None,
        protocol: Callable[[], asyncio.BaseProtocol],
    ) -> None:
        loop = asyncio.get_running_loop()
        proxy_tls = self._context() if proxy.is_tls else None
        transport, tunnel = await loop.create_connection(
            lambda: _Tunnel(proxy, host, target.port),
            proxy.host,
            proxy.port,
            ssl=proxy_tls,
            happy_eyeballs_delay=_race_after(proxy.host),
        )
        try:
            async with asyncio.timeout(PROXY_TIMEOUT_S):
                await tunnel.opened
            inner = protocol()
            if context is None:
                transport.set_protocol(inner)
                inner.connection_made(transport)
                return
            secure = await loop.start_tls(
                transport, inner, context, server_hostname=target.server_name
            )
            if secure is None:
                raise RelayUnreachable("the proxy closed the connection")
            inner.connection_made(secure)
        except BaseException as error:
            transport.abort()
            if isinstance(error, TimeoutError):
                raise RelayUnreachable("the proxy does not answer") from None
            raise
