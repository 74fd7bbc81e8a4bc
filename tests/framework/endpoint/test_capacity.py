"""Connections of one endpoint: how many there may be, from whom, and what they hold together."""

from __future__ import annotations

import asyncio

import pytest
from endpoints import ALPN, connect, in_memory, network, stream, two, virtual

from dialkey import Connection, Endpoint, limits
from dialkey.errors import ConnectionClosed, ConnectionClosedByPeer

MB = 1_000_000


async def dialled(alice: Endpoint, bob: Endpoint, count: int) -> list[Connection]:
    connections = [await alice.connect(bob.addr(), ALPN) for _ in range(count)]
    await asyncio.sleep(1)
    return connections


def limit(monkeypatch: pytest.MonkeyPatch, **figures: int) -> None:
    for name, value in figures.items():
        monkeypatch.setattr(limits, name, value)


def test_one_id_has_its_share_of_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, MAX_CONNECTIONS_PER_ID=5)

    @virtual
    async def scenario() -> None:
        net = network()
        async with two(net) as (alice, bob), in_memory(net, "carol") as carol:
            connections = await dialled(alice, bob, 8)
            assert [each.is_closed for each in connections] == 5 * [False] + 3 * [True]
            error = await connections[-1].closed()
            assert isinstance(error, ConnectionClosedByPeer)
            assert error.reason == b"busy: too many connections"
            assert not (await dialled(carol, bob, 1))[0].is_closed
            # A place that is given back can be had again.
            connections[0].close()
            await asyncio.sleep(1)
            assert not (await dialled(alice, bob, 1))[0].is_closed

    scenario()


def test_one_address_has_its_share_of_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, MAX_CONNECTIONS_PER_ADDRESS=3)

    @virtual
    async def scenario() -> None:
        async with two(network()) as (alice, bob):
            connections = await dialled(alice, bob, 5)
            assert sum(each.is_closed for each in connections) == 2

    scenario()


def test_who_has_few_gets_the_place_of_who_has_most(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, MAX_CONNECTIONS=6)

    @virtual
    async def scenario() -> None:
        net = network()
        async with two(net) as (alice, bob), in_memory(net, "carol") as carol:
            many = await dialled(alice, bob, 6)
            few = await dialled(carol, bob, 2)
            assert not any(each.is_closed for each in few)
            assert [each.is_closed for each in many] == 4 * [False] + 2 * [True]
            assert bob._driver.capacity.connections == 6

    scenario()


@virtual
async def test_places_and_memory_come_back() -> None:
    async with two(network()) as (alice, bob):
        for _ in range(3):
            here, there = await connect(alice, bob)
            send, *_ = await stream(here, there)
            await send.write(bytes(500_000))
            await asyncio.sleep(2)
            assert bob._driver.capacity.memory.held_bytes > 400_000
            here.close()
            await there._driver.drained()
            del here, there, send, _
        assert bob._driver.capacity.connections == 0


def test_connections_of_one_id_hold_little_together_and_lose_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hundred connections of one id held 1 GB of unread bytes."""
    limit(monkeypatch, MAX_RECEIVE_WINDOWS_PER_ID_BYTES=6 * MB)

    @virtual
    async def scenario() -> None:
        async with two(network(delay_s=0.005)) as (alice, bob):
            pairs = [await connect(alice, bob) for _ in range(4)]
            for here, _ in pairs:
                for _ in range(3):
                    send = await here.open_uni()
                    await send.write(bytes(900_000), finish=True)
            await asyncio.sleep(10)
            assert 4 * MB < bob._driver.capacity.memory.held_bytes <= 6 * MB
            streams = [await there.accept_uni() for _, there in pairs for _ in range(3)]
            whole = await asyncio.gather(*(each.read_to_end(MB) for each in streams))
            assert [len(each) for each in whole] == 12 * [900_000]
            assert bob._driver.capacity.memory.held_bytes == 0

    scenario()


def test_the_last_resort_closes_the_fullest_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, MAX_UNREAD_BYTES=2 * MB, MAX_UNREAD_BYTES_PER_ADDRESS=2 * MB)

    @virtual
    async def scenario() -> None:
        net = network()
        async with two(net) as (alice, bob), in_memory(net, "carol") as carol:
            for_alice, there = await connect(alice, bob)
            send = await for_alice.open_uni()
            await send.write(bytes(MB), finish=True)
            await asyncio.sleep(1)
            honest, from_carol = await connect(carol, bob)
            second = await honest.open_uni()
            await second.write(bytes(900_000))
            await asyncio.sleep(1)
            assert not there.is_closed
            third = await for_alice.open_uni()
            writing = asyncio.create_task(third.write(bytes(MB)))
            await asyncio.sleep(1)
            error = await there.closed()
            assert isinstance(error, ConnectionClosed)
            assert "unread" in str(error)
            seen = await for_alice.closed()
            assert isinstance(seen, ConnectionClosedByPeer)
            assert seen.reason == b"too much unread data"
            await asyncio.wait([writing])
            writing.exception()
            assert not from_carol.is_closed

    scenario()
