"""Publishing and finding over HTTP and DNS, on loopback and in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import cast

import pytest
from discovery import DnsServer, PacketServer
from endpoints import virtual

from dialkey import EndpointAddr, EndpointInfo, LookupAnswer, SecretKey
from dialkey.errors import InvalidAddress, InvalidInput
from dialkey.identity import EndpointId, IpAddr, RelayAddr, RelayUrl
from dialkey_pkarr import InvalidPacket, ServerFailed, SignedPacket
from dialkey_pkarr.dns_client import NameServer
from dialkey_pkarr.filters import everything, fitting, public_and_relay
from dialkey_pkarr.http import Reply
from dialkey_pkarr.lookups import DnsLookup, PkarrLookup, _Publisher

KEY = SecretKey(bytes(range(32)))
RELAY = RelayAddr(RelayUrl("https://relay.example/"))
LAN, PUBLIC = IpAddr.parse("192.168.1.5:4433"), IpAddr.parse("8.8.8.8:4433")


def info(*addrs: RelayAddr | IpAddr, user_data: str | None = None) -> EndpointInfo:
    return EndpointInfo(EndpointAddr(KEY.id, addrs), user_data)


async def found(lookup: PkarrLookup | DnsLookup, id: EndpointId = KEY.id) -> list[LookupAnswer]:
    return [each async for each in lookup.resolve(id)]


@contextlib.asynccontextmanager
async def closing(lookup: PkarrLookup) -> AsyncIterator[PkarrLookup]:
    try:
        yield lookup
    finally:
        await lookup.close()


# --- over HTTP ----------------------------------------------------------------------------------


async def test_what_is_published_over_http_is_found_over_http() -> None:
    async with (
        PacketServer().serving() as server,
        closing(PkarrLookup(server.url, key=KEY, proxy="")) as lookup,
    ):
        assert await found(lookup) == []
        await lookup.publish(info(RELAY, LAN, PUBLIC, user_data="hi"))
        await lookup.published()
        (answer,) = await found(PkarrLookup(server.url + "/", proxy=""))
        assert answer.info == info(RELAY, user_data="hi"), "no address leaves the house unasked"
        assert answer.updated_at == server.puts[0].timestamp_us / 1e6
        assert answer.source == server.url.removeprefix("http://").removesuffix("/pkarr")
        assert server.heads[0]["accept"] == "*/*"
        assert "content-type" not in server.heads[0]


@pytest.mark.parametrize(
    ("keep", "kept"), [(public_and_relay, [RELAY, PUBLIC]), (everything, [RELAY, LAN, PUBLIC])]
)
async def test_addresses_are_published_where_that_is_asked_for(
    keep: object, kept: list[RelayAddr | IpAddr]
) -> None:
    async with PacketServer().serving() as server:
        lookup = PkarrLookup(server.url, key=KEY, publish=keep, proxy="")  # type: ignore[arg-type]
        async with closing(lookup):
            await lookup.publish(info(RELAY, LAN, PUBLIC))
            await lookup.published()
        assert server.packets[KEY.id].info() == info(*kept)


async def test_a_record_that_was_forged_or_is_of_another_key_is_not_believed() -> None:
    other = SecretKey(b"\x07" * 32)
    async with PacketServer().serving() as server:
        server.packets[KEY.id] = SignedPacket.of_info(
            other, EndpointInfo(EndpointAddr(other.id, [RELAY])), 1
        )
        with pytest.raises(InvalidPacket):
            await found(PkarrLookup(server.url, proxy=""))
        server.fails = [500]
        with pytest.raises(ServerFailed, match="answered 500"):
            await found(PkarrLookup(server.url, proxy=""))


async def _raw_server(answer: bytes) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x16\x03\x01 this is not HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(70_000),
        b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_a_server_that_is_none(answer: bytes) -> None:
    server = await _raw_server(answer)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ServerFailed):
            await found(PkarrLookup(f"http://127.0.0.1:{port}/pkarr", proxy=""))


async def test_nobody_listens_there() -> None:
    server = await _raw_server(b"")
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    with pytest.raises(ServerFailed, match="Connection refused"):
        await found(PkarrLookup(f"http://127.0.0.1:{port}", proxy=""))


@contextlib.asynccontextmanager
async def http_proxy(status: bytes = b"200 OK") -> AsyncIterator[tuple[str, list[bytes]]]:
    """A proxy that allows CONNECT; it notes what it was asked."""
    asked: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(4096):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head)
        writer.write(b"HTTP/1.1 " + status + b"\r\n\r\n")
        if not status.startswith(b"200"):
            writer.close()
            return
        host, _, port = head.split()[1].decode().rpartition(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


async def test_everything_goes_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with PacketServer().serving() as server, http_proxy() as (where, asked):
        proxy = f"http://user:secret@{where}"
        async with closing(PkarrLookup(server.url, key=KEY, proxy=proxy)) as lookup:
            await lookup.publish(info(RELAY))
            await lookup.published()
            assert len(await found(lookup)) == 1
        assert len(asked) == 2
        assert b"Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=" in asked[0]
        monkeypatch.setenv("http_proxy", f"http://{where}")
        assert len(await found(PkarrLookup(server.url))) == 1
        assert len(asked) == 3, "the environment names one"
        monkeypatch.setenv("no_proxy", "127.0.0.0/8")
        assert len(await found(PkarrLookup(server.url))) == 1
        assert len(asked) == 3, "and exempts the server"


async def test_a_proxy_that_refuses() -> None:
    async with http_proxy(b"407 Proxy Authentication Required") as (where, _):
        with pytest.raises(ServerFailed, match="credentials"):
            await found(PkarrLookup("http://pkarr.example", proxy=f"http://{where}"))


def test_urls_that_are_none() -> None:
    for url in ("ftp://example", "example.com", ""):
        with pytest.raises(InvalidAddress):
            PkarrLookup(url)
    with pytest.raises(InvalidInput, match="proxy"):
        PkarrLookup("https://example", proxy="socks5://x")
    with pytest.raises(InvalidInput, match="domain"):
        DnsLookup("x" * 64)


# --- when it is published -------------------------------------------------------------------------


class Requests:
    """A server in virtual time: notes when what was put, and answers with what it is told."""

    name = "server.example"

    def __init__(self, *answers: int | Exception | Reply, takes_s: float = 0.0) -> None:
        self.answers = list(answers)
        self.takes_s = takes_s
        self.puts: list[tuple[float, SignedPacket]] = []
        self.at_once = 0

    async def request(self, method: str, path: str, body: bytes | None = None) -> Reply:
        assert (method, path) == ("PUT", KEY.id.to_z32())
        assert body is not None
        assert not self.at_once, "one request at a time"
        self.at_once = 1
        now = asyncio.get_running_loop().time()
        self.puts.append((round(now, 3), SignedPacket.from_payload(KEY.id, body)))
        try:
            await asyncio.sleep(self.takes_s)
        finally:
            self.at_once = 0
        answer = self.answers.pop(0) if self.answers else 204
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Reply) else Reply(answer, b"")

    def publisher(self) -> _Publisher:
        clock = asyncio.get_running_loop().time
        return _Publisher(self, KEY, clock=clock, chance=lambda low, high: 1.0)

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.puts]


@virtual
async def test_it_is_published_again_after_failures_and_before_it_expires() -> None:
    away = ServerFailed("no connection")
    requests = Requests(500, away, 404, 500, 204)
    publisher = requests.publisher()
    publisher.update(info(RELAY))
    await asyncio.sleep(5)
    assert publisher.trouble == "server.example answered 404"
    await asyncio.sleep(700)
    await publisher.close()
    assert requests.times == [0, 1, 3, 6, 10, 310, 610]
    stamps = [packet.timestamp_us for _, packet in requests.puts]
    assert stamps == sorted(set(stamps)), "signed anew each time"
    assert publisher.trouble == ""


@virtual
async def test_a_server_that_is_away_for_long_is_asked_once_a_minute() -> None:
    requests = Requests(*[500] * 1000)
    publisher = requests.publisher()
    publisher.update(info(RELAY))
    await asyncio.sleep(7200)
    await publisher.close()
    gaps = [b - a for a, b in zip(requests.times, requests.times[1:], strict=False)]
    assert gaps[:3] == [1, 2, 3]
    assert max(gaps) == pytest.approx(60)
    assert len(gaps) < 160


@virtual
async def test_a_server_says_how_long_to_wait() -> None:
    requests = Requests(Reply(429, b"", 8.0), Reply(429, b"", 1e9), 204)
    publisher = requests.publisher()
    publisher.update(info(RELAY))
    await asyncio.sleep(100)
    await publisher.close()
    assert requests.times == [0, 8, 68]


@virtual
async def test_a_change_is_published_at_once_and_only_the_newest() -> None:
    requests = Requests(takes_s=5.0)
    publisher = requests.publisher()
    publisher.update(info())
    await asyncio.sleep(1)
    assert requests.puts == [], "nothing to say yet"
    publisher.update(info(RELAY))
    await asyncio.sleep(1)
    for text in "abc":
        publisher.update(info(RELAY, user_data=text))
    publisher.update(info(RELAY, user_data="c"))
    await publisher.published()
    assert requests.times == [1, 6]
    assert requests.puts[-1][1].info().user_data == "c"
    publisher.update(info())
    await publisher.published()
    assert requests.puts[-1][1].info() == info(), "a relay that is gone is taken back"
    await publisher.close()


def test_of_too_many_addresses_the_last_are_left_out_and_relays_stay() -> None:
    many = info(RELAY, *(IpAddr.parse(f"10.0.0.{n}:1") for n in range(60)))
    kept = fitting(many)
    assert kept.addr.relay_urls == many.addr.relay_urls
    assert 20 < len(kept.addr.addrs) < 60
    SignedPacket.of_info(KEY, kept, 1)


# --- over DNS -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def dns_server() -> AsyncIterator[DnsServer]:
    packet = SignedPacket.of_info(KEY, info(RELAY, PUBLIC, user_data="a b"), 1)
    async with DnsServer({KEY.id: packet}, "dns.example.").serving() as server:
        yield server


async def test_records_are_found_over_udp() -> None:
    async with dns_server() as server:
        (answer,) = await found(DnsLookup("dns.example.", [server.where]))
        assert answer.info == info(RELAY, PUBLIC, user_data="a b")
        assert (answer.updated_at, answer.source) == (None, "dns.example.")
        assert await found(DnsLookup("dns.example", [server.where]), SecretKey.generate().id) == []
        assert server.by_tcp == 0


async def test_records_are_found_over_tcp_when_udp_is_cut_or_silent() -> None:
    async with dns_server() as server:
        server.truncates = True
        assert len(await found(DnsLookup("dns.example.", [server.where]))) == 1
        assert server.by_tcp == 1
        server.silent_udp = True
        assert len(await found(DnsLookup("dns.example.", [server.where]))) == 1
        assert server.by_tcp == 2


async def test_a_dns_server_that_is_not_there_is_said_at_once() -> None:
    async with dns_server() as server:
        where = server.where
    with pytest.raises(ServerFailed, match="refused"):
        await found(DnsLookup("dns.example.", [where]))


async def test_one_of_two_servers_is_enough() -> None:
    async with dns_server() as server, dns_server() as gone:
        pass
    async with dns_server() as server:
        assert len(await found(DnsLookup("dns.example.", [gone.where, server.where]))) == 1


async def test_only_the_servers_that_were_named_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when this machine has none of its own: no public resolver learns of an id."""
    monkeypatch.setattr("dialkey_pkarr.lookups.system_servers", list[NameServer])
    with pytest.raises(ServerFailed, match="no DNS server is configured"):
        await found(DnsLookup("dns.example."))


