"""What one handshake may cost, whatever a stranger puts into it: bytes, work and time are bounded."""

from __future__ import annotations

import contextlib
import gc
import struct
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from aioquic._buffer import Buffer
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.tls import Epoch
from quic_pair import Pair, frame

from dialkey import limits
from dialkey.quic import codes
from dialkey.quic.connection import Connection, State
from dialkey.quic.handshake.machine import MAX_COALESCED_PACKETS, Machine, split_datagram

DCID, SCID = b"original", b"stranger"


def crypto(data: bytes, offset: int = 0) -> bytes:
    return frame(codes.CRYPTO, offset, len(data), data)


def hello_of_a_client() -> bytes:
    """Return the TLS message in a client's first flight."""
    pair = Pair()
    pair.flush()
    data = pair.sent[0].data
    buffer = Buffer(data=data)
    header = pull_quic_header(buffer, host_cid_length=8)
    opener = CryptoPair()
    opener.setup_initial(cid=header.destination_cid, is_client=False, version=1)
    _, plain, _ = opener.decrypt_packet(data[: header.packet_length], buffer.tell(), 0)
    inside = Buffer(data=plain[1:])
    assert inside.pull_uint_var() == 0
    return bytes(inside.pull_bytes(inside.pull_uint_var()))


HELLO = hello_of_a_client()
MOST_BYTES = 85_000
"""Some room below the 100 KiB of `limits.MAX_HALF_OPEN_HANDSHAKES`: what interpreters need for the same
differs by some kilobytes."""

BEGIN = b"\x01\x00\x0f\xf0"
"""The head of a ClientHello that just keeps within the limit and never ends."""


def initial(payload: bytes, number: int, *, dcid: bytes = DCID, to_client: bytes = b"") -> bytes:
    """Return a datagram with one Initial packet, from a client or, given its id, to one."""
    pair = CryptoPair()
    pair.setup_initial(cid=dcid, is_client=not to_client, version=1)
    builder = QuicPacketBuilder(
        host_cid=SCID,
        peer_cid=to_client or dcid,
        version=1,
        is_client=not to_client,
        max_datagram_size=1200,
        packet_number=number,
    )
    builder.start_packet(QuicPacketType.INITIAL, pair)
    builder.start_frame(payload[0], capacity=len(payload)).push_bytes(payload[1:])
    datagrams, _ = builder.flush()
    return b"".join(datagrams).ljust(1200, b"\0")


class Stranger:
    """Sends Initial packets to a server that knows nobody yet."""

    def __init__(self) -> None:
        self.pair = Pair()
        self.number = 0

    @property
    def core(self) -> Connection:
        return self.pair.server.c

    @property
    def is_over(self) -> bool:
        return self.pair.server.core is not None and self.core.state is not State.HANDSHAKE

    def send(self, payload: bytes) -> None:
        packet = initial(payload, self.number)
        self.number += 1
        self.pair.deliver(self.pair.server, "stranger", [packet])

    def why(self) -> tuple[int, bytes]:
        reason = self.core.close_reason
        assert reason is not None
        assert reason.cause == "protocol"
        return reason.error_code, reason.reason


@pytest.mark.parametrize("announced", [limits.MAX_TLS_MESSAGE_BYTES, 0xFFFFF0, 0xFFFFFF])
@pytest.mark.parametrize("kind", [1, 2, 11, 20])
def test_a_message_is_refused_for_the_length_that_it_announces(kind: int, announced: int) -> None:
    stranger = Stranger()
    stranger.send(crypto(bytes((kind,)) + announced.to_bytes(3, "big") + bytes(1000)))
    assert stranger.why() == (codes.CRYPTO_BUFFER_EXCEEDED, b"a TLS message is too long")


def test_a_head_in_single_bytes_is_read_all_the_same() -> None:
    stranger = Stranger()
    for at, byte in enumerate(b"\x01\xff\xff\xf0"):
        assert not stranger.is_over
        stranger.send(crypto(bytes((byte,)), at))
    assert stranger.why()[0] == codes.CRYPTO_BUFFER_EXCEEDED


@pytest.mark.parametrize("offset", [limits.MAX_HANDSHAKE_CRYPTO_BYTES - 9, 1 << 19, (1 << 62) - 11])
def test_a_piece_beyond_the_limit_is_refused_before_it_is_kept(offset: int) -> None:
    stranger = Stranger()
    stranger.send(crypto(BEGIN))
    tracemalloc.start()
    try:
        stranger.send(crypto(bytes(10), offset))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert stranger.why() == (codes.CRYPTO_BUFFER_EXCEEDED, b"too many bytes of TLS")
    assert peak < 100_000


