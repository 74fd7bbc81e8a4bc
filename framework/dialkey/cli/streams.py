"""The standard streams of a command: whatever they are connected to, no command fails for it.

What cannot be encoded is written as a backslash escape. What nobody can read (a stream that was
closed before the start, a pipe whose reader has left, a terminal that is gone) is dropped. A remark
on standard error is never worth failing for. Only a *result* that cannot be stored, because the disk
behind standard output is full, is an error, which is raised once.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Final, TextIO

from dialkey.errors import LocalError

__all__ = ["standard_streams"]

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2

NOBODY_LISTENS: Final = frozenset(
    {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ESHUTDOWN}
)
"""The reader of a pipe, a terminal, or the descriptor itself is gone."""


class _Sink(io.RawIOBase):
    """A file descriptor to write to, or None for nothing; it fails at most once."""

    def __init__(self, descriptor: int | None, *, may_fail: bool) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._may_fail = may_fail
        self.has_lost_reader = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self._descriptor is None:
            raise io.UnsupportedOperation("this stream is closed")
        return self._descriptor

    def isatty(self) -> bool:
        return self._descriptor is not None and os.isatty(self._descriptor)

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        size = data.nbytes
        if self._descriptor is None:
            return size
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                # Another program has made the terminal or pipe that we share non-blocking.
                select.select([], [self._descriptor], [])
            except OSError as error:
                self._descriptor = None
                self.has_lost_reader = error.errno in NOBODY_LISTENS
                if self._may_fail and not self.has_lost_reader:
                    raise LocalError(
                        f"standard output cannot be written: {error.strerror}",
                        hint="what was written to it is incomplete",
                    ) from error
                return size


class _Text(io.TextIOWrapper):
    """Text into a `_Sink`."""

    def __init__(self, sink: _Sink, *, encoding: str, line_buffering: bool) -> None:
        super().__init__(
            io.BufferedWriter(sink),  # type: ignore[type-var]  # its `write` takes less
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=line_buffering,
        )
        self._sink = sink

    @property
    def has_lost_reader(self) -> bool:
        """Whether something could not be written because nobody reads it any more."""
        return self._sink.has_lost_reader


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Make ``sys.stdin``, ``sys.stdout`` and ``sys.stderr`` ones that always exist and always work.

    Streams that somebody has put in place of the process's own are left alone. At the end everything
    is as it was.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    if os.name == "nt":
        # A console there takes text, not bytes.
        for stream in before:
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        yield
        return
    if sys.stdout is None or sys.stderr is None or sys.stdin is None:
        _fill_descriptors()
    made: list[TextIO] = []
    if sys.stdin is None:
        sys.stdin = io.StringIO()
    elif sys.stdin is sys.__stdin__ and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="backslashreplace")
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _text(STDOUT, sys.stdout, may_fail=True)
        made.append(sys.stdout)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _text(STDERR, sys.stderr, may_fail=False)
        made.append(sys.stderr)
    try:
        yield
    finally:
        for stream in made:
            # Commands flush what they write; that is where a full disk was told.
            with contextlib.suppress(LocalError):
                stream.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def _text(number: int, stream: TextIO | None, *, may_fail: bool) -> TextIO:
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.flush()
    sink = _Sink(number if stream is not None else None, may_fail=may_fail)
    return _Text(
        sink,
        encoding=stream.encoding if stream is not None else "utf-8",
        line_buffering=number == STDERR or sink.isatty(),
    )


def _fill_descriptors() -> None:
    """Occupy closed standard descriptors, so that no socket or file gets one of these numbers.

    They are opened the wrong way round: who writes contents to a closed standard output, or reads
    a closed standard input, gets an error instead of losing data in silence.
    """
    for number in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(number)
        except OSError:
            how = os.O_WRONLY if number == STDIN else os.O_RDONLY
            opened = os.open(os.devnull, how)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
