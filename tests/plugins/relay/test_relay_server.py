"""The relay server on loopback: listeners, TLS, limits, slow and hostile clients, restart."""

from __future__ import annotations

import asyncio
import random
import ssl
import sys

import pytest
from OpenSSL import SSL

from dialkey import Refusal, hookimpl
from dialkey.errors import BindError
from dialkey.hooks import Plugins
from dialkey.identity import SecretKey
from dialkey_relay.access import Admission, AllowList, Everyone, SharedTokens
from dialkey_relay.client.machine import ClientMachine, Confirmed, Established
from dialkey_relay.errors import RelayConfigError, RelayDenied, RelayLost
from dialkey_relay.frames import Datagrams, Restarting, Status
from dialkey_relay.handshake import EXPORTER_LABEL
from dialkey_relay.hookspecs import RelayHookSpecs
from dialkey_relay.rates import Rate
from dialkey_relay.server import server as server_module
from dialkey_relay.server.server import RelayOptions, RelayServer
from dialkey_relay.server.tls import TlsFiles
from dialkey_relay.websocket import encode_frame

A, B, C = (SecretKey(bytes((n,)) * 32) for n in (1, 2, 3))
OPEN = RelayOptions(client_rate=None, accept_rate_per_address=None)


class Raw:
    """A client on plain streams, driven step by step by a test."""

    def __init__(self, reader, writer, machine):
        self.reader, self.writer, self.machine = reader, writer, machine
        self.events = []

    @classmethod
    async def open(cls, relay, key, *, tls=None, token=None):
        host, port = relay.addresses[0][:2]
        reader, writer = await asyncio.open_connection(
            host, port, ssl=tls, server_hostname="localhost" if tls else None
        )
        machine = ClientMachine(
            key,
            host=f"{host}:{port}",
            target="/relay",
            random=random.Random(5),
            now=0.0,
            token=token,
        )
        raw = cls(reader, writer, machine)
        raw.flush()
        return raw

    @classmethod
    async def join(cls, relay, key, **options):
        raw = await cls.open(relay, key, **options)
        await raw.until(Confirmed)
        return raw

    def flush(self):
        self.writer.write(self.machine.take_output())

    async def until(self, kind):
        """Read until an event of that kind comes; return it."""
        async with asyncio.timeout(10):
            while True:
                for event in self.events:
                    if isinstance(event, kind):
                        self.events.remove(event)
                        return event
                data = await self.reader.read(65_536)
                if not data:
                    raise RelayLost("the relay hung up")
                self.events += self.machine.receive(memoryview(data), 0.0)
                self.flush()

    async def ended(self):
        try:
            await self.until(type(None))
        except (RelayLost, ConnectionError):
            return True

    def send(self, to, data, segment=None):
        self.machine.send(bytes(to.id), data, segment or len(data))
        self.flush()

    async def close(self):
        self.writer.transport.abort()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


@pytest.fixture
async def join():
    raws = []

    async def start(relay, key, **options):
        raws.append(await Raw.join(relay, key, **options))
        return raws[-1]

    yield start
    for raw in raws:
        await raw.close()


async def request(address, text):
    reader, writer = await asyncio.open_connection(*address[:2])
    writer.write(text.encode())
    async with asyncio.timeout(10):
        reply = await reader.read()
    writer.close()
    return reply.decode()


async def request_or_reset(address, text):
    try:
        return await request(address, text)
    except ConnectionError:
        return ""


