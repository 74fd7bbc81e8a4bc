"""The journal of partial blobs: what survives which crash."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.hash import Hash
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.store.journal import Journal, JournalWriter

HASH = Hash.of(b"some blob")
SIZE = 1000 * 1024


def chunks(start: int, end: int) -> Bitfield:
    return Bitfield.of(SIZE, ChunkRanges.between(start, end))


def test_records_add_up() -> None:
    writer = JournalWriter(HASH)
    data = writer.epoch(b"boot") + writer.chunks(chunks(0, 16)) + writer.chunks(chunks(32, 48))
    journal = Journal.read(HASH, data)
    assert journal.bitfield == Bitfield(SIZE, ChunkRanges((0, 16, 32, 48)))
    assert journal.length == len(data)
    assert journal.is_trusted(b"boot")
    assert not journal.is_trusted(b"another")


def test_an_empty_journal_holds_nothing_and_is_trusted() -> None:
    journal = Journal.read(HASH, b"")
    assert journal.bitfield == Bitfield()
    assert journal.is_trusted(b"boot")


def test_another_blobs_journal_is_not_read() -> None:
    data = JournalWriter(Hash.of(b"another")).chunks(chunks(0, 16))
    assert Journal.read(HASH, data).length == 0


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(1, 90)), max_size=8), st.data())
@settings(max_examples=60)
def test_cut_off_anywhere_it_holds_what_its_whole_records_say(
    runs: list[tuple[int, int]], data: st.DataObject
) -> None:
    writer = JournalWriter(HASH)
    records = [writer.epoch(b"boot")]
    states = [Bitfield()]
    for start, length in runs:
        added = chunks(start, start + length)
        records.append(writer.chunks(added))
        states.append(states[-1].combine(added))
    whole = b"".join(records)
    cut = data.draw(st.integers(0, len(whole)))
    journal = Journal.read(HASH, whole[:cut])
    count = ends = 0
    for record in records:
        if ends + len(record) > cut:
            break
        ends += len(record)
        count += 1
    assert journal.length == ends
    assert journal.bitfield == (states[count - 1] if count else Bitfield())


@given(st.binary(max_size=300))
@settings(max_examples=100)
def test_rubbish_is_not_read(data: bytes) -> None:
    journal = Journal.read(HASH, data)
    assert journal.length == 0
    assert journal.bitfield == Bitfield()


@given(st.integers(0, 200), st.integers(1, 255))
@settings(max_examples=60)
def test_a_changed_byte_ends_the_reading(position: int, flip: int) -> None:
    writer = JournalWriter(HASH)
    first = writer.epoch(b"boot") + writer.chunks(chunks(0, 16))
    second = writer.chunks(chunks(64, 80))
    data = bytearray(first + second)
    position %= len(data)
    data[position] ^= flip
    journal = Journal.read(HASH, bytes(data))
    assert journal.length <= position
    assert journal.bitfield.ranges <= ChunkRanges.between(0, 16)


def test_an_append_after_a_failed_one_hides_its_remains() -> None:
    writer = JournalWriter(HASH)
    good = writer.epoch(b"boot") + writer.chunks(chunks(0, 16))
    writer.appended()
    # This append failed, although by bad luck all of it and more reached the file.
    failed = writer.chunks(chunks(100, 200)) + writer.chunks(chunks(300, 400))
    writer.failed()
    file = bytearray(good + failed)
    record = writer.chunks(chunks(16, 32))
    file[writer.length : writer.length + len(record)] = record
    writer.appended()
    journal = Journal.read(HASH, bytes(file))
    assert journal.length == writer.length
    assert journal.bitfield.ranges == ChunkRanges.between(0, 32)


def test_appending_goes_on_where_reading_stopped() -> None:
    writer = JournalWriter(HASH)
    data = writer.epoch(b"boot") + writer.chunks(chunks(0, 16))
    later = JournalWriter(HASH, Journal.read(HASH, data + b"torn"))
    assert later.length == len(data)
    data += later.epoch(b"boot") + later.chunks(chunks(16, 32))
    journal = Journal.read(HASH, data)
    assert journal.length == len(data)
    assert journal.bitfield.ranges == ChunkRanges.between(0, 32)


def test_a_seal_makes_everything_before_it_trusted() -> None:
    writer = JournalWriter(HASH)
    data = writer.epoch(b"old") + writer.chunks(chunks(0, 16)) + writer.sealed()
    assert Journal.read(HASH, data).is_trusted(b"new")
    data += writer.epoch(b"new") + writer.chunks(chunks(16, 32))
    assert Journal.read(HASH, data).is_trusted(b"new")
    assert not Journal.read(HASH, data).is_trusted(b"newer")


@pytest.mark.parametrize("epoch", [b"", b"boot"])
def test_without_an_epoch_nothing_is_trusted(epoch: bytes) -> None:
    data = JournalWriter(HASH).chunks(chunks(0, 16))
    assert not Journal.read(HASH, data).is_trusted(epoch)


def test_very_many_holes_go_into_several_records() -> None:
    ranges = ChunkRanges(tuple(range(300_000)))
    held = Bitfield(1 << 40, ranges)
    data = JournalWriter(HASH).chunks(held)
    assert Journal.read(HASH, data).bitfield.ranges == ranges
