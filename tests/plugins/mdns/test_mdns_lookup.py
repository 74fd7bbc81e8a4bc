"""The lookup on real sockets: on the loopback interface, and on a port of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from dialkey import Endpoint, EndpointAddr, EndpointInfo, SecretKey, hookimpl
from dialkey.errors import ResolveError
from dialkey.identity import EndpointId, IpAddr
from dialkey.network import is_public
from dialkey_mdns import MdnsLookup, NoMulticast
from dialkey_mdns.machine import Link
from dialkey_mdns.sockets import LinkSocket, links_here

ALPN = "mdns-test/1"


def key(number: int) -> EndpointId:
    return SecretKey(number.to_bytes(32, "big")).id


def info(number: int, text: str = "127.0.0.1:9") -> EndpointInfo:
    return EndpointInfo(EndpointAddr(key(number), [IpAddr.parse(text)]))


def loopback(family: int = 4) -> Link:
    own, network = ("127.0.0.1", "127.0.0.0/8") if family == 4 else ("::1", "::1/128")
    networks = (ipaddress.ip_network(network),)
    return Link("lo", socket.if_nametoindex("lo"), family, networks, True, own)


@pytest.fixture
def port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        number: int = sock.getsockname()[1]
    try:
        LinkSocket(loopback(), number).close()
    except OSError as error:
        pytest.skip(f"no multicast on the loopback interface: {error}")
    return number


@contextlib.asynccontextmanager
async def lookup(
    number: int,
    port: int,
    links: Callable[[], list[Link]] = lambda: [loopback()],
    **options: bool,
) -> AsyncIterator[MdnsLookup]:
    made = MdnsLookup(
        key(number),
        list_links=links,
        open_link=lambda link: LinkSocket(link, port),
        **options,  # type: ignore[arg-type]
    )
    try:
        yield made
    finally:
        await made.close()
        await made.close()


async def found(one: MdnsLookup, number: int) -> list[EndpointInfo]:
    return [answer.info async for answer in one.resolve(key(number))]


async def test_found_followed_and_gone(port: int) -> None:
    async with asyncio.timeout(30), lookup(1, port) as here, lookup(2, port) as there:
        await there.publish(info(2))
        (answer,) = [each async for each in here.resolve(key(2))]
        assert answer.info == info(2)
        assert answer.source == "mdns, 127.0.0.1"
        assert answer.updated_at is not None
        # A relay that somebody here has named leads to no address of this network.
        assert answer.may_reach is is_public
        async with contextlib.aclosing(here.watch(key(2))) as changes:
            assert (await anext(changes)).info == info(2)
            await there.publish(info(2, "127.0.0.1:10"))
            assert (await anext(changes)).info == info(2, "127.0.0.1:10")
            assert await found(here, 3) == []
            await there.close()
            async with lookup(2, port) as again:
                while await found(here, 2):
                    pass
                await again.publish(info(2, "127.0.0.1:10"))
                assert (await anext(changes)).info == info(2, "127.0.0.1:10"), "gone, and back"


async def test_a_network_that_comes_later_is_used(port: int) -> None:
    links: list[Link] = []
    async with (
        asyncio.timeout(30),
        lookup(1, port, lambda: links) as here,
        lookup(2, port) as there,
    ):
        await there.publish(info(2))
        with pytest.raises(NoMulticast, match="no network interface is up"):
            await found(here, 2)
        assert here.publish_trouble == "no network interface is up"
        links.append(loopback())
        assert await found(here, 2) == [info(2)]
        assert here.publish_trouble == ""


async def test_without_multicast_it_says_so_at_once(port: int) -> None:
    def refuse(link: Link) -> LinkSocket:
        raise OSError(19, "No such device")

    lookup = MdnsLookup(key(1), list_links=lambda: [loopback()], open_link=refuse)
    try:
        with pytest.raises(NoMulticast, match=r"carries multicast \(lo: No such device\)"):
            await found(lookup, 2)
        assert not lookup.is_published
    finally:
        await lookup.close()


async def test_two_endpoints_find_each_other_by_id(port: int) -> None:
    class Lan:
        @hookimpl
        def dialkey_address_lookups(self, endpoint: Endpoint) -> MdnsLookup:
            return MdnsLookup(
                endpoint.id,
                list_links=lambda: [loopback()],
                open_link=lambda link: LinkSocket(link, port),
            )

    def bind(**options: object) -> object:
        return Endpoint.bind(
            entry_points=False,
            plugins=[Lan()],
            bind="127.0.0.1:0",
            **options,  # type: ignore[arg-type]
        )

    async with asyncio.timeout(30), bind(alpns=[ALPN]) as bob, bind() as alice:  # type: ignore[attr-defined]
        connection = await alice.connect(bob.id, ALPN)
        assert connection.remote_id == bob.id
        with pytest.raises(ResolveError, match="mdns: does not know it"):
            await alice.connect(key(3), ALPN)
        connection.close()


def test_the_links_of_this_machine() -> None:
    for link in links_here():
        assert link.index == socket.if_nametoindex(link.name)
        assert link.networks
        assert {each.version for each in link.networks} == {link.family}
    assert links_here() == links_here()
