"""The bytes of mDNS messages: as iroh writes them, and whatever else arrives."""

from __future__ import annotations

import random
import time

import dns.flags
import dns.message
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey import EndpointAddr, EndpointInfo, SecretKey
from dialkey.identity import CustomAddr, IpAddr, RelayAddr, RelayUrl
from dialkey_mdns import InvalidMessage, limits, messages

KEY = SecretKey(b"\1" * 32).id
LABEL = "rkeohxlubhyzl7ks3mwtzos5olfgocn7dwkbeg7toseadnapn5oa"
ADDRS = [IpAddr.parse(each) for each in ("10.0.0.1:5", "[fd00::1]:5", "10.0.0.1:77")]
RELAY = RelayAddr(RelayUrl("https://relay.example"))
INFO = EndpointInfo(EndpointAddr(KEY, [*ADDRS, RELAY]), "hello")


def response(info: EndpointInfo = INFO) -> bytes:
    data = messages.response(info)
    assert data is not None
    return data


def zone(text: str, flags: str = "QR AA") -> bytes:
    """Return what dnspython makes of a message as text."""
    return dns.message.from_text(f"id 0\nopcode QUERY\nflags {flags}\n{text}").to_wire()


def test_the_question_is_irohs_byte_for_byte() -> None:
    assert messages.query().hex() == (
        "000000000001000000000000075f69726f687631045f756470056c6f63616c00000c0001"
    )


def test_a_question_for_one_endpoint_begins_with_irohs() -> None:
    read = dns.message.from_wire(messages.query(KEY))
    assert [each.to_text() for each in read.question] == [
        "_irohv1._udp.local. IN PTR",
        f"{LABEL}._irohv1._udp.local. IN SRV",
    ]


def test_a_response_has_the_records_of_iroh_in_their_order() -> None:
    read = dns.message.from_wire(response())
    assert (read.id, read.flags) == (0, dns.flags.QR | dns.flags.AA)
    instance = f"{LABEL}._irohv1._udp.local."
    assert [each.to_text() for each in read.answer] == [
        f"_irohv1._udp.local. 120 IN PTR {instance}",
        f"{instance} 120 IN SRV 0 0 5 {LABEL}-5.local.\n{instance} 120 IN SRV 0 0 77 {LABEL}-77.local.",
        f'{instance} 120 IN TXT "relay=https://relay.example/" "user-data=hello"',
    ]
    assert [each.to_text() for each in read.additional] == [
        f"{LABEL}-5.local. 120 IN A 10.0.0.1",
        f"{LABEL}-5.local. 120 IN AAAA fd00::1",
        f"{LABEL}-77.local. 120 IN A 10.0.0.1",
    ]


def test_what_is_written_is_read() -> None:
    (claim,) = messages.read(response()).claims
    assert claim == messages.Claim(INFO)
    bare = EndpointInfo(EndpointAddr(KEY, ADDRS))
    assert messages.read(response(bare)).claims[0].info == bare
    assert messages.read(messages.goodbye(KEY)).claims == (
        messages.Claim(EndpointInfo(EndpointAddr(KEY)), said_goodbye=True),
    )


def test_without_an_ip_address_there_is_nothing_to_say() -> None:
    assert messages.response(EndpointInfo(EndpointAddr(KEY, [RELAY]), "x")) is None
    custom = CustomAddr(1, b"x")
    assert messages.read(response(EndpointInfo(EndpointAddr(KEY, [custom, ADDRS[0]])))).claims[
        0
    ].info.addr.addrs == (ADDRS[0],)


def test_it_fits_into_a_packet_whatever_there_is_to_say() -> None:
    addrs = [IpAddr.parse(f"[fd00:{n:x}::1]:{1000 + n}") for n in range(40)]
    info = EndpointInfo(EndpointAddr(KEY, addrs), "x" * 245)
    data = response(info)
    assert len(data) <= 1400
    (claim,) = messages.read(data).claims
    assert len(claim.info.addr.addrs) >= 8
    long = RelayAddr(RelayUrl("https://relay.example/" + "x" * 300))
    (claim,) = messages.read(response(EndpointInfo(EndpointAddr(KEY, [long, *ADDRS])))).claims
    assert not claim.info.addr.relay_urls


def test_the_older_form_of_iroh_and_that_of_avahi() -> None:
    """Without a pointer and without lifetimes; with the bit for unique records, addresses as answers."""
    instance = f"{LABEL.upper()}._irohv1._udp.local."
    old = zone(
        f";ANSWER\n{instance} 0 IN SRV 0 0 5 host.local.\n"
        f";ADDITIONAL\nhost.local. 0 IN A 10.0.0.1\nother.local. 0 IN A 10.0.0.9\n"
    )
    (claim,) = messages.read(old).claims
    assert claim == messages.Claim(EndpointInfo(EndpointAddr(KEY, [ADDRS[0]])))
    flush = bytearray(response())
    for at in range(len(flush) - 3):
        # The class follows the type of each record that only one host has.
        if flush[at : at + 4] in (b"\0\x21\0\1", b"\0\x10\0\1", b"\0\1\0\1", b"\0\x1c\0\1"):
            flush[at + 2] = 0x80
    assert bytes(flush) != response()
    assert messages.read(bytes(flush)).claims == (messages.Claim(INFO),)


