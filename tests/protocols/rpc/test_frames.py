"""Frames: any cutting of the stream gives the same ones, and hostile ones cost nothing."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey.shares import FairShares
from dialkey_rpc import MalformedMessage, MessageTooLarge
from dialkey_rpc.budget import Account
from dialkey_rpc.errors import CannotSend
from dialkey_rpc.frames import (
    CALL,
    ERROR,
    HEAD,
    ITEM,
    RESULT,
    Frame,
    FrameReader,
    RpcLimits,
    join_head,
    whole_frame,
)

SMALL = RpcLimits(envelope_bytes=1000, message_bytes=5000, parts=10)


def frame_bytes(kind: int, envelope: bytes, *parts: bytes) -> bytes:
    return b"".join((join_head(kind, envelope, parts), *parts))


frames = st.lists(
    st.builds(
        Frame,
        st.sampled_from([CALL, ITEM, RESULT, ERROR]),
        st.binary(max_size=40),
        st.lists(st.binary(max_size=60), max_size=4),
    ),
    max_size=5,
)


@given(frames, st.data())
def test_any_cutting_gives_the_same_frames(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(frame_bytes(f.kind, f.envelope, *f.parts) for f in sent)
    reader = FrameReader(SMALL)
    found: list[Frame] = []
    at = 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream) - at))
        found += reader.feed(stream[at : at + size])
        at += size
    reader.finish()
    assert [(f.kind, f.envelope, list(f.parts)) for f in found] == [
        (f.kind, f.envelope, list(f.parts)) for f in sent
    ]


@given(st.binary(max_size=200))
def test_any_bytes_give_frames_or_one_of_two_errors(stream: bytes) -> None:
    reader = FrameReader(SMALL, account(FairShares[str](10_000)))
    try:
        reader.feed(stream)
        reader.finish()
    except (MalformedMessage, MessageTooLarge):
        pass


@given(st.binary(max_size=60) | st.builds(frame_bytes, st.integers(0, 255), st.binary(max_size=60)))
def test_the_short_cut_sees_what_the_reader_sees(stream: bytes) -> None:
    short = whole_frame(stream, SMALL)
    if short is not None:
        reader = FrameReader(SMALL)
        assert reader.feed(stream) == [short]
        reader.finish()


def test_what_takes_the_short_cut() -> None:
    assert whole_frame(frame_bytes(CALL, b"\xc0"), SMALL) == Frame(CALL, b"\xc0")
    for stream in (
        b"",
        frame_bytes(CALL, b"\xc0")[:-1],
        frame_bytes(CALL, b"\xc0") + b"x",
        frame_bytes(200, b"\xc0"),
        frame_bytes(CALL, b"\xc0", b""),
        frame_bytes(CALL, bytes(1001)),
    ):
        assert whole_frame(stream, SMALL) is None


def test_a_part_that_arrives_in_one_piece_is_not_copied() -> None:
    part = bytes(100_000)
    reader = FrameReader(RpcLimits())
    assert not reader.feed(join_head(ITEM, b"\xc0", [part]))
    assert reader.read_bytes == 100_000
    (frame,) = reader.feed(part)
    assert frame.parts[0] is part


def test_unknown_kinds_above_127_are_skipped() -> None:
    reader = FrameReader(SMALL)
    extension = frame_bytes(200, b"whatever", b"and more")
    (frame,) = reader.feed(extension + frame_bytes(ITEM, b"\xc0") + extension)
    assert frame.envelope == b"\xc0"
    reader.finish()


@pytest.mark.parametrize(
    "head",
    [
        HEAD.pack(0, 0, 0, 1),
        HEAD.pack(5, 0, 0, 1),
        HEAD.pack(127, 0, 0, 1),
        HEAD.pack(ITEM, 1, 0, 1),
        b"GET / HT",
    ],
)
def test_what_is_not_a_head_is_refused(head: bytes) -> None:
    with pytest.raises(MalformedMessage, match="not the head"):
        FrameReader(SMALL).feed(head)


@pytest.mark.parametrize(
    "start",
    [
        HEAD.pack(CALL, 0, 0, 1001),
        HEAD.pack(200, 0, 0, 1001),
        HEAD.pack(CALL, 0, 11, 1),
        HEAD.pack(CALL, 0, 1, 1) + b"\xff\xff\xff\xff",
        HEAD.pack(CALL, 0, 2, 1) + (2500).to_bytes(4, "big") * 2,
    ],
)
def test_what_is_over_a_limit_is_refused_by_its_head(start: bytes) -> None:
    with pytest.raises(MessageTooLarge):
        FrameReader(SMALL).feed(start)


@pytest.mark.parametrize("cut", range(1, 20))
def test_the_end_within_a_frame_is_an_error(cut: int) -> None:
    reader = FrameReader(SMALL)
    stream = frame_bytes(CALL, b"\xc0\xc0", b"abc", b"d")
    assert len(stream) > cut
    reader.feed(stream[:cut])
    with pytest.raises(MalformedMessage, match="ended within"):
        reader.finish()


def test_a_message_that_trickles_in_costs_no_object_for_each_byte() -> None:
    size = 300_000
    reader = FrameReader(RpcLimits())
    reader.feed(join_head(CALL, b"\xc0", [bytes(size)]))
    tracemalloc.start()
    try:
        for _ in range(size - 1):
            reader.feed(b"x")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * size
    (frame,) = reader.feed(b"x")
    assert frame.parts == [b"x" * size]


def account(shares: FairShares[str], holder: str = "a") -> Account:
    return Account(shares, holder, lambda: None)


def test_an_announcement_takes_nothing() -> None:
    """517 bytes of heads once kept everybody's large messages out."""
    shares = FairShares[str](250_000)
    head = join_head(CALL, b"\xc0", [bytes(200_000)])
    readers = [FrameReader(RpcLimits(), account(shares)) for _ in range(20)]
    for reader in readers:
        reader.feed(head)
    assert shares.used == 20  # a byte of envelope each
    mine = account(shares, "b")
    (frame,) = FrameReader(RpcLimits(), mine).feed(head + bytes(200_000))
    assert len(frame.parts[0]) == 200_000
    assert shares.held_by("b") == 200_001
    mine.release()
    assert shares.held_by("b") == 0


