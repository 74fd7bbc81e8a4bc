"""Several paths in one connection with a real iroh endpoint.

The wheel listens on all addresses, so 127.0.0.1 and 127.0.0.2 are two remotes of one endpoint.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import iroh
import pytest
import wheel_peer as wheel

from dialkey import Connection, Endpoint, EndpointAddr
from dialkey.identity import IpAddr
from dialkey.quic import codes
from dialkey.quic.paths import multipath
from dialkey_relay.access import Everyone
from dialkey_relay.server.server import RelayOptions, RelayServer

pytestmark = pytest.mark.interop

ALPN = "dialkey-test/1"
TRAFFIC_S = 8.0
"""Raise it for minutes of traffic; nothing in the test depends on it."""


def remote(endpoint: iroh.Endpoint, last: int) -> IpAddr:
    port = next(a.port for a in wheel.addr_of(endpoint).ip_addrs if a.ip.version == 4)
    return IpAddr(ipaddress.IPv4Address(f"127.0.0.{last}"), port)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[iroh.Endpoint, iroh.Connection, Endpoint, Connection]]:
    binding = Endpoint.bind(bind="0.0.0.0:0", entry_points=False)
    async with wheel.bind(ALPN, addr="0.0.0.0:0") as rust, binding as endpoint:
        accepting = asyncio.ensure_future(wheel.accept(rust))
        target = EndpointAddr(wheel.id_of(rust), [remote(rust, 1)])
        ours = await endpoint.connect(target, ALPN)
        theirs = await accepting
        # The tests open and abandon paths themselves.
        ours._driver.path_manager = None
        yield rust, theirs, endpoint, ours


async def until(condition: Callable[[], bool], act: Callable[[], Awaitable[object]]) -> None:
    """Exchange something until a condition holds."""
    for _ in range(1000):
        if condition():
            return
        await act()
    raise AssertionError("it never came true")


async def echo(ours: Connection, theirs: iroh.Connection, size: int = 1000) -> None:
    data = random.Random(size).randbytes(size)
    send, recv = await ours.open_bi()
    writing = asyncio.ensure_future(send.write(data, finish=True))
    bi = await theirs.accept_bi()
    got = await bi.recv().read_to_end(size + 1)
    await writing
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
    await bi.send().write_all(b"ok")
    await bi.send().finish()
    assert await recv.read_to_end(10) == b"ok"


async def open_second(
    rust: iroh.Endpoint, theirs: iroh.Connection, endpoint: Endpoint, ours: Connection, last: int
) -> int:
    core = ours._driver.core

    def try_open() -> bool:
        path = core.open_path(remote(rust, last), endpoint._driver.now())
        opened.append(path)
        ours._driver.flush_soon()
        return path is not None

    opened: list[object] = []
    await until(try_open, lambda: echo(ours, theirs))
    path = opened[-1]
    await until(lambda: path.validated, lambda: echo(ours, theirs))  # type: ignore[attr-defined]
    return path.id  # type: ignore[attr-defined,no-any-return]


async def test_a_second_path_carries_data_after_the_first_is_abandoned() -> None:
    async with connected() as (rust, theirs, endpoint, ours):
        path_id = await open_second(rust, theirs, endpoint, ours, 2)
        assert path_id == 1
        ours._driver.core.paths.select(1)
        before = ours._driver.core.paths[1].recovery.sent_packets
        await echo(ours, theirs, 200_000)
        assert ours._driver.core.paths[1].recovery.sent_packets > before + 100
        assert ours._driver.core.paths.abandon(
            ours._driver.core.paths[0],
            codes.PATH_UNSTABLE_OR_POOR,
            endpoint._driver.now(),
        )
        await echo(ours, theirs, 2_000_000)
        await until(lambda: 0 not in ours._driver.core.paths, lambda: echo(ours, theirs))
        await echo(ours, theirs, 200_000)


async def test_many_paths_one_after_the_other() -> None:
    async with connected() as (rust, theirs, endpoint, ours):
        previous = 0
        for turn in range(20):
            path_id = await open_second(rust, theirs, endpoint, ours, 2 + turn % 2)
            assert path_id == turn + 1
            ours._driver.core.paths.select(path_id)
            ours._driver.core.paths.abandon(
                ours._driver.core.paths[previous],
                codes.APPLICATION_ABANDON_PATH,
                endpoint._driver.now(),
            )
            await echo(ours, theirs, 20_000)
            previous = path_id
        assert not ours.is_closed


# --- key updates -----------------------------------------------------------------------------------


def updates(connection: Connection) -> int:
    return connection.stats().key_updates


async def test_keys_change_from_both_sides_across_two_paths() -> None:
    """iroh begins an update after some hundred packets; ours come in between, on either path."""
    async with connected() as (rust, theirs, endpoint, ours):
        await open_second(rust, theirs, endpoint, ours, 2)
        # What iroh does by itself first: it has to send for that.
        await until(lambda: updates(ours) >= 1, lambda: answer(ours, theirs, 300_000))
        own = 0
        for turn in range(12):
            ours._driver.core.paths.select(turn % 2)
            await echo(ours, theirs, 100_000)
            own += ours.request_key_update()
            await answer(ours, theirs, 100_000)
        assert own >= 6
        assert updates(ours) >= 7
        assert not ours.is_closed
        assert ours.stats().undecryptable_packets < 20


async def answer(ours: Connection, theirs: iroh.Connection, size: int) -> None:
    """Let the wheel send so much."""
    send, recv = await ours.open_bi()
    await send.write(b"?", finish=True)
    bi = await theirs.accept_bi()
    assert await bi.recv().read_to_end(10) == b"?"
    data = random.Random(size).randbytes(size)

    async def write() -> None:
        await bi.send().write_all(data)
        await bi.send().finish()

    writing = asyncio.ensure_future(write())
    assert await recv.read_to_end(size + 1) == data
    await writing


async def test_attempts_over_a_dead_way_use_up_no_ids() -> None:
    """iroh does not replace ids of paths that it never heard of, and allows seven."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        dead = IpAddr(ipaddress.IPv4Address("127.0.0.1"), silent.getsockname()[1])
        async with connected() as (rust, theirs, endpoint, ours):
            await echo(ours, theirs)
            for _ in range(20):
                path = ours._driver.core.open_path(dead, endpoint._driver.now())
                ours._driver.flush_soon()
                assert path is not None
                await echo(ours, theirs)
                ours._driver.core.paths.give_up(path, endpoint._driver.now())
            assert await open_second(rust, theirs, endpoint, ours, 2) == 1
            ours._driver.core.paths.select(1)
            await echo(ours, theirs, 200_000)


