"""A phone and a laptop with a relay between them: UDP blocked, direct path cut, relay restarted."""

from __future__ import annotations

import asyncio

import pytest
from lab import Host, Lab, Program, why_not

REASON = why_not()
pytestmark = [pytest.mark.lab, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

MIB = 1 << 20
RELAY_URL = "http://10.81.9.2:8080/"


class World:
    """Two hosts, each on a network of its own, and a relay that both reach through a router."""

    def __init__(self, lab: Lab) -> None:
        self.alice, self.bob, self.cloud = lab.host("alice"), lab.host("bob"), lab.host("cloud")
        self.middle = lab.router("middle")
        for number, host in ((1, self.alice), (2, self.bob), (9, self.cloud)):
            lab.link(host, f"10.81.{number}.2/24", self.middle, f"10.81.{number}.1/24")
            host.ip("route", "add", "default", "via", f"10.81.{number}.1")

    async def start_relay(self) -> Program:
        relay = await self.cloud.start("relay", "10.81.9.2", "8080")
        await asyncio.wait_for(relay.wait_for("relay"), 20)
        return relay

    async def start_transfer(self, size: int, rate: int) -> tuple[Program, Program]:
        receiver = await self.bob.start("serve", "--relay", RELAY_URL)
        ticket = str((await asyncio.wait_for(receiver.wait_for("ticket"), 20))["ticket"])
        sender = await self.alice.start(
            "send", ticket, str(size), "--rate", str(rate), "--relay", RELAY_URL
        )
        return sender, receiver

    def cut_direct(self, how: str = "ip daddr { 10.81.1.2, 10.81.2.2 } meta l4proto udp") -> None:
        self.middle.drop_silently(how)


async def until(receiver: Program, size: int) -> None:
    async for event in receiver.events():
        if event["event"] == "progress" and int(str(event["size"])) >= size:
            return
    raise AssertionError("the receiver ended early")


async def finish(sender: Program, receiver: Program) -> float:
    """Wait for both ends, compare them, and return the longest time without data."""
    received, sent = await asyncio.wait_for(
        asyncio.gather(receiver.wait_for("received"), sender.wait_for("sent")), 120
    )
    assert (received["size"], received["sha256"]) == (sent["size"], sent["sha256"])
    gap = float(str(received["longest_gap_s"]))
    print(f"longest time without data: {gap} s")
    return gap


@pytest.mark.parametrize("side", ["alice", "bob"])
async def test_udp_blocked_on_one_side(side: str) -> None:
    async with Lab() as lab:
        world = World(lab)
        host: Host = getattr(world, side)
        host.drop_silently("meta l4proto udp")
        await world.start_relay()
        sender, receiver = await world.start_transfer(20 * MIB, 0)
        connected = await asyncio.wait_for(sender.wait_for("connected"), 20)
        assert connected["kind"] == "relay"
        await finish(sender, receiver)


async def test_a_direct_path_takes_over_is_cut_and_comes_back() -> None:
    async with Lab() as lab:
        world = World(lab)
        await world.start_relay()
        sender, receiver = await world.start_transfer(60 * MIB, 6 * MIB)
        await until(receiver, 6 * MIB)
        world.cut_direct()
        await until(receiver, 20 * MIB)
        world.middle.flush_rules()
        gap = await finish(sender, receiver)
        assert gap < 5.0
        selected = [
            e["kind"] for e in sender.seen if e["event"] == "path" and e["what"] == "PathSelected"
        ]
        assert "relay" in selected, "the relay must have carried data while the direct way was cut"
        assert selected[-1] == "direct", "and the direct way again, once it was back"


async def test_a_relay_is_killed_and_started_again_under_traffic() -> None:
    async with Lab() as lab:
        world = World(lab)
        relay = await world.start_relay()
        world.cut_direct()
        sender, receiver = await world.start_transfer(30 * MIB, 4 * MIB)
        await until(receiver, 6 * MIB)
        relay.process.kill()
        await relay.process.wait()
        await world.start_relay()
        gap = await finish(sender, receiver)
        assert gap < 15.0
