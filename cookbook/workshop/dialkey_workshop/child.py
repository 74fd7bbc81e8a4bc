"""The process in which one job runs: ``python -m dialkey_workshop.child JOB INPUT RESULT [FILE]``.

On standard output it says in lines how many bytes of the input are read, and at the end nothing, or
``failed`` and the reason. It ends when its standard input does, which is when its worker dies.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO, Final, TextIO, cast

from dialkey_workshop.jobs import JOBS, JobError, load_jobs

REPORT_INTERVAL_S: Final = 0.1
BUFFER_BYTES: Final = 1 << 16
MAX_REASON_CHARS: Final = 500


class _Watched(io.FileIO):
    """A file that reports how far it has been read."""

    def __init__(self, path: str, channel: TextIO) -> None:
        super().__init__(path)
        self._channel = channel
        self._next_s = 0.0

    def readinto(self, buffer: object) -> int:
        count: int = super().readinto(buffer)  # type: ignore[arg-type]
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + REPORT_INTERVAL_S
            try:
                print(self.tell(), file=self._channel, flush=True)
            except BrokenPipeError:
                os._exit(1)  # the worker is dead
        return count


def main(name: str, source: str, result: str, *files: str) -> int:
    """Do one job; return the exit code."""
    # What a job prints must not pass for what we say.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for path in files:
        load_jobs(Path(path))
    with (
        channel,
        _Watched(source, channel) as watched,
        io.BufferedReader(watched, BUFFER_BYTES) as reader,
        open(result, "xb") as writer,
    ):
        try:
            JOBS[name](cast("BinaryIO", reader), writer)
        except JobError as error:
            reason = " ".join(str(error).split())[:MAX_REASON_CHARS]
            print("failed", reason, file=channel)
    return 0


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
