"""Which relays an endpoint is connected to: the nearest as home, others while they are needed."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from dialkey import Endpoint, NetworkChanged, hookimpl
from dialkey.identity import RelayAddr, RelayUrl, SecretKey
from dialkey_relay import (
    AllowList,
    Everyone,
    HomeRelayChanged,
    RelayConfig,
    RelayConnected,
    RelayDisconnected,
    RelayOptions,
    RelayServer,
    RelayTransport,
)
from dialkey_relay.client import probe as probe_module
from dialkey_relay.client import transport as transport_module
from dialkey_relay.client.dial import Dialer
from dialkey_relay.client.status import ClientState

A, B = SecretKey(b"\x41" * 32), SecretKey(b"\x42" * 32)
OPEN = RelayOptions(client_rate=None, accept_rate_per_address=None)


class Sink:
    """Counts what a transport brings."""

    def __init__(self):
        self.received = asyncio.Queue()

    def on_datagrams(self, data, segment_bytes, remote):
        self.received.put_nowait((bytes(data), remote))

    def on_batch_end(self):
        return

    def on_addresses_changed(self):
        return


@contextlib.asynccontextmanager
async def carrying(key, *urls, events=None):
    sink = Sink()
    transport = RelayTransport(
        key,
        [RelayConfig(url) for url in urls],
        dialer=Dialer(proxy=""),
        emit=(events if events is not None else []).append,
    )
    await transport.start(sink)
    try:
        yield transport, sink
    finally:
        await transport.close()


async def online(transport):
    async with asyncio.timeout(10):
        return await transport.online()


async def eventually(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


@contextlib.asynccontextmanager
async def far_away(relay, seconds):
    """Another address of a relay, to which bytes take a while; its port and the relay's URL there."""
    tasks = set()

    async def pump(reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                await asyncio.sleep(seconds)
                writer.write(data)
        writer.close()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        host, port = relay.addresses[0]
        far_reader, far_writer = await asyncio.open_connection(host, port)
        try:
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        finally:
            for each in (writer, far_writer):
                each.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_relay_that_answers_faster_becomes_home() -> None:
    async with (
        RelayServer([Everyone()], OPEN) as near,
        RelayServer([Everyone()], OPEN) as other,
        far_away(other, 0.05) as far,
    ):
        for urls in ((near.url, far), (far, near.url)):
            async with carrying(A, *urls) as (transport, _):
                assert await online(transport) == RelayUrl(near.url)
        assert other.hub.counters.accepts == 0
        assert other.hub.counters.http_requests > 0


@pytest.fixture
def latencies(monkeypatch):
    """What probes find, by URL; relays that are missing do not answer."""
    found = {}

    async def measured(url, dialer):
        return found[url]

    monkeypatch.setattr(probe_module, "probe", measured)
    return found


async def test_home_moves_only_when_another_relay_is_much_nearer(latencies) -> None:
    events = []
    async with RelayServer([Everyone()], OPEN) as one, RelayServer([Everyone()], OPEN) as two:
        first, second = RelayUrl(one.url), RelayUrl(two.url)
        latencies.update({first: 0.030, second: 0.040})
        async with carrying(A, one.url, two.url, events=events) as (transport, _):
            assert await online(transport) == first
            # A little nearer is not worth a move.
            latencies.update({first: 0.030, second: 0.025})
            await transport._report(full=False)
            assert transport.home.url == first
            latencies.update({first: 0.030, second: 0.010})
            await transport._report(full=False)
            assert await online(transport) == second
            assert transport.local_addrs() == [RelayAddr(second)]
            changes = [each for each in events if isinstance(each, HomeRelayChanged)]
            assert changes == [HomeRelayChanged(first, None), HomeRelayChanged(second, first)]
            # Peers that know us by the old one find us there for a while.
            assert set(transport.statuses()) == {first, second}
            await transport.housekeep(asyncio.get_running_loop().time() + 61)
            assert set(transport.statuses()) == {second}
            await eventually(lambda: len(one) == 0)


async def test_a_nearer_relay_that_says_no_is_not_moved_to(latencies, monkeypatch) -> None:
    """It answers pings fast for ever; whoever is reachable elsewhere must not try it out on that."""
    monkeypatch.setattr(transport_module, "TRIAL_S", 0.2)
    rule = AllowList([])
    events = []
    async with RelayServer([Everyone()], OPEN) as kind, RelayServer([rule], OPEN) as strict:
        here, nearer = RelayUrl(kind.url), RelayUrl(strict.url)
        latencies.update({here: 0.030, nearer: 0.050})
        async with carrying(A, kind.url, strict.url, events=events) as (transport, _):
            await online(transport)
            latencies.update({here: 0.030, nearer: 0.001})
            for _ in range(2):
                await transport._report(full=False)
                assert transport.home.url == here
                assert transport.local_addrs() == [RelayAddr(here)]
            assert strict.hub.counters.clients_denied >= 2
            # Now it lets us in.
            rule.endpoint_ids = frozenset({A.id})
            await transport._report(full=False)
            assert transport.local_addrs() == [RelayAddr(nearer)]
        changes = [each for each in events if isinstance(each, HomeRelayChanged)]
        assert changes == [HomeRelayChanged(here, None), HomeRelayChanged(nearer, here)]


async def test_of_many_relays_that_say_no_the_one_that_does_not_is_found(
    latencies, monkeypatch
) -> None:
    """Each of them answers pings, and the farthest alone lets us in."""
    monkeypatch.setattr(transport_module, "HOUSEKEEPING_S", 0.02)
    monkeypatch.setattr(transport_module, "FAILOVER_S", 0.05)
    async with contextlib.AsyncExitStack() as stack:
        strict = [
            await stack.enter_async_context(RelayServer([AllowList([])], OPEN)) for _ in range(3)
        ]
        kind = await stack.enter_async_context(RelayServer([Everyone()], OPEN))
        urls = [each.url for each in (*strict, kind)]
        latencies.update({RelayUrl(url): 0.01 * 2**n for n, url in enumerate(urls)})
        transport, _ = await stack.enter_async_context(carrying(A, *urls))
        assert await online(transport) == RelayUrl(kind.url)
        assert transport.home.url == RelayUrl(kind.url)


async def test_other_relays_are_used_on_demand_and_left_when_idle() -> None:
    loop = asyncio.get_running_loop()
    async with (
        RelayServer([Everyone()], OPEN) as ours,
        RelayServer([Everyone()], OPEN) as theirs,
        carrying(A, ours.url) as (a, a_sink),
        carrying(B, theirs.url) as (b, b_sink),
    ):
        await online(a)
        await online(b)
        assert len(theirs) == 1
        (path,) = a.path_addresses(B.id, b.local_addrs()[0])
        a.send(path, b"hello", 5)
        data, back = await b_sink.received.get()
        assert data == b"hello"
        # The answer takes the same relay, which is home to one of them only.
        b.send(back, b"you too", 7)
        assert (await a_sink.received.get())[0] == b"you too"
        assert len(theirs) == 2
        assert len(ours) == 1
        assert a.local_addrs() == [RelayAddr(RelayUrl(ours.url))]
        now = loop.time()
        await a.housekeep(now + 59)
        assert len(a.statuses()) == 2
        await a.housekeep(now + 61)
        assert list(a.statuses()) == [RelayUrl(ours.url)]
        await eventually(lambda: len(theirs) == 1)
        # Whoever is home stays, however idle.
        await b.housekeep(now + 10_000)
        assert b.home.status.state is ClientState.CONNECTED
        # And it is there again when it is needed.
        a.send(path, b"again", 5)
        assert (await b_sink.received.get())[0] == b"again"


async def test_the_state_of_the_home_relay_can_be_watched() -> None:
    relay = RelayServer([Everyone()], OPEN)
    await relay.start()
    address = relay.addresses[0]
    async with carrying(A, relay.url) as (transport, _):
        seen = []

        async def watch():
            async for home in transport.watch_home():
                seen.append((home.url is not None, home.status.state))

        watching = asyncio.create_task(watch())
        await online(transport)
        await relay.close()
        await eventually(lambda: (True, ClientState.WAITING) in seen)
        async with RelayServer([Everyone()], RelayOptions(http=address)):
            await online(transport)
            await eventually(lambda: seen[-1] == (True, ClientState.CONNECTED))
        assert seen.index((True, ClientState.CONNECTED)) < seen.index((True, ClientState.WAITING))
    async with asyncio.timeout(10):
        await watching


async def test_plugins_of_an_endpoint_hear_of_its_relays() -> None:
    class Diary:
        def __init__(self):
            self.events = []

        @hookimpl
        def dialkey_events(self, event):
            # A new home relay is a new address: that may be told, too.
            if not isinstance(event, NetworkChanged):
                self.events.append(event)

    diary = Diary()
    relay = RelayServer([Everyone()], OPEN)
    await relay.start()
    url = RelayUrl(relay.url)
    async with Endpoint.bind(relays=[url], plugins=[diary], transports=()) as endpoint:
        await endpoint.online()
        assert diary.events == [HomeRelayChanged(url, None), RelayConnected(url, True)]
        await relay.close()
        await eventually(lambda: isinstance(diary.events[-1], RelayDisconnected))
        assert diary.events[-1].is_home
        assert endpoint.addr().relay_urls == ()
