"""The UDP transport on loopback: batches, errors of the network, offloads and their absence."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import sys
from collections.abc import AsyncIterator

import pytest

from dialkey.errors import BindError
from dialkey.identity import CustomAddr, IpAddr, SecretKey
from dialkey.network import PathAddress
from dialkey.network.udp import UdpTransport

ID = SecretKey(bytes(range(32))).id
LOOPBACK = IpAddr.parse("127.0.0.1:0")


class Inbox:
    """What a transport told its endpoint."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.remotes: list[PathAddress] = []
        self.batches: list[int] = []
        self.unreachable: list[tuple[PathAddress, str]] = []
        self.too_large: list[tuple[PathAddress, int]] = []
        self.news = asyncio.Event()

    def on_datagrams(self, data: memoryview, segment_bytes: int, remote: PathAddress) -> None:
        self.batches.append(len(data))
        for at in range(0, len(data), segment_bytes):
            self.data.append(bytes(data[at : at + segment_bytes]))
            self.remotes.append(remote)

    def on_batch_end(self) -> None:
        self.news.set()

    def on_unreachable(self, remote: PathAddress, reason: str) -> None:
        self.unreachable.append((remote, reason))
        self.news.set()

    def on_too_large(self, remote: PathAddress, max_datagram_bytes: int) -> None:
        self.too_large.append((remote, max_datagram_bytes))
        self.news.set()

    def on_writable(self) -> None:
        self.news.set()

    def on_candidates_changed(self) -> None:
        raise AssertionError

    def on_addresses_changed(self) -> None:
        raise AssertionError

    async def until(self, count: int) -> None:
        """Wait until so many datagrams have arrived."""
        async with asyncio.timeout(10):
            while len(self.data) < count:
                self.news.clear()
                await self.news.wait()


@contextlib.asynccontextmanager
async def transport(*bind: IpAddr) -> AsyncIterator[tuple[UdpTransport, Inbox]]:
    udp, inbox = UdpTransport(bind or (LOOPBACK,)), Inbox()
    await udp.start(inbox)
    try:
        yield udp, inbox
    finally:
        await udp.close()


def closed_port() -> IpAddr:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return IpAddr(ipaddress.IPv4Address("127.0.0.1"), sock.getsockname()[1])


@pytest.mark.parametrize("gso", [True, False])
@pytest.mark.parametrize("gro", [True, False])
async def test_datagrams_keep_their_borders(gso: bool, gro: bool) -> None:
    async with transport() as (a, _), transport() as (b, inbox):
        for each in (*a._sockets, *b._sockets):
            each.gso = each.gso and gso
        if not gro:
            for each in b._sockets:
                if each.gro:
                    each.sock.setsockopt(17, 104, 0)
                each.gro = False
        sent = [bytes([i]) * 1200 for i in range(40)] + [b"short"]
        a.send(b.bound[0], b"".join(sent), 1200)
        a.send(b.bound[0], memoryview(b"alone"), 5)
        a.send(b.bound[0], b"longer than the last", 20)
        await inbox.until(43)
        assert inbox.data == [*sent, b"alone", b"longer than the last"]
        assert set(inbox.remotes) == set(a.bound)


async def test_one_object_for_one_address() -> None:
    async with transport() as (a, _), transport() as (b, inbox):
        for _ in range(3):
            a.send(b.bound[0], b"x", 1)
        await inbox.until(3)
        assert inbox.remotes[0] is inbox.remotes[2]


async def test_a_refusal_names_its_address() -> None:
    async with transport() as (a, inbox):
        dead = closed_port()
        a.send(dead, b"x", 1)
        async with asyncio.timeout(5):
            await inbox.news.wait()
        assert inbox.unreachable == [(dead, "connection refused")]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_refusal_elsewhere_costs_no_datagram(count: int) -> None:
    """The kernel reports it on the next call, whatever that call is for, and drops what it sends."""
    async with transport() as (a, told), transport() as (b, inbox):
        dead = [closed_port() for _ in range(count)]
        for i in range(50):
            for each in dead:
                a.send(each, b"x", 1)
            a.send(b.bound[0], b"%02d" % i, 2)
            a.send(b.bound[0], bytes(2400), 1200)
        await inbox.until(150)
        assert [each for each in inbox.data if len(each) == 2] == [b"%02d" % i for i in range(50)]
        assert {remote for remote, _ in told.unreachable} == set(dead)


async def test_what_is_too_large_is_told() -> None:
    async with transport() as (a, inbox), transport() as (b, _):
        a.send(b.bound[0], bytes(65_530), 65_530)
        remote, most = inbox.too_large[-1]
        assert remote == b.bound[0]
        assert most < 65_530


async def test_an_unreachable_network_is_told() -> None:
    async with transport() as (a, inbox):
        # A socket bound to loopback gets nowhere else.
        elsewhere = IpAddr.parse("192.0.2.1:9")
        a.send(elsewhere, b"x", 1)
        assert [remote for remote, _ in inbox.unreachable] == [elsewhere]


