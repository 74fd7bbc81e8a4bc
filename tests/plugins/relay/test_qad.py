"""QUIC address discovery: vectors of docs/wire/relay.md 8.4, and our server with a test client."""

from __future__ import annotations

import asyncio
import gc
import inspect
import ipaddress
import ssl
import warnings
from typing import ClassVar

import pytest
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.buffer import encode_uint_var
from aioquic.quic import connection as aioquic_connection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.tls import Epoch
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey.errors import BindError, RemoteError
from dialkey_relay.counters import Counters
from dialkey_relay.errors import RelayWireError
from dialkey_relay.observed import (
    ALPN,
    CLOSE_CODE,
    CLOSE_REASON,
    FRAME_IPV4,
    FRAME_IPV6,
    Observed,
    Role,
    decode_role,
    encode_role_parameter,
    find_role,
)
from dialkey_relay.rates import Rate
from dialkey_relay.server import qad
from dialkey_relay.server.config import parse
from dialkey_relay.server.qad import PRIVATE_NAMES, QadServer, ReportingConnection
from dialkey_relay.server.running import RunningRelay
from dialkey_relay.server.tls import TlsFiles


def test_vectors() -> None:
    assert encode_role_parameter(Role.SENDS).hex() == "c00000009f81a1760100"
    assert encode_role_parameter(Role.RECEIVES).hex() == "c00000009f81a1760101"
    four = Observed.of(0, "127.0.0.1", 48171)
    assert four.encode().hex() == "809f81a6007f000001bc2b"
    assert Observed.decode(four.encode()) == four
    assert Observed.of(0, "192.0.2.2", 4433).encode().hex() == "809f81a600c00002021151"
    mapped = bytes.fromhex("809f81a70000000000000000000000ffffcb0071050309")
    assert Observed.decode(mapped) == Observed(0, ipaddress.ip_address("203.0.113.5"), 777)
    six = Observed.of(70, "fe80::1%eth0", 1)
    assert six.frame_type == FRAME_IPV6
    assert Observed.decode(six.encode()) == six
    assert Observed.of(1, "::ffff:192.0.2.1", 5).frame_type == FRAME_IPV4


def test_roles() -> None:
    assert find_role(b"") is None
    assert find_role(b"\x01\x02\x43\x21" + encode_role_parameter(Role.BOTH)) is Role.BOTH
    for bad in (
        encode_role_parameter(Role.SENDS) * 2,
        b"\x01",
        b"\x01\x05x",
        encode_role_parameter(Role.SENDS)[:-1] + b"\x03",
    ):
        with pytest.raises(RelayWireError):
            find_role(bad)
    with pytest.raises(RelayWireError):
        decode_role(b"\x00\x00")


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_arbitrary_bytes_raise_one_error_family(data) -> None:
    for decode in (
        find_role,
        Observed.decode,
        lambda rest: Observed.decode(b"\x80\x9f\x81\xa6" + rest),
    ):
        try:
            decode(data)
        except RemoteError:
            pass


def test_the_private_names_that_we_build_on_exist() -> None:
    for owner, names in PRIVATE_NAMES.items():
        missing = [name for name in names if not hasattr(owner, name)]
        assert not missing, f"aioquic has changed: {owner.__name__} lacks {missing}"
    plain = QuicConnection(configuration=QuicConfiguration())
    for name in ("_local_max_streams_bidi", "_local_max_streams_uni", qad.FRAME_HANDLERS):
        assert hasattr(plain, name), f"aioquic has changed: {name} is gone"
    source = inspect.getsource(QuicServer.datagram_received)
    for name in ("self._retry", "self._protocols", "self._create_protocol"):
        assert name in source, f"aioquic has changed: its server does not use {name}"
    for name in PRIVATE_NAMES[QuicConnection]:
        ours = getattr(ReportingConnection, name, None)
        assert ours is not getattr(QuicConnection, name), name


class Asking(QuicConnection):
    """A client that asks for reports and reads them."""

    parameter: ClassVar[bytes] = encode_role_parameter(Role.RECEIVES)

    def __init__(self, **options):
        super().__init__(**options)
        self.reports = []
        self.server_role = None
        self.lose_reports = 0
        handlers = self._QuicConnection__frame_handlers
        for frame_type in (FRAME_IPV4, FRAME_IPV6):
            handlers[frame_type] = (self._on_report, frozenset({Epoch.ONE_RTT}))

    def _serialize_transport_parameters(self):
        return super()._serialize_transport_parameters() + self.parameter

    def _parse_transport_parameters(self, data, from_session_ticket=False):
        super()._parse_transport_parameters(data, from_session_ticket)
        self.server_role = find_role(data)

    def _on_report(self, context, frame_type, buffer):
        sequence = buffer.pull_uint_var()
        body = buffer.pull_bytes((4 if frame_type == FRAME_IPV4 else 16) + 2)
        frame = encode_uint_var(frame_type) + encode_uint_var(sequence) + body
        self.reports.append(Observed.decode(frame))


