"""Whatever text or bytes arrive, a parser answers with a value or with its documented error."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dialkey.errors import InvalidAddress, InvalidKey, InvalidTicket, WireError
from dialkey.identity import (
    CustomAddr,
    EndpointAddr,
    EndpointId,
    EndpointTicket,
    IpAddr,
    RelayUrl,
    SecretKey,
    Signature,
    base32,
    decode_ticket,
    encode_ticket,
    parse_remote,
    read_relay_url,
    read_socket_addr,
    read_transport_addr,
    ticket_kind,
)
from dialkey.identity.postcard import Reader

TEXT_PARSERS = [
    (EndpointId.parse, InvalidKey),
    (EndpointId.from_z32, InvalidKey),
    (SecretKey.parse, InvalidKey),
    (Signature.parse, InvalidKey),
    (IpAddr.parse, InvalidAddress),
    (CustomAddr.parse, InvalidAddress),
    (RelayUrl, InvalidAddress),
    (EndpointTicket.parse, InvalidTicket),
    (lambda text: EndpointTicket.parse("endpoint" + text), InvalidTicket),
    (lambda text: decode_ticket("blob", text), InvalidTicket),
    (parse_remote, (InvalidTicket, InvalidKey)),
    (base32.decode, base32.Base32Error),
    (base32.decode_z32, base32.Base32Error),
    (base32.decode_hex, base32.Base32Error),
    (ticket_kind, ()),
]

BYTES_PARSERS = [
    (EndpointTicket.from_bytes, InvalidTicket),
    (lambda data: EndpointTicket.parse(encode_ticket("endpoint", data)), InvalidTicket),
    (lambda data: EndpointAddr.read(Reader(data)), WireError),
    (lambda data: EndpointId.read(Reader(data)), WireError),
    (lambda data: read_transport_addr(Reader(data)), WireError),
    (lambda data: read_socket_addr(Reader(data)), WireError),
    (lambda data: read_relay_url(Reader(data)), WireError),
    (CustomAddr.from_bytes, WireError),
    (EndpointId, InvalidKey),
    (SecretKey, InvalidKey),
    (Signature, InvalidKey),
    (lambda data: SecretKey(bytes(32)).id.verify(data, b"x"), WireError),
    (lambda data: Reader(data).varint(16), WireError),
    (lambda data: Reader(data).byte_string(2**64), WireError),
    (lambda data: Reader(data).string(2**64), WireError),
    (lambda data: Reader(data).option(), WireError),
]

ALL_CHARACTERS = st.characters(exclude_categories=())
TEXTS = st.one_of(
    st.text(ALL_CHARACTERS, max_size=80),
    st.text("0123456789abcdefABCDEFxyz_:.[]%+- \n٠\ud800", max_size=70),
    st.text("0123456789abcdef", min_size=64, max_size=64),
    st.text("ybndrfg8ejkmcpqxot1uwisza345h769", min_size=52, max_size=52),
    st.builds(
        "".join,
        st.lists(
            st.sampled_from(["https://", "//", "[", "]", "::", "xn--", "%", "1.", "\ud800", "אa"]),
            max_size=8,
        ),
    ),
)
ID = bytes(SecretKey(bytes(32)).id)
BYTES = st.one_of(
    st.binary(max_size=120),
    st.binary(max_size=60).map(lambda tail: b"\x00" + ID + tail),
    st.binary(max_size=60).map(lambda tail: ID + tail),
)


@pytest.mark.parametrize(("parse", "errors"), TEXT_PARSERS)
@settings(deadline=None)
@given(text=TEXTS)
@example(text="https://\u0378.example")
@example(text="https://xn--\u00fc")
@example(text="https://xn--99999999999")
@example(text="https://" + "1" * 1000)
@example(text="https://0x" + "f" * 1000)
@example(text="https://" + "." * 1000)
@example(text="1" * 5000 + "_")
@example(text="1.2.3.4:" + "1" * 5000)
@example(text="a" * 100_000)
def test_texts(parse, errors, text):
    try:
        parse(text)
    except errors:
        pass


@pytest.mark.parametrize(("parse", "errors"), BYTES_PARSERS)
@settings(deadline=None)
@given(data=BYTES)
@example(data=b"\xff" * 64)
@example(data=b"\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
def test_bytes(parse, errors, data):
    try:
        parse(data)
    except errors:
        pass


@settings(deadline=None)
@given(st.data())
def test_a_ticket_with_one_byte_changed_is_read_or_refused_whole(data):
    payload = bytearray(
        EndpointTicket(
            EndpointAddr(SecretKey(bytes(32)).id)
            .with_addrs([IpAddr.parse("127.0.0.1:1234"), IpAddr.parse("[::1]:1")])
            .with_addrs([CustomAddr(1, b"abc")])
        ).to_bytes()
    )
    position = data.draw(st.integers(0, len(payload) - 1))
    payload[position] = data.draw(st.integers(0, 255))
    try:
        ticket = EndpointTicket.from_bytes(bytes(payload))
    except InvalidTicket:
        return
    assert EndpointTicket.parse(str(ticket)) == ticket
