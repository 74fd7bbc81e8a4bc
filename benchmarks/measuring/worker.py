"""One side of a measurement, in a process of its own: commands as JSON lines in, results out.

Started by `measuring.pair`; the argument is the name of a stack.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TextIO

sys.path.insert(0, str(Path(__file__).parents[1]))

import stacks
from stacks import base

from measuring.parent import end_with_stdin

Result = dict[str, float | str]

END_TIMEOUT_S = 2.0

DIALS_AT_ONCE = 8
"""Fewer than what an endpoint lets one address have in the air."""


class Worker:
    """What a process can be told to do. Each method is a command, its arguments are the command's."""

    def __init__(self, stack: base.Stack) -> None:
        self._stack = stack
        self._sessions: list[base.Session] = []
        self._idle: list[base.Stream] = []

    async def serve(self) -> Result:
        return {"address": await self._stack.serve(base.answer)}

    async def cpu(self) -> Result:
        """Tell the processor time of this process so far, all threads."""
        return {"cpu_s": time.process_time()}

    async def memory(self) -> Result:
        """Tell the resident memory of this process, after collecting garbage."""
        gc.collect()
        return {"rss_bytes": _resident_bytes()}

    async def dial(self, address: str, count: int) -> Result:
        """Open connections, some at a time, and keep them."""
        left = count

        async def work() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                self._sessions.append(await self._stack.dial(address))

        return await _timed(lambda: _together(work, min(count, DIALS_AT_ONCE)))

    async def hang_up(self) -> Result:
        self._idle.clear()
        sessions, self._sessions = self._sessions, []
        for at in range(0, len(sessions), 50):
            await asyncio.gather(*(each.close() for each in sessions[at : at + 50]))
        return {}

    async def touch(self) -> Result:
        """Make one request on every connection, so that both sides are done with the handshake."""
        for session in self._sessions:
            await base.requests(session, 1, 1)
        return {}

    async def open_idle(self, count: int) -> Result:
        """Open streams on which nothing more than a byte of a request will ever come."""
        for _ in range(count):
            stream = await self._sessions[0].open()
            await stream.write(b"\0")
            self._idle.append(stream)
        await base.requests(self._sessions[0], 1, 1)
        return {}

    async def check(self, size: int, seed: int, count: int) -> Result:
        session = self._sessions[0]
        await base.check_download(session, size, seed)
        await base.requests(session, count, 1, seed=seed)
        await base.requests(session, count, 16, seed=seed + 1)
        return {}

    async def offer(self, size: int, seed: int) -> Result:
        return {"offer": await self._offering().offer(size, seed)}

    async def fetch(self, offer: str) -> Result:
        return await _timed(lambda: self._offering().fetch(self._sessions[0], offer))

    async def check_fetched(self, offer: str, size: int, seed: int) -> Result:
        await self._offering().check(self._sessions[0], offer, size, seed)
        return {}

    def _offering(self) -> base.Offering:
        assert isinstance(self._stack, base.Offering)
        return self._stack

    async def download(self, size: int) -> Result:
        return await _timed(lambda: base.download(self._sessions[0], size))

    async def downloads(self, size: int, streams: int) -> Result:
        """Download on several streams at once, spread over all connections; `size` in all."""

        async def work() -> None:
            async with asyncio.TaskGroup() as group:
                for i in range(streams):
                    session = self._sessions[i % len(self._sessions)]
                    group.create_task(base.download(session, size // streams))

        return await _timed(work)

    async def upload(self, size: int) -> Result:
        return await _timed(lambda: base.upload(self._sessions[0], size))

    async def messages(self, count: int) -> Result:
        return await _timed(lambda: base.messages(self._sessions[0], count))

    async def datagrams(self, count: int) -> Result:
        """Send datagrams of a kilobyte and take them back, some at a time."""
        return await _timed(lambda: self._sessions[0].datagrams(count))

    async def requests(self, count: int, in_flight: int) -> Result:
        return await _timed(lambda: base.requests(self._sessions[0], count, in_flight))

    async def end(self) -> None:
        await self.hang_up()
        await self._stack.close()


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _timed(work: Callable[[], Awaitable[None]]) -> Result:
    gc.collect()
    cpu, began = time.process_time(), time.perf_counter()
    await work()
    return {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}


async def _together(work: Callable[[], Awaitable[None]], count: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(_run(work))


async def _run(work: Callable[[], Awaitable[None]]) -> None:
    await work()


async def main(name: str, replies: TextIO) -> None:
    """Obey until the input ends."""
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    worker: Worker | None = None
    while line := await commands.readline():
        command = json.loads(line)
        name_of = command.pop("do")
        try:
            if worker is None:
                worker = Worker(stacks.make(name))
            reply = {"ok": await getattr(worker, name_of)(**command)}
        except Exception as exc:
            # The parent must hear of every failure; it names the stack and goes on with the others.
            cause = exc.exceptions[0] if isinstance(exc, ExceptionGroup) else exc
            reply = {"error": f"{type(cause).__name__}: {cause}"}
        print(json.dumps(reply), file=replies, flush=True)
    if worker is not None:
        try:
            await asyncio.wait_for(worker.end(), END_TIMEOUT_S)
        except TimeoutError:
            return


if __name__ == "__main__":
    end_with_stdin()
    to_parent = os.fdopen(os.dup(1), "w")
    # Whatever a library prints must not get among the replies.
    os.dup2(2, 1)
    asyncio.run(main(sys.argv[1], to_parent))
