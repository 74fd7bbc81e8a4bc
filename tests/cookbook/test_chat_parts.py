"""The parts of ``cookbook/chat`` that have no I/O: text, letters, tickets, the room."""

from __future__ import annotations

import ast
import re
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import attrs
import dialkey_chat
import msgpack
import pytest
from dialkey_chat.commands import clock, describe, typed_path
from dialkey_chat.messages import (
    MAX_LETTER_BYTES,
    Bye,
    File,
    Hello,
    Letter,
    open_letter,
    pack,
    unpack,
    write_letter,
)
from dialkey_chat.notices import Notices
from dialkey_chat.room import Arrived, Departed, Remark, Renamed, Room, RoomLimits, Written
from dialkey_chat.text import MAX_MARKS, MAX_NAME_CHARS, clean_name, clean_text
from dialkey_chat.ticket import RoomTicket
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey import EndpointAddr, SecretKey
from dialkey.errors import InvalidInput, InvalidTicket, WireError
from dialkey.identity import EndpointTicket, IpAddr, RelayAddr, RelayUrl
from dialkey_blobs import BlobFormat, BlobTicket, Hash
from dialkey_gossip import TopicId

TOPIC = TopicId.from_name("tea")
ALICE, BOB, ME = (SecretKey(bytes([number]) * 32) for number in (1, 2, 3))
MINUTE_MS = 60_000


def addr(key: SecretKey, port: int = 1) -> EndpointAddr:
    return EndpointAddr(key.id, [IpAddr.parse(f"127.0.0.1:{port}")])


def hello(key: SecretKey, at_ms: int, name: str = "alice", lifetime_s: float = 30.0) -> bytes:
    return pack(Hello(name, addr(key), lifetime_s, at_ms))


def letter(text: str, at_ms: int = 1, key: SecretKey = ALICE, topic: TopicId = TOPIC) -> Letter:
    return write_letter(key, topic, "alice", text, at_ms)


def a_room(**limits: float) -> Room:
    return Room(ME.id, TOPIC, "tea", RoomLimits(**limits))  # type: ignore[arg-type]


def texts(room: Room) -> list[str | File]:
    return [each.body for each in room.letters]


# --- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07hi", "[2J]0;titlehi"),
        ("\x9b31mred", "31mred"),
        ("one\ntwo\r\tthree\u2028four", "one two three four"),
        ("evil\u202egpj.exe", "evilgpj.exe"),
        ("in\u200bvis\u2066ib\ufeffle", "invisible"),
        ("می\u200cخواهم 👩\u200d👩\u200d👧", "می\u200cخواهم 👩\u200d👩\u200d👧"),
        ("z" + "\u0301" * 50, "z" + "\u0301" * MAX_MARKS),
        ("\ud800lone", "lone"),
        ("   ", ""),
    ],
)
def test_text_is_cleaned(given_text: str, shown: str) -> None:
    assert clean_text(given_text, 1_000) == shown


@given(st.text(max_size=200) | st.text(st.characters(categories=["Cc", "Cf", "Mn", "Zs", "Cs"])))
def test_text_never_moves_a_cursor(text: str) -> None:
    line = clean_text(text, 50)
    assert len(line) <= 50
    assert all(unicodedata.category(each) not in ("Cc", "Cs", "Zl", "Zp") for each in line)
    assert clean_text(line, 50) == line


def test_names() -> None:
    assert clean_name("  bob\x1b[0m ") == "bob[0m"
    assert clean_name("\u200b\u200d\u0301") == "guest"
    assert len(clean_name("x" * 1_000)) == MAX_NAME_CHARS


# --- letters --------------------------------------------------------------------------------------


def test_a_letter_is_its_authors_for_its_room_and_unchanged() -> None:
    sent = letter("good morning", 5)
    assert open_letter(TOPIC, sent.wire) == sent
    assert sent.author == ALICE.id
    author, content, signature = msgpack.unpackb(sent.wire)
    forged = content.replace(b"morning", b"evening")
    other = bytes(BOB.id)
    for parts in ([author, forged, signature], [other, content, signature], [author, content, b""]):
        with pytest.raises(WireError):
            open_letter(TOPIC, msgpack.packb(parts))
    with pytest.raises(WireError):
        open_letter(TopicId.from_name("coffee"), sent.wire)
    # Nor does anybody say in gossip what somebody else has written.
    with pytest.raises(WireError):
        unpack(TOPIC, BOB.id, pack(sent))


