"""Relays that strangers have named: their names lead where their owners like, differently each time."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dialkey import DialLimits, Endpoint, Router
from dialkey.endpoint import EndpointInfo, LookupAnswer
from dialkey.errors import DialError, DialkeyError
from dialkey.identity import EndpointAddr, EndpointId, RelayAddr, RelayUrl, SecretKey
from dialkey.network import is_public
from dialkey_relay import (
    Everyone,
    RelayConfig,
    RelayConnected,
    RelayDisconnected,
    RelayOptions,
    RelayPath,
    RelayServer,
    RelayTransport,
    relay_of,
)
from dialkey_relay.client import dial as dial_module
from dialkey_relay.client import transport as transport_module
from dialkey_relay.client.dial import Dialer, Target
from dialkey_relay.errors import RelayUnreachable

A, B = SecretKey(b"\x51" * 32), SecretKey(b"\x52" * 32)
ALPN = "dialkey-test/hearsay"
OPEN = RelayOptions(client_rate=None, accept_rate_per_address=None)
HERE, INSIDE = "127.0.0.1", "127.0.0.2"


def only_here(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return str(ip) == HERE


class Resolver:
    """Answers as it is told, one answer after another, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.questions = 0
        loop = asyncio.get_running_loop()
        original = loop.getaddrinfo

        async def getaddrinfo(host: str, port: object, **options: object) -> object:
            if not host.endswith(".example"):
                return await original(host, port, **options)  # type: ignore[arg-type]
            answer = self.answers[min(self.questions, len(self.answers) - 1)]
            self.questions += 1
            kind = socket.SOCK_STREAM
            return [(socket.AF_INET, kind, 6, "", (each, port)) for each in answer]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)


