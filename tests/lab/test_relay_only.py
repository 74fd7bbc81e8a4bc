"""Endpoints that send no UDP at all: the relay is their only way, although a direct one is open."""

from __future__ import annotations

import asyncio
import json
import subprocess

import pytest
from lab import Host, Lab, why_not

REASON = why_not()
pytestmark = [pytest.mark.lab, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

MIB = 1 << 20
COUNT = """
table inet counting {
  counter udp_packets {}
  counter tcp_packets {}
  chain leaving {
    type filter hook output priority 0;
    meta l4proto udp counter name udp_packets
    meta l4proto tcp counter name tcp_packets
  }
  chain arriving {
    type filter hook input priority 0;
    meta l4proto udp counter name udp_packets
  }
}
"""


def packets(host: Host) -> dict[str, int]:
    """Return how many packets of each kind a host sent (and got, where they are UDP)."""
    listed = subprocess.run(
        ["ip", "netns", "exec", host.space, "nft", "-j", "list", "counters"],
        check=True,
        capture_output=True,
        text=True,
    )
    objects = json.loads(listed.stdout)["nftables"]
    return {
        each["counter"]["name"]: each["counter"]["packets"] for each in objects if "counter" in each
    }


@pytest.mark.parametrize("no_udp", [True, False])
async def test_not_one_datagram_leaves_an_endpoint_without_udp(no_udp: bool) -> None:
    async with Lab() as lab:
        alice, bob = lab.host("alice"), lab.host("bob")
        lab.link(alice, "10.91.1.1/24", bob, "10.91.1.2/24")
        for host in (alice, bob):
            host.nft(COUNT)
        relay = await bob.start("relay", "10.91.1.2", "8080")
        await asyncio.wait_for(relay.wait_for("relay"), 20)
        options = ["--relay", "http://10.91.1.2:8080/", *(["--no-udp"] if no_udp else [])]
        receiver = await bob.start("serve", *options)
        ticket = str((await asyncio.wait_for(receiver.wait_for("ticket"), 20))["ticket"])
        sender = await alice.start("send", ticket, str(2 * MIB), *options)
        connected = await asyncio.wait_for(sender.wait_for("connected"), 20)
        received, sent = await asyncio.wait_for(
            asyncio.gather(receiver.wait_for("received"), sender.wait_for("sent")), 60
        )
        assert received["sha256"] == sent["sha256"]
        for host in (alice, bob):
            seen = packets(host)
            assert seen["tcp_packets"] > 0
            # The other way round shows that the counters count.
            assert (seen["udp_packets"] == 0) == no_udp
        if no_udp:
            assert connected["kind"] == "relay"
