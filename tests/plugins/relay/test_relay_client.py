"""The relay client on loopback: connecting, coming back, tokens, proxies, TLS, the watchdog."""

from __future__ import annotations

import asyncio
import base64
import time

import pytest

from dialkey.errors import LocalError
from dialkey.identity import SecretKey
from dialkey_relay.access import AllowList, Everyone, GrantRule, SharedTokens
from dialkey_relay.client import client as client_module
from dialkey_relay.client.client import RelayClient
from dialkey_relay.client.dial import Dialer, default_tls
from dialkey_relay.client.status import ClientState
from dialkey_relay.errors import RelayDenied, RelayUnreachable, RelayUpgradeError
from dialkey_relay.grants import Grant, GrantVerifier
from dialkey_relay.server.server import RelayOptions, RelayServer
from dialkey_relay.server.tls import TlsFiles

A, B = SecretKey(b"\x01" * 32), SecretKey(b"\x02" * 32)
ISSUER = SecretKey(b"\x03" * 32)
OPEN = RelayOptions(client_rate=None, accept_rate_per_address=None)
DIRECT = Dialer(proxy="")


def client(relay, key=A, **options):
    url = relay if isinstance(relay, str) else relay.url
    return RelayClient(url, key, **({"dialer": DIRECT} | options))


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


async def test_two_clients_exchange_batches() -> None:
    async with (
        RelayServer([Everyone()], OPEN) as relay,
        client(relay, A) as a,
        client(relay, B) as b,
    ):
        await a.connected()
        await b.connected()
        assert a.send(B.id, b"aabbc", 2)
        assert a.send(B.id, b"single")
        first, second = await b.receive(), await b.receive()
        assert first.split() == [b"aa", b"bb", b"c"]
        assert (first.peer, second.content) == (bytes(A.id), b"single")
        status = await until(a, lambda status: status.rtt_s is not None)
        assert status.state is ClientState.CONNECTED
        assert status.connects == 1
        assert status.version is not None
    assert a.status.state is ClientState.STOPPED
    with pytest.raises(LocalError):
        await a.connected()


async def test_callbacks_replace_the_queue() -> None:
    got = asyncio.Queue()
    async with (
        RelayServer([Everyone()], OPEN) as relay,
        client(relay, A) as a,
        client(relay, B, on_datagrams=got.put_nowait) as b,
    ):
        await asyncio.gather(a.connected(), b.connected())
        a.send(B.id, b"x")
        async with asyncio.timeout(10):
            assert [each.content for each in await got.get()] == [b"x"]


async def test_what_cannot_be_sent_is_counted() -> None:
    waiting = client("http://127.0.0.1:1/")
    assert not waiting.send(B.id, b"x")
    assert waiting.status.dropped == 1
    assert waiting.last_sent_at == 0.0
    await waiting.close()
    await waiting.close()


async def test_slow_readers_lose_the_oldest() -> None:
    async with (
        RelayServer([Everyone()], OPEN) as relay,
        client(relay, A) as a,
        client(relay, B) as b,
    ):
        await asyncio.gather(a.connected(), b.connected())
        for n in range(600):
            a.send(B.id, n.to_bytes(2, "big"))
            if n % 50 == 0:
                await asyncio.sleep(0)
        await eventually(lambda: b.status.dropped == 88)
        assert (await b.receive()).content == (88).to_bytes(2, "big")


async def test_a_relay_that_comes_back_gets_its_clients_back() -> None:
    relay = RelayServer([Everyone()], OPEN)
    await relay.start()
    address = relay.addresses[0]
    async with client(relay, A) as a:
        await a.connected()
        await relay.close()
        status = await until(a, lambda status: status.error is not None)
        assert not a.is_connected
        await until(a, lambda status: status.attempts >= 3)
        async with RelayServer([Everyone()], RelayOptions(http=address)) as relay:
            status = await until(a, lambda status: status.connects == 2)
            assert status.error is None
            assert len(relay) == 1


