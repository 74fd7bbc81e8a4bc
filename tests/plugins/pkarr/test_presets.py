"""Presets: what an endpoint gets of them, found by its id alone, and quiet when offline."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from discovery import DnsServer, PacketServer

import dialkey_pkarr.plugin as pkarr
from dialkey import Endpoint, hookimpl, presets
from dialkey.errors import InvalidInput, LocalError, ResolveError
from dialkey.identity import RelayUrl
from dialkey.presets import DiscoveryServer, Preset
from dialkey_pkarr import DnsLookup, NameServer, PkarrLookup

ALPN = "presets-test/1"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def bind(preset: Preset, **options: object) -> object:
    values: dict[str, object] = {"entry_points": False, "plugins": [pkarr], "bind": "127.0.0.1:0"}
    return Endpoint.bind(preset=preset, **values | options)  # type: ignore[arg-type]


async def test_an_endpoint_is_found_by_its_id_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP, and over DNS alone."""
    async with (
        PacketServer().serving() as server,
        DnsServer(server.packets, "dns.example.").serving() as names,
    ):
        monkeypatch.setattr(
            "dialkey_pkarr.lookups.system_servers", lambda: [NameServer("127.0.0.1", port)]
        )
        port = names.where.port
        ours = Preset("ours", discovery=(DiscoveryServer(server.url, publishes="all"),))
        by_dns = Preset("dns", discovery=(DiscoveryServer(dns_origin="dns.example."),))
        async with bind(ours, alpns=[ALPN], user_data="hello") as bob:  # type: ignore[attr-defined]
            await server.changed(lambda: bob.id in server.packets)
            assert server.packets[bob.id].info() == bob.info()
            for preset in (ours, by_dns):
                async with bind(preset) as alice:  # type: ignore[attr-defined]
                    connection = await alice.connect(bob.id, ALPN)
                    assert connection.remote_id == bob.id
                    reports = {each.lookup: each for each in await alice.look_up(bob.id)}
                    source = "pkarr" if preset is ours else "dns"
                    assert reports[source].answers[-1].info.user_data == "hello"
                    connection.close()


async def test_a_short_ticket_is_enough_once_we_are_published() -> None:
    async with PacketServer().serving() as server:
        ours = Preset("ours", discovery=(DiscoveryServer(server.url, publishes="all"),))
        async with bind(ours, alpns=[ALPN]) as bob, bind(ours) as alice:  # type: ignore[attr-defined]
            lookup = next(each for each in bob.address_lookups if isinstance(each, PkarrLookup))
            await lookup.published()
            assert bob.is_published
            ticket = bob.ticket(short=True)
            assert ticket.addr.addrs == ()
            assert len(str(ticket)) < 70 < len(str(bob.ticket()))
            assert (await alice.connect(str(ticket), ALPN)).remote_id == bob.id


async def test_what_keeps_us_from_being_published_is_said() -> None:
    async with PacketServer().serving() as server:
        pass
    ours = Preset("ours", discovery=(DiscoveryServer(server.url, publishes="all"),))
    async with bind(ours) as endpoint:  # type: ignore[attr-defined]
        lookup = next(each for each in endpoint.address_lookups if each.name == "pkarr")
        async with asyncio.timeout(30):
            while not lookup.publish_trouble:  # noqa: ASYNC110  (there is no event for trouble)
                await asyncio.sleep(0.01)
        assert "Connection refused" in endpoint.lookup_troubles()["pkarr"]
        assert not endpoint.is_published


async def test_discovery_without_a_plugin_is_an_error_except_on_the_lan() -> None:
    with pytest.raises(LocalError, match="no plugin provides it"):
        await bind(Preset("x", discovery=(DiscoveryServer("http://x"),)), plugins=[])  # type: ignore[misc]
    with pytest.raises(LocalError, match="no plugin provides it"):
        await bind(Preset("x", discovery=("something new",)))  # type: ignore[misc]
    async with bind(presets.local, plugins=[]) as endpoint:  # type: ignore[attr-defined]
        assert [each.name for each in endpoint.address_lookups] == ["static"]


