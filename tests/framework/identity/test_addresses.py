from __future__ import annotations

import ipaddress
import itertools
import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey import limits
from dialkey.errors import InvalidAddress, WireError
from dialkey.identity import (
    CustomAddr,
    EndpointAddr,
    IpAddr,
    RelayAddr,
    RelayUrl,
    SecretKey,
    read_socket_addr,
    read_transport_addr,
    write_socket_addr,
    write_transport_addr,
)
from dialkey.identity.postcard import Reader, Writer

ID = SecretKey(bytes(32)).id

IPV4 = st.ip_addresses(v=4)
IPV6 = st.ip_addresses(v=6).map(lambda ip: ipaddress.IPv6Address(int(ip)))
PORTS = st.integers(0, 65535)
SCOPED = st.builds(IpAddr, IPV6, PORTS, st.integers(0, 2**32 - 1))
IP_ADDRS = st.builds(IpAddr, IPV4 | IPV6, PORTS)
RELAY_ADDRS = st.builds(
    lambda label, port: RelayAddr(RelayUrl(f"https://{label}.example:{port}/x")),
    st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True),
    PORTS,
)
CUSTOM_ADDRS = st.builds(CustomAddr, st.integers(0, 2**64 - 1), st.binary(max_size=40))
TRANSPORT_ADDRS = RELAY_ADDRS | IP_ADDRS | CUSTOM_ADDRS


def encoded(addr):
    writer = Writer()
    write_transport_addr(writer, addr)
    return bytes(writer)


# --- socket addresses: text, wire document 2.2 ----------------------------------------------------


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("127.0.0.1:1234", None),
        ("0.0.0.0:0", None),
        ("255.255.255.255:65535", None),
        ("1.2.3.4:00080", "1.2.3.4:80"),
        ("[::1]:443", None),
        ("[::]:0", None),
        ("[2001:DB8:0:0:0:0:0:1]:443", "[2001:db8::1]:443"),
        ("[2001:db8::7]:04433", "[2001:db8::7]:4433"),
        ("[1:0:0:2:0:0:0:3]:1", "[1:0:0:2::3]:1"),
        ("[1:0:0:2:0:0:3:4]:1", "[1::2:0:0:3:4]:1"),
        ("[1:0:2:0:3:0:4:0]:1", None),
        ("[::ffff:1.2.3.4]:5", None),
        ("[::ffff:102:304]:5", "[::ffff:1.2.3.4]:5"),
        ("[::1.2.3.4]:5", "[::102:304]:5"),
        ("[64:ff9b::1.2.3.4]:5", "[64:ff9b::102:304]:5"),
        ("[fe80::1%3]:443", None),
        ("[fe80::1%003]:443", "[fe80::1%3]:443"),
        ("[fe80::1%0]:443", "[fe80::1]:443"),
        ("[fe80::1%4294967295]:443", None),
        ("[::ffff:1.2.3.4%7]:5", None),
    ],
)
def test_socket_address_text(text, printed):
    addr = IpAddr.parse(text)
    assert str(addr) == (printed or text)
    assert IpAddr.parse(str(addr)) == addr
    assert addr.labelled() == f"ip:{addr}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1.2.3.4",
        "1.2.3.4:",
        ":80",
        "1.2.3.4:65536",
        "1.2.3.4:-1",
        "1.2.3.4:+1",
        "1.2.3.4: 80",
        " 1.2.3.4:80",
        "1.2.3.4:80\n",
        "01.2.3.4:80",
        "1.2.3:80",
        "1.2.3.4.5:80",
        "256.2.3.4:80",
        "1.2.3.0004:80",
        "0x1.2.3.4:80",
        "١.2.3.4:80",
        "1.2.3.4:٨٠",
        "localhost:80",
        "::1:80",
        "[::1]",
        "[::1]:",
        "[::1]80",
        "[1.2.3.4]:80",
        "[fe80::1%eth0]:80",
        "[fe80::1%]:80",
        "[fe80::1%4294967296]:80",
        "[fe80::1%1%2]:80",
        "[:::1]:80",
        "[1:2:3:4:5:6:7]:80",
        "[1:2:3:4:5:6:7:8:9]:80",
        "[1:2:3:4::5:6:7:8]:80",
        "[1::2::3]:80",
        "[12345::]:80",
        "[::1.2.3]:80",
        "[::01.2.3.4]:80",
        "[::g]:80",
        "1.2.3.4:" + "0" * 200,
        "1.2.3.4:" + "9" * 60,
        "1.2.3.4:80 5.6.7.8:80",
    ],
)
def test_texts_that_are_not_socket_addresses(text):
    with pytest.raises(InvalidAddress):
        IpAddr.parse(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[fe80::1%eth0]:80", "number of the interface"),
        ("2001:db8::1:80", "brackets"),
        ("1.2.3.4", "port is missing"),
        (" 1.2.3.4:80", "white space"),
        ("relay.example:80", "host names"),
        ("01.2.3.4:80", "leading zeros"),
    ],
)
def test_socket_address_hints(text, hint):
    with pytest.raises(InvalidAddress, match=hint):
        IpAddr.parse(text)


