"""Direct connections between real hosts: cuts without a word, roaming, links with delay and loss."""

from __future__ import annotations

import asyncio

import pytest
from lab import Lab, Program, why_no_shaping, why_not

REASON = why_not()
pytestmark = [pytest.mark.lab, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

MIB = 1 << 20


async def finish(sender: Program, receiver: Program) -> dict[str, object]:
    """Wait for both ends and compare what they saw; return the receiver's summary."""
    received, sent = await asyncio.gather(receiver.wait_for("received"), sender.wait_for("sent"))
    assert received["size"] == sent["size"]
    assert received["sha256"] == sent["sha256"]
    print({"longest_gap_s": received["longest_gap_s"]})
    return received


async def test_a_cut_path_is_left_for_the_other_one() -> None:
    """Two ways between two hosts; the one in use goes dark under traffic, without any error."""
    async with Lab() as lab:
        alice, bob = lab.host("alice"), lab.host("bob")
        lab.link(alice, "10.71.1.1/24", bob, "10.71.1.2/24")
        lab.link(alice, "10.71.2.1/24", bob, "10.71.2.2/24")
        receiver = await bob.start("serve")
        ticket = str((await receiver.wait_for("ticket"))["ticket"])
        sender = await alice.start("send", ticket, str(40 * MIB), "--rate", str(8 * MIB))
        in_use = str((await sender.wait_for("connected"))["path"])
        network = in_use.rsplit(".", 1)[0] + ".0/24"
        await asyncio.wait_for(_until(receiver, 8 * MIB), 30)
        for host in (alice, bob):
            host.drop_silently(f"ip saddr {network}")
        summary = await asyncio.wait_for(finish(sender, receiver), 60)
        gap = float(str(summary["longest_gap_s"]))
        assert gap < 5.0, "data must flow again within five seconds"
        assert any(e["event"] == "path" and e["what"] == "PathSelected" for e in sender.seen)


async def test_an_address_changes_during_a_transfer() -> None:
    """Wi-Fi to mobile: the sender's address disappears, another one takes over at once."""
    async with Lab() as lab:
        phone, cloud = lab.host("phone"), lab.host("cloud")
        uplinks = lab.router("uplinks")
        wifi, _ = lab.link(phone, "10.72.1.2/24", uplinks, "10.72.1.1/24")
        lab.link(phone, "10.72.2.2/24", uplinks, "10.72.2.1/24")
        lab.link(cloud, "10.72.9.2/24", uplinks, "10.72.9.1/24")
        cloud.ip("route", "add", "default", "via", "10.72.9.1")
        phone.ip("route", "add", "default", "via", "10.72.1.1", "metric", "10")
        phone.ip("route", "add", "default", "via", "10.72.2.1", "metric", "20")
        receiver = await cloud.start("serve")
        ticket = str((await receiver.wait_for("ticket"))["ticket"])
        sender = await phone.start("send", ticket, str(100 * MIB), "--rate", str(16 * MIB))
        await sender.wait_for("connected")
        await asyncio.wait_for(_until(receiver, 20 * MIB), 60)
        phone.ip("link", "set", wifi, "down")
        summary = await asyncio.wait_for(finish(sender, receiver), 90)
        assert summary["size"] == 100 * MIB
        assert float(str(summary["longest_gap_s"])) < 5.0


@pytest.mark.skipif(why_no_shaping() is not None, reason=str(why_no_shaping()))
@pytest.mark.parametrize(
    ("name", "conditions"),
    [
        ("good wifi", ["delay", "8ms", "2ms", "loss", "0.1%"]),
        ("weak 4G", ["delay", "45ms", "15ms", "loss", "2%"]),
    ],
)
async def test_links_with_delay_jitter_and_loss(name: str, conditions: list[str]) -> None:
    async with Lab() as lab:
        alice, bob = lab.host("alice"), lab.host("bob")
        a, b = lab.link(alice, "10.73.1.1/24", bob, "10.73.1.2/24")
        lab.shape(alice, a, *conditions)
        lab.shape(bob, b, *conditions)
        receiver = await bob.start("serve")
        ticket = str((await receiver.wait_for("ticket"))["ticket"])
        sender = await alice.start("send", ticket, str(4 * MIB))
        await asyncio.wait_for(finish(sender, receiver), 90)


async def _until(receiver: Program, size: int) -> None:
    async for event in receiver.events():
        if event["event"] == "progress" and int(str(event["size"])) >= size:
            return
    raise AssertionError("the receiver ended early")
