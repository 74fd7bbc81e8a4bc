"""More of ``dialkey send`` and ``receive``: streams, names, mistakes, and being asked."""

from __future__ import annotations

import asyncio
import os
import pty
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
from blob_commands import TIMEOUT_S, Start, files_below, folder, is_one_line, make, start

from dialkey import Endpoint, Router
from dialkey_blobs import BlobFormat, Blobs, Collection
from dialkey_blobs.store import TempTag

__all__ = ["start"]


# --- what has no name -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "my notes"])
def test_standard_input_and_output(start: Start, tmp_path: Path, name: str | None) -> None:
    data = os.urandom(2_000_000)
    named = ("--name", name) if name else ()
    sender = start("send", "-", "--once", *named, stdin=data)
    ticket = sender.line()
    done = start("receive", ticket, "-o", "-", cwd=tmp_path).end()
    assert done.code == 0, done.err
    assert done.raw == data
    assert (name or "stdin") in done.err
    assert files_below(tmp_path) == []
    assert sender.end().code == 0


def test_text_and_a_ticket_on_standard_input(start: Start, tmp_path: Path) -> None:
    sender = start("send", "--text", "naïve 日本", "--once")
    ticket = sender.line()
    wrapped = f"{ticket[:40].upper()}\n  {ticket[40:]}\n"
    done = start("receive", "-", cwd=tmp_path, stdin=wrapped.encode()).end()
    assert done.code == 0, done.err
    assert (tmp_path / "text.txt").read_text() == "naïve 日本"
    assert sender.end().code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "nothing to send"),
        (("--text", "a", "b"), "either files or --text"),
        (("-", "-"), "only once"),
        (("--name", "a", "b"), "--name is for"),
        (("--text", "a", "--name", "../b"), "cannot be sent"),
    ],
)
def test_what_cannot_be_sent(
    start: Start, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    is_one_line(start("send", *arguments, cwd=tmp_path).end(), 2, says)


def test_several_files_do_not_fit_standard_output(start: Start, tmp_path: Path) -> None:
    make(tmp_path / "album" / "a", 10)
    make(tmp_path / "album" / "b", 10)
    ticket = start("send", tmp_path / "album").line()
    (tmp_path / "here").mkdir()
    done = start("receive", ticket, "-o", "-", cwd=tmp_path / "here").end()
    is_one_line(done, 2, "2 files")
    assert files_below(tmp_path / "here") == []
    assert start("receive", ticket, "-o", "-", "--json").end().code == 2


# --- where it goes --------------------------------------------------------------------------------


def test_output_names_the_file(start: Start, tmp_path: Path) -> None:
    file = make(tmp_path / "film", 50_000)
    ticket = start("send", file).line()
    there = tmp_path / "there"
    there.mkdir()
    done = start("receive", ticket, "-o", there / "new.mp4", "--json").end()
    assert done.code == 0, done.out
    assert (there / "new.mp4").read_bytes() == file.read_bytes()
    assert done.event("received")["files"] == [
        {"name": "film", "size": 50_000, "path": str(there / "new.mp4")}
    ]
    # Identical content is as good as received; other content is not touched.
    again = start("receive", ticket, "-o", there / "new.mp4").end()
    assert again.code == 0, again.err
    assert "is there already" in again.err
    make(there / "new.mp4", 50_000, seed=9)
    other = start("receive", ticket, "-o", there / "new.mp4").end()
    is_one_line(other, 3, "--overwrite")
    assert files_below(there) == ["new.mp4"]


def test_a_reader_that_hangs_does_not_keep_the_command_from_ending(
    start: Start, tmp_path: Path
) -> None:
    """It takes a byte and no more, so the command waits in the middle of a write."""
    sender = start("send", make(tmp_path / "file", 3_000_000))
    receiver = start("receive", sender.line(), "-o", "-", cwd=tmp_path)
    output = receiver.popen.stdout
    assert output is not None
    assert len(output.read(1)) == 1
    receiver.popen.terminate()
    assert receiver.popen.wait(TIMEOUT_S) == 143
    sender.interrupt()


@pytest.mark.parametrize("given", ["new", "new/", "deep/new"])
def test_output_names_a_new_folder(start: Start, tmp_path: Path, given: str) -> None:
    make(tmp_path / "album" / "one", 30_000, 1)
    make(tmp_path / "album" / "two", 30_000, 2)
    sender = start("send", tmp_path / "album", "--once")
    done = start("receive", sender.line(), "-o", f"{tmp_path}/in/{given}", cwd=tmp_path).end()
    assert done.code == 0, done.err
    assert files_below(tmp_path / "in" / given) == ["album/one", "album/two"]
    assert sender.end().code == 0


def test_a_tilde_is_a_name(start: Start, tmp_path: Path) -> None:
    (tmp_path / "~").write_text("harmless")
    sender = start("send", "~", "--json", "--once", cwd=tmp_path)
    ready = sender.wait_for(lambda event: event["event"] == "ready")
    assert [file["name"] for file in ready["files"]] == ["~"]
    (tmp_path / "in").mkdir()
    done = start("receive", ready["ticket"], "--output=~/dl/", cwd=tmp_path / "in").end()
    assert done.code == 0, done.err
    assert files_below(tmp_path / "in") == ["~/dl/~"]


def test_odd_names_and_what_is_left_out(start: Start, tmp_path: Path) -> None:
    names = ["10:30 notes.txt", "README", "aux.c", "etc.", "naïve 日本.txt", "readme"]
    for name in names:
        make(tmp_path / "top" / name, 10)
    (tmp_path / "top" / "link").symlink_to("README")
    (tmp_path / "top" / "empty").mkdir()
    sender = start("send", tmp_path / "top", "--json", "--once")
    ready = sender.wait_for(lambda event: event["event"] == "ready")
    assert {Path(each["path"]).name: each["kind"] for each in ready["left_out"]} == {
        "link": "link",
        "empty": "empty folder",
    }
    assert {each["name"] for each in ready["not_portable"]} == {
        f"top/{name}" for name in ("10:30 notes.txt", "aux.c", "etc.", "readme")
    }
    done = start("receive", ready["ticket"], "-o", folder(tmp_path / "in")).end()
    assert done.code == 0, done.err
    assert files_below(tmp_path / "in") == sorted(f"top/{name}" for name in names)
    assert "naïve 日本.txt" in done.err


def test_ones_own_dangerous_name_is_ones_own_fault(start: Start, tmp_path: Path) -> None:
    make(tmp_path / "top" / "line\nbreak", 10)
    is_one_line(start("send", tmp_path / "top").end(), 2, "cannot be sent")
    os.mkfifo(tmp_path / "pipe")
    is_one_line(start("send", tmp_path / "pipe").end(), 2, "named pipe")


# --- how it ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1])
def test_once_ends_for_the_smallest_files(start: Start, tmp_path: Path, size: int) -> None:
    sender = start("send", "--once", make(tmp_path / "small", size))
    done = start("receive", sender.line(), "-o", folder(tmp_path / "in")).end()
    assert done.code == 0, done.err
    assert sender.end().code == 0


def test_once_goes_on_when_the_receiver_failed(start: Start, tmp_path: Path) -> None:
    file = make(tmp_path / "file", 100_000)
    sender = start("send", "--once", "--json", file)
    ticket = sender.wait_for(lambda event: event["event"] == "ready")["ticket"]
    make(tmp_path / "in" / "file", 7)
    assert start("receive", ticket, "-o", tmp_path / "in").end().code == 3
    assert start("receive", ticket, "-o", tmp_path / "in", "--overwrite").end().code == 0
    assert sender.end().code == 0


@asynccontextmanager
async def serving() -> AsyncIterator[Blobs]:
    async with (
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as endpoint,
        Router(endpoint) as router,
    ):
        blobs = router.add(Blobs.memory())
        task = asyncio.create_task(router.serve())
        yield blobs
        task.cancel()


async def collection(blobs: Blobs) -> TempTag:
    tag = await blobs.add_bytes(b"x" * 5000)
    metadata, children = Collection((("file", tag.hash),)).to_blobs()
    tag.leak()
    (await blobs.add_bytes(metadata)).leak()
    return await blobs.store.add_bytes(children.data, BlobFormat.HASH_SEQ)


async def test_a_list_mistaken_for_a_file(start: Start, tmp_path: Path) -> None:
    async with serving() as blobs:
        ticket = attrs.evolve(blobs.ticket(await collection(blobs)), format=BlobFormat.RAW)
        done = await asyncio.to_thread(start("receive", ticket, "-o", folder(tmp_path / "in")).end)
    is_one_line(done, 2, "mistyped")
    assert not (tmp_path / "in").exists()


async def test_a_file_that_could_be_a_list_is_a_file(start: Start, tmp_path: Path) -> None:
    data = os.urandom(64)
    async with serving() as blobs:
        tag = await blobs.add_bytes(data)
        process = start("receive", blobs.ticket(tag), "-o", tmp_path / "name")
        done = await asyncio.to_thread(process.end)
    assert done.code == 0, done.err
    assert (tmp_path / "name").read_bytes() == data


@pytest.mark.parametrize("size", [5000, 64])
async def test_a_file_mistaken_for_a_list(start: Start, tmp_path: Path, size: int) -> None:
    async with serving() as blobs:
        tag = await blobs.add_bytes(os.urandom(size))
        ticket = attrs.evolve(blobs.ticket(tag), format=BlobFormat.HASH_SEQ)
        done = await asyncio.to_thread(start("receive", ticket, cwd=tmp_path).end)
    assert done.code in (5, 7), done
    assert "mistyped" in done.err
    assert files_below(tmp_path) == []


# --- being asked ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "code"), [(b"y\n", 0), (b"\n", 0), (b"n\n", 3), (b"what\n", 3), (b"\x04", 3)]
)
def test_a_terminal_is_asked(start: Start, tmp_path: Path, typed: bytes, code: int) -> None:
    ticket = start("send", make(tmp_path / "file", 3000)).line()
    ours, theirs = pty.openpty()
    try:
        process = start("receive", ticket, "-o", folder(tmp_path / "in"), terminal=theirs)
        shown = b""
        while b"[Y/n]" not in shown:
            shown += os.read(ours, 1000)
        assert b"1 file, 3.0 kB" in shown
        assert not (tmp_path / "in" / "file").exists()
        os.write(ours, typed)
        assert process.popen.wait(60) == code
    finally:
        os.close(ours)
        os.close(theirs)
    assert (tmp_path / "in" / "file").exists() == (code == 0)


