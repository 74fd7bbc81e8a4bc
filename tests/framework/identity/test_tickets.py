from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey import limits
from dialkey.errors import InvalidTicket
from dialkey.identity import (
    CustomAddr,
    EndpointAddr,
    EndpointId,
    EndpointTicket,
    IpAddr,
    RelayAddr,
    RelayUrl,
    SecretKey,
    decode_ticket,
    encode_ticket,
    parse_remote,
    read_relay_url,
    read_socket_addr,
    ticket_kind,
)
from dialkey.identity.postcard import Reader

ID_0 = SecretKey(bytes(32)).id
ID_1 = SecretKey(b"\x01" * 32).id
ID_5 = EndpointId.parse("ae58ff8833241ac82d6ff7611046ed67b5072d142c588d0063e942d9a75502b6")


def addr(endpoint_id, relays=(), ips=()):
    return EndpointAddr(
        endpoint_id,
        [*(RelayAddr(RelayUrl(r)) for r in relays), *(IpAddr.parse(i) for i in ips)],
    )


# Wire document, section 4.2.
VECTORS = {
    "E1": (
        "endpointaa5wuj54z23killcuounaktpbvzwkmqvo4o6eq5ghlaerimllhncsaa",
        addr(ID_0),
        f"00 {ID_0} 00",
    ),
    "E2": (
        "endpointaa5wuj54z23killcuounaktpbvzwkmqvo4o6eq5ghlaerimllhncsaibab7qaaab2ieq",
        addr(ID_0, ips=["127.0.0.1:1234"]),
        f"00 {ID_0} 01 01 00 7f000001 d209",
    ),
    "E3": (
        "endpointaa5wuj54z23killcuounaktpbvzwkmqvo4o6eq5ghlaerimllhncsayaczuhi5dqom5c6l3smvwgc6jo"
        "mv4gc3lqnrss6aiap4aaaaosbeaqciabbw4aaaaaaaaaaaaaaaaaaan3am",
        addr(ID_0, ["https://relay.example"], ["127.0.0.1:1234", "[2001:db8::1]:443"]),
        f"00 {ID_0} 03"
        "00 16 68747470733a2f2f72656c61792e6578616d706c652f"
        "01 00 7f000001 d209"
        "01 01 20010db8000000000000000000000001 bb03",
    ),
    "E4": (
        "endpointacfiry65oqe7dfp5klns2pf2lvzmuzyjx4ozieq36n2iqanub5xvybqaenuhi5dqom5c6l3vonstcljr"
        "fzzgk3dbpexg4mbonfzg62bonruw42zof4aqaaicamciaaibaafaaaabaaaqacqaaaaqcaiaycuacbp774bqcaia"
        "aaaaaaaaaaaaaaaaaaaaaaab2era",
        addr(
            ID_1,
            ["https://use1-1.relay.n0.iroh.link."],
            ["192.168.1.5:65535", "10.0.0.1:0", "10.0.0.1:1", "[::1]:4433", "1.2.3.4:128"],
        ),
        f"00 {ID_1} 06"
        "00 23 68747470733a2f2f757365312d312e72656c61792e6e302e69726f682e6c696e6b2e2f"
        "01 00 01020304 8001"
        "01 00 0a000001 00"
        "01 00 0a000001 01"
        "01 00 c0a80105 ffff03"
        "01 01 00000000000000000000000000000001 d122",
    ),
    "E5": (
        "endpointacxfr74igmsbvsbnn73wcecg5vt3kbzncqwfrdiampuufwnhkublmaqacbuhi5dqhixs6zdfojyc43lf"
        "fyxqcad7aaaadaai",
        addr(ID_5, ["http://derp.me./"], ["127.0.0.1:1024"]),
        f"00 {ID_5} 02 00 10 687474703a2f2f646572702e6d652e2f 01 00 7f000001 8008",
    ),
}
E3 = VECTORS["E3"][0]

NODE_TICKET = (
    "nodeadxnbzqaxmitapxpjveh4frw3pkntovtk6s2zu7jeb3x327basjzgajcnb2hi4dthixs65ltmuys2mjomrsxe4bo"
    "nfzg62bonzsxi53pojvs4lydabefsibbzofqgagavbcevs4lamasmacaifjxj2aaaaaaaaaaaaia7telam"
)
BLOB_TICKET = (
    "blobacxfr74igmsbvsbnn73wcecg5vt3kbzncqwfrdiampuufwnhkublmaaaaafyju2y4tel43bymjvsdax7k5mbrotl"
    "2p2lsbdetff6ctftksqhe"
)


# --- vectors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name):
    text, expected, payload = VECTORS[name]
    ticket = EndpointTicket.parse(text)
    assert ticket.addr == expected
    assert ticket == EndpointTicket(expected)
    assert hash(ticket) == hash(EndpointTicket(expected))
    assert str(EndpointTicket(expected)) == text
    assert ticket.to_bytes() == bytes.fromhex(payload)
    assert EndpointTicket.from_bytes(bytes.fromhex(payload)) == ticket


