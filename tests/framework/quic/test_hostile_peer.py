"""A peer that has proved its key and then breaks every rule: each ends with the documented code.

None of it makes us hold memory that the limits do not allow.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
from quic_pair import Pair, frame, stream_frame

from dialkey.quic import codes, events
from dialkey.quic.connection import State
from dialkey.quic.packets.frames import VARINT_MAX

TOKEN = bytes(16)
MINE, YOURS, MINE_UNI, YOURS_UNI = 0, 1, 2, 3


def ack(largest: int, first_range: int, *more: int, delay: int = 0) -> bytes:
    return frame(codes.ACK, largest, delay, len(more) // 2, first_range, *more)


def new_cid(sequence: int, retire: int = 0, cid: bytes | None = None) -> bytes:
    cid = cid if cid is not None else b"cid%05d" % sequence
    return frame(codes.NEW_CONNECTION_ID, sequence, retire, bytes((len(cid),)), cid, TOKEN)


BAD = {
    "an unknown frame": (frame(0x21), codes.FRAME_ENCODING_ERROR),
    "an unknown frame of four bytes": (frame(0x12345678), codes.FRAME_ENCODING_ERROR),
    "a frame type of eight bytes": (b"\xff" * 8, codes.FRAME_ENCODING_ERROR),
    "a cut varint": (b"\x40", codes.FRAME_ENCODING_ERROR),
    # acknowledgements
    "an ack of what was never sent": (ack(1 << 20, 0), codes.PROTOCOL_VIOLATION),
    "an ack below zero": (ack(3, 4), codes.FRAME_ENCODING_ERROR),
    "a range below zero": (ack(3, 0, 1, 1), codes.FRAME_ENCODING_ERROR),
    "an ack with too few ranges": (frame(codes.ACK, 0, 0, 5, 0), codes.FRAME_ENCODING_ERROR),
    "an ack with 2^62 ranges": (frame(codes.ACK, 0, 0, VARINT_MAX, 0), codes.FRAME_ENCODING_ERROR),
    "an ecn ack without counts": (frame(codes.ACK_ECN, 0, 0, 0, 0), codes.FRAME_ENCODING_ERROR),
    "an ack for a path that never was": (
        frame(codes.PATH_ACK, 5, 0, 0, 0, 0),
        codes.PROTOCOL_VIOLATION,
    ),
    # streams
    "a stream frame that is cut off": (
        frame(codes.STREAM | 6, MINE, 0, 100, b"short"),
        codes.FRAME_ENCODING_ERROR,
    ),
    "data beyond 2^62": (
        stream_frame(MINE, VARINT_MAX, b"x"),
        codes.FRAME_ENCODING_ERROR,
    ),
    "data beyond the stream's window": (
        stream_frame(MINE, 1_250_000, b"x"),
        codes.FLOW_CONTROL_ERROR,
    ),
    "a giant offset": (stream_frame(MINE, 1 << 61, b"x"), codes.FLOW_CONTROL_ERROR),
    "an empty frame at a giant offset": (
        stream_frame(MINE, 1 << 61, b""),
        codes.FLOW_CONTROL_ERROR,
    ),
    "too many streams": (stream_frame(4 * 100, 0, b"x"), codes.STREAM_LIMIT_ERROR),
    "far too many streams": (stream_frame(VARINT_MAX - 3, 0, b"x"), codes.STREAM_LIMIT_ERROR),
    "too many one-way streams": (stream_frame(4 * 100 + 2, 0, b"x"), codes.STREAM_LIMIT_ERROR),
    "data on a stream that we never opened": (
        stream_frame(YOURS, 0, b"x"),
        codes.STREAM_STATE_ERROR,
    ),
    "data on a one-way stream of ours": (
        stream_frame(YOURS_UNI, 0, b"x"),
        codes.STREAM_STATE_ERROR,
    ),
    "data after the end": (
        stream_frame(MINE, 0, b"abc", finish=True) + stream_frame(MINE, 3, b"d"),
        codes.FINAL_SIZE_ERROR,
    ),
    "an end before data": (
        stream_frame(MINE, 5, b"abc") + stream_frame(MINE, 0, b"ab", finish=True),
        codes.FINAL_SIZE_ERROR,
    ),
    "two ends": (
        stream_frame(MINE, 0, b"abc", finish=True) + stream_frame(MINE, 0, b"ab", finish=True),
        codes.FINAL_SIZE_ERROR,
    ),
    "a reset below what came": (
        stream_frame(MINE, 0, b"abc") + frame(codes.RESET_STREAM, MINE, 0, 2),
        codes.FINAL_SIZE_ERROR,
    ),
    "a reset beyond the window": (
        frame(codes.RESET_STREAM, MINE, 0, 1 << 40),
        codes.FLOW_CONTROL_ERROR,
    ),
    "a reset of a one-way stream of ours": (
        frame(codes.RESET_STREAM, YOURS_UNI, 0, 0),
        codes.STREAM_STATE_ERROR,
    ),
    "a stop of the peer's own one-way stream": (
        frame(codes.STOP_SENDING, MINE_UNI, 0),
        codes.STREAM_STATE_ERROR,
    ),
    "a stop of a stream that we never opened": (
        frame(codes.STOP_SENDING, YOURS_UNI, 0),
        codes.STREAM_STATE_ERROR,
    ),
    "a limit for the peer's own one-way stream": (
        frame(codes.MAX_STREAM_DATA, MINE_UNI, 5),
        codes.STREAM_STATE_ERROR,
    ),
    "blocked on a one-way stream of ours": (
        frame(codes.STREAM_DATA_BLOCKED, YOURS_UNI, 5),
        codes.STREAM_STATE_ERROR,
    ),
    "more streams than there are numbers": (
        frame(codes.MAX_STREAMS_BIDI, (1 << 60) + 1),
        codes.FRAME_ENCODING_ERROR,
    ),
    # connection ids
    "an id of no bytes": (new_cid(9, cid=b""), codes.FRAME_ENCODING_ERROR),
    "an id of 21 bytes": (new_cid(9, cid=bytes(21)), codes.FRAME_ENCODING_ERROR),
    "an id of another length than all of ours": (
        new_cid(9, cid=bytes(20)),
        codes.PROTOCOL_VIOLATION,
    ),
    "an id that is cut off": (
        frame(codes.NEW_CONNECTION_ID, 9, 0, b"\x08abc"),
        codes.FRAME_ENCODING_ERROR,
    ),
    "ids that retire themselves": (new_cid(9, retire=10), codes.PROTOCOL_VIOLATION),
    "one sequence number for two ids": (
        new_cid(9) + new_cid(9, cid=b"another!"),
        codes.PROTOCOL_VIOLATION,
    ),
    "one id with two sequence numbers": (
        new_cid(9) + new_cid(10, cid=b"cid00009"),
        codes.PROTOCOL_VIOLATION,
    ),
    "too many ids": (
        b"".join(new_cid(n) for n in range(5, 9)),
        codes.CONNECTION_ID_LIMIT_ERROR,
    ),
    "a retired id that was never issued": (
        frame(codes.RETIRE_CONNECTION_ID, 99),
        codes.PROTOCOL_VIOLATION,
    ),
    # the rest
    "a token from a client": (frame(codes.NEW_TOKEN, 3, b"abc"), codes.PROTOCOL_VIOLATION),
    "a confirmation from a client": (frame(codes.HANDSHAKE_DONE), codes.PROTOCOL_VIOLATION),
    "too much TLS after the handshake": (
        frame(codes.CRYPTO, 65_536, 1, b"x"),
        codes.CRYPTO_BUFFER_EXCEEDED,
    ),
    "a challenge that is cut off": (
        frame(codes.PATH_CHALLENGE, b"1234567"),
        codes.FRAME_ENCODING_ERROR,
    ),
    "a datagram that is cut off": (
        frame(codes.DATAGRAM_WITH_LENGTH, 50, b"short"),
        codes.FRAME_ENCODING_ERROR,
    ),
    "a close that is cut off": (
        frame(codes.CONNECTION_CLOSE, 0, 0, 50, b"short"),
        codes.FRAME_ENCODING_ERROR,
    ),
    # multipath
    "an id for a path beyond the limit": (
        frame(codes.PATH_NEW_CONNECTION_ID, 8, 0, 0, b"\x0812345678", TOKEN),
        codes.PROTOCOL_VIOLATION,
    ),
    "the end of a path beyond the limit": (
        frame(codes.PATH_ABANDON, 8, 0),
        codes.PROTOCOL_VIOLATION,
    ),
    "a status of a path beyond the limit": (
        frame(codes.PATH_STATUS_BACKUP, 8, 1),
        codes.PROTOCOL_VIOLATION,
    ),
    "a path id above 2^32": (frame(codes.MAX_PATH_ID, 1 << 32), codes.FRAME_ENCODING_ERROR),
    "blocked beyond the limit": (frame(codes.PATHS_BLOCKED, 9), codes.PROTOCOL_VIOLATION),
}


@pytest.mark.parametrize("what", BAD)
def test_a_broken_rule_closes_with_its_code(what: str) -> None:
    payload, code = BAD[what]
    pair = Pair().connect()
    pair.settle()
    pair.client.inject(payload)
    reason = pair.server.close_reason
    assert reason is not None, "the server accepted it"
    assert (reason.cause, reason.error_code) == ("protocol", code), reason
    pair.run(lambda: pair.client.close_reason is not None, seconds=1)
    told = pair.client.close_reason
    assert told is not None
    assert (told.cause, told.error_code, told.is_application) == ("peer", code, False)
    pair.run(lambda: pair.server.c.state is State.GONE, seconds=5)


MULTIPATH_FRAMES = [
    frame(codes.PATH_ACK, 0, 0, 0, 0, 0),
    frame(codes.PATH_ABANDON, 0, 0),
    frame(codes.PATH_STATUS_AVAILABLE, 0, 1),
    frame(codes.PATH_NEW_CONNECTION_ID, 1, 0, 0, b"\x0812345678", TOKEN),
    frame(codes.MAX_PATH_ID, 9),
    frame(codes.PATHS_BLOCKED, 7),
]


@pytest.mark.parametrize("payload", MULTIPATH_FRAMES, ids=lambda each: each[:2].hex())
def test_an_extension_that_was_not_agreed_on(payload: bytes) -> None:
    pair = Pair(server={"multipath": False}).connect()
    pair.settle()
    pair.client.inject(payload)
    reason = pair.server.close_reason
    assert reason is not None
    assert reason.error_code == codes.PROTOCOL_VIOLATION


def test_a_packet_without_frames() -> None:
    pair = Pair().connect()
    # Too short a payload is filled up when it is sealed: this one has room, and nothing in it.
    protection = pair.client.c.protection
    assert protection is not None
    cid = pair.client.craft(b"\x01")
    assert codes.TAG_LENGTH == 16
    path = pair.client.path
    number = path.next_number
    header = bytes((0x43, *peer_cid(pair), *number.to_bytes(4, "big")))
    body = protection.send.encrypt((protection.send.iv ^ number).to_bytes(12, "big"), b"", header)
    mask = protection.send_header.masks(body[:16])
    packet = bytes((header[0] ^ mask[0] & 0x1F,)) + header[1:9]
    packet += bytes(a ^ b for a, b in zip(header[9:], mask[1:5], strict=True)) + body
    pair.deliver(pair.server, "client", [packet])
    reason = pair.server.close_reason
    assert len(packet) < len(cid)
    assert reason is not None
    assert reason.error_code == codes.PROTOCOL_VIOLATION


def peer_cid(pair: Pair) -> bytes:
    active = pair.client.path.cids.peer.active
    assert active is not None
    return active.cid


@pytest.mark.parametrize("bits", [0x08, 0x10, 0x18])
def test_reserved_bits(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair().connect()
    protection = pair.client.c.protection
    assert protection is not None
    monkeypatch.setattr(protection, "send_phase", bits >> 2)
    pair.client.inject(bytes((codes.PING,)))
    reason = pair.server.close_reason
    assert reason is not None
    assert reason.error_code == codes.PROTOCOL_VIOLATION


HARMLESS = {
    "padding": bytes(1000),
    "ping": bytes((codes.PING,)),
    "session tickets": frame(codes.CRYPTO, 0, 500, bytes(500)),
    "an end of a stream that is over": frame(codes.RESET_STREAM, MINE, 0, 3),
    "blocked": frame(codes.DATA_BLOCKED, 1) + frame(codes.STREAMS_BLOCKED_BIDI, 5),
    "a lower limit than before": frame(codes.MAX_DATA, 1) + frame(codes.MAX_STREAMS_UNI, 0),
    "an answer to no question": frame(codes.PATH_RESPONSE, b"12345678"),
    "an old id again": new_cid(9) + new_cid(9),
    "a datagram that fills the packet": frame(codes.DATAGRAM, b"to the end"),
    "an empty datagram": frame(codes.DATAGRAM_WITH_LENGTH, 0),
    "a path that was never used ends": frame(codes.PATH_ABANDON, 3, 0),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_is_merely_odd_is_accepted(what: str) -> None:
    pair = Pair().connect()
    stream = pair.client.must_open()
    pair.client.write(stream, b"abc", finish=True)
    pair.settle()
    pair.client.inject(HARMLESS[what])
    pair.settle()
    assert pair.server.close_reason is None


# --- memory ----------------------------------------------------------------------------------------


def flood(pair: Pair, rounds: int, payload: Callable[[int], bytes]) -> None:
    """Inject payloads without acknowledging anything."""
    pair.to_client.is_up = False
    for number in range(rounds):
        if pair.server.close_reason is not None:
            break
        pair.deliver(pair.server, "client", [pair.client.craft(payload(number))])
        pair.flush()
        pair.sent.clear()
        pair.server.log.clear()
        pair.server.reset_tokens.clear()
        pair.now += 0.001


def grows_by(pair: Pair, rounds: int, payload: Callable[[int], bytes]) -> int:
    """Do as `flood`; return the bytes that stay allocated."""
    tracemalloc.start()
    try:
        flood(pair, rounds, payload)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def close_code(pair: Pair) -> int | None:
    reason = pair.server.close_reason
    return reason.error_code if reason is not None else None


@pytest.fixture
def pair() -> Pair:
    pair = Pair().connect()
    pair.settle()
    pair.server.auto_read = False
    return pair


def test_ids_retired_again_and_again(pair: Pair) -> None:
    grown = grows_by(pair, 3000, lambda n: new_cid(n + 10, retire=n + 10))
    assert close_code(pair) in (codes.CONNECTION_ID_LIMIT_ERROR, codes.PROTOCOL_VIOLATION)
    assert grown < 1_000_000


def test_our_ids_retired_again_and_again(pair: Pair) -> None:
    grown = grows_by(pair, 3000, lambda n: frame(codes.RETIRE_CONNECTION_ID, n))
    assert len(pair.server.c.control) <= 1001
    assert len(pair.server.c.paths.ids.by_cid) <= 100
    assert grown < 1_000_000


def test_paths_ended_again_and_again(pair: Pair) -> None:
    grown = grows_by(pair, 3000, lambda n: frame(codes.PATH_ABANDON, n + 1, 0))
    assert close_code(pair) == codes.PROTOCOL_VIOLATION
    assert grown < 2_000_000


def test_a_stream_in_too_many_pieces(pair: Pair) -> None:
    grown = grows_by(
        pair,
        300,
        lambda n: b"".join(stream_frame(0, 2 * (n * 100 + i) + 1, b"x") for i in range(100)),
    )
    assert close_code(pair) == codes.INTERNAL_ERROR
    assert grown < 1_000_000


def test_many_tiny_pieces_in_order_are_joined(pair: Pair) -> None:
    grown = grows_by(
        pair, 100, lambda n: b"".join(stream_frame(0, n * 100 + i, b"x") for i in range(100))
    )
    assert close_code(pair) is None
    assert pair.server.recv[0].buffered == 10_000
    assert grown < 150_000


def test_challenges_without_end(pair: Pair) -> None:
    challenge = frame(codes.PATH_CHALLENGE, b"12345678")
    grown = grows_by(pair, 100, lambda n: challenge * 100)
    assert close_code(pair) is None
    assert len(pair.server.path.responses) <= 32
    assert grown < 500_000


def test_streams_opened_and_reset_without_reading_acknowledgements(pair: Pair) -> None:
    """The peer uses up its streams; it gets no more while our MAX_STREAMS finds no way to it."""
    grown = grows_by(
        pair,
        200,
        lambda n: stream_frame(4 * n, 0, b"x") + frame(codes.RESET_STREAM, 4 * n, 0, 1),
    )
    assert close_code(pair) in (None, codes.STREAM_LIMIT_ERROR)
    assert len(pair.server.c.streams.recv_halves) <= 200
    assert grown < 2_000_000


def test_forged_addresses_get_little(pair: Pair) -> None:
    """A peer that writes a victim's address on its packets cannot make us flood the victim."""
    challenge = frame(codes.PATH_CHALLENGE, b"12345678")
    at = len(pair.sent)
    packets = [pair.client.craft(challenge * 4) for _ in range(30)]
    pair.deliver(pair.server, "a victim", packets)
    pair.flush()
    there = sum(each.size for each in pair.sent[at:] if each.destination == "a victim")
    assert 0 < there <= 3 * sum(map(len, packets))
    assert there <= 1200


