"""How far something has come: one line that fits the terminal, lines in a log, JSON for programs."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TextIO

from dialkey.cli.units import format_bytes, format_duration, format_rate
from dialkey.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress as RichProgress
    from rich.progress import Task, TaskID
    from rich.text import Text

    from dialkey.cli.output import Output

__all__ = ["Progress", "progress_line"]

REPORT_INTERVAL_S: Final = {"json": 0.25, "lines": 5.0}
"""A program can follow four lines a second, a log file should not grow by them."""

MIN_BAR: Final = 10
MAX_BAR: Final = 40
"""A shorter bar says nothing, a longer one says no more."""

MAX_LEFT_S: Final = 100 * 3600
"""Longer estimates are guesses, and nobody waits that long."""


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
        self._waiting = ""

    def __enter__(self) -> Self:
        if not self._output.json and self._output.stderr.isatty():
            self._bar, self._bar_task = _rich_bar(self._output.stderr, self._line)
            self._bar.start()
        return self

    def waiting(self, text: str) -> None:
        """Return what is waited for, such as ``connecting to …``, until there is an `update`."""
        if text == self._waiting:
            return
        self._waiting = text
        if self._bar is None:
            self._output.result("waiting", None, what=self._what, text=text)
            self._output.remark(f"{self._what}: {text}")
        else:
            self._bar.refresh()

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
        """Return how far it has come.

        Args:
            done_bytes: bytes done in all, counting those of earlier runs.
            total_bytes: the goal, when it has become known or has changed.
            note: something short to show beside it, such as the path in use.
        """
        if self._first_bytes is None:
            self._first_bytes, self._began = done_bytes, self._clock()
        self._done_bytes = done_bytes
        self._waiting = ""
        if total_bytes is not None:
            self._total_bytes = total_bytes
        if note is not None:
            self._note = printable(note)
        if self._bar is not None and self._bar_task is not None:
            self._bar.update(
                self._bar_task,
                completed=done_bytes,
                total=self._total_bytes,
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

    def _line(self, task: Task, width: int) -> str:
        if self._waiting:
            return shortened(self._waiting, width)
        return progress_line(
            self._what,
            self._done_bytes,
            self._total_bytes,
            rate_bytes_per_s=task.finished_speed or task.speed,
            left_s=task.time_remaining,
            note=self._note,
            width=width,
        )


def progress_line(
    what: str,
    done_bytes: int,
    total_bytes: int | None,
    *,
    rate_bytes_per_s: float | None,
    left_s: float | None,
    note: str,
    width: int,
) -> str:
    """Compose the line for a terminal; it is never longer than `width` characters.

    What there is no room for is left out, the least important first: the bar, the end of the note, the
    time that is left, the rate.
    """
    parts = [what]
    if total_bytes:
        parts.append(f"{min(100, done_bytes * 100 // total_bytes)}%")
    parts.append(_sizes(done_bytes, total_bytes))
    if rate_bytes_per_s:
        parts.append(format_rate(rate_bytes_per_s))
    if left_s is not None and left_s < MAX_LEFT_S:
        parts.append(format_duration(left_s))
    line = ""
    for part in parts:
        longer = f"{line} {part}" if line else part
        if len(longer) > width:
            return shortened(line or what, width)
        line = longer
    note = _short_note(note)
    room = width - len(line) - len(note) - 3
    if total_bytes and room >= MIN_BAR:
        cells = min(room, MAX_BAR)
        full = min(cells, cells * done_bytes // total_bytes)
        line = f"{what} {'━' * full}{'╌' * (cells - full)}{line.removeprefix(what)}"
    left = width - len(line) - 1
    # Of a path only the first word matters: direct, or relay.
    if note and left >= len(note.split()[0]):
        line += f" {shortened(note, left)}"
    return line


def shortened(text: str, width: int) -> str:
    """Cut text that is too long, and show that it was cut."""
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"[:width]


def _sizes(done_bytes: int, total_bytes: int | None) -> str:
    done = format_bytes(done_bytes)
    if total_bytes is None:
        return done
    total = format_bytes(total_bytes)
    number, _, unit = done.partition(" ")
    return f"{number}/{total}" if total.endswith(f" {unit}") else f"{done}/{total}"


def _short_note(note: str) -> str:
    """Leave out what people know of the URL of a relay."""
    return note.replace("https://", "").removesuffix("/").removesuffix(".")


def _rich_bar(stderr: TextIO, line: Callable[[Task, int], str]) -> tuple[RichProgress, TaskID]:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn
    from rich.text import Text

    console = Console(file=stderr)

    class Line(ProgressColumn):
        def render(self, task: Task) -> Text:
            # A terminal that is written to its last column turns the line.
            text = line(task, console.width - 1)
            if console.options.ascii_only:
                text = text.replace("━", "#").replace("╌", "-").replace("…", "~")
            return Text(text, no_wrap=True, overflow="ellipsis")

    bar = RichProgress(Line(), console=console)
    return bar, bar.add_task("", total=None)
