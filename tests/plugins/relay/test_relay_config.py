"""The relay's configuration: what is understood, refused, and changed while it runs."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import signal
from pathlib import Path

import pytest
from aiohttp import web

from dialkey.identity import SecretKey
from dialkey_relay.access import (
    Admission,
    AdmitRequest,
    AllowList,
    Denial,
    DenyList,
    Everyone,
    GrantRule,
    SharedTokens,
)
from dialkey_relay.client.client import RelayClient
from dialkey_relay.client.dial import Dialer
from dialkey_relay.counters import Counters
from dialkey_relay.errors import RelayConfigError
from dialkey_relay.grants import Grant
from dialkey_relay.rates import Rate
from dialkey_relay.server import callout as callout_module
from dialkey_relay.server import config as configuration_module
from dialkey_relay.server.callout import HttpCallout
from dialkey_relay.server.config import load, parse
from dialkey_relay.server.metrics import COUNTERS, DROPS, OUR_COUNTERS, Snapshot, render
from dialkey_relay.server.running import RunningRelay, serve

A, B, ISSUER = (SecretKey(bytes((n,)) * 32) for n in (1, 2, 3))
DIRECT = Dialer(proxy="")


def read(text, **options):
    return parse(text, environment=options.pop("environment", {}), **options)


def test_the_defaults() -> None:
    config = read('access = "everyone"')
    assert isinstance(config.rules[0], Everyone)
    assert config.options.http == ("::", 80)
    assert config.options.https is None
    assert config.options.client_rate is None
    assert config.metrics == ("127.0.0.1", 9090)
    assert config.qad is None
    assert config.workers == 1
    assert read('access = "everyone"', dev=True).options.http == ("127.0.0.1", 3340)


def test_everything(certificate, tmp_path) -> None:
    (tmp_path / "revoked").write_text("# nobody yet\n")
    config = read(
        f"""
        http_bind_addr = "0.0.0.0:8080"
        enable_metrics = true
        metrics_bind_addr = "[::1]:9999"
        enable_quic_addr_discovery = true
        key_cache_capacity = 1000
        workers = 2

        [tls]
        cert_mode = "Reloading"
        manual_cert_path = "{certificate.chain.name}"
        manual_key_path = "{certificate.key}"
        https_bind_addr = "0.0.0.0:8443"
        reload_every_s = 5

        [limits]
        accept_conn_limit = 10.5
        accept_conn_burst = 20
        accept_per_address_limit = "unlimited"
        max_connections = 1000
        max_unauthenticated = 50
        [limits.client.rx]
        bytes_per_second = 1000000
        max_burst_bytes = 5000

        [access]
        denylist = ["{A.id}"]
        allowlist = ["{B.id}"]
        shared_token = ["x"]
        [access.grants]
        issuers = ["{ISSUER.id}"]
        revocations = "revoked"
        max_lifetime_s = 7200
        [access.http]
        url = "https://app.example/admit"
        bearer_token = "t"
        """,
        folder=tmp_path,
    )
    options = config.options
    assert options.http == ("0.0.0.0", 8080)
    assert options.https == ("0.0.0.0", 8443)
    assert options.tls is not None
    assert options.reload_s == 5
    assert options.client_rate == Rate(1_000_000, 5000)
    assert options.accept_rate == Rate(10.5, 20)
    assert options.accept_rate_per_address is None
    assert options.max_connections == 1000
    assert options.max_unauthenticated == 50
    assert options.reuse_port
    assert config.metrics == ("::1", 9999)
    assert config.qad.address == ("0.0.0.0", 7842)
    assert config.qad.tls is options.tls
    assert config.workers == 2
    assert config.files == (tmp_path / "revoked",)
    assert [type(rule) for rule in config.rules] == [
        DenyList,
        AllowList,
        SharedTokens,
        GrantRule,
        HttpCallout,
    ]
    assert config.rules[3].verifier.max_lifetime_s == 7200


def test_dev_ignores_tls_and_unlimited_is_possible(certificate, tmp_path) -> None:
    config = read(
        f"""
        access = "everyone"
        [tls]
        cert_mode = "Manual"
        cert_dir = "{tmp_path}"
        manual_cert_path = "{certificate.chain}"
        manual_key_path = "{certificate.key}"
        [limits]
        accept_conn_limit = "unlimited"
        client.rx = "unlimited"
        """,
        dev=True,
    )
    assert config.options.https is None
    assert config.options.client_rate is None
    assert config.options.accept_rate is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "access: missing"),
        ("access = ", "not TOML"),
        ('access = "nobody"', "access: is"),
        ("access = 5", "access: is a whole number, not a table"),
        ("[access]", "names no rule"),
        ('access = "everyone"\nacess = 1', "did you mean access"),
        ('[access]\nallow_list = ["x"]', "did you mean access.allowlist"),
        ('[access]\nallowlist = ["x"]', "access.allowlist"),
        ("[access]\nallowlist = [5]", "not a list of texts"),
        ("[access]\nshared_token = []", "access.shared_token: is empty"),
        ('[access]\nshared_token = ["a", ""]', "access.shared_token: is empty"),
        ("[access.grants]\nissuers = []", "has to name the keys"),
        (f'[access.grants]\nissuers = ["{A.id}"]\nrevocations = "nothing"', "cannot be read"),
        ("[access.http]", "access.http.url: is missing"),
        ('[access.http]\nurl = "ftp://x"', "http or https"),
        ('access = "everyone"\nhttp_bind_addr = "80"', "http_bind_addr: '80' is not an address"),
        ('access = "everyone"\nhttp_bind_addr = "a:99999"', "is not an address"),
        ('access = "everyone"\nhttp_bind_addr = "a:\u00b2"', "is not an address"),
        (f'access = "everyone"\nhttp_bind_addr = "a:{"9" * 5000}"', "is not an address"),
        ('access = "everyone"\nenable_relay = false', "enable_relay"),
        (
            'access = "everyone"\nenable_metrics = 1',
            "a whole number, not true or false",
        ),
        ('access = "everyone"\nworkers = 0', "workers: has to be above 0"),
        ('access = "everyone"\nworkers = 65', "64 at most"),
        ('access = "everyone"\nhttp_bind_addr = 1979-05-27', "is a date or time, not text"),
        ('access = "everyone"\nworkers = true', "workers: is true or false, not a whole number"),
        ('access = "everyone"\nenable_quic_addr_discovery = true', "needs"),
        ('access = "everyone"\n[tls]\ncert_mode = "LetsEncrypt"', "certbot"),
        ('access = "everyone"\n[tls]\ncert_mode = "Manual"', "default.crt"),
        ('access = "everyone"\n[tls]\ncert_mode = "Manual"\nhostname = "x"', "LetsEncrypt"),
        ('access = "everyone"\n[limits.client.rx]\nmax_burst_bytes = 5', "is missing"),
        ('access = "everyone"\n[limits.client.rx]\nbytes_per_second = 0', "above 0"),
        ('access = "everyone"\n[limits.client.rx]\nbytes_per_second = 9', "at least 10"),
        ('access = "everyone"\n[limits]\nclient.rx = "fast"', "unlimited"),
        ('access = "everyone"\n[limits]\naccept_conn_limit = "fast"', "unlimited"),
        ('access = "everyone"\n[limits]\naccept_conn_burst = 5', "above 0"),
    ],
)
def test_what_cannot_be_used_is_named(text, message) -> None:
    with pytest.raises(RelayConfigError) as caught:
        read(text)
    assert message in str(caught.value)


def test_tokens_from_the_environment() -> None:
    text = '[access]\nshared_token = ["file"]\n[access.http]\nurl = "http://x"\nbearer_token = "f"'
    environment = {
        "IROH_RELAY_ACCESS_TOKEN": "one",
        "DIALKEY_RELAY_HTTP_BEARER_TOKEN": "two",
    }
    tokens, callout = read(text, environment=environment).rules
    assert asyncio.run(tokens.check(AdmitRequest(A.id, token="one"))) != Denial()
    assert asyncio.run(tokens.check(AdmitRequest(A.id, token="file"))) == Denial()
    assert callout._headers == {"Authorization": "Bearer two"}


def test_files_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(RelayConfigError, match="cannot be read"):
        load(tmp_path / "nothing.toml")
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(RelayConfigError, match="UTF-8"):
        load(path)
    path.write_text('acces = "everyone"')
    with pytest.raises(RelayConfigError, match=r"bad\.toml: access: missing"):
        load(path)


# --- asking a web server ------------------------------------------------------------------------


async def test_a_web_server_decides() -> None:
    answers = {A.id: (200, "true"), B.id: (200, "True"), ISSUER.id: (500, "true")}
    asked = []

    async def admit(request):
        asked.append(request)
        assert await request.read() == b""
        key = request.headers["X-Iroh-NodeId"]
        assert key == request.headers["X-Iroh-Endpoint-Id"]
        status, text = next(value for id, value in answers.items() if str(id) == key)
        return web.Response(status=status, text=text)

    app = web.Application()
    app.router.add_post("/admit", admit)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    rule = HttpCallout(f"http://127.0.0.1:{port}/admit", "secret")
    assert await rule.check(AdmitRequest(A.id)) == Admission()
    assert await rule.check(AdmitRequest(B.id)) == Denial()
    assert await rule.check(AdmitRequest(ISSUER.id)) == Denial()
    assert asked[0].headers["Authorization"] == "Bearer secret"
    assert rule.recheck(A.id, Admission()) is None
    await rule.close()
    await rule.close()
    await runner.cleanup()


async def test_no_address_has_all_calls_to_the_web_server() -> None:
    arrived, may_answer = asyncio.Queue(), asyncio.Event()

    async def admit(request):
        arrived.put_nowait(request.headers["X-Iroh-NodeId"])
        await may_answer.wait()
        return web.Response(text="true")

    app = web.Application()
    app.router.add_post("/admit", admit)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    rule = HttpCallout(f"http://127.0.0.1:{runner.addresses[0][1]}/admit", timeout_s=60)
    async with asyncio.timeout(30), asyncio.TaskGroup() as clients:
        # One network has many addresses and keys, and more clients than there are calls.
        crowd = [
            clients.create_task(rule.check(AdmitRequest(A.id, remote=f"2001:db8::{n:x}")))
            for n in range(callout_module.MAX_CALLS + 40)
        ]
        for _ in range(callout_module.MAX_CALLS):
            assert await arrived.get() == str(A.id)
        honest = clients.create_task(rule.check(AdmitRequest(B.id, remote="192.0.2.1")))
        assert await arrived.get() == str(B.id)
        may_answer.set()
        assert await honest == Admission()
        assert set(await asyncio.gather(*crowd)) == {Admission()}
    await rule.close()
    await runner.cleanup()


# --- metrics ------------------------------------------------------------------------------------


def test_metrics_have_the_names_of_real_relays() -> None:
    counters = Counters(bytes_sent=7, bytes_rx_ratelimited_total=3, dropped_queue_full=2)
    text = render(Snapshot(counters, 5, 6, 1000)).decode()
    assert "\nrelayserver_bytes_sent_total 7.0\n" in text
    assert "\nrelayserver_bytes_rx_ratelimited_total 3.0\n" in text
    assert '\ndialkey_relay_dropped_frames_total{reason="queue_full"} 2.0\n' in text
    assert "\ndialkey_relay_endpoints 5.0\n" in text
    assert text.endswith("# EOF\n")


def test_every_counter_is_shown_once() -> None:
    import attrs

    shown = [*COUNTERS, *OUR_COUNTERS, *DROPS]
    assert sorted(shown) == sorted(field.name for field in attrs.fields(Counters))


# --- running ------------------------------------------------------------------------------------


def configuration(**access):
    lines = ['http_bind_addr = "127.0.0.1:0"', 'metrics_bind_addr = "127.0.0.1:0"']
    lines += ["[limits]", 'accept_per_address_limit = "unlimited"', "[access]"]
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in access.items())])


async def fetch(
    address, request=b"BREW /anything HTTP/1.1\r\nHost: x\r\nconnection: close\r\n\r\n"
):
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request)
    async with asyncio.timeout(10):
        reply = (await reader.read()).decode()
    writer.close()
    return reply


async def test_metrics_on_their_port() -> None:
    async with RunningRelay(lambda: read(configuration(denylist="[]"))) as running:
        address = running.metrics.addresses[0]
        reply = await fetch(address)
        assert reply.startswith("HTTP/1.1 200 OK")
        assert "content-type: text/plain; version=0.0.4; charset=utf-8" in reply
        assert "\nrelayserver_accepts_total 0.0\n" in reply
        assert (await fetch(address, b"nonsense\r\n\r\n")).startswith("HTTP/1.1 400")


async def test_a_changed_file_changes_who_may_stay(tmp_path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(configuration(allowlist=[str(A.id), str(B.id)]))
    async with RunningRelay(lambda: load(path)) as running:
        url = running.relay.url
        async with (
            RelayClient(url, A, dialer=DIRECT) as a,
            RelayClient(url, B, dialer=DIRECT) as b,
        ):
            await asyncio.gather(a.connected(), b.connected())
            path.write_text("this is no TOML")
            assert not await running.reload()
            assert len(running.relay) == 2
            path.write_text(configuration(allowlist=[str(B.id)]) + "\n[limits.client]\nrx=5")
            assert not await running.reload()
            path.write_text(configuration(allowlist=[str(B.id)]))
            assert await running.reload()
            assert [peer.key for peer in running.relay.hub.peers()] == [bytes(B.id)]


async def test_a_revoked_grant_is_cut_off(tmp_path) -> None:
    path, revoked = tmp_path / "relay.toml", tmp_path / "revoked"
    revoked.write_text("")
    path.write_text(
        'http_bind_addr = "127.0.0.1:0"\nenable_metrics = false\n'
        f'[access.grants]\nissuers = ["{ISSUER.id}"]\nrevocations = "revoked"\n'
    )
    import time

    grant = Grant.issue(ISSUER, A.id, now=time.time(), bytes_per_second=50_000)
    async with RunningRelay(lambda: load(path)) as running:
        url = running.relay.url
        async with RelayClient(url, A, dialer=DIRECT, token=str(grant)) as a:
            await a.connected()
            revoked.write_text(f"grant {grant.id.hex()}\n")
            assert await running.reload()
            assert len(running.relay) == 0
            async with asyncio.timeout(10):
                async for status in a.watch():
                    if status.error is not None and "revoked" in str(status.error):
                        break


async def test_serving_until_cancelled_with_a_hangup_between(tmp_path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(configuration(allowlist=[str(A.id)]))
    started = asyncio.get_running_loop().create_future()
    work = asyncio.create_task(serve(lambda: load(path), started.set_result))
    running = await started
    async with RelayClient(running.relay.url, A, dialer=DIRECT) as a:
        await a.connected()
        path.write_text(configuration(allowlist="[]"))
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(10):
            async for status in a.watch():
                if status.error is not None:
                    break
        path.write_text(configuration(allowlist=[str(A.id)]))
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(10):
            await a.connected()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert running.relay.connection_count == 0


def test_the_example_of_the_guide_is_good(certificate, tmp_path) -> None:
    guide = (Path(__file__).parents[3] / "docs" / "relay.md").read_text()
    text = guide.split("```toml\n")[1].split("```")[0]
    text = text.replace("/etc/letsencrypt/live/relay.example/fullchain.pem", str(certificate.chain))
    text = text.replace("/etc/letsencrypt/live/relay.example/privkey.pem", str(certificate.key))
    (tmp_path / "revoked.txt").write_text("")
    config = read(text, folder=tmp_path)
    assert config.options.https == ("::", 443)
    assert config.qad.address == ("::", 7842)
    assert config.workers == 2


def test_the_guide_names_every_key() -> None:
    """What `parse` takes, read out of its own code, stands in the table of the guide."""
    code = inspect.getsource(configuration_module)
    taken = r'\.(?:take|table|strings|positive|number|ids|address|peek)\(\s*"(\w+)"'
    keys = set(re.findall(taken, code)) | set(re.findall(r'_event_rate\(\s*table, "(\w+)"', code))
    guide = Path(__file__).parents[3].joinpath("docs", "relay.md").read_text(encoding="utf-8")
    assert len(keys) > 25
    assert not [key for key in sorted(keys) if key not in guide]
