"""The words of codes, and codes as people type them."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey_rendezvous.codes import Code, choose_words, complete, looks_like_code
from dialkey_rendezvous.errors import InvalidCode
from dialkey_rendezvous.words import WORDS, sound


def letters_apart(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        following = [number]
        for place, against in enumerate(other, 1):
            following.append(
                min(row[place] + 1, following[-1] + 1, row[place - 1] + (letter != against))
            )
        row = following
    return row[-1]


def test_the_list_is_made_by_its_rules() -> None:
    assert len(WORDS) == 512
    assert all(re.fullmatch("[a-z]{4,8}", word) for word in WORDS)
    assert len({word[:4] for word in WORDS}) == 512
    assert len({sound(word) for word in WORDS}) == 512
    for one, other in itertools.combinations(WORDS, 2):
        # Letters that only one of them has must be replaced or taken out.
        if (Counter(one) - Counter(other)).total() < 3 > (Counter(other) - Counter(one)).total():
            assert letters_apart(one, other) >= 3, (one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("medal", "metal"), ("cymbal", "symbol"), ("night", "knight"), ("fern", "vern")],
)
def test_words_that_sound_alike_have_one_sound(one: str, other: str) -> None:
    # f and v stay apart: v is among the stops that it is taken for more often.
    assert (sound(one) == sound(other)) is ((one, other) != ("fern", "vern"))


@pytest.mark.parametrize(
    "text",
    [
        "7-amber-violin",
        "7 Amber Violin",
        " 7.AMBER.violin. ",
        "7—amber–violin",
        "7_amber/violin",
        "007-amber,  violin\n",
        "7-\u200bamber-violin",
    ],
)
def test_a_code_is_read_as_people_type_it(text: str) -> None:
    code = Code.parse(text)
    assert code == Code(7, ("amber", "violin"))
    assert str(code) == "7-amber-violin"
    assert looks_like_code(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a code"),
        ("amber-violin", "not a code"),
        ("٧-amber-violin", "not a code"),
        ("0-amber-violin", "the number of a code is 1 to 99999"),
        ("100000-amber-violin", "the number of a code"),
        ("7", "the code has no words"),
        ("7-amber", "the code has only one word"),
        ("7" + "-amber" * 7, "the code has 7 words"),
        ("7-amber-" + "v" * 200, "too long"),
        ("7-ambar-violin", "'ambar' is not a word of codes (did you mean amber or"),
        ("7-amber-medal", "did you mean metal"),
        ("7-amber-vïolin", "'vïolin' is not a word of codes"),
    ],
)
def test_what_is_not_a_code_is_said_before_it_burns_one(text: str, message: str) -> None:
    with pytest.raises(InvalidCode, match=re.escape(message)):
        Code.parse(text)


@given(st.text(max_size=120))
def test_any_text_is_a_code_or_an_error(text: str) -> None:
    try:
        code = Code.parse(text)
    except InvalidCode:
        return
    assert Code.parse(str(code)) == code


def test_no_ticket_and_no_path_looks_like_a_code() -> None:
    for text in ("blobabc", "endpointab", "7z-files", "-", "", "12345678 amber"):
        assert not looks_like_code(text)


def test_the_words_are_chosen_by_the_chance_that_is_given() -> None:
    asked: list[int] = []

    def choose(below: int) -> int:
        asked.append(below)
        return len(asked)

    assert choose_words(choose) == (WORDS[1], WORDS[2])
    assert asked == [512, 512]


def test_tab_completes_words_after_the_number() -> None:
    assert complete("7-vio") == ["7-violin"]
    assert complete("7-amber-VIO") == ["7-amber-violin"]
    assert len(complete("7-amber-")) == 512
    assert complete("vio") == complete("amber-vio") == complete("7") == []
    for word in WORDS:
        assert complete(f"7-{word[:4]}") == [f"7-{word}"]
