"""Running a job in its own process, away from the event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from dialkey_workshop.jobs import JobError

__all__ = ["JobCrashed", "run_job"]


class JobCrashed(Exception):
    """The process of a job ended in a way that the job did not mean."""


async def run_job(
    name: str,
    source: Path,
    result: Path,
    *,
    jobs_file: Path | None = None,
    progress: Callable[[int], None],
) -> None:
    """Do a job. When cancelled, its process is killed before this returns.

    Args:
        name: which.
        source: the input.
        result: where the result goes; must not exist.
        jobs_file: a Python file with further jobs.
        progress: is told the bytes that were read.

    Raises:
        JobError: the job cannot be done with this input.
        JobCrashed: its process failed.
    """
    # A session of its own, because Ctrl-C at the terminal is for the worker, which then gives its
    # jobs the time to end. It finds the modules that we find; with -P, none in the current folder.
    command = [sys.executable, "-P", "-m", "dialkey_workshop.child", name, str(source), str(result)]
    process = await asyncio.create_subprocess_exec(
        *command,
        *([] if jobs_file is None else [str(jobs_file)]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            word, _, rest = line.decode("utf-8", "replace").strip().partition(" ")
            if word == "failed":
                raise JobError(rest)
            progress(int(word))
        if await process.wait() != 0:
            raise JobCrashed(f"the process of {name} ended with code {process.returncode}")
    finally:
        if process.returncode is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            await process.wait()
        # The transport would otherwise be closed by the garbage collector, with a warning.
        if process.stdin is not None:
            process.stdin.close()