class Client(QuicConnectionProtocol):
    async def report(self):
        async with asyncio.timeout(10):
            while not self._quic.reports:
                await self.ping()
        return self._quic.reports[0]

    @property
    def port(self):
        return self._transport.get_extra_info("sockname")[1]


@pytest.fixture(autouse=True)
def _sockets_that_aioquic_leaves():
    """aioquic's client leaves its socket open when the handshake fails; that is not ours to report."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def ask(monkeypatch, certificate):
    """Connect to a server as a client that wants reports."""
    monkeypatch.setattr("aioquic.asyncio.client.QuicConnection", Asking)

    def start(server, host="127.0.0.1"):
        configuration = QuicConfiguration(alpn_protocols=[ALPN], verify_mode=ssl.CERT_NONE)
        return connect(
            host,
            server.address[1],
            configuration=configuration,
            create_protocol=Client,
            local_port=0,
        )

    return start


@pytest.fixture
async def server(certificate):
    files = TlsFiles(certificate.chain, certificate.key)
    async with QadServer(("127.0.0.1", 0), files, Counters()) as running:
        yield running


async def eventually(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


async def test_a_client_learns_its_address(server, ask) -> None:
    async with ask(server) as client:
        report = await client.report()
        assert report.sequence == 0
        assert report.ip.is_loopback
        assert report.port == client.port
        assert client._quic.server_role is Role.SENDS
        assert client._quic._remote_max_streams_bidi == 0
        client.close(CLOSE_CODE, CLOSE_REASON)
    counters = server.counters
    await eventually(lambda: counters.qad_connections_closed == 1)
    assert counters.qad_incoming >= 1
    assert counters.qad_connections == 1
    assert counters.qad_connections_errored == 0
    assert not server.half_open


async def test_a_client_that_does_not_ask_gets_no_report(server, ask, monkeypatch) -> None:
    monkeypatch.setattr(Asking, "parameter", b"")
    async with ask(server) as client:
        await client.ping()
        assert client._quic.reports == []
        assert client._quic.server_role is Role.SENDS
        client.close(0, "whatever")
    await eventually(lambda: server.counters.qad_connections_errored == 1)


async def test_a_broken_parameter_ends_the_handshake(server, ask, monkeypatch) -> None:
    monkeypatch.setattr(Asking, "parameter", encode_role_parameter(Role.RECEIVES)[:-1] + b"\x07")
    with pytest.raises(ConnectionError):
        async with ask(server):
            pass
    await eventually(lambda: server.counters.qad_incoming_error == 1)
    assert not server.half_open


async def test_a_report_that_was_lost_is_sent_again(server, ask) -> None:
    async with ask(server) as client:
        await client.report()
        (protocol,) = server._open
        from aioquic.quic.packet_builder import QuicDeliveryState

        protocol._quic._on_report_delivery(QuicDeliveryState.LOST)
        protocol.transmit()
        await eventually(lambda: len(client._quic.reports) == 2)
        assert client._quic.reports[1].sequence == 1
        assert client._quic.reports[1].port == client.port


async def test_a_client_that_moves_learns_its_new_address(server, ask) -> None:
    async with ask(server) as client:
        first = await client.report()
        old = client._transport
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: client, local_addr=("::", 0))
        assert client._transport is not old
        old.close()
        await client.ping()
        await eventually(lambda: client._quic.reports[-1].port == client.port)
        last = client._quic.reports[-1]
        assert last.port != first.port
        assert last.sequence > first.sequence


async def test_busy_servers_ask_for_a_proof_of_address(server, ask, monkeypatch) -> None:
    monkeypatch.setattr(qad, "RETRY_ABOVE_HALF_OPEN", 0)
    async with ask(server) as client:
        assert (await client.report()).port == client.port
    assert server.counters.qad_incoming == 2


async def test_handshakes_of_one_address_are_limited(certificate, ask, monkeypatch) -> None:
    monkeypatch.setattr(qad, "HANDSHAKE_RATE", Rate(0.001, 1))
    files = TlsFiles(certificate.chain, certificate.key)
    async with QadServer(("127.0.0.1", 0), files, Counters()) as server:
        async with ask(server) as client:
            await client.report()
        configuration = QuicConfiguration(alpn_protocols=[ALPN], verify_mode=ssl.CERT_NONE)
        another = Asking(configuration=configuration)
        another.connect(server.address, now=0.0)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=server.address
        )
        for data, _ in another.datagrams_to_send(now=0.0):
            transport.sendto(data)
        await eventually(lambda: server.counters.qad_incoming_refused >= 1)
        transport.close()
        await asyncio.sleep(0)
        assert server.counters.qad_connections == 1


def initial(frames: bytes, number: int, dcid: bytes = b"original") -> bytes:
    """Return a client's Initial packet with any frames, as anybody can make it."""
    pair = CryptoPair()
    pair.setup_initial(cid=dcid, is_client=True, version=1)
    builder = QuicPacketBuilder(
        host_cid=b"stranger",
        peer_cid=dcid,
        version=1,
        is_client=True,
        max_datagram_size=1200,
        packet_number=number,
    )
    builder.start_packet(QuicPacketType.INITIAL, pair)
    builder.start_frame(frames[0], capacity=len(frames)).push_bytes(frames[1:])
    datagrams, _ = builder.flush()
    return b"".join(datagrams).ljust(1200, b"\0")