@given(IP_ADDRS | SCOPED)
def test_socket_address_text_round_trip(addr):
    assert IpAddr.parse(str(addr)) == addr


def test_socket_address_values():
    scoped = IpAddr(ipaddress.IPv6Address("fe80::1%3"), 1)
    assert scoped == IpAddr(ipaddress.IPv6Address("fe80::1"), 1, 3)
    assert scoped.ip.scope_id is None
    v4 = ipaddress.IPv4Address("1.2.3.4")
    for bad in (
        lambda: IpAddr(v4, -1),
        lambda: IpAddr(v4, 65536),
        lambda: IpAddr(v4, 1, 1),
        lambda: IpAddr(ipaddress.IPv6Address("fe80::1"), 1, 2**32),
        lambda: IpAddr(ipaddress.IPv6Address("fe80::1%eth0"), 1),
        lambda: IpAddr(ipaddress.IPv6Address("fe80::1%3"), 1, 4),
    ):
        with pytest.raises(InvalidAddress):
            bad()
    with pytest.raises(TypeError):
        IpAddr("1.2.3.4", 1)
    with pytest.raises(TypeError):
        IpAddr.parse(b"1.2.3.4:1")


# --- socket addresses: bytes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("127.0.0.1:1234", "00 7f000001 d209"),
        ("1.2.3.4:128", "00 01020304 8001"),
        ("192.168.1.5:65535", "00 c0a80105 ffff03"),
        ("[2001:db8::1]:443", "01 20010db8000000000000000000000001 bb03"),
    ],
)
def test_bare_socket_addresses(text, encoding):
    writer = Writer()
    write_socket_addr(writer, IpAddr.parse(text))
    assert bytes(writer) == bytes.fromhex(encoding)
    assert read_socket_addr(Reader(bytes(writer))) == IpAddr.parse(text)
    assert encoded(IpAddr.parse(text)) == b"\x01" + bytes.fromhex(encoding)


def test_the_scope_is_lost_in_bytes():
    writer = Writer()
    write_socket_addr(writer, IpAddr.parse("[fe80::1%3]:443"))
    assert read_socket_addr(Reader(bytes(writer))) == IpAddr.parse("[fe80::1]:443")


# --- custom addresses, wire document 2.4 ----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "addr"),
    [
        ("1_a1b2c3d4e5f6", CustomAddr(1, bytes.fromhex("a1b2c3d4e5f6"))),
        ("2a_" + "ab" * 32, CustomAddr(0x2A, b"\xab" * 32)),
        ("0_", CustomAddr(0, b"")),
        ("deadbeef_0102", CustomAddr(0xDEADBEEF, b"\x01\x02")),
        ("544f52_" + "00" * 32, CustomAddr(0x544F52, bytes(32))),
        ("ffffffffffffffff_", CustomAddr(2**64 - 1, b"")),
    ],
)
def test_custom_address_text(text, addr):
    assert CustomAddr.parse(text) == addr
    assert str(addr) == text
    assert addr.labelled() == f"custom:{text}"


