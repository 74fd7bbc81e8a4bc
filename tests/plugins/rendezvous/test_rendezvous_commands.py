"""``dialkey send --code``, ``receive CODE`` and ``rendezvous serve``, in processes of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from blob_commands import Process, Start, folder, is_one_line, make, start

from dialkey_rendezvous.codes import Code
from dialkey_rendezvous.words import WORDS

__all__ = ["start"]

LOCAL = ("--bind", "127.0.0.1:0")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A rendezvous server for all tests here; says its ticket."""
    process = Process("rendezvous", "serve", *LOCAL)
    with process.popen:
        try:
            yield process.line()
            process.popen.send_signal(signal.SIGTERM)
            done = process.end()
            assert done.code in (0, 143), done
        finally:
            process.popen.kill()


def sending(
    start: Start, server: str, *arguments: object, **options: object
) -> tuple[Process, str, str]:
    sender = start("send", *LOCAL, "--code", "--rendezvous", server, *arguments, **options)
    return sender, sender.line(), sender.line()


def test_a_file_by_a_code_and_each_code_is_good_once(
    start: Start, server: str, tmp_path: Path
) -> None:
    file = make(tmp_path / "photo.jpg", 300_000)
    sender, ticket, code = sending(start, server, file)
    assert ticket.startswith("blob")
    number, *words = code.upper().split("-")

    # As somebody would type it who heard it.
    into = tmp_path / "in"
    done = start(
        "receive", number, ".".join(words), "--rendezvous", server, *LOCAL, "-o", folder(into)
    ).end()
    assert done.code == 0, done.err
    assert (into / "photo.jpg").read_bytes() == file.read_bytes()
    assert [each.name for each in into.iterdir()] == ["photo.jpg"]

    again = start("receive", code, "--rendezvous", server, *LOCAL, cwd=tmp_path).end()
    is_one_line(again, 6, "somebody has used this code already; it is good once")

    told = sender.interrupt()
    assert f"On the other machine: dialkey receive {ticket}" in told.err
    assert f"On the other machine: dialkey receive {code}" in told.err
    assert "The other side has the ticket, and the code is used up." in told.err


def test_a_wrong_word_burns_a_code_and_the_sender_has_another(
    start: Start, server: str, tmp_path: Path
) -> None:
    file = make(tmp_path / "photo.jpg", 1000)
    sender, _, code = sending(start, server, "--once", file)
    right = Code.parse(code)
    wrong = Code(right.nameplate, (right.words[0], next(w for w in WORDS if w != right.words[1])))
    options = ("--rendezvous", server, *LOCAL, "-o", folder(tmp_path / "in"))
    done = start("receive", wrong, *options).end()
    is_one_line(done, 6, "the words are wrong, and a code may be tried only once: it is burnt")
    assert not (tmp_path / "in").exists()

    new_code = sender.line()
    assert new_code != code
    done = start("receive", new_code, *options, "--json").end()
    assert done.code == 0, done.err
    assert (tmp_path / "in" / "photo.jpg").read_bytes() == file.read_bytes()
    told = sender.end()
    assert told.code == 0, told
    assert (
        f"Somebody used the number {right.nameplate} with wrong words, and the code is burnt."
        " Here is a new one:" in told.err
    )


def test_both_sides_compare_the_same_words(start: Start, server: str, tmp_path: Path) -> None:
    file = make(tmp_path / "photo.jpg", 1000)
    ours, theirs = os.openpty()
    others, their = os.openpty()
    try:
        sender, _, code = sending(
            start, server, "--once", "--verify", "--no-qr", file, terminal=theirs
        )
        receiver = start(
            *("receive", code, "--verify", "--yes", "--rendezvous", server, *LOCAL),
            *("-o", folder(tmp_path / "in")),
            terminal=their,
        )
        asked = [until_question(each) for each in (ours, others)]
        assert asked[0] == asked[1]
        assert len(asked[0].split()) == 3
        for each in (ours, others):
            os.write(each, b"y\n")
        assert receiver.popen.wait(60) == 0
        assert sender.popen.wait(60) == 0
    finally:
        for each in (ours, theirs, others, their):
            os.close(each)
    assert (tmp_path / "in" / "photo.jpg").stat().st_size == 1000


def until_question(terminal: int) -> str:
    """Read what a terminal shows until it asks for words, and return them."""
    shown = ""
    while "? [Y/n]" not in shown:
        shown += os.read(terminal, 4096).decode()
    return shown.rpartition("see the same words: ")[2].partition("?")[0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_server_that_is_ended_says_what_it_did(
    start: Start, number: signal.Signals, code: int
) -> None:
    process = start("rendezvous", "serve", *LOCAL)
    process.line()
    process.popen.send_signal(number)
    done = process.end()
    assert done.code in (0, code)
    assert "0 codes given, 0 tickets handed over" in done.err