def test_large_messages_are_charged_as_they_come() -> None:
    shares = FairShares[str](250_000, 200_000)
    first, second = account(shares), account(shares)
    head = join_head(CALL, b"\xc0", [bytes(150_000)])
    FrameReader(RpcLimits(), first).feed(head + bytes(150_000))
    assert shares.used == 150_001  # until the call is over
    slow = FrameReader(RpcLimits(), second)
    slow.feed(head + bytes(40_000))
    assert shares.used == 190_002
    with pytest.raises(MessageTooLarge, match="beside those"):
        slow.feed(bytes(10_000))
    second.release()
    assert shares.used == 190_002, "an unfinished message stays charged"
    second.close()
    second.close()
    first.release()
    assert shares.used == 0


def test_the_fullest_makes_room_for_somebody_with_less() -> None:
    shares = FairShares[str](300_000, 200_000)
    gone: list[str] = []
    head = join_head(CALL, b"\xc0", [bytes(150_000)])
    for holder in "ab":
        held = Account(shares, holder, lambda holder=holder: gone.append(holder))  # type: ignore[misc]
        FrameReader(RpcLimits(), held).feed(head + bytes(149_000))
    honest = account(shares, "honest")
    assert FrameReader(RpcLimits(), honest).feed(join_head(CALL, bytes(100_000)))
    assert len(gone) == 1


def test_small_messages_need_no_budget() -> None:
    reader = FrameReader(RpcLimits(), account(FairShares[str](0)))
    assert reader.feed(frame_bytes(CALL, bytes(1000), bytes(50_000)))


@given(frames, st.data())
def test_what_was_charged_is_given_back(sent: list[Frame], data: st.DataObject) -> None:
    shares = FairShares[str](1 << 30)
    mine = account(shares)
    reader = FrameReader(RpcLimits(), mine)
    large = Frame(ITEM, b"\xc0", [bytes(70_000)])
    stream = b"".join(
        frame_bytes(f.kind, f.envelope, *f.parts) for frame in sent for f in (frame, large)
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    found = 0
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += len(reader.feed(stream[start:end]))
    assert found == 2 * len(sent)
    assert shares.used == 70_001 * len(sent)
    mine.release()
    assert shares.used == 0


def test_what_no_frame_can_hold_is_not_sent() -> None:
    with pytest.raises(CannotSend, match="65535 fit"):
        join_head(ITEM, b"\xc0", [b""] * 65_536)
