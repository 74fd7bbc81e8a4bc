"""Runs: both implementations beside single packets, and a connection that takes runs in beside one
that takes in the same packets one by one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quic_pair import Pair, Side, frame_varint, peer_cid_of
from run_oracle import CID, SUITES, Oracle, varint

from dialkey import native
from dialkey.native import RunKey
from dialkey.quic import codes
from dialkey.quic.packets import runs
from dialkey.quic.packets.runs import ColumnKey
from dialkey.quic.paths.received import ReceivedPackets

try:
    import dialkey_native
except ModuleNotFoundError:
    dialkey_native = None

Implementation = Callable[[Oracle], RunKey]


def pure_key(oracle: Oracle) -> RunKey:
    def encrypt_into(nonce: runs.Bytes, data: runs.Bytes, aad: runs.Bytes, out: memoryview) -> int:
        out[:] = oracle.aead.encrypt(nonce, data, aad)
        return len(out)

    def decrypt_into(nonce: runs.Bytes, data: runs.Bytes, aad: runs.Bytes, out: memoryview) -> int:
        out[:] = oracle.aead.decrypt(nonce, data, aad)
        return len(out)

    def masks(samples: bytes) -> bytes:
        starts = range(0, len(samples), 16)
        return b"".join(oracle.mask(samples[at : at + 16]).ljust(16, b"\0") for at in starts)

    return ColumnKey(int.from_bytes(oracle.iv, "big"), encrypt_into, decrypt_into, masks)


def native_key(oracle: Oracle) -> RunKey:
    key: RunKey = dialkey_native.PacketKey(oracle.suite, oracle.key, oracle.iv, oracle.header)
    return key


both = pytest.mark.parametrize(
    "implementation",
    [
        pytest.param(pure_key, id="pure"),
        pytest.param(
            native_key,
            id="native",
            marks=pytest.mark.skipif(
                dialkey_native is None, reason="dialkey-native is not built; `make native` does it"
            ),
        ),
    ],
)


# --- the keys -----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("suite", SUITES)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(100, 1500),
    packets=st.integers(1, 12),
    short=st.integers(0, 90),
    number=st.integers(0, 2**40),
    path_id=st.integers(0, 2**32 - 1),
    offset=st.one_of(st.integers(0, 2**20), st.integers(2**30 - 9999, 2**62 - 2**20)),
)
def test_a_run_is_sealed_and_opened_as_its_packets_are(
    implementation: Implementation,
    suite: str,
    seed: int,
    size: int,
    packets: int,
    short: int,
    number: int,
    path_id: int,
    offset: int,
) -> None:
    oracle = Oracle(suite)
    key = implementation(oracle)
    wide = offset + packets * size >= 1 << 30
    room = size - 11 - 16 - 3 - (8 if wide else 4)
    data = random.Random(seed).randbytes(packets * room - min(short, room - 4))
    wide = offset + len(data) >= 1 << 30
    if room != size - 11 - 16 - 3 - (8 if wide else 4):
        return
    sealed = key.seal_run(
        0x41, CID, path_id, number, b"\x0c\x40\x44", offset, wide, memoryview(data), size
    )
    assert bytes(sealed) == oracle.run(data, size, number, path_id, offset)
    whole = len(sealed) // size
    opened = key.open_run(bytes(sealed)[: whole * size], size, path_id, 0, number)
    wraps = (number & 0xFFFF) + whole > 1 << 16
    if whole == 0 or wraps:
        assert opened is None
    else:
        assert opened == (number, 0x44, offset, data[: whole * room])


def base() -> tuple[Oracle, bytearray]:
    oracle = Oracle("aes-128-gcm")
    data = random.Random(4).randbytes(5 * (300 - 11 - 16 - 3 - 4))
    return oracle, bytearray(oracle.run(data, 300, 70, 2, 1000))


@both
def test_the_base_of_the_hostile_tests_is_a_run(implementation: Implementation) -> None:
    oracle, run = base()
    key = implementation(oracle)
    assert key.open_run(run, 300, 2, 0, 70) is not None
    assert key.open_run(run, 300, 2, 0, 60) is not None


@both
@given(at=st.integers(0, 1499), bit=st.integers(0, 7))
def test_no_changed_bit_passes(implementation: Implementation, at: int, bit: int) -> None:
    oracle, run = base()
    key = implementation(oracle)
    run[at] ^= 1 << bit
    assert key.open_run(run, 300, 2, 0, 70) is None


@both
@given(st.binary(max_size=2000), st.integers(0, 2000), st.integers(0, 2**62))
def test_noise_is_not_a_run(
    implementation: Implementation, noise: bytes, segment: int, expected: int
) -> None:
    oracle, _ = base()
    key = implementation(oracle)
    assert key.open_run(noise, segment, 0, 0, expected) is None


@both
@pytest.mark.parametrize(
    "change",
    [
        {"path_id": 3},
        {"phase": 1},
        {"expected": 71},
        {"segment": 250},
        {"segment": 0},
        {"segment": 1500 * 300},
    ],
)
def test_what_does_not_fit_is_not_a_run(
    implementation: Implementation, change: dict[str, int]
) -> None:
    oracle, run = base()
    key = implementation(oracle)
    how = {"segment": 300, "path_id": 2, "phase": 0, "expected": 70, **change}
    assert key.open_run(bytes(run), *how.values()) is None


@both
@pytest.mark.parametrize(
    "plains",
    [
        # type, offset, length and end of stream that do not continue the first packet
        (b"\x0c\x04" + varint(0, 4), b"\x0c\x04" + varint(90, 4)),
        (b"\x0c\x04" + varint(0, 4), b"\x0c\x08" + varint(94, 4)),
        (b"\x0c\x04" + varint(0, 4), b"\x0d\x04" + varint(94, 4)),
        (b"\x0d\x04" + varint(0, 4), b"\x0d\x04" + varint(94, 4)),
        (b"\x08\x04" + varint(0, 4), b"\x08\x04" + varint(94, 4)),
        (b"\x01\x04" + varint(0, 4), b"\x01\x04" + varint(94, 4)),
        (b"\x0e\x04" + varint(0, 4) + b"\x40\x5b", b"\x0e\x04" + varint(93, 4) + b"\x40\x5b"),
        (b"\x0c\x04" + varint(2**30 - 95, 4), b"\x0c\x04" + varint(2**30 - 1, 4)),
        (b"\x0c\x04\x40\x20", b"\x0c\x04\x40\x82"),
        (b"\x0c", b"\x0c"),
    ],
)
def test_authentic_packets_that_are_not_a_run_go_the_general_way(
    implementation: Implementation, plains: tuple[bytes, bytes]
) -> None:
    oracle = Oracle("aes-128-gcm")
    key = implementation(oracle)
    size = 100
    batch = b"".join(
        oracle.seal(plain + bytes(size - len(plain)), 9 + i, 0) for i, plain in enumerate(plains)
    )
    assert key.open_run(batch, size + 27, 0, 0, 9) is None


@both
def test_a_length_that_fills_the_packet_is_read(implementation: Implementation) -> None:
    oracle = Oracle("aes-128-gcm")
    key = implementation(oracle)
    batch = b"".join(
        oracle.seal(b"\x0e\x04" + varint(92 * i, 4) + b"\x40\x5c" + bytes((i,)) * 92, 9 + i, 0)
        for i in range(3)
    )
    opened = key.open_run(batch, 127, 0, 0, 9)
    assert opened is not None
    number, stream, offset, data = opened
    assert (number, stream, offset) == (9, 4, 0)
    assert data == b"\0" * 92 + b"\1" * 92 + b"\2" * 92


@both
@pytest.mark.parametrize(
    "change",
    [
        {"cid": b"short"},
        {"head": bytes(30)},
        {"size": 30},
        {"data": b""},
        {"offset": 2**30},
        {"offset": 2**63},
        {"number": 2**64 - 1},
    ],
)
def test_wrong_arguments_are_value_errors(
    implementation: Implementation, change: dict[str, Any]
) -> None:
    how = {
        "first": 0x41,
        "cid": CID,
        "path_id": 0,
        "number": 1,
        "head": b"\x0c\x04",
        "offset": 0,
        "wide": False,
        "data": b"x" * 500,
        "size": 200,
        **change,
    }
    with pytest.raises(ValueError, match=r"run|offset"):
        implementation(Oracle("aes-128-gcm")).seal_run(*how.values())


@both
@given(
    number=st.integers(0, 2**40).map(lambda n: n | 0xFFF0),
    packets=st.integers(1, 40),
    path_id=st.integers(0, 2**32 - 1),
)
def test_sealing_goes_on_where_the_two_bytes_of_the_number_wrap(
    implementation: Implementation, number: int, packets: int, path_id: int
) -> None:
    oracle = Oracle("aes-128-gcm")
    data = random.Random(number).randbytes(packets * 166)
    sealed = implementation(oracle).seal_run(
        0x41, CID, path_id, number, b"\x0c\x40\x44", 0, False, data, 200
    )
    assert bytes(sealed) == oracle.run(data, 200, number, path_id, 0)


@given(
    before=st.lists(st.integers(0, 40), max_size=6),
    number=st.integers(1, 300),
    count=st.integers(1, 150),
)
def test_a_run_of_numbers_is_recorded_as_each_of_them_is(
    before: list[int], number: int, count: int
) -> None:
    one, other = ReceivedPackets(), ReceivedPackets()
    for each in dict.fromkeys(before):
        for received in (one, other):
            if each not in received:
                received.add(each)
    number += one.largest
    one.add_run(number, number + count)
    for each in range(number, number + count):
        other.add(each)
    assert one.ranges() == other.ranges()
    assert one.largest == other.largest
    for each in range(number + count + 1):
        assert (each in one) == (each in other)


@contextmanager
def in_use(implementation: Implementation) -> Iterator[None]:
    """Let connections use one of them."""
    part = dialkey_native if implementation is native_key else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "part", lambda: part)
        yield


# --- a connection -------------------------------------------------------------------------------

SIZE = 1200
STREAM = 3
"""The server's first unidirectional stream."""


