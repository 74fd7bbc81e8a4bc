"""The command line in this process: built-in commands, exit codes, output, errors."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import types
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import typer

from dialkey import cli as dialkey_cli
from dialkey import errors, native
from dialkey.cli import (
    CommandLine,
    ExitCode,
    Options,
    Output,
    build,
    endpoint_options,
    explain,
    guard,
    main,
    run,
)
from dialkey.cli.app import main as app_main
from dialkey.cli.progress import progress_line
from dialkey.hooks import Plugins
from dialkey.identity import (
    CustomAddr,
    EndpointAddr,
    EndpointTicket,
    IpAddr,
    RelayAccess,
    RelayAddr,
    RelayUrl,
    SecretKey,
)

ID = SecretKey(bytes(range(32))).id


def call(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    return int(ended.value.code or 0)


# --- key and ticket -------------------------------------------------------------------------------


def test_key_new_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "me.key"
    assert call("key", "new", str(file)) == 0
    made = capsys.readouterr()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert made.out.strip() == str(SecretKey.load(file).id)
    assert call("key", "show", str(file)) == 0
    shown = capsys.readouterr()
    assert shown.out == made.out
    secret = file.read_text().strip()
    for text in (made.out, made.err, shown.out, shown.err):
        assert secret not in text

    assert call("key", "new", str(file)) == ExitCode.LOCAL
    failed = capsys.readouterr()
    assert failed.out == ""
    assert "already exists" in failed.err
    assert file.read_text().strip() == secret


def test_key_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "me.key"
    SecretKey(bytes(range(32))).save(file)
    assert call("key", "show", "--json", str(file)) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "event": "key",
        "endpoint_id": str(ID),
        "base32": ID.to_base32(),
        "z32": ID.to_z32(),
        "file": str(file),
    }
    assert captured.err == ""


def test_key_show_without_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("key", "show", str(tmp_path / "no.key")) == ExitCode.LOCAL
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"dialkey: no such key file: {tmp_path / 'no.key'}\n"


def example_ticket() -> EndpointTicket:
    return EndpointTicket(
        EndpointAddr(
            ID,
            (
                IpAddr.parse("192.0.2.1:443"),
                RelayAddr(RelayUrl("https://relay.example/")),
                CustomAddr(7, b"x"),
            ),
        )
    )


def test_ticket_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("ticket", "inspect", str(example_ticket())) == 0
    assert capsys.readouterr().out.splitlines() == [
        "kind:           endpoint",
        f"endpoint id:    {ID}",
        "relay address:  https://relay.example/",
        "ip address:     192.0.2.1:443",
        "custom address: 7_78",
    ]
    assert call("ticket", "inspect", "--json", str(example_ticket())) == 0
    assert json.loads(capsys.readouterr().out) == {
        "event": "ticket",
        "kind": "endpoint",
        "endpoint_id": str(ID),
        "addresses": [
            {"kind": "relay", "address": "https://relay.example/"},
            {"kind": "ip", "address": "192.0.2.1:443"},
            {"kind": "custom", "address": "7_78"},
        ],
    }


def test_ticket_from_standard_input_and_without_addresses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"  {EndpointTicket(EndpointAddr(ID))}\n"))
    assert call("ticket", "inspect", "-") == 0
    assert "none; the endpoint must be looked up" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["endpointabc", "", "hello", "blobabc", "x" * 10_000])
def test_mistyped_ticket_is_one_line_and_code_2(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("ticket", "inspect", text) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dialkey: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert len(captured.err) < 300


def test_error_in_json_mode_is_a_json_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("ticket", "inspect", "hello", "--json") == ExitCode.USAGE
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "event": "error",
        "code": "local.input.ticket",
        "message": captured.err.removeprefix("dialkey: ").strip(),
        "exit_code": 2,
    }


def test_plugins_teach_kinds_of_tickets(capsys: pytest.CaptureFixture[str]) -> None:
    class Song:
        addr = EndpointAddr(ID)

    def commands(cli: CommandLine) -> None:
        cli.add_ticket_kind("song", lambda text: Song(), lambda ticket: {"title_hash": "ab"})
        with pytest.raises(errors.InvalidInput, match="known already"):
            cli.add_ticket_kind("song", lambda text: Song())

    cli = build(plugins_of(commands))
    kind, ticket, details = cli.parse_ticket(" songabc ")
    assert (kind, details) == ("song", {"title_hash": "ab"})
    assert isinstance(ticket, Song)
    with pytest.raises(errors.InvalidTicket, match="endpoint, song"):
        cli.parse_ticket("dance")


# --- usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv", [["nope"], ["key", "new"], ["key", "show", "--nope", "x"], ["ticket", "inspect"]]
)
def test_wrong_command_line_is_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*argv) == ExitCode.USAGE
    assert "Usage: dialkey" in capsys.readouterr().err


def test_help_lists_commands_and_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    text = capsys.readouterr().out
    for word in ("key", "ticket", "--version"):
        assert word in text
    for code in ExitCode:
        assert f"{code.value:>4}  {code.meaning}" in text


def test_exit_codes_are_documented_in_the_same_words() -> None:
    page = Path(__file__).parents[3] / "docs" / "command-line.md"
    text = page.read_text(encoding="utf-8")
    for code in ExitCode:
        assert f"| {code.value} | {code.meaning} |" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("dialkey")
    assert second == f"native part: {native.describe()}"


# --- plugins' commands ----------------------------------------------------------------------------


def plugins_of(*commands: Callable[[CommandLine], object]) -> Plugins:
    plugins = Plugins()
    for number, function in enumerate(commands):
        plugins.register(types.SimpleNamespace(dialkey_commands=function), f"plugin{number}")
    return plugins


def adds(name: str, answer: str) -> Callable[[CommandLine], object]:
    def dialkey_commands(cli: CommandLine) -> None:
        @cli.command(name)
        def command() -> None:
            print(answer)

    return dialkey_commands


def test_broken_plugin_spoils_no_other_command(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(cli: CommandLine) -> None:
        cli.command("half")(lambda: None)
        raise OSError("gone")

    cli = build(plugins_of(adds("one", "1"), broken, adds("two", "2")))
    assert sorted(cli.command_names()) == ["key", "lookup", "one", "ticket", "two"]
    assert "plugin 'plugin1' failed in hook dialkey_commands: OSError" in capsys.readouterr().err


@pytest.mark.parametrize("taken", ["one", "key"])
def test_a_taken_command_name_is_reported_and_the_first_stays(
    taken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = build(plugins_of(adds("one", "1"), adds(taken, "other")))
    assert sorted(cli.command_names()) == ["key", "lookup", "one", "ticket"]
    assert f"plugin 'plugin1' adds the command '{taken}'" in capsys.readouterr().err


def test_a_taken_group_name_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    def group(cli: CommandLine) -> None:
        cli.add_typer(typer.Typer(name="ticket"))

    assert sorted(build(plugins_of(group)).command_names()) == ["key", "lookup", "ticket"]
    assert "adds the command 'ticket'" in capsys.readouterr().err


def test_a_command_without_guard_still_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unguarded(cli: CommandLine) -> None:
        @cli.command("bare")
        def bare() -> None:
            raise errors.DialError("no answer", attempts=["192.0.2.1:1: timed out"])

    plugins = plugins_of(unguarded)
    monkeypatch.setattr("dialkey.cli.app.build", lambda: build(plugins))
    with pytest.raises(SystemExit) as ended:
        app_main(["bare"])
    assert ended.value.code == ExitCode.UNREACHABLE
    assert capsys.readouterr().err == "dialkey: no answer: 192.0.2.1:1: timed out\n"


# --- errors ---------------------------------------------------------------------------------------


def os_error(number: int, name: str = "f") -> OSError:
    return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (errors.InvalidTicket("bad", hint="copy it again"), 2, "bad (copy it again)"),
        (errors.InvalidKey("bad"), 2, "bad"),
        (errors.BindError("taken"), 3, "taken"),
        (os_error(errno.ENOSPC), 3, "the disk is full: f (make room"),
        (os_error(errno.ENOENT), 3, "no such file or folder: f"),
        (os_error(errno.EACCES), 3, "Permission denied: f"),
        (errors.ResolveError("unknown", endpoint_id=ID), 4, f"unknown [{ID.short()}]"),
        (errors.DialTimeout("late", attempts=["a: x", "b: y"]), 4, "late: a: x; b: y"),
        (TimeoutError(), 5, "no answer in time"),
        (errors.ConnectionLost("silent"), 5, "silent"),
        (errors.ConnectionClosedByPeer("bye", error_code=3), 5, "bye"),
        (errors.StreamReset("reset", error_code=3), 5, "reset"),
        (errors.WrongKey("other key"), 6, "other key"),
        (errors.AlpnMismatch("no such protocol"), 6, "no such protocol"),
        (errors.Refused("policy"), 6, "policy"),
        (errors.WireError("junk"), 7, "junk"),
        (errors.LimitExceeded("too much"), 7, "too much"),
        (ZeroDivisionError("oops"), 1, "unexpected ZeroDivisionError: oops (set DIALKEY_DEBUG=1"),
        (ExceptionGroup("g", [errors.WireError("two\nlines")]), 7, r"two\nlines"),
        (ValueError("two\n lines\x1b[0m"), 1, r"unexpected ValueError: two lines\x1b[0m"),
    ],
)
def test_every_error_has_a_code_and_one_line(error: Exception, code: int, text: str) -> None:
    got, line = explain(error)
    assert got == code
    assert line.startswith(text)
    assert "\n" not in line


def subclasses(kind: type[Exception]) -> set[type[Exception]]:
    return {kind}.union(*(subclasses(sub) for sub in kind.__subclasses__()))


def test_no_error_of_the_tree_counts_as_unexpected() -> None:
    for kind in subclasses(errors.DialkeyError):
        code, _ = explain(_instance(kind))
        assert code is not ExitCode.UNEXPECTED, kind


def _instance(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    error.__dict__.update(message="m", endpoint_id=None, hint=None, attempts=())
    return error


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DIALKEY_DEBUG", "1")
    with pytest.raises(typer.Exit), guard(Output()):
        raise errors.ConnectionLost("silent")
    captured = capsys.readouterr()
    assert "Traceback" in captured.err
    assert captured.err.endswith("dialkey: silent\n")


@pytest.mark.parametrize("kind", [typer.Exit, typer.Abort, typer.BadParameter])
def test_guard_leaves_typers_own_exceptions(kind: Callable[..., BaseException]) -> None:
    error = kind("x") if kind is typer.BadParameter else kind()
    with pytest.raises(type(error)) as caught, guard(Output()):
        raise error
    assert caught.value is error


# --- running --------------------------------------------------------------------------------------


def work_that(function: Callable[[], Any]) -> Callable[[], Coroutine[object, object, None]]:
    async def work() -> None:
        function()

    return work


def test_run_twice_in_one_process() -> None:
    ran: list[int] = []
    for number in (1, 2):
        run(Output(), work_that(lambda number=number: ran.append(number)))  # type: ignore[misc]
    assert ran == [1, 2]


def test_interrupt_is_130_and_silent(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as ended:
        run(Output(), work_that(interrupt))
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == ""


SCRIPT = """
import asyncio, sys
from dialkey.cli import Output, run
import typer
async def work():
    try:
        print("ready", flush=True)
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        print("cleaned up", flush=True)
try:
    run(Output(), work)
