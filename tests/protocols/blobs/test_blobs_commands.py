"""``dialkey send``, ``receive`` and ``demo``, each in a process of its own."""

from __future__ import annotations

import asyncio
import importlib.metadata
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from blob_commands import Start, files_below, folder, is_one_line, make, start

from dialkey import Endpoint, Router, SecretKey
from dialkey.identity import EndpointAddr, IpAddr
from dialkey_blobs.blobs import Blobs
from dialkey_blobs.collection import Collection
from dialkey_blobs.hash import BlobFormat, Hash
from dialkey_blobs.ticket import BlobTicket

__all__ = ["start"]


# --- the way it should go -------------------------------------------------------------------------


def test_a_file_goes_from_key_to_key(start: Start, tmp_path: Path) -> None:
    file = make(tmp_path / "here" / "photo.jpg", 3_000_000)
    sender = start("send", "--once", "--bind", "127.0.0.1:0", file)
    ticket = sender.line()
    assert str(BlobTicket.parse(ticket)) == ticket

    done = start("receive", ticket, cwd=tmp_path / "here" / "..").end()
    assert done.code == 0, done.err
    assert done.out == "photo.jpg\n"
    assert (tmp_path / "photo.jpg").read_bytes() == file.read_bytes()
    assert "3.0 MB  photo.jpg" in done.err
    assert "Received 3.0 MB in" in done.err
    assert "MB/s, direct 127.0.0.1:" in done.err
    assert files_below(tmp_path) == ["here/photo.jpg", "photo.jpg"]

    sent = sender.end()
    assert (sent.code, sent.out) == (0, "")
    assert "Offering 1 file, 3.0 MB:" in sent.err
    assert "sent 3.0 MB to" in sent.err


def test_folders_and_json(start: Start, tmp_path: Path) -> None:
    make(tmp_path / "album" / "one.jpg", 100_000, 1)
    make(tmp_path / "album" / "deep" / "two.jpg", 200_000, 2)
    make(tmp_path / "album" / "copy of two.jpg", 200_000, 2)
    make(tmp_path / "album" / "empty", 0)
    lone = make(tmp_path / "lone.txt", 10)
    (tmp_path / "album" / "link").symlink_to("/etc/passwd")
    sender = start("send", "--once", "--json", tmp_path / "album", lone)
    ready = sender.wait_for(lambda event: event["event"] == "ready")
    names = [
        "album/copy of two.jpg",
        "album/deep/two.jpg",
        "album/empty",
        "album/one.jpg",
        "lone.txt",
    ]
    assert [file["name"] for file in ready["files"]] == names
    assert ready["total_bytes"] == 500_010

    target = tmp_path / "new" / "folder"
    done = start("receive", ready["ticket"], "-o", folder(target), "--json").end()
    assert (done.code, done.err) == (0, "")
    assert [file["name"] for file in done.event("files")["files"]] == names
    received = done.event("received")
    assert received["paths"] == [str(target / name) for name in names]
    assert received["path"].startswith("direct ")
    assert files_below(target) == sorted(names)
    for name in names:
        assert (target / name).read_bytes() == (tmp_path / name).read_bytes()
    assert sender.end().code == 0


def test_ctrl_c_ends_the_sender_cleanly(start: Start, tmp_path: Path) -> None:
    sender = start("send", make(tmp_path / "a", 10))
    sender.line()
    done = sender.interrupt()
    assert (done.code, done.out) == (130, "")


def test_the_sender_is_the_endpoint_of_its_key_file(start: Start, tmp_path: Path) -> None:
    key = SecretKey.generate()
    key.save(tmp_path / "my.key")
    sender = start("send", "--secret-key", tmp_path / "my.key", make(tmp_path / "a", 10))
    assert BlobTicket.parse(sender.line()).addr.id == key.id


def test_a_sender_serves_many_and_receives_twice_is_quick(start: Start, tmp_path: Path) -> None:
    sender = start("send", make(tmp_path / "a", 50_000))
    ticket = sender.line()
    for number in range(2):
        assert start("receive", ticket, "-o", folder(tmp_path / str(number))).end().code == 0
    assert sender.interrupt().code == 130


async def test_a_single_blob_is_named_by_its_hash(start: Start, tmp_path: Path) -> None:
    async with (
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as endpoint,
        Router(endpoint) as router,
    ):
        blobs = router.add(Blobs.memory())
        serving = asyncio.create_task(router.serve())
        with await blobs.add_bytes(b"hello") as tag:
            ticket = blobs.ticket(tag)
            process = start("receive", ticket, "-o", folder(tmp_path / "in"))
            done = await asyncio.to_thread(process.end)
        serving.cancel()
    assert done.code == 0, done.err
    assert files_below(tmp_path / "in") == [str(Hash.of(b"hello"))]


# --- interruptions --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_receiver_resumes(start: Start, tmp_path: Path, way: signal.Signals) -> None:
    size = 150_000_000  # more than comes between two lines of progress
    file = make(tmp_path / "big", size)
    sender = start("send", "--once", file)
    ticket = sender.line()
    target = tmp_path / "in"

    first = start("receive", ticket, "-o", folder(target), "--json")
    first.wait_for(lambda event: event["event"] == "progress" and event["done_bytes"] > 1_000_000)
    first.popen.send_signal(way)
    assert first.end().code == {signal.SIGKILL: -9, signal.SIGTERM: 143}[way]
    assert not (target / "big").exists()

    second = start("receive", ticket, "-o", folder(target), "--json").end()
    assert second.code == 0, second.err
    received = second.event("received")
    assert received["received_bytes"] < received["total_bytes"]
    assert (target / "big").read_bytes() == file.read_bytes()
    assert files_below(target) == ["big"]
    assert sender.end().code == 0