@attrs.frozen
class Fault:
    """What is wrong with one packet of a run.

    Attributes:
        kind: "flip" changes a sealed bit, "drop", "double" and "swap" are the network's doing; the
            others are a peer's, in a packet that is authentic.
    """

    kind: str
    at: int
    value: int


PEER = (
    "id",
    "offset",
    "fin",
    "type",
    "length",
    "gap",
    "phase",
    "spin",
    "reserved",
    "path",
    "beyond",
)
FAULTS = st.builds(
    Fault,
    st.sampled_from(("flip", "drop", "double", "swap", *PEER)),
    st.integers(0, 11),
    st.integers(0, 8 * SIZE - 1),
)


def one_packet(
    side: Side, number: int, payload: bytes, first: int = 0x41, path_id: int = 0
) -> bytes:
    """Seal as the general case does, whatever it is."""
    protection = side.c.protection
    assert protection is not None
    key = protection.send
    header = bytes((first,)) + peer_cid_of(side.path) + (number & 0xFFFF).to_bytes(2, "big")
    nonce = (key.iv ^ (path_id << 64 | number)).to_bytes(12, "big")
    body = key.encrypt(nonce, payload, header)
    mask = protection.send_header.masks(body[2:18])
    masked = bytes((header[0] ^ mask[0] & 0x1F,)) + header[1:9]
    return masked + bytes((header[9] ^ mask[1], header[10] ^ mask[2])) + body


