"""Names of files at both ends: what is refused, and what becomes of what a system cannot hold."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey.errors import LocalError, RemoteError
from dialkey_blobs import names as names_module
from dialkey_blobs.names import (
    ANYWHERE,
    Naming,
    UnsafeName,
    UnsendableName,
    check_names,
    check_own_names,
    place,
    split_name,
)

HOSTILE = {
    "empty": "",
    "absolute": "/etc/passwd",
    "double slash": "//server/share",
    "parent": "..",
    "parent first": "../x",
    "parent inside": "a/../../x",
    "parent last": "a/..",
    "current": ".",
    "current inside": "a/./b",
    "empty component": "a//b",
    "trailing slash": "a/",
    "zero byte": "a\0b",
    "line break": "a\nb",
    "escape sequence": "a\x1b[2Jb",
    "delete": "a\x7fb",
    "second control set": "a\x9bb",
    "line separator": "a\u2028b",
    "reversed text": "invoice\u202efdp.exe",
    "isolate": "a\u2066b",
    "half a character": "a\ud800",
    "backslash parent": "..\\..\\x",
    "backslash parent inside": "a/b\\..\\..\\..\\x",
    "share": "\\\\server\\share",
    "drive": "C:\\x",
    "long name": "/".join(["a" * 200] * 21),
    "deep name": "/".join(["a"] * 65),
}

ELSEWHERE = {
    "time": ("10:30 notes.txt", "10_30 notes.txt"),
    "drive relative": ("C:x", "C_x"),
    "alternate stream": ("file.txt:hidden", "file.txt_hidden"),
    "backslash": ("a\\b", "a_b"),
    "device": ("con", "_con"),
    "device in capitals": ("NUL", "_NUL"),
    "device with extension": ("aux.c", "_aux.c"),
    "device with two extensions": ("Aux.tar.gz", "_Aux.tar.gz"),
    "device as directory": ("a/prn/b", "a/_prn/b"),
    "device with space": ("com1 .txt", "_com1 .txt"),
    "device with superscript": ("COM¹", "_COM¹"),
    "device when mended": ("con.", "con_"),
    "console": ("CONIN$", "_CONIN$"),
    "line printer": ("lpt9", "_lpt9"),
    "dot at the end": ("etc.", "etc_"),
    "dots at the end": ("a...", "a_"),
    "space at the end": ("a ", "a_"),
    "directory with space": ("a /b", "a_/b"),
    "only dots": ("...", "_"),
    "wildcard": ("a*b", "a_b"),
    "question": ("what?", "what_"),
    "pipe": ("a|b", "a_b"),
    "angle": ("a<b", "a_b"),
    "quote": ('a"b', "a_b"),
}

FINE = [
    "single",
    "a/b/c.txt",
    ".hidden",
    "...x",
    "a..b",
    "ein Überblick.pdf",
    "日本語/ファイル",
    "contest",
    "nullable",
    "com10",
    "console.log",
    "auxiliary/x",
    " leading space",
    "a" * 255,
    "é" * 127,
    "/".join(["deep"] * 64),
    "emoji 👩‍👩‍👧 family",
]

CLASHES = [
    ["a", "a"],
    ["a", "a/b"],
    ["a/b", "a"],
    ["d/x", "d!", "d-e", "d"],
    ["a/b/c/d", "a/b"],
]

ONE_NAME_SOMEWHERE = [
    ["README", "readme"],
    ["A/x", "a/y"],
    ["a/b/c", "a/B/d"],
    ["straße", "STRASSE"],
    ["a", "A/b"],
    ["Ａ", "ａ"],
    ["é", "e\u0301"],
    ["d\u00e9/x", "de\u0301/y"],
    ["A/x", "a/x", "A/X"],
    ["a:b", "a_b", "A?b"],
    ["x" * 300 + ".jpg", "x" * 301 + ".jpg"],
]

LINUX = Naming()


# --- refused at both ends -------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_dangerous_names_are_refused(name: str) -> None:
    with pytest.raises(UnsafeName) as caught:
        check_names(["good", name])
    assert caught.value.name == name
    assert str(caught.value).isprintable()
    assert isinstance(caught.value, RemoteError)
    with pytest.raises(UnsafeName):
        split_name(name)


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_ones_own_dangerous_names_are_ones_own_fault(name: str) -> None:
    with pytest.raises(UnsendableName) as caught:
        check_own_names(["good", name])
    assert str(caught.value).isprintable()
    assert isinstance(caught.value, LocalError)


@pytest.mark.parametrize("names", CLASHES)
def test_clashes_are_refused(names: list[str]) -> None:
    for order in (names, names[::-1]):
        with pytest.raises(UnsafeName):
            check_names([*order, "other"])
        with pytest.raises(UnsendableName):
            check_own_names([*order, "other"])


def test_all_else_is_fine_at_both_ends() -> None:
    for name in (*FINE, *(name for name, _ in ELSEWHERE.values())):
        check_names([name, "other"])
        check_own_names([name, "other"])
    check_names([])
    for several in ONE_NAME_SOMEWHERE:
        check_names(several)


def test_names_are_shown_as_people_write_them() -> None:
    assert "'naïve 日本/../👩‍👩‍👧.txt'" in str(UnsafeName("naïve 日本/../👩‍👩‍👧.txt", "no"))
    assert "\\x1b" in str(UnsafeName("a\x1b[2J", "no"))


# --- what a system can hold -----------------------------------------------------------------------


def test_what_can_be_held_stays_as_it_is() -> None:
    assert place(FINE, ANYWHERE).names == tuple(FINE)
    assert place(FINE, ANYWHERE).renamed == ()
    names = [name for name, _ in ELSEWHERE.values()]
    assert place(names, LINUX).names == tuple(names)
    for several in ONE_NAME_SOMEWHERE[:-1]:
        assert place(several, LINUX).renamed == ()


@pytest.mark.parametrize(("name", "safe"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_what_cannot_be_held_gets_a_safe_name(name: str, safe: str) -> None:
    placed = place(["other", name], ANYWHERE)
    assert placed.names == ("other", safe)
    [renamed] = placed.renamed
    assert (renamed.name, renamed.local_name) == (name, safe)
    assert "Windows" in renamed.reason
    assert place([safe], ANYWHERE).renamed == ()


@pytest.mark.parametrize("names", ONE_NAME_SOMEWHERE)
def test_names_that_are_one_somewhere_stay_apart(names: list[str]) -> None:
    for order in (names, names[::-1]):
        placed = place(order, ANYWHERE)
        assert are_distinct(placed.names)
        assert all(each.reason for each in placed.renamed)
        assert {each.name for each in placed.renamed} == {
            name for name, local in zip(order, placed.names, strict=True) if name != local
        }


def test_the_name_that_needs_no_change_keeps_it() -> None:
    assert place(["a:b", "a_b"], ANYWHERE).names[1] == "a_b"
    first, second = place(["README", "readme"], ANYWHERE).names
    assert first == "README"
    assert second.startswith("readme~")


def test_long_names_keep_their_ends() -> None:
    name = "日" * 100 + ".tar.gz"
    [placed] = place([name], LINUX).names
    assert len(placed.encode()) <= 255
    assert placed.startswith("日日")
    assert placed.endswith(".gz")
    [narrow] = place(["a" * 200], Naming(max_component_bytes=143)).names
    assert len(narrow) == 143


def are_distinct(names: tuple[str, ...]) -> bool:
    folded = [ANYWHERE.fold(name) for name in names]
    if len(set(folded)) != len(names):
        return False
    folders = {(ANYWHERE.fold("/".join(parts)), "/".join(parts)) for parts in prefixes(names)}
    files = set(folded)
    return len({key for key, _ in folders}) == len(folders) and not any(
        key in files for key, _ in folders
    )


def prefixes(names: tuple[str, ...]) -> list[list[str]]:
    return [name.split("/")[:end] for name in names for end in range(1, name.count("/") + 1)]


nasty = st.text(st.sampled_from("aA.ÉéE\u0301/\\: ~*NUL"), max_size=12)


@given(st.lists(nasty, max_size=8, unique=True), st.sampled_from([ANYWHERE, LINUX]))
def test_placed_names_are_distinct_files_that_can_be_held(names: list[str], naming: Naming) -> None:
    try:
        check_names(names)
    except UnsafeName:
        return
    placed = place(names, naming)
    check_names(placed.names)
    assert [len(name.split("/")) for name in placed.names] == [
        len(name.split("/")) for name in names
    ]
    for name in placed.names:
        assert not any(naming.fault(part) for part in name.split("/"))
    if naming is ANYWHERE:
        assert are_distinct(placed.names)
        for one, other in zip(names, placed.names, strict=True):
            assert (one != other) == any(each.name == one for each in placed.renamed)
    assert place(names, naming) == placed


# --- cost -----------------------------------------------------------------------------------------


def test_a_hundred_thousand_names() -> None:
    names = [f"directory {i % 100}/file {i}.txt" for i in range(100_000)]
    began = time.process_time()
    check_names(names)
    with pytest.raises(UnsafeName, match="twice"):
        check_names([*names, names[50_000]])
    assert place(names, ANYWHERE).renamed == ()
    # Measured 1.5 s for all.
    assert time.process_time() - began < 30


def test_deep_names_cost_no_more_than_their_length() -> None:
    names = ["a/" * 60 + str(i) for i in range(20_000)]
    began = time.process_time()
    check_names(names)
    assert place(names, ANYWHERE).renamed == ()
    assert time.process_time() - began < 20


def test_a_flood_of_clashes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "MAX_CLASHES", 100)
    few = [name for i in range(100) for name in (f"a{i}", f"A{i}")]
    assert are_distinct(place(few, ANYWHERE).names)
    many = [name for i in range(101) for name in (f"a{i}", f"A{i}")]
    with pytest.raises(UnsafeName, match="too many"):
        place(many, ANYWHERE)
