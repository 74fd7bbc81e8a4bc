"""The network in memory: what it carries, loses, delays, and what transports tell of it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from dialkey.errors import BindError
from dialkey.identity import CustomAddr, IpAddr, RelayAddr, RelayUrl, SecretKey
from dialkey.network import PathAddress
from dialkey.testing import Channel, Conditions, MemoryNetwork, MemoryTransport, in_virtual_time

ID = SecretKey(bytes(range(32))).id


class Inbox:
    """What a transport told its endpoint."""

    def __init__(self) -> None:
        self.got: list[tuple[float, PathAddress, bytes]] = []
        self.batches: list[tuple[int, int]] = []
        self.unreachable: list[tuple[PathAddress, str]] = []
        self.ends = 0
        self.writable = 0
        self.changed = 0

    def on_datagrams(self, data: memoryview, segment_bytes: int, remote: PathAddress) -> None:
        now = asyncio.get_running_loop().time()
        self.batches.append((len(data), segment_bytes))
        for at in range(0, len(data), segment_bytes):
            self.got.append((round(now, 6), remote, bytes(data[at : at + segment_bytes])))

    def on_batch_end(self) -> None:
        self.ends += 1

    def on_unreachable(self, remote: PathAddress, reason: str) -> None:
        self.unreachable.append((remote, reason))

    def on_too_large(self, remote: PathAddress, max_datagram_bytes: int) -> None:
        raise AssertionError

    def on_writable(self) -> None:
        self.writable += 1

    def on_candidates_changed(self) -> None:
        raise AssertionError

    def on_addresses_changed(self) -> None:
        self.changed += 1

    @property
    def data(self) -> list[bytes]:
        return [data for _, _, data in self.got]


async def started(net: MemoryNetwork, *names: str) -> list[tuple[MemoryTransport, Inbox]]:
    result = []
    for name in names:
        transport, inbox = net.transport(name), Inbox()
        await transport.start(inbox)
        result.append((transport, inbox))
    return result


@in_virtual_time
async def test_datagrams_arrive_after_the_delay_joined_as_a_kernel_does() -> None:
    net = MemoryNetwork(conditions=Conditions(delay_s=0.25))
    (a, _), (b, inbox) = await started(net, "a", "b")
    a.send(b.address, b"xxyyz", 2)
    a.send(b.address, b"longer", 6)
    await asyncio.sleep(1)
    assert inbox.got == [(0.25, a.address, each) for each in (b"xx", b"yy", b"z", b"longer")]
    assert inbox.batches == [(5, 2), (6, 6)]
    assert inbox.ends == 1


@in_virtual_time
async def test_faults_are_drawn_from_the_seed() -> None:
    async def run_once(seed: int) -> list[bytes]:
        conditions = Conditions(loss=0.2, duplicate=0.2, reorder=0.2, jitter_s=0.01)
        net = MemoryNetwork(seed=seed, conditions=conditions)
        (a, _), (b, inbox) = await started(net, "a", "b")
        for i in range(200):
            a.send(b.address, b"%d" % i, 3)
        await asyncio.sleep(1)
        return inbox.data

    first = await run_once(1)
    assert first == await run_once(1)
    assert first != await run_once(2)
    counts = Counter(first)
    assert 120 < len(counts) < 190
    assert 10 < sum(1 for count in counts.values() if count == 2) < 70
    assert first != sorted(first, key=int)


@in_virtual_time
async def test_links_go_down_and_up_in_one_direction_or_both() -> None:
    net = MemoryNetwork()
    (a, at_a), (b, at_b) = await started(net, "a", "b")
    net.one_way("a", "b").down()
    a.send(b.address, b"lost", 4)
    b.send(a.address, b"back", 4)
    await asyncio.sleep(1)
    assert (at_b.data, at_a.data) == ([], [b"back"])
    net.link("a", "b").down()
    b.send(a.address, b"lost", 4)
    net.link("a", "b").up()
    a.send(b.address, b"there", 5)
    await asyncio.sleep(1)
    assert (at_b.data, at_a.data) == ([b"there"], [b"back"])
    assert (net.link("a", "b").sent, net.link("a", "b").lost) == (4, 2)


@in_virtual_time
async def test_sizes_and_rates() -> None:
    net = MemoryNetwork(conditions=Conditions(delay_s=0.0, mtu_bytes=100))
    (a, _), (b, inbox) = await started(net, "a", "b")
    a.send(b.address, bytes(101), 101)
    a.send(b.address, bytes(100), 100)
    await asyncio.sleep(1)
    assert [len(each) for each in inbox.data] == [100]
    net.link("a", "b").set(Conditions(delay_s=0.0, rate_bytes_s=1000, queue_bytes=500))
    for _ in range(10):
        a.send(b.address, bytes(100), 100)
    await asyncio.sleep(2)
    # Five find room; they leave 0.1 s apart.
    assert [at for at, _, _ in inbox.got[1:]] == [1.1, 1.2, 1.3, 1.4, 1.5]


@in_virtual_time
async def test_nobody_there_or_somebody_who_refuses() -> None:
    net = MemoryNetwork(conditions=Conditions(delay_s=0.1))
    ((a, inbox),) = await started(net, "a")
    nobody, closed = a.path_addresses(ID, CustomAddr(0x6D656D, b"nobody"))[0], None
    net.refuse("closed")
    closed = a.path_addresses(ID, CustomAddr(0x6D656D, b"closed"))[0]
    a.send(nobody, b"?", 1)
    a.send(closed, b"?", 1)
    await asyncio.sleep(1)
    assert inbox.unreachable == [(closed, "connection refused")]


@in_virtual_time
async def test_moving() -> None:
    net = MemoryNetwork(conditions=Conditions(delay_s=0.1))
    (a, at_a), (b, at_b) = await started(net, "a", "b")
    old = a.address
    b.send(old, b"late", 4)
    a.move_to("a2")
    assert at_a.changed == 0
    a.send(b.address, b"from there", 10)
    await asyncio.sleep(1)
    assert at_a.data == []
    assert at_b.got[0][1] == a.address != old
    a.move_to("a3", announce=True)
    assert at_a.changed == 1
    assert a.local_addrs() == [a.address]


@in_virtual_time
async def test_blocking_and_closing() -> None:
    net = MemoryNetwork()
    (a, inbox), (b, at_b) = await started(net, "a", "b")
    a.block()
    assert a.is_blocked
    a.unblock()
    assert not a.is_blocked
    assert inbox.writable == 1
    a.send(b.address, b"on its way", 10)
    await b.close()
    await b.close()
    b.send(a.address, b"x", 1)
    await asyncio.sleep(1)
    assert at_b.data == []


@in_virtual_time
async def test_addresses() -> None:
    net = MemoryNetwork()
    ip = IpAddr.parse("192.0.2.1:7")
    by_ip, by_name = net.transport(ip), net.transport("a")
    assert by_ip.owns(ip)
    assert not by_name.owns(ip)
    assert by_name.path_addresses(ID, by_name.address) == [by_name.address]
    assert by_name.path_addresses(ID, ip) == []
    assert by_name.path_addresses(ID, RelayAddr(RelayUrl("https://relay.example"))) == []
    assert not by_name.owns(CustomAddr(5, b"a"))
    await by_ip.start(Inbox())
    with pytest.raises(BindError, match="taken"):
        await net.transport(ip).start(Inbox())


@in_virtual_time
async def test_injected_datagrams() -> None:
    net = MemoryNetwork()
    ((a, inbox),) = await started(net, "a")
    a.inject("somebody", b"hello")
    assert inbox.data == [b"hello"]


@pytest.mark.parametrize("bad", [{"loss": 1.5}, {"duplicate": -0.1}, {"delay_s": -1}])
def test_conditions_that_cannot_be(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"probability|must be"):
        Conditions(**bad)


def test_a_channel_counts() -> None:
    channel = Channel(Conditions(loss=0.5), random.Random(1))
    arrived = sum(len(channel.arrivals(100, float(i))) for i in range(1000))
    assert (channel.sent, channel.sent_bytes) == (1000, 100_000)
    assert channel.lost == 1000 - arrived
    assert channel.lost_bytes == 100 * channel.lost
    assert 400 < arrived < 600
