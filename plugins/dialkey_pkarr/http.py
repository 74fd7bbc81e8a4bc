"""One HTTP request to a server of signed packets, directly or through a proxy.

h11 reads and writes the bytes. Every request has a connection of its own: they are minutes apart.

Source: RFC 9112; docs/wire/discovery.md 6.4.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import ssl
import urllib.parse
from typing import Final

import attrs
import h11

from dialkey.errors import InvalidAddress
from dialkey.identity import RelayUrl
from dialkey.network import HttpProxy, proxies
from dialkey_pkarr.errors import ServerFailed
from dialkey_pkarr.limits import HTTP_TIMEOUT_S, MAX_HTTP_BODY_BYTES, MAX_HTTP_HEAD_BYTES

__all__ = ["HttpServer", "Reply"]

_RACE_AFTER_S: Final = 0.25
_READ_BYTES: Final = 16_384


@functools.lru_cache(maxsize=1)
def _system_tls() -> ssl.SSLContext:
    # Reading the system's roots takes some 20 ms.
    return ssl.create_default_context()


@attrs.frozen
class Reply:
    """What a server answered.

    Attributes:
        retry_after_s: how long it asks us to wait, or None.
    """

    status: int
    body: bytes
    retry_after_s: float | None = None

    @property
    def is_success(self) -> bool:
        """Whether the status is one of success."""
        return 200 <= self.status < 300


class HttpServer:
    """A server by its URL.

    Args:
        url: ``http`` or ``https``; a path for each request is appended to its own.
        tls: for ``https``, also of the proxy; the system's roots if None.
        proxy: the URL of a proxy, "" for none, None for what the environment says.

    Raises:
        InvalidAddress: the URL is not one of HTTP.
        InvalidInput: the proxy is not the URL of an HTTP proxy.
    """

    def __init__(
        self, url: str, *, tls: ssl.SSLContext | None = None, proxy: str | None = None
    ) -> None:
        parts = urllib.parse.urlsplit(str(RelayUrl(url)))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidAddress(
                "the URL of a discovery server begins with https:// or http://",
            )
        self._is_tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._is_tls else 80)
        self._netloc = parts.netloc.rpartition("@")[2]
        self._path = parts.path.rstrip("/")
        self._tls = tls
        self._proxy = proxy
        if proxy:
            HttpProxy.parse(proxy)

    @property
    def name(self) -> str:
        """Host, and port where it is not the usual one: for messages."""
        return self._netloc

    async def request(self, method: str, path: str, body: bytes | None = None) -> Reply:
        """Send one request and read the whole answer.

        Args:
            path: appended to that of the URL; without a leading slash.

        Raises:
            ServerFailed: no answer within `limits.HTTP_TIMEOUT_S`, or none that is HTTP.
        """
        try:
            async with asyncio.timeout(HTTP_TIMEOUT_S):
                return await self._request(method, path, body)
        except TimeoutError:
            raise ServerFailed(f"{self.name} did not answer within {HTTP_TIMEOUT_S:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise ServerFailed(
                f"the certificate of {self.name} is not trusted: {error.verify_message}"
            ) from None
        except ssl.SSLError as error:
            raise ServerFailed(f"TLS with {self.name} failed: {error.reason}") from None
        except UnicodeError:
            raise ServerFailed(f"{self.name} cannot be the name of a host") from None
        except OSError as error:
            raise ServerFailed(f"no connection to {self.name}: {_words(error)}") from None
        except h11.ProtocolError as error:
            raise ServerFailed(f"{self.name} does not speak HTTP: {error}") from None

    async def _request(self, method: str, path: str, body: bytes | None) -> Reply:
        context = (self._tls or _system_tls()) if self._is_tls else None
        found = self._proxy
        if found is None:
            found = proxies.from_environment(self._host, self._port, is_tls=self._is_tls)
        reader, writer = (
            await self._through(HttpProxy.parse(found), context)
            if found
            else await self._open(self._host, self._port, context)
        )
        try:
            headers = [("Host", self._netloc), ("Accept", "*/*"), ("Connection", "close")]
            if body is not None:
                headers.append(("Content-Length", str(len(body))))
            target = f"{self._path}/{path}"
            client = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HTTP_HEAD_BYTES)
            return await self._exchange(client, reader, writer, method, target, headers, body)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                # TLS would wait for the other side to close as well.
                writer.transport.abort()
                await writer.wait_closed()

    @staticmethod
    async def _open(
        host: str, port: int, context: ssl.SSLContext | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            host,
            port,
            ssl=context,
            # A name is written into a certificate without its final dot.
            server_hostname=host.removesuffix(".") if context is not None else None,
            happy_eyeballs_delay=_RACE_AFTER_S,
        )

    async def _through(
        self, proxy: HttpProxy, context: ssl.SSLContext | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a tunnel, also for plain HTTP: then a proxy sees and changes nothing."""
        proxy_tls = (self._tls or _system_tls()) if proxy.is_tls else None
        reader, writer = await self._open(proxy.host, proxy.port, proxy_tls)
        try:
            host = f"[{self._host}]" if ":" in self._host else self._host
            where = f"{host}:{self._port}"
            headers = [("Host", where)]
            if proxy.authorization is not None:
                headers.append(("Proxy-Authorization", proxy.authorization))
            tunnel = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HTTP_HEAD_BYTES)
            reply = await self._exchange(tunnel, reader, writer, "CONNECT", where, headers, None)
            if not reply.is_success:
                hint = "it wants credentials" if reply.status == 407 else None
                raise ServerFailed(f"the proxy answered {reply.status}", hint=hint)
            if tunnel.trailing_data[0]:
                raise ServerFailed("the proxy sent more than its answer")
            if context is not None:
                await writer.start_tls(context, server_hostname=self._host.removesuffix("."))
        except BaseException:
            writer.transport.abort()
            raise
        return reader, writer

    async def _exchange(
        self,
        client: h11.Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        method: str,
        target: str,
        headers: list[tuple[str, str]],
        body: bytes | None,
    ) -> Reply:
        data = client.send(h11.Request(method=method, target=target, headers=headers))
        if body is not None:
            data = (data or b"") + (client.send(h11.Data(body)) or b"")
        data = (data or b"") + (client.send(h11.EndOfMessage()) or b"")
        writer.write(data)
        await writer.drain()
        head: h11.Response | None = None
        content = b""
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                client.receive_data(await reader.read(_READ_BYTES))
            elif isinstance(event, h11.Response):
                head = event
                if method == "CONNECT" and 200 <= head.status_code < 300:
                    return Reply(head.status_code, b"")
            elif isinstance(event, h11.Data):
                content += bytes(event.data)
                if len(content) > MAX_HTTP_BODY_BYTES:
                    raise ServerFailed(f"{self.name} sent more than {MAX_HTTP_BODY_BYTES} bytes")
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                return Reply(head.status_code, content, _retry_after(head))
            elif not isinstance(event, h11.InformationalResponse):
                raise ServerFailed(f"{self.name} closed the connection without an answer")


def _retry_after(head: h11.Response) -> float | None:
    for name, value in head.headers:
        if name == b"retry-after" and value.isdigit() and len(value) < 7:
            return float(value)
    return None


def _words(error: OSError) -> str:
    # A resolver's numbers are negative, and asyncio puts more words into the error than people need.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(error.strerror or error)
