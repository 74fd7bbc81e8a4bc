"""What commands write: results for people or JSON lines for programs, and progress.

Standard output carries results only, so that it can be piped; remarks, progress and errors go to
standard error. With ``--json``, standard output carries one JSON object in each line, each with an
``event``, and remarks are not written at all. What the encoding of a stream lacks is escaped: in JSON
as JSON does, else with a backslash.
"""

from __future__ import annotations

import codecs
import json
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TextIO

from dialkey.printable import escaped_json, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["Output", "Progress", "format_bytes", "format_rate"]

REPORT_INTERVAL_S: Final = {"json": 0.25, "lines": 5.0}
"""A program can follow four lines a second, a log file should not grow by them."""


class Output:
    """Write what a command has to say.

    Args:
        json: write for programs.
        stdout: where results go.
        stderr: where remarks go.
    """

    def __init__(
        self, *, json: bool = False, stdout: TextIO | None = None, stderr: TextIO | None = None
    ) -> None:
        self.json = json
        self._stdout = stdout
        self._stderr = stderr

    @property
    def stdout(self) -> TextIO:
        """The stream of results."""
        return self._stdout or sys.stdout

    @property
    def stderr(self) -> TextIO:
        """The stream of remarks."""
        return self._stderr or sys.stderr

    def result(self, event: str, text: str | None, /, **fields: object) -> None:
        """Write a result: `text` for people (None: nothing), `fields` for programs."""
        if self.json:
            ascii = not _is_utf8(self.stdout)
            line = json.dumps({"event": event, **fields}, ensure_ascii=ascii, default=str)
            _print(escaped_json(line), self.stdout)
        elif text is not None:
            _print(printable(text, keep="\n\t"), self.stdout)

    def remark(self, text: str) -> None:
        """Tell people something that is not a result, in one line."""
        if not self.json:
            self.complain(text)

    def complain(self, text: str) -> None:
        """Tell people what went wrong, in one line; with ``--json``, too."""
        try:
            _print(printable(text), self.stderr)
        except OSError:
            # Nobody hears it, and that is no reason to fail.
            pass

    @property
    def has_lost_reader(self) -> bool:
        """Whether who read standard output has gone, as ``head`` does when it has enough.

        Results are dropped from then on. A command that does nothing but write results ends.
        """
        return bool(getattr(self.stdout, "has_lost_reader", False))

    def progress(self, what: str, total_bytes: int | None = None) -> Progress:
        """Return a context manager that shows how far something has come."""
        return Progress(self, what, total_bytes)


class Progress:
    """A bar on a terminal, a line now and then in a log, JSON lines for programs.

    Args:
        output: where to show it.
        what: the verb, such as "receiving".
        total_bytes: the goal, or None while it is not known.
        clock: seconds, for the rate.
    """

    def __init__(
        self,
        output: Output,
        what: str,
        total_bytes: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._output = output
        self._what = what
        self._total_bytes = total_bytes
        self._clock = clock
        self._bar: RichProgress | None = None
        self._bar_task: TaskID | None = None
        self._began = self._reported = clock()
        self._first_bytes: int | None = None
        self._done_bytes = 0
        self._note = ""

    def __enter__(self) -> Self:
        if not self._output.json and self._output.stderr.isatty():
            self._bar, self._bar_task = _rich_bar(self._output.stderr, self._what)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._first_bytes is not None:
            self._report()

    def update(
        self, done_bytes: int, *, total_bytes: int | None = None, note: str | None = None
    ) -> None:
        """Say how far it has come.

        Args:
            done_bytes: bytes done in all, counting those of earlier runs.
            total_bytes: the goal, when it has become known or has changed.
            note: something short to show beside it, such as the path in use.
        """
        if self._first_bytes is None:
            self._first_bytes, self._began = done_bytes, self._clock()
        self._done_bytes = done_bytes
        if total_bytes is not None:
            self._total_bytes = total_bytes
        if note is not None:
            self._note = note
        if self._bar is not None and self._bar_task is not None:
            self._bar.update(
                self._bar_task,
                completed=done_bytes,
                total=self._total_bytes,
                note=self._note,
            )
            return
        interval_s = REPORT_INTERVAL_S["json" if self._output.json else "lines"]
        if self._clock() - self._reported >= interval_s:
            self._report()

    @property
    def rate_bytes_per_s(self) -> float:
        """The mean rate since the first update, of bytes that were done since."""
        elapsed_s = self._clock() - self._began
        if self._first_bytes is None or elapsed_s <= 0:
            return 0.0
        return (self._done_bytes - self._first_bytes) / elapsed_s

    def _report(self) -> None:
        self._reported = self._clock()
        rate = self.rate_bytes_per_s
        self._output.result(
            "progress",
            None,
            what=self._what,
            done_bytes=self._done_bytes,
            total_bytes=self._total_bytes,
            rate_bytes_per_s=round(rate),
            note=self._note,
        )
        of = f" of {format_bytes(self._total_bytes)}" if self._total_bytes is not None else ""
        note = f", {self._note}" if self._note else ""
        speed = f", {format_rate(rate)}" if rate else ""
        self._output.remark(f"{self._what}: {format_bytes(self._done_bytes)}{of}{speed}{note}")


def _rich_bar(stderr: TextIO, what: str) -> tuple[RichProgress, TaskID]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(file=stderr),
    )
    return bar, bar.add_task(what, total=None, note="")


def _is_utf8(stream: TextIO) -> bool:
    encoding = getattr(stream, "encoding", None)
    # Text that stays in this process has no encoding.
    return encoding is None or codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def _print(text: str, stream: TextIO) -> None:
    try:
        print(text, file=stream, flush=True)
    except UnicodeEncodeError:
        encoding = stream.encoding
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def format_bytes(count: int) -> str:
    """Write a number of bytes as people do: ``999 B``, ``1.5 kB``, ``100.0 MB``."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.95 or unit == "TB":
            break
        size /= 1000
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def format_rate(bytes_per_s: float) -> str:
    """Write a rate as people do: ``12.3 MB/s``."""
    return f"{format_bytes(round(bytes_per_s))}/s"
