"""Relay frames: the vectors of docs/wire/relay.md 8.3, limits, and hostile input."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey.errors import RemoteError
from dialkey.identity import SecretKey
from dialkey_relay.errors import RelayViolation, RelayWireError
from dialkey_relay.frames import (
    MAX_SENT_CONTENT,
    Datagrams,
    EndpointGone,
    Health,
    Ping,
    Pong,
    RelayVersion,
    Restarting,
    Status,
    StatusCode,
    decode_client_frame,
    decode_server_frame,
    encode_server_frame,
    encode_to_relay,
    normalise_type,
    to_batches,
)

PK_HEX = "197f6b23e16c8532c6abc838facd5ea789be0c76b2920334039bfa8b3d368d61"
PK = bytes.fromhex(PK_HEX)
HELLO = b"Hello World!"
V1, V2 = RelayVersion.V1, RelayVersion.V2

TO_RELAY = [
    (Ping(b"\x2a" * 8), "092a2a2a2a2a2a2a2a"),
    (Pong(b"\x2a" * 8), "0a2a2a2a2a2a2a2a2a"),
    (Datagrams(PK, HELLO, None, 3), "04" + PK_HEX + "0348656c6c6f20576f726c6421"),
    (Datagrams(PK, HELLO, 6, 3), "05" + PK_HEX + "03000648656c6c6f20576f726c6421"),
]
FROM_RELAY = [
    (Ping(b"\x2a" * 8), "092a2a2a2a2a2a2a2a", V2),
    (Pong(b"\x2a" * 8), "0a2a2a2a2a2a2a2a2a", V2),
    (Datagrams(PK, HELLO, None, 3), "06" + PK_HEX + "0348656c6c6f20576f726c6421", V2),
    (Datagrams(PK, HELLO, 6, 3), "07" + PK_HEX + "03000648656c6c6f20576f726c6421", V1),
    (EndpointGone(PK), "08" + PK_HEX, V2),
    (
        Health("Hello? Yes this is dog."),
        "0b48656c6c6f3f20596573207468697320697320646f672e",
        V1,
    ),
    (Restarting(10, 20), "0c0000000a00000014", V2),
    (Status(StatusCode.HEALTHY), "0d00", V2),
    (Status(StatusCode.SAME_ENDPOINT_ID_CONNECTED), "0d01", V2),
    (Status(StatusCode.RATE_LIMITED), "0d02", V2),
]


def test_the_key_of_the_vectors_is_that_of_secret_2a() -> None:
    assert bytes(SecretKey(b"\x2a" * 32).id) == PK


@pytest.mark.parametrize(("frame", "wire"), TO_RELAY)
def test_vectors_to_the_relay(frame, wire) -> None:
    assert encode_to_relay(frame).hex() == wire
    assert decode_client_frame(bytes.fromhex(wire)) == frame


@pytest.mark.parametrize(("frame", "wire", "version"), FROM_RELAY)
def test_vectors_from_the_relay(frame, wire, version) -> None:
    assert encode_server_frame(frame).hex() == wire
    assert decode_server_frame(bytes.fromhex(wire), version) == frame


def test_a_batch_splits_by_its_segment_size() -> None:
    assert Datagrams(PK, HELLO, 6).split() == [b"Hello ", b"World!"]
    assert Datagrams(PK, HELLO, 5).split() == [b"Hello", b" Worl", b"d!"]
    assert Datagrams(PK, HELLO, 500).split() == [HELLO]
    assert Datagrams(PK, HELLO).split() == [HELLO]
    assert Datagrams(PK, b"").split() == []


def test_odd_but_accepted_input() -> None:
    assert decode_client_frame(bytes.fromhex("4009") + b"12345678") == Ping(b"12345678")
    assert decode_server_frame(b"\x06" + PK + b"\x07x", V2) == Datagrams(PK, b"x", None, 3)
    assert decode_server_frame(b"\x07" + PK + b"\0\0\0xy", V2) == Datagrams(PK, b"xy", None)
    assert decode_server_frame(b"\x06" + PK + b"\0", V2) == Datagrams(PK, b"")
    assert decode_server_frame(b"\x0d\x01more", V2) == Status(1)
    assert decode_server_frame(b"\x0d\x09", V2) == Status(9)
    whole = b"\x06" + PK + b"\0" + b"x" * (65_536 - 33)
    assert decode_server_frame(whole, V2).content == b"x" * (65_536 - 33)


@pytest.mark.parametrize(
    "wire",
    [
        "",
        "40",
        "0d",
        "0c0000",
        "0a" + "00" * 7,
        "09" + "00" * 7,
        "09" + "00" * 9,
        "08" + "00" * 31,
        "06" + PK_HEX,
        "07" + PK_HEX + "0000",
        "06" + PK_HEX + "00" + "78" * (65_537 - 33),
    ],
)
def test_malformed_frames_from_a_relay(wire) -> None:
    with pytest.raises(RelayWireError):
        decode_server_frame(bytes.fromhex(wire), V2)


@pytest.mark.parametrize("first", ["0e", "02", "04", "05", "0b", "01", "7fff"])
def test_frames_that_a_relay_may_not_send(first) -> None:
    with pytest.raises(RelayViolation):
        decode_server_frame(bytes.fromhex(first) + PK + b"\0\0\x05hello", V2)


def test_status_and_health_belong_to_one_version_each() -> None:
    with pytest.raises(RelayViolation):
        decode_server_frame(b"\x0d\x00", V1)
    with pytest.raises(RelayViolation):
        decode_server_frame(b"\x0bhello", V2)
    with pytest.raises(RelayWireError):
        decode_server_frame(b"\x0b\xff", V1)


def test_a_health_text_is_cut_at_a_character() -> None:
    text = "ä" * 4000
    frame = decode_server_frame(b"\x0b" + b"x" + text.encode(), V1)
    assert isinstance(frame, Health)
    assert len(frame.text.encode()) == 4095
    assert text.startswith(frame.text[1:])


@pytest.mark.parametrize("frame_type", [0, 1, 2, 3, 6, 7, 8, 11, 12, 13, 14, 63])
def test_frames_that_a_client_may_not_send(frame_type) -> None:
    with pytest.raises(RelayViolation):
        decode_client_frame(bytes((frame_type,)) + PK + b"\0\0\x05hello")


def test_what_no_strict_decoder_would_take_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="without content"):
        encode_to_relay(Datagrams(PK, b""))
    with pytest.raises(ValueError, match="at most"):
        encode_to_relay(Datagrams(PK, b"x" * (MAX_SENT_CONTENT + 1)))
    largest = encode_to_relay(Datagrams(PK, b"x" * MAX_SENT_CONTENT, 1200))
    assert len(largest) == 65_536


def test_types_are_normalised() -> None:
    assert normalise_type(bytes.fromhex("4009") + b"12345678") == b"\x0912345678"
    assert normalise_type(b"\x04abc") == b"\x04abc"
    with pytest.raises(RelayViolation):
        normalise_type(bytes.fromhex("4010"))


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from(RelayVersion))
def test_arbitrary_messages_raise_one_error_family(message, version) -> None:
    for decode in (decode_client_frame, lambda m: decode_server_frame(m, version)):
        try:
            frame = decode(message)
        except RemoteError:
            continue
        if isinstance(frame, Datagrams):
            assert b"".join(frame.split()) == frame.content


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 2000) | st.sampled_from([1200, 1452, 70_000]), max_size=60),
    st.integers(1, 12),
)
def test_batching_keeps_datagrams_and_their_order(sizes, max_segments) -> None:
    datagrams = [bytes((n & 255,)) * size for n, size in enumerate(sizes)]
    frames = list(to_batches(PK, datagrams, ecn=2, max_segments=max_segments))
    out = []
    for frame in frames:
        assert decode_client_frame(encode_to_relay(frame)) == frame
        parts = frame.split()
        assert 0 < len(parts) <= max_segments
        out += parts
    assert out == [d for d in datagrams if 0 < len(d) <= MAX_SENT_CONTENT]


def test_equal_datagrams_share_a_frame() -> None:
    frames = list(to_batches(PK, [b"x" * 1452] * 25 + [b"y" * 10]))
    assert [len(frame.split()) for frame in frames] == [10, 10, 6]
