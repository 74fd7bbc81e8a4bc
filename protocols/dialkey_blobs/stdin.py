"""Standard input, read in such a way that Ctrl-C ends the wait."""

from __future__ import annotations

import asyncio
import os
import sys

from dialkey.cli import Output

__all__ = ["can_ask", "confirm", "read_stdin"]


async def read_stdin(limit: int) -> bytes:
    """Return what comes next on standard input, at most `limit` bytes; empty at its end."""
    descriptor = sys.stdin.fileno()
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        loop.add_reader(descriptor, readable.set)
    except (PermissionError, NotImplementedError):
        # A regular file, which is always readable; or an event loop of Windows.
        return await asyncio.to_thread(os.read, descriptor, limit)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, limit)


def can_ask(output: Output) -> bool:
    """Return whether there is a user at a terminal who can be asked."""
    return not output.json and sys.stdin.isatty() and output.stderr.isatty()


async def confirm(output: Output, question: str) -> bool:
    """Ask a question on the terminal; enter alone means yes, and the end of input means no."""
    print(f"{question} [Y/n] ", end="", file=output.stderr, flush=True)
    answer = (await read_stdin(4096)).decode(errors="replace")
    if not answer:
        output.remark("")
    return bool(answer) and answer.strip().lower() in ("", "y", "yes")
