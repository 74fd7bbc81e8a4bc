"""Two endpoints in one process: on loopback, or on a network in memory with virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import attrs
import pytest

import dialkey_rpc as rpc
from dialkey import Endpoint, Router
from dialkey.identity import SecretKey
from dialkey.testing import Conditions, MemoryNetwork

S = TypeVar("S")

DELAY_S = 0.05
"""One way; a round trip takes twice as long."""


@contextlib.asynccontextmanager
async def served(endpoint: Endpoint, *plugins: object) -> AsyncIterator[Router]:
    """Serve plugins on an endpoint."""
    async with Router(endpoint) as router:
        for plugin in plugins:
            router.add(plugin)
        task = asyncio.create_task(router.serve())
        try:
            yield router
        finally:
            task.cancel()
            await asyncio.wait({task})


@attrs.define
class World:
    """A network in memory, an endpoint that serves and one that calls."""

    network: MemoryNetwork
    server: Endpoint
    client: Endpoint
    router: Router

    def connect(self, kind: Callable[..., S], **options: object) -> rpc.Connecting[S]:
        """Return a client of the server."""
        return rpc.connect(kind, self.client, self.server.addr(), **options)  # type: ignore[arg-type]


def bind(network: MemoryNetwork, name: str, key: int, **options: object) -> Endpoint:
    """Return an endpoint on a network in memory, about to be bound."""
    return Endpoint.bind(  # type: ignore[return-value]
        secret_key=SecretKey(bytes([key] * 32)),
        transports=[network.transport(name)],
        entry_points=False,
        **options,
    )


@contextlib.asynccontextmanager
async def in_memory(*plugins: object, delay_s: float = DELAY_S) -> AsyncIterator[World]:
    network = MemoryNetwork(seed=1, conditions=Conditions(delay_s=delay_s))
    async with (
        bind(network, "client", 1) as client,  # type: ignore[attr-defined]
        bind(network, "server", 2) as server,  # type: ignore[attr-defined]
        served(server, *plugins) as router,
    ):
        yield World(network, server, client, router)


@pytest.fixture(name="in_memory")
def _in_memory() -> Callable[..., AbstractAsyncContextManager[World]]:
    return in_memory


@pytest.fixture(name="bind")
def _bind() -> Callable[..., Endpoint]:
    return bind


@pytest.fixture(name="served")
def _served() -> Callable[..., AbstractAsyncContextManager[Router]]:
    return served
