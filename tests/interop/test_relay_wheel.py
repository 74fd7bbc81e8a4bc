"""Real iroh endpoints through our relay: with each other and with us.

Source: checklist of docs/wire/relay.md 7.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import time

import attrs
import pytest

from dialkey import Endpoint, Router
from dialkey.errors import DialkeyError
from dialkey.identity import EndpointAddr, RelayAddr, RelayUrl, SecretKey
from dialkey_relay import Relay
from dialkey_relay import session as session_module
from dialkey_relay.access import AllowList, Everyone, GrantRule, SharedTokens
from dialkey_relay.frames import RelayVersion
from dialkey_relay.grants import Grant, GrantVerifier, Revocations
from dialkey_relay.http1 import Upgrade
from dialkey_relay.rates import Rate
from dialkey_relay.server.server import RelayOptions, RelayServer

pytestmark = pytest.mark.interop

A = SecretKey(b"\x21" * 32)
B = SecretKey(b"\x22" * 32)
ALPN = "dialkey-test/echo"
OPEN = RelayOptions(client_rate=None, accept_rate_per_address=None)


def arguments(key, relay, *more):
    return ("--secret", key.to_hex(), "--relay", relay, *more)


async def test_two_endpoints_meet_through_the_relay(wheel) -> None:
    async with RelayServer([Everyone()], OPEN) as relay:
        server = await wheel(*arguments(A, relay.url, "--serve"))
        hello = await server.line()
        assert hello["online"]
        assert hello["id"] == str(A.id)
        client = await wheel(*arguments(B, relay.url, "--dial", str(A.id), "--bytes", "100000"))
        assert (await client.line())["online"]
        assert (await client.line())["same"]
        counters = relay.hub.counters
        assert counters.protocol_errors == 0
        assert counters.got_ping >= 2
        assert counters.send_packets_sent > 4


@pytest.mark.slow
async def test_20_mb_stay_on_the_relay_where_there_is_no_other_way(wheel, islands) -> None:
    options = RelayOptions(http=("0.0.0.0", 0), client_rate=None, accept_rate_per_address=None)
    async with RelayServer([Everyone()], options) as relay:
        url = f"http://{islands.gateway}:{relay.addresses[0][1]}/"
        server = await wheel(*arguments(A, url, "--serve"), prefix=islands.enter(0))
        assert (await server.line())["online"]
        client = await wheel(
            *arguments(B, url, "--dial", str(A.id), "--bytes", "20000000"),
            prefix=islands.enter(1),
        )
        assert (await client.line())["online"]
        result = await client.line(timeout=100)
        assert result["same"]
        counters = relay.hub.counters
        assert counters.bytes_sent > 40_000_000
        assert counters.protocol_errors == 0
        print(
            f"20 MB echoed in {result['took_s']:.1f} s, dropped {counters.send_packets_dropped} "
            f"of {counters.send_packets_recv} frames"
        )


async def test_relays_of_version_1_serve_real_endpoints(wheel, monkeypatch) -> None:
    genuine = session_module.check_upgrade

    def check(request):
        found = genuine(request)
        return attrs.evolve(found, version=RelayVersion.V1) if isinstance(found, Upgrade) else found

    monkeypatch.setattr(session_module, "check_upgrade", check)
    async with RelayServer([Everyone()], OPEN) as relay:
        server = await wheel(*arguments(A, relay.url, "--serve"))
        assert (await server.line())["online"]
        # Version 1 puts a remark where version 2 has a status; either must leave it connected.
        twin = await wheel(*arguments(A, relay.url, "--serve"))
        assert (await twin.line())["online"]
        await twin.stop()
        await eventually(lambda: relay.hub.counters.clients_inactive_removed == 1)
        client = await wheel(*arguments(B, relay.url, "--dial", str(A.id), "--bytes", "100000"))
        assert (await client.line())["online"]
        assert (await client.line())["same"]
        assert {peer.version for peer in relay.hub.peers()} == {RelayVersion.V1}
        # Nobody was ever thrown out, or had to come again.
        assert relay.hub.counters.accepts == 3


async def test_endpoints_with_different_home_relays_meet(wheel) -> None:
    async with RelayServer([Everyone()], OPEN) as one, RelayServer([Everyone()], OPEN) as two:
        server = await wheel(*arguments(A, one.url, "--serve"))
        assert (await server.line())["online"]
        client = await wheel(
            *arguments(B, two.url, "--dial", str(A.id)), *("--remote-relay", one.url)
        )
        assert (await client.line())["online"]
        assert (await client.line())["same"]
        assert bytes(B.id) in {peer.key for peer in one.hub.peers()}
        assert bytes(A.id) not in {peer.key for peer in two.hub.peers()}


async def test_a_correspondent_that_leaves_harms_nobody(wheel) -> None:
    """The relay tells that an endpoint is gone; a real endpoint takes that and stays."""
    async with RelayServer([Everyone()], OPEN) as relay:
        server = await wheel(*arguments(A, relay.url, "--serve"))
        assert (await server.line())["online"]
        for _ in range(2):
            client = await wheel(*arguments(B, relay.url, "--dial", str(A.id)))
            assert (await client.line())["online"]
            assert (await client.line())["same"]
            await client.stop()
            await eventually(lambda: len(relay) == 1)
        assert relay.hub.counters.accepts == 3


@pytest.mark.slow
async def test_a_real_endpoint_is_slowed_down_to_its_rate(wheel, islands) -> None:
    options = RelayOptions(
        http=("0.0.0.0", 0), client_rate=Rate(1_000_000, 100_000), accept_rate_per_address=None
    )
    async with RelayServer([Everyone()], options) as relay:
        url = f"http://{islands.gateway}:{relay.addresses[0][1]}/"
        server = await wheel(*arguments(A, url, "--serve"), prefix=islands.enter(0))
        assert (await server.line())["online"]
        client = await wheel(
            *arguments(B, url, "--dial", str(A.id), "--bytes", "1000000"), prefix=islands.enter(1)
        )
        assert (await client.line())["online"]
        result = await client.line(timeout=60)
        assert result["same"]
        # There and back, less what may pass at once.
        assert result["took_s"] >= 1.7
        assert relay.hub.counters.conns_rx_ratelimited_total == 2
        assert relay.hub.counters.accepts == 2


async def test_denied_and_allowed(wheel) -> None:
    rule = AllowList([B.id])
    async with RelayServer([rule], OPEN) as relay:
        denied = await wheel(*arguments(A, relay.url, "--serve", "--online-timeout", "1"))
        assert not (await denied.line())["online"]
        allowed = await wheel(*arguments(B, relay.url, "--serve"))
        assert (await allowed.line())["online"]
        assert relay.hub.counters.clients_denied >= 3
        assert [bytes(B.id)] == [peer.key for peer in relay.hub.peers()]


async def test_tokens(wheel) -> None:
    async with RelayServer([SharedTokens(["open sesame"])], OPEN) as relay:
        for more in ((), ("--token", "sesame")):
            refused = await wheel(
                *arguments(A, relay.url, "--serve", "--online-timeout", "1"), *more
            )
            assert not (await refused.line())["online"]
            await refused.stop()
        assert len(relay) == 0
        assert relay.hub.counters.clients_denied >= 6
        server = await wheel(*arguments(A, relay.url, "--token", "open sesame", "--serve"))
        assert (await server.line())["online"]
        client = await wheel(
            *arguments(B, relay.url, "--token", "open sesame", "--dial", str(A.id))
        )
        assert (await client.line())["online"]
        assert (await client.line())["same"]


async def test_grants_and_their_revocation(wheel) -> None:
    issuer = SecretKey(b"\x31" * 32)
    verifier = GrantVerifier([issuer.id])
    rule = GrantRule(verifier, time.time)
    grant = Grant.issue(issuer, A.id, now=time.time(), lifetime_s=600)
    async with RelayServer([rule], OPEN) as relay:
        stranger = await wheel(
            *arguments(B, relay.url, "--token", str(grant), "--serve", "--online-timeout", "1")
        )
        assert not (await stranger.line())["online"]
        peer = await wheel(*arguments(A, relay.url, "--token", str(grant), "--serve"))
        assert (await peer.line())["online"]
        verifier.revocations = Revocations(grants=frozenset({grant.id}))
        assert relay.recheck() == 1
        assert len(relay) == 0


async def eventually(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


async def test_two_endpoints_with_one_key(wheel) -> None:
    async with RelayServer([Everyone()], OPEN) as relay:
        first = await wheel(*arguments(A, relay.url, "--serve"))
        assert (await first.line())["online"]
        (old,) = relay.hub.peers_of(bytes(A.id))
        second = await wheel(*arguments(A, relay.url, "--serve"))
        assert (await second.line())["online"]
        new, inactive = relay.hub.peers_of(bytes(A.id))
        assert inactive is old
        assert new.active
        await second.stop()
        await eventually(lambda: relay.hub.peers_of(bytes(A.id)) == [old])
        client = await wheel(*arguments(B, relay.url, "--dial", str(A.id)))
        assert (await client.line())["online"]
        assert (await client.line())["same"]


async def test_a_real_endpoint_answers_our_pings(wheel) -> None:
    async with RelayServer([Everyone()], OPEN) as relay:
        peer = await wheel(*arguments(A, relay.url, "--serve"))
        assert (await peer.line())["online"]
        (served,) = relay.hub.peers()
        session = served.outlet.session
        session.on_timer(relay.loop.time() + 21)
        served.outlet.flush()
        await eventually(lambda: session._keepalive.rtt_s is not None)
        assert session.closing is None


async def test_real_endpoints_return_after_a_restart(wheel) -> None:
    relay = RelayServer([Everyone()], OPEN)
    await relay.start()
    server = await wheel(*arguments(A, relay.url, "--serve"))
    assert (await server.line())["online"]
    address = relay.addresses[0]
    await relay.restart()
    async with RelayServer([Everyone()], attrs.evolve(OPEN, http=address)) as relay:
        await eventually(lambda: len(relay) == 1)
        client = await wheel(*arguments(B, relay.url, "--dial", str(A.id), "--bytes", "50000"))
        assert (await client.line())["online"]
        assert (await client.line())["same"]


# --- they and we --------------------------------------------------------------------------------

SIZES = [100_000, pytest.param(20_000_000, marks=pytest.mark.slow)]


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


def bind(key, url):
    # Without UDP nothing but the relay can carry anything.
    return Endpoint.bind(
        secret_key=key, plugins=[Relay(url, proxy="")], transports=[], entry_points=False
    )


@contextlib.asynccontextmanager
async def serving(key, url):
    """An endpoint of ours that echoes, reachable through a relay alone."""
    async with bind(key, url) as endpoint, Router(endpoint) as router:
        router.accept(ALPN, Echo())
        work = asyncio.create_task(router.serve())
        await eventually(lambda: endpoint.addr().relay_urls)
        yield endpoint
        work.cancel()


async def echo(connection, size):
    data = random.Random(7).randbytes(size)
    send, recv = await connection.open_bi()
    await send.write(data)
    await send.finish()
    back = await recv.read_to_end(limit=100_000_000)
    return hashlib.sha256(back).digest() == hashlib.sha256(data).digest()


def address(key, url):
    return EndpointAddr(key.id, [RelayAddr(RelayUrl(url))])


@pytest.mark.parametrize("size", SIZES)
async def test_we_dial_a_real_endpoint(wheel, size) -> None:
    async with RelayServer([Everyone()], OPEN) as relay:
        peer = await wheel(*arguments(A, relay.url, "--serve"))
        assert (await peer.line())["online"]
        async with bind(B, relay.url) as endpoint:
            connection = await endpoint.connect(address(A, relay.url), ALPN)
            async with asyncio.timeout(100):
                assert await echo(connection, size)
            assert {path.kind for path in connection.paths()} == {"relay"}
            connection.close()
        assert relay.hub.counters.protocol_errors == 0


@pytest.mark.parametrize("size", SIZES)
async def test_a_real_endpoint_dials_us(wheel, size) -> None:
    async with (
        RelayServer([Everyone()], OPEN) as relay,
        serving(A, relay.url),
    ):
        peer = await wheel(
            *arguments(B, relay.url, "--dial", str(A.id), "--bytes", str(size)),
        )
        assert (await peer.line())["online"]
        assert (await peer.line(timeout=100))["same"]
        await peer.stop()
        assert relay.hub.counters.protocol_errors == 0


# --- a relay that restarts under traffic --------------------------------------------------------


class Restarting:
    """A relay that stops when it has passed on so many bytes, and comes back on its port."""

    def __init__(self, options, after):
        self.options = options
        self.after = after
        self.relay = RelayServer([Everyone()], options)

    async def __aenter__(self):
        await self.relay.start()
        self.options = attrs.evolve(self.options, http=self.relay.addresses[0])
        return self

    async def __aexit__(self, *exc_info):
        await self.relay.close()

    async def restart(self, how):
        await eventually(lambda: self.relay.hub.counters.bytes_sent > self.after)
        assert len(self.relay) == 2
        if how == "announced":
            await self.relay.restart(reconnect_in_ms=100)
        else:
            await self.relay.close()
        self.relay = RelayServer([Everyone()], self.options)
        await self.relay.start()
        await eventually(lambda: len(self.relay) == 2)


MODERATE = attrs.evolve(OPEN, client_rate=Rate(4_000_000, 200_000))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["announced", "without a word"])
async def test_a_relay_restarts_while_we_send_to_a_real_endpoint(wheel, how) -> None:
    async with Restarting(MODERATE, after=1_000_000) as restarting:
        url = restarting.relay.url
        peer = await wheel(*arguments(A, url, "--serve"))
        assert (await peer.line())["online"]
        async with bind(B, url) as endpoint:
            connection = await endpoint.connect(address(A, url), ALPN)
            transfer = asyncio.create_task(echo(connection, 4_000_000))
            await restarting.restart(how)
            async with asyncio.timeout(60):
                assert await transfer
            connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["announced", "without a word"])
async def test_a_relay_restarts_while_a_real_endpoint_sends_to_us(wheel, how) -> None:
    async with Restarting(MODERATE, after=1_000_000) as restarting:
        url = restarting.relay.url
        async with serving(A, url):
            peer = await wheel(*arguments(B, url, "--dial", str(A.id), "--bytes", "4000000"))
            assert (await peer.line())["online"]
            await restarting.restart(how)
            assert (await peer.line(timeout=60))["same"]
            await peer.stop()


@pytest.mark.slow
async def test_a_relay_restarts_between_two_real_endpoints(wheel, islands) -> None:
    options = attrs.evolve(MODERATE, http=("0.0.0.0", 0))
    async with Restarting(options, after=1_000_000) as restarting:
        url = f"http://{islands.gateway}:{restarting.relay.addresses[0][1]}/"
        server = await wheel(*arguments(A, url, "--serve"), prefix=islands.enter(0))
        assert (await server.line())["online"]
        client = await wheel(
            *arguments(B, url, "--dial", str(A.id), "--bytes", "4000000"), prefix=islands.enter(1)
        )
        assert (await client.line())["online"]
        await restarting.restart("announced")
        assert (await client.line(timeout=90))["same"]