def crypto(data: bytes, offset: int) -> bytes:
    return b"\x06" + encode_uint_var(offset) + encode_uint_var(len(data)) + data


ENDLESS = {
    "a hello of 16 MiB, in order": lambda n: crypto(
        b"\x01\xff\xff\xf0" + bytes(996) if n == 0 else bytes(1000), 1000 * n
    ),
    "a gap": lambda n: crypto(b"\x01\xff\xff\xf0", 400_000 * n),
    "single bytes": lambda n: b"".join(crypto(b"\x01", 2 * k) for k in range(200)),
    "pings": lambda n: crypto(b"\x01\xff\xff\xf0", 0) if n == 0 else b"\x01",
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_what_one_handshake_costs_has_an_end(server, what) -> None:
    machine = QuicConnection(
        configuration=server.configuration, original_destination_connection_id=b"original"
    )
    ReportingConnection.adopt(machine)
    for number in range(qad.MAX_HANDSHAKE_PACKETS + 1):
        machine.receive_datagram(initial(ENDLESS[what](number), number), ("192.0.2.1", 1), 0.0)
        if machine._close_event is not None:
            break
        assert len(machine.tls._receive_buffer) <= 16_384
        for stream in machine._crypto_streams.values():
            assert len(stream.receiver._buffer) <= 16_384
    assert machine._close_event is not None


async def send_to(server: QadServer, *datagrams: bytes) -> None:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        asyncio.DatagramProtocol, remote_addr=server.address
    )
    for datagram in datagrams:
        transport.sendto(datagram)
    await asyncio.sleep(0)
    transport.close()
    await asyncio.sleep(0)


async def test_a_handshake_that_goes_nowhere_is_given_up(server, monkeypatch) -> None:
    monkeypatch.setattr(qad, "HANDSHAKE_TIMEOUT_S", 0.2)
    begun = crypto(b"\x01\x00\x0f\xf0", 0)
    await send_to(server, initial(begun, 0))
    await eventually(lambda: len(server.half_open) == 1)
    (timer,) = server.half_open.values()
    await send_to(server, initial(b"\x01", 1))
    assert list(server.half_open.values()) in ([timer], []), "talking does not put it off"
    await eventually(lambda: not server.half_open)


async def test_the_oldest_handshake_makes_room(server, ask, monkeypatch) -> None:
    monkeypatch.setattr(qad, "MAX_HALF_OPEN", 2)
    begun = crypto(b"\x01\x00\x0f\xf0", 0)
    for n in range(3):
        await send_to(server, initial(begun, 0, b"original%d" % n))
        await eventually(lambda n=n: server.counters.qad_incoming == n + 1)
        assert len(server.half_open) == min(n + 1, 2)
    async with ask(server) as client:
        await client.report()
    assert server.counters.qad_incoming_refused == 0


async def test_noise_is_ignored(server) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, remote_addr=server.address
    )
    for noise in (
        b"",
        b"\xc0",
        b"\xc0\0\0\0\1\xff",
        b"\xc0\0\0\0\1\x14" + bytes(1200),
        bytes(1200),
    ):
        transport.sendto(noise)
    await asyncio.sleep(0)
    transport.close()
    await asyncio.sleep(0)
    with pytest.raises(BindError):
        async with QadServer(server.address, server._tls, Counters()):
            pass


async def test_a_new_certificate_is_used(server, make_certificate, ask) -> None:
    before = server.configuration.certificate
    other = make_certificate("other")
    server._tls.certificate.write_bytes(other.chain.read_bytes())
    server._tls.key.write_bytes(other.key.read_bytes())
    assert server._tls.reload_if_changed()
    async with ask(server) as client:
        await client.report()
    assert server.configuration.certificate != before


def test_aioquic_still_uses_the_name_that_the_test_replaces() -> None:
    assert aioquic_connection.QuicConnection is QuicConnection


async def test_a_configured_relay_serves_it(certificate, ask) -> None:
    text = (
        'http_bind_addr = "127.0.0.1:0"\nenable_metrics = false\naccess = "everyone"\n'
        'enable_quic_addr_discovery = true\n[tls]\ncert_mode = "Manual"\n'
        f'manual_cert_path = "{certificate.chain}"\nmanual_key_path = "{certificate.key}"\n'
        'https_bind_addr = "127.0.0.1:0"\nquic_bind_addr = "127.0.0.1:0"\n'
    )
    async with RunningRelay(lambda: parse(text)) as running, ask(running.qad) as client:
        report = await client.report()
        assert (report.ip.is_loopback, report.port) == (True, client.port)
        assert running.snapshot().counters.qad_connections == 1