@pytest.mark.parametrize(
    "text",
    [
        "x._irohv1._udp.local. 120 IN SRV 0 0 5 h.local.",
        f"{LABEL}._other._udp.local. 120 IN SRV 0 0 5 h.local.",
        f"{LABEL}._irohv1._udp.example. 120 IN SRV 0 0 5 h.local.",
        f"x.{LABEL}._irohv1._udp.local. 120 IN SRV 0 0 5 h.local.",
        f"{LABEL}._irohv1._udp.local. 120 IN SRV 0 0 5 a.h.local.",
        f"{LABEL}._irohv1._udp.local. 120 IN SRV 0 0 5 h.example.",
        f"{LABEL}._irohv1._udp.local. 120 IN SRV 0 0 0 h.local.",
        f"{LABEL}._irohv1._udp.local. 120 CH SRV 0 0 5 h.local.",
        f"{LABEL}._irohv1._udp.local. 120 IN SRV 0 0 5 mc.local.",
        f"{LABEL}._irohv1._udp.local. 120 IN SRV 0 0 5 none.local.",
        f"ai{'a' * 50}._irohv1._udp.local. 120 IN SRV 0 0 5 h.local.",
    ],
)
def test_wrong_names_say_nothing(text: str) -> None:
    hosts = (
        "h.local. 120 IN A 10.0.0.1\na.h.local. 120 IN A 10.0.0.1\nh.example. 120 IN A 10.0.0.1\n"
    )
    hosts += "mc.local. 120 IN A 224.0.0.1\nnone.local. 120 IN A 0.0.0.0\n"
    if "CH SRV" in text:
        data = bytearray(zone(f";ANSWER\n{text.replace(' CH ', ' IN ')}\n;ADDITIONAL\n{hosts}"))
        data[data.index(b"\0\x21\0\1") + 3] = 3
        assert messages.read(bytes(data)).claims == ()
        return
    assert messages.read(zone(f";ANSWER\n{text}\n;ADDITIONAL\n{hosts}")).claims == ()


def test_attributes_that_are_not_understood_are_left_out() -> None:
    instance = f"{LABEL}._irohv1._udp.local."
    data = zone(
        f";ANSWER\n{instance} 9 IN SRV 0 0 5 h.local.\n"
        f'{instance} 9 IN TXT "" "relay=nonsense" "relay=https://second.example" "RELAY=x" '
        f'"user-data=\\255" "\\255=x"\n'
        f";ADDITIONAL\nh.local. 9 IN A 10.0.0.1\n"
    )
    (claim,) = messages.read(data).claims
    assert claim.info == EndpointInfo(EndpointAddr(KEY, [ADDRS[0]]))


def test_other_opcodes_and_errors_are_ignored() -> None:
    for at, value in ((2, 0xA0), (3, 0x03)):
        data = bytearray(response())
        data[at] = value
        assert messages.read(bytes(data)).claims == ()


def loop(target: int) -> bytes:
    return bytes.fromhex("000000000001000000000000") + bytes([0xC0, target]) + b"\0\x0c\0\1"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 11,
        loop(12),
        loop(14),
        loop(200),
        bytes.fromhex("000000000001000000000000") + b"\x41" + b"a" * 70,
        bytes.fromhex("000000000001000000000000") + b"\x3f" + b"a" * 10,
        bytes.fromhex("00008400ffff000000000000"),
        bytes.fromhex("00008400000000000000ffff"),
        b"\0" * 9001,
        messages.goodbye(KEY)[:-1],
        # An address of five bytes.
        bytes.fromhex("000084000000000100000000") + b"\0\0\1\0\1\0\0\0\0\0\5abcde",
    ],
)
def test_what_is_not_a_message_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidMessage):
        messages.read(data)


def test_names_that_unfold_take_linear_time() -> None:
    """Pointers to pointers, 63 labels each; every record repeats them."""
    chain = b"".join(
        (b"\x01a" * 60 + (b"\0" if not n else b"\xc0" + bytes([12 + (n - 1) * 122 & 0xFF])))
        for n in range(2)
    )
    body = chain + b"".join(b"\xc0\x0c\0\x0c\0\1\0\0\0\0\0\2\xc0\x0c" for _ in range(250))
    data = bytes.fromhex("000084000000") + b"\0\xfa\0\0\0\0" + body
    began = time.process_time()
    for _ in range(10):
        try:
            messages.read(data)
        except InvalidMessage:
            pass
    assert time.process_time() - began < 2


def test_a_message_full_of_keys_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """To check a key takes longer than to read all the rest."""
    checked = []
    monkeypatch.setattr(messages, "_parse_id", lambda label: checked.append(label))
    head = bytes.fromhex("000084000000") + b"\0\x50\0\0\0\0"
    records = b"".join(
        b"\xc0\x0c\0\x0c\0\1\0\0\0\0" + b"\0\x37" + b"\x34" + f"{n:052}".encode() + b"\xc0\x0c"
        for n in range(79)
    )
    first = messages.goodbye(KEY)[12:]
    assert messages.read(head + first + records).claims == ()
    assert len(checked) == limits.MAX_ENDPOINTS


@given(st.binary(max_size=600))
def test_whatever_arrives_is_read_or_refused(data: bytes) -> None:
    try:
        messages.read(data)
    except InvalidMessage:
        pass


@given(st.integers(0, 2**32), st.integers(1, 8))
def test_a_message_with_some_bytes_changed_is_read_or_refused(seed: int, count: int) -> None:
    chance = random.Random(seed)
    data = bytearray(response())
    for _ in range(count):
        data[chance.randrange(len(data))] = chance.randrange(256)
    try:
        found = messages.read(bytes(data[: chance.randrange(len(data) + 1)]))
    except InvalidMessage:
        return
    for claim in found.claims:
        assert len(claim.info.addr.addrs) <= 33
