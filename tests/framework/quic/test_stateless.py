"""Packets without a connection, and the headers of strangers."""

from __future__ import annotations

import os
import random

import pytest
from aioquic._buffer import Buffer
from aioquic.quic.packet import pull_quic_header
from hypothesis import given
from hypothesis import strategies as st
from quic_pair import Pair

from dialkey.quic import codes, stateless
from dialkey.quic.handshake.machine import split_datagram
from dialkey.quic.stateless import RETRY_LIFETIME_S, InitialHeader, Proof, parse_long_header


def initial() -> bytes:
    pair = Pair()
    pair.flush()
    return pair.sent[0].data


def test_a_client_s_first_datagram() -> None:
    data = initial()
    header = parse_long_header(data)
    assert header is not None
    assert header.version == 1
    assert header.is_initial
    assert len(header.destination_cid) == len(header.source_cid) == 8
    assert header.token == b""
    assert stateless.destination_cid(memoryview(data)) == header.destination_cid


def test_another_version_is_recognised_by_its_invariant_header() -> None:
    data = bytes.fromhex("c0 1a2a3a4a 04 01020304 02 0506") + bytes(1200)
    header = parse_long_header(data)
    assert header is not None
    assert (header.version, header.is_initial) == (0x1A2A3A4A, False)
    assert (header.destination_cid, header.source_cid) == (b"\x01\x02\x03\x04", b"\x05\x06")
    answer = stateless.version_negotiation(header)
    assert answer[1:5] == bytes(4)
    assert answer.endswith(bytes.fromhex("00000001"))
    # The answer goes to where the question came from.
    assert answer[5:].startswith(bytes.fromhex("02050604 01020304".replace(" ", "")))


def test_a_version_negotiation_packet_is_of_no_use() -> None:
    header = InitialHeader(5, b"12345678", b"abcdefgh", b"", False)
    assert parse_long_header(stateless.version_negotiation(header)) is None


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc0", bytes.fromhex("c000000001"), bytes.fromhex("c00000000115") + bytes(40)],
)
def test_cut_headers(data: bytes) -> None:
    assert parse_long_header(data) is None


@given(st.binary(max_size=80))
def test_any_bytes_as_a_long_header(data: bytes) -> None:
    header = parse_long_header(data)
    if header is not None:
        assert len(header.destination_cid) <= 20
        assert len(header.source_cid) <= 20
    assert len(stateless.destination_cid(memoryview(data))) <= 255


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_a_damaged_first_datagram(seed: int, changes: int) -> None:
    rng = random.Random(seed)
    data = bytearray(FIRST)
    for _ in range(changes):
        data[rng.randrange(60)] = rng.randrange(256)
    header = parse_long_header(bytes(data))
    assert header is None or header.version != 0
    long_part, short_part = split_datagram(bytes(data))
    assert len(long_part) == len(data)
    assert len(short_part) <= len(data)


FIRST = initial()


@given(st.binary(max_size=100))
def test_any_bytes_are_split(data: bytes) -> None:
    long_part, short_part = split_datagram(data)
    assert len(long_part) == len(data)
    assert not short_part or data.endswith(short_part)


def test_a_short_packet_behind_long_ones_is_split_off() -> None:
    # A client fills its first datagram up behind the packet, with bytes that are not a packet.
    length = pull_quic_header(Buffer(data=FIRST), host_cid_length=8).packet_length
    first, short = FIRST[:length], b"\x40" + bytes(40)
    assert split_datagram(first + short) == (first + bytes(len(short)), short)
    assert split_datagram(first + first + short) == (first + first + bytes(len(short)), short)
    assert split_datagram(FIRST) == (FIRST, b"")


def test_a_refusal_is_understood() -> None:
    pair = Pair()
    pair.flush()
    header = parse_long_header(pair.sent[0].data)
    assert header is not None
    answer = stateless.refusal(header, codes.CONNECTION_REFUSED, b"not you")
    pair.deliver(pair.client, "server", [answer])
    reason = pair.client.close_reason
    assert reason is not None
    assert (reason.cause, reason.error_code) == ("peer", codes.CONNECTION_REFUSED)
    assert reason.reason == b"not you"
    assert reason.during_handshake


