"""A relay as its configuration makes it, with real clients: who gets in, keys that change, restarts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import time

import attrs
import pytest
from aiohttp import ClientSession, TCPConnector, web
from cryptography.hazmat.primitives.serialization import Encoding
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from dialkey.errors import BindError
from dialkey.identity import SecretKey
from dialkey_relay import session as session_module
from dialkey_relay.access import Everyone
from dialkey_relay.client import client as client_module
from dialkey_relay.client.client import RelayClient
from dialkey_relay.client.dial import Dialer, default_tls
from dialkey_relay.errors import RelayDenied, RelayLost
from dialkey_relay.grants import Grant
from dialkey_relay.rates import Rate
from dialkey_relay.server import config as config_module
from dialkey_relay.server.config import load, parse
from dialkey_relay.server.running import RunningRelay
from dialkey_relay.server.server import RelayOptions, RelayServer
from dialkey_relay.server.tls import TlsFiles

A, B, OLD, NEW = (SecretKey(bytes((n,)) * 32) for n in (1, 2, 3, 4))
DIRECT = Dialer(proxy="")
HEAD = (
    'http_bind_addr = "127.0.0.1:0"\nenable_metrics = false\n'
    'limits.accept_per_address_limit = "unlimited"\nlimits.client.rx = "unlimited"\n'
)


def running(text):
    return RunningRelay(lambda: parse(HEAD + text, environment={}))


def client(relay, key=A, **options):
    return RelayClient(relay.url, key, **({"dialer": DIRECT} | options))


async def until(client, condition):
    async with asyncio.timeout(15):
        async for status in client.watch():
            if condition(status):
                return status
    raise AssertionError("the client ended")


async def eventually(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


async def verdict(relay, **options):
    """Return whether a client is let in; what it was told if not."""
    async with client(relay, **options) as one:
        status = await until(one, lambda status: status.connects or status.error is not None)
        return True if status.connects else status.error.reason


# --- who may use it -----------------------------------------------------------------------------


def grant(issuer, **options):
    return str(Grant.issue(issuer, A.id, **({"now": time.time(), "lifetime_s": 600} | options)))


@pytest.mark.parametrize(
    ("text", "token", "expected"),
    [
        ('access = "everyone"', None, True),
        (f'access.allowlist = ["{A.id}"]', None, True),
        (f'access.allowlist = ["{B.id}"]', None, "not authorized"),
        (f'access.denylist = ["{B.id}"]', None, True),
        (f'access.denylist = ["{A.id}"]', None, "not authorized"),
        ('access.shared_token = ["s", "t"]', "t", True),
        ('access.shared_token = ["s", "t"]', "u", "not authorized"),
        ('access.shared_token = ["s", "t"]', None, "this relay requires a token"),
        (f'access.grants.issuers = ["{OLD.id}"]', grant(OLD), True),
        (f'access.grants.issuers = ["{OLD.id}"]', None, "this relay requires a grant"),
        (f'access.grants.issuers = ["{NEW.id}"]', grant(OLD), "not signed by"),
        (f'access.grants.issuers = ["{OLD.id}"]', grant(OLD, now=1e9), "expired"),
        # All that are written must agree.
        (f'access.grants.issuers = ["{OLD.id}"]\naccess.denylist = ["{A.id}"]', grant(OLD), "not"),
    ],
)
async def test_every_rule_of_the_configuration_is_kept(text, token, expected) -> None:
    async with running(text) as one:
        found = await verdict(one.relay, token=token)
        assert found is True if expected is True else expected in found


@contextlib.asynccontextmanager
async def doorkeeper(answer):
    """A web server that is asked about clients."""

    async def admit(request):
        status, text = answer(request)
        return web.Response(status=status, text=text)

    app = web.Application()
    app.router.add_post("/admit", admit)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/admit"
    await runner.cleanup()


async def test_a_web_server_decides_about_real_clients() -> None:
    def answer(request):
        knows_us = request.headers.get("Authorization") == "Bearer us"
        is_a = request.headers["X-Iroh-Endpoint-Id"] == str(A.id)
        return (200, "true") if knows_us and is_a else (403, "no")

    async with doorkeeper(answer) as url:
        rule = f'access.http = {{url = "{url}", bearer_token = "us"}}'
        async with running(rule) as one:
            assert await verdict(one.relay, key=A) is True
            assert await verdict(one.relay, key=B) == "not authorized"
    async with running('access.http.url = "http://127.0.0.1:1/"') as one:
        assert await verdict(one.relay, key=A) == "the access rules failed"


async def test_the_key_of_the_issuer_is_changed_without_losing_anybody(
    tmp_path, monkeypatch
) -> None:
    """Old key, both, new key: who fetches a new grant in between never notices."""
    monkeypatch.setattr(client_module, "MIN_REFRESH_S", 0.01)
    monkeypatch.setattr(client_module, "DRAIN_S", 0.01)
    path = tmp_path / "relay.toml"

    def write(*issuers):
        path.write_text(f"{HEAD}access.grants.issuers = {[str(each.id) for each in issuers]}\n")

    write(OLD)
    asked = []

    async def fetch():
        asked.append(1)
        if len(asked) == 1:
            # Three quarters of its life are over: its successor is fetched at once.
            return grant(OLD, now=time.time() - 500)
        await both.wait()
        return grant(NEW)

    both = asyncio.Event()
    async with (
        RunningRelay(lambda: load(path)) as one,
        client(one.relay, A, token=fetch) as moving,
        client(one.relay, B, token=str(Grant.issue(OLD, B.id, now=time.time()))) as staying,
    ):
        states = set()

        async def observe():
            async for status in moving.watch():
                states.add(status.state)

        await asyncio.gather(moving.connected(), staying.connected())
        watching = asyncio.create_task(observe())
        write(OLD, NEW)
        assert await one.reload()
        assert len(one.relay) == 2
        both.set()
        await until(moving, lambda status: status.connects == 2)
        await eventually(lambda: one.relay.connection_count == 2)
        write(NEW)
        assert await one.reload()
        assert [peer.key for peer in one.relay.hub.peers()] == [bytes(A.id)]
        status = await until(staying, lambda status: isinstance(status.error, RelayDenied))
        assert "not signed by" in status.error.reason
        assert moving.send(A.id, b"still here")
        assert (await moving.receive()).content == b"still here"
        watching.cancel()
        assert states == {client_module.ClientState.CONNECTED}


async def test_the_limits_inside_a_grant_hold_for_its_client() -> None:
    text = f'access.grants.issuers = ["{OLD.id}"]'
    signed = grant(OLD, bytes_per_second=100_000, max_burst_bytes=10_000)
    async with running(text) as one, client(one.relay, A, token=signed) as limited:
        await limited.connected()
        began = time.monotonic()
        for _ in range(5):
            limited.send(A.id, b"x" * 10_000)
            await limited.receive()
        # 50 kB at 100 kB/s, of which 10 kB at once.
        assert time.monotonic() - began >= 0.25
        status = await until(limited, lambda status: status.notice is not None)
        assert "slowed down" in status.notice


# --- HTTP, on plain and TLS listeners -----------------------------------------------------------


@pytest.fixture
def secure(certificate):
    return HEAD + (
        f'access = "everyone"\n[tls]\ncert_mode = "Reloading"\n'
        f'manual_cert_path = "{certificate.chain}"\nmanual_key_path = "{certificate.key}"\n'
        'https_bind_addr = "127.0.0.1:0"\nquic_bind_addr = "127.0.0.1:0"\n'
    )


async def get(session, url, **options):
    async with session.get(url, **options) as reply:
        return reply.status, reply.headers, await reply.text()


async def test_every_path_over_plain_http_and_tls(certificate, secure) -> None:
    trust = ssl.create_default_context(cafile=str(certificate.chain))
    async with (
        running('access = "everyone"') as plain,
        RunningRelay(lambda: parse(secure)) as tls,
        ClientSession(connector=TCPConnector(ssl=trust)) as session,
    ):
        for base in (plain.relay.url, tls.relay.url):
            for path, status, found in (
                ("ping", 200, ""),
                ("healthz", 200, '"status":"ok"'),
                ("", 200, "<!doctype html>"),
                ("index.html", 200, "<!doctype html>"),
                ("robots.txt", 200, "Disallow: /"),
                ("generate_204", 204, ""),
                ("relay", 400, ""),
                ("derp", 404, "Not Found"),
            ):
                reply = await get(session, base + path)
                assert (reply[0], path) == (status, path)
                assert found in reply[2]
                assert "max-age" in reply[1]["Strict-Transport-Security"]
        challenge = {"X-Iroh-Challenge": "ts_relay.example"}
        _, headers, _ = await get(session, plain.relay.url + "generate_204", headers=challenge)
        assert headers["X-Iroh-Response"] == "response ts_relay.example"
        # Beside TLS the plain listener has nothing but that one path.
        host, port = tls.relay.addresses[1]
        beside = f"http://{host}:{port}/"
        assert (await get(session, beside + "generate_204"))[0] == 204
        assert (await get(session, beside + "ping"))[0] == 404


async def test_a_new_certificate_is_noticed_by_itself(make_certificate) -> None:
    first, second = make_certificate("first"), make_certificate("second")
    options = RelayOptions(
        http=None,
        https=("127.0.0.1", 0),
        tls=TlsFiles(first.chain, first.key),
        accept_rate_per_address=None,
        reload_s=0.02,
    )
    async with RelayServer([Everyone()], options) as relay:
        before = Dialer(tls=default_tls(str(first.chain)), proxy="")
        async with client(relay, A, dialer=before) as a:
            await a.connected()
            trust = default_tls(str(second.chain))
            for old, new in ((first.key, second.key), (first.chain, second.chain)):
                old.write_bytes(new.read_bytes())
            await eventually(lambda: relay.hub.counters.tls_reloads)
            async with client(relay, B, dialer=Dialer(tls=trust, proxy="")) as b:
                await b.connected()
                # Whoever is connected stays.
                b.send(A.id, b"hello")
                assert (await a.receive()).content == b"hello"
            assert a.status.connects == 1


# --- metrics ------------------------------------------------------------------------------------


async def test_prometheus_reads_what_a_relay_did() -> None:
    text = HEAD.replace("enable_metrics = false", 'metrics_bind_addr = "127.0.0.1:0"')
    rules = f'access.denylist = ["{B.id}"]'
    async with (
        RunningRelay(lambda: parse(text + rules)) as one,
        client(one.relay, A) as a,
        ClientSession() as session,
    ):
        await a.connected()
        a.send(A.id, b"x" * 1000)
        await a.receive()
        # Nobody is there.
        a.send(B.id, b"y" * 10)
        assert await verdict(one.relay, key=B) == "not authorized"
        await eventually(lambda: one.relay.hub.counters.send_packets_recv == 2)
        host, port = one.metrics.addresses[0]
        wanted = {"Accept": "application/openmetrics-text; version=1.0.0"}
        status, _, body = await get(session, f"http://{host}:{port}/metrics", headers=wanted)
        assert status == 200
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
        }
        assert samples["relayserver_bytes_sent_total",] == 1000
        assert samples["relayserver_bytes_recv_total",] == 1010
        assert samples["relayserver_send_packets_dropped_total",] == 1
        assert samples["dialkey_relay_dropped_frames_total", "unknown_destination"] == 1
        assert samples["dialkey_relay_dropped_frames_total", "queue_full"] == 0
        assert samples["relayserver_accepts_total",] == 1
        assert samples["dialkey_relay_clients_denied_total",] >= 1
        assert samples["dialkey_relay_endpoints",] == 1


# --- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        RelayOptions(accept_rate=Rate(0.001, 3), accept_rate_per_address=None),
        RelayOptions(accept_rate_per_address=Rate(0.001, 3)),
        RelayOptions(max_connections=3, accept_rate_per_address=None),
    ],
)
async def test_connections_beyond_a_limit_are_refused_and_counted(options) -> None:
    async with RelayServer([Everyone()], options) as relay, contextlib.AsyncExitStack() as stack:
        for n in range(3):
            one = client(relay, SecretKey(bytes((n + 1,)) * 32))
            await stack.enter_async_context(one)
            await one.connected()
        late = await stack.enter_async_context(client(relay, SecretKey(b"\x09" * 32)))
        status = await until(late, lambda status: status.error is not None)
        assert isinstance(status.error, RelayLost)
        assert relay.hub.counters.http_connections_refused >= 1
        assert len(relay) == 3


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("RELAY_HTTP_TIMEOUT_S", b""),
        ("RELAY_HTTP_TIMEOUT_S", b"GET /relay HTTP/1.1\r\nHost: x\r\nUpg"),
        (
            "RELAY_HANDSHAKE_TIMEOUT_S",
            b"GET /relay HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: OeAe5QzRiuGv8h+FIM6xkw==\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Protocol: iroh-relay-v2\r\n\r\n",
        ),
    ],
)
async def test_who_does_not_go_on_is_let_go(monkeypatch, limit, said) -> None:
    monkeypatch.setattr(session_module, limit, 0.1)
    async with RelayServer([Everyone()]) as relay:
        reader, writer = await asyncio.open_connection(*relay.addresses[0])
        writer.write(said)
        async with asyncio.timeout(10):
            await reader.read()
        await eventually(lambda: relay.connection_count == 0)
        writer.close()


# --- two connections with one key ---------------------------------------------------------------


async def test_the_newer_of_two_connections_receives_until_it_ends() -> None:
    async with (
        RelayServer([Everyone()]) as relay,
        client(relay, A) as older,
        client(relay, B) as sender,
    ):
        await asyncio.gather(older.connected(), sender.connected())
        async with client(relay, A) as newer:
            await newer.connected()
            await until(older, lambda status: status.notice is not None)
            sender.send(A.id, b"to the newer")
            assert (await newer.receive()).content == b"to the newer"
            # The older one may still send.
            older.send(B.id, b"from the older")
            assert (await sender.receive()).content == b"from the older"
        await until(older, lambda status: status.notice is None)
        sender.send(A.id, b"to the older")
        assert (await older.receive()).content == b"to the older"
        assert older.status.connects == 1


# --- restart ------------------------------------------------------------------------------------


async def test_everybody_returns_after_a_restart_and_nobody_hammers() -> None:
    options = RelayOptions(accept_rate_per_address=None)
    relay = RelayServer([Everyone()], options)
    await relay.start()
    options = attrs.evolve(options, http=relay.addresses[0])
    keys = [SecretKey(bytes((n + 1,)) * 32) for n in range(40)]
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(relay, key)) for key in keys]
        await asyncio.gather(*(each.connected() for each in clients))
        await relay.restart(reconnect_in_ms=100)
        async with RelayServer([Everyone()], options) as relay:
            await asyncio.gather(
                *(until(each, lambda status: status.connects == 2) for each in clients)
            )
            assert len(relay) == len(clients)
            for one, other in zip(clients, reversed(keys), strict=True):
                assert one.send(other.id, b"again")
            for each in clients:
                assert (await each.receive()).content == b"again"
            # They waited as they were told, and found it there.
            assert {each.status.attempts for each in clients} == {0}
            assert relay.hub.counters.http_connections == len(clients)


# --- ports that are taken -----------------------------------------------------------------------


async def test_a_default_port_of_metrics_that_is_taken_is_a_warning(monkeypatch, caplog) -> None:
    """Two relays on one machine, or Prometheus itself: nobody asked for just this port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(config_module, "METRICS_PORT", port)
        text = HEAD.replace("enable_metrics = false\n", "") + 'access = "everyone"'
        async with (
            RunningRelay(lambda: parse(text, environment={})) as one,
            client(one.relay) as a,
        ):
            await a.connected()
            assert one.metrics is None
            (warning,) = [each for each in caplog.records if each.levelname == "WARNING"]
            assert f"cannot listen on 127.0.0.1 port {port}" in warning.getMessage()
            assert "metrics_bind_addr" in warning.getMessage()
        asked = f'metrics_bind_addr = "127.0.0.1:{port}"\n{text}'
        with pytest.raises(BindError, match="the metrics cannot listen"):
            async with RunningRelay(lambda: parse(asked, environment={})):
                raise AssertionError


