"""What ``dialkey demo`` does."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from dialkey import Endpoint, PathReport, PathSelected, hookimpl
from dialkey.cli import Output, child, format_bytes, scratch_folder
from dialkey.errors import DialkeyError, LocalError
from dialkey.extras import has_modules
from dialkey.testing import Cable
from dialkey_blobs.fetching import fetch
from dialkey_blobs.targets import Target
from dialkey_blobs.ticket import BlobTicket

__all__ = ["demo"]

RELAY_CONFIG: Final = """
http_bind_addr = "127.0.0.1:0"
access = "everyone"
enable_metrics = false

[limits.client.rx]
bytes_per_second = 25000000
"""
"""Slower than a direct path, as relays are; also slow enough for people to watch."""

LOOPBACK: Final = "127.0.0.1:0"

ROOM: Final = 3
"""For a moment the file exists three times: as sent, in the receiver's store, and as received."""


async def demo(output: Output, *, size_bytes: int) -> None:
    """Send a file from another process to this one, over changing paths, and compare.

    Raises:
        DialkeyError: the transfer failed.
    """
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(scratch_folder("demo", room_bytes=ROOM * size_bytes))
        sent, received = folder / "sent" / "demo.bin", folder / "received"
        output.remark(f"1. Making a file of {format_bytes(size_bytes)}: {sent}")
        await asyncio.to_thread(_make_file, sent, size_bytes)
        relay = None
        if not _has_relay():
            output.remark("2. No relay: dialkey[relay] is not installed, so there is one way only")
        else:
            relay = await stack.enter_async_context(_relay(folder / "relay.toml"))
            output.remark(f"2. A process of its own is a relay: {relay}")
        async with _sender(sent, relay) as ticket:
            output.remark(f"3. Another one offers the file, as endpoint {ticket.addr.id}")
            output.remark("4. This process, with another key, dials that key:")
            story = _Story(output, size_bytes, is_relayed=relay is not None)
            summary = await fetch(
                output,
                story.open_endpoint,
                ticket,
                Target.folder(received),
                overwrite=False,
                on_progress=story.on_progress,
            )
        hashes = [await asyncio.to_thread(_hash_of, path) for path in (sent, *summary.paths)]
        if len(set(hashes)) != 1 or len(hashes) != 2:
            raise LocalError("the received file is not the one that was sent")
        output.remark(f"5. BLAKE3 of both files: {hashes[0]}")
        output.result(
            "demo",
            f"The same, so it works: {summary}",
            size_bytes=size_bytes,
            hash=hashes[0],
            elapsed_s=round(summary.elapsed_s, 3),
            rate_bytes_per_s=round(size_bytes / max(summary.elapsed_s, 1e-9)),
            path=summary.path,
            ways=story.ways,
            gap_s=round(story.gap_s, 3) if story.gap_s is not None else None,
        )


def _has_relay() -> bool:
    is_known = importlib.metadata.entry_points(group="dialkey", name="relay")
    return bool(is_known) and has_modules("aiohttp", "prometheus_client", "OpenSSL")


class _Story:
    """What happens to the direct path during the transfer.

    It starts cut, comes up after a tenth of the file, and is cut again a little later: most of the file
    must still be missing then, and receive windows hold tens of megabytes.
    """

    def __init__(self, output: Output, size_bytes: int, *, is_relayed: bool) -> None:
        self._output = output
        self._restore_at = size_bytes // 10
        self._cut_after = size_bytes // 20
        self._cut_at: int | None = None
        self._cable = Cable(LOOPBACK, is_cut=is_relayed)
        self._acts = 0 if is_relayed else 2
        self._cut_time: float | None = None
        self._held_bytes = 0
        self.ways = ["relay" if is_relayed else "direct"]
        self.gap_s: float | None = None

    async def open_endpoint(self) -> Endpoint:
        return await Endpoint.bind(transports=[self._cable], relays=(), plugins=[self])

    @hookimpl
    def dialkey_events(self, event: object) -> None:
        if not isinstance(event, PathReport) or not isinstance(event.event, PathSelected):
            return
        path = event.event.path
        if self.ways[-1] != path.kind:
            self.ways.append(path.kind)
            self._output.remark(f"   … it goes on: {path.kind} {path.remote}")

    def on_progress(self, endpoint: Endpoint, held_bytes: int) -> None:
        if self._cut_time is not None and self.gap_s is None and held_bytes > self._held_bytes:
            gap = time.monotonic() - self._cut_time
            if self.ways[-1] == "relay":
                self.gap_s = gap
                self._output.remark(f"   … after {gap:.1f} s without data")
        self._held_bytes = held_bytes
        if self._acts == 0 and held_bytes >= self._restore_at:
            self._acts = 1
            self._output.remark("   Over the relay so far. Now there is a direct way, too:")
            self._cable.restore()
            endpoint.network_changed()
        elif self._acts == 1 and self.ways[-1] == "direct" and self._is_time_to_cut(held_bytes):
            self._acts = 2
            self._output.remark("   The direct way is cut, and nobody says so:")
            self._cable.cut()
            self._cut_time = time.monotonic()

    def _is_time_to_cut(self, held_bytes: int) -> bool:
        if self._cut_at is None:
            self._cut_at = held_bytes + self._cut_after
        return held_bytes >= self._cut_at


@asynccontextmanager
async def _relay(config: Path) -> AsyncIterator[str]:
    """Run ``dialkey relay`` in a process of its own; yield its URL."""
    await asyncio.to_thread(config.write_text, RELAY_CONFIG)
    async with child("relay", "--json", "--config", str(config)) as process:
        yield (await _event(process, "listening"))["urls"][0]


@asynccontextmanager
async def _sender(file: Path, relay: str | None) -> AsyncIterator[BlobTicket]:
    """Run ``dialkey send --once`` in a process of its own."""
    options = ("--relay", relay) if relay is not None else ()
    async with child(
        "send", "--json", "--once", *options, "--bind", LOOPBACK, str(file)
    ) as process:
        ticket = BlobTicket.parse((await _event(process, "ready"))["ticket"])
        assert process.stdout is not None
        draining = asyncio.create_task(process.stdout.read())
        try:
            yield ticket
            await draining
        finally:
            draining.cancel()
            await asyncio.gather(draining, return_exceptions=True)
        if await process.wait() != 0:
            raise LocalError(f"the sending process ended with code {process.returncode}")


async def _event(process: asyncio.subprocess.Process, name: str) -> Mapping[str, Any]:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "error":
            raise DialkeyError(f"a process of the demo failed: {event['message']}")
        if event["event"] == name:
            return event
    raise LocalError("a process of the demo ended early")


def _make_file(path: Path, size_bytes: int) -> None:
    path.parent.mkdir(parents=True)
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        for number in range(-(-size_bytes // len(block))):
            # Blocks differ, so that nothing could be saved by sending equal parts once.
            data = number.to_bytes(8, "little") + block[8:]
            file.write(data[: size_bytes - number * len(block)])


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        hasher = blake3()
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()