@pytest.mark.parametrize(
    ("text", "printed"),
    [("2A_01", "2a_01"), ("+1_", "1_"), ("000000000000000000001_", "1_"), ("+00FF_ff", "ff_ff")],
)
def test_custom_address_ids_are_read_leniently(text, printed):
    assert str(CustomAddr.parse(text)) == printed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "underscore"),
        ("1", "underscore"),
        ("_01", "id"),
        ("+_01", "id"),
        ("-1_01", "id"),
        ("0x1_01", "id"),
        ("g_01", "id"),
        ("10000000000000000_", "id"),
        (" 1_01", "id"),
        ("1_0", "data"),
        ("1_AB", "data"),
        ("1_0g", "data"),
        ("1_01_02", "data"),
        ("1_01\n", "data"),
        ("1_٠٠", "data"),
    ],
)
def test_texts_that_are_not_custom_addresses(text, says):
    with pytest.raises(InvalidAddress, match=says):
        CustomAddr.parse(text)


@given(CUSTOM_ADDRS)
def test_custom_addresses_round_trip(addr):
    assert CustomAddr.parse(str(addr)) == addr
    assert CustomAddr.from_bytes(addr.to_bytes()) == addr
    assert read_transport_addr(Reader(encoded(addr))) == addr


def test_custom_address_bytes():
    addr = CustomAddr(0x0102, b"\xaa\xbb")
    assert addr.to_bytes() == bytes.fromhex("0201000000000000 aabb")
    assert encoded(addr) == bytes.fromhex("02 8202 02 aabb")
    for size in range(8):
        with pytest.raises(WireError):
            CustomAddr.from_bytes(bytes(size))
    with pytest.raises(WireError):
        CustomAddr.from_bytes(bytes(9 + limits.MAX_CUSTOM_ADDRESS_BYTES))


def test_the_custom_form_of_old_releases_is_read_wrongly():
    # `00`, size and 30 padded bytes: nothing tells it from an empty address followed by others.
    old = bytes.fromhex("02 01 00 02 aabb") + bytes(28)
    reader = Reader(old)
    assert read_transport_addr(reader) == CustomAddr(1, b"")
    assert not reader.finished


def test_custom_address_values():
    for bad in (
        lambda: CustomAddr(-1, b""),
        lambda: CustomAddr(2**64, b""),
        lambda: CustomAddr(1, bytes(limits.MAX_CUSTOM_ADDRESS_BYTES + 1)),
    ):
        with pytest.raises(InvalidAddress):
            bad()
    with pytest.raises(TypeError):
        CustomAddr(1, 5)
    assert CustomAddr(1, bytearray(b"x")).data == b"x"


# --- order, wire document 2.1 ---------------------------------------------------------------------

ORDERED = [
    RelayAddr(RelayUrl("http://z.example")),
    RelayAddr(RelayUrl("https://a.example")),
    RelayAddr(RelayUrl("https://b.example")),
    IpAddr.parse("0.0.0.0:9"),
    IpAddr.parse("10.0.0.1:0"),
    IpAddr.parse("10.0.0.1:1"),
    IpAddr.parse("192.168.1.5:1"),
    IpAddr.parse("[::]:1"),
    IpAddr.parse("[::1]:4433"),
    IpAddr.parse("[::1]:4434"),
    IpAddr.parse("[fe80::1]:1"),
    IpAddr.parse("[fe80::1%2]:1"),
    CustomAddr(1, b"\xff"),
    CustomAddr(1, b"\x00\x00"),
    CustomAddr(1, b"\xff" * 30),
    CustomAddr(1, b"\x00" * 32),
    CustomAddr(1, b"\x01" * 31),
    CustomAddr(2, b""),
]


