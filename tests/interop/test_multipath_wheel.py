"""Several paths in one connection with a real iroh endpoint.

The wheel listens on all addresses, so 127.0.0.1 and 127.0.0.2 are two remotes of one endpoint.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import iroh
import pytest
import wheel_peer as wheel

from dialkey import Connection, Endpoint, EndpointAddr
from dialkey.identity import IpAddr
from dialkey.quic import codes, multipath

pytestmark = pytest.mark.interop

ALPN = "dialkey-test/1"


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
        ours.path_manager = None
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
    core = ours.core

    def try_open() -> bool:
        path = multipath.open_path(core, remote(rust, last), endpoint.now())
        opened.append(path)
        endpoint.flush_soon(ours)
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
        multipath.select(ours.core, 1)
        before = ours.core.paths[1].recovery.sent_packets
        await echo(ours, theirs, 200_000)
        assert ours.core.paths[1].recovery.sent_packets > before + 100
        assert multipath.abandon(
            ours.core, ours.core.paths[0], codes.PATH_UNSTABLE_OR_POOR, endpoint.now()
        )
        await echo(ours, theirs, 2_000_000)
        await until(lambda: 0 not in ours.core.paths, lambda: echo(ours, theirs))
        await echo(ours, theirs, 200_000)


async def test_many_paths_one_after_the_other() -> None:
    async with connected() as (rust, theirs, endpoint, ours):
        previous = 0
        for turn in range(20):
            path_id = await open_second(rust, theirs, endpoint, ours, 2 + turn % 2)
            assert path_id == turn + 1
            multipath.select(ours.core, path_id)
            multipath.abandon(
                ours.core,
                ours.core.paths[previous],
                codes.APPLICATION_ABANDON_PATH,
                endpoint.now(),
            )
            await echo(ours, theirs, 20_000)
            previous = path_id
        assert not ours.is_closed
