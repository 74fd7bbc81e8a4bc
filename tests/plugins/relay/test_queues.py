"""Fair bounded queues: order within a sender, fairness between senders, bounds, counted drops."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey_relay.queues import QUANTUM_BYTES, FairQueue


def push(queue, sender, content, size=None):
    return queue.push(sender, b"H" + sender, content, 0, len(content) if size is None else size)


def drain(queue, budget):
    out = []
    moved = queue.pop(budget, out)
    pairs = [(bytes(out[n])[1:], bytes(out[n + 1])) for n in range(0, len(out), 2)]
    assert moved == len(pairs)
    return pairs


def test_one_sender_is_served_in_order() -> None:
    queue = FairQueue()
    for n in range(100):
        assert push(queue, b"a", bytes((n,)) * 1000) == 0
    out = drain(queue, 1 << 30)
    assert [content[0] for _, content in out] == list(range(100))
    assert not queue
    assert queue.size == 0


def test_the_message_goes_out_from_its_start_on() -> None:
    queue = FairQueue()
    queue.push(b"a", b"head", b"0123456789", 4, 6)
    out = []
    queue.pop(1, out)
    assert b"".join(out) == b"head456789"


def test_a_flood_does_not_delay_others_by_more_than_a_turn() -> None:
    queue = FairQueue(max_frames=512, max_bytes=1 << 30)
    for _ in range(500):
        push(queue, b"flood", b"x" * 10_000)
    push(queue, b"quiet", b"hello")
    out = drain(queue, 3 * QUANTUM_BYTES)
    position = [sender for sender, _ in out].index(b"quiet")
    assert sum(len(content) for _, content in out[:position]) <= QUANTUM_BYTES + 10_000


def test_a_full_queue_drops_the_oldest_of_the_longest_line() -> None:
    queue = FairQueue(max_frames=10)
    push(queue, b"quiet", b"first")
    dropped = sum(push(queue, b"flood", bytes((n,)) * 50) for n in range(30))
    assert dropped == 21
    assert push(queue, b"quiet", b"second") == 1
    out = drain(queue, 1 << 30)
    assert [content for sender, content in out if sender == b"quiet"] == [b"first", b"second"]
    assert [content[0] for sender, content in out if sender == b"flood"] == list(range(22, 30))


def test_a_frame_larger_than_the_queue_is_dropped_alone() -> None:
    queue = FairQueue(max_bytes=100)
    assert push(queue, b"a", b"x" * 101) == 1
    assert not queue
    assert push(queue, b"a", b"x" * 100) == 0


def test_clear_tells_what_was_lost() -> None:
    queue = FairQueue()
    push(queue, b"a", b"1")
    push(queue, b"b", b"2")
    assert queue.clear() == 2
    assert drain(queue, 100) == []


SENDERS = st.sampled_from([b"a", b"b", b"c", b"d"])
STEPS = st.lists(
    st.tuples(st.just("push"), SENDERS, st.integers(1, 30_000))
    | st.tuples(st.just("pop"), st.just(b""), st.integers(1, 60_000)),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_nothing_is_lost_uncounted_or_reordered(steps) -> None:
    queue = FairQueue(max_frames=12, max_bytes=120_000)
    pushed = {sender: [] for sender in (b"a", b"b", b"c", b"d")}
    delivered = {sender: [] for sender in pushed}
    dropped = 0
    number = 0
    for what, sender, amount in steps:
        if what == "push":
            number += 1
            content = number.to_bytes(4, "big")
            pushed[sender].append(content)
            dropped += push(queue, sender, content, amount)
        else:
            for who, content in drain(queue, amount):
                delivered[who].append(content)
        assert queue.frames <= 12
        assert queue.size <= 120_000
        assert bool(queue) == (queue.frames > 0)
    for who, content in drain(queue, 1 << 40):
        delivered[who].append(content)
    assert queue.size == 0
    assert queue.frames == 0
    for sender, contents in delivered.items():
        positions = [pushed[sender].index(content) for content in contents]
        assert positions == sorted(positions)
    total = sum(map(len, pushed.values()))
    assert total == dropped + sum(map(len, delivered.values()))


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(100, 15_000))
def test_backlogged_senders_share_equally(senders, size) -> None:
    queue = FairQueue(max_frames=100_000, max_bytes=1 << 40)
    names = [bytes((n,)) for n in range(senders)]
    for name in names:
        for _ in range(200_000 // size):
            push(queue, name, b"", size)
    got = dict.fromkeys(names, 0)
    for who, _ in drain(queue, senders * 100_000):
        got[who] += size
    assert max(got.values()) - min(got.values()) <= 2 * QUANTUM_BYTES + size