@asynccontextmanager
async def knocked(port: int = 0) -> AsyncGenerator[tuple[int, list[str]], None]:
    """Listen on two addresses with one port; the list says where somebody connected."""
    knocks: list[str] = []

    def hear(where: str) -> Callable[..., Awaitable[None]]:
        async def heard(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            knocks.append(where)
            writer.close()

        return heard

    here = await asyncio.start_server(hear(HERE), HERE, port)
    port = here.sockets[0].getsockname()[1]
    inside = await asyncio.start_server(hear(INSIDE), INSIDE, port)
    try:
        yield port, knocks
    finally:
        for server in (here, inside):
            server.close()
            await server.wait_closed()


class _Nothing(asyncio.Protocol):
    def __init__(self) -> None:
        self.peer: object = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.peer = transport.get_extra_info("peername")
        transport.close()


async def open_once(dialer: Dialer, port: int) -> object:
    made: list[_Nothing] = []

    def make() -> _Nothing:
        made.append(_Nothing())
        return made[-1]

    await dialer.open(Target.of(RelayUrl(f"http://relay.example:{port}")), make)
    return made[-1].peer


async def test_a_name_is_resolved_once_and_what_was_checked_is_dialled(monkeypatch) -> None:
    async with knocked() as (port, _):
        resolver = Resolver(monkeypatch, [HERE], [INSIDE])
        dialer = Dialer(proxy="", guard=lambda: only_here)
        assert await open_once(dialer, port) == (HERE, port)
        assert resolver.questions == 1
        with pytest.raises(RelayUnreachable, match="strangers must not send us"):
            await open_once(dialer, port)
        assert resolver.questions == 2
        # Whoever is trusted leads where he likes.
        assert await open_once(Dialer(proxy=""), port) == (INSIDE, port)


@pytest.mark.parametrize("answer", [[HERE, INSIDE], [INSIDE, HERE], ["::ffff:127.0.0.2"]])
async def test_of_several_addresses_all_have_to_do(monkeypatch, answer) -> None:
    async with knocked() as (port, knocks):
        Resolver(monkeypatch, answer)
        with pytest.raises(RelayUnreachable, match="strangers must not send us"):
            await open_once(Dialer(proxy="", guard=lambda: only_here), port)
        assert not knocks


async def test_the_next_address_is_tried_when_one_is_away(monkeypatch) -> None:
    monkeypatch.setattr(dial_module, "MAX_GUARDED_ADDRESSES", 2)
    async with knocked() as (port, _):
        Resolver(monkeypatch, ["127.0.0.3", HERE], ["127.0.0.3", "127.0.0.4", HERE])
        dialer = Dialer(proxy="", guard=lambda: lambda ip: True)
        assert await open_once(dialer, port) == (HERE, port)
        with pytest.raises(RelayUnreachable):
            await open_once(dialer, port)


async def test_a_proxy_is_not_left_to_resolve_the_name(monkeypatch) -> None:
    """It may stand in the very network that strangers must not reach, and knows other names."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    proxy = await asyncio.start_server(serve, HERE, 0)
    async with proxy:
        port = proxy.sockets[0].getsockname()[1]
        Resolver(monkeypatch, [HERE], [INSIDE])
        dialer = Dialer(proxy=f"http://{HERE}:{port}", guard=lambda: only_here)
        with pytest.raises(RelayUnreachable, match="403"):
            await open_once(dialer, 3340)
        assert requests[0].startswith(b"CONNECT 127.0.0.1:3340 HTTP/1.1\r\n")
        with pytest.raises(RelayUnreachable, match="strangers must not send us"):
            await open_once(dialer, 3340)
        assert len(requests) == 1


# --- the transport --------------------------------------------------------------------------------


class _Sink:
    """Notes what a transport tells it."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()
        self.events: asyncio.Queue[object] = asyncio.Queue()

    async def next_event(self, kind: type) -> Any:
        """Wait for an event of a kind."""
        async with asyncio.timeout(10):
            while not isinstance(event := await self.events.get(), kind):
                pass
        return event

    def on_datagrams(self, data: memoryview, segment_bytes: int, remote: object) -> None:
        self.received.put_nowait(bytes(data))

    def on_batch_end(self) -> None: ...

    def on_addresses_changed(self) -> None: ...

    def on_unreachable(self, remote: object, reason: str) -> None: ...


@asynccontextmanager
async def transport(
    key: SecretKey, *relays: str
) -> AsyncGenerator[tuple[RelayTransport, _Sink], None]:
    sink = _Sink()
    configs = [RelayConfig(each) for each in relays]
    emit = sink.events.put_nowait
    found = RelayTransport(key, configs, dialer=Dialer(proxy=""), emit=emit)
    await found.start(sink)  # type: ignore[arg-type]
    try:
        yield found, sink
    finally:
        await found.close()


async def failed(sink: _Sink) -> str:
    return str((await sink.next_event(RelayDisconnected)).error)


async def test_a_relay_of_hearsay_becomes_trusted_when_somebody_says_so() -> None:
    async with (
        RelayServer([Everyone()], OPEN) as server,
        transport(A, server.url) as (a, sink),
        transport(B) as (b, b_sink),
    ):
        async with asyncio.timeout(10):
            url = await a.online()
        addr = RelayAddr(url)
        (path,) = b.paths_of_hearsay(A.id, addr, is_public)
        b.send(path, b"no", 2)
        assert "strangers must not send us" in await failed(b_sink)
        assert len(server) == 1
        assert b.path_addresses(A.id, addr) == [path]
        # Strangers who repeat it take nothing from it.
        assert b.paths_of_hearsay(A.id, addr, is_public) == [path]
        b.send(path, b"yes", 3)
        async with asyncio.timeout(10):
            assert await sink.received.get() in (b"no", b"yes")


async def test_a_relay_that_nobody_vouched_for_is_hearsay() -> None:
    async with RelayServer([Everyone()], OPEN) as server, transport(B) as (b, sink):
        url = RelayUrl(server.url)
        b.send(RelayPath(url, A.id), b"no", 2)
        assert "strangers must not send us" in await failed(sink)


async def test_a_relay_of_ours_is_one_whatever_strangers_say() -> None:
    async with RelayServer([Everyone()], OPEN) as server, transport(A, server.url) as (a, _):
        a.paths_of_hearsay(B.id, RelayAddr(RelayUrl(server.url)), is_public)
        async with asyncio.timeout(10):
            await a.online()


async def test_relays_of_strangers_make_room_for_others(monkeypatch) -> None:
    monkeypatch.setattr(transport_module, "MAX_RELAYS", 4)
    monkeypatch.setattr(transport_module, "MAX_RELAYS_OF_HEARSAY", 3)
    async with RelayServer([Everyone()], OPEN) as server, transport(B) as (b, sink):
        for n in range(9):
            addr = RelayAddr(RelayUrl(f"https://127.0.0.1:{n + 1}"))
            (path,) = b.paths_of_hearsay(A.id, addr, is_public)
            b.send(path, b"x", 1)
        assert (len(b.statuses()), b.dropped) == (3, 6)
        for n in (20, 21):
            (path,) = b.path_addresses(A.id, RelayAddr(RelayUrl(f"http://127.0.0.1:{n}")))
            b.send(path, b"x", 1)
        (path,) = b.path_addresses(A.id, RelayAddr(RelayUrl(server.url)))
        b.send(path, b"x", 1)
        assert len(b.statuses()) == 4
        assert (await sink.next_event(RelayConnected)).url == RelayUrl(server.url)


# --- dials ----------------------------------------------------------------------------------------


class _Echo:
    async def accept(self, connection) -> None:
        try:
            await connection.closed()
        except DialkeyError:
            return


class _Gossiper:
    """A lookup that says what strangers said."""

    name = "gossiper"

    def __init__(self, addr: EndpointAddr, *, is_hearsay: bool) -> None:
        self._answer = LookupAnswer(EndpointInfo(addr), may_reach=is_public if is_hearsay else None)

    async def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        yield self._answer

    async def publish(self, info: EndpointInfo) -> None: ...

    async def close(self) -> None: ...


async def test_a_dial_to_hearsay_knocks_at_no_machine_around_us() -> None:
    """Whether it is the dial that is limited, or a lookup that says what strangers said."""
    async with (
        RelayServer([Everyone()], OPEN) as server,
        Endpoint.bind(relays=[server.url], transports=()) as bob,
        Router(bob) as router,
    ):
        router.accept(ALPN, _Echo())
        addr = await bob.online()
        async with Endpoint.bind(relays=(), transports=()) as alice:
            with pytest.raises(DialError):
                await alice.connect(addr, ALPN, timeout=1.0, limits=DialLimits())
            assert relay_of(alice).statuses(), "it did try"
            assert len(server) == 1
            # A person who hands the same address over is believed.
            async with await alice.connect(addr, ALPN):
                pass
        for is_hearsay in (True, False):
            lookup = _Gossiper(addr, is_hearsay=is_hearsay)
            async with Endpoint.bind(relays=(), transports=(), address_lookups=[lookup]) as carol:
                if is_hearsay:
                    with pytest.raises(DialError):
                        await carol.connect(bob.id, ALPN, timeout=1.0)
                    assert relay_of(carol).statuses(), "it did try"
                else:
                    async with await carol.connect(bob.id, ALPN):
                        pass
