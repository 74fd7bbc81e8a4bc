"""How soon a home relay is left that is silent or refuses us: relays in memory, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random

import pytest

from dialkey.identity import RelayUrl, SecretKey
from dialkey.testing import in_virtual_time
from dialkey_relay import RelayConfig, RelayTransport
from dialkey_relay.access import Admission
from dialkey_relay.client import probe as probe_module
from dialkey_relay.client.status import ClientState
from dialkey_relay.errors import RelayUnreachable
from dialkey_relay.hub import Hub
from dialkey_relay.session import Session, Settings

KEY = SecretKey(b"\x41" * 32)


class MemoryRelay:
    """A relay without sockets.

    Attributes:
        is_silent: it takes everything and says nothing any more.
        refusal: why it lets nobody in, or None.
    """

    def __init__(self, name: str, one_way_s: float) -> None:
        self.url = RelayUrl(f"http://{name}/")
        self.one_way_s = one_way_s
        self.hub = Hub()
        self.is_silent = False
        self.refusal: str | None = None
        self.lines: list[Line] = []


class Line(asyncio.Transport):
    """A client's connection to such a relay, and the relay's session at its other end."""

    def __init__(self, relay: MemoryRelay, protocol: asyncio.BufferedProtocol) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._relay = relay
        self._protocol = protocol
        self._closed = False
        settings = Settings(random=Random(5))
        self.session = Session(relay.hub, self, settings, self._loop.time())
        relay.lines.append(self)

    def set_write_buffer_limits(self, high=None, low=None):
        return

    def get_write_buffer_size(self):
        return 0

    def is_closing(self):
        return self._closed

    def write(self, data):
        self._loop.call_later(self._relay.one_way_s, self._arrive, bytes(data))

    def close(self):
        if not self._closed:
            self._closed = True
            self.session.closed()
            self._loop.call_soon(self._protocol.connection_lost, None)

    abort = close

    def _arrive(self, data):
        if self._closed or self._relay.is_silent:
            return
        self.session.receive(memoryview(data), self._loop.time())
        if self.session.request is not None:
            self.session.request = None
            if self._relay.refusal is None:
                self.session.admit(Admission(), self._loop.time())
            else:
                self.session.deny(self._relay.refusal)
        self.flush()

    def flush(self):
        out = []
        self.session.take_output(1 << 30, out)
        if self._relay.is_silent:
            return
        if data := b"".join(out):
            self._loop.call_later(self._relay.one_way_s, self._deliver, data)
        if self.session.closing is not None:
            self._loop.call_later(self._relay.one_way_s, self.close)

    def end(self, reason):
        self.session.end(reason)
        self.flush()

    def _deliver(self, data):
        if not self._closed:
            buffer = self._protocol.get_buffer(len(data))
            buffer[: len(data)] = data
            self._protocol.buffer_updated(len(data))


class MemoryDialer:
    """Opens lines instead of sockets."""

    def __init__(self, relays) -> None:
        self._relays = {relay.url.host: relay for relay in relays}

    def guarded(self, guard):
        return self

    async def open(self, target, protocol):
        relay = self._relays[target.host]
        await asyncio.sleep(2 * relay.one_way_s)
        if relay.is_silent:
            await asyncio.Event().wait()
        made = protocol()
        made.connection_made(Line(relay, made))


class Sink:
    def on_datagrams(self, data, segment_bytes, remote):
        return

    def on_batch_end(self):
        return

    def on_addresses_changed(self):
        return

    def on_unreachable(self, remote, reason):
        return


@pytest.fixture
def make(monkeypatch):
    """Make a transport with relays at some distance, the first of which is nearest."""

    @contextlib.asynccontextmanager
    async def making(*one_way_s):
        relays = [MemoryRelay(f"relay{n}.example", each) for n, each in enumerate(one_way_s)]
        by_url = {relay.url: relay for relay in relays}

        async def probe(url, dialer):
            relay = by_url[url]
            if relay.is_silent:
                await asyncio.sleep(3)
                raise RelayUnreachable("no answer to a ping")
            await asyncio.sleep(4 * relay.one_way_s)
            return 2 * relay.one_way_s

        monkeypatch.setattr(probe_module, "probe", probe)
        transport = RelayTransport(
            KEY,
            [RelayConfig(relay.url) for relay in relays],
            dialer=MemoryDialer(relays),
            random=Random(3),
        )
        await transport.start(Sink())
        try:
            yield transport, relays
        finally:
            await transport.close()

    return making


async def moved(transport, old):
    """Wait until we are reachable at another relay; give how many seconds that took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async for _ in transport.watch_home():
        addrs = transport.local_addrs()
        if addrs and addrs[0].url != old.url:
            return loop.time() - began
    raise AssertionError