async def test_an_answer_from_elsewhere_does_not_arrive() -> None:
    """Somebody who sees the question answers first, from another port."""
    async with dns_server() as server:
        loop = asyncio.get_running_loop()
        forger, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        answer = server.answer
        forged = 0

        class Udp(asyncio.DatagramProtocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = cast("asyncio.DatagramTransport", transport)

            def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
                nonlocal forged
                lie = EndpointInfo(EndpointAddr(KEY.id, [IpAddr.parse("6.6.6.6:6")]))
                truth = server.packets[KEY.id]
                server.packets[KEY.id] = SignedPacket.of_info(KEY, lie, 2)
                forged_answer = answer(data, by_tcp=False)
                server.packets[KEY.id] = truth
                assert forged_answer is not None
                forger.sendto(forged_answer, addr)
                forged += 1
                true_answer = answer(data, by_tcp=False)
                assert true_answer is not None
                self.transport.sendto(true_answer, addr)

        transport, _ = await loop.create_datagram_endpoint(Udp, local_addr=("127.0.0.1", 0))
        where = NameServer("127.0.0.1", transport.get_extra_info("sockname")[1])
        try:
            (found_answer,) = await found(DnsLookup("dns.example.", [where]))
        finally:
            transport.close()
            forger.close()
        assert forged
        assert found_answer.info == info(RELAY, PUBLIC, user_data="a b")