except typer.Exit as ended:
    sys.exit(ended.exit_code)
"""


def started(script: str, *before: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*before, sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_end_a_command_in_order(number: signal.Signals, code: int) -> None:
    process = started(SCRIPT)
    process.send_signal(number)
    assert ended(process) == (code, "cleaned up\n", "")


SLOW_SCRIPT = SCRIPT.replace(
    "await asyncio.sleep(0)",
    'print("cleaning", flush=True); await asyncio.to_thread(sys.stdin.readline)',
)


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM])
def test_a_second_hangup_cuts_nothing_short(first: signal.Signals) -> None:
    """A terminal that closes sends it twice; systemd sends it right after SIGTERM."""
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stdout.readline() == "cleaning\n"
        process.send_signal(signal.SIGHUP)
        out, _ = process.communicate("go on\n", timeout=60)
    assert (process.returncode, out) == (128 + first, "cleaned up\n")


def test_hangup_is_ignored_where_it_was_ignored_at_the_start() -> None:
    process = started(SCRIPT, "nohup")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    code, out, _ = ended(process)
    assert (code, out) == (143, "cleaned up\n")


# --- completion -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_of_a_shell(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: (name, f"/bin/{name}"))
    assert call("--show-completion") == 0
    assert f"_DIALKEY_COMPLETE=complete_{name}" in capsys.readouterr().out


def test_completion_gives_commands_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_DIALKEY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "dialkey ke")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert call() == 0
    captured = capsys.readouterr()
    assert captured.out.split() == ["key"]
    assert captured.err == ""


# --- output ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (104_857_600, "104.9 MB"),
        (10**15, "1000.0 TB"),
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    assert dialkey_cli.format_bytes(count) == text


def progress_output(*, json: bool) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    times = [0.0]
    output = Output(json=json, stdout=out, stderr=err)
    with dialkey_cli.Progress(output, "receiving", clock=lambda: times[-1]) as progress:
        progress.update(1_000_000, total_bytes=100_000_000)
        times.append(10.0)
        progress.update(51_000_000, note="direct")
        assert progress.rate_bytes_per_s == 5_000_000
        progress.update(52_000_000)
    return out.getvalue(), err.getvalue()


def test_progress_lines_for_logs() -> None:
    out, err = progress_output(json=False)
    assert out == ""
    assert err.splitlines() == [
        "receiving: 51.0 MB of 100.0 MB, 5.0 MB/s, direct",
        "receiving: 52.0 MB of 100.0 MB, 5.1 MB/s, direct",
    ]


def test_progress_lines_for_programs() -> None:
    out, err = progress_output(json=True)
    assert err == ""
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["done_bytes"] for line in lines] == [51_000_000, 52_000_000]
    assert lines[0] == {
        "event": "progress",
        "what": "receiving",
        "done_bytes": 51_000_000,
        "total_bytes": 100_000_000,
        "rate_bytes_per_s": 5_000_000,
        "note": "direct",
    }


@pytest.mark.parametrize(
    "note",
    ["", "direct 192.0.2.1:4433", "relay https://euw1-1.relay.example.network./", "3 of 9 results"],
)
def test_a_progress_line_fits(note: str) -> None:
    counts = ((0, None), (0, 0), (1, 5), (123_456_789_012, 999_999_999_999), (9, 5))
    for width, (done, total) in itertools.product(range(1, 140), counts):
        line = progress_line(
            "receiving",
            done,
            total,
            rate_bytes_per_s=999_900_000.0,
            left_s=350_000.0,
            note=note,
            width=width,
        )
        assert len(line) <= width


def test_a_progress_line_says_what_matters_at_60_columns() -> None:
    def line(width: int) -> str:
        return progress_line(
            "receiving",
            60_000_000,
            123_500_000,
            rate_bytes_per_s=12_300_000.0,
            left_s=5.2,
            note="relay https://euw1-1.relay.example.network./",
            width=width,
        )

    assert line(60) == "receiving 48% 60.0/123.5 MB 12.3 MB/s 0:05 relay euw1-1.rel…"
    assert line(110) == (
        f"receiving {'━' * 15}{'╌' * 16} 48% 60.0/123.5 MB 12.3 MB/s 0:05 "
        "relay euw1-1.relay.example.network"
    )


def test_what_is_waited_for_is_said_once_until_something_comes() -> None:
    out, err = io.StringIO(), io.StringIO()
    for is_json in (False, True):
        with Output(json=is_json, stdout=out, stderr=err).progress("receiving") as progress:
            progress.waiting("connecting to abc …")
            progress.waiting("connecting to abc …")
            progress.update(1, total_bytes=1)
            progress.waiting("connecting to abc …")
    assert err.getvalue().splitlines() == [
        "receiving: connecting to abc …",
        "receiving: connecting to abc …",
        "receiving: 1 B of 1 B",
    ]
    events = [json.loads(line)["event"] for line in out.getvalue().splitlines()]
    assert events == ["waiting", "waiting", "progress"]


@pytest.mark.parametrize("columns", [20, 60])
def test_the_bar_of_a_terminal_stays_on_one_line(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    # rich believes COLUMNS of a dumb terminal only together with LINES.
    monkeypatch.setenv("LINES", "25")
    monkeypatch.setenv("TERM", "dumb")
    err = Terminal()
    with Output(stderr=err).progress("receiving") as progress:
        progress.waiting("connecting to 0123456789 …")
        progress.update(60_000, total_bytes=100_000, note="relay https://relay.example.network./")
    assert "relay relay.example" in err.getvalue() or columns < 60
    assert max(len(line) for line in err.getvalue().replace("\r", "\n").split("\n")) < columns


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "dumb")
    err = Terminal()
    with Output(stderr=err).progress("receiving", 100) as progress:
        progress.update(100, note="direct")
    assert "receiving" in err.getvalue()
    assert "direct" in err.getvalue()


# --- shared options -------------------------------------------------------------------------------


def _options_of(*argv: str, json: bool = True) -> Options:
    """Return what a command with all shared options gets for these arguments."""
    seen: list[tuple[str, Options]] = []
    cli = CommandLine()

    @cli.command()
    @(endpoint_options if json else endpoint_options(json=False))
    def probe(name: str = "guest", *, options: Options) -> None:
        """Return what was given."""
        seen.append((name, options))

    command = typer.main.get_command(cli)
    command.main(args=["probe", *argv], standalone_mode=False)
    ((_, options),) = seen
    return options


def test_a_command_gets_the_shared_options_as_one(tmp_path: Path) -> None:
    key, token, ca = tmp_path / "key", tmp_path / "token", tmp_path / "ca"
    given = _options_of(
        *("--name", "x", "--json", "--secret-key", str(key), "--preset", "minimal"),
        *("--bind", "127.0.0.1:1", "--relay", "https://a", "--relay", "https://b"),
        *("--relay-token", str(token), "--relay-ca", str(ca)),
    )
    assert given == Options(
        True, key, "minimal", "127.0.0.1:1", ("https://a", "https://b"), token, ca
    )
    assert _options_of() == Options()


def test_shared_options_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALKEY_RELAY", "https://a https://b")
    monkeypatch.setenv("DIALKEY_RELAY_TOKEN_FILE", "token")
    monkeypatch.setenv("DIALKEY_RELAY_CA", "ca")
    assert _options_of() == Options(
        relays=("https://a", "https://b"), relay_token=Path("token"), relay_ca=Path("ca")
    )


def test_a_command_without_json_has_no_such_option() -> None:
    with pytest.raises(Exception, match="No such option"):
        _options_of("--json", json=False)


def test_a_command_that_takes_no_options_cannot_be_given_any() -> None:
    with pytest.raises(TypeError, match="no parameter `options`"):
        endpoint_options(lambda: None)


def test_a_token_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DIALKEY_RELAY_TOKEN", raising=False)
    file = tmp_path / "token"
    file.write_text("from-file\n")
    url = "https://relay.example"
    assert Options(relays=[url]).endpoint_relays() == (url,)
    assert Options(relays=[url], relay_token=file).endpoint_relays() == (
        url,
        RelayAccess("from-file"),
    )
    assert Options(relay_ca=file).endpoint_relays() == (RelayAccess(roots=[file]),)
    assert Options().endpoint_relays() == ()
    assert Options(preset="minimal", relay_ca=file).endpoint_relays() is None
    monkeypatch.setenv("DIALKEY_RELAY_TOKEN", "from-environment")
    assert Options(relays=[url]).endpoint_relays() == (url, RelayAccess("from-environment"))
    assert Options(relays=[url], relay_token=file).endpoint_relays() == (
        url,
        RelayAccess("from-file"),
    )
    # Nobody is named whom it could be shown to.
    assert Options().endpoint_relays() == ()
    assert "from-file" not in repr(Options(relays=[url], relay_token=file).endpoint_relays())


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", "é".encode(), b"x" * 20_000])
def test_a_file_that_holds_no_token_is_told(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(errors.InvalidInput, match="does not hold a relay token"):
        Options(relays=["https://a"], relay_token=file).endpoint_relays()


def test_a_token_for_nobody_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidInput, match="--relay-token was given without --relay"):
        Options(relay_token=tmp_path / "token").endpoint_relays()