async def test_an_announced_restart_is_waited_for() -> None:
    relay = RelayServer([Everyone()], OPEN)
    await relay.start()
    address = relay.addresses[0]
    async with client(relay, A) as a:
        await a.connected()
        began = time.monotonic()
        await relay.restart(reconnect_in_ms=200, try_for_ms=9000)
        async with RelayServer([Everyone()], RelayOptions(http=address)):
            await until(a, lambda status: status.connects == 2)
            assert 0.2 <= time.monotonic() - began < 5
            # One attempt was enough: nobody hammered the relay while it was away.
            assert a.status.attempts == 0


async def test_denials_are_reported_and_retried() -> None:
    rule = AllowList([])
    async with RelayServer([rule], OPEN) as relay, client(relay, A) as a:
        status = await until(a, lambda status: isinstance(status.error, RelayDenied))
        assert status.error.reason == "not authorized"
        rule.endpoint_ids = frozenset({A.id})
        await until(a, lambda status: status.connects == 1)


async def test_a_server_that_is_no_relay() -> None:
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with client(f"http://127.0.0.1:{port}") as a:
        status = await until(a, lambda status: status.error is not None)
        assert isinstance(status.error, RelayUpgradeError)
        assert "404" in str(status.error)
    server.close()


async def test_nobody_there() -> None:
    async with client("http://127.0.0.1:1/") as a:
        status = await until(a, lambda status: status.error is not None)
        assert isinstance(status.error, RelayUnreachable)
        assert "127.0.0.1 port 1" in str(status.error)
        a.network_changed()


async def test_a_relay_that_accepts_and_says_nothing(monkeypatch) -> None:
    monkeypatch.setattr(client_module, "DIAL_TIMEOUT_S", 0.1)
    gone = asyncio.Event()

    async def silence(reader, writer):
        await reader.read()
        writer.close()
        gone.set()

    server = await asyncio.start_server(silence, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with client(f"http://127.0.0.1:{port}") as a:
        status = await until(a, lambda status: status.error is not None)
        assert "did not answer" in str(status.error)
    async with asyncio.timeout(10):
        await gone.wait()
    server.close()


# --- tokens -------------------------------------------------------------------------------------


async def test_a_fixed_token() -> None:
    async with RelayServer([SharedTokens(["s"])], OPEN) as relay:
        async with client(relay, A, token="s") as a:
            await a.connected()
        async with client(relay, A, token="wrong") as a:
            await until(a, lambda status: isinstance(status.error, RelayDenied))


async def test_a_token_that_cannot_be_fetched_is_one_failed_attempt() -> None:
    tries = []

    async def fetch():
        tries.append(1)
        if len(tries) == 1:
            raise ZeroDivisionError("the database is away")
        return "s"

    async with (
        RelayServer([SharedTokens(["s"])], OPEN) as relay,
        client(relay, A, token=fetch) as a,
    ):
        status = await until(a, lambda status: status.error is not None)
        assert "database" in str(status.error)
        await a.connected()


async def test_a_grant_is_renewed_before_it_ends_without_a_gap(monkeypatch) -> None:
    monkeypatch.setattr(client_module, "MIN_REFRESH_S", 0.05)
    monkeypatch.setattr(client_module, "DRAIN_S", 0.05)
    issued = []

    async def fetch():
        # Grants count whole seconds; this one is as good as used up when it comes.
        grant = Grant.issue(ISSUER, A.id, now=time.time() - 9, lifetime_s=12)
        issued.append(grant)
        return str(grant)

    rule = GrantRule(GrantVerifier([ISSUER.id]), time.time)
    everyone = RelayServer([rule], OPEN)
    async with everyone as relay, client(relay, A, token=fetch) as a:
        await a.connected()
        states = set()

        async def observe():
            async for status in a.watch():
                states.add(status.state)

        watching = asyncio.create_task(observe())
        sent = received = 0
        async with asyncio.timeout(10):
            while a.status.connects < 4:
                # To itself: what goes out on one connection comes back on the active one.
                assert a.send(A.id, b"n%d" % sent)
                sent += 1
                await a.receive()
                received += 1
        watching.cancel()
        assert states == {ClientState.CONNECTED}
        assert sent == received > 10
        assert len(issued) == 4
        assert relay.hub.counters.clients_expired == 0
        assert relay.hub.counters.send_packets_dropped == 0


async def test_another_token_is_used_at_once() -> None:
    rule = SharedTokens(["old", "new"])
    async with RelayServer([rule], OPEN) as relay, client(relay, A, token="old") as a:
        await a.connected()
        a.set_token("new")
        await until(a, lambda status: status.connects == 2)
        rule.replace(["new"])
        await eventually(lambda: relay.connection_count == 1)
        assert relay.recheck() == 0


# --- TLS and proxies ----------------------------------------------------------------------------


def tls_relay(certificate):
    options = RelayOptions(
        http=None, https=("127.0.0.1", 0), tls=TlsFiles(certificate.chain, certificate.key)
    )
    return RelayServer([Everyone()], options)


async def test_tls_with_added_roots(certificate) -> None:
    dialer = Dialer(tls=default_tls(str(certificate.chain)), proxy="")
    async with tls_relay(certificate) as relay:
        port = relay.addresses[0][1]
        async with client(f"https://localhost:{port}/", dialer=dialer) as a:
            await a.connected()


async def test_an_unknown_authority_is_named_as_the_reason(certificate) -> None:
    async with tls_relay(certificate) as relay, client(relay) as a:
        status = await until(a, lambda status: status.error is not None)
        assert "not trusted" in str(status.error)


class Proxy:
    """An HTTP proxy that knows CONNECT, with or without a password."""

    def __init__(self, password=None):
        self.password = password
        self.requests = []
        self._tasks = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info):
        self.server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            wanted = base64.b64encode(f"user:{self.password}".encode()).decode()
            if self.password and f"Proxy-Authorization: Basic {wanted}" not in head:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            host, _, port = head.split()[1].rpartition(":")
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.pump(reader, far_writer))
                    group.create_task(self.pump(far_reader, writer))
            finally:
                far_writer.close()
        finally:
            writer.close()

    async def pump(self, reader, writer):
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()


