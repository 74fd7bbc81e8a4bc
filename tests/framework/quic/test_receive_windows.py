"""Windows that follow the reader, and what all connections of an endpoint may hold together."""

from __future__ import annotations

from typing import Any

import pytest
from quic_pair import Pair, secret_key, stream_frame

from dialkey import limits
from dialkey.identity import EndpointId
from dialkey.quic import codes
from dialkey.quic.streams.memory import STEP_BYTES, MemoryClaim, ReceiveMemory
from dialkey.quic.streams.windows import ReceiveWindow

MIB = 1 << 20
ALICE, BOB, CAROL = (secret_key(n).id for n in range(3))


# --- one window ------------------------------------------------------------------------------------


def read(window: ReceiveWindow, size: int, now: float, rtt_s: float = 0.1) -> int:
    """Read, and renew when it is due; return how large the window is."""
    window.consumed += size
    if window.is_low:
        window.widen(window.wanted(now, rtt_s))
        window.renew()
    return window.window


def test_a_window_doubles_for_a_reader_that_takes_a_quarter_in_a_round_trip() -> None:
    window = ReceiveWindow(1000, 5000)
    assert read(window, 250, 0.0) == 1000
    assert read(window, 250, 0.09) == 2000
    assert window.limit == 500 + 2000
    assert read(window, 500, 0.18) == 4000
    assert read(window, 1000, 0.27) == 5000


def test_a_window_stays_for_a_reader_that_is_slow() -> None:
    window = ReceiveWindow(1000, 5000)
    for step in range(100):
        assert read(window, 250, 0.11 * step) == 1000


def test_many_small_reads_are_one_fast_one() -> None:
    window = ReceiveWindow(1000, 5000)
    for step in range(100):
        read(window, 10, 0.003 * step)
    assert window.window > 1000


def test_a_limit_never_falls() -> None:
    window = ReceiveWindow(1000, 5000)
    window.widen(500)
    assert window.renew() == 1000


# --- a reader that stalls ----------------------------------------------------------------------------


def hold(pair: Pair, streams: int, size: int) -> int:
    """Let the client send on streams that the server does not read; return what it holds."""
    pair.server.auto_read = False
    for _ in range(streams):
        pair.client.write(pair.client.must_open(uni=True), bytes(size))
    pair.settle(20)
    held = sum(half.held for half in pair.server.recv.values())
    assert pair.server.c.streams.intake.held == held
    return held


def test_a_reader_that_stalls_holds_a_window_of_a_stream() -> None:
    assert hold(Pair().connect(), 1, 4 * MIB) == limits.STREAM_RECEIVE_WINDOW_BYTES


def test_streams_that_stall_hold_a_window_of_a_connection() -> None:
    assert hold(Pair().connect(), 20, 4 * MIB) == limits.CONNECTION_RECEIVE_WINDOW_BYTES


def test_a_stream_that_stalls_holds_up_no_other() -> None:
    pair = Pair().connect()
    hold(pair, 1, 4 * MIB)
    pair.server.auto_read = True
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, bytes(4 * MIB), finish=True)
    pair.run(lambda: stream in pair.server.ended)


def test_what_is_held_is_what_arrived_whatever_its_order() -> None:
    pair = Pair().connect()
    pair.server.auto_read = False
    core = pair.server.c
    for at in (5000, 3000, 1000, 4500, 900):
        pair.client.inject(stream_frame(2, at, bytes(1000)))
    half = pair.server.recv[2]
    assert core.streams.intake.held == half.held == 1000 + 1000 + 500 + 1000 + 100
    pair.client.inject(stream_frame(2, 0, bytes(1000)))
    assert core.streams.intake.held == half.held == 4500
    assert half.buffered == 2000
    pair.server.read(2, 1500)
    assert core.streams.intake.held == half.held == 3000
    pair.server.stop(2, 0)
    assert core.streams.intake.held == half.held == 0


