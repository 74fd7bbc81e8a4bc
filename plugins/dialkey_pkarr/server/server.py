"""The discovery server: records, HTTP, and DNS over UDP, TCP and HTTPS."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import cast

import attrs
import dns.rcode

from dialkey.errors import BindError
from dialkey.identity import EndpointId
from dialkey.shares import network_of
from dialkey_pkarr.errors import InvalidPacket, ServerConfigError, StoreFailed
from dialkey_pkarr.limits import (
    IDLE_TIMEOUT_S,
    LISTEN_BACKLOG,
    MAX_PENDING_GETS,
    MAX_REPEATED_ANSWERS,
    MAX_REQUESTS_PER_CONNECTION,
    MAX_SERVER_CONNECTIONS,
    PUTS_PER_KEY,
    PUTS_PER_NETWORK,
    REQUEST_TIMEOUT_S,
    UDP_ANSWERS_PER_NETWORK,
)
from dialkey_pkarr.packets import SignedPacket
from dialkey_pkarr.server.metrics import CONTENT_TYPE, render
from dialkey_pkarr.server.quotas import Places, Quota
from dialkey_pkarr.server.records import Records
from dialkey_pkarr.server.store import RecordStore
from dialkey_pkarr.server.web import (
    DNS_JSON,
    DNS_MESSAGE,
    HttpConnection,
    HttpFault,
    Reply,
    Request,
    as_json,
    doh_query,
    fault,
    key_of_path,
)
from dialkey_pkarr.server.zone import Question, Zone

__all__ = ["Address", "DiscoveryServer", "TlsFiles"]

logger = logging.getLogger("dialkey.dns")

Address = tuple[str, int]
_PACKET = ("content-type", "application/x-pkarr-signed-packet")
_TEXT = ("content-type", "text/plain; charset=utf-8")
_READ_BYTES = 65_536


@attrs.frozen
class TlsFiles:
    """A certificate chain and its key, in PEM files."""

    certificate: Path
    key: Path

    def load(self, context: ssl.SSLContext) -> None:
        """Put them into a context; what it had before stays where they cannot be used.

        Raises:
            ServerConfigError: they cannot be used.
        """
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ServerConfigError(
                f"{self.certificate} and {self.key} are not a certificate chain with its key: "
                f"{error.strerror or error}"
            ) from None

    def check(self) -> None:
        """See that they can be used.

        Raises:
            ServerConfigError: they cannot.
        """
        self.load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


class DiscoveryServer:
    """Takes signed records over HTTP, and gives them over HTTP and DNS.

    Args:
        store: where they are kept; closed at the end.
        zone: the names that are answered for.
        dns: where to listen for DNS over UDP and TCP, None for not at all.
        http: where to listen for HTTP.
        https: where to listen for HTTPS.
        tls: the certificate for `https`.
        metrics: where metrics are served, to whoever can connect.
        allowed: the keys whose records are taken; None for everybody's.
        clock: seconds since 1970.
        connections: how many there may be over TCP.
        puts_per_network: burst and rate per second for one address.
        udp_answers_per_network: the same of full answers over UDP.

    Raises:
        ServerConfigError: the certificate cannot be used.
    """

    def __init__(
        self,
        store: RecordStore,
        zone: Zone,
        *,
        dns: Address | None = None,
        http: Address | None = None,
        https: Address | None = None,
        tls: TlsFiles | None = None,
        metrics: Address | None = None,
        allowed: frozenset[EndpointId] | None = None,
        clock: Callable[[], float] = time.time,
        connections: int = MAX_SERVER_CONNECTIONS,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        puts_per_network: tuple[float, float] = PUTS_PER_NETWORK,
        udp_answers_per_network: tuple[float, float] = UDP_ANSWERS_PER_NETWORK,
    ) -> None:
        self.records = Records(store, clock)
        self._zone = zone
        self._dns, self._http, self._https, self._metrics = dns, http, https, metrics
        self._allowed = allowed
        self._request_timeout_s = request_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._places = Places(connections)
        self._puts_by_network = Quota(*puts_per_network)
        self._puts_by_key = Quota(*PUTS_PER_KEY)
        self._udp_by_network = Quota(*udp_answers_per_network)
        self._answers: dict[bytes, tuple[SignedPacket, bytes]] = {}
        self._context: ssl.SSLContext | None = None
        if tls is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load(self._context)
        self._tasks: set[asyncio.Task[None]] = set()
        self._udp_tasks = 0
        self._stack = contextlib.AsyncExitStack()
        self.addresses: dict[str, Address] = {}

    def use(self, zone: Zone, allowed: frozenset[EndpointId] | None, tls: TlsFiles | None) -> None:
        """Take the place of zone, access and certificate while running.

        Raises:
            ServerConfigError: the certificate cannot be used; then nothing has changed.
        """
        if tls is not None and self._context is not None:
            tls.check()
            tls.load(self._context)
        self._zone, self._allowed = zone, allowed
        self._answers.clear()

    # --- life -----------------------------------------------------------------------------------

    async def __aenter__(self) -> DiscoveryServer:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.records)
            stack.push_async_callback(self._end_tasks)
            if self._dns is not None:
                await self._listen_dns(stack, self._dns)
            if self._http is not None:
                await self._listen(stack, "http", self._http, self._serve_http)
            if self._https is not None:
                await self._listen(stack, "https", self._https, self._serve_https)
            if self._metrics is not None:
                await self._listen(stack, "metrics", self._metrics, self._serve_metrics)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(
        self,
        stack: contextlib.AsyncExitStack,
        name: str,
        address: Address,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]],
    ) -> None:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._keep(self._connection(reader, writer, serve))

        try:
            sock = _bound(address, socket.SOCK_STREAM)
            server = await asyncio.start_server(
                accept, sock=sock, backlog=LISTEN_BACKLOG, limit=_READ_BYTES
            )
        except OSError as error:
            raise _cannot_listen(name, address, error) from error
        stack.callback(server.close)
        self.addresses[name] = server.sockets[0].getsockname()[:2]

    async def _listen_dns(self, stack: contextlib.AsyncExitStack, address: Address) -> None:
        await self._listen(stack, "dns", address, self._serve_dns)
        try:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Udp(self),
                sock=_bound((address[0], self.addresses["dns"][1]), socket.SOCK_DGRAM),
            )
        except OSError as error:
            raise _cannot_listen("dns", address, error) from error
        stack.callback(transport.close)

    def _keep(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _connection(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]],
    ) -> None:
        """Give a connection its place, and see that it ends."""
        network = network_of(_remote(writer))

        def displace() -> None:
            self.records.counters.connections_displaced += 1
            writer.transport.abort()

        number = self._places.enter(network, displace)
        try:
            await serve(reader, writer)
        except TimeoutError:
            self.records.counters.timeouts += 1
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # the client went, or does not speak TLS
        finally:
            self._places.left(network, number)
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()
            writer.close()

    # --- HTTP -----------------------------------------------------------------------------------

    async def _serve_https(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        assert self._context is not None
        async with asyncio.timeout(self._request_timeout_s):
            await writer.start_tls(self._context)
        await self._serve_http(reader, writer)

    async def _serve_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        remote = _remote(writer)
        await self._converse(reader, writer, lambda request: self.reply(request, remote))

    async def _serve_metrics(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async def reply(request: Request) -> Reply:
            body = render(self.records, len(self._places))
            return Reply(200, body, (("content-type", CONTENT_TYPE),))

        await self._converse(reader, writer, reply)

    async def _converse(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        reply: Callable[[Request], Coroutine[None, None, Reply]],
    ) -> None:
        http = HttpConnection()
        left = MAX_REQUESTS_PER_CONNECTION
        data = b""
        while left and not http.is_over:
            left -= 1
            try:
                async with asyncio.timeout(self._request_timeout_s):
                    request = await self._request(http, reader, writer)
                if request is None:
                    return
                answer = await reply(request)
                is_head = request.method == "HEAD"
                data = http.respond(answer, is_last=not left, is_head=is_head)
            except HttpFault as error:
                data = http.respond(fault(error.status, error.message), is_last=True)
            async with asyncio.timeout(self._request_timeout_s):
                writer.write(data)
                await writer.drain()
            if http.is_over:
                return
            if http.is_idle:
                async with asyncio.timeout(self._idle_timeout_s):
                    first = await reader.read(_READ_BYTES)
                if not first:
                    return
                http.feed(first)

    async def _request(
        self, http: HttpConnection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Request | None:
        while (request := http.next_request()) is None:
            if waited_for := http.take_continue():
                writer.write(waited_for)
            data = await reader.read(_READ_BYTES)
            if not data:
                return None
            http.feed(data)
        return request

    async def reply(self, request: Request, remote: str) -> Reply:
        """Answer an HTTP request.

        Args:
            remote: the client's IP address.
        """
        self.records.counters.http_requests += 1
        try:
            return await self._route(request, remote)
        except HttpFault as error:
            return fault(error.status, error.message)
        except StoreFailed:
            return fault(503, "the database does not answer", ("retry-after", "5"))

    async def _route(self, request: Request, remote: str) -> Reply:
        path, method = request.path, request.method
        if path.startswith("/pkarr/"):
            key = key_of_path(path.removeprefix("/pkarr/"))
            if method == "PUT":
                return await self._put(key, request.body, remote)
            if method in ("GET", "HEAD"):
                return await self._get(key)
            return _not_allowed("GET, HEAD, PUT")
        if path == "/dns-query":
            if method not in ("GET", "HEAD", "POST"):
                return _not_allowed("GET, HEAD, POST")
            return await self._doh(request)
        if method not in ("GET", "HEAD"):
            return _not_allowed("GET, HEAD") if path in ("/", "/healthz") else fault(404, None)
        if path == "/healthz":
            trouble = self.records.trouble
            body = {"status": "ok" if trouble is None else "degraded"}
            if trouble is not None:
                body["detail"] = "the database does not answer; what is in memory is served"
            status = 200 if trouble is None else 503
            return Reply(status, json.dumps(body).encode(), (("content-type", "application/json"),))
        if path == "/":
            return Reply(200, b"A discovery server of dialkey.\n", (_TEXT,))
        return fault(404, None)

    async def _put(self, key: EndpointId, body: bytes, remote: str) -> Reply:
        counters = self.records.counters
        now = asyncio.get_running_loop().time()
        # Before the signature is looked at: what fails is charged, too.
        if not self._puts_by_network.take(network_of(remote), now):
            counters.puts_limited += 1
            return fault(429, "too many requests from this address", ("retry-after", "1"))
        if self._allowed is not None and key not in self._allowed:
            counters.puts_refused += 1
            return fault(403, "this server does not take records of this key")
        try:
            packet = SignedPacket.from_payload(key, body)
            # After the signature: nobody else can use up what a key may do.
            if not self._puts_by_key.take(key, now):
                counters.puts_limited += 1
                return fault(429, "too many requests for this key", ("retry-after", "2"))
            await self.records.put(packet)
        except InvalidPacket as error:
            counters.puts_refused += 1
            return fault(400, f"invalid body payload: {error.message}")
        return Reply(204)

    async def _get(self, key: EndpointId) -> Reply:
        self.records.counters.gets += 1
        packet = await self.records.get(key)
        if packet is None:
            return fault(404, None)
        return Reply(200, packet.to_payload(), (_PACKET,))

    async def _doh(self, request: Request) -> Reply:
        self.records.counters.dns_queries_https += 1
        data, wants_json = doh_query(request)
        question = self._zone.read(data)
        if not isinstance(question, Question):
            raise HttpFault(400, "this is not a DNS question")
        message = await self._message(question)
        headers: tuple[tuple[str, str], ...] = ()
        if message.answer and request.method != "POST":
            headers = (("cache-control", f"s-maxage={min(each.ttl for each in message.answer)}"),)
        if wants_json:
            return Reply(200, as_json(message), (("content-type", DNS_JSON), *headers))
        wire = self._zone.to_wire(message, question, by_udp=False)
        return Reply(200, wire, (("content-type", DNS_MESSAGE), *headers))

    # --- DNS ------------------------------------------------------------------------------------

    async def _message(self, question: Question) -> dns.message.Message:
        try:
            packet = await self.records.get(question.id) if question.id is not None else None
        except StoreFailed:
            self.records.counters.dns_errors += 1
            return self._zone.failed(question)
        return self._answered(question, packet)

    def _answered(self, question: Question, packet: SignedPacket | None) -> dns.message.Message:
        message = self._zone.answer(question, packet)
        counters = self.records.counters
        if message.answer:
            counters.dns_found += 1
        elif message.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            counters.dns_not_found += 1
        else:
            counters.dns_errors += 1
        return message

    async def _serve_dns(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(MAX_REQUESTS_PER_CONNECTION):
            async with asyncio.timeout(self._request_timeout_s):
                (size,) = struct.unpack(">H", await reader.readexactly(2))
                data = await reader.readexactly(size)
            self.records.counters.dns_queries_tcp += 1
            question = self._zone.read(data)
            if question is None:
                return
            if isinstance(question, Question):
                message = await self._message(question)
                question = self._zone.to_wire(message, question, by_udp=False)
            async with asyncio.timeout(self._request_timeout_s):
                writer.write(struct.pack(">H", len(question)) + question)
                await writer.drain()

    def datagram(self, data: bytes, remote: str, send: Callable[[bytes], None], now: float) -> None:
        """Answer a DNS message that came over UDP, now or when the store has answered.

        Args:
            remote: the IP address that it came from.
            send: sends an answer to where the message came from.
        """
        counters = self.records.counters
        counters.dns_queries_udp += 1
        repeated = self._repeated(data)
        if repeated is not None and self._udp_by_network.take(network_of(remote), now):
            counters.dns_found += 1
            send(data[:2] + repeated)
            return
        question = self._zone.read(data)
        if question is None:
            return
        if isinstance(question, bytes):
            send(question)
            return
        if not self._udp_by_network.take(network_of(remote), now):
            counters.dns_udp_limited += 1
            send(self._zone.truncated(question))
            return
        packet = self.records.cached(question.id) if question.id is not None else None
        if packet is not None or question.id is None:
            message = self._answered(question, packet)
            wire = self._zone.to_wire(message, question, by_udp=True)
            send(wire)
            if packet is not None and message.answer:
                self._answers[data[2:]] = packet, wire[2:]
                if len(self._answers) > MAX_REPEATED_ANSWERS:
                    del self._answers[next(iter(self._answers))]
        elif self._udp_tasks < MAX_PENDING_GETS:
            self._udp_tasks += 1
            self._keep(self._later(question, send))
        else:
            counters.dns_errors += 1
            send(self._zone.failed(question).to_wire())

    def _repeated(self, data: bytes) -> bytes | None:
        """Return the answer to the same question, without its id, while the record is the same."""
        found = self._answers.get(data[2:])
        if found is None:
            return None
        packet, wire = found
        if self.records.cached(packet.id) is packet:
            return wire
        del self._answers[data[2:]]
        return None

    async def _later(self, question: Question, send: Callable[[bytes], None]) -> None:
        try:
            message = await self._message(question)
            send(self._zone.to_wire(message, question, by_udp=True))
        finally:
            self._udp_tasks -= 1


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DiscoveryServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Before Python 3.13 the transport is not an instance of what it is by contract.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._server.datagram(
            data,
            addr[0],
            lambda answer: self._transport.sendto(answer, addr),
            asyncio.get_running_loop().time(),
        )


def _bound(address: Address, kind: socket.SocketKind) -> socket.socket:
    """Bind a socket; ``::`` is for IPv4 as well, which asyncio by itself would leave out."""
    found = socket.getaddrinfo(*address, type=kind, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(found[0], kind)
    try:
        if kind == socket.SOCK_STREAM and os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if found[0] == socket.AF_INET6:
            both = address[0] == "::"
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        sock.bind(found[4])
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _remote(writer: asyncio.StreamWriter) -> str:
    peer = writer.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else ""


def _not_allowed(methods: str) -> Reply:
    return fault(405, None, ("allow", methods))


def _cannot_listen(name: str, address: Address, error: OSError) -> BindError:
    hints = {
        errno.EADDRINUSE: "another program listens there; for port 53 perhaps a local resolver",
        errno.EACCES: "ports below 1024 are for root, or for CAP_NET_BIND_SERVICE",
    }
    known = error.errno is not None and error.errno > 0
    reason = os.strerror(error.errno) if known and error.errno is not None else str(error)
    host, port = address
    return BindError(
        f"the {name} address {host}, port {port}, cannot be had: {reason}",
        hint=hints.get(error.errno) if error.errno is not None else None,
    )
