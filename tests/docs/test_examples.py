"""Every example in README, docs and cookbook pages runs.

A comment in the line before a fence says how: ``<!-- example: HOW -->``, with HOW one of

- ``run``: to its end, with exit code 0;
- ``serve``: it prints a ticket and goes on; the ticket is what the examples after it get;
- ``module``: a part of a program, which is only imported;
- ``file NAME``: no fence follows; a file of that name is put into the page's folder.

Python examples get the last ticket as their argument. In console examples, lines that begin with
``$ dialkey`` run, with the last ticket in the place of a word that ends in an ellipsis (the last of
the same kind where there are several), and in the place of a code such as ``7-amber-violin`` the one
that the last ``--code`` printed; other commands (make, git, pip) do not. A fence of Python without such
a comment fails the test.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from doc_pages import PAGES, ROOT, Example, examples_of

CUT_TICKET: Final = re.compile(r"[a-z0-9]+…")
CODE: Final = re.compile(r"\d-[a-z]+-[a-z]+")
KIND_LETTERS: Final = 4
TIMEOUT_S: Final = 60.0


class Page:
    """Runs the examples of one page in one folder, as if on one machine.

    ``dialkey receive`` has a folder of its own, as it would on the other machine.
    """

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder / "here"
        self.elsewhere = folder / "elsewhere"
        self.folder.mkdir()
        self.elsewhere.mkdir()
        self.stack = stack
        self.ticket = ""
        self.code = ""
        self.tickets: dict[str, str] = {}

    def run(self, example: Example) -> None:
        if example.how == "file":
            path = self.folder / example.code
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(200_000))
        elif example.language == "python":
            assert example.how, f"line {example.line}: say how to run it"
            self.python(example)
        elif example.language == "console":
            for line in example.code.splitlines():
                if line.startswith("$ dialkey "):
                    assert example.how, f"line {example.line}: say how to run it"
                    words = shlex.split(line.removeprefix("$ dialkey "))
                    words = [self.filled_in(word) for word in words]
                    folder = self.elsewhere if words[0] == "receive" else self.folder
                    self.process(example.how, ["-m", "dialkey", *words], folder)

    def filled_in(self, word: str) -> str:
        if CODE.fullmatch(word):
            return self.code
        if CUT_TICKET.fullmatch(word):
            return self.tickets.get(word[:KIND_LETTERS], self.ticket)
        return word

    def python(self, example: Example) -> None:
        if example.how == "module":
            exec(compile(example.code, f"line {example.line}", "exec"), {"__name__": "example"})
            return
        path = self.folder / f"example_{example.line}.py"
        path.write_text(example.code, encoding="utf-8")
        arguments = [str(path), *([self.ticket] if self.ticket else [])]
        self.process(example.how, arguments, self.folder)

    def process(self, how: str, arguments: list[str], folder: Path) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONWARNINGS": "error::ResourceWarning",
        }
        process = self.stack.enter_context(
            subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if how == "run" else None,
                stdin=subprocess.DEVNULL,
                text=True,
            )
        )
        self.stack.callback(process.kill)
        if how == "run":
            out, err = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, f"{arguments}\n{out}\n{err}"
            assert "Traceback" not in err, err
        else:
            assert process.stdout is not None
            self.ticket = process.stdout.readline().strip()
            assert self.ticket, f"{arguments} printed no ticket"
            self.tickets[self.ticket[:KIND_LETTERS]] = self.ticket
            if "--code" in arguments:
                self.code = process.stdout.readline().strip()
                assert CODE.fullmatch(self.code), f"{arguments} printed no code"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if ROOT / "cookbook" in page.parents:
        monkeypatch.syspath_prepend(page.parent)  # an app's page may import the app
    with contextlib.ExitStack() as stack:
        runner = Page(tmp_path, stack)
        for example in examples_of(page):
            runner.run(example)


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
