"""Dials to addresses that strangers have named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from endpoints import in_memory, network, virtual

from dialkey.endpoint import DialLimits, EndpointInfo, LookupAnswer
from dialkey.errors import DialTimeout, InvalidInput, ResolveError
from dialkey.identity import EndpointAddr, EndpointId, IpAddr, SecretKey, TransportAddr
from dialkey.testing import MemoryNetwork

NOBODY = SecretKey(b"\x09" * 32).id
ME = IpAddr.parse("10.0.0.1:1")


def addrs(*texts: str) -> list[TransportAddr]:
    return [IpAddr.parse(text) for text in texts]


def sent(net: MemoryNetwork, to: list[TransportAddr]) -> list[int]:
    return [net.one_way(ME, each).sent for each in to]


class Found:
    """A lookup that finds these addresses for everybody."""

    name = "found"

    def __init__(self, found: list[TransportAddr]) -> None:
        self.found = found

    async def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        yield LookupAnswer(EndpointInfo(EndpointAddr(id, self.found)))

    async def publish(self, info: EndpointInfo) -> None:
        """Nobody asks."""

    async def close(self) -> None:
        """Nothing is open."""


@virtual
async def test_few_addresses_one_port_of_each_and_one_repetition() -> None:
    net = network()
    named = addrs("192.0.2.1:1", "192.0.2.1:2", "[::ffff:192.0.2.1]:3", "192.0.2.2:1")
    found = addrs("192.0.2.2:9", "192.0.2.3:1", "192.0.2.4:1")
    async with in_memory(net, ME, address_lookups=[Found(found)]) as endpoint:
        with pytest.raises(DialTimeout):
            await endpoint.connect(
                EndpointAddr(NOBODY, named), "x/1", timeout=30.0, limits=DialLimits()
            )
    counts = sent(net, named + found)
    assert sorted(counts) == [0, 0, 0, 0, 2, 2, 2]
    assert sum(sent(net, named)) == 4, "one port of each IP address"


@virtual
async def test_without_limits_addresses_are_tried_on_and_on() -> None:
    net = network()
    named = addrs("192.0.2.1:1", "192.0.2.1:2")
    async with in_memory(net, ME) as endpoint:
        with pytest.raises(DialTimeout):
            await endpoint.connect(EndpointAddr(NOBODY, named), "x/1", timeout=30.0)
    assert min(sent(net, named)) > 4


@virtual
async def test_limits_are_for_the_addresses_that_they_apply_to() -> None:
    net = network()
    named = addrs("192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1")

    async def accepts(addr: TransportAddr) -> bool:
        await asyncio.sleep(0.1)
        return addr != named[1]

    limits = DialLimits(applies_to=lambda addr: addr != named[0], accepts=accepts)
    async with in_memory(net, ME) as endpoint:
        with pytest.raises(DialTimeout):
            await endpoint.connect(EndpointAddr(NOBODY, named), "x/1", timeout=30.0, limits=limits)
    first, second, third = sent(net, named)
    assert first > 4
    assert (second, third) == (0, 2)


@virtual
async def test_where_nothing_is_accepted_nothing_is_known() -> None:
    async def accepts(addr: TransportAddr) -> bool:
        return False

    async with in_memory(network(), ME) as endpoint:
        with pytest.raises(ResolveError):
            await endpoint.connect(
                EndpointAddr(NOBODY, addrs("192.0.2.1:1")),
                "x/1",
                limits=DialLimits(accepts=accepts),
            )


@virtual
async def test_a_limited_dial_connects_and_keeps_what_answered_only() -> None:
    net = network()
    there = IpAddr.parse("10.0.0.2:1")
    dead = addrs("192.0.2.1:1", "192.0.2.2:1")
    async with in_memory(net, ME) as one, in_memory(net, there, alpns=["x/1"]) as other:
        addr = EndpointAddr(other.id, [*dead, there])
        connection = await one.connect(addr, "x/1", limits=DialLimits())
        net.link(ME, there).down()
        await asyncio.sleep(20)
        assert max(sent(net, dead)) <= 2, "a path to hearsay is not opened later either"
        connection.close()


def test_limits_that_make_no_sense_are_refused() -> None:
    for wrong in ({"max_addresses": 0}, {"max_datagrams": 0}):
        with pytest.raises(InvalidInput):
            DialLimits(**wrong)  # type: ignore[arg-type]
