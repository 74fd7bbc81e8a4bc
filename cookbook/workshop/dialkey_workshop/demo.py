"""What ``dialkey workshop demo`` does."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

from dialkey.cli import Output, child, format_bytes, scratch_folder
from dialkey.errors import DialkeyError, LocalError

__all__ = ["demo"]

JOB: Final = "wordcount"
LOOPBACK: Final = ("--bind", "127.0.0.1:0")
WORDS: Final = 20_000

ROOM: Final = 4
"""Texts, with the client and with a worker, in its store and as it works on them."""


async def demo(output: Output, *, files: int, size_bytes: int) -> None:
    """Give jobs to three workers, kill one in the middle of a job, and compare the results.

    Raises:
        DialkeyError: a result is missing or wrong.
    """
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(scratch_folder("demo", room_bytes=ROOM * files * size_bytes))
        output.remark(f"1. Making {files} texts of {format_bytes(size_bytes)} each")
        inputs = await asyncio.to_thread(_make_texts, folder, files, size_bytes)
        output.remark("2. Three workers, processes of their own, find each other by gossip:")
        opener = await stack.enter_async_context(_process(folder, "open", *LOOPBACK))
        ready = await _until(opener, "ready")
        ticket = ready["ticket"]
        workers = {ready["endpoint_id"]: opener}
        joining = [
            await stack.enter_async_context(_process(folder, "work", "-t", ticket, *LOOPBACK))
            for _ in range(2)
        ]
        for worker in joining:
            workers[(await _until(worker, "ready"))["endpoint_id"]] = worker
        for endpoint_id in workers:
            output.remark(f"   {endpoint_id}")
        output.remark(f"3. A client, with yet another key, gives them {JOB} for each text:")
        options = ("-t", ticket, "-o", str(folder), "--patience", "2")
        client = await stack.enter_async_context(
            _process(folder, "run", JOB, *map(str, inputs), *options, *LOOPBACK)
        )
        results = await _follow(output, client, workers)
        if await client.wait() != 0:
            raise LocalError("the client failed")
        for worker in workers.values():
            if worker.stdin is not None:
                worker.stdin.close()  # which asks it to end
        wrong = await asyncio.to_thread(_count_wrong, inputs, results)
        if wrong:
            raise LocalError(f"{wrong} results are missing or wrong")
        text = f"Each of the {files} results is there once, and right."
        output.result("demo", text, files=files, size_bytes=size_bytes)


async def _follow(
    output: Output,
    client: asyncio.subprocess.Process,
    workers: Mapping[str, asyncio.subprocess.Process],
) -> list[Path]:
    """Show what the client says; kill the first worker that is not the opener while it works."""
    opener = next(iter(workers))
    killed = ""
    results: list[Path] = []
    async for event in _events(client):
        what, name, worker = event["event"], event.get("name"), event.get("worker", "")
        if what == "working" and event["step"] == "working" and not killed and worker != opener:
            killed = worker
            workers[killed].kill()
            output.remark(f"   … {worker[:10]} is killed while it works on {name}")
        elif what == "handed_over":
            output.remark(f"   … {name} is not done by {worker[:10]}: {event['reason']}")
        elif what == "done":
            results.append(Path(event["path"]))
            output.remark(f"   {name} by {worker[:10]}")
    if not killed:
        raise LocalError("no worker was at work long enough to be killed", hint="try a larger size")
    return results


def _process(
    folder: Path, *arguments: str
) -> contextlib.AbstractAsyncContextManager[asyncio.subprocess.Process]:
    # What is killed leaves something where temporary files are made.
    env = {**os.environ, "TMPDIR": str(folder)}
    return child("workshop", *arguments, "--json", env=env)


async def _events(process: asyncio.subprocess.Process) -> AsyncIterator[Mapping[str, Any]]:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "error":
            raise DialkeyError(f"a process of the demo failed: {event['message']}")
        yield event


async def _until(process: asyncio.subprocess.Process, name: str) -> Mapping[str, Any]:
    async for event in _events(process):
        if event["event"] == name:
            return event
    raise LocalError("a process of the demo ended early")


def _make_texts(folder: Path, count: int, size_bytes: int) -> list[Path]:
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(WORDS)]
    paths = [folder / f"text{number:02}.txt" for number in range(1, count + 1)]
    for path in paths:
        line_words = [" ".join(chance.choices(words, k=12)) for _ in range(500)]
        lines = chance.choices(line_words, k=max(1, size_bytes // 96))
        path.write_text("\n".join(lines), encoding="ascii")
    return paths


def _count_wrong(inputs: list[Path], results: list[Path]) -> int:
    from dialkey_workshop.jobs import JOBS

    expected = {path.with_name(f"{path.name}.{JOB}") for path in inputs}
    wrong = len(expected ^ set(results)) + len(results) - len(set(results))
    for path in inputs:
        check = path.with_name("check")
        with path.open("rb") as source, check.open("wb") as result:
            JOBS[JOB](source, result)
        wrong += _sha256(check) != _sha256(path.with_name(f"{path.name}.{JOB}"))
    return wrong


def _sha256(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest() if path.exists() else b""
