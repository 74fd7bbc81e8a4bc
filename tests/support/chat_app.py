"""``dialkey chat`` in processes of its own: on pipes, and on a terminal whose screen can be read."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyte

TIMEOUT_S = 20.0
COLUMNS, ROWS = 110, 30
HEARTBEAT_S = "0.5"


def command(*arguments: str) -> list[str]:
    """Return the command line of a chat that stays on this machine and soon notices dead peers."""
    here = ["--bind", "127.0.0.1:0", "--heartbeat", HEARTBEAT_S]
    return [sys.executable, "-m", "dialkey", "chat", *arguments, *here]


class _Watched:
    """Something that grows in a thread of its own, and can be waited for."""

    def __init__(self) -> None:
        self._grown = threading.Condition()

    def _wait(self, found: Callable[[], str | None], what: str) -> str:
        deadline = time.monotonic() + TIMEOUT_S
        with self._grown:
            while (result := found()) is None:
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"no {what!r} in:\n{self.text()}"
                self._grown.wait(left_s)
        return result

    def text(self) -> str:
        """Return all of it."""
        raise NotImplementedError


class PlainChat(_Watched):
    """A chat in lines."""

    def __init__(self, environment: dict[str, str], folder: Path, *arguments: str) -> None:
        super().__init__()
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.lines: list[str] = []
        self._seen = 0
        self.process = subprocess.Popen(
            command(*arguments, "--plain"),
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            with self._grown:
                self.lines.append(raw.decode().rstrip("\n"))
                self._grown.notify_all()

    def text(self) -> str:
        """Return everything that was written."""
        return "\n".join(self.lines)

    def expect(self, pattern: str) -> str:
        """Wait for a line that matches, at any place, and return it."""
        return self._wait(
            lambda: next((line for line in self.lines if re.search(pattern, line)), None), pattern
        )

    def type(self, line: str) -> None:
        """Say or do something."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def ended(self) -> int:
        """Wait for the end; return the exit code."""
        code = self.process.wait(TIMEOUT_S)
        self._reading.join(TIMEOUT_S)
        return code

    def close(self) -> None:
        """End it in any case."""
        self.process.kill()
        self.process.wait()
        self._reading.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def _without_size(environment: dict[str, str]) -> dict[str, str]:
    """Return an environment that does not speak of another terminal's size."""
    return {key: value for key, value in environment.items() if key not in ("COLUMNS", "LINES")}


class TerminalChat(_Watched):
    """A chat on a pseudo-terminal, and the screen as a person sees it."""

    def __init__(self, environment: dict[str, str], folder: Path, *arguments: str) -> None:
        super().__init__()
        folder.mkdir(exist_ok=True)
        self.raw = b""
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self._master, self._slave = os.openpty()
        self._set_size(ROWS, COLUMNS)
        self.modes_before = termios.tcgetattr(self._slave)
        self.process = subprocess.Popen(
            command(*arguments),
            env={**_without_size(environment), "TERM": "xterm-256color", "COLORTERM": "truecolor"},
            cwd=folder,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
        )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65_536)
            except OSError:
                return
            with self._grown:
                self.raw += data
                self._stream.feed(_readable(data))
                self._grown.notify_all()

    def text(self) -> str:
        """Return the screen."""
        return "\n".join(line.rstrip() for line in self._screen.display)

    def expect(self, pattern: str) -> str:
        """Wait until the screen matches; return it."""

        def found() -> str | None:
            text = self.text()
            return text if re.search(pattern, text) else None

        return self._wait(found, pattern)

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of the window."""
        with self._grown:
            self._screen.resize(rows, columns)
        self._set_size(rows, columns)
        self.process.send_signal(signal.SIGWINCH)

    def _set_size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Press keys, in the characters that a terminal sends for them."""
        os.write(self._master, keys.encode())

    def ended(self) -> int:
        """Wait for the end; return the exit code."""
        return self.process.wait(TIMEOUT_S)

    def modes(self) -> list[object]:
        """Return the modes of the terminal now."""
        return termios.tcgetattr(self._slave)

    def close(self) -> None:
        """End it in any case."""
        self.process.kill()
        self.process.wait()
        os.close(self._slave)
        self._reading.join(TIMEOUT_S)
        os.close(self._master)


def _readable(data: bytes) -> bytes:
    # What pyte takes for text: sequences with these private markers.
    return re.sub(rb"\x1b\[[<=>][0-9;]*[a-zA-Z]|\x1b\[\?[0-9;]*\$p", b"", data)
