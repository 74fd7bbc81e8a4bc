"""How ``dialkey send`` and ``dialkey receive`` come to an end, in virtual time."""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dialkey import Endpoint
from dialkey.cli import Options, Output
from dialkey.errors import DialkeyError, LocalError
from dialkey.identity import EndpointAddr, IpAddr
from dialkey.testing import Conditions, MemoryNetwork, in_virtual_time
from dialkey_blobs import ALPN, Blobs, BlobTicket
from dialkey_blobs.commands import send
from dialkey_blobs.fetching import fetch
from dialkey_blobs.printing import Printer
from dialkey_blobs.targets import Target

DATA = os.urandom(6_000_001)
SENDER, GETTER = IpAddr.parse("192.0.2.1:1"), IpAddr.parse("192.0.2.2:1")


def now() -> float:
    return asyncio.get_running_loop().time()


class InMemory(Options):
    """The options of a command whose endpoint is in a network in memory."""

    network: MemoryNetwork

    async def _open_endpoint(self, plugins: tuple[object, ...]) -> Endpoint:
        return await Endpoint.bind(transports=[self.network.transport(SENDER)], entry_points=False)

    async def until_online(self, endpoint: Endpoint, output: Output) -> None:
        pass

    async def own_addr(self, endpoint: Endpoint) -> EndpointAddr:
        return endpoint.addr()


@asynccontextmanager
async def sending(
    network: MemoryNetwork, folder: Path, data: bytes
) -> AsyncIterator[tuple[BlobTicket, asyncio.Task[None], io.StringIO]]:
    """Run ``dialkey send --once`` with one file."""
    path = folder / "given.bin"
    path.write_bytes(data)
    said = io.StringIO()
    options = type("Here", (InMemory,), {"network": network})()
    task = asyncio.create_task(
        send(Output(json=True, stdout=said, stderr=said), options, [str(path)], once=True)
    )
    while "ready" not in said.getvalue():
        assert not task.done(), task.exception()
        await asyncio.sleep(0.01)
    [ready] = [json.loads(line) for line in said.getvalue().splitlines() if "ready" in line]
    try:
        yield BlobTicket.parse(ready["ticket"]), task, said
    finally:
        task.cancel()
        await asyncio.wait([task])


def getter(network: MemoryNetwork) -> Endpoint:
    return Endpoint.bind(transports=[network.transport(GETTER)], entry_points=False)  # type: ignore[return-value]


async def receive(network: MemoryNetwork, ticket: BlobTicket, target: str, output: Output) -> None:
    async def opened() -> Endpoint:
        return await getter(network)

    await fetch(output, opened, ticket, Target.parse(target), overwrite=False)


@in_virtual_time
async def test_a_getter_that_stays_does_not_keep_the_sender(tmp_path: Path) -> None:
    """As an app does that has further use for the connection; this took a minute."""
    network = MemoryNetwork(seed=1)
    async with sending(network, tmp_path, DATA) as (ticket, task, _), getter(network) as other:
        blobs = Blobs.memory()
        blobs.attach(other)
        async with blobs, other.connect(ticket.addr, ALPN) as connection:
            await blobs.download(ticket, connection=connection)
            began = now()
            await task
            assert 9 < now() - began < 12