def test_vector_e6_found_in_the_wild():
    text = (
        "endpointaa2bzzly2lh3s442nsu6ttlbfvozdcyk5xj6qzw7qcf7xbuxv5mxubaaenuhi5dqom5c6l3fovrtcljr"
        "fzzgk3dbpexg4mbonfzg62bonruw42zof4aqacqaaabndmydaeaj3liztwc3uaqbadakqaky2gzqg"
    )
    ticket = EndpointTicket.parse(text)
    assert str(ticket.addr.id).startswith("341ce578")
    assert str(ticket.addr.id).endswith("597a")
    assert [str(a) for a in ticket.addr.addrs] == [
        "https://euc1-1.relay.n0.iroh.link./",
        "10.0.0.2:55761",
        "157.173.25.157:40197",
        "192.168.1.88:55761",
    ]
    assert str(ticket) == text


def test_the_ticket_of_the_dumbpipe_readme_is_of_another_format():
    payload = b"\x20" + bytes(ID_0) + b"\x00"
    with pytest.raises(InvalidTicket, match="version 32"):
        EndpointTicket.parse(encode_ticket("endpoint", payload))


def test_the_historic_node_ticket_reads_with_the_public_parts():
    reader = Reader(decode_ticket("node", NODE_TICKET))
    assert reader.u8() == 0
    endpoint_id = EndpointId.read(reader)
    assert (str(endpoint_id)[:8], str(endpoint_id)[-4:]) == ("eed0e600", "9393")
    assert reader.option()
    assert str(read_relay_url(reader)) == "https://use1-1.derp.iroh.network./"
    assert [str(read_socket_addr(reader)) for _ in range(reader.count(8))] == [
        "72.89.32.33:50635",
        "192.168.68.74:50635",
        "[2600:4041:5374:e800::100f]:50636",
    ]


ADDRS = st.lists(
    st.builds(
        lambda ip, port: IpAddr.parse(f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"),
        st.ip_addresses(v=4) | st.ip_addresses(v=6, network="2001:db8::/32"),
        st.integers(0, 65535),
    )
    | st.builds(CustomAddr, st.integers(0, 2**64 - 1), st.binary(max_size=40))
    | st.sampled_from(["https://a.example", "http://[::1]:3340/x"]).map(
        lambda url: RelayAddr(RelayUrl(url))
    ),
    max_size=8,
)


@given(st.binary(min_size=32, max_size=32), ADDRS)
def test_round_trip(seed, addrs):
    ticket = EndpointTicket(EndpointAddr(SecretKey(seed).id, addrs))
    text = str(ticket)
    assert EndpointTicket.parse(text) == ticket
    assert str(EndpointTicket.parse(text)) == text
    assert text == text.lower()


# --- the rules of the parser, wire document 4.1 ---------------------------------------------------


def test_tickets_are_read_in_any_case():
    body = E3.removeprefix("endpoint")
    assert str(EndpointTicket.parse("endpoint" + body.upper())) == E3
    mixed = "".join(c.upper() if i % 2 else c for i, c in enumerate(E3))
    assert str(EndpointTicket.parse(mixed)) == E3
    assert str(EndpointTicket.parse(E3.upper())) == E3
    # Other alphabets have capitals, too, of which some become ASCII: the Kelvin sign is not a k.
    with pytest.raises(InvalidTicket):
        EndpointTicket.parse(E3.replace("k", "\u212a"))


@pytest.mark.parametrize(
    "gap", [" ", "\n", "\r\n    ", "\t", "\u00a0", "\u2028", "\u200b", "\ufeff", "\u00ad", "\u2060"]
)
def test_wrapped_tickets_are_read(gap):
    wrapped = gap.join(E3[at : at + 20] for at in range(0, len(E3), 20))
    assert str(EndpointTicket.parse(gap + wrapped + gap)) == E3
    assert parse_remote(wrapped) == EndpointTicket.parse(E3).addr
    assert ticket_kind(wrapped.upper()) == "endpoint"


def test_a_flood_of_white_space_is_not_a_ticket():
    with pytest.raises(InvalidTicket, match="at most"):
        EndpointTicket.parse(E3 + " " * limits.MAX_PASTED_TICKET_CHARS)


@pytest.mark.parametrize("pasted", [f" {E3}", f"{E3}\n", f"\t{E3}\r\n", f"\u00a0{E3}\u2003"])
def test_white_space_around_is_removed(pasted):
    assert str(EndpointTicket.parse(pasted)) == E3


def test_bytes_after_the_address_are_ignored():
    payload = VECTORS["E2"][2]
    for extra in (b"\x00", b"rest"):
        text = encode_ticket("endpoint", bytes.fromhex(payload) + extra)
        assert EndpointTicket.parse(text).addr == VECTORS["E2"][1]


def test_any_order_and_duplicates_are_accepted():
    ip = "01 00 7f000001 d209"
    payload = f"00 {ID_0} 03 {ip} 00 11 68747470733a2f2f612e6578616d706c65 {ip}"
    ticket = EndpointTicket.from_bytes(bytes.fromhex(payload))
    assert [str(a) for a in ticket.addr.addrs] == ["https://a.example/", "127.0.0.1:1234"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("hello", "not an endpoint ticket"),
        (BLOB_TICKET, "'blob'"),
        (NODE_TICKET, "'node'"),
        (str(ID_0), "endpoint id"),
        (ID_0.to_base32(), "endpoint id"),
        ("endpoint", "cut off"),
        (E3 + "=", "equals signs"),
        (E3 + "======", "equals signs"),
        (E3[:40] + "-" + E3[40:], "character 41"),
        (E3[:20] + " \n" + E3[20:40] + "-" + E3[40:], "character 41"),
        (E3[:40] + "0" + E3[41:], "letter o"),
        (E3[:40] + "1" + E3[41:], "letter l or i"),
        (E3[:40] + "8" + E3[41:], "letter b"),
        (E3[:40] + "é" + E3[41:], "character 41"),
        (E3[:-1], "cut off"),
        (E3[:-2], "cut off"),
        (E3[:-1] + "n", "incomplete"),
        (E3[:-8], "cut off"),
        ("endpoint" + "a" * limits.MAX_TICKET_CHARS, "at most"),
    ],
)
def test_what_is_wrong_is_said(text, says):
    with pytest.raises(InvalidTicket) as caught:
        EndpointTicket.parse(text)
    assert says in str(caught.value)
    assert caught.value.hint or "at most" in says


