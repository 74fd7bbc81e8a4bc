"""Both halves of a stream, beside the simplest model that can be right: one long byte string."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dialkey.quic import codes
from dialkey.quic.codes import TransportError
from dialkey.quic.streams.halves import MAX_GAPS, RecvHalf, SendHalf

DATA = random.Random(0).randbytes(4000)


class RecvMachine(RuleBasedStateMachine):
    """Pieces of DATA arrive in any order and overlap; what is read is always a prefix of DATA."""

    @initialize(window=st.integers(1, 3000))
    def begin(self, window: int) -> None:
        self.half = RecvHalf(0, window)
        self.arrived: set[int] = set()
        self.got = b""
        self.size: int | None = None
        self.stopped = False
        self.was_reset = False

    @rule(offset=st.integers(0, 3500), length=st.integers(0, 400), finish=st.booleans())
    def piece(self, offset: int, length: int, finish: bool) -> None:
        end = offset + length
        half = self.half
        wrong_size = (
            end > self.size or (finish and end != self.size)
            if self.size is not None
            else finish and end < half.received
        )
        before = half.received
        if wrong_size or end > half.limit:
            if not wrong_size:
                # A refused piece ends the connection; only what it says is looked at here.
                assert end > half.limit
                return
            with pytest.raises(TransportError) as caught:
                half.on_data(offset, DATA[offset:end], finish)
            assert caught.value.error_code == codes.FINAL_SIZE_ERROR
            return
        gained = half.on_data(offset, DATA[offset:end], finish)
        assert gained == max(0, end - before)
        if finish:
            self.size = end
        self.arrived.update(range(offset, end))

    @rule(limit=st.integers(1, 500))
    def read(self, limit: int) -> None:
        data = self.half.read(limit)
        assert len(data) <= limit
        self.got += data
        assert DATA.startswith(self.got)

    @rule()
    def raise_limit(self) -> None:
        self.half.limit = max(self.half.limit, self.half.consumed + self.half.window)

    @precondition(lambda self: not self.stopped)
    @rule(code=st.integers(0, 5))
    def stop(self, code: int) -> None:
        at_end = self.half.at_end or self.was_reset
        freed = self.half.stop(code)
        assert freed >= 0
        self.stopped = not at_end

    @rule(code=st.integers(0, 5), size=st.integers(0, 4000))
    def reset(self, code: int, size: int) -> None:
        half = self.half
        had_all = self.size is not None and set(range(self.size)) <= self.arrived
        if (self.size is not None and size != self.size) or size < half.received:
            with pytest.raises(TransportError) as caught:
                half.on_reset(code, size)
            assert caught.value.error_code == codes.FINAL_SIZE_ERROR
        elif size > half.limit:
            with pytest.raises(TransportError):
                half.on_reset(code, size)
        else:
            half.on_reset(code, size)
            self.size = size
            if not had_all or self.stopped:
                self.was_reset = self.was_reset or half.reset_code is not None
            else:
                assert self.was_reset or half.reset_code is None

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "half"):
            return
        half = self.half
        prefix = next((i for i in range(len(DATA) + 1) if i not in self.arrived), 0)
        if half.discarding:
            assert half.buffered == 0
            assert half.read(10) == b""
            return
        assert half.next_offset == prefix
        assert half.consumed == len(self.got)
        assert half.buffered == prefix - len(self.got)
        assert half.at_end == (self.size is not None and len(self.got) == self.size)
        assert half.readable == (half.buffered > 0 or half.at_end)
        held = sum(len(data) for _, data in half._segments)
        assert held == len([n for n in self.arrived if n >= prefix])


class SendMachine(RuleBasedStateMachine):
    """What is taken, lost and acknowledged in any order covers what was written exactly once."""

    @initialize(limit=st.integers(0, 2000))
    def begin(self, limit: int) -> None:
        self.half = SendHalf(0, limit)
        self.written = b""
        self.flying: list[tuple[int, bytes, bool]] = []
        self.arrived: dict[int, bytes] = {}
        self.fin_arrived = False

    @precondition(lambda self: not self.half.fin)
    @rule(length=st.integers(0, 300))
    def write(self, length: int) -> None:
        data = DATA[len(self.written) : len(self.written) + length]
        self.half.write(memoryview(data) if length % 2 else data)
        self.written += data

    @rule()
    def finish(self) -> None:
        self.half.finish()

    @rule(limit=st.integers(0, 4000))
    def raise_limit(self, limit: int) -> None:
        self.half.allow(limit)

    @precondition(lambda self: self.half.wants_to_send)
    @rule(want=st.integers(1, 500))
    def send(self, want: int) -> None:
        half = self.half
        if half.retransmit:
            offset, data, fin = half.take_again(want)
        else:
            offset, data, fin = half.take_next(want)
        self.flying.append((offset, bytes(data), fin))

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.flying) - 1))
        self.half.on_lost(*self.flying.pop(index))

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.flying) - 1))
        offset, piece, fin = self.flying.pop(index)
        self.half.on_acked(len(piece), fin)
        self.arrived[offset] = piece
        self.fin_arrived = self.fin_arrived or fin

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "half"):
            return
        half = self.half
        assert half.offset + half.queued == len(self.written)
        assert half.offset <= max(half.limit, 0) or not half.offset
        waiting = [(at, bytes(data)) for at, data, _ in half.retransmit]
        assert all(self.written[at : at + len(data)] == data for at, data in waiting)
        for offset, piece, _ in self.flying:
            assert self.written[offset : offset + len(piece)] == piece
        complete = self.fin_arrived and sum(map(len, self.arrived.values())) == len(self.written)
        assert half.closed == complete


RecvMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
SendMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestRecvMachine = RecvMachine.TestCase
TestSendMachine = SendMachine.TestCase


def test_a_stream_in_too_many_pieces_is_refused() -> None:
    half = RecvHalf(0, 1 << 20)
    for i in range(MAX_GAPS):
        half.on_data(2 * i + 1, b"x", False)
    with pytest.raises(TransportError) as caught:
        half.on_data(2 * MAX_GAPS + 1, b"x", False)
    assert caught.value.error_code == codes.INTERNAL_ERROR


def test_small_pieces_are_joined_while_they_wait() -> None:
    half = RecvHalf(0, 1 << 20)
    for i in range(10_000):
        half.on_data(i, b"x", False)
    assert len(half._pieces) <= 10_000 // 500
    assert half.read(1 << 20) == b"x" * 1024 or half.buffered < 10_000


def test_reading_joins_and_splits_pieces() -> None:
    half = RecvHalf(0, 1 << 20)
    data = random.Random(1).randbytes(10_000)
    for at in range(0, 10_000, 1000):
        half.on_data(at, data[at : at + 1000], at == 9000)
    assert half.read(1500) + half.read(1) + half.read(499) + half.read(20_000) == data
    assert half.at_end


def test_taking_joins_small_writes_and_does_not_copy_large_ones() -> None:
    half = SendHalf(0, 1 << 20)
    for i in range(10):
        half.write(bytes([i]) * 10)
    assert half.take(1000) == b"".join(bytes([i]) * 10 for i in range(10))
    large = bytes(100_000)
    half.write(large)
    view = half.take(1000)
    assert isinstance(view, memoryview)
    assert view.obj is large


def test_a_reset_forgets_what_was_queued() -> None:
    half = SendHalf(0, 1 << 20)
    half.write(bytes(100))
    half.take(10)
    half.offset = 10
    half.on_lost(0, bytes(5), False)
    half.reset(7)
    assert (half.queued, len(half.retransmit), half.reset_code) == (0, 0, 7)
    half.reset(8)
    assert half.reset_code == 7
    half.on_lost(0, bytes(5), False)
    assert not half.retransmit
    half.on_reset_acked()
    assert half.closed


def test_a_closed_half_is_not_reset() -> None:
    half = SendHalf(0, 100)
    half.finish()
    half.fin_sent = True
    half.on_acked(0, True)
    assert half.closed
    half.reset(1)
    assert half.reset_code is None
