"""Blob tickets."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
)
from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat
from dialkey_blobs.ticket import BlobTicket

ID = EndpointId.parse("ae58ff8833241ac82d6ff7611046ed67b5072d142c588d0063e942d9a75502b6")
HI_THERE = Hash.of(b"hi there")
DERP = "https://use1-1.derp.iroh.network./"


def addr(endpoint_id: str | EndpointId, relay: str | None, *sockets: str) -> EndpointAddr:
    if isinstance(endpoint_id, str):
        endpoint_id = EndpointId.parse(endpoint_id)
    relays = [RelayAddr(RelayUrl(relay))] if relay else []
    return EndpointAddr(endpoint_id, [*relays, *(IpAddr.parse(socket) for socket in sockets)])


# docs/wire/blobs.md 7.1, docs/wire/discovery.md 4.3 (B1 to B4).
VECTORS = [
    (
        BlobTicket(addr(ID, None), HI_THERE),
        "blobacxfr74igmsbvsbnn73wcecg5vt3kbzncqwfrdiampuufwnhkublmaaaaafyju2y4tel43bymjvsdax7k5mb"
        "rotl2p2lsbdetff6ctftksqhe",
    ),
    (
        BlobTicket(addr(ID, None), HI_THERE, BlobFormat.HASH_SEQ),
        "blobacxfr74igmsbvsbnn73wcecg5vt3kbzncqwfrdiampuufwnhkublmaaaaefyju2y4tel43bymjvsdax7k5mb"
        "rotl2p2lsbdetff6ctftksqhe",
    ),
    (
        BlobTicket(addr(ID, "http://derp.me./", "127.0.0.1:1024"), HI_THERE, BlobFormat.HASH_SEQ),
        "blobacxfr74igmsbvsbnn73wcecg5vt3kbzncqwfrdiampuufwnhkublmaiqnb2hi4b2f4xwizlsoaxg2zjof4aq"
        "a7yaaaayacabbocngwhezc7gyodcnmqyf72xlamlu26t6s4qizezjpquzm2uubza",
    ),
    (
        BlobTicket(
            addr(
                "0b2b821e477f1b6b78c1aa53c217b92e2eee538e801cfc0b55f53750b3cae710",
                DERP,
                "173.56.221.209:51375",
                "173.56.221.209:60452",
                "192.168.86.54:60452",
            ),
            Hash.parse("c5b69773e434b2b3969884fc2eca3717ed33dca0034b9da461ab2f52d2e45a69"),
            BlobFormat.HASH_SEQ,
        ),
        "blobaafsxaq6i57rw23yygvfhqqxxexc53str2abz7alkx2touftzltraajcnb2hi4dthixs65ltmuys2mjomrsx"
        "e4bonfzg62bonzsxi53pojvs4lydacwtrxorv6iqgafnhdo5djgyamambkcwg2snqaybyw3jo47egszlhfuyqt6c"
        "5srxc7wthxfaanfz3jdbvmxvfuxeljuq",
    ),
    (
        BlobTicket(
            addr(
                "55ed01c5a5ad6a7721eb855ca7b5dc6709fa4832f143bae784e9c2de20ad5d32",
                DERP,
                "5.161.98.122:4433",
                "172.17.0.1:4433",
                "[2a01:4ff:f0:82fa::1]:4434",
            ),
            Hash.parse("d41667439899e4282aebfbddde7619e2d35464f78e1eab4c19be96799cddde11"),
        ),
        "blobabk62aofuwwwu5zb5ocvzj5v3rtqt6siglyuhoxhqtu4fxravvoteajcnb2hi4dthixs65ltmuys2mjomrsx"
        "e4bonfzg62bonzsxi53pojvs4lydaac2cyt22erablaraaa5ciqbfiaqj7ya6cbpuaaaaaaaaaaaahjceagucztu"
        "hgez4qucv2733xphmgpc2nkgj54od2vuygn6sz4zzxo6ce",
    ),
    (
        BlobTicket(
            addr(ID, "https://relay.example/", "127.0.0.1:1234", "[2001:db8::1]:443"),
            HI_THERE,
            BlobFormat.HASH_SEQ,
        ),
        "blobacxfr74igmsbvsbnn73wcecg5vt3kbzncqwfrdiampuufwnhkublmaiwnb2hi4dthixs64tfnrqxsltfpbqw"
        "24dmmuxqead7aaaaduqjaeqacdnyaaaaaaaaaaaaaaaaaaa3waybbocngwhezc7gyodcnmqyf72xlamlu26t6s4q"
        "izezjpquzm2uubza",
    ),
]


@pytest.mark.parametrize(("ticket", "text"), VECTORS)
def test_vectors(ticket: BlobTicket, text: str) -> None:
    assert str(ticket) == text
    assert BlobTicket.parse(text) == ticket
    assert BlobTicket.parse(f"  {text}\n") == ticket


def test_the_documented_payload() -> None:
    assert VECTORS[0][0].to_bytes() == bytes.fromhex(f"00 {ID} 00 00 00 {HI_THERE}")


sockets = st.builds(
    IpAddr,
    st.ip_addresses(v=4) | st.ip_addresses(v=6).map(lambda ip: ipaddress.IPv6Address(int(ip))),
    st.integers(0, 65535),
)
relays = st.sampled_from(["https://relay.example", DERP, "http://derp.me"])


@given(
    st.binary(min_size=32, max_size=32),
    st.none() | relays,
    st.lists(sockets, max_size=5),
    st.sampled_from(BlobFormat),
)
def test_tickets_round_trip(
    seed: bytes, relay: str | None, ips: list[IpAddr], blob_format: BlobFormat
) -> None:
    relay_addrs = [RelayAddr(RelayUrl(relay))] if relay else []
    endpoint = EndpointAddr(SecretKey(seed).id, [*relay_addrs, *ips])
    ticket = BlobTicket(endpoint, Hash.of(seed), blob_format)
    assert BlobTicket.parse(str(ticket)) == ticket
    assert ticket.content == HashAndFormat(Hash.of(seed), blob_format)


def test_what_the_format_has_no_place_for_is_dropped() -> None:
    full = addr(ID, "https://a.example", "127.0.0.1:1").with_addrs(
        [RelayAddr(RelayUrl("https://b.example")), CustomAddr(1, b"x")]
    )
    ticket = BlobTicket(full, HI_THERE)
    assert ticket.addr == addr(ID, "https://a.example", "127.0.0.1:1")
    assert BlobTicket.parse(str(ticket)) == ticket


def test_a_ticket_can_be_dialled() -> None:
    ticket = VECTORS[2][0]
    assert parse_remote(ticket) == ticket.addr


@pytest.mark.parametrize(
    "text",
    [
        "",
        "blob",
        "endpoint" + VECTORS[0][1][4:],
        VECTORS[0][1][:-1],
        VECTORS[0][1] + "=",
        VECTORS[0][1][:20] + "1" + VECTORS[0][1][21:],
        str(EndpointTicket(addr(ID, None))),
    ],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidTicket):
        BlobTicket.parse(text)


def test_a_ticket_is_read_in_capitals_and_wrapped() -> None:
    ticket, text = VECTORS[0][:2]
    for pasted in (text.upper(), text[:20] + " " + text[20:], f"{text[:50]}\n  {text[50:]}\n"):
        assert BlobTicket.parse(pasted) == ticket


def test_other_payloads_are_refused() -> None:
    payload = VECTORS[2][0].to_bytes()
    for bad in (b"\x01" + payload[1:], payload[:-33] + b"\x02" + payload[-32:], payload[:-1]):
        with pytest.raises(InvalidTicket):
            BlobTicket.from_bytes(bad)
    assert BlobTicket.from_bytes(payload + b"more") == VECTORS[2][0]


def test_too_many_addresses_are_refused() -> None:
    many = [f"127.0.0.1:{port}" for port in range(1, 258)]
    with pytest.raises(InvalidTicket, match="at most"):
        BlobTicket(addr(ID, None, *many), HI_THERE)


@given(st.binary(max_size=120))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    payload = VECTORS[0][0].to_bytes()
    for attempt in (data, payload[:33] + data):
        try:
            ticket = BlobTicket.parse(encode_ticket("blob", attempt))
        except InvalidTicket:
            continue
        assert BlobTicket.parse(str(ticket)) == ticket
        assert decode_ticket("blob", str(ticket)) == ticket.to_bytes()
