"""Topic ids, tickets, configuration, the address book and the inbox."""

from __future__ import annotations

import pytest
from blake3 import blake3

from dialkey.errors import InvalidInput, InvalidTicket
from dialkey.identity import EndpointAddr, EndpointId, IpAddr, SecretKey
from dialkey_gossip import (
    BroadcastConfig,
    GossipConfig,
    MembershipConfig,
    TopicId,
    TopicTicket,
)
from dialkey_gossip.address_book import MAX_PEERS, RETENTION_S, AddressBook
from dialkey_gossip.relay_rules import RelayRules
from dialkey_gossip.topic import parse_topic


def peer(n: int) -> EndpointId:
    return SecretKey(n.to_bytes(32, "big")).id


def addr(n: int, *texts: str) -> EndpointAddr:
    return EndpointAddr(peer(n), [IpAddr.parse(text) for text in texts])


TOPIC = TopicId.from_name("lobby")
RULES = RelayRules(tuple, tuple)


def test_topic_ids() -> None:
    assert bytes(TOPIC) == blake3(b"lobby").digest()
    assert TopicId.parse(str(TOPIC)) == TOPIC == TopicId(bytearray(bytes(TOPIC)))
    assert len(str(TOPIC)) == 64
    assert str(TOPIC) == str(TOPIC).lower()
    assert TOPIC.short() == str(TOPIC)[:10]
    assert len({TOPIC, TopicId(bytes(TOPIC)), TopicId(bytes(32))}) == 2


@pytest.mark.parametrize("bad", ["", "lobby", "AB" * 32, "a" * 63])
def test_texts_that_are_not_topic_ids(bad: str) -> None:
    with pytest.raises(InvalidInput, match="64 lower-case hex"):
        TopicId.parse(bad)


def test_topic_ids_have_32_bytes() -> None:
    with pytest.raises(InvalidInput, match="32 bytes, not 5"):
        TopicId(b"lobby")
    with pytest.raises(TypeError):
        TopicId("lobby")  # type: ignore[arg-type]


def test_tickets_round_trip() -> None:
    ticket = TopicTicket(TOPIC, [addr(2, "192.0.2.1:1"), addr(1), addr(3, "[2001:db8::1]:9")])
    text = str(ticket)
    assert text.startswith("topic")
    assert TopicTicket.parse(f" {text}\n") == ticket
    assert [each.id for each in ticket.peers] == [peer(2), peer(1), peer(3)]
    assert TopicTicket.parse(str(TopicTicket(TOPIC))).peers == ()


def test_a_ticket_vector() -> None:
    # Our own format; this fixes it.
    ticket = TopicTicket(TopicId(bytes(32)), [addr(1, "192.0.2.1:4433")])
    expected = "00" + "00" * 32 + "01" + str(peer(1)) + "01" + "01" + "00c0000201d122"
    assert ticket.to_bytes().hex() == expected


def test_tickets_merge_the_addresses_of_a_peer() -> None:
    ticket = TopicTicket(TOPIC, [addr(1, "192.0.2.1:1"), addr(2), addr(1, "192.0.2.2:2")])
    assert ticket.peers == (addr(1, "192.0.2.1:1", "192.0.2.2:2"), addr(2))


def test_tickets_that_cannot_be_read() -> None:
    good = TopicTicket(TOPIC, [addr(1)])
    for bad in ("", "topic", str(good)[:-2], "endpoint" + str(good)[5:], str(good) + "aaaaaaaa"):
        with pytest.raises(InvalidTicket):
            TopicTicket.parse(bad)
    for payload in (b"\x01" + good.to_bytes()[1:], good.to_bytes()[:-1], good.to_bytes() + b"x"):
        with pytest.raises(InvalidTicket):
            TopicTicket.from_bytes(payload)
    with pytest.raises(InvalidTicket, match="at most 16 peers"):
        TopicTicket(TOPIC, [addr(n) for n in range(17)])


def test_what_names_a_topic() -> None:
    ticket = TopicTicket(TOPIC, [addr(1)])
    assert parse_topic(TOPIC) == parse_topic(bytes(TOPIC)) == parse_topic(str(TOPIC)) == (TOPIC, ())
    assert parse_topic(ticket) == parse_topic(str(ticket)) == (TOPIC, ticket.peers)
    for bad in ("lobby", b"lobby", 7):
        with pytest.raises(InvalidInput):
            parse_topic(bad)  # type: ignore[arg-type]


def test_configurations_that_cannot_work() -> None:
    with pytest.raises(InvalidInput, match="at least 512"):
        GossipConfig(max_message_bytes=511)
    with pytest.raises(InvalidInput):
        MembershipConfig(active_capacity=0)
    with pytest.raises(InvalidInput):
        BroadcastConfig(eager_limit=0)
    with pytest.raises(InvalidInput):
        BroadcastConfig(concurrency_s=0)
    assert GossipConfig().max_content_bytes == 4057


def test_hearsay_fades_and_pinned_addresses_stay() -> None:
    book = AddressBook()
    book.pin(addr(1, "192.0.2.1:1"))
    book.hear(addr(1, "192.0.2.2:2"), 0.0)
    book.hear(addr(2, "192.0.2.3:3"), 10.0)
    book.hear(addr(1, "192.0.2.4:4"), 200.0)
    assert book.get(peer(1), 200.0, RULES) == addr(1, "192.0.2.1:1", "192.0.2.2:2", "192.0.2.4:4")
    assert book.get(peer(2), 9.0 + RETENTION_S, RULES) == addr(2, "192.0.2.3:3")
    assert book.get(peer(2), 11.0 + RETENTION_S, RULES) == addr(2)
    assert book.get(peer(1), 501.0, RULES) == addr(1, "192.0.2.1:1")


def test_hearsay_is_bounded() -> None:
    book = AddressBook()
    for n in range(100):
        book.hear(addr(1, f"192.0.2.{n}:1"), float(n))
    assert len(book.get(peer(1), 99.0, RULES).addrs) == 3
    assert IpAddr.parse("192.0.2.99:1") in book.get(peer(1), 99.0, RULES).addrs
    for n in range(MAX_PEERS + 5):
        book.hear(EndpointAddr(peer(n), [IpAddr.parse("192.0.2.1:1")]), 100.0)
    assert not book.get(peer(0), 100.0, RULES).addrs
    assert book.get(peer(MAX_PEERS + 4), 100.0, RULES).addrs


def test_generated_topics_differ() -> None:
    assert len({TopicId.generate() for _ in range(100)}) == 100
