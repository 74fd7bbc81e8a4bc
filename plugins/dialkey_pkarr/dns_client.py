"""Asks DNS servers for TXT records; the state machine is `dns_query.DnsQuery`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import struct
from collections.abc import Sequence

import attrs
import dns.name
import dns.nameserver
import dns.resolver

from dialkey_pkarr.dns_query import AskByTcp, DnsQuery
from dialkey_pkarr.errors import ServerFailed
from dialkey_pkarr.limits import DNS_TIMEOUT_S

__all__ = ["NameServer", "ask_txt", "system_servers"]


@attrs.frozen
class NameServer:
    """A DNS server.

    Attributes:
        host: its IP address.
        port: for UDP and TCP.
    """

    host: str
    port: int = 53

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 53 else f"{host}:{self.port}"


def system_servers() -> list[NameServer]:
    """Return the DNS servers that this machine uses; none if it knows of none."""
    try:
        resolver = dns.resolver.Resolver()
    except (dns.resolver.NoResolverConfiguration, OSError):
        return []
    found = []
    for each in resolver.nameservers:
        if isinstance(each, str):
            found.append(NameServer(each, resolver.port))
        elif isinstance(each, dns.nameserver.Do53Nameserver):
            found.append(NameServer(each.address, each.port))
    return found


async def ask_txt(name: dns.name.Name, servers: Sequence[NameServer]) -> list[bytes]:
    """Return the TXT strings of a name; none if there is no such name, or it has none.

    Only these servers are asked, and only they are listened to. Cancelling it closes all sockets.

    Raises:
        ServerFailed: no server gave an answer within `limits.DNS_TIMEOUT_S`.
    """
    exchange = _Exchange(name, servers)
    try:
        await exchange.run()
    finally:
        await exchange.close()
    if exchange.query.answer is None:
        raise ServerFailed("; ".join(exchange.query.errors))
    return exchange.query.strings()


class _Exchange:
    def __init__(self, name: dns.name.Name, servers: Sequence[NameServer]) -> None:
        self._loop = asyncio.get_running_loop()
        self._servers = {str(each): each for each in servers}
        self.query = DnsQuery(
            name, list(self._servers), secrets.randbelow(1 << 16), self._loop.time()
        )
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: list[asyncio.DatagramTransport] = []

    async def run(self) -> None:
        while True:
            for action in self.query.take_actions():
                run = self._by_tcp if isinstance(action, AskByTcp) else self._by_udp
                task = asyncio.create_task(run(action.server, action.data), name="dialkey-dns")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            if self.query.is_over:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self.query.timer()):
                    await self._news.wait()
            self._news.clear()
            self.query.on_timer(self._loop.time())

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for transport in self._transports:
            transport.abort()

    # --- what arrives ---------------------------------------------------------------------------

    def on_message(self, server: str, data: bytes, *, by_tcp: bool) -> None:
        self.query.on_message(server, data, self._loop.time(), by_tcp=by_tcp)
        self._news.set()

    def on_unreachable(self, server: str, error: Exception, *, by_tcp: bool) -> None:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else str(error) or type(error).__name__
        self.query.on_unreachable(server, reason, self._loop.time(), by_tcp=by_tcp)
        self._news.set()

    async def _by_udp(self, server: str, data: bytes) -> None:
        where = self._servers[server]
        try:
            # Connected, so that the kernel lets through what comes from the server and nothing else.
            transport, _ = await self._loop.create_datagram_endpoint(
                lambda: _Listener(self, server), remote_addr=(where.host, where.port)
            )
        except OSError as error:
            self.on_unreachable(server, error, by_tcp=False)
            return
        self._transports.append(transport)
        transport.sendto(data)

    async def _by_tcp(self, server: str, data: bytes) -> None:
        where = self._servers[server]
        try:
            async with asyncio.timeout(DNS_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(where.host, where.port)
                try:
                    writer.write(struct.pack(">H", len(data)) + data)
                    await writer.drain()
                    (size,) = struct.unpack(">H", await reader.readexactly(2))
                    answer = await reader.readexactly(size)
                finally:
                    writer.transport.abort()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except asyncio.IncompleteReadError:
            self.on_unreachable(server, OSError("closed without an answer"), by_tcp=True)
        except (OSError, TimeoutError) as error:
            self.on_unreachable(server, error, by_tcp=True)
        else:
            self.on_message(server, answer, by_tcp=True)


class _Listener(asyncio.DatagramProtocol):
    def __init__(self, exchange: _Exchange, server: str) -> None:
        self._exchange = exchange
        self._server = server

    def datagram_received(self, data: bytes, addr: object) -> None:
        self._exchange.on_message(self._server, data, by_tcp=False)

    def error_received(self, exc: Exception) -> None:
        self._exchange.on_unreachable(self._server, exc, by_tcp=False)
