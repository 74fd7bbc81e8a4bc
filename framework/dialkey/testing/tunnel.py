"""A real link between two network namespaces that behaves as `Conditions` say.

Many kernels have no `netem`. This link is a pair of TUN devices and one small process that carries
packets from one to the other: with delay, jitter, loss, reordering, duplicates, a rate with a queue
before it, and cuts; all by seed, and by the rules of the network in memory (`dialkey.testing.Channel`)::

    $ sudo ip netns add a && sudo ip netns add b
    $ sudo python -m dialkey.testing.tunnel a b --delay 25 --loss 0.01 --rate 50 --queue 100
    {"event": "up", "device": "dkwan0", "addresses": ["10.66.0.1", "10.66.0.2"]}

It runs until its standard input ends, or a signal. While it runs, a line of JSON on its standard input
changes it: ``{"up": false}`` cuts the link without a word to either side, ``{"there": {"loss": 0.1}}``
and ``{"back": {…}}`` change one direction, ``{"stats": true}`` prints what it carried. Units there are
those of `Conditions`: seconds and bytes.

Linux only, and needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN). One core of 2020 carries some 40,000 packets
in a second, which is 450 Mbit/s.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from dialkey.testing.conditions import Channel, Conditions

__all__ = ["Tunnel", "main"]

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_CLONE_NEWNET: Final = 0x40000000
_BATCH: Final = 64
"""Packets taken from one side before the other has its turn and due ones leave."""
_SPIN_S: Final = 0.0003
"""So close to the next departure the process does not sleep: waking up takes longer."""
_IDLE_S: Final = 0.5
_BUFFER: Final = 65_536


class Tunnel:
    """Two devices, and what is on its way between them.

    Args:
        there, back: what happens to packets from the first side to the second, and the other way.
        seed: of all chance.
    """

    def __init__(
        self, devices: Sequence[int], there: Conditions, back: Conditions, seed: int
    ) -> None:
        rng = random.Random(seed)
        self._devices = tuple(devices)
        self._channels = (Channel(there, rng), Channel(back, rng))
        self._due: list[tuple[float, int, int, bytes]] = []
        self._order = 0
        self.delivered = [0, 0]
        self.refused = 0

    def change(self, order: Mapping[str, object]) -> dict[str, object] | None:
        """Apply one line of standard input; return what it asked to be told.

        Raises:
            ValueError: it is not one.
        """
        answer: dict[str, object] | None = None
        for key, value in order.items():
            if key == "up" and isinstance(value, bool):
                for channel in self._channels:
                    channel.is_up = value
            elif key in ("there", "back") and isinstance(value, dict):
                channel = self._channels[key == "back"]
                try:
                    channel.conditions = attrs.evolve(channel.conditions, **value)
                except TypeError as exc:
                    raise ValueError(str(exc)) from None
            elif key == "stats":
                answer = self.stats()
            else:
                raise ValueError(f"{key!r} is not something that can be changed")
        return answer

    def stats(self) -> dict[str, object]:
        """Return what was carried so far, for each direction."""
        there, back = (
            {
                "sent": channel.sent,
                "sent_bytes": channel.sent_bytes,
                "lost": channel.lost,
                "delivered": delivered,
            }
            for channel, delivered in zip(self._channels, self.delivered, strict=True)
        )
        return {"event": "stats", "there": there, "back": back, "refused": self.refused}

    def run(self, control: int | None) -> None:
        """Carry packets until `control`, a file descriptor with lines of JSON, ends."""
        waiting = [*self._devices] if control is None else [*self._devices, control]
        pending = b""
        while True:
            self._deliver(time.monotonic())
            ready = select.select(waiting, (), (), self._patience(time.monotonic()))[0]
            for side, device in enumerate(self._devices):
                if device in ready:
                    self._take(side, device)
            if control is not None and control in ready:
                data = os.read(control, _BUFFER)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._obey(line)

    def _obey(self, line: bytes) -> None:
        try:
            order = json.loads(line)
            if not isinstance(order, dict):
                raise ValueError("a change is a JSON object")
            answer = self.change(order)
        except ValueError as exc:
            answer = {"event": "error", "message": str(exc)}
        print(json.dumps(answer or {"event": "changed"}), flush=True)

    def _patience(self, now: float) -> float:
        if not self._due:
            return _IDLE_S
        wait = self._due[0][0] - now
        return 0.0 if wait < _SPIN_S else wait - _SPIN_S / 2

    def _take(self, side: int, device: int) -> None:
        channel = self._channels[side]
        for _ in range(_BATCH):
            try:
                packet = os.read(device, _BUFFER)
            except BlockingIOError:
                return
            for at in channel.arrivals(len(packet), time.monotonic()):
                self._order += 1
                heapq.heappush(self._due, (at, self._order, side, packet))

    def _deliver(self, now: float) -> None:
        due = self._due
        while due and due[0][0] <= now:
            _, _, side, packet = heapq.heappop(due)
            try:
                os.write(self._devices[1 - side], packet)
            except OSError:
                # The other side's device is down, or the packet is none that it takes.
                self.refused += 1
            else:
                self.delivered[side] += 1


def open_device(namespace: str, name: str, address: str, *, mtu_bytes: int, route: bool) -> int:
    """Move this process into a namespace and make a TUN device there; return its file descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    path = namespace if "/" in namespace else f"/run/netns/{namespace}"
    space = os.open(path, os.O_RDONLY)
    try:
        if libc.setns(space, _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, f"cannot enter the network namespace {namespace}")
    finally:
        os.close(space)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    commands = [
        ["ip", "address", "add", address, "dev", name],
        ["ip", "link", "set", name, "mtu", str(mtu_bytes), "txqueuelen", "5000", "up"],
        ["ip", "link", "set", "lo", "up"],
    ]
    if route:
        commands.append(["ip", "route", "add", "default", "dev", name])
    for command in commands:
        subprocess.run(command, check=True)
    return device


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dialkey.testing.tunnel",
        description="A link between two network namespaces with delay, loss, jitter and a rate.",
    )
    parser.add_argument("a", help="a network namespace, by name or path")
    parser.add_argument("b", help="another one")
    parser.add_argument("--delay", type=float, default=0, help="milliseconds each way")
    parser.add_argument("--jitter", type=float, default=0, help="up to this many milliseconds more")
    parser.add_argument("--in-order", action="store_true", help="jitter does not reorder")
    parser.add_argument("--loss", type=float, default=0, help="probability, 0 to 1")
    parser.add_argument("--duplicate", type=float, default=0, help="probability, 0 to 1")
    parser.add_argument("--rate", type=float, help="Mbit/s; unlimited by default")
    parser.add_argument("--queue", type=float, default=100, help="milliseconds at that rate")
    parser.add_argument("--mtu", type=int, default=1500, help="bytes of an IP packet")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="dkwan0", help="name of both devices")
    parser.add_argument("--addresses", nargs=2, default=["10.66.0.1/24", "10.66.0.2/24"])
    parser.add_argument("--no-route", action="store_true", help="make no default routes")
    return parser


def conditions_of(options: argparse.Namespace) -> Conditions:
    """Turn the options of the command line into conditions."""
    rate = None if options.rate is None else options.rate * 1e6 / 8
    return Conditions(
        delay_s=options.delay / 1e3,
        jitter_s=options.jitter / 1e3,
        in_order=options.in_order,
        loss=options.loss,
        duplicate=options.duplicate,
        rate_bytes_s=rate,
        # A packet or two fit in any queue.
        queue_bytes=max(2 * options.mtu, int(options.queue / 1e3 * (rate or 0))),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the link; see the module."""
    options = _arguments().parse_args(arguments)
    conditions = conditions_of(options)
    try:
        devices = [
            open_device(
                space, options.device, address, mtu_bytes=options.mtu, route=not options.no_route
            )
            for space, address in zip((options.a, options.b), options.addresses, strict=True)
        ]
    except (OSError, subprocess.CalledProcessError) as exc:
        print(f"tunnel: {exc}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    addresses = [address.split("/")[0] for address in options.addresses]
    print(json.dumps({"event": "up", "device": options.device, "addresses": addresses}), flush=True)
    try:
        Tunnel(devices, conditions, conditions, options.seed).run(sys.stdin.fileno())
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
