"""msgpack from strangers: one clear error, linear time, bounded memory."""

from __future__ import annotations

import gc
import struct
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey_rpc import CannotSend, MalformedMessage
from dialkey_rpc.budget import weight_of
from dialkey_rpc.packing import Part, pack, unpack

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.datetimes(timezones=st.just(UTC)),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 99), inner, max_size=5)
    ),
    max_leaves=30,
)


@given(plain)
def test_values_come_back(value: object) -> None:
    envelope, parts = pack(value)
    assert unpack(envelope, parts, 64) == value


@given(st.binary(max_size=300), st.lists(st.binary(max_size=3), max_size=3))
def test_any_bytes_give_a_value_or_one_error(envelope: bytes, parts: list[bytes]) -> None:
    try:
        unpack(envelope, parts, 16)
    except MalformedMessage:
        pass


@given(plain, st.data())
def test_damaged_msgpack_gives_a_value_or_one_error(value: object, data: st.DataObject) -> None:
    envelope = bytearray(pack(value)[0])
    for _ in range(data.draw(st.integers(1, 3))):
        envelope[data.draw(st.integers(0, len(envelope) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpack(bytes(envelope), (), 16)
    except MalformedMessage:
        pass


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"\xc1",  # never used
        b"\x01\x02",  # two values
        b"\x92\x01",  # an element is missing
        b"\xa2\xff\xff",  # not UTF-8
        b"\xdb\xff\xff\xff\xff",  # a text of 4 GiB
        b"\xdd\xff\xff\xff\xff",  # 4 G elements
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\x81\x90\x01",  # a list as a key
        b"\x81\x80\x01",
        b"\xd4\x05\x00",  # an extension that nobody knows
        b"\xd4\xff\x00",  # timestamps of no size that they have
        b"\xc7\x03\xff123",
        b"\xc7\x0c\xff" + b"\xff" * 12,  # too many nanoseconds
        b"\xc7\x0c\xff" + bytes(4) + b"\x7f" + b"\xff" * 7,  # far beyond the year 9999
        b"\xd5\x01\x00\x00",  # a part that is not there
    ],
)
def test_what_is_refused(envelope: bytes) -> None:
    with pytest.raises(MalformedMessage):
        unpack(envelope, (), 64)
    # What came before does not matter afterwards.
    assert unpack(b"\x93\x01\x02\x03", (), 64) == [1, 2, 3]


def test_what_is_left_over_does_not_hide_the_next_envelope() -> None:
    for _ in range(3):
        with pytest.raises(MalformedMessage, match="more than one value"):
            unpack(b"\x01" * 1000, (), 64)
    test_claims_make_no_room(b"\xdd\x00\x00\xff\xff" * 13_000)


@pytest.mark.parametrize(
    "wrap", [b"\x91", b"\x81\xa1k", b"\xdc\x00\x01", b"\xdf\x00\x00\x00\x01\x01"]
)
def test_depth(wrap: bytes) -> None:
    assert unpack(wrap * 20 + b"\xc0", (), 20) is not None
    for depth in (21, 500, 5_000, 100_000):
        with pytest.raises(MalformedMessage):
            unpack(wrap * depth + b"\xc0", (), 20)
    many = [[]] * 1000
    assert unpack(msgpack.packb(many), (), 2) == many


@pytest.mark.parametrize(
    "envelope",
    [
        b"\xdd\x00\x00\xff\xff" * 60_000,
        b"\xdf\x00\x00\xff\xff\x01" * 50_000,
        b"\xdc\xff\xff" * 100_000,
        b"\xdd" + struct.pack(">I", 299_000) + b"\x90" * 1000,
    ],
)
def test_claims_make_no_room(envelope: bytes) -> None:
    unpack(b"\xc0", (), 64)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            unpack(envelope, (), 64)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(envelope) + 100_000


def test_the_worst_that_is_true_takes_seventy_times_its_length() -> None:
    envelope = b"\xdd" + struct.pack(">I", 100_000) + b"\x90" * 100_000
    tracemalloc.start()
    try:
        assert unpack(envelope, (), 64) == [[]] * 100_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * len(envelope)


def test_parts() -> None:
    large = bytes(10_000)
    envelope, parts = pack({"a": Part(large), "b": [Part(b"x")]})
    assert len(envelope) < 30
    found: Any = unpack(envelope, parts, 64)
    assert found == {"a": large, "b": [b"x"]}
    assert found["a"] is large


@pytest.mark.parametrize("refers", ["d5010000d5010000", "d5010002", "d40100", "d6010000000000"])
def test_parts_are_referred_to_once_and_rightly(refers: str) -> None:
    envelope = b"\x92" + bytes.fromhex(refers).ljust(2, b"\xc0")
    envelope += b"" if refers.count("d501") == 2 else b"\xc0"
    with pytest.raises(MalformedMessage):
        unpack(envelope, [b"x", b"y"], 64)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (2**64, "64 bits"),
        (-(2**63) - 1, "64 bits"),
        (datetime(2026, 1, 1), "timezone"),
        (object(), None),
        ([1, {2: complex(1)}], None),
        ("\ud800", None),
    ],
)
def test_what_has_no_form_on_the_wire(value: object, hint: str | None) -> None:
    with pytest.raises(CannotSend) as caught:
        pack([Part(b"left over"), value])
    assert hint is None or hint in str(caught.value)
    assert pack([Part(b"x")]) == (b"\x91\xd5\x01\x00\x00", [b"x"])


def test_threads_do_not_share_parts() -> None:
    def work(number: int) -> None:
        for _ in range(300):
            mine = [Part(bytes([number]) * each) for each in (5, 6, 7)]
            envelope, parts = pack(mine)
            assert unpack(envelope, parts, 64) == [part.data for part in mine]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize(
    "value",
    [
        [[] for _ in range(2000)],
        [{} for _ in range(2000)],
        [{0: None} for _ in range(700)],
        [{str(i): [i, "text", b"bytes", 1.5]} for i in range(1000)],
        ["日本" for _ in range(1000)],
        [1 << 40 for _ in range(1000)],
    ],
)
def test_the_weight_of_a_value_is_what_it_takes(value: object) -> None:
    envelope, _ = pack(value)
    taken = []
    for _ in range(3):
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            made = unpack(envelope, (), 64)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        taken.append(after - before)
    # Python's table of interned strings, which keys enter, may grow once, by some MB for the process.
    least = min(taken)
    assert 0.8 * least <= weight_of(made) <= 2 * least
