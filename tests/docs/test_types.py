"""What type checkers say of programs that use dialkey: the examples of all pages, a user's handler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from doc_pages import PAGES, ROOT, examples_of

SOURCES: Final = [str(ROOT / folder) for folder in ("framework", "protocols", "plugins")]
APPS: Final = [str(path.parent.parent) for path in (ROOT / "cookbook").glob("*/*/__init__.py")]

HANDLER: Final = """
from dialkey import Connection, Endpoint, Router


class Shout:
    async def accept(self, conn: Connection) -> None:
        send, recv = await conn.accept_bi()
        await send.write(await recv.read_to_end(limit=10), finish=True)


async def main() -> None:
    async with Endpoint.bind() as endpoint, Router(endpoint) as router:
        router.accept("shout/1", Shout())
        connection = await endpoint.connect("id", "shout/1")
        for path in connection.paths():
            if path.kind == "relay" and path.state == "open":
                print(path.remote)
        await router.serve()
"""
GUEST_BOOK: Final = """
from dialkey import Connection


class GuestBook:
    async def accept(self, connection: Connection) -> None: ...
"""
WRONG: Final = """
from dialkey import Endpoint


async def main() -> None:
    async with Endpoint.bind() as endpoint:
        connection = await endpoint.connect("id", 7)
        print(connection.no_such_name)
"""


def programs(folder: Path) -> list[Path]:
    """Write every Python example into a file of its own; return the files."""
    # The distribution whose making docs/protocols.md describes.
    made = folder / "dialkey_guestbook"
    made.mkdir()
    (made / "__init__.py").touch()
    (made / "handler.py").write_text(GUEST_BOOK)
    (made / "client.py").write_text("def show(ticket: str) -> None: ...\n")
    found = []
    for page in PAGES:
        for example in examples_of(page):
            if example.language == "python":
                name = "_".join(page.relative_to(ROOT).with_suffix("").parts).lower()
                path = folder / f"{name.replace('-', '_')}_{example.line}.py"
                path.write_text(example.code, encoding="utf-8")
                found.append(path)
    assert len(found) > 30
    return found


def pyright(folder: Path) -> list[str]:
    """Return what basedpyright, in pyright's standard mode, finds wrong in a folder."""
    (folder / "pyrightconfig.json").write_text(
        json.dumps({"typeCheckingMode": "standard", "extraPaths": [str(folder), *SOURCES, *APPS]})
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "basedpyright", "--outputjson"),
            *("--pythonpath", sys.executable, "--project", str(folder)),
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    report = json.loads(done.stdout)
    return [
        f"{Path(each['file']).name}:{each['range']['start']['line'] + 1}: {each['message']}"
        for each in report["generalDiagnostics"]
        if each["severity"] == "error"
    ]


def test_the_examples_pass_mypy_strict(tmp_path: Path) -> None:
    files = programs(tmp_path)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"),
            *("--no-namespace-packages", "--cache-dir", str(tmp_path / "cache"), "--config-file="),
            *map(str, files),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": os.pathsep.join([str(tmp_path), *SOURCES, *APPS])},
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_examples_and_a_handler_of_ones_own_pass_pyright(tmp_path: Path) -> None:
    programs(tmp_path)
    (tmp_path / "handler.py").write_text(HANDLER)
    assert pyright(tmp_path) == []


@pytest.mark.parametrize("text", ["no_such_name", '"Literal[7]"'])
def test_what_is_wrong_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    assert any(text in each for each in pyright(tmp_path))
