"""Signed messages: authors, sequences, duplicates, replays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey.errors import WireError
from dialkey.identity import SecretKey
from dialkey_gossip import TopicId
from dialkey_gossip.signing import (
    ENVELOPE_OVERHEAD_BYTES,
    WINDOW,
    Opener,
    Signer,
    read_envelope,
)

ALICE, BOB = SecretKey(b"\x01" * 32), SecretKey(b"\x02" * 32)
TOPIC = TopicId.from_name("signed")
NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def test_an_envelope_carries_author_and_sequence() -> None:
    signer = Signer(ALICE, TOPIC, NOW)
    opener = Opener(TOPIC, 600, Clock())
    for expected in (1, 2, 3):
        content = signer.seal(b"hello", NOW)
        assert opener.admit(content)
        envelope = read_envelope(content)
        assert (envelope.author, envelope.sequence) == (ALICE.id, expected)
        assert envelope.payload == b"hello"
        assert len(content) <= len(b"hello") + ENVELOPE_OVERHEAD_BYTES


def test_an_envelope_is_taken_once() -> None:
    signer = Signer(ALICE, TOPIC, NOW)
    opener = Opener(TOPIC, 600, Clock())
    first, second = signer.seal(b"a", NOW), signer.seal(b"a", NOW)
    assert first != second
    assert opener.admit(second)
    assert opener.admit(first)
    assert not opener.admit(first)
    assert not opener.admit(second)


def test_another_topic_has_other_signatures() -> None:
    content = Signer(ALICE, TOPIC, NOW).seal(b"a", NOW)
    assert not Opener(TopicId.from_name("other"), 600, Clock()).admit(content)
    assert Opener(TOPIC, 600, Clock()).admit(content)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_is_noticed(position: int, change: int) -> None:
    content = bytearray(Signer(ALICE, TOPIC, NOW).seal(b"payload", NOW))
    content[position % len(content)] ^= change
    assert not Opener(TOPIC, 600, Clock()).admit(bytes(content))


@given(st.binary(max_size=250))
def test_other_contents_are_refused(content: bytes) -> None:
    assert not Opener(TOPIC, 600, Clock()).admit(content)
    assert not Opener(TOPIC, 600, Clock()).admit(b"DKS1" + content)
    with pytest.raises(WireError):
        read_envelope(content)


def test_old_and_future_messages_are_refused() -> None:
    signer = Signer(ALICE, TOPIC, NOW)
    clock = Clock()
    opener = Opener(TOPIC, 600, clock)
    assert not opener.admit(signer.seal(b"a", NOW - 601))
    assert not opener.admit(signer.seal(b"a", NOW + 601))
    content = signer.seal(b"a", NOW)
    clock.now += 601
    assert not opener.admit(content)
    assert opener.admit(signer.seal(b"a", clock.now + 500))


def test_a_new_session_ends_the_old_one() -> None:
    clock = Clock()
    opener = Opener(TOPIC, 600, clock)
    old = Signer(ALICE, TOPIC, NOW)
    kept_back = old.seal(b"kept back", NOW)
    assert opener.admit(old.seal(b"a", NOW))
    new = Signer(ALICE, TOPIC, NOW + 5)
    assert opener.admit(new.seal(b"b", NOW + 5))
    assert not opener.admit(kept_back)
    assert opener.admit(Signer(BOB, TOPIC, NOW).seal(b"c", NOW))


def test_the_window_of_sequences() -> None:
    signer = Signer(ALICE, TOPIC, NOW)
    opener = Opener(TOPIC, 600, Clock())
    contents = [signer.seal(b"a", NOW) for _ in range(3 * WINDOW)]
    assert opener.admit(contents[-1])
    assert not opener.admit(contents[-1 - WINDOW])
    for content in contents[-WINDOW:-1]:
        assert opener.admit(content)
        assert not opener.admit(content)


def test_memory_is_bounded() -> None:
    opener = Opener(TOPIC, 600, Clock())
    signer = Signer(ALICE, TOPIC, NOW)
    for _ in range(3 * WINDOW):
        assert opener.admit(signer.seal(b"a", NOW))
    [author] = opener._authors.values()
    assert len(author.seen) <= 2 * WINDOW
