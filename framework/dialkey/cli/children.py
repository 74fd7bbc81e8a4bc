"""Processes that a command starts, and that end when it does, however it ends.

The parent holds the other end of the child's standard input. When the parent is gone, even by
``kill -9``, the child reads the end of it and ends in order, as by SIGTERM. This needs no support of
the operating system, and cannot be missed by a child that is still starting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping
from typing import Final

logger = logging.getLogger("dialkey.cli")

__all__ = ["child", "end_with_parent"]

VARIABLE: Final = "DIALKEY_ENDS_WITH_STDIN"
"""Tells a child that its standard input is there for this purpose."""

ENDING_S: Final = 10.0
"""For a child to end in order: more than its router's and its endpoint's own grace periods."""

READ_BYTES: Final = 65_536


@contextlib.asynccontextmanager
async def child(
    *arguments: str, env: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run ``dialkey`` with these arguments in a process of its own, within the context.

    Its standard output is a pipe to be read. At the end of the context it is asked to end, and killed
    if it does not. To ask it earlier, close its standard input; a SIGTERM beside that would be a second
    one, which does not wait.

    Args:
        arguments: the command and its arguments.
        env: its environment; by default that of this process.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dialkey", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**(os.environ if env is None else env), VARIABLE: "1"},
    )
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(ENDING_S):
            # Unread output must not keep it from ending.
            while await process.stdout.read(READ_BYTES):
                pass
            await process.wait()
    except TimeoutError:
        logger.warning("process %d does not end and is killed", process.pid)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def end_with_parent() -> None:
    """End this process in order when the one that started it is gone, if that one wants so."""
    if os.environ.pop(VARIABLE, ""):
        threading.Thread(target=_end_with_stdin, daemon=True, name="dialkey-parent").start()


def _end_with_stdin() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, READ_BYTES):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ENDING_S)
    os._exit(128 + signal.SIGTERM)