@in_virtual_time
async def test_a_sender_hears_of_an_export_that_succeeds_at_the_second_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run needs nothing from the sender, which waited for ever."""
    network = MemoryNetwork(seed=1)
    output = Output(stdout=io.StringIO(), stderr=io.StringIO())
    target = str(tmp_path / "got.bin")
    async with sending(network, tmp_path, DATA) as (ticket, task, said):
        with monkeypatch.context() as patched:
            patched.setattr(Blobs, "export", refuse)
            with pytest.raises(LocalError, match="disk"):
                await receive(network, ticket, target, output)
        await asyncio.sleep(2)
        assert "not_received" in said.getvalue()
        assert not task.done()
        began = now()
        await receive(network, ticket, target, output)
        await task
        assert now() - began < 2
    assert content_of(target) == DATA


@in_virtual_time
async def test_a_sender_that_is_gone_does_not_keep_the_second_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = MemoryNetwork(seed=1)
    output = Output(stdout=io.StringIO(), stderr=io.StringIO())
    target = str(tmp_path / "got.bin")
    async with sending(network, tmp_path, DATA) as (ticket, _, _):
        with monkeypatch.context() as patched:
            patched.setattr(Blobs, "export", refuse)
            with pytest.raises(LocalError):
                await receive(network, ticket, target, output)
    began = now()
    await receive(network, ticket, target, output)
    assert now() - began < 5
    assert content_of(target) == DATA


@in_virtual_time
async def test_a_sender_hears_that_everything_was_there_already(tmp_path: Path) -> None:
    network = MemoryNetwork(seed=1)
    output = Output(stdout=io.StringIO(), stderr=io.StringIO())
    (tmp_path / "got.bin").write_bytes(DATA)
    async with sending(network, tmp_path, DATA) as (ticket, task, said):
        await receive(network, ticket, str(tmp_path / "got.bin"), output)
        await asyncio.wait_for(task, 20)
        assert "not_received" not in said.getvalue()


def content_of(path: str) -> bytes:
    return Path(path).read_bytes()


def left_in(folder: Path) -> list[Path]:
    return list(folder.glob(".dialkey-*"))


def refuse(*arguments: object, **options: object) -> None:
    raise LocalError("the disk is not there")


# --- standard output --------------------------------------------------------------------------------


class Pipe(io.RawIOBase):
    """Standard output that remembers when bytes came."""

    def __init__(self, limit: int = 1 << 40) -> None:
        super().__init__()
        self.data = bytearray()
        self.limit = limit
        self.written = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def writable(self) -> bool:
        return True

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        self.data += data
        self._loop.call_soon_threadsafe(self.written.set)
        return len(data)


class Text(io.TextIOWrapper):
    """A stream whose reader leaves after some bytes."""

    def __init__(self, pipe: Pipe) -> None:
        super().__init__(io.BufferedWriter(pipe), "utf-8")
        self.pipe = pipe

    @property
    def has_lost_reader(self) -> bool:
        return len(self.pipe.data) >= self.pipe.limit


SLOW = Conditions(delay_s=0.02, rate_bytes_s=1_000_000)


@in_virtual_time
async def test_standard_output_gets_bytes_as_they_come(tmp_path: Path) -> None:
    network = MemoryNetwork(seed=1, conditions=SLOW)
    pipe = Pipe()
    output = Output(stdout=Text(pipe), stderr=io.StringIO())
    async with sending(network, tmp_path, DATA) as (ticket, _, _):
        began = now()
        task = asyncio.create_task(receive(network, ticket, "-", output))
        await pipe.written.wait()
        first_after_s = now() - began
        await task
    assert bytes(pipe.data) == DATA
    # The whole takes six seconds at this rate.
    assert first_after_s < 3 < now() - began


@in_virtual_time
async def test_what_is_cut_off_is_an_error_and_the_next_run_writes_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network = MemoryNetwork(seed=1, conditions=SLOW)
    pipe, said = Pipe(), io.StringIO()
    async with sending(network, tmp_path, DATA) as (ticket, _, _):
        task = asyncio.create_task(
            receive(network, ticket, "-", Output(stdout=Text(pipe), stderr=said))
        )
        await pipe.written.wait()
        network.link(SENDER, GETTER).down()
        with pytest.raises(DialkeyError):
            await task
        assert 0 < len(pipe.data) < len(DATA)
        assert DATA.startswith(bytes(pipe.data))
        assert "Standard output has only the first" in said.getvalue()
        assert "run the same command again" in said.getvalue()
        network.link(SENDER, GETTER).up()
        again = Pipe()
        await receive(network, ticket, "-", Output(stdout=Text(again), stderr=said))
        assert bytes(again.data) == DATA
    assert not left_in(tmp_path)


@in_virtual_time
async def test_a_reader_that_has_enough_ends_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``head`` does: the rest is not fetched, and that is not an error."""
    monkeypatch.chdir(tmp_path)
    network = MemoryNetwork(seed=1, conditions=SLOW)
    pipe = Pipe(limit=100_000)
    output = Output(stdout=Text(pipe), stderr=io.StringIO())
    async with sending(network, tmp_path, DATA) as (ticket, _, _):
        began = now()
        await receive(network, ticket, "-", output)
        assert now() - began < 4
    assert DATA.startswith(bytes(pipe.data))
    assert len(pipe.data) < len(DATA)
    assert not left_in(tmp_path)


@in_virtual_time
async def test_nothing_is_written_twice() -> None:
    pipe = Pipe()
    output = Output(stdout=Text(pipe), stderr=io.StringIO())
    async with Blobs.memory() as blobs:
        tag = await blobs.add_bytes(DATA)
        printer = Printer(output, blobs.store)
        await printer.advance(tag.hash)
        await printer.advance(tag.hash)
        assert bytes(pipe.data) == DATA
        assert printer.written_bytes == len(DATA)
