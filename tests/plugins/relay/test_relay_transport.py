"""The relay as transport of endpoints: home, failover, other relays."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import time

import pytest

from dialkey import Endpoint, Router
from dialkey.endpoint import PathClosed, PathDemoted
from dialkey.endpoint.door import sources_of
from dialkey.errors import DialkeyError, LocalError
from dialkey.identity import EndpointId, IpAddr, RelayAddr, RelayUrl, SecretKey
from dialkey_relay import (
    Admission,
    AllowList,
    Everyone,
    Grant,
    GrantRule,
    GrantVerifier,
    HomeRelayChanged,
    Relay,
    RelayConfig,
    RelayConnected,
    RelayDisconnected,
    RelayOptions,
    RelayPath,
    RelayServer,
    RelayTransport,
    SharedTokens,
)
from dialkey_relay.client import client as client_module
from dialkey_relay.client import probe as probe_module
from dialkey_relay.client import transport as transport_module
from dialkey_relay.client.dial import Dialer
from dialkey_relay.client.probe import probe
from dialkey_relay.client.status import ClientState
from dialkey_relay.errors import RelayUnreachable

A, B = SecretKey(b"\x41" * 32), SecretKey(b"\x42" * 32)
ALPN = "dialkey-test/echo"
OPEN = RelayOptions(client_rate=None, accept_rate_per_address=None)


class Echo:
    """Send back whole streams."""

    async def accept(self, connection):
        while True:
            try:
                send, recv = await connection.accept_bi()
            except DialkeyError:
                return
            await send.write(await recv.read_to_end(limit=100_000_000))
            await send.finish()


class Sink:
    """An endpoint without QUIC: notes what a transport tells it."""

    def __init__(self):
        self.received = asyncio.Queue()
        self.address_changes = 0
        self.batches = 0

    def on_datagrams(self, data, segment_bytes, remote):
        self.received.put_nowait((bytes(data), segment_bytes, remote))

    def on_batch_end(self):
        self.batches += 1

    def on_addresses_changed(self):
        self.address_changes += 1


class Carrier:
    """A transport with its sink."""

    def __init__(self, key, *relays, events=None):
        self.sink = Sink()
        self.events = [] if events is None else events
        self.transport = RelayTransport(
            key,
            [each if isinstance(each, RelayConfig) else RelayConfig(each) for each in relays],
            dialer=Dialer(proxy=""),
            emit=self.events.append,
            random=random.Random(1),
        )

    async def __aenter__(self):
        await self.transport.start(self.sink)
        return self

    async def __aexit__(self, *exc_info):
        await self.transport.close()

    async def get(self):
        async with asyncio.timeout(10):
            return await self.sink.received.get()


async def online(transport):
    async with asyncio.timeout(10):
        return await transport.online()


async def home_is(transport, url):
    async with asyncio.timeout(10):
        async for home in transport.watch_home():
            if home.url == url and transport.local_addrs() == [RelayAddr(url)]:
                return


async def test_datagrams_travel_as_path_addresses_say() -> None:
    async with RelayServer([Everyone()], OPEN) as server:
        async with Carrier(A, server.url) as a, Carrier(B) as b:
            url = await online(a.transport)
            assert url == RelayUrl(server.url)
            assert a.sink.address_changes == 1
            addr = a.transport.local_addrs()[0]
            assert addr == RelayAddr(url)
            (path,) = b.transport.path_addresses(A.id, addr)
            assert path == RelayPath(url, A.id)
            assert path.path_kind == "relay"
            assert b.transport.owns(path)
            assert not b.transport.owns(IpAddr.parse("127.0.0.1:1"))
            assert b.transport.path_addresses(A.id, IpAddr.parse("127.0.0.1:1")) == []
            # Nobody has connected to that relay from there yet; what is sent waits a little.
            b.transport.send(path, b"aabbc", 2)
            data, segment, remote = await a.get()
            assert (data, segment) == (b"aabbc", 2)
            assert remote == RelayPath(url, B.id)
            a.transport.send(remote, b"back", 4)
            assert await b.get() == (b"back", 4, RelayPath(url, A.id))
            assert not b.transport.is_blocked
            assert b.transport.local_addrs() == []
            assert a.events[:2] == [HomeRelayChanged(url, None), RelayConnected(url, True)]
        with pytest.raises(LocalError, match="no relay"):
            await b.transport.online()


async def test_nothing_is_advertised_while_the_relay_is_away() -> None:
    server = RelayServer([Everyone()], OPEN)
    await server.start()
    address = server.addresses[0]
    async with Carrier(A, server.url) as a:
        url = await online(a.transport)
        await server.close()
        async with asyncio.timeout(10):
            async for home in a.transport.watch_home():
                if home.status.error is not None:
                    break
        assert a.transport.local_addrs() == []
        assert a.transport.home.url == url
        async with RelayServer([Everyone()], RelayOptions(http=address)):
            assert await online(a.transport) == url
            assert a.sink.address_changes == 3
        assert any(isinstance(event, RelayDisconnected) for event in a.events)


async def test_a_denied_endpoint_advertises_nothing() -> None:
    rule = AllowList([])
    async with RelayServer([rule], OPEN) as server, Carrier(A, server.url) as a:
        async with asyncio.timeout(10):
            async for home in a.transport.watch_home():
                if home.status.error is not None:
                    break
        assert a.transport.local_addrs() == []
        rule.endpoint_ids = frozenset({A.id})
        await online(a.transport)


async def test_the_nearer_relay_becomes_home(monkeypatch) -> None:
    async with RelayServer([Everyone()], OPEN) as near, RelayServer([Everyone()], OPEN) as far:

        async def measured(url, dialer):
            return 0.010 if url == RelayUrl(near.url) else 0.050

        monkeypatch.setattr(probe_module, "probe", measured)
        async with Carrier(A, near.url, far.url) as a:
            assert await online(a.transport) == RelayUrl(near.url)
            assert len(far) == 0


async def test_a_relay_that_does_not_answer_pings_is_not_chosen() -> None:
    async with (
        RelayServer([Everyone()], OPEN) as server,
        Carrier(A, "http://127.0.0.1:1/", server.url) as a,
    ):
        assert await online(a.transport) == RelayUrl(server.url)


async def test_home_moves_when_it_is_gone_and_the_old_one_is_left_later() -> None:
    first, second = RelayServer([Everyone()], OPEN), RelayServer([Everyone()], OPEN)
    async with first, second, Carrier(A, first.url, second.url) as a:
        home = await online(a.transport)
        gone, other = (first, second) if home == RelayUrl(first.url) else (second, first)
        await gone.close()
        async with asyncio.timeout(10):
            async for state in a.transport.watch_home():
                if state.status.error is not None:
                    break
        now = asyncio.get_running_loop().time()
        await a.transport.housekeep(now + 4)
        assert a.transport.home.url == home
        await a.transport.housekeep(now + 6)
        await home_is(a.transport, RelayUrl(other.url))
        assert home in a.transport.statuses()
        await a.transport.housekeep(asyncio.get_running_loop().time() + 61)
        assert list(a.transport.statuses()) == [RelayUrl(other.url)]


async def test_relays_come_and_go_at_run_time() -> None:
    async with (
        RelayServer([Everyone()], OPEN) as one,
        RelayServer([SharedTokens(["t"])], OPEN) as two,
        Carrier(A, one.url) as a,
    ):
        await online(a.transport)
        a.transport.insert(RelayConfig(two.url, token="wrong"))
        assert a.transport.remove(RelayUrl(one.url))
        assert not a.transport.remove(RelayUrl(one.url))
        async with asyncio.timeout(10):
            async for home in a.transport.watch_home():
                if home.url == RelayUrl(two.url) and home.status.error is not None:
                    break
        a.transport.insert(RelayConfig(two.url, token="t"))
        await home_is(a.transport, RelayUrl(two.url))


async def test_a_strangers_addresses_cannot_make_us_dial_without_end(monkeypatch) -> None:
    monkeypatch.setattr(transport_module, "MAX_RELAYS", 3)
    async with Carrier(A) as a:
        for n in range(10):
            (path,) = a.transport.path_addresses(
                B.id, RelayAddr(RelayUrl(f"http://127.0.0.1:{n + 1}"))
            )
            a.transport.send(path, b"x", 1)
        assert len(a.transport.statuses()) == 3
        assert a.transport.dropped == 7
        (path,) = a.transport.path_addresses(B.id, RelayAddr(RelayUrl("ftp://127.0.0.1/")))
        a.transport.send(path, b"x", 1)


async def test_a_change_of_network_checks_connections_at_once() -> None:
    async with RelayServer([Everyone()], OPEN) as server, Carrier(A, server.url) as a:
        await online(a.transport)
        pings = server.hub.counters.got_ping
        a.transport.network_changed()
        for _ in range(1000):
            if server.hub.counters.got_ping > pings:
                break
            await asyncio.sleep(0.005)
        assert server.hub.counters.got_ping > pings


@contextlib.asynccontextmanager
async def serving_raw(answer):
    """Answer every connection with the same bytes, and then wait for its end."""
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        writer.write(answer)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield RelayUrl(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    server.close()
    await asyncio.gather(*tasks)


async def test_probes() -> None:
    dialer = Dialer(proxy="")
    async with RelayServer([Everyone()], OPEN) as server:
        assert 0 < await probe(RelayUrl(server.url), dialer) < 1
        assert server.hub.counters.http_requests == 3

    async with serving_raw(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n") as url:
        with pytest.raises(RelayUnreachable, match="404"):
            await probe(url, dialer)
    async with serving_raw(b"") as url:
        with pytest.raises(RelayUnreachable, match="within"):
            await probe(url, dialer, 0.05)


# --- endpoints ----------------------------------------------------------------------------------


def bind(key, relay, **options):
    # Without UDP nothing but the relay can carry anything.
    return Endpoint.bind(
        secret_key=key, plugins=[relay], transports=[], entry_points=False, **options
    )


async def echo(connection, size):
    data = random.Random(7).randbytes(size)
    send, recv = await connection.open_bi()
    await send.write(data)
    await send.finish()
    back = await recv.read_to_end(limit=100_000_000)
    return hashlib.sha256(back).digest() == hashlib.sha256(data).digest()


async def test_endpoints_without_udp_talk_through_the_relay() -> None:
    async with RelayServer([Everyone()], OPEN) as server:
        relay = Relay(server.url, proxy="")
        async with bind(A, relay) as a, bind(B, Relay(proxy="")) as b, Router(a) as router:
            router.accept(ALPN, Echo())
            serving = asyncio.create_task(router.serve())
            await online(relay.of(a))
            connection = await b.connect(a.ticket(), ALPN)
            assert await echo(connection, 500_000)
            (path,) = connection.paths()
            assert path.kind == "relay"
            connection.close()
            serving.cancel()
        with pytest.raises(LocalError, match="no relays"):
            Relay().of(a)


async def test_connections_survive_a_relay_that_restarts(monkeypatch) -> None:
    monkeypatch.setattr(client_module, "DRAIN_S", 0.05)
    server = RelayServer([Everyone()], OPEN)
    await server.start()
    address = server.addresses[0]
    relay = Relay(server.url, proxy="")
    successor = RelayServer([Everyone()], RelayOptions(http=address, client_rate=None))
    async with bind(A, relay) as a, bind(B, Relay(proxy="")) as b, Router(a) as router:
        router.accept(ALPN, Echo())
        serving = asyncio.create_task(router.serve())
        await online(relay.of(a))
        connection = await b.connect(a.ticket(), ALPN)
        assert await echo(connection, 1000)
        await server.restart(reconnect_in_ms=10)
        transfer = asyncio.create_task(echo(connection, 200_000))
        await successor.start()
        async with asyncio.timeout(20):
            assert await transfer
        connection.close()
        serving.cancel()
    await successor.close()


def test_path_addresses_are_values() -> None:
    url = RelayUrl("https://relay.example")
    assert RelayPath(url, A.id) == RelayPath(url, EndpointId(bytes(A.id)))
    assert hash(RelayPath(url, A.id)) == hash(RelayPath(url, A.id))
    assert A.id.short() in str(RelayPath(url, A.id))


async def test_connections_do_not_notice_that_tokens_change(monkeypatch) -> None:
    monkeypatch.setattr(client_module, "MIN_REFRESH_S", 0.05)
    monkeypatch.setattr(client_module, "DRAIN_S", 0.05)
    issuer = SecretKey(b"\x43" * 32)

    def fetching(key):
        async def fetch():
            # Grants count whole seconds; this one is as good as used up when it comes.
            return str(Grant.issue(issuer, key.id, now=time.time() - 9, lifetime_s=12))

        return fetch

    rule = GrantRule(GrantVerifier([issuer.id]), time.time)
    async with RelayServer([rule], OPEN) as server:
        relays = [Relay(server.url, token=fetching(key), proxy="") for key in (A, B)]
        async with bind(A, relays[0]) as a, bind(B, relays[1]) as b, Router(a) as router:
            router.accept(ALPN, Echo())
            serving = asyncio.create_task(router.serve())
            await asyncio.gather(online(relays[0].of(a)), online(relays[1].of(b)))
            connection = await b.connect(a.ticket(), ALPN)
            events = []

            async def watch():
                async for event in connection.path_events():
                    events.append(event)

            watching = asyncio.create_task(watch())
            async with asyncio.timeout(30):
                while server.hub.counters.accepts < 10:
                    assert await echo(connection, 100_000)
                    for relay, endpoint in zip(relays, (a, b), strict=True):
                        assert relay.of(endpoint).home.status.state is ClientState.CONNECTED
            assert [path.kind for path in connection.paths()] == ["relay"]
            assert not any(isinstance(event, PathClosed | PathDemoted) for event in events)
            watching.cancel()
            connection.close()
            serving.cancel()
        assert server.hub.counters.clients_expired == 0


async def test_a_relay_that_lets_us_in_and_drops_us_is_not_dialled_in_a_loop() -> None:
    """A home that comes and goes changes our addresses; that is not a change of our network."""

    class Briefly:
        asked = 0
        enough = asyncio.Event()

        async def check(self, request):
            self.asked += 1
            if self.asked == 7:
                self.enough.set()
            return Admission(expires_in_s=0.0)

        def recheck(self, endpoint_id, admission):
            return None

    rule = Briefly()
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with RelayServer([rule], OPEN) as server, bind(A, Relay(server.url, proxy="")):
        async with asyncio.timeout(20):
            await rule.enough.wait()
    # 10, 20, 40 … 320 ms at least.
    assert loop.time() - began >= 0.6


def test_a_path_through_a_relay_counts_as_its_endpoint_and_as_its_relay() -> None:
    """For the limits on strangers: ids are free, and a relay stands for many."""
    one, other = SecretKey.generate().id, SecretKey.generate().id
    here, there = RelayUrl("https://one.example"), RelayUrl("https://two.example")
    assert sources_of(RelayPath(here, one))[0] == sources_of(RelayPath(there, one))[0]
    assert sources_of(RelayPath(here, one))[1] == sources_of(RelayPath(here, other))[1]
    assert not set(sources_of(RelayPath(here, one))) & set(sources_of(RelayPath(there, other)))