async def test_families() -> None:
    async with transport() as (a, _):
        assert a.path_addresses(ID, IpAddr.parse("[::1]:5")) == []
        assert a.path_addresses(ID, CustomAddr(1, b"x")) == []
        assert a.path_addresses(ID, a.bound[0]) == [a.bound[0]]
        assert a.owns(a.bound[0])
        assert not a.owns("something else")
        a.send(IpAddr.parse("[::1]:5"), b"x", 1)


async def test_what_cannot_be_bound() -> None:
    async with transport() as (a, _):
        with pytest.raises(BindError, match="another program uses this port"):
            await UdpTransport(a.bound).start(Inbox())
    with pytest.raises(BindError, match="this machine does not have the address"):
        await UdpTransport([IpAddr.parse("192.0.2.1:0")]).start(Inbox())
    # The first socket is closed again when the second cannot be opened.
    udp = UdpTransport([LOOPBACK, IpAddr.parse("192.0.2.1:0")])
    with pytest.raises(BindError):
        await udp.start(Inbox())
    assert udp.bound == []


async def test_all_addresses_by_default() -> None:
    async with transport(IpAddr.parse("0.0.0.0:0")) as (a, _):
        local = a.local_addrs()
        assert local
        for addr in local:
            assert isinstance(addr, IpAddr)
            assert addr.port == a.bound[0].port
            assert not addr.ip.is_unspecified
        a.network_changed()
        assert a.local_addrs() == local


async def test_a_full_socket_buffer_blocks_and_goes_on() -> None:
    """What a socket does not take waits, in order, and `on_writable` tells when it is gone."""
    async with transport() as (a, told), transport() as (b, inbox):
        (sock,) = a._sockets

        class Full:
            """Takes nothing for a while."""

            def __init__(self, real: socket.socket) -> None:
                self.real = real
                self.full = True

            def __getattr__(self, name: str) -> object:
                return getattr(self.real, name)

            def sendto(self, *args: object) -> int:
                if self.full:
                    raise BlockingIOError
                return self.real.sendto(*args)  # type: ignore[call-overload,no-any-return]

            def sendmsg(self, *args: object) -> int:
                if self.full:
                    raise BlockingIOError
                return self.real.sendmsg(*args)  # type: ignore[arg-type]

        full = Full(sock.sock)
        sock.sock = full  # type: ignore[assignment]
        a.send(b.bound[0], b"first", 5)
        a.send(b.bound[0], bytes(2400), 1200)
        a.send(b.bound[0], b"last", 4)
        assert a.is_blocked
        full.full = False
        await inbox.until(4)
        assert [len(each) for each in inbox.data] == [5, 1200, 1200, 4]
        assert not a.is_blocked
        assert told.news.is_set()


async def test_closing_twice_and_sending_after() -> None:
    async with transport() as (a, _):
        target = a.bound[0]
        await a.close()
        await a.close()
        a.send(target, b"x", 1)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell where data arrived")
async def test_answers_leave_from_the_address_that_was_dialled() -> None:
    async with transport(IpAddr.parse("0.0.0.0:0")) as (udp, inbox):
        port = udp.bound[0].port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            peer.settimeout(10)
            for count, dialled in enumerate(["127.0.0.2", "127.0.0.3", "127.0.0.1"], 1):
                peer.sendto(b"hello", (dialled, port))
                await inbox.until(count)
                for data in (b"x", b"y" * 3000):
                    udp.send(inbox.remotes[-1], data, 1000)
                    for at in range(0, len(data), 1000):
                        assert peer.recvfrom(2000) == (data[at : at + 1000], (dialled, port))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell where data arrived")
async def test_to_whom_we_spoke_first_the_kernel_chooses() -> None:
    async with transport(IpAddr.parse("0.0.0.0:0")) as (udp, inbox):
        port = udp.bound[0].port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            peer.settimeout(10)
            remote = IpAddr.parse("{}:{}".format(*peer.getsockname()))
            udp.send(remote, b"first", 1000)
            assert peer.recvfrom(100) == (b"first", ("127.0.0.1", port))
            peer.sendto(b"hello", ("127.0.0.2", port))
            await inbox.until(1)
            udp.send(remote, b"again", 1000)
            assert peer.recvfrom(100) == (b"again", ("127.0.0.1", port))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell where data arrived")
async def test_an_address_that_is_gone_gives_way_to_the_kernels_choice() -> None:
    async with transport(IpAddr.parse("0.0.0.0:0")) as (udp, _):
        port = udp.bound[0].port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            peer.settimeout(10)
            remote = IpAddr.parse("{}:{}".format(*peer.getsockname()))
            udp.heard_at(remote, socket.inet_aton("203.0.113.7"))
            data = b"z" * 3000
            udp.send(remote, data, 1000)
            for at in range(0, len(data), 1000):
                assert peer.recvfrom(2000) == (data[at : at + 1000], ("127.0.0.1", port))
            udp.send(remote, b"again", 1000)
            assert peer.recvfrom(100) == (b"again", ("127.0.0.1", port))
