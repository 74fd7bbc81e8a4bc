"""Credit for streams: given back when a stream is over and was taken, and as soon as it is wanted."""

from __future__ import annotations

import pytest
from quic_pair import Pair, frame, stream_frame

from dialkey import limits
from dialkey.quic import codes
from dialkey.quic.packets.reader import Arrival
from dialkey.quic.streams.limits import StreamLimits
from dialkey.quic.streams.table import Streams

MOST = limits.MAX_INCOMING_STREAMS


def open_all(pair: Pair, *, uni: bool = True) -> list[int]:
    """Open streams, with a byte on each, until the peer allows no more."""
    streams = []
    while (stream := pair.client.open(uni=uni)) is not None:
        pair.client.write(stream, b"x")
        streams.append(stream)
    return streams


# --- credit waits for the application ------------------------------------------------------------


@pytest.mark.parametrize("uni", [True, False])
def test_streams_that_nobody_accepted_give_no_place_back(uni: bool) -> None:
    pair = Pair().connect()
    pair.server.auto_accept = False
    opened = 0
    for _ in range(5):
        for stream in open_all(pair, uni=uni):
            pair.client.reset(stream, 1)
            if not uni:
                pair.client.stop(stream, 1)
            opened += 1
        pair.settle(2)
    assert opened == MOST
    kind = pair.server.c.streams.uni if uni else pair.server.c.streams.bidi
    assert kind.waiting == MOST
    assert not pair.server.c.streams.recv_halves
    assert not pair.server.c.streams.send_halves


def test_accepting_streams_that_are_over_frees_their_places() -> None:
    pair = Pair().connect()
    pair.server.auto_accept = False
    streams = open_all(pair)
    for stream in streams:
        pair.client.reset(stream, 1)
    pair.settle(1)
    assert pair.client.open(uni=True) is None
    for stream in streams[:7]:
        pair.server.accept(stream)
    pair.settle(1)
    assert len(open_all(pair)) == 7


def test_a_place_comes_back_only_once() -> None:
    kind = StreamLimits(2, 10)
    kind.opened(2)
    kind.over(2)
    assert kind.owed == 0
    kind.taken(2)
    kind.taken(2)
    assert kind.owed == 1


# --- credit comes back ---------------------------------------------------------------------------


@pytest.mark.parametrize("history", [1, 10, 24, 37, 49, 60, 99, 100, 130])
@pytest.mark.parametrize("uni", [True, False])
def test_all_places_can_be_used_whatever_happened_before(history: int, uni: bool) -> None:
    pair = Pair().connect()
    for _ in range(history):
        stream = pair.client.must_open(uni=uni)
        pair.client.write(stream, b"x", finish=True)
        if not uni:
            pair.run(lambda s=stream: s in pair.server.send)  # type: ignore[misc]
            pair.server.finish(stream)
        pair.settle(0.2)
    held = len(open_all(pair, uni=uni))
    pair.settle(1)  # STREAMS_BLOCKED goes, MAX_STREAMS comes
    held += len(open_all(pair, uni=uni))
    assert held == MOST


