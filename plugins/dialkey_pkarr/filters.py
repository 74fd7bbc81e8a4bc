"""What of an endpoint's addresses leaves the house.

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
"""Says of an address whether it is published."""


def relay_only(addr: TransportAddr) -> bool:
    """Publish which relay leads here, and no address of this machine: the default."""
    return isinstance(addr, RelayAddr)


def public_and_relay(addr: TransportAddr) -> bool:
    """Publish addresses that mean something on the internet, too; none of the LAN."""
    return relay_only(addr) or (isinstance(addr, IpAddr) and addr.ip.is_global)


def everything(addr: TransportAddr) -> bool:
    """Publish all, those of the LAN included."""
    return True


def filtered(info: EndpointInfo, keep: AddrFilter) -> EndpointInfo:
    """Return what is left of an endpoint's addresses; user data always is."""
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