def test_a_retry_token_is_good_for_its_address_and_for_a_while() -> None:
    retry = stateless.Retry(os.urandom)
    header = InitialHeader(1, b"original", b"client01", b"", True)
    packet = retry.packet(header, b"192.0.2.1:5000", b"newserv1", 1000.0)
    token_header = parse_long_header(packet)
    # A Retry is no Initial; the token stands between the ids and the integrity tag.
    assert token_header is None or not token_header.is_initial
    token = packet[7 + 8 + 8 : -16]
    again = InitialHeader(1, b"newserv1", b"client01", token, True)
    good = Proof(b"original", is_for_address=True)
    assert retry.check(again, b"192.0.2.1:5000", 1001.0) == good
    # By another way, or late: it tells how the handshake began, and proves nothing.
    stale = Proof(b"original", is_for_address=False)
    assert retry.check(again, b"192.0.2.1:5001", 1001.0) == stale
    assert retry.check(again, b"192.0.2.1:5000", 1000.0 + RETRY_LIFETIME_S + 1) == stale
    other = InitialHeader(1, b"another1", b"c", token, True)
    assert retry.check(other, b"192.0.2.1:5000", 1001.0) is None
    assert stateless.Retry(os.urandom).check(again, b"192.0.2.1:5000", 1001.0) is None
    for damaged in (b"", token[:-1], bytes(len(token)), token + b"x"):
        broken = InitialHeader(1, b"newserv1", b"client01", damaged, True)
        assert retry.check(broken, b"192.0.2.1:5000", 1001.0) is None


@given(st.binary(max_size=60), st.integers(0, 1000))
def test_what_is_sent_without_state_is_no_larger_than_what_asked_for_it(
    scid: bytes, reason_bytes: int
) -> None:
    """So whoever writes another's address on its packets gains nothing."""
    header = InitialHeader(1, b"original", scid[:20], b"", True)
    unknown = InitialHeader(0x1A2A3A4A, b"o" * 20, scid[:20], b"", False)
    for answer in (
        stateless.Retry(os.urandom).packet(header, b"192.0.2.1:5000", b"newserv1", 1000.0),
        stateless.refusal(header, codes.CONNECTION_REFUSED, b"x" * reason_bytes),
        stateless.version_negotiation(unknown),
    ):
        assert len(answer) <= stateless.MIN_INITIAL_BYTES


@given(st.binary(max_size=200))
def test_any_bytes_as_a_token(token: bytes) -> None:
    header = InitialHeader(1, b"newserv1", b"client01", token, True)
    assert RETRY.check(header, b"192.0.2.1:5000", 1000.0) is None


RETRY = stateless.Retry(os.urandom)


@pytest.mark.parametrize("trigger", [0, 21])
def test_no_reset_for_a_packet_that_is_too_short(trigger: int) -> None:
    assert stateless.stateless_reset(bytes(16), trigger, os.urandom) is None


@pytest.mark.parametrize("trigger", [22, 43, 44, 1200])
def test_a_reset_is_shorter_than_its_trigger(trigger: int) -> None:
    token = bytes(range(16))
    reset = stateless.stateless_reset(token, trigger, os.urandom)
    assert reset is not None
    assert 21 <= len(reset) < trigger
    assert reset.endswith(token)
    assert reset[0] & 0xC0 == 0x40


@given(
    segment=st.integers(9, 40),
    count=st.integers(1, 12),
    rest=st.integers(0, 39),
    change=st.none() | st.tuples(st.integers(0, 500), st.integers(1, 255)),
)
def test_the_destinations_of_a_batch_are_compared_as_each_would_be(
    segment: int, count: int, rest: int, change: tuple[int, int] | None
) -> None:
    one = bytes((0x40, *b"12345678")) + bytes(segment - 9)
    batch = bytearray(one * count + one[: rest % segment])
    if change is not None:
        batch[change[0] % len(batch)] ^= change[1]
    pieces = [bytes(batch[at : at + segment]) for at in range(0, len(batch), segment)]
    expected = all(not each[0] & 0x80 and each[1:9] == pieces[0][1:9] for each in pieces)
    assert stateless.have_one_destination(memoryview(batch), segment) == expected
