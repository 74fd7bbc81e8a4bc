"""The bytes of gossip: the vectors of docs/wire/gossip.md 7, and strangers' bytes."""

from __future__ import annotations

import ipaddress

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from dialkey.errors import WireError
from dialkey.identity import EndpointAddr, EndpointId, IpAddr, RelayAddr, RelayUrl, SecretKey
from dialkey_gossip.framing import FrameReader, frame, frame_header, read_header
from dialkey_gossip.ids import MessageId, PeerId, TopicId, message_id
from dialkey_gossip.messages import (
    Disconnect,
    ForwardJoin,
    Gossip,
    Graft,
    IHave,
    Join,
    Message,
    Neighbor,
    PeerInfo,
    Prune,
    Shuffle,
    ShuffleReply,
    decode,
    encode,
    ihave_capacity,
    max_content,
)
from dialkey_gossip.peer_data import decode_peer_data, encode_peer_data

K1_HEX = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"
K2_HEX = "8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394"
P1_HEX = (
    "011a68747470733a2f2f72656c61792e6578616d706c652e6f72672f"
    "0200c0000201d1220120010db8000000000000000000000001d122"
)
M_HEX = "85052e9aab1b67b6622d94a08441b09fd5b7aca61ee360416d70de5da67d86ca"
M2_HEX = "9250df4f9a62498d15b0d288a70bafb47b97d0835c4812a67c9d7548b54ba99f"
EMPTY_HEX = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"

K1, K2 = PeerId(bytes.fromhex(K1_HEX)), PeerId(bytes.fromhex(K2_HEX))
P0, P1 = bytes.fromhex("0000"), bytes.fromhex(P1_HEX)
M, M2 = MessageId(bytes.fromhex(M_HEX)), MessageId(bytes.fromhex(M2_HEX))
TOPIC = TopicId(b"\x17" * 32)

VECTORS: list[tuple[str, Message, str]] = [
    ("V1", Join(None), "00000003 00 00 00"),
    ("V2", Join(P0), "00000006 00 00 01 02 0000"),
    ("V3", Join(P1), f"0000003b 00 00 01 37 {P1_HEX}"),
    ("V4", ForwardJoin(PeerInfo(K2, P0), 6), f"00000027 00 01 {K2_HEX} 01 02 0000 06"),
    (
        "V5",
        Shuffle(K1, (PeerInfo(K2), PeerInfo(K1, P0)), 6),
        f"00000069 00 02 {K1_HEX} 02 {K2_HEX} 00 {K1_HEX} 01 02 0000 06",
    ),
    ("V6", ShuffleReply(()), "00000003 00 03 00"),
    ("V7", ShuffleReply((PeerInfo(K2, P0),)), f"00000027 00 03 01 {K2_HEX} 01 02 0000"),
    ("V8", Neighbor(True, P0), "00000007 00 04 00 01 02 0000"),
    ("V9", Neighbor(False, None), "00000004 00 04 01 00"),
    ("V10", Disconnect(True), "00000004 00 05 01 00"),
    ("V11", Disconnect(False), "00000004 00 05 00 00"),
    ("V12", Gossip(M, b"hi", 0), f"00000027 01 00 {M_HEX} 02 6869 00 00"),
    ("V13", Gossip(M, b"hi", 300), f"00000028 01 00 {M_HEX} 02 6869 00 ac02"),
    ("V14", Gossip(M, b"hi", None), f"00000026 01 00 {M_HEX} 02 6869 01"),
    ("V15", Gossip(message_id(b""), b"", 0), f"00000025 01 00 {EMPTY_HEX} 00 00 00"),
    ("V16", Prune(), "00000002 01 01"),
    ("V17", Graft(M, 2), f"00000024 01 02 01 {M_HEX} 02"),
    ("V18", Graft(None, 2), "00000004 01 02 00 02"),
    ("V19", IHave(((M, 2),)), f"00000024 01 03 01 {M_HEX} 02"),
    ("V20", IHave(((M, 2), (M2, 3))), f"00000045 01 03 02 {M_HEX} 02 {M2_HEX} 03"),
]