def test_what_is_owed_reaches_a_peer_that_never_asks() -> None:
    pair = Pair().connect()
    before = pair.client.c.streams.uni.peer_allows
    for _ in range(MOST // 8 + 1):
        pair.client.write(pair.client.must_open(uni=True), b"x", finish=True)
    pair.settle(1)
    assert pair.client.c.streams.uni.peer_allows > before


def test_lost_credit_and_lost_questions_are_repeated() -> None:
    pair = Pair().connect()
    first = open_all(pair)
    pair.settle(1)
    pair.drop = lambda datagram: True
    assert pair.client.open(uni=True) is None
    for stream in first:
        pair.client.finish(stream)
    pair.settle(0.5)
    pair.drop = None
    pair.settle(3)
    assert len(open_all(pair)) == MOST


def test_a_question_about_an_old_limit_brings_nothing() -> None:
    pair = Pair().connect()
    pair.settle(1)
    allowed = pair.server.c.streams.uni.allowed
    for limit in (0, 5, allowed, allowed + 1):
        pair.client.inject(frame(codes.STREAMS_BLOCKED_UNI, limit))
    pair.settle(1)
    assert pair.server.c.streams.uni.allowed == allowed
    assert pair.server.close_reason is None


@pytest.mark.parametrize("kind", [codes.STREAMS_BLOCKED_UNI, codes.STREAMS_BLOCKED_BIDI])
def test_a_limit_that_cannot_be_is_refused(kind: int) -> None:
    pair = Pair().connect()
    pair.client.inject(frame(kind, codes.MAX_STREAM_COUNT + 1))
    assert pair.server.close_reason is not None
    assert pair.server.close_reason.error_code == codes.FRAME_ENCODING_ERROR


# --- an end that nobody waits for ----------------------------------------------------------------


def test_a_fin_after_all_that_the_reader_wanted_ends_the_stream() -> None:
    pair = Pair().connect()
    pair.server.auto_read = False
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, b"8 bytes!")
    pair.settle()
    assert pair.server.read(stream, 8) == b"8 bytes!"
    pair.client.finish(stream)
    pair.settle()
    assert stream not in pair.server.c.streams.recv_halves
    assert pair.server.c.streams.uni.owed == 1


# --- limits on bytes -----------------------------------------------------------------------------


def test_a_question_for_more_bytes_is_answered_with_what_is_owed() -> None:
    pair = Pair().connect()
    pair.server.auto_read = False
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, bytes(1000))
    pair.settle()
    pair.server.read(stream)
    limit = pair.client.send[stream].limit
    data = pair.client.c.streams.scheduler.limit
    pair.settle()
    assert pair.client.send[stream].limit == limit, "not worth a packet by itself"
    pair.client.inject(frame(codes.STREAM_DATA_BLOCKED, stream, limit))
    pair.client.inject(frame(codes.DATA_BLOCKED, data))
    pair.settle()
    assert pair.client.send[stream].limit == limit + 1000
    assert pair.client.c.streams.scheduler.limit == data + 1000


def test_a_sender_that_is_held_up_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    pair = Pair(server={"stream_window": 5000, "connection_window": 8000}).connect()
    pair.server.auto_read = False
    original = Streams.HANDLERS[codes.DATA_BLOCKED]

    def note(streams: Streams, data: bytes, pos: int, kind: int, arrival: Arrival) -> int:
        seen.append(kind)
        return original(streams, data, pos, kind, arrival)

    for kind in (codes.DATA_BLOCKED, codes.STREAM_DATA_BLOCKED):
        monkeypatch.setitem(Streams.HANDLERS, kind, note)
    for _ in range(3):
        pair.client.write(pair.client.must_open(uni=True), bytes(6000))
        pair.settle(5)
    assert seen == [codes.STREAM_DATA_BLOCKED, codes.DATA_BLOCKED]
    pair.server.auto_read = True
    for stream in pair.server.accepted:
        pair.server.read(stream)
    pair.settle(5)
    assert sum(map(len, pair.server.data.values())) == 18_000


def test_an_answer_is_never_more_than_what_is_owed() -> None:
    pair = Pair().connect()
    pair.server.auto_read = False
    stream = 2
    pair.client.inject(stream_frame(stream, 0, bytes(500)))
    before = len(pair.sent)
    for _ in range(100):
        pair.client.inject(
            frame(codes.DATA_BLOCKED, 1) + frame(codes.STREAM_DATA_BLOCKED, stream, 1)
        )
    pair.settle()
    assert pair.server.recv[stream].limit == pair.server.config.stream_window
    assert pair.server.c.streams.intake.limit == pair.server.config.first_window
    answers = [each for each in pair.sent[before:] if each.sender == "server"]
    assert sum(each.size for each in answers) < 100 * 60