async def test_a_plugin_of_a_third_party_may_serve_the_lan() -> None:
    class Lan:
        @hookimpl
        def dialkey_discovery(self, service: object) -> object:
            return PkarrLookup("http://x") if service == presets.LocalDiscovery() else None

    async with bind(presets.local, plugins=[pkarr, Lan()]) as endpoint:  # type: ignore[attr-defined]
        assert [each.name for each in endpoint.address_lookups] == ["static", "pkarr"]


class NoRelays:
    """Stands in for the relay plugin."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    @hookimpl
    def dialkey_relays(self, relays: tuple[object, ...]) -> object:
        from dialkey.testing import MemoryNetwork

        self.asked = list(relays)
        return MemoryNetwork().transport("relay")


@pytest.mark.parametrize("preset", [presets.public, presets.relay_only])
async def test_public_is_irohs_relays_and_discovery(preset: Preset) -> None:
    relays = NoRelays()
    async with bind(preset, plugins=[pkarr, relays]) as endpoint:  # type: ignore[attr-defined]
        assert [str(each) for each in relays.asked] == [
            f"https://{region}.relay.n0.iroh.link./"
            for region in ("use1-1", "usw1-1", "euc1-1", "aps1-1")
        ]
        _, by_http, by_dns = endpoint.address_lookups
        assert isinstance(by_http, PkarrLookup)
        assert isinstance(by_dns, DnsLookup)
        assert preset.discovery == (
            DiscoveryServer("https://dns.iroh.link/pkarr", "dns.iroh.link.", "relay"),
        )
        if preset is presets.relay_only:
            assert endpoint.bound_addrs() == []
            assert endpoint.addr().ip_addrs == ()
        else:
            assert endpoint.bound_addrs()


def test_services_under_one_url() -> None:
    ours = presets.services("HTTPS://Services.Example/", dns_origin="d.example.")
    assert ours.relays == ("https://services.example/",)
    assert RelayUrl(str(ours.relays[0]))
    assert ours.discovery == (DiscoveryServer("https://services.example/pkarr", "d.example."),)
    for bad in ("services.example", "ftp://x", ""):
        with pytest.raises(InvalidInput):
            presets.services(bad)


def test_minimal_sends_nothing() -> None:
    assert presets.minimal == Preset("minimal")
    assert set(presets.BY_NAME) == {"public", "local", "relay_only", "minimal"}


OFFLINE = """
import asyncio, json, time
from dialkey import Endpoint, SecretKey, presets
from dialkey.errors import DialkeyError

async def main():
    began = time.monotonic()
    async with Endpoint.bind(preset=presets.public) as endpoint:
        bound = time.monotonic() - began
        began = time.monotonic()
        try:
            await endpoint.connect(SecretKey.generate().id, "x/1")
        except DialkeyError as error:
            said = [type(error).__name__, str(error)]
        dialled = time.monotonic() - began
        began = time.monotonic()
    print(json.dumps([bound, said, dialled, time.monotonic() - began]))

asyncio.run(main())
"""


@pytest.mark.lab
def test_offline_public_neither_hangs_nor_nags(tmp_path: Path) -> None:
    """In a namespace without any network, with a resolver configured that cannot be reached."""
    unshare = shutil.which("unshare")
    probe = [unshare or "", "--net", "--mount", "true"]
    if unshare is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("network namespaces need unshare and root")
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 192.0.2.53\n")
    script = f'ip link set lo up; mount --bind {conf} /etc/resolv.conf; exec "$@"'
    done = subprocess.run(
        [unshare, "--net", "--mount", "sh", "-c", script, "-", sys.executable, "-c", OFFLINE],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    bound, (kind, text), dialled, closed = json.loads(done.stdout)
    assert done.stderr == ""
    assert kind == ResolveError.__name__
    assert "Network is unreachable" in text
    # What it takes offline is work, no waiting: a fraction of a second, on a busy machine some.
    assert max(bound, dialled, closed) < 5
