"""Home networks behind NATs, around one public network, in namespaces.

::

    async with Lab() as lab:
        internet = Internet(lab)
        cloud = internet.server("cloud")
        alice = internet.home("alice", nat="moderate")
        bob = internet.home("bob", nat="strict")

Each home is a host with the address 192.168.1.2 behind a router of its own, whose outer address is
public; all homes look alike inside, as in life. The kinds are those of `dialkey.testing.nat`. With "none"
the host itself has the public address.
"""

from __future__ import annotations

import attrs
from lab import Host, Lab

from dialkey.testing import NatKind

INNER = "192.168.1.2"

_MASQUERADE = {
    # One outer port for all destinations: the kernel keeps the inner one where it can.
    "open": "masquerade persistent",
    "moderate": "masquerade persistent",
    # Another one for each flow.
    "strict": "masquerade random,fully-random",
}

_OPEN = """
  map inner { type inet_service : ipv4_addr . inet_service; flags dynamic, timeout; timeout 120s; }
  chain arriving {
    type nat hook prerouting priority dstnat;
    iifname "WAN" meta l4proto udp dnat ip to udp dport map @inner
  }
"""


def nat_rules(kind: NatKind, wan: str) -> str:
    """Return the rules of a router whose outer interface is `wan`."""
    learn = ""
    if kind == "open":
        learn = (
            f'oifname "{wan}" meta l4proto udp update @inner {{ udp sport : ip saddr . udp sport }}'
        )
    return f"""
table ip nat {{
  {_OPEN.replace("WAN", wan) if kind == "open" else ""}
  chain leaving {{
    type nat hook postrouting priority srcnat;
    {learn}
    oifname "{wan}" {_MASQUERADE[kind]}
  }}
}}
table ip filter {{
  # Without this a probe that comes too early leaves an entry which takes the port of the one to come.
  chain arriving {{
    type filter hook input priority filter;
    iifname "{wan}" meta l4proto udp drop
  }}
}}
"""


@attrs.frozen
class Home:
    """A host at home.

    Attributes:
        host: where programs run.
        router: what stands before it; None without a NAT.
        public: its address as the internet sees it.
        kind: of the NAT.
    """

    host: Host
    router: Host | None
    public: str
    kind: NatKind


class Internet:
    """One router that everybody is behind, and what is attached to it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.core = lab.router("core")
        self._next = 1

    def _attach(self, host: Host) -> tuple[str, str]:
        """Give a host a public address; return it and the name of its interface."""
        number = self._next
        self._next += 1
        address, gateway = f"203.0.{number}.2", f"203.0.{number}.1"
        interface, _ = self.lab.link(host, f"{address}/24", self.core, f"{gateway}/24")
        host.ip("route", "add", "default", "via", gateway)
        return address, interface

    def server(self, name: str) -> Home:
        """Add a host with a public address."""
        return self.home(name, nat="none")

    def home(self, name: str, *, nat: NatKind) -> Home:
        """Add a host behind a NAT."""
        host = self.lab.host(name)
        if nat == "none":
            address, _ = self._attach(host)
            return Home(host, None, address, nat)
        router = self.lab.router(f"{name}-nat")
        address, wan = self._attach(router)
        self.lab.link(host, f"{INNER}/24", router, "192.168.1.1/24")
        host.ip("route", "add", "default", "via", "192.168.1.1")
        router.nft(nat_rules(nat, wan))
        return Home(host, router, address, nat)
