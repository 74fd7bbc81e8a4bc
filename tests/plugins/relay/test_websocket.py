"""WebSocket framing, with the `websockets` package as the other side."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Opcode
from websockets.protocol import CLIENT, OPEN, SERVER, Protocol

from dialkey_relay.websocket import (
    BINARY,
    CLOSE,
    PING,
    TEXT,
    FrameReader,
    WebSocketError,
    binary_header,
    encode_close,
    encode_frame,
)

LIMIT = 70_000
MASK = b"\x01\x02\x03\x04"


def feed(reader, data, cuts=()):
    messages = []
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, stop in itertools.pairwise(edges):
        messages += reader.feed(memoryview(bytes(data[start:stop])))
    return messages


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 1000, 65_535, 65_536, 70_000])
@pytest.mark.parametrize("from_client", [True, False])
def test_agrees_with_websockets_at_every_length_form(size, from_client) -> None:
    payload = bytes(n * 7 & 255 for n in range(size))
    other = Protocol(CLIENT if from_client else SERVER, state=OPEN, max_size=None)
    other.send_binary(payload)
    reader = FrameReader(from_client=from_client, limit=LIMIT)
    assert feed(reader, b"".join(other.data_to_send()), [1, 5, 100]) == [payload]
    ours = encode_frame(BINARY, payload, None if from_client else MASK)
    if from_client:
        assert ours == binary_header(size) + payload
    other.receive_data(ours)
    assert [event.data for event in other.events_received()] == [payload]


# A list of what the peer does: (opcode name, payload, fin)
PIECES = st.lists(
    st.tuples(st.sampled_from(["binary", "text", "ping", "pong", "frag"]), st.binary(max_size=300)),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(PIECES, st.lists(st.integers(0, 5000), max_size=8), st.booleans())
def test_any_stream_in_any_cuts(pieces, cuts, from_client) -> None:
    other = Protocol(CLIENT if from_client else SERVER, state=OPEN)
    messages, pings, texts = [], [], 0
    for kind, payload in pieces:
        if kind == "binary":
            other.send_binary(payload)
            messages.append(payload)
        elif kind == "text":
            other.send_text(payload.hex().encode())
            texts += 1
        elif kind == "ping":
            other.send_ping(payload[:125])
            pings.append(payload[:125])
        elif kind == "pong":
            other.send_pong(payload[:125])
        else:
            middle = len(payload) // 2
            other.send_binary(payload[:middle], fin=False)
            other.send_ping(b"between")
            pings.append(b"between")
            other.send_continuation(payload[middle:], fin=True)
            messages.append(payload)
    reader = FrameReader(from_client=from_client, limit=LIMIT)
    assert feed(reader, b"".join(other.data_to_send()), cuts) == messages
    assert reader.pings == pings[-16:]
    assert reader.skipped_texts == texts


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_arbitrary_bytes_never_crash_nor_hoard(data, from_client) -> None:
    reader = FrameReader(from_client=from_client, limit=200)
    other = Protocol(SERVER if from_client else CLIENT, state=OPEN, max_size=200)
    try:
        messages = feed(reader, data, range(0, 400, 7))
    except WebSocketError:
        messages = None
    other.receive_data(data)
    if messages is None:
        assert other.parser_exc is not None
    else:
        assert all(len(message) <= 200 for message in messages)


def test_close_ends_the_stream() -> None:
    reader = FrameReader(from_client=False, limit=LIMIT)
    data = encode_frame(BINARY, b"a") + encode_close(1000) + encode_frame(BINARY, b"b")
    assert reader.feed(memoryview(data)) == [b"a"]
    assert reader.close_payload == b"\x03\xe8"
    assert reader.feed(memoryview(b"\xff" * 10)) == []


def test_a_masked_close_is_what_a_client_sends() -> None:
    other = Protocol(SERVER, state=OPEN)
    other.receive_data(encode_close(1000, MASK))
    assert other.close_rcvd is not None
    assert other.close_rcvd.code == 1000


@pytest.mark.parametrize(
    "data",
    [
        encode_frame(BINARY, b"x"),  # unmasked from a client
        b"\xc2\x80" + MASK,  # RSV1
        b"\x83\x80" + MASK,  # unknown opcode
        b"\x80\x80" + MASK,  # continuation of nothing
        b"\x09\x80" + MASK,  # fragmented ping
        b"\x89\xfe\x00\x7e" + MASK + b"x" * 126,  # long ping
        b"\x88\x81" + MASK + b"x",  # half a close code
        b"\x02\x80" + MASK + b"\x82\x80" + MASK,  # message inside a message
        b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff",  # giant length
    ],
)
def test_rules_that_clients_break(data) -> None:
    reader = FrameReader(from_client=True, limit=LIMIT)
    with pytest.raises(WebSocketError):
        reader.feed(memoryview(data))


def test_a_masked_server_frame_is_refused() -> None:
    with pytest.raises(WebSocketError):
        FrameReader(from_client=False, limit=LIMIT).feed(memoryview(encode_frame(2, b"", MASK)))


def test_the_limit_holds_for_fragments_together() -> None:
    reader = FrameReader(from_client=False, limit=100)
    first = bytes((BINARY, 60)) + b"x" * 60
    with pytest.raises(WebSocketError) as caught:
        reader.feed(memoryview(first + bytes((0x80, 60)) + b"x" * 60))
    assert caught.value.close_code == 1009


def test_endless_empty_fragments_hold_nothing() -> None:
    reader = FrameReader(from_client=False, limit=100)
    reader.feed(memoryview(bytes((BINARY, 0)) + bytes((0, 0)) * 10_000))
    assert reader.feed(memoryview(b"\x80\x01x")) == [b"x"]


def test_text_is_skipped_and_pings_are_kept() -> None:
    reader = FrameReader(from_client=False, limit=100)
    data = encode_frame(TEXT, b"hello") + encode_frame(PING, b"p") + encode_frame(BINARY, b"b")
    assert reader.feed(memoryview(data)) == [b"b"]
    assert reader.skipped_texts == 1
    assert reader.pings == [b"p"]
    assert Opcode(CLOSE) is Opcode.CLOSE
