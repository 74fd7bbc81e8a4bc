"""A local network without any server and without the internet: endpoints find each other by multicast."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from lab import Host, Lab, Program, why_not

from dialkey.identity import EndpointId, EndpointTicket

REASON = why_not()
pytestmark = [pytest.mark.lab, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

LOCAL = ("--preset", "local")

BROWSE = """
mount -t tmpfs tmpfs /run
mkdir -p /run/dbus /run/avahi-daemon
dbus-daemon --system --nofork --nopidfile >&2 &
until [ -S /run/dbus/system_bus_socket ]; do sleep 0.05; done
avahi-daemon --no-drop-root --no-chroot --no-rlimits >&2 &
until [ -S /run/avahi-daemon/socket ]; do sleep 0.05; done
exec avahi-browse -rp _irohv1._udp
"""
"""A system bus and a daemon of its own; it shows who comes and who goes until it is killed."""

TOGETHER = ("unshare", "--pid", "--fork", "--kill-child")
"""Whoever is killed takes along all that it started: a namespace ends with its first process."""


async def ready(program: Program, kind: str = "ready") -> dict[str, object]:
    async with asyncio.timeout(60):
        return await program.wait_for(kind)


async def ends(program: Program) -> int:
    async with asyncio.timeout(60):
        assert program.process.stdout is not None
        await program.process.stdout.read()
        return await program.process.wait()


async def answers(host: Host, id: str) -> None:
    """Ping until there is an answer: interfaces are looked for every five seconds."""
    async with asyncio.timeout(60):
        while await ends(await host.dialkey("ping", id, "-c", "1", *LOCAL)):
            pass


def two_on_a_lan(lab: Lab) -> tuple[Host, Host]:
    alice, bob = lab.host("alice"), lab.host("bob")
    lab.switch("switch", (alice, "10.94.1.1/24"), (bob, "10.94.1.2/24"))
    return alice, bob


async def test_files_go_to_whoever_has_a_ticket_without_addresses(tmp_path: Path) -> None:
    file = tmp_path / "hello.txt"
    file.write_bytes(b"hello" * 10_000)
    there = tmp_path / "there"
    there.mkdir()
    async with Lab() as lab:
        alice, bob = two_on_a_lan(lab)
        sender = await alice.dialkey("send", str(file), "--once", *LOCAL)
        ticket = str((await ready(sender))["ticket"])
        receiver = await bob.dialkey("receive", ticket, "--yes", "--output", f"{there}/", *LOCAL)
        assert await ends(receiver) == 0
        assert await ends(sender) == 0
        assert (there / "hello.txt").read_bytes() == file.read_bytes()
        assert len(ticket) < 120, "it names no address"


async def test_a_bare_id_is_enough_also_over_ipv6_and_on_an_interface_that_comes_later() -> None:
    async with Lab() as lab:
        alice, bob, carol = lab.host("alice"), lab.host("bob"), lab.host("carol")
        listening = await alice.dialkey("ping", "--listen", *LOCAL)
        event = await ready(listening)
        id = str(event["endpoint_id"])
        assert EndpointTicket.parse(str(event["ticket"])).addr.id == EndpointId.parse(id)
        # It listens already; its first network comes now, and then a second one.
        lab.switch("switch", (alice, "10.94.1.1/24"), (bob, "10.94.1.2/24"))
        await answers(bob, id)
        other = lab.host("other")
        other.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        other.ip("link", "set", "br0", "up")
        for host, number in ((alice, 1), (carol, 2)):
            interface = lab.plug_in(other, host, "")
            host.ip("addr", "add", f"fd94::{number}/64", "dev", interface, "nodad")
        await answers(carol, id)


async def test_avahi_sees_us_come_and_go() -> None:
    for program in ("avahi-daemon", "avahi-browse", "dbus-daemon", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"the program {program!r} is not installed")
    async with Lab() as lab:
        alice, bob = two_on_a_lan(lab)
        listening = await alice.dialkey("ping", "--listen", *LOCAL)
        id = EndpointId.parse(str((await ready(listening))["endpoint_id"]))
        label = id.to_base32().lower()
        browser = await bob.run(
            *TOGETHER, "sh", "-c", BROWSE, name="avahi-browse", stderr=asyncio.subprocess.DEVNULL
        )
        assert browser.process.stdout is not None
        try:
            async with asyncio.timeout(60):
                while True:
                    line = (await browser.process.stdout.readline()).decode().strip()
                    assert line, "avahi-browse ended"
                    if line.startswith("=") and ";IPv4;" in line:
                        break
                fields = line.split(";")
                assert fields[3:6] == [label, "_irohv1._udp", "local"]
                assert fields[6] == f"{label}-{fields[8]}.local"
                assert fields[7] == "10.94.1.1"
                await listening.stop()
                while not line.startswith("-"):
                    line = (await browser.process.stdout.readline()).decode().strip()
                    assert line, "avahi-browse ended"
                assert line.split(";")[3] == label, "it said goodbye"
        finally:
            browser.process.kill()
            await browser.process.wait()
