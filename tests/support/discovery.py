"""Small servers for tests of discovery: signed packets over HTTP, and TXT records over DNS."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable
from typing import cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
from aiohttp import web

from dialkey.identity import EndpointId
from dialkey_pkarr import SignedPacket
from dialkey_pkarr.dns_client import NameServer
from dialkey_pkarr.records import LABEL


class PacketServer:
    """Keeps signed packets; tests look into `packets` and set `fails`."""

    def __init__(self) -> None:
        self.packets: dict[EndpointId, SignedPacket] = {}
        self.puts: list[SignedPacket] = []
        self.heads: list[dict[str, str]] = []
        self.gets = 0
        self.fails: list[int] = []
        self.url = ""
        self._changed = asyncio.Event()

    async def changed(self, until: Callable[[], bool]) -> None:
        """Wait until a condition on what was put holds."""
        async with asyncio.timeout(30):
            while not until():
                self._changed.clear()
                await self._changed.wait()

    async def put(self, request: web.Request) -> web.Response:
        self.heads.append({key.lower(): value for key, value in request.headers.items()})
        if self.fails:
            return web.Response(status=self.fails.pop(0))
        id = EndpointId.from_z32(request.match_info["key"])
        packet = SignedPacket.from_payload(id, await request.read())
        self.puts.append(packet)
        known = self.packets.get(id)
        if known is None or packet.is_newer_than(known):
            self.packets[id] = packet
        self._changed.set()
        return web.Response(status=204)

    async def get(self, request: web.Request) -> web.Response:
        self.gets += 1
        if self.fails:
            return web.Response(status=self.fails.pop(0))
        packet = self.packets.get(EndpointId.from_z32(request.match_info["key"]))
        if packet is None:
            return web.json_response({"status": "404", "detail": None}, status=404)
        return web.Response(body=packet.to_payload())

    @contextlib.asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[PacketServer]:
        app = web.Application()
        app.router.add_put("/pkarr/{key}", self.put)
        app.router.add_get("/pkarr/{key}", self.get)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        try:
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/pkarr"
            yield self
        finally:
            await runner.cleanup()


class DnsServer:
    """Answers TXT questions from signed packets, over UDP and TCP.

    Attributes:
        mangle: changes an answer before it is sent; returns None to stay silent.
        truncates: whether UDP gives no more than the hint to come by TCP.
    """

    def __init__(self, packets: dict[EndpointId, SignedPacket], origin: str) -> None:
        self.packets = packets
        self.origin = dns.name.from_text(origin)
        self.mangle: Callable[[dns.message.Message], dns.message.Message | None] = lambda each: each
        self.truncates = False
        self.silent_udp = False
        self.by_udp = 0
        self.by_tcp = 0
        self.where = NameServer("127.0.0.1", 0)

    def answer(self, data: bytes, *, by_tcp: bool) -> bytes | None:
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        name = query.question[0].name
        found = self._strings(name)
        if self.truncates and not by_tcp:
            response.flags |= dns.flags.TC
        elif found is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif found and query.question[0].rdtype == dns.rdatatype.TXT:
            response.answer.append(dns.rrset.from_text_list(name, 30, "IN", "TXT", found))
        mangled = self.mangle(response)
        return None if mangled is None else mangled.to_wire(want_shuffle=False)

    def _strings(self, name: dns.name.Name) -> list[str] | None:
        if not name.is_subdomain(self.origin):
            return None
        labels = name.relativize(self.origin).labels
        if len(labels) != 2 or labels[0] != LABEL.encode():
            return None
        packet = self.packets.get(EndpointId.from_z32(labels[1].decode()))
        if packet is None:
            return None
        return [
            rdata.to_text()
            for each in packet.dns_message().answer
            if each.rdtype == dns.rdatatype.TXT
            for rdata in each
        ]

    @contextlib.asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[DnsServer]:
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._tcp, "127.0.0.1", port)
        port = server.sockets[0].getsockname()[1]
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Udp(self), local_addr=("127.0.0.1", port)
        )
        self.where = NameServer("127.0.0.1", port)
        try:
            yield self
        finally:
            transport.close()
            server.close()
            await server.wait_closed()

    async def _tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                (size,) = struct.unpack(">H", await reader.readexactly(2))
                answer = self.answer(await reader.readexactly(size), by_tcp=True)
                self.by_tcp += 1
                if answer is None:
                    break
                writer.write(struct.pack(">H", len(answer)) + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Before Python 3.13 the transport is not an instance of what it is by contract.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._server.by_udp += 1
        if self._server.silent_udp:
            return
        answer = self._server.answer(data, by_tcp=False)
        if answer is not None:
            self._transport.sendto(answer, addr)
