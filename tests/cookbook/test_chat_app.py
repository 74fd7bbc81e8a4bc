"""``dialkey chat`` in processes of its own: in lines, and on a terminal."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_app import TIMEOUT_S, PlainChat, TerminalChat


class Rooms:
    """Starts chats, each in a folder of its own, and ends them after the test."""

    def __init__(
        self, environment: dict[str, str], folder: Path, stack: contextlib.ExitStack
    ) -> None:
        self.environment = environment
        self.folder = folder
        self._stack = stack

    def create(self, name: str, *arguments: str) -> tuple[PlainChat, str]:
        chat = self._plain(name, "create", "--name", name, "--room", "tea", *arguments)
        return chat, chat.expect("^room[a-z2-7]+$")

    def join(self, name: str, ticket: str, *arguments: str) -> PlainChat:
        return self._plain(name, "join", ticket, "--name", name, *arguments)

    def on_terminal(self, name: str, *arguments: str) -> TerminalChat:
        chat = TerminalChat(self.environment, self.folder / name, *arguments, "--name", name)
        self._stack.callback(chat.close)
        return chat

    def _plain(self, name: str, *arguments: str) -> PlainChat:
        chat = PlainChat(self.environment, self.folder / name, *arguments)
        self._stack.callback(chat.close)
        return chat


@pytest.fixture
def rooms(environment: dict[str, str], tmp_path: Path) -> Iterator[Rooms]:
    with contextlib.ExitStack() as stack:
        yield Rooms(environment, tmp_path, stack)


def number_of(offer: str) -> str:
    found = re.search(r"/get (\d+)", offer)
    assert found is not None
    return found[1]


def test_three_chat_drop_a_file_and_one_is_killed(rooms: Rooms) -> None:
    alice, ticket = rooms.create("alice")
    alice.type("nobody has heard this yet")
    bob = rooms.join("bob", ticket)
    bob.expect(r"alice \([0-9a-f]{10}\) is here")
    alice.expect(r"bob \([0-9a-f]{10}\) is here")
    # What was said before is told by a peer.
    bob.expect(r"\d\d:\d\d alice \([0-9a-f]{10}\): nobody has heard this yet")
    bob.type("good evening")
    alice.expect(r"bob \(.*\): good evening")

    carol = rooms.join("carol", ticket)
    for chat, others in ((alice, "bob carol"), (bob, "alice carol"), (carol, "alice bob")):
        for other in others.split():
            chat.expect(rf"{other} \(.*\) is here")
    carol.expect("nobody has heard this yet")
    carol.expect("good evening")
    carol.type("hello all")
    for chat in (alice, bob):
        chat.expect(r"carol \(.*\): hello all")
    bob.type("/who")
    bob.expect("that is you")
    bob.expect(r"^- carol \(")

    # A file: offered where it is, fetched by two, verified, and not fetched over what is there.
    data = os.urandom(1_500_000)
    (alice.folder / "holiday map.pdf").write_bytes(data)
    alice.type("/send holiday map.pdf")
    for chat in (bob, carol):
        offer = chat.expect(r"alice \(.*\) offers holiday map.pdf, 1.5 MB: /get \d")
        chat.type(f"/get {number_of(offer)}")
        chat.expect("saved .*holiday map.pdf")
        got = (chat.folder / "chat-downloads" / "holiday map.pdf").read_bytes()
        assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
    taken = bob.folder / "taken place" / "holiday map.pdf"
    taken.parent.mkdir()
    taken.write_bytes(b"another map")
    bob.type(f"/get {number_of(offer)} 'taken place'")
    bob.expect("already exists; /get 1 FOLDER puts it elsewhere")
    assert taken.read_bytes() == b"another map"
    bob.type(f"/get {number_of(offer)} 'other place'")
    bob.expect("saved .*other place")
    assert (bob.folder / "other place" / "holiday map.pdf").read_bytes() == data

    # The one who opened the room dies. The others are told by nobody, and go on.
    alice.process.kill()
    for chat in (bob, carol):
        chat.expect(r"alice \(.*\) is gone")
    bob.type("still here?")
    carol.expect(r"bob \(.*\): still here\?")

    # Her ticket is dead, a fresh one is not; and those who have fetched the file offer it, too.
    bob.type("/ticket")
    fresh = bob.expect("^- room").removeprefix("- ")
    dave = rooms.join("dave", fresh)
    bob.expect(r"dave \(.*\) is here")
    dave.expect("nobody has heard this yet")
    dave.expect("still here")
    dave.type("/get " + number_of(dave.expect("offers holiday map.pdf")))
    dave.expect("saved .*holiday map.pdf")
    assert (dave.folder / "chat-downloads" / "holiday map.pdf").read_bytes() == data

    # Leaving: by a command, by the end of input, by Ctrl-C.
    dave.type("/quit")
    assert dave.ended() == 0
    bob.expect(r"dave \(.*\) has left")
    carol.process.send_signal(signal.SIGINT)
    bob.expect(r"carol \(.*\) has left")
    bob.process.stdin.close()  # type: ignore[union-attr]
    assert carol.ended() == 130
    assert bob.ended() == 0
    for chat in (bob, carol, dave):
        assert "Traceback" not in chat.text()
        assert not list((chat.folder / "chat-downloads").glob(".*")), "the store is left behind"


def test_what_a_script_says_is_heard_although_it_ends_at_once(rooms: Rooms) -> None:
    alice, ticket = rooms.create("alice")
    done = subprocess.run(
        [sys.executable, "-m", "dialkey", "chat", "join", ticket, "--name", "builder"],
        input="".join(f"line {number}\n" for number in range(8)) + "the build is done",
        env=rooms.environment,
        cwd=rooms.folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    for number in range(8):
        alice.expect(rf"builder \(.*\): line {number}$")
    alice.expect(r"builder \(.*\): the build is done")
    assert not (rooms.folder / "chat-downloads").exists()


def test_the_screen(rooms: Rooms) -> None:
    alice, ticket = rooms.create("alice")
    alice.type("said before \x1b]52;c;aGFjaw==\x07\x1b[31mred [bold]brackets[/bold]")
    bob = rooms.on_terminal("bob", "join", ticket)
    bob.expect(r"tea: 2 here")
    bob.expect(r"\u2502 alice [0-9a-f]{10}")
    bob.expect(r"\u2502 bob [0-9a-f]{10}")
    # What others write moves no cursor, sets no clipboard, and is not markup.
    bob.expect(r"alice [0-9a-f]{10} said before \]52;c;aGFjaw==\[31mred \[bold\]brackets\[/bold\]")
    assert b"\x1b]52" not in bob.raw

    alice.expect(r"bob \(.*\) is here")
    bob.press("hello from a screen\r")
    alice.expect(r"bob \(.*\): hello from a screen")
    bob.expect(r"\d\d:\d\d bob [0-9a-f]{10} hello from a screen")
    bob.press("/nick robert\r")
    alice.expect(r"bob is robert \(.*\) now")
    bob.expect(r"\u2502 robert [0-9a-f]{10}")
    bob.press("/ticket\r")
    bob.expect("room[a-z2-7]{40}")
    assert b"\x1b]52;c;" in bob.raw, "our own ticket goes to the clipboard"

    bob.resize(28, 60)
    bob.press("a narrow window\r")
    screen = bob.expect(r"\n (narrow )?window ")
    rows = screen.partition("\u258a")[0].splitlines()
    left = " ".join(row.partition("\u2502")[0].strip() for row in rows)
    assert "hello from a screen" in left, screen
    assert left.count("a narrow window") == 1, screen

    bob.press("\x03")
    assert bob.ended() == 0
    alice.expect(r"robert \(.*\) has left")
    check_restored(bob)


@pytest.mark.parametrize("how", ["/quit", "SIGHUP"])
def test_a_terminal_is_as_it_was(rooms: Rooms, how: str) -> None:
    alice = rooms.on_terminal("alice", "create", "--room", "tea")
    alice.expect("tea: 1 here")
    alice.expect("/help helps")
    if how == "SIGHUP":
        alice.process.send_signal(signal.SIGHUP)
        assert alice.ended() == 143
    else:
        alice.press("/quit\r")
        assert alice.ended() == 0
    check_restored(alice)


def check_restored(chat: TerminalChat) -> None:
    assert chat.modes() == chat.modes_before
    text = chat.raw.decode()
    for on, off in (
        ("\x1b[?1049h", "\x1b[?1049l"),  # the other screen
        ("\x1b[?25l", "\x1b[?25h"),  # no cursor
        ("\x1b[?1003h", "\x1b[?1003l"),  # the mouse
        ("\x1b[?2004h", "\x1b[?2004l"),  # bracketed paste
    ):
        assert text.rfind(off) > text.rfind(on), f"{on!r} is still on"
    assert "Traceback" not in text


def test_wrong_use(rooms: Rooms) -> None:
    alice = rooms.join("alice", "roomabc")
    assert alice.ended() == 2
    alice.expect("the ticket cannot be read|the ticket is incomplete")