def test_the_constants_of_the_vectors() -> None:
    assert bytes(SecretKey(b"\x01" * 32).id) == K1
    assert bytes(SecretKey(b"\x02" * 32).id) == K2
    assert message_id(b"hi") == M
    assert message_id(b"hi2") == M2


def test_v0_header() -> None:
    assert frame_header(TOPIC) == bytes.fromhex("00000020" + "17" * 32)
    assert read_header(b"\x17" * 32) == TOPIC
    assert read_header(b"\x17" * 32 + b"more") == TOPIC
    with pytest.raises(WireError):
        read_header(b"\x17" * 31)


@pytest.mark.parametrize(("message", "text"), [v[1:] for v in VECTORS], ids=[v[0] for v in VECTORS])
def test_vectors(message: Message, text: str) -> None:
    data = bytes.fromhex(text)
    assert frame(message) == data
    [body] = FrameReader().feed(data)
    assert decode(body) == message


def test_longest_content() -> None:
    assert max_content(4096) == 4057
    content = bytes(4057)
    assert frame(Gossip(message_id(content), content, 0))[:4].hex() == "00000fff"
    assert frame(Gossip(message_id(content), content, 127))[:4].hex() == "00000fff"
    with pytest.raises(ValueError, match="not below"):
        frame(Gossip(message_id(bytes(4058)), bytes(4058), 0))
    assert len(frame(Gossip(message_id(bytes(4058)), bytes(4058), None))) == 4 + 4095


@pytest.mark.parametrize("limit", [512, 513, 600, 4096, 65_536, 1 << 20])
def test_longest_content_for_any_limit(limit: int) -> None:
    content = bytes(max_content(limit))
    assert len(encode(Gossip(message_id(content), content, 0))) == limit - 1


def test_ihave_capacity() -> None:
    assert ihave_capacity(4096) == 116
    assert len(encode(IHave(((M, 0xFFFF),) * 116))) < 4096


@pytest.mark.parametrize(
    "text",
    [
        f"01 00 {M_HEX} 02 68",  # cut short
        f"01 00 {M_HEX} 02 6869 02",  # no such scope
        f"01 00 {M_HEX} 02 6869 00 808004",  # a round above 16 bits
        "00 04 02 00",  # no such priority
        "00 05 02 00",  # no truth value
        "00 06",
        "01 04",
        "02 00",
        "00",
        "",
        "00 01 " + "02" * 32 + " 00 06",  # an id that is not a point on the curve
        "00 03 ff ff ff ff 0f",  # a count above what could follow
        "01 03 ff ff ff ff ff ff ff ff ff 01",
        "00 00 01 ff ff ff ff 7f 00",
        "00 00 02",
    ],
)
def test_malformed_messages(text: str) -> None:
    with pytest.raises(WireError):
        decode(bytes.fromhex(text))


def test_what_is_accepted_beyond_our_own_encoding() -> None:
    assert decode(bytes.fromhex("00 00 00 ff")) == Join(None)
    assert decode(bytes.fromhex("80 00 80 80 00 00")) == Join(None)
    for point in (b"\x00" * 32, b"\x01" * 32):
        data = b"\x00\x01" + point + b"\x00\x06"
        assert decode(data) == ForwardJoin(PeerInfo(PeerId(point)), 6)
    assert decode(bytes.fromhex("00 05 01 01")) == Disconnect(True)


def test_frame_limits() -> None:
    with pytest.raises(WireError, match="too large"):
        FrameReader().feed(bytes.fromhex("00001001"))
    reader = FrameReader()
    assert reader.feed(bytes.fromhex("00001000")) == []
    assert reader.feed(bytes(4096)) == [bytes(4096)]
    assert reader.feed(bytes(4)) == [b""]


def test_good_frames_before_a_bad_one_are_kept() -> None:
    reader = FrameReader()
    assert reader.feed(bytes.fromhex("00000002 0101 ffffffff")) == [b"\x01\x01"]
    with pytest.raises(WireError):
        reader.feed(b"")


