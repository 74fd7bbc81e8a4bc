"""Networks of hosts on one machine, in Linux network namespaces.

A `Lab` has hosts and routers; each is a namespace, and links are pairs of virtual interfaces.
Programs run inside a host with `Host.start`. Everything is taken down with the lab. Needs root, `ip`
and, for rules, `nft`; `why_not` says what is missing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType

_NUMBERS = itertools.count(1)
AGENT = Path(__file__).with_name("lab_agent.py")


def why_not() -> str | None:
    """Return why a lab cannot be built here, or None."""
    if sys.platform != "linux":
        return "network namespaces are a feature of Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "nft"):
        if shutil.which(program) is None:
            return f"the program {program!r} is not installed"
    probe = f"dklab-probe-{os.getpid()}"
    result = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if result.returncode:
        return f"this kernel or container allows no network namespaces: {result.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


def why_no_shaping() -> str | None:
    """Return why links cannot be given delay and loss here, or None."""
    reason = why_not()
    if reason is not None:
        return reason
    space = f"dklab-probe-{os.getpid()}"
    _ip("netns", "add", space)
    try:
        result = subprocess.run(
            ["tc", "-n", space, "qdisc", "replace", "dev", "lo", "root", "netem", "delay", "1ms"],
            capture_output=True,
        )
    finally:
        _ip("netns", "del", space)
    return "this kernel has no netem queueing discipline" if result.returncode else None


def _ip(*arguments: str) -> None:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {result.stderr.strip()}")


class Program:
    """A program that runs in a host and prints one JSON object per line."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self.process = process
        self.name = name
        self.seen: list[dict[str, object]] = []

    async def events(self) -> AsyncIterator[dict[str, object]]:
        """Yield what it prints, to its end."""
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            event = json.loads(line)
            self.seen.append(event)
            yield event

    async def wait_for(self, kind: str, **values: object) -> dict[str, object]:
        """Return its next event of a kind, with certain values."""
        async for event in self.events():
            if event["event"] == kind and all(event.get(k) == v for k, v in values.items()):
                return event
        raise AssertionError(f"{self.name} ended before {kind!r}; it said {self.seen[-5:]}")

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), 10)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()


class Host:
    """A network namespace.

    Attributes:
        name: as given to the lab.
        space: the name of the namespace.
    """

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.space = f"dk{os.getpid()}-{next(_NUMBERS)}-{name}"
        _ip("netns", "add", self.space)
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments: str) -> None:
        """Run `ip` inside the host."""
        _ip("-n", self.space, *arguments)

    def nft(self, rules: str) -> None:
        """Load nftables rules inside the host."""
        subprocess.run(
            ["ip", "netns", "exec", self.space, "nft", "-f", "-"],
            input=rules,
            text=True,
            check=True,
        )

    def flush_rules(self) -> None:
        self.nft("flush ruleset\n")

    def drop_silently(self, match: str) -> None:
        """Drop what arrives and matches, or passes through, without a word to anybody.

        What the host itself sends is not touched: dropping that would be an error to the sender.
        """
        self.nft(
            "table inet cut {\n"
            f"  chain arriving {{ type filter hook input priority 0; {match} drop; }}\n"
            f"  chain passing {{ type filter hook forward priority 0; {match} drop; }}\n"
            "}\n"
        )

    async def start(self, *arguments: str, agent: Path = AGENT) -> Program:
        """Start the lab's agent, or another script, inside the host."""
        return await self.run(sys.executable, str(agent), *arguments, name=arguments[0])

    async def dialkey(self, *arguments: str) -> Program:
        """Start a command inside the host; ``--json`` is added."""
        return await self.run(
            sys.executable, "-m", "dialkey", *arguments, "--json", name=arguments[0]
        )

    async def run(self, *arguments: str, name: str, stderr: int | None = None) -> Program:
        """Start any program inside the host; what mounts it has are its own."""
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", self.space, *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            limit=1 << 20,
        )
        program = Program(process, f"{name} in {self.name}")
        self.lab.programs.append(program)
        return program


class Lab:
    """Hosts, links and programs; an asynchronous context manager that takes all of them down."""

    def __init__(self) -> None:
        self.hosts: list[Host] = []
        self.programs: list[Program] = []

    async def __aenter__(self) -> Lab:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for program in self.programs:
            await program.stop()
        for host in self.hosts:
            _ip("netns", "del", host.space)

    def host(self, name: str) -> Host:
        """Add a host."""
        host = Host(self, name)
        self.hosts.append(host)
        return host

    def router(self, name: str) -> Host:
        """Add a host that forwards."""
        host = self.host(name)
        for key in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
            subprocess.run(["ip", "netns", "exec", host.space, "sysctl", "-qw", key], check=True)
        return host

    def link(self, one: Host, one_address: str, other: Host, other_address: str) -> tuple[str, str]:
        """Connect two hosts; return the names of the interfaces.

        Args:
            one_address, other_address: with prefix length, such as "10.1.0.1/24"; "" for none.
        """
        number = next(_NUMBERS)
        a, b = f"dk{os.getpid() % 10000}a{number}", f"dk{os.getpid() % 10000}b{number}"
        _ip(
            "link",
            "add",
            a,
            "netns",
            one.space,
            "type",
            "veth",
            "peer",
            "name",
            b,
            "netns",
            other.space,
        )
        for host, interface, address in ((one, a, one_address), (other, b, other_address)):
            if address:
                host.ip("addr", "add", address, "dev", interface)
            host.ip("link", "set", interface, "up")
        return a, b

    def switch(self, name: str, *members: tuple[Host, str]) -> Host:
        """Connect hosts by a bridge in a host of its own; return that.

        Args:
            members: each with its address and prefix length.
        """
        switch = self.host(name)
        # Without a router that asks for members, a bridge that listens to IGMP keeps groups back.
        switch.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        switch.ip("link", "set", "br0", "up")
        for host, address in members:
            self.plug_in(switch, host, address)
        return switch

    def plug_in(self, switch: Host, host: Host, address: str) -> str:
        """Connect a host to a bridge; return the name of its interface."""
        here, there = self.link(host, address, switch, "")
        switch.ip("link", "set", there, "master", "br0")
        return here

    def shape(self, host: Host, interface: str, *arguments: str) -> None:
        """Give an interface delay, loss or a rate (arguments of `tc netem`)."""
        subprocess.run(
            [
                "tc",
                "-n",
                host.space,
                "qdisc",
                "replace",
                "dev",
                interface,
                "root",
                "netem",
                *arguments,
            ],
            check=True,
        )
