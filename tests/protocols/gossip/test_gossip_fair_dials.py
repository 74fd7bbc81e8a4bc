"""Dials share their places: whoever names a thousand peers keeps nobody else's waiting."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from endpoints import virtual

from dialkey.errors import DialError, LimitExceeded
from dialkey.identity import EndpointAddr, EndpointId, IpAddr, SecretKey
from dialkey.limits import (
    MAX_GOSSIP_DIALS,
    MAX_GOSSIP_DIALS_PER_SOURCE,
    MAX_GOSSIP_PENDING_PEERS,
)
from dialkey_gossip.address_book import AddressBook
from dialkey_gossip.dialling import Dialler
from dialkey_gossip.ids import PeerId
from dialkey_gossip.relay_rules import RelayRules

RULES = RelayRules(tuple, tuple)


def key(number: int) -> EndpointId:
    return SecretKey((90_000 + number).to_bytes(32, "big")).id


class Nowhere:
    """An endpoint whose dials go on until they are cancelled."""

    def __init__(self) -> None:
        self.dialled: list[EndpointId] = []

    async def connect(self, addr: EndpointAddr, alpn: bytes, **options: Any) -> Any:
        self.dialled.append(addr.id)
        await asyncio.sleep(options["timeout"])
        raise DialError("nobody answers", endpoint_id=addr.id)


class Crowd:
    def __init__(self) -> None:
        self.book = AddressBook()
        self.endpoint = Nowhere()
        self.dialler = Dialler(self.endpoint, b"gossip", self.book, RULES)  # type: ignore[arg-type]
        self.tasks: list[asyncio.Task[Any]] = []

    def named(self, number: int, by: int) -> None:
        """Let a rich neighbour name a peer, and dial it."""
        where = IpAddr.parse(f"10.1.{number // 200}.{number % 200 + 1}:1")
        self.book.hear(EndpointAddr(key(number), [where]), 0.0, key(by))
        self.dialler.earn(PeerId(bytes(key(by))), 1 << 20)
        self.dial(number)

    def dial(self, number: int) -> asyncio.Task[Any]:
        self.tasks.append(asyncio.create_task(self.dialler.dial(PeerId(bytes(key(number))))))
        return self.tasks[-1]

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@virtual
async def test_one_neighbour_takes_a_quarter_of_the_places() -> None:
    crowd = Crowd()
    for number in range(MAX_GOSSIP_DIALS_PER_SOURCE):
        crowd.named(number, by=1_000)
    await asyncio.sleep(0.1)
    assert len(crowd.endpoint.dialled) == MAX_GOSSIP_DIALS // 4
    crowd.named(500, by=1_001)
    await asyncio.sleep(0.1)
    assert crowd.endpoint.dialled[-1] == key(500), "another neighbour's at once"
    await crowd.end()


@virtual
async def test_what_the_application_asks_for_is_dialled_in_any_crowd() -> None:
    crowd = Crowd()
    for number in range(MAX_GOSSIP_PENDING_PEERS + 50):
        crowd.named(number, by=1_000 + number % 100)
    await asyncio.sleep(0.1)
    with pytest.raises(LimitExceeded, match="too many peers"):
        await crowd.tasks[-1]
    crowd.book.pin(EndpointAddr(key(5_000), [IpAddr.parse("10.9.9.9:1")]))
    crowd.dial(5_000)
    await asyncio.sleep(0.1)
    assert key(5_000) in crowd.endpoint.dialled
    await crowd.end()