def test_the_same_packets_again_and_again(pair: Pair) -> None:
    packet = pair.client.craft(stream_frame(0, 0, bytes(1000)))
    for _ in range(1000):
        pair.deliver(pair.server, "client", [packet])
    assert pair.server.c.packets_duplicate == 999
    assert pair.server.recv[0].buffered == 1000


def test_packet_numbers_with_gaps_without_end(pair: Pair) -> None:
    def skip(number: int) -> bytes:
        pair.client.path.next_number += 1 + number % 3
        return bytes((codes.PING,))

    grown = grows_by(pair, 1000, skip)
    assert close_code(pair) is None
    assert len(pair.server.path.received.ranges()) <= 64
    assert grown < 300_000


def test_every_stream_at_its_window(pair: Pair) -> None:
    """Unread data is held up to the connection's window, whatever the number of streams."""
    window = pair.server.config.connection_window

    def payload(number: int) -> bytes:
        stream, at = number % 100, number // 100
        return stream_frame(4 * stream, at * 1100, bytes(1100))

    flood(pair, 12_000, payload)
    assert close_code(pair) == codes.FLOW_CONTROL_ERROR
    held = sum(half.buffered for half in pair.server.recv.values())
    assert held <= window + 1200


def test_events_do_not_pile_up(pair: Pair) -> None:
    pair.client.inject(frame(codes.DATAGRAM_WITH_LENGTH, 1, b"x") * 300)
    assert len(pair.server.datagrams) == 300
    assert not pair.server.c.events
    assert not pair.server.seen(events.Closed)


def test_acknowledgements_of_one_packet_again_and_again(pair: Pair) -> None:
    largest = pair.server.path.next_number - 1
    pair.client.inject(ack(largest, 0) * 150)
    assert close_code(pair) is None
    pair.to_client.is_up = True
    pair.settle()
    assert pair.server.path.recovery.eliciting_in_flight >= 0
