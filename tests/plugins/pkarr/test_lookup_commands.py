"""``dialkey lookup``, and commands that find an endpoint by its bare id through one's own services."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator

import pytest
from discovery import PacketServer

from dialkey import EndpointAddr, EndpointInfo, SecretKey
from dialkey.identity import RelayAddr, RelayUrl
from dialkey_pkarr import SignedPacket

KEY = SecretKey(b"\x21" * 32)
RELAY = RelayAddr(RelayUrl("https://relay.example/"))


async def dialkey(*arguments: str, **variables: str) -> tuple[int, str, str]:
    """Run a command to its end; return its exit code, output and remarks."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "dialkey",
        *arguments,
        env={**os.environ, "no_proxy": "*", **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@contextlib.asynccontextmanager
async def services() -> AsyncIterator[tuple[PacketServer, str]]:
    async with PacketServer().serving() as server:
        info = EndpointInfo(EndpointAddr(KEY.id, [RELAY]), "hello")
        server.packets[KEY.id] = SignedPacket.of_info(KEY, info, 1_700_000_000_000_000)
        yield server, server.url.removesuffix("/pkarr")


async def test_each_source_is_shown_with_its_age_and_how_long_it_took() -> None:
    async with services() as (_, url):
        code, out, err = await dialkey("lookup", str(KEY.id), "--services", url)
    assert code == 0, err
    assert "pkarr: 1 address (" in out
    assert "relay:https://relay.example/" in out
    assert "s old:" in out
    assert "user data: 'hello'" in out
    assert f"Using the services at {url}/" in err


async def test_for_programs_and_from_the_environment() -> None:
    async with services() as (server, url):
        code, out, err = await dialkey("lookup", str(KEY.id), "--json", DIALKEY_SERVICES=url)
        assert code == 0, err
        (line,) = map(json.loads, out.splitlines())
        assert err == ""
        assert line["event"] == "lookup"
        (source,) = line["sources"]
        assert (source["lookup"], source["error"], source["is_done"]) == ("pkarr", None, True)
        (answer,) = source["answers"]
        assert answer["addresses"] == [{"kind": "relay", "address": "https://relay.example/"}]
        assert answer["user_data"] == "hello"
        assert answer["age_s"] > 1e6
        assert answer["source"] in url
        server.fails = [503]
        code, out, _ = await dialkey("lookup", str(KEY.id), "--json", "--services", url)
        assert code != 0
        found, error = map(json.loads, out.splitlines())
        assert found["sources"][0]["error"].endswith("answered 503")
        assert error["code"] == "network.resolve"


async def test_nobody_knows_and_nobody_is_asked() -> None:
    async with services() as (_, url):
        stranger = SecretKey(b"\x22" * 32).id
        code, out, err = await dialkey("lookup", str(stranger), "--services", url)
        assert code != 0
        assert "pkarr: does not know it" in out
        assert "no source knows an address" in err
    code, out, err = await dialkey("lookup", str(KEY.id))
    assert code != 0
    assert out == ""
    assert "--services URL" in err
    code, _, err = await dialkey(
        "lookup", str(KEY.id), "--preset", "local", "--services", "http://x"
    )
    assert code != 0
    assert "either --preset or --services" in err


@pytest.mark.parametrize("as_ticket", [True, False])
async def test_ping_finds_a_bare_id_through_ones_own_services(as_ticket: bool) -> None:
    from dialkey_relay import Everyone, RelayOptions, RelayServer

    options = RelayOptions(client_rate=None, accept_rate_per_address=None)
    async with RelayServer([Everyone()], options) as relay, PacketServer().serving() as server:
        # Relay and discovery have one port each here: requests of both are told apart by a proxy
        # that people have; the test gives the relay by name.
        url = server.url.removesuffix("/pkarr")
        listening = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dialkey", "ping", "--listen", "--json"),
            *("--services", url, "--relay", relay.url),
            env={**os.environ, "no_proxy": "*"},
            stdout=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL,
        )
        try:
            assert listening.stdout is not None
            async with asyncio.timeout(60):
                ready = json.loads(await listening.stdout.readline())
            assert len(ready["ticket"]) < 70, "it names only the id"
            target = ready["ticket" if as_ticket else "endpoint_id"]
            code, out, err = await dialkey(
                *("ping", target, "-c", "1", "--json", "--services", url, "--relay", relay.url)
            )
            assert code == 0, out + err
        finally:
            listening.terminate()
            await listening.communicate()