@pytest.mark.parametrize("how", ["stop", "reset", "read"])
def test_what_nobody_keeps_is_not_held(how: str) -> None:
    pair = Pair().connect()
    hold(pair, 3, 100_000)
    for stream in list(pair.server.recv):
        if how == "stop":
            pair.server.stop(stream, 1)
        elif how == "reset":
            pair.client.reset(stream, 1)
        else:
            pair.server.read(stream)
    pair.settle(5)
    assert pair.server.c.streams.intake.held == 0


# --- all connections of an endpoint ------------------------------------------------------------------


def share(
    memory: ReceiveMemory, pair: Pair, id: EndpointId = ALICE, source: str = "192.0.2.1"
) -> MemoryClaim:
    """Count what a server holds."""
    core = pair.server.c
    claim = memory.open(id, source, core.streams.intake.window, lambda: core.give_way(pair.now))
    core.streams.intake.share_memory(claim)
    return claim


def connected(memory: ReceiveMemory, **who: Any) -> Pair:
    pair = Pair().connect()
    share(memory, pair, **who)
    return pair


def test_connections_of_one_id_share_its_windows() -> None:
    memory = ReceiveMemory(windows_per_id=8 * limits.STREAM_RECEIVE_WINDOW_BYTES)
    pairs = [connected(memory) for _ in range(4)]
    held = [hold(pair, 10, MIB) for pair in pairs]
    assert sum(held) <= 8 * limits.STREAM_RECEIVE_WINDOW_BYTES
    assert memory.windows_of(ALICE) == sum(each.server.c.streams.intake.window for each in pairs)
    # Nobody was closed, and everything arrives when it is read.
    for pair in pairs:
        pair.server.auto_read = True
        for half in list(pair.server.recv.values()):
            pair.server._read_and_watch(half)
        pair.wants_flush(pair.server)
        pair.settle(20)
        assert pair.server.close_reason is None
        assert sum(map(len, pair.server.data.values())) == 10 * MIB
    # Another id has its own.
    other = connected(memory, id=BOB)
    assert hold(other, 10, MIB) == limits.CONNECTION_RECEIVE_WINDOW_BYTES


def read_one_beside(pair: Pair, stalled: int) -> None:
    """Read one stream to its end while `stalled` others fill the window and are not read."""
    pair.server.auto_read = False
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, b"!")
    pair.settle(5)
    hold(pair, stalled, 4 * MIB)
    half = pair.server.recv[stream]
    pair.server.read(stream)
    half.watch()
    pair.client.write(stream, bytes(8 * MIB), finish=True)
    got = 0
    while not half.at_end:
        before = got
        pair.wants_flush(pair.server)
        pair.settle(5)
        got += len(pair.server.read(stream))
        half.watch()
        assert got > before or half.at_end, f"stalled after {got} bytes"
    assert got == 8 * MIB
    assert pair.server.close_reason is None


def test_a_reader_that_waits_is_served_beside_many_stalled_streams() -> None:
    read_one_beside(Pair().connect(), 20)


def test_a_reader_that_waits_is_served_beyond_the_share() -> None:
    first = limits.STREAM_RECEIVE_WINDOW_BYTES
    memory = ReceiveMemory(windows_per_id=first)
    pair = connected(memory)
    read_one_beside(pair, 1)
    assert pair.server.c.streams.intake.window == 2 * first
    assert memory.windows_of(ALICE) == 2 * first


@pytest.mark.parametrize("stalled", [3, 15])
def test_several_unread_streams_that_fill_what_was_added_hold_up_no_reader(stalled: int) -> None:
    first = limits.STREAM_RECEIVE_WINDOW_BYTES
    memory = ReceiveMemory(windows_per_id=first)
    pair = connected(memory)
    read_one_beside(pair, stalled)
    assert memory.windows_of(ALICE) <= first + limits.KEPT_FOR_WAITING_READERS_BYTES