def test_what_is_too_long_or_empty_is_refused_where_it_is_written() -> None:
    for text in ("", " \x00 ", "x" * MAX_LETTER_BYTES):
        with pytest.raises(InvalidInput):
            letter(text)
    assert len(pack(letter("ä" * 1_700))) <= 3_840


def test_an_offer_names_its_author_as_provider() -> None:
    def offer(provider: SecretKey) -> File:
        hash = Hash(bytes(32))
        ticket = BlobTicket(addr(provider), hash, BlobFormat.HASH_SEQ)
        return File("a\x1b[31mmap\n.pdf", 7, ticket)

    sent = write_letter(ALICE, TOPIC, "alice", offer(ALICE), 1)
    assert isinstance(sent.body, File)
    assert (sent.body.name, sent.body.size) == ("a[31mmap .pdf", 7)
    with pytest.raises(InvalidInput):
        write_letter(ALICE, TOPIC, "alice", offer(BOB), 1)


# --- people ---------------------------------------------------------------------------------------


def test_people_come_are_renamed_and_leave() -> None:
    room = a_room()
    (arrived,) = room.hear(ALICE.id, hello(ALICE, 1), 0.0, 1)
    assert isinstance(arrived, Arrived)
    assert arrived.person.name == "alice"
    assert room.hear(ALICE.id, hello(ALICE, 2), 1.0, 1) == []
    (renamed,) = room.hear(ALICE.id, hello(ALICE, 4, "al\x1b[2Jice"), 1.0, 1)
    assert isinstance(renamed, Renamed)
    assert (renamed.before, renamed.person.name) == ("alice", "al[2Jice")
    assert room.hear(ALICE.id, hello(ALICE, 3, "old"), 1.0, 1) == []  # gossip keeps no order
    (left,) = room.hear(ALICE.id, pack(Bye(5)), 2.0, 1)
    assert isinstance(left, Departed)
    assert not left.is_silent
    assert room.hear(ALICE.id, hello(ALICE, 4), 2.0, 1) == []
    assert room.people == []
    assert len(room.hear(ALICE.id, hello(ALICE, 6), 2.0, 1)) == 1


def test_who_is_silent_is_gone_and_who_was_lost_is_doubted() -> None:
    room = a_room()
    room.hear(ALICE.id, hello(ALICE, 1, lifetime_s=30), 0.0, 1)
    room.hear(BOB.id, hello(BOB, 1, "bob", lifetime_s=3_600), 0.0, 1)
    assert room.expire(29.9) == []
    assert room.next_expiry() == 30.0
    (gone,) = room.expire(30.0)
    assert isinstance(gone, Departed)
    assert gone.is_silent
    assert gone.person.id == ALICE.id
    # Nobody is believed for an hour; and a lost neighbour has to speak soon.
    assert room.next_expiry() == 120.0
    room.doubt(BOB.id, 40.0)
    assert room.next_expiry() == 42.0
    room.hear(BOB.id, hello(BOB, 2, "bob"), 41.0, 1)
    assert room.expire(43.0) == []


def test_the_list_is_bounded_and_we_are_not_in_it() -> None:
    room = a_room(people=2)
    for number in range(10, 20):
        key = SecretKey(bytes([number]) * 32)
        room.hear(key.id, hello(key, 1), 0.0, 1)
        room.hear(key.id, pack(Bye(0)), 0.0, 1)
    assert len(room.people) == 2
    assert room.hear(ME.id, hello(ME, 1), 0.0, 1) == []


# --- what was written -----------------------------------------------------------------------------


def test_letters_are_sorted_and_there_once() -> None:
    room = a_room()
    for text, at_ms in (("two", 2), ("one", 1), ("two", 2), ("three", 3)):
        room.hear(ALICE.id, pack(letter(text, at_ms)), 0.0, MINUTE_MS)
    assert texts(room) == ["one", "two", "three"]
    merged = room.merge([letter("one", 1).wire, letter("0", 0, BOB).wire, b"junk"], MINUTE_MS)
    assert [each.is_history for each in merged if isinstance(each, Written)] == [True]
    assert texts(room) == ["0", "one", "two", "three"]
    assert room.ignored == 1