@pytest.mark.slow
async def test_traffic_with_updates_and_many_paths_one_after_the_other() -> None:
    loop = asyncio.get_running_loop()
    async with connected() as (rust, theirs, endpoint, ours):
        previous, turn, own, ends_at = 0, 0, 0, loop.time() + TRAFFIC_S
        while loop.time() < ends_at:
            path_id = await open_second(rust, theirs, endpoint, ours, 2 + turn % 3)
            ours._driver.core.paths.select(path_id)
            ours._driver.core.paths.abandon(
                ours._driver.core.paths[previous],
                codes.APPLICATION_ABANDON_PATH,
                endpoint._driver.now(),
            )
            await echo(ours, theirs, 100_000)
            own += ours.request_key_update()
            await answer(ours, theirs, 100_000)
            previous, turn = path_id, turn + 1
        print(f"{turn} paths, {updates(ours)} key updates ({own} ours) in {TRAFFIC_S:.0f} s")
        assert turn > 10
        assert own > 5
        assert not ours.is_closed
        state = ours._driver.core.paths.multipath
        assert state is not None
        assert len(state.abandoned) <= 2
        assert len(ours._driver.core.paths) <= 2 + multipath.MAX_DRAINING
        assert len(endpoint._driver.demux._reset_tokens) <= 30
        assert len(endpoint._driver.demux._by_cid) <= 120


# --- the wheel dials -------------------------------------------------------------------------------


