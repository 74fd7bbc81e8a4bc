"""A model of NATs: which address the outside sees, and what may come in.

Two things make a NAT (RFC 4787): whether one inner address has the same outer port for all
destinations (its *mapping*), and who may send to that port (its *filtering*). The four kinds that matter:

========  ===================  =============================  =======================================
kind      mapping              who may send in                where it is found
========  ===================  =============================  =======================================
none      there is no NAT      everybody                      servers, IPv6 without a firewall
open      one port for all     everybody                      "full cone": some home routers
moderate  one port for all     whom one has sent to,          most home routers ("port-restricted cone")
                               address and port
strict    one port for each    whom one has sent to,          mobile networks, companies ("symmetric")
          destination          address and port
========  ===================  =============================  =======================================

Two hosts behind them reach each other directly, if both send at the same time, in 13 of the 16 pairs: not
when one is strict and the other moderate or strict, because neither can know to which port the other's
datagrams will be sent.
"""

from __future__ import annotations

import ipaddress
import random
from typing import Final, Literal, get_args

import attrs

from dialkey.errors import InvalidInput
from dialkey.identity import IpAddr

NatKind = Literal["none", "open", "moderate", "strict"]
NAT_KINDS: Final[tuple[NatKind, ...]] = get_args(NatKind)

_FIRST_PORT: Final = 20_000
_LAST_PORT: Final = 60_000


def are_punchable(one: NatKind, other: NatKind) -> bool:
    """Return whether hosts behind two kinds of NAT reach each other directly without guessing ports."""
    pair = {one, other}
    return not ("strict" in pair and pair <= {"moderate", "strict"})


@attrs.define
class _Mapping:
    """An outer port in use."""

    inner: IpAddr
    port: int
    used_at: float
    contacts: set[IpAddr] = attrs.field(factory=set)


class Nat:
    """A router between some hosts and the rest of a network. Sans-IO and deterministic.

    Args:
        ip: its outer address, such as "203.0.113.1".
        kind: how it translates, see the module. For "none" it translates nothing, and lets all pass.
        timeout_s: a port that carried nothing outwards for this long is given up.
        hairpin: whether a host inside reaches another one by its outer address.
        seed: of its choice of ports.
    """

    def __init__(
        self,
        ip: str,
        kind: NatKind,
        *,
        timeout_s: float = 120.0,
        hairpin: bool = False,
        seed: int = 0,
    ) -> None:
        if kind not in NAT_KINDS:
            raise InvalidInput(f"a NAT is one of {', '.join(NAT_KINDS)}, not {kind!r}")
        self.ip = ipaddress.ip_address(ip)
        self.kind = kind
        self.timeout_s = timeout_s
        self.hairpin = hairpin
        self._rng = random.Random(f"{ip} {seed}")
        self._by_inner: dict[tuple[IpAddr, IpAddr | None], _Mapping] = {}
        self._by_port: dict[int, _Mapping] = {}

    def __repr__(self) -> str:
        return f"<Nat {self.kind} {self.ip}>"

    def out(self, inner: IpAddr, remote: IpAddr, now: float) -> IpAddr:
        """Let a datagram out; return the address that `remote` sees it come from."""
        if self.kind == "none":
            return inner
        key = (inner, remote if self.kind == "strict" else None)
        mapping = self._by_inner.get(key)
        if mapping is None or self._is_over(mapping, now):
            if mapping is not None:
                self._by_port.pop(mapping.port, None)
            mapping = self._by_inner[key] = _Mapping(inner, self._free_port(), now)
            self._by_port[mapping.port] = mapping
        mapping.used_at = now
        mapping.contacts.add(remote)
        return IpAddr(self.ip, mapping.port)

    def inwards(self, remote: IpAddr, port: int, now: float) -> IpAddr | None:
        """Return which host inside gets what `remote` sends to an outer port; None if nobody does."""
        mapping = self._by_port.get(port)
        if mapping is None or self._is_over(mapping, now):
            return None
        if self.kind != "open" and remote not in mapping.contacts:
            return None
        return mapping.inner

    def forget(self) -> None:
        """Forget all ports, as a router does that starts again."""
        self._by_inner.clear()
        self._by_port.clear()

    def _is_over(self, mapping: _Mapping, now: float) -> bool:
        return now - mapping.used_at > self.timeout_s

    def _free_port(self) -> int:
        while True:
            port = self._rng.randint(_FIRST_PORT, _LAST_PORT)
            if port not in self._by_port:
                return port