def test_letters_are_bounded() -> None:
    room = a_room(letters=3, burst=1_000)
    for at_ms in (5, 6, 7, 8, 1):
        room.add(letter(str(at_ms), at_ms), MINUTE_MS)
    assert texts(room) == ["6", "7", "8"]
    assert room.add(letter("soon", 30 * MINUTE_MS), MINUTE_MS) == []

    room = a_room(letter_bytes=2_000)
    for at_ms in range(10):
        room.add(letter("x" * 500, at_ms), MINUTE_MS)
    assert 2 <= len(room.letters) <= 3


def test_an_author_who_floods_is_not_heard_for_a_while() -> None:
    room = a_room(burst=3, burst_s=10.0)
    for number in range(5):
        room.hear(ALICE.id, pack(letter(str(number), number)), 0.0, MINUTE_MS)
    room.hear(BOB.id, pack(letter("me too", 50, BOB)), 0.0, MINUTE_MS)
    assert texts(room) == ["0", "1", "2", "me too"]
    room.hear(ALICE.id, pack(letter("later", 99)), 10.0, MINUTE_MS)
    assert texts(room)[-1] == "later"


def test_memory_is_told_from_the_end_within_bounds() -> None:
    room = a_room()
    sent = [letter(str(number), number) for number in range(5)]
    for each in sent:
        room.add(each, MINUTE_MS)
    wires = [each.wire for each in sent]
    assert room.recent(frozenset(), 100, 100_000) == wires
    assert room.recent(frozenset(), 2, 100_000) == wires[3:]
    assert room.recent(frozenset({sent[4].id}), 2, 100_000) == wires[2:4]
    assert room.recent(frozenset(), 100, len(wires[4]) + 1) == wires[4:]


def test_files_have_numbers() -> None:
    room = a_room(files=2)
    for at_ms in (1, 2, 3):
        file = File(f"{at_ms}", 1, BlobTicket(addr(ALICE), Hash(bytes(32)), BlobFormat.HASH_SEQ))
        (notice,) = room.add(write_letter(ALICE, TOPIC, "alice", file, at_ms), MINUTE_MS)
        assert isinstance(notice, Written)
        assert notice.number == at_ms
    assert room.file(1) is None
    found = room.file(3)
    assert found is not None
    assert found[1].name == "3"


# --- hostile input --------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)
KEYS = ["v", "kind", "at", "name", "addr", "lifetime", "letter", "text", "file", "size", "blob"]
MAPS = st.dictionaries(st.sampled_from(KEYS), PLAIN).map(lambda plain: {**plain, "v": 1})
KINDS = st.sampled_from(["hello", "bye", "letter", "text", "file"])
NEAR = st.builds(lambda plain, kind: {**plain, "kind": kind}, MAPS, KINDS)


@settings(max_examples=150)
@given(st.binary(max_size=200) | (PLAIN | NEAR).map(msgpack.packb))
def test_nothing_that_comes_by_gossip_harms(data: bytes) -> None:
    room = a_room()
    for notice in room.hear(ALICE.id, data, 0.0, MINUTE_MS):
        assert isinstance(notice, Departed)
    room.merge([data], MINUTE_MS)
    assert room.people == []


@settings(max_examples=100)
@given(NEAR)
def test_nothing_that_an_author_signs_harms(plain: dict[str, object]) -> None:
    content = msgpack.packb(plain)
    domain = b"dialkey-chat letter v1\x00"
    signature = bytes(ALICE.sign(domain + bytes(TOPIC) + content))
    room = a_room()
    room.merge([msgpack.packb([bytes(ALICE.id), content, signature])], MINUTE_MS)
    for each in room.letters:
        assert each.name == clean_name(each.name)


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain | {"at": -1},
        lambda plain: plain | {"at": True},
        lambda plain: plain | {"lifetime": float("nan")},
        lambda plain: plain | {"lifetime": 1e9},
        lambda plain: plain | {"name": b"alice"},
        lambda plain: plain | {"name": "x" * 4_000},
        lambda plain: plain | {"addr": "endpointaaaa"},
        lambda plain: plain | {"v": 2},
        lambda plain: plain | {"kind": "shout"},
        lambda plain: [plain],
    ],
)
def test_a_wrong_hello_is_none(change: Callable[[object], object]) -> None:
    data = msgpack.packb(change(msgpack.unpackb(hello(ALICE, 1))))
    with pytest.raises(WireError):
        unpack(TOPIC, ALICE.id, data)


