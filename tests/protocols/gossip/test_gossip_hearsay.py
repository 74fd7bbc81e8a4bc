"""What members say of third parties: what it may make us dial, and who pays for it."""

from __future__ import annotations

import asyncio
import ipaddress

import pytest
from endpoints import network, virtual
from gossip_machines import Swarmer, peer
from gossip_swarm import TOPIC, Raw, Swarm, contents, joined, until

from dialkey.identity import EndpointAddr, EndpointId, IpAddr, RelayAddr, RelayUrl, SecretKey
from dialkey.limits import GOSSIP_DIAL_ALLOWANCE_BYTES, MAX_GOSSIP_DIAL_CREDIT_BYTES
from dialkey_gossip.address_book import AddressBook, BookLookup
from dialkey_gossip.dial_credit import ADDRESS_BYTES, DialCredit
from dialkey_gossip.framing import frame, frame_header
from dialkey_gossip.ids import PeerId
from dialkey_gossip.messages import (
    ForwardJoin,
    Join,
    Message,
    Neighbor,
    PeerInfo,
    Shuffle,
    ShuffleReply,
)
from dialkey_gossip.peer_data import encode_peer_data
from dialkey_gossip.relay_rules import RelayRules

HOME = RelayUrl("http://10.9.9.9:3340")


def key(n: int) -> EndpointId:
    return SecretKey((70_000 + n).to_bytes(32, "big")).id


def ip(text: str) -> IpAddr:
    return IpAddr.parse(text)


RULES = RelayRules(lambda: {HOME}, lambda: [ipaddress.ip_address("10.5.5.5")])


@pytest.mark.parametrize(
    "url",
    [
        "https://relay.example.org/",
        "https://198.41.0.4/",
        "https://[2001:500:9f::42]:8443/",
        "https://10.5.5.6/",
        str(HOME),
    ],
)
def test_relays_of_hearsay_that_are_dialled(url: str) -> None:
    assert RULES.may_name(RelayAddr(RelayUrl(url)))


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("198.41.0.4", True),
        ("2001:500:9f::42", True),
        ("10.5.5.200", True),
        ("10.1.2.3", False),
        ("127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a01:203", False),
        ("2002:a01:203::", False),
        ("224.0.0.1", False),
        ("::", False),
    ],
)
def test_where_the_names_of_relays_of_hearsay_may_lead(text: str, allowed: bool) -> None:
    """Names are resolved by the transport, which asks this of the address that it connects to."""
    assert RULES.may_reach(ipaddress.ip_address(text)) is allowed


@pytest.mark.parametrize(
    "url",
    [
        "http://relay.example.org/",
        "ws://relay.example.org/",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://0.0.0.0/",
        "https://10.1.2.3/",
        "https://192.168.1.1/",
        "https://172.16.0.1/",
        "https://100.64.0.1/",
        "https://169.254.169.254/",
        "https://224.0.0.1/",
        "https://255.255.255.255/",
        "https://[::1]/",
        "https://[::]/",
        "https://[fe80::1]/",
        "https://[fd00::1]/",
        "https://[ff02::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/",
        "https://localhost/",
        "https://localhost./",
        "https://a.localhost/",
        "https://printer/",
        "https://printer.local/",
    ],
)
def test_relays_of_hearsay_that_are_not_dialled(url: str) -> None:
    assert not RULES.may_name(RelayAddr(RelayUrl(url)))


def test_of_hearsay_a_few_addresses_that_differ_in_kind_are_tried() -> None:
    book = AddressBook()
    relays = [RelayAddr(RelayUrl(f"https://relay{n}.example.org/")) for n in range(3)]
    ips = [ip(f"10.0.0.{n}:1") for n in range(9)]
    ports = [ip(f"198.41.0.4:{n}") for n in range(9)]
    book.hear(EndpointAddr(key(1), [*relays, *ips, *ports]), 0.0, key(2))
    heard = book.heard(key(1), 0.0, RULES)
    assert len(heard) == 3
    assert sum(isinstance(each, RelayAddr) for each in heard) == 1
    assert sum(each in ports for each in heard) == 1
    book.failed(key(1))
    assert not book.heard(key(1), 0.0, RULES)
    assert book.source(key(1)) == key(2)


def test_what_a_peer_says_of_itself_comes_before_what_others_say() -> None:
    book = AddressBook()
    own, other = ip("10.0.0.1:1"), [ip(f"10.6.6.{n}:1") for n in range(16)]
    book.hear(EndpointAddr(key(1), [own]), 0.0, key(1))
    book.hear(EndpointAddr(key(1), other), 1.0, key(2))
    assert own in book.heard(key(1), 1.0, RULES)
    assert book.source(key(1)) == key(1)