@asynccontextmanager
async def dialled(
    *, hole_punching: bool = True
) -> AsyncIterator[tuple[iroh.Connection, Endpoint, Connection]]:
    """A connection that the wheel opened to us, and over which it has a direct path and a relay."""
    iroh.iroh_ffi.uniffi_set_event_loop(asyncio.get_running_loop())
    options = RelayOptions(client_rate=None, accept_rate_per_address=None)
    async with RelayServer([Everyone()], options) as relay:
        url = str(relay.url)
        rust = await iroh.Endpoint.bind(
            iroh.EndpointOptions(
                preset=iroh.preset_minimal(),
                bind_addr="127.0.0.1:0",
                alpns=[],
                relay_mode=iroh.RelayMode.custom_from_urls([url]),
            )
        )
        async with Endpoint.bind(
            bind="127.0.0.1:0", relays=[url], alpns=[ALPN], hole_punching=hole_punching
        ) as endpoint:
            addr = await endpoint.online()
            target = iroh.EndpointAddr(
                iroh.EndpointId.from_bytes(bytes(addr.id)), url, [str(ip) for ip in addr.ip_addrs]
            )
            connecting = asyncio.ensure_future(rust.connect(target, ALPN.encode()))
            ours = await endpoint.accept()
            assert ours is not None
            theirs = await connecting
            await until(lambda: len(usable(ours)) == 2, lambda: asked(ours, theirs, 1000))
            yield theirs, endpoint, ours
        await rust.close()


def usable(connection: Connection) -> dict[str, int]:
    return {path.kind: path.id for path in connection.paths() if path.state == "usable"}


async def asked(ours: Connection, theirs: iroh.Connection, size: int) -> None:
    """Let the wheel send so much, and send it back."""
    data = random.Random(size).randbytes(size)
    bi = await theirs.open_bi()

    async def write() -> None:
        await bi.send().write_all(data)
        await bi.send().finish()

    writing = asyncio.ensure_future(write())
    send, recv = await ours.accept_bi()
    assert await recv.read_to_end(size + 1) == data
    await writing
    sending = asyncio.ensure_future(send.write(data, finish=True))
    assert bytes(await bi.recv().read_to_end(size + 1)) == data
    await sending


async def test_the_wheel_opens_a_second_path_and_keys_change_from_both_sides() -> None:
    async with dialled() as (theirs, _, ours):
        assert set(usable(ours)) == {"direct", "relay"}
        await until(lambda: updates(ours) >= 1, lambda: asked(ours, theirs, 300_000))
        own = 0
        for turn in range(6):
            # We answer over the relay, the wheel goes on asking directly, and the other way round.
            ours._driver.path_manager = None
            ours._driver.core.paths.select(usable(ours)[("relay", "direct")[turn % 2]])
            await asked(ours, theirs, 50_000)
            own += ours.request_key_update()
            await asked(ours, theirs, 50_000)
        assert own >= 4
        assert not ours.is_closed


@pytest.mark.slow
async def test_traffic_with_updates_and_changing_paths_when_the_wheel_dialled() -> None:
    loop = asyncio.get_running_loop()
    async with dialled() as (theirs, _, ours):
        ours._driver.path_manager = None
        turn, own, ends_at = 0, 0, loop.time() + TRAFFIC_S / 2
        while loop.time() < ends_at:
            ours._driver.core.paths.select(usable(ours)[("relay", "direct")[turn % 2]])
            await asked(ours, theirs, 200_000)
            if turn % 3 == 0:
                own += ours.request_key_update()
            turn += 1
        print(f"{turn} echoes, {updates(ours)} key updates ({own} ours) in {TRAFFIC_S / 2:.0f} s")
        assert own > 3
        assert set(usable(ours)) == {"direct", "relay"}
        assert not ours.is_closed


@pytest.mark.parametrize("kind", ["direct", "relay"])
async def test_we_abandon_a_path_that_the_wheel_opened(kind: str) -> None:
    # Otherwise it opens another at once, to our candidate.
    async with dialled(hole_punching=False) as (theirs, endpoint, ours):
        path = ours._driver.core.paths[usable(ours)[kind]]
        assert ours._driver.core.paths.abandon(
            path, codes.APPLICATION_ABANDON_PATH, endpoint._driver.now()
        )
        ours._driver.flush_soon()
        await asked(ours, theirs, 500_000)
        await until(
            lambda: path.id not in ours._driver.core.paths, lambda: asked(ours, theirs, 1000)
        )
        await asked(ours, theirs, 200_000)
        (left,) = ours._driver.core.paths.values()
        assert left.cids.peer_status_sequence >= 1, "the wheel told that it sends there now"
        assert left.cids.peer_available
        state = ours._driver.core.paths.multipath
        assert state is not None
        assert (state.local_max, state.peer_max) == (8, 8), "both allow another"
