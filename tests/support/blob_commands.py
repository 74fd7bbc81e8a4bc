"""``dialkey`` in processes of its own, for tests of the commands of blobs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

TIMEOUT_S = 60.0

# Whether the entry points of this distribution are installed or not, each plugin is there once.
SCRIPT = """
import sys
from dialkey.cli import app
from dialkey.hooks import Plugins
import dialkey_blobs.plugin
import dialkey_rendezvous.plugin
plugins = Plugins()
plugins.register(dialkey_blobs.plugin)
plugins.register(dialkey_rendezvous.plugin)
build = app.build
app.build = lambda: build(plugins)
app.main(sys.argv[1:])
"""


@attrs.frozen
class Done:
    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def event(self, name: str) -> dict[str, Any]:
        return next(event for event in self.events if event["event"] == name)


class Process:
    """A ``dialkey`` that runs.

    Args:
        arguments: of the command line.
        cwd: where.
        stdin: what it reads; nothing by default.
        terminal: its standard input and standard error.
    """

    def __init__(
        self,
        *arguments: object,
        cwd: Path | None = None,
        stdin: bytes | None = None,
        terminal: int | None = None,
    ) -> None:
        source = terminal if stdin is None else subprocess.PIPE
        self.popen = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *map(str, arguments)],
            stdin=source if source is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=terminal if terminal is not None else subprocess.PIPE,
            cwd=cwd,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "PYTHONWARNINGS": "error::ResourceWarning",
            },
        )
        if stdin is not None:
            feeding = threading.Thread(target=self._feed, args=(stdin,))
            feeding.start()
            feeding.join(TIMEOUT_S)

    def _feed(self, data: bytes) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(data)
        self.popen.stdin.close()
        # `communicate` would close it once more.
        self.popen.stdin = None

    def line(self) -> str:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline().decode()
        assert line, self.popen.communicate(timeout=TIMEOUT_S)[1]
        return line.strip()

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            event: dict[str, Any] = json.loads(self.line())
            if wanted(event):
                return event

    def end(self) -> Done:
        out, err = self.popen.communicate(timeout=TIMEOUT_S)
        text = err.decode()
        assert "Traceback" not in text, text
        return Done(self.popen.returncode, out, text)

    def interrupt(self) -> Done:
        self.popen.send_signal(signal.SIGINT)
        return self.end()


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    with contextlib.ExitStack() as stack:

        def begin(*arguments: object, **options: Any) -> Process:
            process = Process(*arguments, **options)
            stack.enter_context(process.popen)
            stack.callback(process.popen.kill)
            return process

        yield begin


Start = Callable[..., Process]


def make(path: Path, size: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def folder(path: Path) -> str:
    """Say that a path is a folder, whether or not it is there."""
    return f"{path}/"


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def is_one_line(done: Done, code: int, text: str) -> None:
    lines = [line for line in done.err.splitlines() if line.startswith("dialkey: ")]
    assert done.code == code, done
    assert len(lines) == 1, done.err
    assert text in lines[0], done.err
