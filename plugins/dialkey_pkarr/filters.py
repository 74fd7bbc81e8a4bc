"""Which of an endpoint's addresses are published.

Source: docs/wire/discovery.md 10.2.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from dialkey.endpoint import EndpointInfo
from dialkey.identity import EndpointAddr, IpAddr, RelayAddr, TransportAddr
from dialkey_pkarr.errors import RecordTooLarge
from dialkey_pkarr.records import message_of_info

__all__ = ["AddrFilter", "everything", "fitting", "public_and_relay", "relay_only"]

AddrFilter = Callable[[TransportAddr], bool]
"""Decides whether an address is published."""


def relay_only(addr: TransportAddr) -> bool:
    """Publish which relay leads here, and no address of this machine: the default."""
    return isinstance(addr, RelayAddr)


def public_and_relay(addr: TransportAddr) -> bool:
    """Also publish addresses that are valid on the internet, but none of the LAN."""
    return relay_only(addr) or (isinstance(addr, IpAddr) and addr.ip.is_global)


def everything(addr: TransportAddr) -> bool:
    """Publish all addresses, including those of the LAN."""
    return True


def filtered(info: EndpointInfo, keep: AddrFilter) -> EndpointInfo:
    """Return an endpoint's addresses as far as a filter lets them through; user data always stays."""
    addrs = [each for each in info.addr.addrs if keep(each)]
    return attrs.evolve(info, addr=EndpointAddr(info.id, addrs))


def fitting(info: EndpointInfo) -> EndpointInfo:
    """Leave out addresses from the end, relays last, until the record fits.

    Raises:
        RecordTooLarge: it does not fit without any address.
    """
    addrs = list(info.addr.addrs)
    while True:
        try:
            message_of_info(info)
        except RecordTooLarge:
            if not addrs:
                raise
            addrs.pop()
            info = attrs.evolve(info, addr=EndpointAddr(info.id, addrs))
        else:
            return info