@pytest.mark.parametrize("way", ["--yes", "-y"])
def test_yes_is_not_asked(start: Start, tmp_path: Path, way: str) -> None:
    ticket = start("send", make(tmp_path / "file", 3000)).line()
    ours, theirs = pty.openpty()
    try:
        process = start("receive", ticket, way, "-o", tmp_path / "out", terminal=theirs)
        assert process.popen.wait(60) == 0
    finally:
        os.close(ours)
        os.close(theirs)
    assert (tmp_path / "out").stat().st_size == 3000


def test_what_is_kept_is_said(start: Start, tmp_path: Path) -> None:
    sender = start("send", make(tmp_path / "file", 30_000_000))
    ticket = sender.line()
    process = start("receive", ticket, "-o", folder(tmp_path / "in"), "--json")
    process.wait_for(lambda event: event["event"] == "progress" and event["done_bytes"] > 1_000_000)
    process.popen.terminate()
    kept = process.end().event("kept")
    assert kept["held_bytes"] > 1_000_000
    assert Path(kept["path"]).is_dir()
    done = start("receive", ticket, "-o", folder(tmp_path / "in"), "--json").end()
    assert done.code == 0
    assert done.event("received")["received_bytes"] < 30_000_000
    assert files_below(tmp_path / "in") == ["file"]