def test_what_is_kept_for_readers_is_limited_and_everybody_has_a_part() -> None:
    memory = ReceiveMemory(windows_per_id=1000, kept_per_id=1000)
    first, second = (memory.open(ALICE, "192.0.2.1", 500, lambda: None) for _ in range(2))
    assert not first.grow(1000)
    assert first.insist(600)
    assert memory.windows_of(ALICE) == 500 + 1100
    # Again, but not out of what the other one may need.
    assert not first.insist(201)
    assert first.insist(200)
    assert not second.insist(201)
    assert second.insist(200)
    third = memory.open(ALICE, "192.0.2.1", 0, lambda: None)
    third.release()
    first.release()
    second.release()
    assert memory.windows_of(ALICE) == 0


def test_no_window_grows_while_memory_is_short() -> None:
    memory = ReceiveMemory(total=2 * MIB)
    assert hold(connected(memory), 1, MIB + 2 * STEP_BYTES) > MIB
    assert memory.is_short
    pair = connected(memory, id=BOB, source="192.0.2.2")
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, bytes(8 * MIB), finish=True)
    pair.run(lambda: stream in pair.server.ended)
    assert pair.server.c.streams.intake.window == limits.STREAM_RECEIVE_WINDOW_BYTES


def test_the_fullest_connection_of_the_fullest_id_gives_way() -> None:
    memory = ReceiveMemory(total=3 * MIB, per_source=3 * MIB)
    one, two, three = (connected(memory) for _ in range(3))
    assert hold(one, 1, 800_000) + hold(two, 1, 900_000) + hold(three, 1, 700_000) == 2_400_000
    other = connected(memory, id=BOB, source="192.0.2.2")
    hold(other, 1, 1_200_000)
    assert two.server.close_reason is not None
    assert two.server.close_reason.cause == "overfull"
    two.wants_flush(two.server)
    two.settle(1)
    assert two.client.close_reason is not None
    assert two.client.close_reason.reason == b"too much unread data"
    assert other.server.close_reason is one.server.close_reason is three.server.close_reason is None
    assert memory.held_bytes <= 3 * MIB


def test_who_holds_most_and_wants_more_is_closed_itself() -> None:
    memory = ReceiveMemory(total=MIB)
    pair = connected(memory)
    hold(pair, 1, 2 * MIB)
    assert pair.server.close_reason is not None
    assert pair.server.close_reason.error_code == codes.INTERNAL_ERROR
    assert memory.held_bytes == memory.windows_of(ALICE) == 0


def test_many_keys_of_one_address_have_one_share() -> None:
    memory = ReceiveMemory(total=4 * MIB, per_source=2 * MIB)
    ids = [secret_key(10 + n).id for n in range(8)]
    pairs = [connected(memory, id=id) for id in ids]
    for pair in pairs:
        hold(pair, 1, 500_000)
    assert memory.held_bytes <= 2 * MIB
    assert [pair.server.close_reason is None for pair in pairs] == 4 * [True] + 4 * [False]
    assert hold(connected(memory, id=CAROL, source="192.0.2.2"), 1, MIB) == MIB


def test_what_is_only_announced_is_not_charged() -> None:
    memory = ReceiveMemory(total=MIB)
    pair = connected(memory)
    pair.server.auto_read = False
    for stream in range(2, 40, 4):
        pair.client.inject(stream_frame(stream, 100_000, b"x"))
    assert pair.server.c.streams.intake.held == 10
    assert memory.held_bytes == 0
    assert pair.server.close_reason is None


def test_a_connection_that_is_over_gives_everything_back() -> None:
    memory = ReceiveMemory()
    pair = connected(memory)
    hold(pair, 3, 500_000)
    pair.client.close(0)
    pair.settle(1)
    # What arrived can still be read, so it is held still.
    assert memory.held_bytes > MIB
    for stream in pair.server.recv:
        pair.server.read(stream)
    assert memory.held_bytes == memory.windows_of(ALICE) == 0


def test_a_connection_that_is_over_and_dropped_gives_everything_back() -> None:
    memory = ReceiveMemory()
    pair = connected(memory)
    hold(pair, 3, 500_000)
    pair.client.close(0)
    pair.settle(1)
    claim = pair.server.c.streams.intake._memory
    assert claim is not None
    pair.server.c.streams.intake._memory = None
    del claim
    assert memory.held_bytes == memory.windows_of(ALICE) == 0
