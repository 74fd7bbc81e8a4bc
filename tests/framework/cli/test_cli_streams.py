"""Commands and what their standard streams are connected to: nothing, a full disk, another encoding."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from dialkey.cli import ExitCode, Output
from dialkey.identity import SecretKey

DIALKEY = f"{sys.executable} -m dialkey"


def shell(command: str, *, encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
    """Run a command line in which DIALKEY stands for the program."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.replace("DIALKEY", DIALKEY)],
        capture_output=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYTHONIOENCODING": encoding,
            "PYTHONUNBUFFERED": "",
        },
    )


HELP_OF_ALL = """
import sys
from dialkey.cli import build, main
import typer.main

def walk(command, words):
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, [*words, name])

worst = 0
for words in list(walk(typer.main.get_command(build()), [])):
    for argument in ("--help", "-h"):
        try:
            main([*words, argument])
        except SystemExit as ended:
            worst = max(worst, ended.code or 0)
sys.exit(worst)
"""


@pytest.mark.parametrize(
    ("streams", "code", "encoding"),
    [
        ("", 0, "latin-1"),
        ("", 0, "ascii"),
        ("<&- >&- 2>&-", 0, "utf-8"),
        ("2>/dev/full", 0, "utf-8"),
        (">/dev/full", ExitCode.LOCAL, "utf-8"),
        (">/dev/full 2>/dev/full", ExitCode.LOCAL, "utf-8"),
        ("| true", 0, "utf-8"),
    ],
)
def test_help_of_every_command(tmp_path: Path, streams: str, code: int, encoding: str) -> None:
    (tmp_path / "all.py").write_text(HELP_OF_ALL)
    done = shell(f"{sys.executable} {tmp_path}/all.py {streams}", encoding=encoding)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    if code and "2>" not in streams:
        assert b"dialkey: standard output cannot be written: No space left on device" in done.stderr


@pytest.mark.parametrize(("words", "code"), [("--version", 0), ("", 2), ("nonsense", 2)])
@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "2>/dev/full", "| true"])
def test_other_pages_and_errors(words: str, code: int, streams: str) -> None:
    assert shell(f"DIALKEY {words} {streams}").returncode == code


def test_a_result_that_cannot_be_stored_is_an_error_and_said_once(tmp_path: Path) -> None:
    SecretKey.generate().save(tmp_path / "me.key")
    for option in ("", "--json"):
        done = shell(f"DIALKEY key show {tmp_path}/me.key {option} >/dev/full")
        assert done.returncode == ExitCode.LOCAL
        assert done.stderr.count(b"standard output cannot be written") == 1
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full", "| true"])
@pytest.mark.parametrize("option", ["", "--json"])
def test_a_result_that_nobody_reads_is_none(tmp_path: Path, streams: str, option: str) -> None:
    done = shell(f"DIALKEY key new {tmp_path}/me.key {option} {streams}")
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert (tmp_path / "me.key").exists()


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii", "utf-8"])
def test_what_an_encoding_lacks_is_escaped(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "日本 é \udcff.key"
    SecretKey.generate().save(file)
    done = shell(f"DIALKEY key show {tmp_path}/*.key", encoding=encoding)
    assert done.returncode == 0
    done = shell(f"DIALKEY key show --json {tmp_path}/*.key", encoding=encoding)
    assert done.returncode == 0
    assert json.loads(done.stdout.decode(encoding))["file"] == str(file)
    assert done.stdout.isascii() == (encoding != "utf-8")


def test_text_for_a_stream_of_another_encoding_is_escaped() -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="latin-1") for _ in range(2))
    output = Output(stdout=out, stderr=err)
    output.result("name", "naïve 日")
    output.remark("naïve 日")
    for stream in (out, err):
        assert stream.buffer.getvalue() == "naïve \\u65e5\n".encode("latin-1")  # type: ignore[attr-defined]


def test_a_reader_that_leaves_ends_a_command_that_only_writes_results() -> None:
    done = shell(
        "exec 3< <(DIALKEY ping --listen --bind 127.0.0.1:0 & echo $!; wait) ;"
        "read -u 3 child; read -u 3 ticket;"
        "DIALKEY ping $ticket --count 0 --interval 0.01 | head -n 1; code=$?;"
        "kill $child; exit $code"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"1: ")


def test_output_to_a_terminal_that_is_gone_is_dropped(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", GONE_SCRIPT],
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        os.close(theirs)
        assert os.read(ours, 100).startswith(b"ready")
        os.close(ours)
        process.communicate(b"go on\n", timeout=60)
    assert process.returncode == 0


GONE_SCRIPT = """
import sys
from dialkey.cli import Output
from dialkey.cli.streams import standard_streams
with standard_streams():
    output = Output()
    output.result("ready", "ready")
    sys.stdin.readline()
    output.result("late", "late")
    output.remark("later")
    assert output.has_lost_reader
"""


def test_a_pipe_that_does_not_block_gets_everything() -> None:
    """Another program that shares a pipe or a terminal may have made it non-blocking."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    with subprocess.Popen(
        [sys.executable, "-c", LONG_SCRIPT],
        stdout=writable,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        os.close(writable)
        with open(readable, "rb") as reader:
            data = reader.read()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert data == b"x" * 1_000_000 + b"\n"


LONG_SCRIPT = """
from dialkey.cli import Output
from dialkey.cli.streams import standard_streams
with standard_streams():
    Output().result("long", "x" * 1_000_000)
"""


def test_no_socket_gets_the_number_of_a_closed_stream() -> None:
    script = """
import os, socket
from dialkey.cli.streams import standard_streams
with standard_streams():
    with socket.socket() as sock:
        assert sock.fileno() > 2
    try:
        os.write(1, b"contents")
    except OSError:
        os._exit(7)
"""
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{script}' <&- >&- 2>&-"],
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 7, "contents for a closed standard output must not vanish in silence"
