"""A testing kit for applications and protocols: a clock that jumps, a network in memory, a cable to cut.

A test that sleeps is slow, and a test that sleeps too little fails now and then. Here time passes only
when nothing else is left to do, so an idle timeout of 30 seconds is tested in milliseconds, and a
network with 5 % loss behaves the same on each run::

    from dialkey import Endpoint
    from dialkey.testing import Conditions, MemoryNetwork, in_virtual_time

    @in_virtual_time
    async def test_that_it_survives_loss() -> None:
        network = MemoryNetwork(seed=1, conditions=Conditions(delay_s=0.02, loss=0.05))
        async with (
            Endpoint.bind(transports=[network.transport("alice")]) as alice,
            Endpoint.bind(transports=[network.transport("bob")], alpns=["echo/1"]) as bob,
        ):
            connection = await alice.connect(bob.addr(), "echo/1")
            network.link("alice", "bob").down()
            await connection.closed()           # 30 seconds later, and at once

`Cable` is for real time: UDP that can be cut and restored, as when a phone leaves the Wi-Fi.
"""

from __future__ import annotations

from dialkey.testing.cable import Cable
from dialkey.testing.clock import Deadlock, VirtualClock, in_virtual_time, run
from dialkey.testing.conditions import Channel, Conditions
from dialkey.testing.nat import NAT_KINDS, Nat, NatKind, are_punchable
from dialkey.testing.network import Link, MemoryNetwork, MemoryTransport

__all__ = [
    "NAT_KINDS",
    "Cable",
    "Channel",
    "Conditions",
    "Deadlock",
    "Link",
    "MemoryNetwork",
    "MemoryTransport",
    "Nat",
    "NatKind",
    "VirtualClock",
    "are_punchable",
    "in_virtual_time",
    "run",
]