async def test_http_on_a_socket() -> None:
    async with RelayServer([Everyone()], OPEN) as relay:
        reply = await request(
            relay.addresses[0],
            "GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
            "GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        )
        assert reply.startswith("HTTP/1.1 200 OK\r\n")
        assert reply.endswith("Not Found")
        assert relay.hub.counters.http_requests == 2


async def test_clients_talk(join) -> None:
    async with RelayServer([Everyone()], OPEN) as relay:
        a, b = await join(relay, A), await join(relay, B)
        await a.until(Established)
        a.send(B, b"x" * 14_520, 1452)
        assert await b.until(Datagrams) == Datagrams(bytes(A.id), b"x" * 14_520, 1452)
        assert len(relay) == relay.connection_count == 2
    assert relay.connection_count == 0


async def test_one_socket_for_both_families() -> None:
    options = RelayOptions(http=("::", 0), accept_rate_per_address=None)
    async with RelayServer([Everyone()], options) as relay:
        port = relay.addresses[0][1]
        ping = "GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        for host in ("127.0.0.1", "::1"):
            assert (await request((host, port), ping)).startswith("HTTP/1.1 200")


async def test_an_address_that_is_taken() -> None:
    async with RelayServer([Everyone()], OPEN) as relay:
        taken = RelayOptions(http=relay.addresses[0])
        with pytest.raises(BindError, match="cannot listen"):
            async with RelayServer([Everyone()], taken):
                pass


# --- TLS ----------------------------------------------------------------------------------------


def tls_options(files, **changes):
    options = {"http": None, "https": ("127.0.0.1", 0), "tls": TlsFiles(files.chain, files.key)}
    return RelayOptions(**(options | {"client_rate": None} | changes))


async def test_tls(certificate, join) -> None:
    trust = ssl.create_default_context(cafile=str(certificate.chain))
    async with RelayServer([Everyone()], tls_options(certificate)) as relay:
        assert relay.url.startswith("https://")
        a, b = await join(relay, A, tls=trust), await join(relay, B, tls=trust)
        for n in range(50):
            a.send(B, bytes((n,)) * 60_000, 1200)
        for n in range(50):
            assert (await b.until(Datagrams)).content == bytes((n,)) * 60_000


async def test_beside_tls_the_plain_listener_answers_portal_checks_only(certificate) -> None:
    options = tls_options(certificate, http=("127.0.0.1", 0))
    async with RelayServer([Everyone()], options) as relay:
        plain = relay.addresses[1]
        check = "GET /generate_204 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert (await request(plain, check)).startswith("HTTP/1.1 204")
        ping = "GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert (await request(plain, ping)).startswith("HTTP/1.1 404")
        # Plain text on the TLS port is an error there, and no more.
        assert await request_or_reset(relay.addresses[0], ping) == ""
        assert relay.hub.counters.tls_errors == 1


async def test_keying_material_from_tls_proves_the_key(certificate) -> None:
    """A client that exports keying material is let in without a challenge."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    async with RelayServer([Everyone()], tls_options(certificate)) as relay:
        reader, writer = await asyncio.open_connection(*relay.addresses[0])
        tls = SSL.Connection(context, None)
        tls.set_connect_state()

        async def exchange(step):
            while True:
                try:
                    return step()
                except SSL.WantReadError:
                    pass
                try:
                    writer.write(tls.bio_read(65_536))
                except SSL.WantReadError:
                    pass
                async with asyncio.timeout(10):
                    tls.bio_write(await reader.read(65_536))

        await exchange(tls.do_handshake)
        material = tls.export_keying_material(EXPORTER_LABEL, 32, bytes(A.id))
        machine = ClientMachine(
            A,
            host="localhost",
            target="/relay",
            random=random.Random(5),
            now=0.0,
            keying_material=material,
        )
        tls.send(machine.take_output())
        events = []
        while not events:
            data = await exchange(lambda: tls.recv(65_536))
            events += machine.receive(memoryview(data), 0.0)
        assert isinstance(events[0], Confirmed)
        assert not machine._handshake._state.value.startswith("waiting for the verdict")
        assert [peer.key for peer in relay.hub.peers()] == [bytes(A.id)]
        writer.close()


async def test_certificates_are_replaced_while_running(make_certificate) -> None:
    first, second = make_certificate("first"), make_certificate("second")
    options = tls_options(first, reload_s=None)
    async with RelayServer([Everyone()], options) as relay:

        async def served():
            trust = ssl.create_default_context()
            trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
            _, writer = await asyncio.open_connection(*relay.addresses[0], ssl=trust)
            found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            writer.close()
            await writer.wait_closed()
            return ssl.DER_cert_to_PEM_cert(found)

        assert await served() == first.chain.read_text()
        assert not relay.reload_tls()
        first.chain.write_bytes(second.chain.read_bytes())
        assert not relay.reload_tls()
        assert relay.hub.counters.tls_reload_errors == 1
        first.key.write_bytes(second.key.read_bytes())
        assert relay.reload_tls()
        assert await served() == second.chain.read_text()


def test_certificates_that_cannot_be_used(tmp_path, make_certificate) -> None:
    first, second = make_certificate("first"), make_certificate("second")
    with pytest.raises(RelayConfigError, match="cannot be read"):
        TlsFiles(tmp_path / "nothing", first.key)
    with pytest.raises(RelayConfigError, match="not a certificate chain with its key"):
        TlsFiles(first.chain, second.key)
    with pytest.raises(RelayConfigError, match="not a certificate chain with its key"):
        TlsFiles(first.key, first.key)
    with pytest.raises(RelayConfigError, match="needs an address"):
        RelayOptions(https=("127.0.0.1", 0))
    with pytest.raises(RelayConfigError, match="needs an address to listen on"):
        RelayOptions(http=None)


# --- access -------------------------------------------------------------------------------------


async def test_denials_and_tokens(join) -> None:
    async with RelayServer([SharedTokens(["open sesame"])], OPEN) as relay:
        for token in (None, "sesame"):
            raw = await Raw.open(relay, A, token=token)
            with pytest.raises(RelayDenied):
                await raw.until(Confirmed)
            await raw.close()
        await join(relay, A, token="open sesame")
        assert relay.hub.counters.clients_denied == 2


async def test_plugins_are_asked() -> None:
    seen = []

    class Doorman:
        @hookimpl
        async def dialkey_relay_admit(self, request):
            seen.append(request)
            return Refusal(reason=b"not today") if request.endpoint_id == B.id else None

    plugins = Plugins(RelayHookSpecs)
    plugins.register(Doorman())
    async with RelayServer([Everyone()], OPEN, plugins=plugins) as relay:
        raw = await Raw.join(relay, A)
        await raw.close()
        raw = await Raw.open(relay, B)
        with pytest.raises(RelayDenied, match="not today"):
            await raw.until(Confirmed)
        await raw.close()
    assert [request.endpoint_id for request in seen] == [A.id, B.id]
    assert seen[0].remote == "127.0.0.1"


async def test_a_rule_that_fails_admits_nobody() -> None:
    class Broken:
        async def check(self, request):
            raise ZeroDivisionError

        def recheck(self, endpoint_id, admission):
            return None

    async with RelayServer([Broken()], OPEN) as relay:
        raw = await Raw.open(relay, A)
        with pytest.raises(RelayDenied, match="rules failed"):
            await raw.until(Confirmed)
        await raw.close()
        assert relay.hub.counters.admission_errors == 1


async def test_changed_rules_reach_those_who_are_connected(join) -> None:
    rule = AllowList([A.id, B.id])
    async with RelayServer([rule], OPEN) as relay:
        a, b = await join(relay, A), await join(relay, B)
        assert relay.recheck() == 0
        rule.endpoint_ids = frozenset({B.id})
        assert relay.recheck() == 1
        assert await a.ended()
        assert len(relay) == 1
        assert relay.disconnect(B.id) == 1
        assert await b.ended()
        assert relay.disconnect(B.id) == 0


async def test_an_admission_that_ends(join) -> None:
    class Briefly:
        async def check(self, request):
            return Admission(expires_in_s=0.05)

        def recheck(self, endpoint_id, admission):
            return None

    async with RelayServer([Briefly()], OPEN) as relay:
        a = await join(relay, A)
        assert await a.ended()
        assert relay.hub.counters.clients_expired == 1


# --- limits -------------------------------------------------------------------------------------


async def test_connections_from_one_address_are_limited() -> None:
    options = RelayOptions(accept_rate_per_address=Rate(0.001, 3))
    async with RelayServer([Everyone()], options) as relay:
        ping = "GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        for _ in range(3):
            assert await request(relay.addresses[0], ping)
        assert await request_or_reset(relay.addresses[0], ping) == ""
        assert relay.hub.counters.http_connections_refused == 1


async def test_those_who_prove_nothing_do_not_fill_the_relay(join) -> None:
    options = RelayOptions(max_unauthenticated=2, accept_rate_per_address=None)
    async with RelayServer([Everyone()], options) as relay:
        a, b = await join(relay, A), await join(relay, B)
        idle = [await asyncio.open_connection(*relay.addresses[0]) for _ in range(3)]
        async with asyncio.timeout(10):
            try:
                assert await idle[2][0].read() == b""
            except ConnectionError:
                pass
        a.send(B, b"still here")
        await b.until(Datagrams)
        for _, writer in idle:
            writer.close()


async def knock(relay, source: str, count: int) -> list[asyncio.StreamWriter]:
    """Open connections from an address of this machine, and prove nothing."""
    host, port = relay.addresses[0]
    return [
        (await asyncio.open_connection(host, port, local_addr=(source, 0)))[1] for _ in range(count)
    ]


async def ping_from(relay, source: str) -> str:
    host, port = relay.addresses[0]
    reader, writer = await asyncio.open_connection(host, port, local_addr=(source, 0))
    writer.write(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    try:
        async with asyncio.timeout(10):
            return (await reader.read()).decode()
    except ConnectionError:
        return ""
    finally:
        writer.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")
@pytest.mark.parametrize(
    "options",
    [
        RelayOptions(max_unauthenticated=20, accept_rate_per_address=None),
        RelayOptions(max_connections=20, accept_rate_per_address=None),
        RelayOptions(accept_rate=Rate(0.001, 20), accept_rate_per_address=Rate(0.001, 12)),
    ],
)
async def test_a_few_addresses_do_not_shut_out_the_others(options) -> None:
    """4,096 unproven connections of 49 addresses did; every limit for all is shared fairly."""
    async with RelayServer([Everyone()], options) as relay:
        crowd = [*await knock(relay, "127.0.0.2", 10), *await knock(relay, "127.0.0.3", 10)]
        # One after another, so that all of the crowd have been accepted.
        for n in range(5):
            assert (await ping_from(relay, f"127.0.1.{n + 1}")).startswith("HTTP/1.1 200")
        # Whose network has most is not let in by it.
        assert await ping_from(relay, "127.0.0.2") == "" or options.accept_rate is not None
        for writer in crowd:
            writer.close()


async def test_a_rate_limited_client_is_told_and_slowed_down(join) -> None:
    options = RelayOptions(client_rate=Rate(200_000, 20_000), accept_rate_per_address=None)
    async with RelayServer([Everyone()], options) as relay:
        a, b = await join(relay, A), await join(relay, B)
        began = relay.loop.time()
        for _ in range(8):
            a.send(B, b"x" * 10_000)
        for _ in range(8):
            await b.until(Datagrams)
        a.send(B, b"one more")
        await b.until(Datagrams)
        # 80 kB at 200 kB/s with 20 kB at once.
        assert relay.loop.time() - began >= 0.2
        assert await a.until(Status) == Status(2)
        relay.set_client_rate(None)
        assert relay.hub.counters.conns_rx_ratelimited_total == 1


@pytest.mark.parametrize(
    "message", [b"\x04" + bytes(70_000), b"\x04" + bytes(2 << 20), b"\x0e", b"\x05" + bytes(34)]
)
async def test_a_hostile_message_ends_only_its_sender(join, message) -> None:
    async with RelayServer([Everyone()], OPEN) as relay:
        a, b, c = [await join(relay, key) for key in (A, B, C)]
        a.writer.write(encode_frame(2, message, b"mask"))
        assert await a.ended()
        b.send(C, b"unharmed")
        assert (await c.until(Datagrams)).content == b"unharmed"
        assert len(relay) == 2


async def test_a_client_that_does_not_read_is_let_go_and_harms_nobody(join, monkeypatch) -> None:
    monkeypatch.setattr(server_module, "SWEEP_S", 0.02)
    monkeypatch.setattr(server_module, "RELAY_WRITE_TIMEOUT_S", 0.2)
    async with RelayServer([Everyone()], OPEN) as relay:
        a, lazy, b = [await join(relay, key) for key in (A, B, C)]
        received = 0
        async with asyncio.timeout(20):
            while len(relay) == 3:
                for _ in range(20):
                    a.send(B, b"x" * 60_000)
                a.send(C, b"to a reader")
                await a.writer.drain()
                await b.until(Datagrams)
                received += 1
        counters = relay.hub.counters
        assert counters.write_timeouts == 1
        assert counters.dropped_queue_full > 0
        assert received > 0
        assert [peer.key for peer in relay.hub.peers_of(bytes(B.id))] == []
        assert await lazy.ended()


# --- restart ------------------------------------------------------------------------------------


async def test_a_restart_tells_everybody(join) -> None:
    relay = RelayServer([Everyone()], OPEN)
    await relay.start()
    a = await join(relay, A)
    assert relay.connection_count == 1
    work = asyncio.create_task(relay.restart(reconnect_in_ms=300, try_for_ms=9000))
    assert await a.until(Restarting) == Restarting(300, 9000)
    assert await a.ended()
    await work
    await relay.serve_forever()
    await relay.close()
