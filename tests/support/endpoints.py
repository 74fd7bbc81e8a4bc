"""Endpoints for tests: in memory and in virtual time, or on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, ParamSpec

from dialkey import Connection, Endpoint, RecvStream, SendStream
from dialkey.testing import Conditions, MemoryNetwork, VirtualClock, in_virtual_time
from dialkey.testing.network import Name

ALPN = "endpoint-test/1"
P = ParamSpec("P")


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in virtual time, and fail it if it leaves a task or a timer behind."""

    @functools.wraps(test)
    async def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        await test(*args, **kwargs)
        await no_leftovers()

    return in_virtual_time(checked)


async def no_leftovers() -> None:
    """Fail if anything but the caller is left in the loop."""
    for _ in range(5):
        await asyncio.sleep(0)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    assert not tasks, f"left behind: {tasks}"
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualClock):
        timers = [each for each in loop._scheduled if not each.cancelled()]  # type: ignore[attr-defined]
        assert not timers, f"left behind: {timers}"


def seconds() -> float:
    """Return the time of the running loop."""
    return asyncio.get_running_loop().time()


def network(seed: int = 1, **conditions: Any) -> MemoryNetwork:
    return MemoryNetwork(seed=seed, conditions=Conditions(**conditions))


def in_memory(net: MemoryNetwork, *names: Name, **options: Any) -> Any:
    """Return a binding whose transports are attached to `net` under these names."""
    options.setdefault("entry_points", False)
    return Endpoint.bind(transports=[net.transport(name) for name in names], **options)


def on_loopback(**options: Any) -> Any:
    options.setdefault("entry_points", False)
    options.setdefault("bind", "127.0.0.1:0")
    return Endpoint.bind(**options)


@contextlib.asynccontextmanager
async def two(
    net: MemoryNetwork | None = None,
    *,
    alice: dict[str, Any] | None = None,
    bob: dict[str, Any] | None = None,
) -> AsyncIterator[tuple[Endpoint, Endpoint]]:
    """Two endpoints; bob accepts. Without a network they are on loopback."""
    if net is None:
        bindings = (on_loopback(**(alice or {})), on_loopback(alpns=[ALPN], **(bob or {})))
    else:
        bindings = (
            in_memory(net, "alice", **(alice or {})),
            in_memory(net, "bob", alpns=[ALPN], **(bob or {})),
        )
    async with bindings[0] as one, bindings[1] as other:
        yield one, other


async def connect(alice: Endpoint, bob: Endpoint) -> tuple[Connection, Connection]:
    """Return both ends of a new connection."""
    here = await alice.connect(bob.addr(), ALPN)
    there = await bob.accept()
    assert there is not None
    return here, there


@contextlib.asynccontextmanager
async def connected(
    net: MemoryNetwork | None = None, **options: Any
) -> AsyncIterator[tuple[Connection, Connection]]:
    """Two endpoints and a connection between them."""
    async with two(net, **options) as (alice, bob):
        yield await connect(alice, bob)


async def stream(
    here: Connection, there: Connection
) -> tuple[SendStream, RecvStream, SendStream, RecvStream]:
    """Open a stream that both ends know: here's two halves, then there's."""
    send, recv = await here.open_bi()
    await send.write(b"!")
    their_send, their_recv = await there.accept_bi()
    assert await their_recv.read_exactly(1) == b"!"
    return send, recv, their_send, their_recv