def one_byte_apart(pieces: int) -> bytes:
    return b"".join(crypto(b"x", 16_000 - 5 * number) for number in range(pieces))


def every_second_packet() -> bytes:
    return frame(codes.ACK, 1200, 0, 300, 0) + b"\0\0" * 300 + frame(codes.PING)


WORK = {
    "pings": bytes((codes.PING,)),
    "a packet of pings": bytes((codes.PING,)) * 1000,
    "pings and padding in turn": bytes((codes.PING, codes.PADDING)) * 500,
    "the same bytes": crypto(BEGIN + bytes(500)),
    "single bytes with gaps": one_byte_apart(200),
    "as many of them as are kept": one_byte_apart(limits.MAX_HANDSHAKE_CRYPTO_PIECES - 1),
    "acknowledgements": every_second_packet(),
}


@pytest.mark.parametrize("what", WORK)
def test_the_work_for_one_handshake_has_an_end(what: str) -> None:
    """In packets that are looked at, which no clock on a busy machine can change."""
    stranger = Stranger()
    stranger.send(crypto(BEGIN))
    while not stranger.is_over:
        stranger.send(WORK[what])
        assert stranger.number <= limits.MAX_INCOMING_HANDSHAKE_WORK // 8
    assert stranger.why()[0] in {codes.PROTOCOL_VIOLATION, codes.CRYPTO_BUFFER_EXCEEDED}


def test_a_message_in_a_reasonable_number_of_pieces_is_put_together() -> None:
    pieces = [(at, HELLO[at : at + 8]) for at in range(0, len(HELLO), 8)]
    assert len(pieces) < limits.MAX_HANDSHAKE_CRYPTO_PIECES
    stranger = Stranger()
    for at, piece in [*pieces[1::2], *pieces[2::2]]:
        stranger.send(crypto(piece, at))
        assert not stranger.is_over
    stranger.send(crypto(pieces[0][1]))
    # It was read to its end: the client in it is another one than the sender.
    assert stranger.why() == (
        codes.TRANSPORT_PARAMETER_ERROR,
        b"initial_source_connection_id does not match",
    )


@pytest.mark.parametrize("what", WORK)
def test_the_memory_for_one_handshake_has_an_end(what: str) -> None:
    Stranger().send(crypto(HELLO))  # what is loaded on first use
    stranger = Stranger()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        stranger.send(crypto(BEGIN))
        for _ in range(30):
            stranger.send(WORK[what])
            after, _ = tracemalloc.get_traced_memory()
            if after - before >= MOST_BYTES:
                gc.collect()  # what is held counts, not what an interpreter has yet to collect
                after, _ = tracemalloc.get_traced_memory()
            assert after - before < MOST_BYTES
    finally:
        tracemalloc.stop()


def hello(extensions: list[tuple[int, bytes]]) -> bytes:
    listed = b"".join(struct.pack("!HH", kind, len(body)) + body for kind, body in extensions)
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\x00\x02\x13\x01" + b"\x01\x00"
    body += len(listed).to_bytes(2, "big") + listed
    return b"\x01" + len(body).to_bytes(3, "big") + body


def test_a_hello_of_the_largest_size_is_read_and_no_larger_one() -> None:
    room = limits.MAX_TLS_MESSAGE_BYTES - len(hello([(999, b"")]))
    for extra, text in (
        (0, b"No supported signature algorithm"),
        (1, b"a TLS message is too long"),
    ):
        stranger = Stranger()
        message = hello([(999, bytes(room + extra))])
        for at in range(0, len(message), 1000):
            if not stranger.is_over:
                stranger.send(crypto(message[at : at + 1000], at))
        assert stranger.why()[1] == text


def test_many_small_packets_in_one_datagram() -> None:
    """Each would cost as much as a large one, also those that cannot be opened."""
    packet = initial(crypto(BEGIN), 0)
    length = pull_quic_header(Buffer(data=packet), host_cid_length=8).packet_length
    small = packet[:length]
    datagram = small * 20
    kept, short = split_datagram(datagram)
    assert len(kept) == len(datagram)
    assert not short
    assert kept == small * MAX_COALESCED_PACKETS + bytes(12 * length)


def test_a_hostile_server_is_held_to_the_same() -> None:
    """The client knows neither key nor address of whoever answers first."""
    for payload in (crypto(b"\x02\xff\xff\xf0" + bytes(900)), crypto(bytes(10), 1 << 18)):
        pair = Pair()
        pair.flush()
        header = pull_quic_header(Buffer(data=pair.sent[0].data), host_cid_length=8)
        packet = initial(payload, 0, dcid=header.destination_cid, to_client=header.source_cid)
        pair.deliver(pair.client, "server", [packet])
        reason = pair.client.close_reason
        assert reason is not None
        assert (reason.cause, reason.error_code) == ("protocol", codes.CRYPTO_BUFFER_EXCEEDED)


