"""A peer that went elsewhere is found by lookups, and the connection goes on."""

from __future__ import annotations

import asyncio

import pytest
from endpoints import ALPN, in_memory, network, seconds, stream, virtual

from dialkey import DialLimits, Endpoint, MemoryDirectory
from dialkey.errors import DialkeyError
from dialkey.identity import IpAddr


def ip(number: int) -> IpAddr:
    return IpAddr.parse(f"10.0.0.{number}:1")


@virtual
async def test_a_peer_that_moved_silently_is_found_and_no_stream_notices() -> None:
    net = network(delay_s=0.01)
    directory = MemoryDirectory()
    there_transport = net.transport(ip(2))
    async with in_memory(net, ip(1), address_lookups=[directory.lookup()]) as alice:
        bob = await Endpoint.bind(
            transports=[there_transport],
            alpns=[ALPN],
            address_lookups=[directory.lookup()],
            entry_points=False,
        )
        async with bob:
            await asyncio.sleep(0.1)
            here = await alice.connect(bob.id, ALPN)
            there = await bob.accept()
            assert there is not None
            send, _, _, recv = await stream(here, there)
            for number in range(3, 15):
                await asyncio.sleep(40)
                # Each time bob's datagrams come from where alice does not expect them, and the old
                # address is dead: as when the relay that both used is gone for good.
                there_transport.move_to(ip(number))
                net.one_way(ip(number), ip(1)).down()
                moved_at = seconds()
                await send.write(b"x")
                await asyncio.sleep(2)
                net.one_way(ip(number), ip(1)).up()
                bob.network_changed()
                assert await recv.read_exactly(1) == b"x"
                assert seconds() - moved_at < 3, "dead addresses delay nothing"
            tasks = [each.get_name() for each in asyncio.all_tasks()]
            assert not [name for name in tasks if "lookup" in name], (
                "it searches only when stranded"
            )
            here.close()


@virtual
async def test_without_a_lookup_that_knows_the_connection_is_lost() -> None:
    net = network(delay_s=0.01)
    transport = net.transport(ip(2))
    async with (
        in_memory(net, ip(1)) as alice,
        Endpoint.bind(transports=[transport], alpns=[ALPN], entry_points=False) as bob,
    ):
        alice.add_addr(bob.addr())
        here = await alice.connect(bob.id, ALPN)
        transport.move_to(ip(3))
        net.one_way(ip(3), ip(1)).down()
        send, _ = await here.open_bi()
        with pytest.raises(DialkeyError):
            await send.write(b"x" * 10_000_000)


@virtual
async def test_who_dialled_within_limits_follows_nobody() -> None:
    """Addresses that strangers can name are not dialled later, either."""
    net = network(delay_s=0.01)
    directory = MemoryDirectory()
    transport = net.transport(ip(2))
    async with (
        in_memory(net, ip(1), address_lookups=[directory.lookup()]) as alice,
        Endpoint.bind(
            transports=[transport],
            alpns=[ALPN],
            address_lookups=[directory.lookup()],
            entry_points=False,
        ) as bob,
    ):
        await asyncio.sleep(0.1)
        here = await alice.connect(bob.id, ALPN, limits=DialLimits())
        transport.move_to(ip(3), announce=True)
        net.one_way(ip(3), ip(1)).down()
        send, _ = await here.open_bi()
        with pytest.raises(DialkeyError):
            await send.write(b"x" * 10_000_000)
        assert net.one_way(ip(1), ip(3)).sent == 0