def test_a_vanished_sender(start: Start, tmp_path: Path) -> None:
    sender = start("send", make(tmp_path / "a", 10))
    ticket = sender.line()
    sender.popen.kill()
    sender.popen.wait()
    done = start("receive", ticket, "-o", folder(tmp_path / "in")).end()
    is_one_line(done, 4, "")
    assert not (tmp_path / "in").exists()


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ticket", ["blobabc", "nonsense"])
def test_a_mistyped_ticket(start: Start, tmp_path: Path, ticket: str) -> None:
    done = start("receive", ticket, cwd=tmp_path).end()
    is_one_line(done, 2, "ticket")
    assert files_below(tmp_path) == []


def test_a_missing_file_and_an_empty_folder(start: Start, tmp_path: Path) -> None:
    done = start("send", tmp_path / "no.jpg").end()
    is_one_line(done, 3, f"no such file or folder: {tmp_path / 'no.jpg'}")
    assert done.out == ""
    is_one_line(start("send", tmp_path).end(), 2, "there are no files")


def test_nothing_is_overwritten_unasked(start: Start, tmp_path: Path) -> None:
    album = tmp_path / "album"
    make(album / "a", 300_000, 1)
    make(album / "b", 300_000, 2)
    sender = start("send", album)
    ticket = sender.line()
    target = tmp_path / "in"
    mine = make(target / "album" / "b", 5)

    done = start("receive", ticket, "-o", folder(target)).end()
    is_one_line(done, 3, "already exists")
    assert files_below(target) == ["album/b"]
    assert mine.stat().st_size == 5

    assert start("receive", ticket, "-o", folder(target), "--overwrite").end().code == 0
    assert files_below(target) == ["album/a", "album/b"]
    assert mine.read_bytes() == (album / "b").read_bytes()


@pytest.mark.parametrize("name", ["a/../../evil", "a\u202eb"])
async def test_a_harmful_name_is_refused_before_its_content_comes(
    start: Start, tmp_path: Path, name: str
) -> None:
    async with (
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as endpoint,
        Router(endpoint) as router,
    ):
        blobs = router.add(Blobs.memory())
        serving = asyncio.create_task(router.serve())
        with await blobs.add_bytes(b"boo") as content:
            metadata, children = Collection(((name, content.hash),)).to_blobs()
            with (
                await blobs.add_bytes(metadata),
                await blobs.store.add_bytes(children.data, BlobFormat.HASH_SEQ) as tag,
            ):
                process = start(
                    "receive", blobs.ticket(tag), "-o", folder(tmp_path / "in" / "deep")
                )
                done = await asyncio.to_thread(process.end)
        serving.cancel()
    is_one_line(done, 7, "is refused")
    assert "\u202e" not in done.err
    assert files_below(tmp_path) == []


async def test_a_sender_without_the_content(start: Start, tmp_path: Path) -> None:
    async with (
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as endpoint,
        Router(endpoint) as router,
    ):
        router.add(Blobs.memory())
        serving = asyncio.create_task(router.serve())
        ticket = BlobTicket(endpoint.addr(), Hash.of(b"never added"))
        process = start("receive", ticket, "-o", folder(tmp_path / "in"))
        done = await asyncio.to_thread(process.end)
        serving.cancel()
    assert done.code in (5, 7)
    is_one_line(done, done.code, "")
    assert not (tmp_path / "in").exists()


def test_no_address_in_the_ticket(start: Start, tmp_path: Path) -> None:
    ticket = BlobTicket(EndpointAddr(SecretKey(bytes(32)).id), Hash.of(b"unknown"))
    is_one_line(start("receive", ticket, cwd=tmp_path).end(), 4, "")


def test_somebody_else_at_the_address(start: Start, tmp_path: Path) -> None:
    sender = start("send", "--bind", "127.0.0.1:0", make(tmp_path / "a", 10))
    right = BlobTicket.parse(sender.line())
    address = next(addr for addr in right.addr.addrs if isinstance(addr, IpAddr))
    other = BlobTicket(EndpointAddr(SecretKey(bytes(32)).id, (address,)), right.hash, right.format)
    done = start("receive", other, cwd=tmp_path).end()
    assert done.code in (4, 6)
    is_one_line(done, done.code, "key")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk(start: Start, tmp_path: Path, small_disk: Path) -> None:
    sender = start("send", make(tmp_path / "big", 20_000_000))
    done = start("receive", sender.line(), "-o", folder(small_disk / "in")).end()
    is_one_line(done, 3, "")
    assert "full" in done.err or "space" in done.err
    assert not (small_disk / "in" / "big").exists()


# --- demo -----------------------------------------------------------------------------------------


def _is_installed() -> bool:
    return any(entry.name == "blobs" for entry in importlib.metadata.entry_points(group="dialkey"))


@pytest.mark.skipif(not _is_installed(), reason="dialkey is not installed, so has no entry points")
def test_demo(start: Start) -> None:
    done = start("demo", "--size", "40").end()
    assert done.code == 0, done.err
    assert done.out.startswith("The same, so it works: 40.0 MB in ")
    story = [
        "is a relay: http://127.0.0.1:",
        "Over the relay so far",
        "it goes on: direct 127.0.0.1:",
        "The direct way is cut",
        "it goes on: relay http://127.0.0.1:",
        "s without data",
        "5. BLAKE3 of both files: ",
    ]
    found = [done.err.find(text) for text in story]
    assert -1 not in found
    assert found == sorted(found)
    done = start("demo", "--size", "1", "--json").end()
    assert done.event("demo")["size_bytes"] == 1_000_000
    assert done.event("demo")["ways"][0] == "relay"
