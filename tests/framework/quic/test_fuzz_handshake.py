"""What a stranger can send: well-protected Initial packets with any frames and any TLS in them.

Initial keys are known to everybody who sees the connection ids, so nothing here needs a secret. A server
may answer, close, or keep silent; it must not raise, hang, or keep more than one handshake's worth.
"""

from __future__ import annotations

import itertools
import random

from aioquic._buffer import Buffer
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from aioquic.quic.packet_builder import QuicPacketBuilder
from hypothesis import given, settings
from hypothesis import strategies as st
from quic_pair import Pair, frame

from dialkey.quic import codes
from dialkey.quic.connection import Connection

fuzz = settings(max_examples=80, deadline=None)


def protect(payload: bytes, *, dcid: bytes, scid: bytes, is_client: bool, key_cid: bytes) -> bytes:
    """Return an Initial packet with this payload, as anybody can make it."""
    pair = CryptoPair()
    pair.setup_initial(cid=key_cid, is_client=is_client, version=1)
    builder = QuicPacketBuilder(
        host_cid=scid, peer_cid=dcid, version=1, is_client=is_client, max_datagram_size=1200
    )
    builder.start_packet(QuicPacketType.INITIAL, pair)
    body = payload[:1100]
    buffer = builder.start_frame(body[0] if body else 0, capacity=1 + len(body))
    buffer.push_bytes(body[1:])
    datagrams, _ = builder.flush()
    return b"".join(datagrams).ljust(1200, b"\0")


def hello_of(pair: Pair) -> bytes:
    """Return the TLS message in a client's first flight."""
    pair.flush()
    data = pair.sent[0].data
    header = pull_quic_header(Buffer(data=data), host_cid_length=8)
    crypto = CryptoPair()
    crypto.setup_initial(cid=header.destination_cid, is_client=False, version=1)
    buffer = Buffer(data=data)
    pull_quic_header(buffer, host_cid_length=8)
    _, plain, _ = crypto.decrypt_packet(data[: header.packet_length], buffer.tell(), 0)
    assert plain[0] == codes.CRYPTO
    frame_buffer = Buffer(data=plain[1:])
    assert frame_buffer.pull_uint_var() == 0
    return bytes(frame_buffer.pull_bytes(frame_buffer.pull_uint_var()))


HELLO = hello_of(Pair())
DCID, SCID = b"original", b"stranger"


def answer_to(payloads: list[bytes]) -> Pair:
    """Let a server receive Initial packets with these payloads, and live on for a while."""
    pair = Pair()
    for payload in payloads:
        packet = protect(payload, dcid=DCID, scid=SCID, is_client=True, key_cid=DCID)
        pair.deliver(pair.server, "stranger", [packet])
    pair._dirty.pop(pair.client, None)
    core = pair.server.core
    if core is not None:
        pair.flush()
        for _ in range(10):
            at = core.timer()
            if at is None:
                break
            pair.now = max(at, pair.now)
            core.on_timer(pair.now)
            pair.flush()
        sent = sum(each.size for each in pair.sent if each.sender == "server")
        assert sent <= 3 * 1200 * len(payloads)
    return pair


def crypto(data: bytes, offset: int = 0) -> bytes:
    return frame(codes.CRYPTO, offset, len(data), data)


@fuzz
@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=3))
def test_random_frames_in_initial_packets(payloads: list[bytes]) -> None:
    answer_to(payloads)


@fuzz
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_damaged_client_hellos(seed: int, changes: int) -> None:
    rng = random.Random(seed)
    hello = bytearray(HELLO)
    for _ in range(changes):
        kind = rng.randrange(4)
        at = rng.randrange(len(hello))
        if kind == 0:
            hello[at] = rng.randrange(256)
        elif kind == 1:
            hello[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del hello[at : at + rng.randrange(1, 20)]
        else:
            hello[at:at] = rng.randbytes(rng.randrange(1, 20))
        hello = hello or bytearray(b"\x01")
    if rng.random() < 0.5:
        # The length is right, so that what is inside gets read.
        hello[0:4] = b"\x01" + max(0, len(hello) - 4).to_bytes(3, "big")
    answer_to([crypto(bytes(hello[:1000]))])


@fuzz
@given(st.binary(min_size=1, max_size=200), st.sampled_from([1, 2, 8, 11, 13, 15, 20, 24]))
def test_other_tls_messages(body: bytes, kind: int) -> None:
    message = bytes((kind,)) + len(body).to_bytes(3, "big") + body
    answer_to([crypto(message)])
    answer_to([crypto(HELLO), crypto(message, len(HELLO))])


@fuzz
@given(st.integers(0, 2**32))
def test_a_hello_in_pieces_in_any_order(seed: int) -> None:
    rng = random.Random(seed)
    cuts = sorted({0, len(HELLO), *(rng.randrange(len(HELLO)) for _ in range(5))})
    pieces = [crypto(HELLO[a:b], a) for a, b in itertools.pairwise(cuts)]
    rng.shuffle(pieces)
    pair = answer_to(pieces)
    core = pair.server.core
    assert core is not None
    assert any(each.sender == "server" for each in pair.sent), "it is a whole hello"


@fuzz
@given(st.integers(0, 2**32))
def test_what_a_man_in_the_middle_can_make_of_the_answer(seed: int) -> None:
    """Server Initials with any TLS: the client may fail, but only with a reason."""
    rng = random.Random(seed)
    pair = Pair()
    pair.flush()
    header = pull_quic_header(Buffer(data=pair.sent[0].data), host_cid_length=8)
    body = rng.randbytes(rng.randrange(1, 150))
    message = bytes((2,)) + len(body).to_bytes(3, "big") + body
    payload = rng.choice([crypto(message), body, frame(codes.CONNECTION_CLOSE, 1, 0, 0)])
    packet = protect(
        payload,
        dcid=header.source_cid,
        scid=b"attacker",
        is_client=False,
        key_cid=header.destination_cid,
    )
    pair.deliver(pair.client, "server", [packet])
    pair.flush()
    reason = pair.client.close_reason
    assert reason is None or reason.cause in ("protocol", "peer")


@fuzz
@given(st.binary(max_size=64), st.binary(max_size=40))
def test_any_retry_or_version_negotiation(body: bytes, ids: bytes) -> None:
    pair = Pair()
    pair.flush()
    header = pull_quic_header(Buffer(data=pair.sent[0].data), host_cid_length=8)
    for first, version in ((0xF0, 1), (0x80, 0), (0xF0, 0x1A2A3A4A)):
        data = bytes((first,)) + version.to_bytes(4, "big") + b"\x08" + header.source_cid
        data += bytes((len(ids) % 21,)) + ids[: len(ids) % 21] + body
        pair.deliver(pair.client, "server", [data])
    pair.flush()
    core: Connection = pair.client.c
    assert core.close_reason is None or core.close_reason.during_handshake
