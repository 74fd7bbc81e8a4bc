"""Learning our own address from relays, over the endpoint's own socket."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aioquic.quic.connection import QuicConnection

from dialkey import Endpoint
from dialkey.errors import InvalidInput, LocalError
from dialkey.identity import IpAddr
from dialkey_relay import Relay
from dialkey_relay.client import qad as client
from dialkey_relay.client.plugin import relay_of
from dialkey_relay.client.qad import AddressDiscovery, Place, Roots, roots_of
from dialkey_relay.client.transport import RelayConfig
from dialkey_relay.counters import Counters
from dialkey_relay.server.qad import FRAME_HANDLERS, QadServer
from dialkey_relay.server.tls import TlsFiles


@pytest.fixture
def files(certificate):
    return TlsFiles(certificate.chain, certificate.key)


@pytest.fixture
def roots(certificate) -> Roots:
    context = ssl.create_default_context()
    context.load_verify_locations(certificate.chain)
    return roots_of(context)


def serving(files: TlsFiles) -> QadServer:
    return QadServer(("127.0.0.1", 0), files, Counters())


class Asker:
    """An endpoint and its discovery."""

    def __init__(self, endpoint: Endpoint, places: list[Place], roots: Roots) -> None:
        self.changed = asyncio.Event()
        self.discovery = AddressDiscovery(
            endpoint.side_channel, lambda: places, roots, self.changed.set
        )

    async def change(self) -> tuple[IpAddr, ...]:
        async with asyncio.timeout(10):
            await self.changed.wait()
        self.changed.clear()
        return self.discovery.addresses


@asynccontextmanager
async def asking(places: list[Place], roots: Roots) -> AsyncIterator[tuple[Endpoint, Asker]]:
    async with Endpoint.bind(bind="127.0.0.1:0", relays=(), alpns=["x"]) as endpoint:
        asker = Asker(endpoint, places, roots)
        task = asyncio.create_task(asker.discovery.run())
        try:
            yield endpoint, asker
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def place_of(server: QadServer) -> Place:
    return Place("localhost", server.address[1])


async def eventually(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


def test_the_private_name_that_we_build_on_exists() -> None:
    from aioquic.quic.configuration import QuicConfiguration

    assert hasattr(QuicConnection(configuration=QuicConfiguration()), FRAME_HANDLERS)


async def test_the_endpoint_s_own_socket_is_seen(files, roots) -> None:
    async with serving(files) as server, asking([place_of(server)], roots) as (endpoint, asker):
        assert await asker.change() == tuple(endpoint.bound_addrs())
        assert asker.discovery.varies is None, "one relay tells nothing of that"


async def test_connections_go_on_beside_it(files, roots) -> None:
    async with serving(files) as server, asking([place_of(server)], roots) as (endpoint, asker):
        await asker.change()
        async with Endpoint.bind(bind="127.0.0.1:0", relays=()) as other:
            await other.connect(endpoint.addr(), "x")
            assert await endpoint.accept() is not None


async def test_two_relays_tell_whether_the_port_varies(files, roots, monkeypatch) -> None:
    async with serving(files) as one, serving(files) as two:
        places = [place_of(one), place_of(two)]
        async with asking(places, roots) as (_, asker):
            await eventually(lambda: asker.discovery.varies is False)
        # Of a NAT that gives each destination another port the two see different ones.
        received = client._Session._receive

        def through_a_nat(self, data):
            received(self, data)
            if self.observed is not None and self.remote.port == two.address[1]:
                self.observed = IpAddr(self.observed.ip, 1)

        monkeypatch.setattr(client._Session, "_receive", through_a_nat)
        async with asking(places, roots) as (_, asker):
            await eventually(lambda: asker.discovery.varies is True)
            assert len(asker.discovery.addresses) == 1


async def test_one_connection_is_kept_and_left_in_good_order(files, roots) -> None:
    async with serving(files) as one, serving(files) as two:
        async with asking([place_of(one), place_of(two)], roots) as (_, asker):
            await asker.change()
            both = (one.counters, two.counters)
            await eventually(lambda: sum(each.qad_connections_closed for each in both) == 1)
            assert len(one._open) + len(two._open) == 1
        await eventually(lambda: sum(each.qad_connections_closed for each in both) == 2)
        assert all(each.qad_connections_errored == 0 for each in both)


async def test_a_relay_that_nobody_vouches_for_is_not_believed(files) -> None:
    async with serving(files) as server, asking([place_of(server)], roots_of(None)) as (_, asker):
        await eventually(lambda: server.counters.qad_incoming_error == 1)
        assert asker.discovery.addresses == ()


async def test_a_relay_that_is_silent_is_waited_for_only_so_long(files, roots, monkeypatch) -> None:
    monkeypatch.setattr(client, "PROBE_TIMEOUT_S", 0.3)
    async with serving(files) as server:
        # Nobody listens at the other place.
        places = [Place("127.0.0.1", 9), Place("no.such.host.invalid", 1), place_of(server)]
        async with asking(places, roots) as (endpoint, asker):
            assert await asker.change() == tuple(endpoint.bound_addrs())


async def test_what_is_lost_is_asked_for_again(files, roots, monkeypatch) -> None:
    monkeypatch.setattr(client, "LOST_RETRY_S", 0.01)
    async with serving(files) as server, asking([place_of(server)], roots) as (endpoint, asker):
        await asker.change()
        (protocol,) = server._open
        protocol.close(1, "restart")
        await eventually(lambda: server.counters.qad_connections == 2)
        assert asker.discovery.addresses == tuple(endpoint.bound_addrs())


async def test_the_relay_transport_tells_what_it_learnt(files, certificate, monkeypatch) -> None:
    context = ssl.create_default_context()
    context.load_verify_locations(certificate.chain)
    async with serving(files) as server:
        config = RelayConfig("https://localhost:1", discovery_port=server.address[1])
        relay = Relay(config, tls=context, proxy="")
        async with Endpoint.bind(
            bind="127.0.0.1:0", plugins=[relay], entry_points=False, alpns=["x"]
        ) as endpoint:
            transport = relay_of(endpoint)
            await eventually(lambda: transport.seen_addrs)
            assert list(transport.seen_addrs) == endpoint.bound_addrs()
            assert transport.local_addrs() == [], "of loopback nobody else can make use"
            seen = IpAddr.parse("203.0.113.9:1111")
            monkeypatch.setattr(transport._discovery, "addresses", (seen,))
            assert seen in endpoint.addr().addrs
            endpoint.network_changed()
            await eventually(lambda: server.counters.qad_connections == 2)


async def test_a_channel_is_one_and_needs_a_socket() -> None:
    async with Endpoint.bind(bind="127.0.0.1:0", relays=()) as endpoint:
        remote = IpAddr.parse("127.0.0.1:9")
        channel = endpoint.side_channel(remote, lambda data: None)
        with pytest.raises(InvalidInput):
            endpoint.side_channel(remote, lambda data: None)
        channel.close()
        channel.send(b"nobody gets this")
        endpoint.side_channel(remote, lambda data: None).close()
        with pytest.raises(LocalError):
            endpoint.side_channel(IpAddr.parse("[::1]:9"), lambda data: None)