@pytest.mark.parametrize("quiet_s", [0.05, 1.0, 2.99, 3.01, 14.9, 63.0])
@pytest.mark.parametrize("one_way_s", [0.005, 0.1, 0.25])
def test_a_home_relay_that_falls_silent_is_left_within_six_seconds(
    make, quiet_s, one_way_s
) -> None:
    @in_virtual_time
    async def story():
        async with make(one_way_s, one_way_s * 1.3) as (transport, (near, far)):
            assert await transport.online() == near.url
            await asyncio.sleep(quiet_s)
            near.is_silent = True
            assert await moved(transport, near) <= 6
            assert transport.home.url == far.url
            assert transport.home.status.state is ClientState.CONNECTED

    story()


def test_a_relay_that_never_answers_a_ping_is_left_as_soon(make) -> None:
    @in_virtual_time
    async def story():
        async with make(0.01, 0.02) as (transport, (near, _)):
            assert await transport.online() == near.url
            near.is_silent = True
            assert await moved(transport, near) <= 6

    story()


def test_a_relay_that_is_silent_from_the_beginning_is_left_as_soon(make) -> None:
    """It answers probes, and then nothing."""

    @in_virtual_time
    async def story():
        async with make(0.01, 0.02) as (transport, (near, far)):
            async for home in transport.watch_home():
                if home.url is not None:
                    break
            assert transport.home.url == near.url
            near.is_silent = True
            assert await moved(transport, near) <= 6
            assert transport.home.url == far.url

    story()


@pytest.mark.parametrize("is_late", [False, True])
def test_a_relay_that_refuses_us_is_left_at_once(make, is_late) -> None:
    @in_virtual_time
    async def story():
        async with make(0.01, 0.02) as (transport, (near, far)):
            if is_late:
                assert await transport.online() == near.url
            near.refusal = "its token is no longer valid"
            for line in near.lines:
                line.end(near.refusal)
            assert await moved(transport, near) <= 1
            assert transport.home.url == far.url

    story()


def test_a_relay_that_is_back_soon_stays_home(make) -> None:
    """Addresses that name it are out in the world."""

    @in_virtual_time
    async def story():
        async with make(0.01, 0.02) as (transport, (near, _)):
            assert await transport.online() == near.url
            for line in near.lines:
                line.end("the relay restarts")
            await asyncio.sleep(20)
            assert transport.local_addrs()[0].url == near.url

    story()


def test_without_another_relay_pings_stay_rare(make) -> None:
    @in_virtual_time
    async def story():
        async with make(0.01) as (transport, (only,)):
            await transport.online()
            await asyncio.sleep(60)
            assert 3 <= only.hub.counters.got_ping <= 6
            # A second one is worth more of them, and only at home.
            other = MemoryRelay("other.example", 0.05)
            transport._dialer._relays["other.example"] = other
            transport.insert(RelayConfig(other.url))
            await asyncio.sleep(60)
            assert 20 <= only.hub.counters.got_ping <= 32
            assert transport.remove(other.url)
            before = only.hub.counters.got_ping
            await asyncio.sleep(60)
            assert only.hub.counters.got_ping - before <= 6

    story()


def test_a_long_way_is_not_silence(make) -> None:
    @in_virtual_time
    async def story():
        async with make(0.7, 1.5) as (transport, (near, _)):
            assert await transport.online() == near.url
            await asyncio.sleep(600)
            assert len(near.lines) == 1
            assert transport.local_addrs()[0].url == near.url

    story()
