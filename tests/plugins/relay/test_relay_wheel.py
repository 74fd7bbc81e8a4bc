"""Real iroh endpoints through our relay; checklist of relay wire reference 7.1."""

from __future__ import annotations

import asyncio
import time

import attrs
import pytest

from dialkey.identity import SecretKey
from dialkey_relay.access import AllowList, Everyone, GrantRule
from dialkey_relay.grants import Grant, GrantVerifier, Revocations
from dialkey_relay.server.server import RelayOptions, RelayServer

pytestmark = pytest.mark.interop

A = SecretKey(b"\x21" * 32)
B = SecretKey(b"\x22" * 32)
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


async def test_denied_and_allowed(wheel) -> None:
    rule = AllowList([B.id])
    async with RelayServer([rule], OPEN) as relay:
        denied = await wheel(*arguments(A, relay.url, "--serve", "--online-timeout", "1"))
        assert not (await denied.line())["online"]
        allowed = await wheel(*arguments(B, relay.url, "--serve"))
        assert (await allowed.line())["online"]
        assert relay.hub.counters.clients_denied >= 3
        assert [bytes(B.id)] == [peer.key for peer in relay.hub.peers()]


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
