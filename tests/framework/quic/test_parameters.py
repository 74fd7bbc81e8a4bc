"""Transport parameters: what we send, what we read, what we refuse."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quic_pair import frame

from dialkey.quic import codes
from dialkey.quic.codes import TransportError
from dialkey.quic.handshake.parameters import TransportParameters, decode


def parameter(key: int, body: bytes) -> bytes:
    return frame(key, len(body), body)


def number(key: int, value: int) -> bytes:
    return parameter(key, frame(value))


def test_what_is_absent_has_the_default_of_the_rfc() -> None:
    empty = decode(b"")
    assert empty == TransportParameters()
    assert (empty.ack_delay_exponent, empty.max_ack_delay_ms) == (3, 25)
    assert empty.active_connection_id_limit == 2
    assert empty.initial_max_path_id is None


def test_iroh_s_own_parameters() -> None:
    """docs/wire/quic.md 2.1, with a reserved one that must be skipped."""
    data = b"".join(
        [
            number(0x01, 30_000),
            number(0x03, 1472),
            number(0x04, (1 << 62) - 1),
            *(number(key, 1_250_000) for key in (0x05, 0x06, 0x07)),
            number(0x08, 100),
            number(0x09, 100),
            number(0x0E, 5),
            parameter(0x0F, b"12345678"),
            number(0x20, 65_535),
            bytes.fromhex("3e0107"),
            bytes.fromhex("c0003d7f911204010120"),
            bytes.fromhex("c0000000ff04de1b0243e8"),
            parameter(31 * 5 + 27, b"grease"),
        ]
    )
    found = decode(data)
    assert found.max_idle_timeout_ms == 30_000
    assert found.initial_max_data == (1 << 62) - 1
    assert found.initial_max_stream_data_uni == 1_250_000
    assert found.active_connection_id_limit == 5
    assert found.initial_source_cid == b"12345678"
    assert found.max_datagram_frame_size == 65_535
    assert found.initial_max_path_id == 7


NUMBERS = [
    each.name
    for each in attrs.fields(TransportParameters)
    if each.type == "int" and each.name not in ("ack_delay_exponent", "max_ack_delay_ms")
]


@given(st.data())
def test_what_we_encode_is_what_is_read(data: st.DataObject) -> None:
    sent = TransportParameters()
    for name in NUMBERS:
        low = {"max_udp_payload_size": 1200, "active_connection_id_limit": 2}.get(name, 0)
        setattr(sent, name, data.draw(st.integers(low, 1 << 60)))
    sent.initial_max_path_id = data.draw(st.none() | st.integers(0, 0xFFFFFFFF))
    sent.initial_source_cid = data.draw(st.binary(max_size=20))
    sent.stateless_reset_token = data.draw(st.none() | st.binary(min_size=16, max_size=16))
    assert decode(sent.encode()) == sent


@pytest.mark.parametrize(
    "data",
    [
        number(0x01, 1) + number(0x01, 1),
        parameter(0x01, b""),
        parameter(0x01, b"\x05\x05"),
        parameter(0x01, b"\x80\x00"),
        number(0x0A, 21),
        number(0x0B, 1 << 14),
        number(0x0E, 1),
        number(0x03, 1199),
        number(0x08, (1 << 60) + 1),
        number(0x09, (1 << 60) + 1),
        parameter(0x02, bytes(15)),
        parameter(0x02, bytes(17)),
        number(0x3E, 1 << 32),
        b"\x01",
        b"\x01\x05ab",
        b"\x40",
        parameter(0x1234, b"")[:-1],
        frame(0x1234, (1 << 62) - 1),
        parameter(0x0F, b"1234") + parameter(0x0F, b"1234"),
    ],
)
def test_what_is_refused(data: bytes) -> None:
    with pytest.raises(TransportError) as caught:
        decode(data)
    assert caught.value.error_code == codes.TRANSPORT_PARAMETER_ERROR


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    try:
        found = decode(data)
    except TransportError as refused:
        code = refused.error_code
    else:
        code = codes.TRANSPORT_PARAMETER_ERROR
        assert found.active_connection_id_limit >= 2
    assert code == codes.TRANSPORT_PARAMETER_ERROR


def test_many_unknown_parameters_are_read_in_no_time() -> None:
    data = b"".join(parameter(1000 + i, b"") for i in range(10_000))
    assert decode(data) == TransportParameters()