def test_the_order_of_addresses():
    assert sorted(random.Random(1).sample(ORDERED, len(ORDERED))) == ORDERED
    for (i, a), (j, b) in itertools.product(enumerate(ORDERED), repeat=2):
        assert (a < b) == (i < j)
        assert (a <= b) == (i <= j)
        assert (a > b) == (i > j)
        assert (a >= b) == (i >= j)
        assert (a == b) == (i == j)
    with pytest.raises(TypeError):
        ORDERED[0] < "x"  # noqa: B015


# --- endpoint addresses ---------------------------------------------------------------------------


def test_endpoint_addr_sorts_and_drops_duplicates():
    addr = EndpointAddr(ID, [*reversed(ORDERED), *ORDERED])
    assert addr.addrs == tuple(ORDERED)
    assert addr == EndpointAddr(ID, ORDERED)
    assert hash(addr) == hash(EndpointAddr(ID, ORDERED))
    assert addr.relay_urls == tuple(a.url for a in ORDERED[:3])
    assert addr.ip_addrs == tuple(ORDERED[3:12])
    assert addr.custom_addrs == tuple(ORDERED[12:])
    assert EndpointAddr(ID).addrs == ()
    assert EndpointAddr(ID).with_addrs(ORDERED).with_addrs(ORDERED[:2]) == addr
    assert pickle.loads(pickle.dumps(addr)) == addr


def test_endpoint_addr_takes_address_values_only():
    for wrong in (["1.2.3.4:5"], [RelayUrl("https://relay.example")]):
        with pytest.raises(TypeError, match="parse text first"):
            EndpointAddr(ID, wrong)


@given(st.lists(TRANSPORT_ADDRS, max_size=6))
def test_endpoint_addr_round_trip(addrs):
    addr = EndpointAddr(ID, addrs)
    writer = Writer()
    addr.write(writer)
    reader = Reader(bytes(writer))
    assert EndpointAddr.read(reader) == addr
    assert reader.finished


def test_any_order_and_duplicates_are_read():
    a, b = IpAddr.parse("1.2.3.4:5"), IpAddr.parse("1.2.3.4:4")
    data = bytes(ID) + b"\x03" + encoded(a) + encoded(b) + encoded(a)
    assert EndpointAddr.read(Reader(data)).addrs == (b, a)


def test_relay_urls_are_normalised_when_read():
    data = bytes(Writer().varint(0).string("HTTPS://Relay.example:443"))
    assert read_transport_addr(Reader(data)) == RelayAddr(RelayUrl("https://relay.example/"))


@pytest.mark.parametrize(
    "data",
    [
        b"\x03",
        b"\x01\x02" + bytes(6),
        b"\x01\x00" + bytes(4) + b"\xff\xff\x07",
        b"\x01\x00" + bytes(3),
        b"\x00\x05hello",
        b"\x00\x02\xc3\x28",
        b"\x00" + bytes(Writer().varint(limits.MAX_RELAY_URL_BYTES + 1)) + bytes(3000),
        b"\x02\x00" + bytes(Writer().varint(limits.MAX_CUSTOM_ADDRESS_BYTES + 1)) + bytes(3000),
        b"",
    ],
)
def test_malformed_transport_addresses(data):
    with pytest.raises(WireError):
        read_transport_addr(Reader(data))
    with pytest.raises(WireError):
        EndpointAddr.read(Reader(bytes(ID) + b"\x01" + data))


def test_the_number_of_addresses_is_limited():
    one = encoded(IpAddr.parse("1.2.3.4:5"))
    count = limits.MAX_TICKET_ADDRESSES
    head = bytes(ID) + bytes(Writer().varint(count))
    assert EndpointAddr.read(Reader(head + one * count)).addrs
    head = bytes(ID) + bytes(Writer().varint(count + 1))
    with pytest.raises(WireError, match="limit"):
        EndpointAddr.read(Reader(head + one * (count + 1)))
