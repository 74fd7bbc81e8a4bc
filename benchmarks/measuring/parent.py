"""The processes of a benchmark end with it, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Final

__all__ = ["end_with_parent", "end_with_stdin"]

ENDING_S: Final = 2.0
"""For a process to end in order by itself."""


def end_with_stdin() -> None:
    """End this process soon after nobody holds the other end of its standard input any more.

    Reads nothing; a process may be busy with a command when its parent dies.
    """
    poll = select.poll()
    poll.register(sys.stdin.fileno(), 0)  # the end is always reported
    _after(poll.poll)


def end_with_parent() -> None:
    """End this process, which `multiprocessing` started, soon after the one that started it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        _after(lambda: wait([sentinel]))


def _after(end: Callable[[], object]) -> None:
    def watch() -> None:
        end()
        time.sleep(ENDING_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()
