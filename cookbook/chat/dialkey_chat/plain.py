"""The room on standard streams, a line for each thing: for scripts, pipes and simple terminals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator
from typing import Final

from dialkey_chat.commands import describe, perform
from dialkey_chat.session import Chat
from dialkey_gossip import NoNeighbors

__all__ = ["run_plain"]

DELIVERY_S: Final = 10.0
"""At the end of the input, what was said gets this long to reach somebody."""

STDIN: Final = 0
MAX_LINE_BYTES: Final = 65_536
MAX_LINES: Final = 100
"""Read ahead of what was dealt with; a file as input waits."""


async def run_plain(chat: Chat) -> None:
    """Do what standard input says, and write what happens, until ``/quit`` or the end of input.

    Raises:
        NoNeighbors: the input is at its end, and nobody was there to hear all of it.
    """
    showing = asyncio.create_task(_show(chat))
    try:
        async for line in _lines():
            if not perform(chat, line):
                break
            await chat.space()
        else:
            await _deliver(chat)
        await chat.leave()
        await showing
    finally:
        showing.cancel()


async def _deliver(chat: Chat) -> None:
    try:
        async with asyncio.timeout(DELIVERY_S):
            await chat.delivered()
    except TimeoutError:
        raise NoNeighbors("nobody was there to hear what was said") from None


async def _show(chat: Chat) -> None:
    async for notice in chat.notices:
        print(describe(notice), flush=True)


async def _lines() -> AsyncIterator[str]:
    """Yield the lines of standard input.

    A thread reads it: files cannot be polled, and a terminal's blocking mode belongs to the shell,
    too. It is a daemon, so that it keeps no process from ending while it waits for a key.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes | None] = asyncio.Queue()
    places = threading.Semaphore(MAX_LINES)

    def put(line: bytes | None) -> None:
        places.acquire()
        loop.call_soon_threadsafe(lines.put_nowait, line)

    def read() -> None:
        # Not `sys.stdin`: Python ends badly while a thread waits within it.
        rest = b""
        # The loop is closed when the process is about to end.
        with contextlib.suppress(RuntimeError):
            while data := os.read(STDIN, 65_536):
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    put(line)
                if len(rest) > MAX_LINE_BYTES:
                    put(rest)
                    rest = b""
            put(rest)
            put(None)

    threading.Thread(target=read, name="dialkey-chat-stdin", daemon=True).start()
    while (line := await lines.get()) is not None:
        yield line.decode(errors="replace")
        places.release()