# --- what a changed configuration changes -------------------------------------------------------


def shown_certificate(address) -> bytes:
    with socket.create_connection(address) as sock:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with context.wrap_socket(sock) as secure:
            return secure.getpeercert(binary_form=True)


async def test_a_certificate_at_another_path_is_used_after_a_reload(
    make_certificate, caplog
) -> None:
    first, second = make_certificate("first"), make_certificate("second")

    def read():
        return parse(
            HEAD
            + 'access = "everyone"\nenable_quic_addr_discovery = true\n[tls]\n'
            + 'cert_mode = "Manual"\nhttps_bind_addr = "127.0.0.1:0"\n'
            + 'quic_bind_addr = "127.0.0.1:0"\n'
            + f'manual_cert_path = "{now.chain}"\nmanual_key_path = "{now.key}"\n',
            environment={},
        )

    now = first
    async with RunningRelay(read) as one:
        address = one.relay.addresses[0]
        before = await asyncio.to_thread(shown_certificate, address)
        now = second
        # The old files may be gone by then.
        first.chain.unlink()
        first.key.unlink()
        assert await one.reload()
        after = await asyncio.to_thread(shown_certificate, address)
        assert before != after
        assert after == ssl.PEM_cert_to_DER_cert(second.chain.read_text())
        assert one.relay.hub.counters.tls_reloads == 1
        # Address discovery gives it to whoever comes next.
        assert one.qad.may_enter("127.0.0.1")
        certificate = one.qad.configuration.certificate
        assert certificate.public_bytes(Encoding.DER) == after
        assert await one.reload()
        assert one.relay.hub.counters.tls_reloads == 1
    assert "needs a restart" not in caplog.text


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('http_bind_addr = "127.0.0.1:1"', "http_bind_addr"),
        ("enable_metrics = true", "enable_metrics"),
        ("workers = 2", "workers"),
        ("limits.accept_conn_limit = 7", "limits.accept_conn_limit"),
        ("limits.accept_per_address_limit = 7", "limits.accept_per_address_limit"),
        ("limits.max_connections = 7", "limits.max_connections"),
        ("limits.max_unauthenticated = 7", "limits.max_unauthenticated"),
    ],
)
async def test_what_a_reload_does_not_apply_is_said(caplog, line, key) -> None:
    name = line.partition(" ")[0]
    before = "".join(f"{each}\n" for each in HEAD.splitlines() if not each.startswith(name))
    text = HEAD + 'access = "everyone"\n'
    async with RunningRelay(lambda: parse(text, environment={})) as one:
        text = f'{before}{line}\naccess = "everyone"\n'
        assert await one.reload()
        (warning,) = [each.getMessage() for each in caplog.records if "restart" in each.message]
        assert warning.startswith(key)


async def test_that_access_does_not_hold_for_address_discovery_is_said(secure, caplog) -> None:
    for access, is_said in (
        ('access = "everyone"', False),
        (f'access.denylist = ["{B.id}"]', True),
    ):
        caplog.clear()
        text = secure.replace('access = "everyone"', f"{access}\nenable_quic_addr_discovery = true")
        async with RunningRelay(functools.partial(parse, text, environment={})):
            assert ("address discovery answers everybody" in caplog.text) is is_said