def test_a_hostile_server_cannot_make_a_client_work_for_ever() -> None:
    pair = Pair()
    pair.flush()
    header = pull_quic_header(Buffer(data=pair.sent[0].data), host_cid_length=8)
    for number in range(limits.MAX_DIAL_HANDSHAKE_WORK // 8):
        packet = initial(
            crypto(b"\x02\x00\x0f\xf0"),
            number,
            dcid=header.destination_cid,
            to_client=header.source_cid,
        )
        pair.deliver(pair.client, "server", [packet])
    assert pair.client.close_reason is not None
    assert pair.client.close_reason.error_code == codes.PROTOCOL_VIOLATION


@pytest.mark.parametrize(
    ("cheat_is_client", "epoch", "number"),
    # A server is done with Handshake packets when it could acknowledge the client's.
    [
        # One counter is for both spaces: this is the number of the server's first Handshake packet.
        (True, Epoch.INITIAL, 1),
        (True, Epoch.INITIAL, 1 << 61),
        (True, Epoch.HANDSHAKE, 20),
        (True, Epoch.HANDSHAKE, 1 << 61),
        (False, Epoch.INITIAL, 20),
        (False, Epoch.INITIAL, 1 << 61),
    ],
)
def test_who_acknowledges_what_was_not_sent_is_found_out(
    monkeypatch: pytest.MonkeyPatch, cheat_is_client: bool, epoch: Epoch, number: int
) -> None:
    """aioquic would take everything below for lost, and what is on its way for delivered."""
    receive = Machine._payload_received

    def cheat(self: Machine, context: Any, *args: Any, **kwargs: Any) -> Any:
        if self._is_client == cheat_is_client and context.epoch == epoch:
            self._spaces[epoch].ack_queue.add(number)
        return receive(self, context, *args, **kwargs)

    monkeypatch.setattr(Machine, "_payload_received", cheat)
    pair = Pair()
    with contextlib.suppress(AssertionError):
        pair.connect(seconds=2)
    honest = pair.server.c if cheat_is_client else pair.client.c
    assert honest.close_reason is not None
    assert honest.close_reason.error_code == codes.PROTOCOL_VIOLATION
    assert honest.close_reason.reason == b"an unsent packet was acknowledged"


def test_tickets_without_end_after_the_handshake() -> None:
    pair = Pair().connect()
    pair.settle()
    pair.server.inject(crypto(bytes(1000), limits.MAX_POST_HANDSHAKE_CRYPTO_BYTES - 1000))
    assert pair.client.close_reason is None
    pair.server.inject(crypto(bytes(1000), limits.MAX_POST_HANDSHAKE_CRYPTO_BYTES - 999))
    assert pair.client.close_reason is not None
    assert pair.client.close_reason.error_code == codes.CRYPTO_BUFFER_EXCEEDED


# --- time -----------------------------------------------------------------------------------------


def every(step_s: float, begin: float, end: float) -> Iterator[float]:
    at = begin
    while at < end:
        yield at
        at += step_s


@pytest.mark.parametrize("step_s", [0.5, 2.0, 5.0])
def test_talking_does_not_put_the_deadline_off(step_s: float) -> None:
    stranger = Stranger()
    stranger.send(crypto(HELLO[:50]))
    begin = stranger.pair.now
    for at in every(step_s, begin + step_s, begin + limits.HANDSHAKE_TIMEOUT_S):
        stranger.pair.now = at
        stranger.send(bytes((codes.PING,)))
        due = stranger.core.timer()
        assert due is not None
        if due <= at:
            stranger.core.on_timer(at)
        assert stranger.core.state is State.HANDSHAKE
    assert stranger.core.idle.deadline == begin + limits.HANDSHAKE_TIMEOUT_S
    stranger.core.on_timer(begin + limits.HANDSHAKE_TIMEOUT_S)
    assert stranger.core.state is State.GONE
    assert stranger.core.close_reason is not None
    assert stranger.core.close_reason.cause == "handshake"


def test_packets_that_overtake_the_handshake_are_bounded_in_bytes() -> None:
    stranger = Stranger()
    stranger.send(crypto(HELLO[:50]))
    core = stranger.core
    for size, many in ((60_000, 1), (1400, 44), (30, 2000)):
        short = bytes((0x40,)) + core.host_cid + bytes(size - 9)
        core.receive(memoryview(short * many), size, "stranger", stranger.pair.now)
        held = sum(len(each) for each, _ in core.handshake._early)
        assert held <= limits.MAX_EARLY_SHORT_BYTES
        assert len(core.handshake._early) <= limits.MAX_EARLY_SHORT_BYTES // 100
