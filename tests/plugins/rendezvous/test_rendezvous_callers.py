"""On whose account a connection to the server is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from dialkey import Connection, SecretKey
from dialkey.identity import CustomAddr, IpAddr, RelayUrl
from dialkey_relay import RelayPath
from dialkey_rendezvous.handler import caller_of

ID = SecretKey(bytes(32)).id
RELAY = RelayPath(RelayUrl("https://relay.example"), ID)


def connection(*remotes: object) -> Connection:
    kinds = {IpAddr: "direct", RelayPath: "relay"}
    paths = [SimpleNamespace(remote=each, kind=kinds.get(type(each), "custom")) for each in remotes]
    return cast(Connection, SimpleNamespace(remote_id=ID, paths=lambda: paths))


def direct(text: str) -> IpAddr:
    return IpAddr.parse(text)


@pytest.mark.parametrize(
    ("remotes", "source", "kind"),
    [
        ((direct("192.0.2.1:4433"),), "192.0.2.1", "address"),
        ((direct("[2001:db8:1:2:3::4]:4433"),), "2001:db8:1:2::/64", "address"),
        ((direct("[::ffff:192.0.2.1]:4433"),), "192.0.2.1", "address"),
        ((RELAY,), "relay https://relay.example/", "relay"),
        ((RELAY, direct("192.0.2.1:4433")), "192.0.2.1", "address"),
        ((CustomAddr(7, b"x"),), repr(CustomAddr(7, b"x")), "address"),
        ((), "nowhere", "address"),
    ],
)
def test_callers_are_counted_by_address_or_else_by_relay(
    remotes: tuple[object, ...], source: str, kind: str
) -> None:
    caller = caller_of(connection(*remotes))
    assert (caller.id, caller.source, caller.kind) == (bytes(ID), source, kind)