def test_ends_of_streams() -> None:
    for inside in ("", "00", "000000"):
        reader = FrameReader()
        reader.feed(bytes.fromhex(inside))
        reader.end()
    reader = FrameReader()
    reader.feed(bytes.fromhex("00000002 01"))
    with pytest.raises(WireError, match="inside a frame"):
        reader.end()


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_frames_arrive_in_any_pieces(bodies: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    reader = FrameReader()
    found: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += reader.feed(stream[:size])
        stream = stream[size:]
    assert found == bodies


@given(st.binary(max_size=300))
def test_any_bytes_decode_or_raise_wire_error(data: bytes) -> None:
    try:
        message = decode(data)
    except WireError:
        return
    assert decode(encode(message)) == message


peers = st.integers(0, 200).map(lambda n: PeerId(bytes(SecretKey(n.to_bytes(32, "big")).id)))
datas = st.none() | st.binary(max_size=60)
infos = st.builds(PeerInfo, peers, datas)
nodes = st.lists(infos, max_size=9).map(tuple)
ids = st.binary(min_size=32, max_size=32).map(MessageId)
rounds = st.integers(0, 0xFFFF)
messages = st.one_of(
    st.builds(Join, datas),
    st.builds(ForwardJoin, infos, rounds),
    st.builds(Shuffle, peers, nodes, rounds),
    st.builds(ShuffleReply, nodes),
    st.builds(Neighbor, st.booleans(), datas),
    st.builds(Disconnect, st.booleans()),
    st.builds(Gossip, ids, st.binary(max_size=400), st.none() | rounds),
    st.just(Prune()),
    st.builds(Graft, st.none() | ids, rounds),
    st.builds(IHave, st.lists(st.tuples(ids, rounds), max_size=20).map(tuple)),
)


@given(messages)
def test_messages_survive_the_wire(message: Message) -> None:
    assert decode(encode(message)) == message


# --- peer data ----------------------------------------------------------------------------------

PEER = EndpointId(K1)
V4 = IpAddr(ipaddress.IPv4Address("192.0.2.1"), 4433)
V6 = IpAddr(ipaddress.IPv6Address("2001:db8::1"), 4433)
RELAY = RelayAddr(RelayUrl("https://relay.example.org"))


def test_peer_data_vectors() -> None:
    assert encode_peer_data(EndpointAddr(PEER)) == P0
    assert decode_peer_data(PEER, P0) == EndpointAddr(PEER)
    addr = EndpointAddr(PEER, [V6, RELAY, V4])
    assert encode_peer_data(addr) == P1
    assert decode_peer_data(PEER, P1) == addr
    assert decode_peer_data(PEER, P1 + b"more") == addr


def test_peer_data_of_any_order_and_with_duplicates() -> None:
    socket = "00c0000201d122"
    data = bytes.fromhex("00 03" + socket + "0120010db8000000000000000000000001d122" + socket)
    assert decode_peer_data(PEER, data) == EndpointAddr(PEER, [V4, V6])


@pytest.mark.parametrize("text", ["", "02", "01", "00 05", "00 01 02 00", "01 03 787878 00"])
def test_malformed_peer_data(text: str) -> None:
    with pytest.raises(WireError):
        decode_peer_data(PEER, bytes.fromhex(text))


@given(st.binary(max_size=200))
def test_any_peer_data_decodes_or_raises_wire_error(data: bytes) -> None:
    try:
        addr = decode_peer_data(PEER, data)
    except WireError:
        return
    assert len(addr.addrs) <= 17


def test_own_peer_data_is_kept_small() -> None:
    many = [IpAddr(ipaddress.IPv6Address(n), 60_000) for n in range(1, 60)]
    relay = RelayAddr(RelayUrl("https://relay.example.org/" + "x" * 300))
    data = encode_peer_data(EndpointAddr(PEER, [relay, *many]))
    assert len(data) <= 470
    kept = decode_peer_data(PEER, data)
    assert kept.relay_urls == (relay.url,)
    assert kept.ip_addrs == tuple(many[: len(kept.ip_addrs)]) != ()
    huge = RelayAddr(RelayUrl("https://relay.example.org/" + "x" * 600))
    assert encode_peer_data(EndpointAddr(PEER, [huge])) == P0


def test_a_shuffle_of_full_data_fits() -> None:
    info = PeerInfo(K1, bytes(470))
    assert len(encode(Shuffle(K1, (info,) * 8, 6))) < 4096


def test_message_ids_are_blake3() -> None:
    assert message_id(b"x" * 1000) == blake3(b"x" * 1000).digest()