@pytest.mark.parametrize("is_tls", [False, True])
async def test_through_a_proxy(certificate, is_tls) -> None:
    relay = tls_relay(certificate) if is_tls else RelayServer([Everyone()], OPEN)
    async with Proxy(password="p@ss") as proxy, relay:
        dialer = Dialer(
            tls=default_tls(str(certificate.chain)),
            proxy=f"http://user:p%40ss@127.0.0.1:{proxy.port}",
        )
        async with client(relay, A, dialer=dialer) as a:
            await a.connected()
            a.send(A.id, b"through")
            assert (await a.receive()).content == b"through"
        port = relay.addresses[0][1]
        assert proxy.requests[0].startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n")


async def test_a_proxy_that_refuses() -> None:
    async with Proxy(password="x") as proxy, RelayServer([Everyone()], OPEN) as relay:
        dialer = Dialer(proxy=f"http://127.0.0.1:{proxy.port}")
        async with client(relay, A, dialer=dialer) as a:
            status = await until(a, lambda status: status.error is not None)
            assert "407" in str(status.error)
            assert "credentials" in str(status.error)


# --- the watchdog -------------------------------------------------------------------------------


async def test_the_watchdog_ends_what_is_stuck(monkeypatch) -> None:
    monkeypatch.setattr(client_module, "WATCHDOG_S", 0.02)

    class Stuck(Dialer):
        tries = 0

        async def open(self, target, protocol):
            Stuck.tries += 1
            if Stuck.tries == 1:
                await asyncio.Event().wait()
            await super().open(target, protocol)

    async with RelayServer([Everyone()], OPEN) as relay:
        a = client(relay, A, dialer=Stuck(proxy=""))
        genuine = RelayClient.wedged

        def later(self, now):
            return genuine(self, now + 26 if Stuck.tries == 1 else now)

        monkeypatch.setattr(RelayClient, "wedged", later)
        async with a:
            await a.connected()
            assert a.status.watchdog_kills >= 1


async def test_the_watchdog_sees_silence_and_death() -> None:
    async with RelayServer([Everyone()], OPEN) as relay, client(relay, A) as a:
        await a.connected()
        now = asyncio.get_running_loop().time()
        assert a.wedged(now) is None
        assert "silent" in a.wedged(now + 31)
        a._main.cancel()
        await asyncio.gather(a._main, return_exceptions=True)
        assert "stopped" in a.wedged(now)
