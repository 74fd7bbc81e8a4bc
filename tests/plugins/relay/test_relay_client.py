"""The relay client on loopback: connecting, coming back, versions, tokens, the watchdog."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import socket
import sys
import time

import attrs
import pytest

from dialkey.errors import InvalidInput, LocalError
from dialkey.identity import SecretKey
from dialkey_relay import session as session_module
from dialkey_relay.access import AllowList, Everyone, GrantRule, SharedTokens
from dialkey_relay.client import client as client_module
from dialkey_relay.client import machine as machine_module
from dialkey_relay.client.client import RelayClient
from dialkey_relay.client.dial import Dialer
from dialkey_relay.client.status import ClientState
from dialkey_relay.errors import RelayDenied, RelayUnreachable, RelayUpgradeError
from dialkey_relay.frames import RelayVersion, StatusCode
from dialkey_relay.grants import Grant, GrantVerifier
from dialkey_relay.http1 import Upgrade, upgrade_request
from dialkey_relay.server.server import RelayOptions, RelayServer

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


async def test_both_ends_send_small_frames_at_once() -> None:
    async with RelayServer([Everyone()], OPEN) as relay, client(relay) as a:
        await a.connected()
        port = int(relay.url.rstrip("/").rpartition(":")[2])
        ends = {
            name: each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            for each in gc.get_objects()
            if isinstance(each, socket.socket) and each.fileno() >= 0
            for name in ends_of(each)
            if port in name
        }
        assert len(ends) == 2
        assert all(ends.values())


def ends_of(sock):
    """Return the two ports of a TCP connection, or nothing for any other socket."""
    try:
        return [(sock.getsockname()[1], sock.getpeername()[1])]
    except (OSError, IndexError):
        return []


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


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how much waits unsent")
async def test_little_waits_for_a_network_that_takes_nothing() -> None:
    """Old datagrams in a deep buffer would only delay new ones."""
    import fcntl

    unsent_in_kernel = 0x894B  # SIOCOUTQNSD
    async with RelayServer([Everyone()], OPEN) as relay, client(relay, A) as a:
        await a.connected()
        (peer,) = relay.hub.peers()
        peer.outlet._stop_reading()
        for _ in range(20_000):
            if not a.send(B.id, bytes(1400)):
                break
            await asyncio.sleep(0)
        assert a.status.dropped == 1
        transport = a._link._transport
        answer = fcntl.ioctl(
            transport.get_extra_info("socket").fileno(), unsent_in_kernel, bytes(4)
        )
        assert int.from_bytes(answer, "little") < 150_000
        assert transport.get_write_buffer_size() < 300_000
        # It goes on as soon as something is taken.
        peer.outlet._resume_reading()
        await eventually(lambda: a.send(A.id, b"again"))
        assert (await a.receive()).content == b"again"


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


async def test_an_announced_restart_is_waited_for(monkeypatch) -> None:
    relay = RelayServer([Everyone()], OPEN)
    await relay.start()
    address = relay.addresses[0]
    pauses, back = [], asyncio.Event()
    pause = RelayClient._pause

    async def recorded(self, seconds):
        pauses.append(seconds)
        # The new relay must be there first, however long a busy machine needs to start it.
        await back.wait()
        await pause(self, seconds)

    monkeypatch.setattr(RelayClient, "_pause", recorded)
    async with client(relay, A) as a:
        await a.connected()
        began = time.monotonic()
        await relay.restart(reconnect_in_ms=200, try_for_ms=9000)
        async with RelayServer([Everyone()], RelayOptions(http=address)):
            back.set()
            await until(a, lambda status: status.connects == 2)
            assert time.monotonic() - began >= 0.2
    # One attempt was enough: nobody hammered the relay while it was away.
    (seconds,) = pauses
    assert 0.2 <= seconds <= 0.4


async def test_denials_are_reported_and_retried(caplog) -> None:
    rule = AllowList([])
    async with RelayServer([rule], OPEN) as relay, client(relay, A) as a:
        status = await until(a, lambda status: isinstance(status.error, RelayDenied))
        assert status.error.reason == "not authorized"
        await until(a, lambda status: status.attempts >= 3)
        # Somebody has to mend that, and is told once.
        (warning,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
        assert "not authorized" in warning.getMessage()
        rule.endpoint_ids = frozenset({A.id})
        await until(a, lambda status: status.connects == 1)


async def test_a_server_that_is_not_a_relay() -> None:
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


async def test_nobody_there(caplog) -> None:
    async with client("http://127.0.0.1:1/") as a:
        status = await until(a, lambda status: status.error is not None)
        assert isinstance(status.error, RelayUnreachable)
        assert "127.0.0.1 port 1" in str(status.error)
        a.network_changed()
        await until(a, lambda status: status.attempts >= 3)
        # To be offline is nothing to warn about.
        assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


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


# --- both versions of the protocol ----------------------------------------------------------------


@pytest.fixture
def old_relays(monkeypatch):
    """Make relays of this process answer with version 1, as those before iroh 0.98."""
    genuine = session_module.check_upgrade

    def check(request):
        found = genuine(request)
        return attrs.evolve(found, version=RelayVersion.V1) if isinstance(found, Upgrade) else found

    monkeypatch.setattr(session_module, "check_upgrade", check)


async def test_version_1_on_both_ends(old_relays) -> None:
    async with RelayServer([Everyone()], OPEN) as relay, client(relay, A) as first:
        await first.connected()
        assert first.status.version is RelayVersion.V1
        assert first.send(A.id, b"aabbc", 2)
        assert (await first.receive()).split() == [b"aa", b"bb", b"c"]
        async with client(relay, A) as second:
            await second.connected()
            status = await until(first, lambda status: status.notice is not None)
            assert "took over" in status.notice
        status = await until(first, lambda status: status.notice is None)
        assert status.connects == 1


async def test_an_old_client_and_a_new_one_on_one_relay() -> None:
    """The relay of version 2 speaks version 1 with whoever asks for nothing else."""

    async with RelayServer([Everyone()], OPEN) as relay, client(relay, B) as new:
        await new.connected()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                machine_module,
                "upgrade_request",
                functools.partial(upgrade_request, versions=(RelayVersion.V1,)),
            )
            old = client(relay, A)
            old.start()
            await old.connected()
        assert (old.status.version, new.status.version) == (RelayVersion.V1, RelayVersion.V2)
        old.send(B.id, b"to the new one")
        assert (await new.receive()).content == b"to the new one"
        new.send(A.id, b"xxyy", 2)
        assert (await old.receive()).split() == [b"xx", b"yy"]
        await old.close()


async def test_what_the_relay_says_of_a_connection_is_in_its_status(caplog) -> None:
    async with RelayServer([Everyone()], OPEN) as relay, client(relay, A) as first:
        await first.connected()
        async with client(relay, A) as second:
            await second.connected()
            status = await until(first, lambda status: status.notice is not None)
            assert "took over" in status.notice
            assert status.state is ClientState.CONNECTED
        await until(first, lambda status: status.notice is None)
        (peer,) = relay.hub.peers()
        relay.hub.tell(peer, StatusCode.RATE_LIMITED)
        relay.flush_ready()
        status = await until(first, lambda status: status.notice is not None)
        assert "slowed down" in status.notice
        relay.hub.tell(peer, StatusCode.HEALTHY)
        relay.flush_ready()
        await until(first, lambda status: status.notice is None)
        relay.hub.send_control(peer, b"\x0d\x63")
        relay.flush_ready()
        status = await until(first, lambda status: status.notice is not None)
        assert status.notice == "status 99"
    assert first.status.notice is None


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


async def test_a_grant_is_renewed_before_it_ends_without_a_gap(monkeypatch, caplog) -> None:
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
        # That the first connection was replaced is nothing to warn about.
        assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


async def test_a_token_that_cannot_be_renewed_leaves_the_connection_alone(
    monkeypatch, caplog
) -> None:
    monkeypatch.setattr(client_module, "MIN_REFRESH_S", 0.02)
    monkeypatch.setattr(client_module, "DRAIN_S", 0.02)
    asked = []

    async def fetch():
        asked.append(1)
        if len(asked) == 2:
            raise OSError("the app's server is away")
        if len(asked) == 3:
            return "one that the relay refuses"
        used_up_s = 9 if len(asked) == 1 else 0
        return str(Grant.issue(ISSUER, A.id, now=time.time() - used_up_s, lifetime_s=12))

    rule = GrantRule(GrantVerifier([ISSUER.id]), time.time)
    async with RelayServer([rule], OPEN) as relay, client(relay, A, token=fetch) as a:
        await a.connected()
        seen = set()
        async with asyncio.timeout(10):
            async for status in a.watch():
                seen.add((status.state, status.connects))
                if status.connects == 2:
                    break
        assert seen == {(ClientState.CONNECTED, 1), (ClientState.CONNECTED, 2)}
        assert len(asked) == 4
        assert caplog.text.count("the new token did not work") == 2
        assert relay.hub.counters.clients_denied == 1
        assert a.send(A.id, b"still here")
        assert (await a.receive()).content == b"still here"


@pytest.mark.parametrize("bad", ["", "two\r\nlines", "ä", 7])
async def test_a_token_that_no_header_can_carry_is_told(bad) -> None:
    tokens = [bad, "s"]

    async def fetch():
        return tokens.pop(0)

    async with (
        RelayServer([SharedTokens(["s"])], OPEN) as relay,
        client(relay, A, token=fetch) as a,
    ):
        status = await until(a, lambda status: status.error is not None)
        assert isinstance(status.error, InvalidInput)
        assert "printable" in str(status.error)
        await a.connected()


async def test_a_token_that_is_set_while_another_is_on_its_way_is_used(monkeypatch) -> None:
    monkeypatch.setattr(client_module, "DRAIN_S", 0.01)
    asked = asyncio.Event()
    go_on = asyncio.Event()

    async def slow():
        asked.set()
        await go_on.wait()
        return "old"

    seen = []

    class Watching(SharedTokens):
        async def check(self, request):
            seen.append(request.token)
            return await super().check(request)

    rule = Watching(["old", "new"])
    async with RelayServer([rule], OPEN) as relay, client(relay, A, token=slow) as a:
        await asked.wait()
        a.set_token("new")
        go_on.set()
        await until(a, lambda status: status.connects == 2)
        assert seen == ["old", "new"]
        # The same where the first is refused: no back-off before the second.
        rule.replace(["newer"])
        asked.clear()
        go_on.clear()
        a.set_token(slow)
        await asked.wait()
        relay.disconnect(A.id)
        a.set_token("newer")
        go_on.set()
        await until(a, lambda status: status.connects == 3)


async def test_a_network_that_changes_during_an_attempt_is_not_slept_over() -> None:
    """What changed may be what the attempt failed of; waiting first would be a pity."""
    dialling = asyncio.Event()

    class Slow(Dialer):
        tries = 0

        async def open(self, target, protocol):
            Slow.tries += 1
            if Slow.tries == 1:
                dialling.set()
                await asyncio.Event().wait()
            await super().open(target, protocol)

    async with RelayServer([Everyone()], OPEN) as relay:
        a = client(relay, A, dialer=Slow(proxy=""))
        a._backoff.failed = lambda: 1000.0
        async with a:
            await dialling.wait()
            a.network_changed()
            a._attempt.cancel()
            async with asyncio.timeout(10):
                await a.connected()


async def test_another_token_is_used_at_once() -> None:
    rule = SharedTokens(["old", "new"])
    async with RelayServer([rule], OPEN) as relay, client(relay, A, token="old") as a:
        await a.connected()
        a.set_token("new")
        await until(a, lambda status: status.connects == 2)
        rule.replace(["new"])
        await eventually(lambda: relay.connection_count == 1)
        assert relay.recheck() == 0


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
