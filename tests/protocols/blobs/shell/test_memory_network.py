"""Blobs in `dialkey.testing`: virtual time, and tickets that have no place for names in memory."""

from __future__ import annotations

import asyncio

import pytest

from dialkey import Endpoint, Router
from dialkey.errors import ResolveError
from dialkey.identity import IpAddr
from dialkey.testing import Conditions, MemoryNetwork, in_virtual_time
from dialkey_blobs import Blobs

CONTENT = bytes(range(256)) * 1000


async def bind(network: MemoryNetwork, name: str | IpAddr, *, finds: bool = False) -> Endpoint:
    return await Endpoint.bind(
        transports=[network.transport(name)],
        address_lookups=[network.lookup()] if finds else [],
        entry_points=False,
    )


async def fetch(ada: Endpoint, ben: Endpoint) -> None:
    """Let `ben` fetch from `ada` what the text of a ticket names."""
    async with ada, Router(ada) as ada_router, ben, Router(ben) as ben_router:
        shelf, fetched = ada_router.add(Blobs.memory()), ben_router.add(Blobs.memory())
        tag = await shelf.add_bytes(CONTENT)
        await fetched.download(str(shelf.ticket(tag)))
        assert await fetched.read_bytes(tag.hash) == CONTENT


@pytest.mark.parametrize("loss", [0.0, 0.05])
@in_virtual_time
async def test_a_blob_ticket_is_found_by_the_lookup_of_a_network(loss: float) -> None:
    network = MemoryNetwork(seed=1, conditions=Conditions(delay_s=0.02, loss=loss))
    await fetch(await bind(network, "ada", finds=True), await bind(network, "ben", finds=True))
    assert 0.1 < asyncio.get_running_loop().time() < 60


@in_virtual_time
async def test_a_blob_ticket_carries_addresses_of_the_internet() -> None:
    network = MemoryNetwork(seed=1)
    await fetch(
        await bind(network, IpAddr.parse("192.0.2.1:1")),
        await bind(network, IpAddr.parse("192.0.2.2:1")),
    )


@in_virtual_time
async def test_names_do_not_fit_into_a_blob_ticket() -> None:
    network = MemoryNetwork(seed=1)
    with pytest.raises(ResolveError, match="no address is known"):
        await fetch(await bind(network, "ada"), await bind(network, "ben"))
