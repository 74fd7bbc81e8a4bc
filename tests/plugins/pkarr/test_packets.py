"""Signed packets and their records, byte for byte as iroh has them."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey import EndpointAddr, EndpointInfo, SecretKey
from dialkey.identity import CustomAddr, IpAddr, RelayAddr, RelayUrl
from dialkey_pkarr import InvalidPacket, RecordTooLarge, SignedPacket, Timestamps
from dialkey_pkarr.records import parse_attributes, write_attributes

ZERO = SecretKey(bytes(32))
COUNTING = SecretKey(bytes(range(32)))
V1_TIMESTAMP = 1_700_000_000_000_000
V1_MESSAGE = bytes.fromhex(
    "000080000000000400000000055f69726f683479716f6f787839753361656d68386d6f3577637171"
    "313679756675366a69746f7571316f347a613735316467657231696767687900001000010000001e"
    "001e1d72656c61793d68747470733a2f2f72656c61792e6578616d706c652e2fc00c001000010000"
    "001e001413616464723d3139322e302e322e373a34343333c00c001000010000001e001817616464"
    "723d5b323030313a6462383a3a375d3a34343333c00c001000010000001e00100f757365722d6461"
    "74613d68656c6c6f"
)
V1_SIGNATURE = (
    "7bfe1bbc010d96310a2e3c3e23e64c9c8194e66857eb618e6672d54bd2a99178"
    "8a8db88e6751c339eaab45d161f479dce92fe00a30327ca8f01d4384a26edc00"
)
V1_INFO = EndpointInfo(
    EndpointAddr(
        COUNTING.id,
        [
            RelayAddr(RelayUrl("https://relay.example./")),
            IpAddr.parse("192.0.2.7:4433"),
            IpAddr.parse("[2001:db8::7]:4433"),
        ],
    ),
    "hello",
)
V2_PAYLOAD = bytes.fromhex(
    "2224075eecd659702714abc29fb3d383d7d0a7a582aa76ff6fb469be50a850e32a770f203774b949"
    "3157d5050bbe9b5960b7857165dc972e654a4c6bfc6f4305000660f5a749da08"
    "000080000000000100000000055f69726f68343870696e787867717334316e346169646964656e77"
    "3561707170317572666d7a647a7472386a74346162726b646e34333565776f00001000010000001e"
    "001d1c72656c61793d687474703a2f2f3132372e302e302e313a333334302f"
)


def test_what_we_sign_is_what_iroh_signs() -> None:
    packet = SignedPacket.of_info(COUNTING, V1_INFO, V1_TIMESTAMP)
    assert packet.message == V1_MESSAGE
    assert packet.signature.hex() == V1_SIGNATURE
    assert packet.to_payload()[64:72].hex() == "00060a24181e4000"
    data = packet.to_bytes()
    assert len(data) == 312
    assert hashlib.sha256(data).hexdigest() == (
        "6853092ed93b8fb1f00f911d5b694461aec8ee3010f919b40ae67caa4fbdc5b2"
    )
    read = SignedPacket.from_bytes(data)
    assert read == packet
    assert read.info() == V1_INFO


def test_what_iroh_published_is_read() -> None:
    packet = SignedPacket.from_payload(ZERO.id, V2_PAYLOAD)
    assert packet.to_payload() == V2_PAYLOAD
    addr = EndpointAddr(ZERO.id, [RelayAddr(RelayUrl("http://127.0.0.1:3340/"))])
    assert packet.info() == EndpointInfo(addr)
    assert SignedPacket.of_info(ZERO, packet.info(), packet.timestamp_us) == packet


def test_the_empty_packet() -> None:
    nothing = EndpointInfo(EndpointAddr(COUNTING.id))
    packet = SignedPacket.of_info(COUNTING, nothing, V1_TIMESTAMP)
    assert packet.message.hex() == "000080000000000000000000"
    assert packet.signature.hex() == (
        "8cc80477630693238bea6099cbacfaa2fd87a517c86344a094b357eabbfc9e14"
        "6c0d25a70a368ebd6cacf9c555a1855db770a37b1ebda4839832628a17183c0e"
    )
    assert len(packet.to_payload()) == 84
    assert SignedPacket.from_bytes(packet.to_bytes()).info() == nothing


@pytest.mark.parametrize("at", [0, 31, 32, 95, 96, 103, 104, 311])
def test_a_changed_byte_is_noticed(at: int) -> None:
    data = bytearray(SignedPacket.of_info(COUNTING, V1_INFO, V1_TIMESTAMP).to_bytes())
    data[at] ^= 1
    with pytest.raises(InvalidPacket):
        SignedPacket.from_bytes(bytes(data))


def test_sizes() -> None:
    data = SignedPacket.of_info(COUNTING, V1_INFO, V1_TIMESTAMP).to_bytes()
    for wrong in (b"", data[:103], data + bytes(793)):
        with pytest.raises(InvalidPacket, match="104 to 1104 bytes"):
            SignedPacket.from_bytes(wrong)
    with pytest.raises(InvalidPacket, match="72 to 1072 bytes"):
        SignedPacket.from_payload(COUNTING.id, bytes(71))
    with pytest.raises(RecordTooLarge):
        SignedPacket.sign(COUNTING, bytes(1001), 1)
    largest = SignedPacket.sign(COUNTING, bytes(1000), 1)
    assert SignedPacket.from_bytes(largest.to_bytes()) == largest


def test_a_key_that_anybody_can_sign_for_signs_nothing() -> None:
    """A and R of small order, s = 0: OpenSSL takes that for a signature."""
    identity = b"\x01" + bytes(31)
    message = bytes(12)
    with pytest.raises(InvalidPacket, match="small order"):
        SignedPacket.from_bytes(identity + identity + bytes(32) + bytes(8) + message)


@pytest.mark.parametrize("timestamp", [0, 1, 2**62, 2**64 - 1])
def test_a_timestamp_is_not_compared_with_our_clock(timestamp: int) -> None:
    packet = SignedPacket.of_info(COUNTING, V1_INFO, timestamp)
    assert SignedPacket.from_bytes(packet.to_bytes()).timestamp_us == timestamp


def test_the_newest_wins() -> None:
    def packet(timestamp: int, text: str) -> SignedPacket:
        info = EndpointInfo(EndpointAddr(ZERO.id), text)
        return SignedPacket.of_info(ZERO, info, timestamp)

    old, new, larger = packet(1, "b"), packet(2, "a"), packet(2, "b")
    assert new.is_newer_than(old)
    assert not old.is_newer_than(new)
    assert larger.is_newer_than(new)
    assert not new.is_newer_than(larger)
    assert not new.is_newer_than(new)


def test_a_signers_clock_never_stands_still_and_never_goes_back() -> None:
    clock = Timestamps()
    assert [clock.next(each) for each in (2.0, 2.0, 1.0, 3.5)] == [
        2_000_000,
        2_000_001,
        2_000_002,
        3_500_000,
    ]


# --- DNS messages of others ----------------------------------------------------------------------

OWNER = b"\x05_iroh\x34" + COUNTING.id.to_z32().encode() + b"\0"


def rr(
    text: bytes = b"relay=https://r./",
    *,
    owner: bytes = OWNER,
    kind: int = 16,
    rdclass: int = 1,
    rdata: bytes | None = None,
    ttl: int = 30,
) -> bytes:
    data = bytes([len(text)]) + text if rdata is None else rdata
    return owner + struct.pack(">HHIH", kind, rdclass, ttl, len(data)) + data


def dns(*answers: bytes, flags: int = 0x8000, id: int = 0, more: bytes = b"") -> bytes:
    return struct.pack(">6H", id, flags, 0, len(answers), 0, 0) + b"".join(answers) + more


def read(message: bytes) -> list[str]:
    packet = SignedPacket.sign(COUNTING, message, 1)
    info = SignedPacket.from_bytes(packet.to_bytes()).info()
    return [str(each) for each in info.addr.addrs]


@pytest.mark.parametrize(
    "message",
    [
        dns(rr()),
        dns(rr(ttl=0)),
        *(dns(rr(rdclass=each)) for each in (2, 3, 4, 254, 0x8001)),
        dns(rr(), id=7),
        *(dns(rr(), flags=each) for each in (0, 0x8003, 0xA800, 0x2800, 0x8400)),
        dns(rr(b"x", kind=65_280), rr()),
        dns(rr(kind=1, rdata=bytes(4)), rr()),
        dns(rr(b"relay=\xff\xfe"), rr()),
        dns(rr(), more=b"more"),
        dns(rr(rdata=b"\x06relay=\x0bhttps://r./")),
        dns(rr(), rr(b"relay=https://other./", owner=OWNER.replace(b"_iroh", b"_IROH"))),
        dns(rr(), rr(b"relay=https://other./", owner=b"\x05_iroh\x01x\0")),
        dns(rr(), rr(b"relay=https://other./", owner=OWNER[6:])),
    ],
)
def test_what_iroh_tolerates(message: bytes) -> None:
    assert read(message) == ["https://r./"]


@pytest.mark.parametrize(
    "message",
    [
        b"",
        bytes(11),
        dns(rr(), flags=0x8040),
        dns(rr(rdclass=5)),
        dns(rr(rdclass=255)),
        dns(rr(kind=1, rdata=bytes(3))),
        dns(rr(owner=b"\xc0\x0c")),
        dns(rr(owner=b"\x3f" + bytes(5))),
        dns(rr())[:-1],
        struct.pack(">6H", 0, 0x8000, 0, 65_535, 0, 0) + rr(),
    ],
)
def test_what_is_not_a_dns_message(message: bytes) -> None:
    packet = SignedPacket.sign(COUNTING, message, 1)
    with pytest.raises(InvalidPacket):
        SignedPacket.from_bytes(packet.to_bytes())


def test_records_of_other_sections_are_not_read() -> None:
    message = struct.pack(">6H", 0, 0x8000, 0, 1, 1, 1) + rr() + rr(b"foo=1") + rr(b"bar")
    assert read(message) == ["https://r./"]


@given(st.binary(max_size=1100))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    for each in (data, SignedPacket.sign(COUNTING, data[:1000], 1).to_bytes()):
        try:
            SignedPacket.from_bytes(each).info()
        except InvalidPacket:
            pass


@given(st.binary(max_size=400), st.integers(0, 400), st.integers(0, 255))
def test_no_message_that_was_changed_breaks_the_reader(more: bytes, at: int, byte: int) -> None:
    message = bytearray(V1_MESSAGE + more)
    message[at % len(message)] = byte
    try:
        SignedPacket.from_bytes(SignedPacket.sign(COUNTING, bytes(message), 1).to_bytes()).info()
    except InvalidPacket:
        pass


# --- attributes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strings", "addrs", "user_data"),
    [
        ([], [], None),
        ([b"relay=https://r/?a=b"], ["https://r/?a"], None),
        ([b"addr=1.2.3.4:1 1.2.3.4:2"], [], None),
        ([b"addr=", b"addr= 1.2.3.4:1", b"relay=", b"relay=example.com"], [], None),
        ([b"relay=HTTPS://R:443", b"relay=https://s"], ["https://r/", "https://s/"], None),
        ([b"addr=1_a1b2", b"addr=1.2.3.4:5"], ["1.2.3.4:5", "1_a1b2"], None),
        ([b"addr=[fe80::1%3]:9"], ["[fe80::1%3]:9"], None),
        ([b"user-data=one", b"user-data=two"], [], "one"),
        ([b"user-data=" + b"x" * 245], [], "x" * 245),
        ([b"user-data=" + b"x" * 246, b"addr=1.2.3.4:5"], ["1.2.3.4:5"], None),
        ([b"\xff", b"addr=1.2.3.4:5"], ["1.2.3.4:5"], None),
    ],
)
def test_attributes(strings: list[bytes], addrs: list[str], user_data: str | None) -> None:
    info = parse_attributes(ZERO.id, strings)
    assert [str(each) for each in info.addr.addrs] == addrs
    assert info.user_data == user_data


@pytest.mark.parametrize(
    "bad", [b"", b"relay", b"ADDR=1.2.3.4:5", b"Addr=1.2.3.4:5", b"user_data=x", b"foo=1"]
)
def test_one_unknown_attribute_spoils_all(bad: bytes) -> None:
    with pytest.raises(InvalidPacket):
        parse_attributes(ZERO.id, [b"addr=1.2.3.4:5", bad])


def test_attributes_without_end() -> None:
    with pytest.raises(InvalidPacket, match="at most 256"):
        parse_attributes(ZERO.id, (b"addr=1.2.3.4:5" for _ in iter(int, 1)))


def test_custom_addresses_are_written_after_the_others() -> None:
    addrs = [CustomAddr(1, b"\xa1"), IpAddr.parse("1.2.3.4:5")]
    info = EndpointInfo(EndpointAddr(ZERO.id, addrs))
    assert write_attributes(info) == [b"addr=1.2.3.4:5", b"addr=1_a1"]
    assert parse_attributes(ZERO.id, write_attributes(info)) == info


def test_what_does_not_fit_is_an_error() -> None:
    long = EndpointAddr(ZERO.id, [RelayAddr(RelayUrl(f"https://r/{'x' * 240}"))])
    with pytest.raises(RecordTooLarge, match="255 bytes"):
        SignedPacket.of_info(ZERO, EndpointInfo(long), 1)
    many = EndpointAddr(ZERO.id, [IpAddr.parse(f"10.0.0.{n}:1") for n in range(60)])
    with pytest.raises(RecordTooLarge, match="1000 bytes"):
        SignedPacket.of_info(ZERO, EndpointInfo(many), 1)
