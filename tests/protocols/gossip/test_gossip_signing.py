"""Signed messages: authors, sequences, duplicates, replays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey.errors import InvalidInput, WireError
from dialkey.identity import SecretKey
from dialkey_gossip import Signing, TopicId
from dialkey_gossip.ids import PeerId
from dialkey_gossip.signing import (
    ENVELOPE_OVERHEAD_BYTES,
    WINDOW,
    Opener,
    Signer,
    read_envelope,
)

ALICE, BOB = SecretKey(b"\x01" * 32), SecretKey(b"\x02" * 32)
TOPIC = TopicId.from_name("signed")
PEER, OTHER_PEER = PeerId(bytes(32)), PeerId(bytes([1]) * 32)
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
        assert opener.admit(PEER, content)
        envelope = read_envelope(content)
        assert (envelope.author, envelope.sequence) == (ALICE.id, expected)
        assert envelope.payload == b"hello"
        assert len(content) <= len(b"hello") + ENVELOPE_OVERHEAD_BYTES


def test_an_envelope_is_taken_once() -> None:
    signer = Signer(ALICE, TOPIC, NOW)
    opener = Opener(TOPIC, 600, Clock())
    first, second = signer.seal(b"a", NOW), signer.seal(b"a", NOW)
    assert first != second
    assert opener.admit(PEER, second)
    assert opener.admit(PEER, first)
    assert not opener.admit(PEER, first)
    assert not opener.admit(PEER, second)


def test_another_topic_has_other_signatures() -> None:
    content = Signer(ALICE, TOPIC, NOW).seal(b"a", NOW)
    assert not Opener(TopicId.from_name("other"), 600, Clock()).admit(PEER, content)
    assert Opener(TOPIC, 600, Clock()).admit(PEER, content)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_is_noticed(position: int, change: int) -> None:
    content = bytearray(Signer(ALICE, TOPIC, NOW).seal(b"payload", NOW))
    content[position % len(content)] ^= change
    assert not Opener(TOPIC, 600, Clock()).admit(PEER, bytes(content))


@given(st.binary(max_size=250))
def test_other_contents_are_refused(content: bytes) -> None:
    assert not Opener(TOPIC, 600, Clock()).admit(PEER, content)
    assert not Opener(TOPIC, 600, Clock()).admit(PEER, b"DKS1" + content)
    with pytest.raises(WireError):
        read_envelope(content)


def test_old_and_future_messages_are_refused() -> None:
    signer = Signer(ALICE, TOPIC, NOW)
    clock = Clock()
    opener = Opener(TOPIC, 600, clock)
    assert not opener.admit(PEER, signer.seal(b"a", NOW - 601))
    assert not opener.admit(PEER, signer.seal(b"a", NOW + 601))
    content = signer.seal(b"a", NOW)
    clock.now += 601
    assert not opener.admit(PEER, content)
    assert opener.admit(PEER, signer.seal(b"a", clock.now + 500))


def test_a_new_session_ends_the_old_one() -> None:
    clock = Clock()
    opener = Opener(TOPIC, 600, clock)
    old = Signer(ALICE, TOPIC, NOW)
    kept_back = old.seal(b"kept back", NOW)
    assert opener.admit(PEER, old.seal(b"a", NOW))
    new = Signer(ALICE, TOPIC, NOW + 5)
    assert opener.admit(PEER, new.seal(b"b", NOW + 5))
    assert not opener.admit(PEER, kept_back)
    assert opener.admit(PEER, Signer(BOB, TOPIC, NOW).seal(b"c", NOW))


def test_the_window_of_sequences() -> None:
    signer = Signer(ALICE, TOPIC, NOW)
    opener = Opener(TOPIC, 600, Clock())
    contents = [signer.seal(b"a", NOW) for _ in range(3 * WINDOW)]
    assert opener.admit(PEER, contents[-1])
    assert not opener.admit(PEER, contents[-1 - WINDOW])
    for content in contents[-WINDOW:-1]:
        assert opener.admit(PEER, content)
        assert not opener.admit(PEER, content)


def test_a_sequence_far_ahead_costs_nothing() -> None:
    opener = Opener(TOPIC, 600, Clock())
    signer = Signer(ALICE, TOPIC, NOW)
    first = signer.seal(b"a", NOW)
    assert opener.admit(PEER, first)
    signer._sequence = (1 << 64) - 2
    last = signer.seal(b"a", NOW)
    assert opener.admit(PEER, last)
    assert not opener.admit(PEER, last)
    assert not opener.admit(PEER, first)
    [author] = opener._authors.values()
    assert author.window.bit_length() <= WINDOW


def test_no_message_is_taken_twice_whatever_strangers_push(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dialkey_gossip.signing.MAX_GOSSIP_AUTHORS", 50)
    clock = Clock()
    opener = Opener(TOPIC, 600, clock)
    alice, bob = Signer(ALICE, TOPIC, NOW), Signer(BOB, TOPIC, NOW)
    content = alice.seal(b"once", NOW)
    assert opener.admit(OTHER_PEER, content)

    def push() -> int:
        strangers = [Signer(SecretKey.generate(), TOPIC, clock.now) for _ in range(60)]
        return sum(opener.admit(PEER, each.seal(b"x", clock.now)) for each in strangers)

    assert push() == 40
    for _ in range(11):
        clock.now += 60
        push()
        assert not opener.admit(PEER, content)
        assert not opener.admit(OTHER_PEER, content)
        assert len(opener._authors) <= 50
        # A known author passes through anybody, and a new one through those who bring few.
        assert opener.admit(PEER, alice.seal(b"more", clock.now))
        assert opener.admit(OTHER_PEER, bob.seal(b"new", clock.now))
    assert clock.now > NOW + 600
    clock.now += 700
    assert push() == 40, "those that were silent for long are forgotten"


def test_an_author_is_remembered_for_as_long_as_its_messages_can_be_taken() -> None:
    clock = Clock()
    opener = Opener(TOPIC, 600, clock)
    content = Signer(ALICE, TOPIC, NOW).seal(b"from the future", NOW + 590)
    assert opener.admit(PEER, content)
    for _ in range(120):
        clock.now += 10
        assert not opener.admit(PEER, content)
    clock.now += 40
    assert opener.is_empty()


def test_a_clock_that_is_set_back_makes_nothing_new() -> None:
    clock = Clock()
    opener = Opener(TOPIC, 600, clock)
    content = Signer(ALICE, TOPIC, NOW).seal(b"a", NOW)
    assert opener.admit(PEER, content)
    clock.now += 5000
    assert opener.is_empty()
    clock.now = NOW + 1
    assert not opener.admit(PEER, content)
    assert opener.admit(PEER, Signer(BOB, TOPIC, NOW).seal(b"b", NOW + 1))


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_an_age_that_makes_no_sense_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidInput):
        Signing(max_age_s=seconds)


def test_memory_is_bounded() -> None:
    opener = Opener(TOPIC, 600, Clock())
    signer = Signer(ALICE, TOPIC, NOW)
    for _ in range(3 * WINDOW):
        assert opener.admit(PEER, signer.seal(b"a", NOW))
    [author] = opener._authors.values()
    assert author.window.bit_length() <= WINDOW
