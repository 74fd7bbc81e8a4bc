"""The address lookups: signed packets on an HTTP server, and TXT records in DNS.

Source: docs/wire/discovery.md 6.4, 7 and 10.3.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final, Protocol

import dns.exception
import dns.name

from dialkey.endpoint import EndpointInfo, LookupAnswer
from dialkey.errors import DialkeyError, InvalidInput
from dialkey.identity import EndpointId, SecretKey
from dialkey_pkarr.dns_client import NameServer, ask_txt, system_servers
from dialkey_pkarr.errors import ServerFailed
from dialkey_pkarr.filters import AddrFilter, filtered, fitting, relay_only
from dialkey_pkarr.http import HttpServer, Reply
from dialkey_pkarr.limits import REPUBLISH_S, RETRY_MOST_S
from dialkey_pkarr.packets import SignedPacket, Timestamps
from dialkey_pkarr.records import LABEL, parse_attributes

__all__ = ["DnsLookup", "PkarrLookup"]

logger = logging.getLogger("dialkey.pkarr")

_NOT_FOUND: Final = 404


class _Server(Protocol):
    """What a publisher needs of a server."""

    @property
    def name(self) -> str: ...

    async def request(self, method: str, path: str, body: bytes | None = None) -> Reply: ...


class PkarrLookup:
    """Publishes signed packets on a server, and finds those of others there.

    Args:
        url: of the server, such as ``https://dns.iroh.link/pkarr``; the key is appended.
        key: what signs; without one nothing is published, but others can still be found.
        publish: which addresses are published.
        tls: for ``https``, also of the proxy; the system's roots if None.
        proxy: the URL of a proxy, "" for none, None for what the environment says.

    Raises:
        InvalidAddress: the URL is not one of HTTP. InvalidInput: the proxy's is not.
    """

    name = "pkarr"

    def __init__(
        self,
        url: str,
        *,
        key: SecretKey | None = None,
        publish: AddrFilter = relay_only,
        tls: ssl.SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        self._server = HttpServer(url, tls=tls, proxy=proxy)
        self._publisher = _Publisher(self._server, key) if key is not None else None
        self._filter = publish
        self._closed = False

    async def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        reply = await self._server.request("GET", id.to_z32())
        if reply.status == _NOT_FOUND:
            return
        if not reply.is_success:
            raise ServerFailed(f"{self._server.name} answered {reply.status}")
        packet = SignedPacket.from_payload(id, reply.body)
        yield LookupAnswer(packet.info(), packet.timestamp_us / 1e6, self._server.name)

    async def publish(self, info: EndpointInfo) -> None:
        """Pass the newest to the task that publishes it, repeatedly; returns at once."""
        if self._publisher is not None and not self._closed:
            self._publisher.update(filtered(info, self._filter))

    @property
    def publish_trouble(self) -> str:
        """Why the last attempt to publish failed; empty if it did not."""
        return self._publisher.trouble if self._publisher is not None else ""

    @property
    def is_published(self) -> bool:
        """Whether the server has what was last published, and that says where we are."""
        return self._publisher is not None and self._publisher.is_published

    async def published(self) -> None:
        """Wait until the server has what was last published; forever, if it never accepts it."""
        if self._publisher is not None:
            await self._publisher.published()

    async def close(self) -> None:
        self._closed = True
        if self._publisher is not None:
            await self._publisher.close()


class _Publisher:
    """Publishes the newest at once, again after a failure, and repeatedly from time to time.

    Strictly one request at a time, each with a fresh signature. Changes in the meantime are published
    right after it.
    """

    def __init__(
        self,
        server: _Server,
        key: SecretKey,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._server = server
        self._key = key
        self._clock = clock
        self._chance = chance
        self._timestamps = Timestamps()
        self._info: EndpointInfo | None = None
        self._news = asyncio.Event()
        self._done = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.trouble = ""

    def update(self, info: EndpointInfo) -> None:
        if info == self._info:
            return
        if self._info is None and not info.addr.addrs and info.user_data is None:
            # As at the start, before there is a home relay: wait for a record that is worth publishing.
            return
        self._info = info
        self._done.clear()
        self._news.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="dialkey-pkarr-publish")

    @property
    def is_published(self) -> bool:
        return self._done.is_set() and self._info is not None and bool(self._info.addr.addrs)

    async def published(self) -> None:
        await self._done.wait()

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        failures = 0
        while True:
            self._news.clear()
            info = self._info
            assert info is not None
            try:
                pause_s = await self._put(info)
            except DialkeyError as error:
                # Others cannot find us here for now; keep trying.
                if not self.trouble:
                    logger.warning("publishing failed: %s", error.message)
                self.trouble = error.message
                failures += 1
                pause_s = min(float(failures), RETRY_MOST_S) * self._chance(0.8, 1.2)
            else:
                if pause_s is None:
                    failures, self.trouble = 0, ""
                    pause_s = REPUBLISH_S
                    if info == self._info:
                        self._done.set()
                else:
                    failures += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._news.wait()

    async def _put(self, info: EndpointInfo) -> float | None:
        """Put a packet; return None, or how long the server wants us to wait."""
        kept = fitting(info)
        left_out = len(info.addr.addrs) - len(kept.addr.addrs)
        if left_out:
            logger.warning("%d addresses do not fit into the published record", left_out)
        packet = SignedPacket.of_info(self._key, kept, self._timestamps.next(self._clock()))
        reply = await self._server.request("PUT", packet.id.to_z32(), packet.to_payload())
        if reply.is_success:
            return None
        reason = f"{self._server.name} answered {reply.status}"
        if reply.retry_after_s is None:
            raise ServerFailed(reason)
        self.trouble = reason
        return min(max(1.0, reply.retry_after_s), RETRY_MOST_S)


class DnsLookup:
    """Finds endpoints by TXT records in DNS; a server of signed packets publishes them there.

    Args:
        origin: the domain that ids are looked up under, such as ``dns.iroh.link.``.
        servers: who is asked, and nobody else; by default the machine's own DNS servers. Public
            resolvers learn of no id unless they are named here.

    Raises:
        InvalidInput: the origin is not a domain.
    """

    name = "dns"

    def __init__(self, origin: str, servers: Sequence[NameServer] | None = None) -> None:
        try:
            self._origin = dns.name.from_text(origin)
            # The longest label is that of an id.
            self._name(EndpointId(bytes(32)))
        except dns.exception.DNSException as error:
            raise InvalidInput(f"{origin!r} is not a domain: {error}") from None
        self._servers = None if servers is None else tuple(servers)

    def _name(self, id: EndpointId) -> dns.name.Name:
        labels = [LABEL.encode(), id.to_z32().encode()]
        return dns.name.Name(labels).concatenate(self._origin)

    async def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        servers = system_servers() if self._servers is None else self._servers
        strings = await ask_txt(self._name(id), servers)
        if strings:
            yield LookupAnswer(parse_attributes(id, strings), source=str(self._origin))

    async def publish(self, info: EndpointInfo) -> None:
        """DNS is written by others."""

    async def close(self) -> None:
        """Nothing to close."""
