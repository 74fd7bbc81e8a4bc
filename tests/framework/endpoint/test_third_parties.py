"""What a peer with a key makes us send to addresses that it only named: little, and then nothing."""

from __future__ import annotations

import asyncio

from endpoints import ALPN, virtual
from two_ways import HERE, World

from dialkey import limits
from dialkey.identity import EndpointAddr, IpAddr, TransportAddr

PORTS = 4
VICTIMS: list[TransportAddr] = [
    IpAddr.parse(f"{ip}:{port}")
    for ip in ("192.0.2.1", "[2001:db8::1]")
    for port in range(1, 1 + PORTS)
]
DATAGRAMS_PER_ATTEMPT = 3


@virtual
async def test_who_never_answered_is_left_alone_however_long_the_connection_lasts() -> None:
    """Over a relay, so that there is no better path that would end the search for one."""
    world = World(1, relayed=True)
    world.first.down()

    def sent() -> list[int]:
        return [world.net.one_way(HERE, each).sent for each in VICTIMS]

    async with (
        world.bind(HERE, "alice", keep_alive_s=25.0) as alice,
        world.bind(IpAddr.parse("10.0.0.2:1"), "bob", alpns=[ALPN]) as bob,
    ):
        named = EndpointAddr(bob.id, [*bob.addr().addrs, *VICTIMS])
        async with await alice.connect(named, ALPN) as connection:
            await asyncio.sleep(20)
            dialled = sent()
            await asyncio.sleep(1800)
            half_an_hour = sent()
            assert not connection.is_closed
            await asyncio.sleep(3600)
            assert sent() == half_an_hour, "nothing more after that"
    assert any(half_an_hour), "they were tried"
    assert sum(half_an_hour) > sum(dialled), "later, too"
    # All ports of one machine share its attempts; a first flight goes to each port.
    for at in (0, PORTS):
        most = limits.MAX_PATH_ATTEMPTS * DATAGRAMS_PER_ATTEMPT + 2 * PORTS
        assert sum(half_an_hour[at : at + PORTS]) <= most
