"""What commands write: results for people or JSON lines for programs, and progress.

Standard output carries results only, so that it can be piped; remarks, progress and errors go to
standard error. With ``--json``, standard output carries one JSON object in each line, each with an
``event``, and remarks are not written at all. What the encoding of a stream cannot express is escaped:
in JSON as JSON does, else with a backslash.
"""

from __future__ import annotations

import codecs
import json
import sys
from typing import TextIO

from dialkey.cli.progress import Progress
from dialkey.printable import escaped_json, printable

__all__ = ["Output"]


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
            # Nobody reads it, which is not a reason to fail.
            pass

    @property
    def has_lost_reader(self) -> bool:
        """Whether the reader of standard output has gone, as ``head`` goes when it has enough.

        Results are dropped from then on. A command that does nothing but write results ends.
        """
        return bool(getattr(self.stdout, "has_lost_reader", False))

    def progress(self, what: str, total_bytes: int | None = None) -> Progress:
        """Return a context manager that shows how far something has come."""
        return Progress(self, what, total_bytes)


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
