"""Random and damaged bytes at every door of a connection: it goes on, or it closes with a code.

Never an exception, never a hang, never more memory than a packet is worth. Deterministic and short;
raise EXAMPLES for a long run.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quic_pair import Pair, frame

from dialkey.quic import codes
from dialkey.quic.connection import State

EXAMPLES = 60
TYPES = [
    value
    for name, value in vars(codes).items()
    if name.isupper() and isinstance(value, int) and value < 1 << 24
]
fuzz = settings(max_examples=EXAMPLES, deadline=None)


def live() -> Pair:
    """A connection in full use: streams in every state on both sides."""
    pair = Pair().connect()
    for side in pair.sides:
        for uni in (True, False):
            for size in (0, 10, 5000):
                stream = side.must_open(uni=uni)
                side.write(stream, bytes(size))
        side.finish(side.must_open(uni=True))
        side.reset(side.must_open(), 3)
    pair.settle(0.05)
    return pair


def survives(pair: Pair) -> None:
    pair.flush()
    reason = pair.server.close_reason
    if reason is None:
        pair.settle(0.1)
        return
    assert reason.cause in ("protocol", "peer", "idle", "no path", "reset")
    pair.run(lambda: pair.server.c.state is State.GONE, seconds=30)


class Shared:
    """One live connection for many examples, and a new one when it was closed."""

    def __init__(self) -> None:
        self.pair = live()
        self.uses = 0

    def get(self) -> Pair:
        self.uses += 1
        if self.pair.server.close_reason is not None or self.uses % 50 == 0:
            self.pair = live()
        return self.pair


SHARED = Shared()
numbers = st.one_of(
    st.integers(0, 70),
    st.integers(0, 1 << 16),
    st.sampled_from([(1 << n) + d for n in (6, 14, 30, 60, 62) for d in (-1, 0, 1)]),
).map(lambda n: min(n, (1 << 62) - 1))
frames = st.builds(
    lambda kind, fields: frame(kind, *fields),
    st.sampled_from(TYPES) | numbers,
    st.lists(numbers | st.binary(max_size=24), max_size=6),
)


@fuzz
@given(st.binary(min_size=1, max_size=300))
def test_random_payloads(payload: bytes) -> None:
    pair = SHARED.get()
    pair.client.inject(payload)
    survives(pair)


@fuzz
@given(st.lists(frames, min_size=1, max_size=8))
def test_payloads_of_nearly_right_frames(parts: list[bytes]) -> None:
    pair = SHARED.get()
    pair.client.inject(b"".join(parts)[:1150])
    survives(pair)


@fuzz
@given(st.lists(frames, min_size=1, max_size=4), st.integers(0, 2**32))
def test_the_client_is_as_robust_as_the_server(parts: list[bytes], seed: int) -> None:
    pair = SHARED.get()
    pair.server.inject(b"".join(parts)[:1150])
    pair.flush()
    if pair.client.close_reason is not None:
        SHARED.pair = live()


@fuzz
@given(st.binary(max_size=1500), st.booleans(), st.sampled_from(["client", "elsewhere"]))
def test_random_datagrams(data: bytes, known_id: bool, source: str) -> None:
    pair = SHARED.get()
    if known_id and len(data) > 9:
        data = data[:1] + next(iter(pair.server.c.paths.ids.by_cid)) + data[9:]
    if data:
        pair.deliver(pair.server, source, [data])
    assert pair.server.close_reason is None, "who has no key closes nothing"
    survives(pair)


@fuzz
@given(st.integers(0, 2**32))
def test_damaged_packets(seed: int) -> None:
    rng = random.Random(seed)
    pair = SHARED.get()
    packet = bytearray(pair.client.craft(frame(codes.PING) * rng.randint(1, 100)))
    for _ in range(rng.randint(1, 3)):
        packet[rng.randrange(len(packet))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.2:
        del packet[rng.randrange(1, len(packet)) :]
    pair.deliver(pair.server, "client", [bytes(packet)])
    assert pair.server.close_reason is None
    survives(pair)


@fuzz
@given(st.integers(0, 2**32))
def test_damaged_first_flights(seed: int) -> None:
    rng = random.Random(seed)
    pair = Pair()
    pair.flush()
    data = bytearray(pair.sent[0].data)
    for _ in range(rng.randint(1, 10)):
        data[rng.randrange(400)] = rng.randrange(256)
    pair.deliver(pair.server, "client", [bytes(data)])
    pair.flush()
    pair.run(seconds=0.1)


def test_what_strangers_send_is_not_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    for seed in range(20):
        pair = Pair(alpns=["other/1"], seed=seed)
        pair.run(seconds=0.1)
    assert not [each for each in caplog.records if each.levelname != "DEBUG"]


@pytest.mark.parametrize("seed", range(30))
def test_damaged_handshakes_do_not_stop_good_ones(seed: int) -> None:
    """Somebody repeats the datagrams of a handshake, damaged; the true ones still get through."""
    rng = random.Random(seed)
    pair = Pair(seed=seed)
    for _ in range(200):
        if pair.is_connected():
            break
        pair.step()
        if pair.server.core is None:
            continue
        for datagram in pair.sent[-3:]:
            data = bytearray(datagram.data)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            target = pair.server if datagram.sender == "client" else pair.client
            pair.deliver(target, pair.other(target).address, [bytes(data)])
    assert pair.is_connected()


@fuzz
@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=5))
def test_batches_of_unequal_rubbish(datagrams: list[bytes]) -> None:
    pair = SHARED.get()
    size = max(map(len, datagrams))
    data = b"".join(each.ljust(size, b"\x41") for each in datagrams[:-1]) + datagrams[-1]
    if not data[0] & 0x80:
        pair.server.c.receive(memoryview(data), size, "client", pair.now)
        pair.server.drain_events()
    survives(pair)
