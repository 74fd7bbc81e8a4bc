"""``dialkey gossip``: two programs and a topic."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dialkey.errors import DialkeyError
from dialkey_gossip import TopicId, TopicTicket
from dialkey_gossip.commands import _named

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
COMMAND = [
    sys.executable,
    "-c",
    # The command as its entry point adds it, whatever is installed.
    "import sys, dialkey_gossip.plugin as plugin\n"
    "from dialkey.cli import build\n"
    "from dialkey.hooks import Plugins\n"
    "plugins = Plugins()\n"
    "plugins.register(plugin)\n"
    "build(plugins)(sys.argv[1:])",
    "gossip",
    "--bind",
    "127.0.0.1:0",
]


@contextlib.contextmanager
def talking(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, process.stderr.read() if process.stderr else ""
    return line


def type_into(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.flush()


def test_two_programs_talk() -> None:
    with talking("the weather", "--json") as ada:
        ready = json.loads(line_of(ada))
        assert ready["event"] == "ready"
        assert ready["topic"] == str(TopicId.from_name("the weather"))
        ticket = TopicTicket.parse(ready["ticket"])
        with talking(str(ticket)) as ben:
            assert len(TopicTicket.parse(line_of(ben)).peers) >= 1
            done = subprocess.run(
                [*COMMAND, str(ticket), "--send", "sunny \x1b[31m"],
                env=ENVIRONMENT,
                timeout=60,
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            heard = json.loads(line_of(ada))
            assert (heard["event"], heard["text"]) == ("received", "sunny \x1b[31m")
            assert line_of(ben).endswith(": sunny \\x1b[31m")
            type_into(ben, "and warm\n")
            heard = json.loads(line_of(ada))
            assert (heard["text"], heard["hops"], heard["author"]) == ("and warm", 0, None)
            type_into(ada, "indeed\n")
            assert line_of(ben).endswith(": indeed")
            for process in (ada, ben):
                process.send_signal(signal.SIGINT)
                assert process.wait(20) == 130


def test_nobody_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    with talking("--peer", "nonsense", "x") as process:
        assert process.wait(20) == 2


def test_names_of_topics() -> None:
    topic = TopicId.from_name("x")
    assert _named("x") == topic
    assert _named(str(topic)) == topic
    assert _named("topic of the day") == TopicId.from_name("topic of the day")
    ticket = TopicTicket(topic)
    assert _named(f" {ticket}\n") == ticket
    for wrong in ("", str(ticket)[:-4]):
        with pytest.raises(DialkeyError):
            _named(wrong)