# --- to the screen --------------------------------------------------------------------------------


async def test_a_slow_screen_makes_nothing_grow() -> None:
    notices = Notices(capacity=3)
    notices.put(Remark(str(number)) for number in range(5))
    notices.close()
    seen = [describe(each) async for each in notices]
    assert seen == ["- 2 lines were left out", "- 2", "- 3", "- 4"]


@pytest.mark.parametrize(
    ("days", "pattern"), [(0, r"\d\d:\d\d"), (-3, r"\d{4}-\d\d-\d\d \d\d:\d\d")]
)
def test_the_date_is_shown_where_it_is_another_day(days: int, pattern: str) -> None:
    assert re.fullmatch(pattern, clock(time.time_ns() // 1_000_000 + days * 86_400_000))
    assert re.fullmatch(r"\d{4,6}-.*", clock(1 << 52))


# --- tickets --------------------------------------------------------------------------------------


def test_tickets() -> None:
    ticket = RoomTicket("tea \x1b[2J& cake", TOPIC, (addr(ALICE), addr(BOB, 2)))
    assert ticket.name == "tea [2J& cake"
    text = str(ticket)
    assert text.startswith("room")
    assert RoomTicket.parse(f"  {text}\n") == ticket
    assert attrs.evolve(ticket, name="\x00").name == "room"
    for wrong in (text[:-3], "room", "", "roomaaaa", str(ticket.members)):
        with pytest.raises(InvalidTicket):
            RoomTicket.parse(wrong)
    assert RoomTicket.create("a").topic != RoomTicket.create("a").topic


# --- the source -----------------------------------------------------------------------------------


def test_only_public_names_are_used() -> None:
    public = {"dialkey", "dialkey.cli", "dialkey.errors", "dialkey.identity"}
    public |= {"dialkey.identity.postcard", "dialkey_blobs", "dialkey_gossip"}
    folder = Path(dialkey_chat.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dialkey"):
                module = node.module or ""
                assert module in public or module.startswith("dialkey_chat"), (path, module)
                assert not any(alias.name.startswith("_") for alias in node.names)


def test_a_path_typed_into_the_chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No shell has seen it, so the tilde is ours to expand, and quotes are ours to take off."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert typed_path(" ~/a b.txt ") == tmp_path / "a b.txt"
    assert typed_path("~") == tmp_path
    assert typed_path("'~/a'") == Path("~/a")
    assert typed_path("~$report.docx") == Path("~$report.docx")
    assert typed_path('"a b.txt"') == Path("a b.txt")


def test_few_of_the_addresses_that_somebody_claims_are_kept() -> None:
    """Everybody in the room dials them, so they must not be worth much against a third party."""
    relays = [RelayAddr(RelayUrl(f"https://r{n}.example.org/")) for n in range(4)]
    one_host = [IpAddr.parse(f"198.41.0.4:{port}") for port in range(1, 9)]
    private = [IpAddr.parse(f"10.0.0.{n}:1") for n in range(1, 9)]
    claimed = EndpointAddr(ALICE.id, [*relays, *one_host, *private])
    said = {"v": 1, "kind": "hello", "name": "alice", "lifetime": 30.0, "at": 1}
    said["addr"] = str(EndpointTicket(claimed))
    message = unpack(TOPIC, ALICE.id, msgpack.packb(said))
    assert isinstance(message, Hello)
    kept = message.addr.addrs
    assert len(kept) == 3
    assert len([each for each in kept if each in relays]) == 1
    assert len([each for each in kept if each in one_host]) == 1
    assert len([each for each in kept if each in private]) == 1
