"""A process that serves or fetches blobs, for tests that kill it.

blob_agent.py serve STORE BIND SECRET FILE     prints a ticket, then serves
blob_agent.py fetch STORE TICKET               prints bytes held so far, one number to a line, and
                                               at last "done", bytes received, total
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dialkey import Endpoint, Router, SecretKey
from dialkey_blobs import Blobs, Downloaded, Progress


async def serve(store: str, bind: str, secret: str, file: str) -> None:
    key = SecretKey(bytes.fromhex(secret))
    async with (
        Endpoint.bind(bind=bind, secret_key=key, entry_points=False) as endpoint,
        Router(endpoint) as router,
    ):
        blobs = router.add(Blobs.persistent(store))
        path = await asyncio.to_thread(Path(file).resolve)
        tag = (
            (await blobs.add_files([path]))[0]
            if await asyncio.to_thread(path.is_dir)
            else await blobs.add_path(path)
        )
        print(blobs.ticket(tag), flush=True)
        await router.serve()


async def fetch(store: str, ticket: str) -> None:
    async with (
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as endpoint,
        Blobs.persistent(store) as blobs,
    ):
        blobs.attach(endpoint)
        async for event in blobs.download(ticket):
            if isinstance(event, Progress):
                print(event.held_bytes, flush=True)
            elif isinstance(event, Downloaded):
                print("done", event.payload_bytes, event.total_bytes, flush=True)


@contextmanager
def running(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Run this program; kill it at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process prints, without its end; empty when it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


if __name__ == "__main__":
    asyncio.run({"serve": serve, "fetch": fetch}[sys.argv[1]](*sys.argv[2:]))