def test_every_truncation_is_refused():
    for end in range(len(E3)):
        with pytest.raises(InvalidTicket):
            EndpointTicket.parse(E3[:end])
    payload = bytes.fromhex(VECTORS["E4"][2])
    for end in range(len(payload)):
        with pytest.raises(InvalidTicket):
            EndpointTicket.from_bytes(payload[:end])


@pytest.mark.parametrize(
    "payload",
    [
        f"01 {ID_0} 00",
        f"ff {ID_0} 00",
        f"00 02{'00' * 31} 00",
        f"00 {ID_0} 01 03 00",
        f"00 {ID_0} 01 01 02 7f000001 d209",
        f"00 {ID_0} 01 01 00 7f000001 ffff07",
        f"00 {ID_0} 01 00 05 68656c6c6f",
        f"00 {ID_0} 01 00 02 c328",
        f"00 {ID_0} ffffffffffffffffff01",
        f"00 {ID_0} 8102",
    ],
)
def test_malformed_payloads(payload):
    with pytest.raises(InvalidTicket) as caught:
        EndpointTicket.from_bytes(bytes.fromhex(payload))
    assert caught.value.hint


def test_other_types_are_a_programming_error():
    with pytest.raises(TypeError):
        EndpointTicket.parse(E3.encode())


def test_a_ticket_that_nobody_could_read_is_not_made():
    many = [IpAddr.parse(f"10.0.{n // 256}.{n % 256}:1") for n in range(257)]
    assert EndpointTicket(EndpointAddr(ID_0, many[:256]))
    with pytest.raises(InvalidTicket, match="at most 256"):
        EndpointTicket(EndpointAddr(ID_0, many))
    long = [CustomAddr(n, bytes(1024)) for n in range(6)]
    with pytest.raises(InvalidTicket, match="fewer addresses"):
        EndpointTicket(EndpointAddr(ID_0, long))


# --- tickets of any kind --------------------------------------------------------------------------


@given(st.from_regex(r"[a-z]{1,10}", fullmatch=True), st.binary(max_size=200))
def test_tickets_of_any_kind(kind, payload):
    text = encode_ticket(kind, payload)
    assert text.startswith(kind)
    assert decode_ticket(kind, text) == payload


@pytest.mark.parametrize("kind", ["", "Doc", "my-kind", "a1", "é", "a\n"])
def test_kinds_are_lower_case_letters(kind):
    with pytest.raises(ValueError, match="lower-case"):
        encode_ticket(kind, b"")


def test_messages_name_the_kind_expected():
    with pytest.raises(InvalidTicket, match=r"'endpoint'.*'blob'.*a blob ticket begins"):
        decode_ticket("blob", E3)
    with pytest.raises(InvalidTicket, match="not a topic ticket"):
        decode_ticket("topic", "hello")


def test_ticket_kind():
    assert ticket_kind(f" {E3}\n") == "endpoint"
    assert ticket_kind(BLOB_TICKET) == "blob"
    assert ticket_kind("docaaa") == "doc"
    assert ticket_kind("hello") is None
    assert ticket_kind("ENDPOINTaa") == "endpoint"