def hostile_run(
    side: Side, offset: int, count: int, faults: list[Fault], tight: bool
) -> list[bytes]:
    """Return the packets of a run of the server's stream with faults in it."""
    by_at = {fault.at % count: fault for fault in faults}
    number = side.path.next_number
    packets = []
    for i in range(count):
        fault = by_at.get(i, Fault("", 0, 0))
        kind, stream, first, path_id = 0x0C | (0x02 if tight else 0), STREAM, 0x41, 0
        at = offset
        if fault.kind == "id":
            stream = fault.value
        elif fault.kind == "offset":
            at = max(0, offset + fault.value - 4 * SIZE)
        elif fault.kind == "beyond":
            at = 2**62 - fault.value - 1
        elif fault.kind == "fin":
            kind |= 0x01
        elif fault.kind == "type":
            kind = fault.value & 0x3F
        elif fault.kind == "gap":
            number += 1 + fault.value % 200
        elif fault.kind == "phase":
            first |= 0x04
        elif fault.kind == "spin":
            first |= 0x20
        elif fault.kind == "reserved":
            first |= 0x08
        elif fault.kind == "path":
            path_id = 1
        width = 8 if at >= 2**30 else 4
        head = bytes((kind,)) + frame_varint(stream) + varint(at, width)
        room = SIZE - runs.HEADER - codes.TAG_LENGTH - len(head)
        if tight:
            room -= 2
            length = room + (fault.value % 5 - 2 if fault.kind == "length" else 0)
            head += varint(length, 2)
        data = random.Random(at).randbytes(room)
        packets.append(one_packet(side, number, head + data, first, path_id))
        number += 1
        offset += room
    for at, fault in by_at.items():
        if fault.kind == "flip":
            changed = bytearray(packets[at])
            changed[fault.value // 8] ^= 1 << fault.value % 8
            packets[at] = bytes(changed)
        elif fault.kind == "drop":
            packets[at] = b""
        elif fault.kind == "double":
            packets[at] = packets[fault.value % count]
        elif fault.kind == "swap":
            other = fault.value % count
            packets[at], packets[other] = packets[other], packets[at]
    side.path.next_number = number
    return [packet for packet in packets if packet]


def state_of(side: Side) -> dict[str, Any]:
    """Return everything that taking packets in may change."""
    core, path = side.c, side.path
    protection = core.protection
    assert protection is not None
    return {
        "closed": core.close_reason,
        "ranges": path.received.ranges(),
        "known": [each in path.received for each in range(path.received.largest + 2)],
        "counters": (
            core.packets_received,
            core.packets_duplicate,
            core.packets_undecryptable,
            core.bytes_received,
            path.bytes_received,
        ),
        "times": (path.largest_received_time, path.last_received, path.last_activity, core.timer()),
        "acks": (path.ack_pending, path.ack_at, path.is_receiving),
        "phase": (protection.recv_phase, protection.updates),
        "data": (
            core.streams.intake.received,
            core.streams.intake.consumed,
            core.streams.intake.limit,
        ),
        "streams": {
            half.id: (half.received, half.next_offset, half.buffered, half.limit, half.final_size)
            for half in core.streams.recv_halves.values()
        },
        "read": {key: bytes(value) for key, value in side.data.items()},
        "log": [type(event).__name__ for event in side.log],
    }


def taken_in(
    one_by_one: bool, batches: list[tuple[int, list[Fault], bool]], auto_read: bool, window: int
) -> dict[str, Any]:
    """Let a client take batches in; return its state."""
    pair = Pair(
        seed=5, client={"max_streams": 8, "stream_window": window, "connection_window": 2 * window}
    ).connect()
    pair.settle()
    server, client = pair.server, pair.client
    client.auto_read = auto_read
    stream = server.must_open(uni=True)
    assert stream == STREAM
    server.write(stream, b"hello")
    pair.settle()
    offset = 5
    for count, faults, tight in batches:
        packets = hostile_run(server, offset, count, faults, tight)
        offset += count * (SIZE - runs.HEADER - codes.TAG_LENGTH - 6 - 2 * tight)
        for batch in packets if one_by_one else [b"".join(packets)]:
            client.c.receive(memoryview(batch), SIZE, server.address, pair.now)
        client.drain_events()
    return state_of(client)


@both
def test_a_run_is_taken_in_as_one(implementation: Implementation) -> None:
    assert taken_as_runs(implementation, [(9, [], False), (5, [], True)]) == [9, 5]


@both
@pytest.mark.parametrize(("gap_at", "taken"), [(6, [6, 6]), (9, [6, 3, 3]), (1, [])])
def test_the_parts_before_and_after_a_lost_packet_are_runs(
    implementation: Implementation, gap_at: int, taken: list[int]
) -> None:
    faults = [Fault("gap", gap_at, 0)]
    assert taken_as_runs(implementation, [(12, faults, False)]) == taken


def taken_as_runs(
    implementation: Implementation, batches: list[tuple[int, list[Fault], bool]]
) -> list[int]:
    """Return how many packets each run had that a connection took in."""
    taken: list[int] = []
    add_run = ReceivedPackets.add_run
    with in_use(implementation), pytest.MonkeyPatch.context() as patch:

        def spy(received: ReceivedPackets, number: int, stop: int) -> None:
            taken.append(stop - number)
            add_run(received, number, stop)

        patch.setattr(ReceivedPackets, "add_run", spy)
        taken_in(False, batches, True, 1 << 20)
    return taken


@both
@settings(max_examples=100)
@given(
    batches=st.lists(
        st.tuples(st.integers(2, 12), st.lists(FAULTS, max_size=2), st.booleans()),
        min_size=1,
        max_size=3,
    ),
    auto_read=st.booleans(),
    window=st.sampled_from((9_000, 30_000, 1 << 20)),
)
def test_any_mutation_of_a_run_leaves_the_state_that_single_packets_leave(
    implementation: Implementation,
    batches: list[tuple[int, list[Fault], bool]],
    auto_read: bool,
    window: int,
) -> None:
    with in_use(implementation):
        together = taken_in(False, batches, auto_read, window)
        apart = taken_in(True, batches, auto_read, window)
    assert together == apart


@both
def test_a_run_beyond_the_window_counts_as_far_as_its_packets_do(
    implementation: Implementation,
) -> None:
    batches: list[tuple[int, list[Fault], bool]] = [(12, [], False)]
    with in_use(implementation):
        together = taken_in(False, batches, False, 9_000)
        assert together == taken_in(True, batches, False, 9_000)
    assert together["closed"].error_code == codes.FLOW_CONTROL_ERROR
    assert together["streams"][STREAM][0] == 8_174