async def test_the_lookup_gives_no_more_than_a_dial_would_try() -> None:
    book = AddressBook()
    bad = RelayAddr(RelayUrl("https://10.1.2.3/"))
    named = RelayAddr(RelayUrl("https://relay.example.org/"))
    book.hear(EndpointAddr(key(1), [bad, named, *(ip(f"10.0.0.{n}:1") for n in range(9))]), 1e12)
    answers = [each async for each in BookLookup(book, RULES).resolve(key(1))]
    found = [addr for each in answers for addr in each.info.addr.addrs]
    assert bad not in found
    assert named in found
    assert len(found) <= 3
    assert all(each.may_reach == RULES.may_reach for each in answers), (
        "where the name leads is open"
    )


async def test_what_the_application_said_is_not_hearsay() -> None:
    book = AddressBook()
    book.pin(EndpointAddr(key(1), [RelayAddr(RelayUrl("https://10.1.2.3/"))]))
    (answer,) = [each async for each in BookLookup(book, RULES).resolve(key(1))]
    assert answer.may_reach is None


def test_whoever_names_a_peer_pays_for_the_dial() -> None:
    """Also if the message says nothing of where it is: then a lookup may."""
    nodes = (PeerInfo(peer(21)), PeerInfo(peer(22), b"there"))
    told: list[tuple[Message, int]] = [
        (ForwardJoin(PeerInfo(peer(20), b"there"), 0), 20),
        (ForwardJoin(PeerInfo(peer(19)), 0), 19),
        (Shuffle(peer(23), nodes, 0), 23),
        (Shuffle(peer(23), nodes, 0), 21),
        (Neighbor(True, b"here"), 1),
        (Join(b"here"), 1),
    ]
    for message, named in told:
        swarm = Swarmer().with_neighbors(1)
        swarm.hear(peer(1), message)  # type: ignore[arg-type]
        assert swarm.sources[peer(named)] == peer(1), message
    swarm = Swarmer().with_neighbors(1)
    swarm.hear(peer(1), ShuffleReply(nodes))
    assert swarm.sources[peer(22)] == peer(1)


def test_credit() -> None:
    credit, one, other = DialCredit(), PeerId(bytes(32)), PeerId(bytes([1]) * 32)
    assert credit.take(one, 9) == GOSSIP_DIAL_ALLOWANCE_BYTES // ADDRESS_BYTES
    assert credit.take(one, 1) == 0
    assert credit.take(other, 1) == 1
    paid = 0
    for _ in range(1000):
        credit.earn(one, 100)
        paid += credit.take(one, 3) * ADDRESS_BYTES
    assert 0.5 < paid / 100_000 <= 6.1
    credit.give_back(one, 2)
    assert credit.take(one, 3) >= 2
    credit.earn(one, 1 << 30)
    assert credit.take(one, 1000) == MAX_GOSSIP_DIAL_CREDIT_BYTES // ADDRESS_BYTES
    for n in range(10_000):
        credit.earn(PeerId(n.to_bytes(32, "big")), 1)
    assert len(credit._credit) <= 4096


@virtual
async def test_third_parties_get_little_of_what_hearsay_brings() -> None:
    """172 bytes with 16 addresses once brought 200 KB onto one machine."""
    net = network()
    async with joined(2, net) as (swarm, (alice, bob)):
        attacker = await swarm.add()
        raw = await Raw.dial(attacker, swarm.members[0])
        stream = await raw.connection.open_uni()
        await stream.write(frame_header(TOPIC) + frame(Join()))
        await until(lambda: len(alice.neighbors()) == 2)
        victims = [[ip(f"203.0.113.{host}:{port}") for port in range(1, 5)] for host in range(1, 5)]
        everywhere = [each for ports in victims for each in ports]
        frames = 0
        for n in range(40):
            data = encode_peer_data(EndpointAddr(key(n), everywhere))
            about = PeerInfo(PeerId(bytes(key(n))), data)
            message: Message = ForwardJoin(about, 0)
            if n % 2:
                message = Shuffle(about.id, (about,), 0)
            await stream.write(frame(message))
            frames += len(frame(message))
            await asyncio.sleep(0.25)
        await asyncio.sleep(30)
        here = swarm.members[0].transport.address
        sent = [net.one_way(here, each).sent_bytes for each in everywhere]
        assert 0 < sum(sent) <= 10 * frames
        # Honest hearsay still works: a third member is met through the first.
        carol = await (await swarm.add()).gossip.join(TOPIC, [swarm.members[0].endpoint.addr()])
        await until(lambda: swarm.members[1].endpoint.id in carol.neighbors())
        await bob.broadcast(b"undisturbed")
        assert await contents(carol, 1) == [b"undisturbed"]
        raw.connection.close()


@virtual
async def test_a_swarm_of_many_finds_itself_by_hearsay() -> None:
    """Dials that reach whom they are for are paid back, so growing does not wait for credit."""
    async with Swarm(network()) as swarm:
        topics = []
        for _ in range(12):
            member = await swarm.add()
            first = swarm.members[0].endpoint.addr()
            topics.append(await member.gossip.join(TOPIC, [first] if topics else []))
        await asyncio.sleep(10)
        assert min(len(topic.neighbors()) for topic in topics) >= 3
        stats = [member.gossip.stats().links for member in swarm.members]
        assert sum(each.failed_dials for each in stats) <= 2
